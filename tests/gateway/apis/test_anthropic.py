"""The Anthropic-compatible API, by the official client."""

import json
from typing import Any

import anthropic
import jsonschema
import pytest

from tests.engine.rounding import alike_once
from tests.gateway.apis.conftest import MODEL
from tests.gateway.apis.test_openai import CITY, SCHEMA

pytestmark = [pytest.mark.anyio, pytest.mark.model]
ASK: dict[str, Any] = {
    "model": MODEL,
    "system": "Be brief.",
    "messages": [{"role": "user", "content": "Name three colours."}],
    "max_tokens": 12,
    "extra_body": {"temperature": 0},
}
TOOLS: list[Any] = [
    {"name": name, "description": f"Tells {name} of a city.", "input_schema": CITY} for name in ("weather", "time")
]


@alike_once
async def test_message_streams_what_it_answers_whole(claude: anthropic.AsyncAnthropic) -> None:
    await claude.messages.create(**ASK)  # from now on both find the prompt in the cache, and compute alike
    whole = await claude.messages.create(**ASK)
    assert whole.content[0].type == "text"
    assert whole.stop_reason in ("end_turn", "max_tokens")
    async with claude.messages.stream(**ASK) as stream:
        text = "".join([text async for text in stream.text_stream])
        final = await stream.get_final_message()
    assert text == whole.content[0].text
    assert final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens > 0
    read = whole.usage.input_tokens + (whole.usage.cache_read_input_tokens or 0)
    assert final.usage.input_tokens + (final.usage.cache_read_input_tokens or 0) == read > 10


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "time"}])
@alike_once
async def test_tools_are_used_and_their_results_read(claude: anthropic.AsyncAnthropic, choice: Any) -> None:
    question = {"role": "user", "content": "Weather and time in Paris?"}
    asked = ASK | {"max_tokens": 160, "messages": [question], "tools": TOOLS}
    whole = await claude.messages.create(**asked, tool_choice=choice)
    uses = [block for block in whole.content if block.type == "tool_use"]
    assert uses
    assert whole.stop_reason == "tool_use"
    for use in uses:
        assert use.name == choice.get("name", use.name)
        jsonschema.validate(use.input, CITY)
    async with claude.messages.stream(**asked, tool_choice=choice) as stream:
        final = await stream.get_final_message()
    assert [block.input for block in final.content if block.type == "tool_use"] == [use.input for use in uses]
    results = [{"type": "tool_result", "tool_use_id": use.id, "content": "Sunny."} for use in uses]
    turns = [
        question,
        {"role": "assistant", "content": [block.model_dump(exclude_none=True) for block in whole.content]},
        {"role": "user", "content": results},
    ]
    told = await claude.messages.create(**asked | {"messages": turns}, tool_choice={"type": "none"})
    assert told.content[0].type == "text"


async def test_message_follows_a_schema(claude: anthropic.AsyncAnthropic) -> None:
    form: Any = {"format": {"type": "json_schema", "schema": SCHEMA}}
    (block,) = (await claude.messages.create(**ASK | {"max_tokens": 60}, output_config=form)).content
    assert block.type == "text"
    jsonschema.validate(json.loads(block.text), SCHEMA)


async def test_stop_sequences_end_the_message(claude: anthropic.AsyncAnthropic) -> None:
    block = (await claude.messages.create(**ASK)).content[0]
    assert block.type == "text"
    stop = block.text[len(block.text) // 2 :][:4]
    cut = (await claude.messages.create(**ASK, stop_sequences=[stop])).content[0]
    assert cut.type == "text"
    assert cut.text == block.text[: block.text.index(stop)]


async def test_errors_have_the_shape_clients_know(claude: anthropic.AsyncAnthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="not in the store"):
        await claude.messages.create(**ASK | {"model": "nobody:1"})
    image = {"type": "image", "source": {"type": "url", "url": "http://169.254.169.254/"}}
    with pytest.raises(anthropic.BadRequestError, match="only text is"):
        await claude.messages.create(**ASK | {"messages": [{"role": "user", "content": [image]}]})
    with pytest.raises(anthropic.BadRequestError, match="the prompt has"):
        await claude.messages.create(**ASK | {"messages": [{"role": "user", "content": "word " * 2_000}]})


async def test_tokens_are_counted_as_the_message_will_use_them(claude: anthropic.AsyncAnthropic) -> None:
    counted = {name: ASK[name] for name in ("model", "system", "messages")}
    usage = (await claude.messages.create(**ASK)).usage
    found = await claude.messages.count_tokens(**counted)
    assert found.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)
    with_tools = await claude.messages.count_tokens(**counted, tools=TOOLS)
    assert with_tools.input_tokens > found.input_tokens + 40
