"""The Ollama-compatible API, by the official client."""

import json
from typing import Any

import jsonschema
import ollama
import pytest

from tests.engine.rounding import alike_once
from tests.gateway.apis.conftest import MODEL
from tests.gateway.apis.test_openai import CITY, SCHEMA, TOOLS
from tests.gateway.running import Place

pytestmark = [pytest.mark.anyio, pytest.mark.model]
ASK: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Name three colours."}],
    "options": {"temperature": 0, "num_predict": 12, "num_ctx": 4096},
}


async def test_models_are_listed_and_shown(llama: ollama.AsyncClient) -> None:
    listed = (await llama.list()).models
    found = next(model for model in listed if model.model == MODEL)
    assert found.size
    assert found.details
    assert found.details.family == "llama"
    shown = await llama.show(MODEL)
    assert shown.template
    assert "completion" in (shown.capabilities or ())


@alike_once
async def test_chat_streams_what_it_answers_whole(llama: ollama.AsyncClient) -> None:
    await llama.chat(**ASK)  # from now on both find the prompt in the cache, and compute alike
    whole = await llama.chat(**ASK)
    assert whole.message.content
    assert whole.done
    assert whole.eval_count
    assert whole.prompt_eval_count
    parts = [part async for part in await llama.chat(**ASK, stream=True)]
    assert "".join(part.message.content or "" for part in parts) == whole.message.content
    assert parts[-1].done_reason == whole.done_reason
    assert parts[-1].eval_count == whole.eval_count


@alike_once
async def test_text_is_generated(llama: ollama.AsyncClient) -> None:
    asked = {"model": MODEL, "prompt": "Name a colour.", "system": "Be brief.", "options": ASK["options"]}
    await llama.generate(**asked)  # from now on both find the prompt in the cache, and compute alike
    whole = await llama.generate(**asked)
    parts = [part async for part in await llama.generate(**asked, stream=True)]
    assert "".join(part.response for part in parts) == whole.response


async def test_answers_follow_a_schema(llama: ollama.AsyncClient) -> None:
    options = {"temperature": 0, "num_predict": 60}
    answer = await llama.chat(**ASK | {"options": options}, format=SCHEMA)
    jsonschema.validate(json.loads(answer.message.content or ""), SCHEMA)


@alike_once
async def test_options_hold(llama: ollama.AsyncClient) -> None:
    asked: dict[str, Any] = {"model": MODEL, "prompt": "Name a colour."}
    warm = {"temperature": 1.0, "seed": 5, "num_predict": 12}
    first, second = [(await llama.generate(**asked, options=warm)).response for _ in range(2)]
    assert first == second
    plain = {"temperature": 0, "num_predict": 12}
    whole = (await llama.generate(**asked, options=plain)).response
    stop = whole[len(whole) // 2 :][:4]
    cut = await llama.generate(**asked, options=plain | {"stop": [stop]})
    assert (cut.response, cut.done_reason) == (whole[: whole.index(stop)], "stop")
    shaped = await llama.generate(**asked, options=plain | {"num_predict": 60}, format=SCHEMA)
    jsonschema.validate(json.loads(shaped.response), SCHEMA)


async def test_tools_may_be_called(llama: ollama.AsyncClient) -> None:
    """A model so small may answer in words; its calls, if it makes any, fit."""
    asked = ASK | {"messages": [{"role": "user", "content": "Weather in Paris?"}], "options": {"num_predict": 80}}
    answer = await llama.chat(**asked, tools=TOOLS)
    assert answer.message.content or answer.message.tool_calls
    for call in answer.message.tool_calls or ():
        jsonschema.validate(dict(call.function.arguments), CITY)
    call_made = {"function": {"name": "weather", "arguments": {"city": "Paris"}}}
    turns = [
        *asked["messages"],
        {"role": "assistant", "content": "", "tool_calls": [call_made]},
        {"role": "tool", "tool_name": "weather", "content": "Sunny."},
    ]
    assert (await llama.chat(**asked | {"messages": turns})).done


async def test_texts_are_embedded(llama: ollama.AsyncClient) -> None:
    found = await llama.embed(MODEL, ["one", "two"])
    assert len(found.embeddings) == 2
    assert len(found.embeddings[0]) == 576


async def test_model_is_loaded_and_unloaded_on_request(llama: ollama.AsyncClient, place: Place) -> None:
    await llama.generate(MODEL, keep_alive="10m")
    (loaded,) = place.gateway.models.pool.loaded()
    assert loaded.kept_s == 600
    running = (await llama.ps()).models
    assert [one.model for one in running] == [MODEL]
    await llama.generate(MODEL, keep_alive=0)
    assert not place.gateway.models.pool.loaded()


async def test_errors_have_the_shape_clients_know(llama: ollama.AsyncClient) -> None:
    with pytest.raises(ollama.ResponseError, match="not in the store") as found:
        await llama.chat(**ASK | {"model": "nobody:1"})
    assert found.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="keep_alive"):
        await llama.chat(**ASK, keep_alive="soon")
