"""The OpenAI-compatible API, by the official client."""

import json
import math
from typing import Any

import jsonschema
import openai
import pytest

from tests.engine.rounding import alike_once
from tests.gateway.apis.conftest import DEADLINE_S, MODEL
from tests.gateway.callers import JSON
from tests.gateway.running import Place

pytestmark = [pytest.mark.anyio, pytest.mark.model]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
CITY = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}}, "required": ["city"]}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": name, "description": f"Tells {name} of a city.", "parameters": CITY}}
    for name in ("weather", "time")
]
ASK: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Name three colours."}],
    "temperature": 0,
    "max_tokens": 12,
}


async def test_models_are_listed_and_shown(gpt: openai.AsyncOpenAI) -> None:
    listed = [model async for model in gpt.models.list()]
    assert MODEL in [model.id for model in listed]
    assert (await gpt.models.retrieve(MODEL)).id == MODEL
    with pytest.raises(openai.NotFoundError):
        await gpt.models.retrieve("nobody:1")


@alike_once
async def test_chat_streams_what_it_answers_whole(gpt: openai.AsyncOpenAI) -> None:
    await gpt.chat.completions.create(**ASK)  # from now on both find the prompt in the cache, and compute alike
    whole = await gpt.chat.completions.create(**ASK)
    stream = await gpt.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage
    assert whole.usage
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens > 0
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    assert whole.choices[0].finish_reason in ("stop", "length")


@pytest.mark.parametrize("prefix", ["engines/v1", "engines/llama.cpp/v1"])
async def test_api_answers_where_clients_of_a_model_runner_look(place: Place, prefix: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{place.url}/{prefix}", api_key="x", timeout=DEADLINE_S) as client:
        answer = await client.chat.completions.create(**ASK)
        assert answer.choices[0].message.content


async def test_several_answers_come_in_one(gpt: openai.AsyncOpenAI) -> None:
    asked = ASK | {"temperature": 1.5, "n": 3, "seed": 7}
    whole = await gpt.chat.completions.create(**asked)
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    texts = [choice.message.content for choice in whole.choices]
    assert len(set(texts)) > 1
    assert whole.usage
    assert whole.usage.completion_tokens > 12
    stream = await gpt.chat.completions.create(**asked, stream=True)
    seen: dict[int, str] = {}
    async for chunk in stream:
        for choice in chunk.choices:
            seen[choice.index] = seen.get(choice.index, "") + (choice.delta.content or "")
    assert sorted(seen) == [0, 1, 2]


@alike_once
async def test_seed_gives_the_same_answer_again(gpt: openai.AsyncOpenAI) -> None:
    asked = ASK | {"temperature": 1.0, "seed": 11}
    first, second = [await gpt.chat.completions.create(**asked) for _ in range(2)]
    assert first.choices[0].message.content == second.choices[0].message.content


async def test_logprobs_are_of_the_tokens_written(gpt: openai.AsyncOpenAI) -> None:
    answer = await gpt.chat.completions.create(**ASK, logprobs=True, top_logprobs=3)
    choice = answer.choices[0]
    assert choice.logprobs
    assert choice.logprobs.content
    assert "".join(token.token for token in choice.logprobs.content) == choice.message.content
    for token in choice.logprobs.content:
        assert len(token.top_logprobs) == 3
        assert token.logprob <= 0
        assert sum(math.exp(one.logprob) for one in token.top_logprobs) <= 1.000001
        assert token.token == token.top_logprobs[0].token  # temperature 0 takes the likeliest
    stream = await gpt.chat.completions.create(**ASK, logprobs=True, top_logprobs=3, stream=True)
    streamed = [
        token.token
        async for chunk in stream
        for choice_ in chunk.choices
        if choice_.logprobs
        for token in choice_.logprobs.content or ()
    ]
    assert streamed == [token.token for token in choice.logprobs.content]


@alike_once
async def test_stop_strings_end_the_answer(gpt: openai.AsyncOpenAI) -> None:
    whole = (await gpt.chat.completions.create(**ASK)).choices[0].message.content
    assert whole
    stop = whole[len(whole) // 2 :][:4]
    cut = await gpt.chat.completions.create(**ASK, stop=[stop])
    assert cut.choices[0].message.content == whole[: whole.index(stop)]
    assert cut.choices[0].finish_reason == "stop"
    stream = await gpt.chat.completions.create(**ASK, stop=[stop], stream=True)
    text = "".join([one.delta.content or "" async for chunk in stream for one in chunk.choices])
    assert text == cut.choices[0].message.content


@alike_once
async def test_answers_follow_a_json_schema(gpt: openai.AsyncOpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
    answer = await gpt.chat.completions.create(**ASK | {"max_tokens": 60}, response_format=form)
    jsonschema.validate(json.loads(answer.choices[0].message.content or ""), SCHEMA)
    stream = await gpt.chat.completions.create(**ASK | {"max_tokens": 60}, response_format=form, stream=True)
    text = "".join([one.delta.content or "" async for chunk in stream for one in chunk.choices])
    assert text == answer.choices[0].message.content


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "time"}}])
async def test_calls_parse_and_fit_their_schema(gpt: openai.AsyncOpenAI, choice: Any) -> None:
    asked = ASK | {"max_tokens": 160, "messages": [{"role": "user", "content": "Weather and time in Paris?"}]}
    answer = await gpt.chat.completions.create(**asked, tools=TOOLS, tool_choice=choice)
    message = answer.choices[0].message
    assert message.tool_calls
    assert answer.choices[0].finish_reason == "tool_calls"
    assert "tool_call" not in (message.content or "")
    for call in message.tool_calls:
        assert call.type == "function"
        assert call.function.name == "time" if isinstance(choice, dict) else call.function.name in ("weather", "time")
        jsonschema.validate(json.loads(call.function.arguments), CITY)
    stream = await gpt.chat.completions.create(**asked, tools=TOOLS, tool_choice=choice, stream=True)
    deltas = [delta async for chunk in stream for one in chunk.choices for delta in one.delta.tool_calls or ()]
    assert [(d.index, d.function and d.function.arguments) for d in deltas] == [
        (n, call.function.arguments) for n, call in enumerate(message.tool_calls) if call.type == "function"
    ]


async def test_only_one_call_comes_where_parallel_calls_are_off(gpt: openai.AsyncOpenAI) -> None:
    asked = ASK | {"max_tokens": 160, "messages": [{"role": "user", "content": "Weather and time in Paris?"}]}
    answer = await gpt.chat.completions.create(**asked, tools=TOOLS, tool_choice="required", parallel_tool_calls=False)
    assert len(answer.choices[0].message.tool_calls or ()) == 1


async def test_tools_are_not_called_where_the_choice_is_none(gpt: openai.AsyncOpenAI) -> None:
    answer = await gpt.chat.completions.create(**ASK, tools=TOOLS, tool_choice="none")
    assert not answer.choices[0].message.tool_calls
    assert answer.choices[0].message.content


@alike_once
async def test_text_is_completed(gpt: openai.AsyncOpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "prompt": "One, two, three,", "temperature": 0, "max_tokens": 8}
    await gpt.completions.create(**asked)  # from now on both find the prompt in the cache, and compute alike
    whole = await gpt.completions.create(**asked, echo=True, logprobs=2)
    assert whole.choices[0].text.startswith("One, two, three,")
    assert whole.choices[0].logprobs
    assert len(whole.choices[0].logprobs.tokens or ()) == 8
    stream = await gpt.completions.create(**asked, stream=True)
    text = "".join([chunk.choices[0].text async for chunk in stream if chunk.choices])
    assert "One, two, three," + text == whole.choices[0].text
    both = await gpt.completions.create(**asked | {"prompt": ["One, two,", "A, B,"], "n": 2})
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    assert both.usage
    assert both.usage.completion_tokens == 32
    warm = asked | {"temperature": 1.0, "seed": 3}
    first, second = [(await gpt.completions.create(**warm)).choices[0].text for _ in range(2)]
    assert first == second
    plain = (await gpt.completions.create(**asked)).choices[0].text
    stop = plain[len(plain) // 2 :][:3]
    assert (await gpt.completions.create(**asked, stop=[stop])).choices[0].text == plain[: plain.index(stop)]


async def test_likeness_of_vectors_is_that_of_texts(gpt: openai.AsyncOpenAI) -> None:
    texts = ["The cat sleeps on the sofa.", "A cat is sleeping on a sofa.", "Interest rates rose by two percent."]
    plain = await gpt.embeddings.create(model=MODEL, input=texts, encoding_format="float")
    a, b, c = (one.embedding for one in plain.data)
    assert math.isclose(sum(x * x for x in a), 1, rel_tol=1e-3)
    assert sum(x * y for x, y in zip(a, b, strict=True)) > sum(x * y for x, y in zip(a, c, strict=True))
    packed = await gpt.embeddings.create(model=MODEL, input=texts[0])  # the client asks for base64 and unpacks it
    assert packed.data[0].embedding == pytest.approx(a, abs=1e-2)
    assert plain.usage.prompt_tokens > 10


@alike_once
async def test_response_streams_what_it_answers_whole(gpt: openai.AsyncOpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "instructions": "Be brief.", "input": "Name a colour.", "temperature": 0}
    await gpt.responses.create(**asked, max_output_tokens=16)  # both find the prompt in the cache, and compute alike
    whole = await gpt.responses.create(**asked, max_output_tokens=16)
    assert whole.output_text
    assert whole.usage
    assert whole.usage.output_tokens > 0
    assert whole.status in ("completed", "incomplete")
    async with gpt.responses.stream(**asked, max_output_tokens=16) as stream:
        events = [event async for event in stream]
        final = events[-1]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created"
    assert final.type in ("response.completed", "response.incomplete")
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text


async def test_response_calls_functions_and_takes_their_results(gpt: openai.AsyncOpenAI) -> None:
    tool: Any = {"type": "function", "name": "weather", "parameters": CITY, "strict": False}
    asked: dict[str, Any] = {"model": MODEL, "tools": [tool], "temperature": 0, "max_output_tokens": 100}
    question: Any = {"role": "user", "content": "Weather in Paris?"}
    made = await gpt.responses.create(**asked, input=[question], tool_choice="required")
    (call, *_) = [item for item in made.output if item.type == "function_call"]
    jsonschema.validate(json.loads(call.arguments), CITY)
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "It is sunny."}
    kept: Any = call.model_dump(exclude_none=True)
    told = await gpt.responses.create(**asked, input=[question, kept, result], tool_choice="none")
    assert told.output_text
    form: Any = {"format": {"type": "json_schema", "name": "person", "schema": SCHEMA, "strict": True}}
    shaped = await gpt.responses.create(model=MODEL, input="Who?", text=form, max_output_tokens=60, temperature=0)
    jsonschema.validate(json.loads(shaped.output_text), SCHEMA)


@pytest.mark.parametrize(
    "change",
    [{"messages": []}, {"n": 99}, {"temperature": 9}, {"tool_choice": "required"}, {"extra_body": {"n_discard": -1}}],
)
async def test_bad_requests_are_refused_with_a_reason(gpt: openai.AsyncOpenAI, change: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError, match=r"not valid|tool_choice"):
        await gpt.chat.completions.create(**ASK | change)


async def test_unknown_model_is_not_found(gpt: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="not in the store"):
        await gpt.chat.completions.create(**ASK | {"model": "nobody:1"})


@pytest.mark.sec("SEC-098")
async def test_grammar_bombs_cost_nobody_anything(place: Place, gpt: openai.AsyncOpenAI) -> None:
    await gpt.chat.completions.create(**ASK)
    (before,) = [one.model.worker_pid for one in place.gateway.models.pool.loaded()]
    deep: Any = {"type": "object"}
    for _ in range(200):
        deep = {"type": "object", "properties": {"a": deep}, "required": ["a"]}
    wide = {"type": "array", "items": {"enum": [f"{n}" * 50 for n in range(5_000)]}, "minItems": 10**9}
    branching: Any = {"type": "string"}
    for _ in range(12):
        branching = {"anyOf": [branching, {"type": "array", "items": branching}]}
    for schema in (deep, wide, branching, {"$ref": "#"}):
        form: Any = {"type": "json_schema", "json_schema": {"name": "bomb", "schema": schema}}
        await gpt.chat.completions.create(**ASK, response_format=form)
    nested = b'{"a":' * 60_000 + b"1" + b"}" * 60_000
    answer = await place.http.request("POST", "/v1/chat/completions", headers=[JSON], body=nested)
    assert answer.status == 400
    (after,) = [one.model.worker_pid for one in place.gateway.models.pool.loaded()]
    assert after == before


@pytest.mark.sec("SEC-103")
async def test_nothing_is_fetched_for_a_message(gpt: openai.AsyncOpenAI) -> None:
    image: Any = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest"}}
    with pytest.raises(openai.BadRequestError, match="content"):
        await gpt.chat.completions.create(**ASK | {"messages": [{"role": "user", "content": [image]}]})
    part: Any = {"type": "input_image", "image_url": "http://169.254.169.254/latest"}
    with pytest.raises(openai.BadRequestError, match="nothing is fetched"):
        await gpt.responses.create(model=MODEL, input=[{"role": "user", "content": [part]}])
    with pytest.raises(openai.BadRequestError, match="functions are"):
        await gpt.responses.create(model=MODEL, input="x", tools=[{"type": "web_search"}])


@pytest.mark.sec("SEC-102")
async def test_what_one_caller_had_computed_is_not_used_for_another(place: Place) -> None:
    asked = ASK | {"messages": [{"role": "user", "content": "Repeat: " + "secret " * 60}]}

    async def cached(user: str) -> int:
        async with openai.AsyncOpenAI(
            base_url=f"{place.url}/v1", api_key="x", timeout=DEADLINE_S, default_headers={"X-Test-User": user}
        ) as client:
            usage = (await client.chat.completions.create(**asked)).usage
            assert usage
            assert usage.prompt_tokens_details
            return usage.prompt_tokens_details.cached_tokens or 0

    assert await cached("ann") == 0
    assert await cached("ann") > 60
    assert await cached("bob") == 0
