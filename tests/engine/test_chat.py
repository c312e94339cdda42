"""Chat with a real model in its worker process: streams, sharing, cancelling, limits."""

import json
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import jsonschema
import pytest

from engine import BadRequest, ChatModel, ContextOverflow, ModelBusy, StoredModel
from engine.answers import collect
from tests.engine.rounding import alike_once

pytestmark = [pytest.mark.anyio, pytest.mark.model]

LONG_TEXT = " ".join(f"Item {n} is number {n * n}." for n in range(20))


def ask(text: str, **options: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 24, **options}


def text_of(completion: Mapping[str, Any]) -> str:
    return str(completion["choices"][0]["message"]["content"])


def cached_of(completion: Mapping[str, Any]) -> int:
    return int(completion["usage"]["prompt_tokens_details"]["cached_tokens"])


async def test_stream_is_made_of_openai_chunks(small_chat: ChatModel) -> None:
    request = ask("Name three colours.", stream_options={"include_usage": True})
    async with aclosing(small_chat.chat(request)) as stream:
        chunks = [chunk async for chunk in stream]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]].count(None) == len(chunks) - 2
    assert chunks[-2]["choices"][0]["finish_reason"] in ("stop", "length")
    assert chunks[-1]["choices"] == []
    usage = chunks[-1]["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert 1 < usage["completion_tokens"] <= 24
    assert sum(1 for chunk in chunks[:-1] if chunk["choices"][0]["delta"].get("content")) > 3


async def test_usage_is_sent_only_if_asked_for(small_chat: ChatModel) -> None:
    async with aclosing(small_chat.chat(ask("Hi"))) as stream:
        assert not [chunk async for chunk in stream if "usage" in chunk]


@alike_once
async def test_requests_computed_together_answer_as_they_do_alone(starter_chat: ChatModel) -> None:
    """The questions have one clear answer each: rounding differs a little with what is computed beside."""
    questions = [
        "What is the capital of France? Answer with one word.",
        "Count from 1 to 10, separated by commas.",
        "Which planet do we live on? Answer with one word.",
        "Write the word banana three times.",
    ]
    alone = [text_of(await starter_chat.complete(ask(question))) for question in questions]
    together: dict[str, str] = {}

    async def complete(question: str) -> None:
        together[question] = text_of(await starter_chat.complete(ask(question)))

    async with anyio.create_task_group() as tasks:
        for question in questions:
            tasks.start_soon(complete, question)
    assert [together[question] for question in questions] == alone


async def test_next_turn_computes_only_what_is_new(small_chat: ChatModel) -> None:
    first = await small_chat.complete(ask(LONG_TEXT + " What is item 3?"))
    conversation = [
        {"role": "user", "content": LONG_TEXT + " What is item 3?"},
        {"role": "assistant", "content": text_of(first)},
        {"role": "user", "content": "And item 4?"},
    ]
    second = await small_chat.complete({"messages": conversation, "temperature": 0, "max_tokens": 4})
    assert cached_of(second) >= first["usage"]["prompt_tokens"] - 1
    assert second["usage"]["prompt_tokens"] - cached_of(second) < 60


async def test_prefix_that_requests_share_is_computed_once(smollm2: StoredModel) -> None:
    async with ChatModel(smollm2, n_ctx=1024, n_sequences=4) as model:
        await model.load()
        completions: list[dict[str, Any]] = []

        async def complete(question: str) -> None:
            completions.append(await model.complete(ask(f"{LONG_TEXT} {question}", max_tokens=2)))

        async with anyio.create_task_group() as tasks:
            for question in ("What is item 1?", "And 2?", "Which is largest?", "Say hello."):
                tasks.start_soon(complete, question)
        computed = [c["usage"]["prompt_tokens"] - cached_of(c) for c in completions]
        assert sum(n > 100 for n in computed) == 1


@pytest.mark.sec("SEC-102")
async def test_owners_do_not_share_what_is_cached(smollm2: StoredModel) -> None:
    async with ChatModel(smollm2, n_ctx=1024) as model:
        request = ask(LONG_TEXT, max_tokens=1)
        await model.complete(request, owner="ann")
        assert cached_of(await model.complete(request, owner="bob")) == 0
        assert cached_of(await model.complete(request, owner="ann")) > 100


async def test_closing_the_stream_frees_the_model_for_others(smollm2: StoredModel) -> None:
    async with ChatModel(smollm2, n_ctx=1024, n_sequences=1) as model:
        async with aclosing(model.chat(ask("Write a very long story.", max_tokens=900))) as stream:
            async for chunk in stream:
                if chunk["choices"][0]["delta"].get("content"):
                    break
        with anyio.fail_after(30):
            completion = await model.complete(ask("Hi", max_tokens=2))
        assert completion["usage"]["completion_tokens"] <= 2


async def test_cancelled_task_frees_the_model_for_others(smollm2: StoredModel) -> None:
    async with ChatModel(smollm2, n_ctx=1024, n_sequences=1) as model:
        await model.load()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(model.complete, ask("Write a very long story.", max_tokens=900))
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        with anyio.fail_after(30):
            await model.complete(ask("Hi", max_tokens=2))


async def test_full_queue_is_an_error_that_says_so(smollm2: StoredModel) -> None:
    async with ChatModel(smollm2, n_ctx=1024, n_sequences=1) as model:
        await model.load()
        refused: list[ModelBusy] = []
        n_answered = 0

        async def complete() -> None:
            nonlocal n_answered
            try:
                await model.complete(ask("Hi", max_tokens=8))
                n_answered += 1
            except ModelBusy as error:
                refused.append(error)

        async with anyio.create_task_group() as tasks:
            for _ in range(12):
                tasks.start_soon(complete)
        assert n_answered >= 8
        assert len(refused) + n_answered == 12
        assert refused
        assert "waiting for the model" in str(refused[0])
        assert refused[0].retry_after_s > 0


@pytest.mark.sec("SEC-100")
async def test_prompt_that_does_not_fit_is_refused_with_numbers(small_chat: ChatModel) -> None:
    with pytest.raises(ContextOverflow, match=r"the prompt has \d{4,} tokens; the context holds 1024"):
        await small_chat.complete(ask("word " * 2_000))


async def test_answer_ends_where_the_context_does(small_chat: ChatModel) -> None:
    endless = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array", "minItems": 250}}}
    completion = await small_chat.complete(ask("word " * 950, max_tokens=500, response_format=endless))
    assert completion["choices"][0]["finish_reason"] == "length"
    assert completion["usage"]["total_tokens"] <= 1024


@alike_once
async def test_stop_string_ends_the_answer_and_is_not_shown(small_chat: ChatModel) -> None:
    whole = text_of(await small_chat.complete(ask("Count: 1, 2, 3,", max_tokens=40)))
    stop = whole[len(whole) // 2 :][:3]
    completion = await small_chat.complete(ask("Count: 1, 2, 3,", max_tokens=40, stop=[stop, "never written"]))
    assert text_of(completion) == whole[: whole.index(stop)]
    assert completion["choices"][0]["finish_reason"] == "stop"


@alike_once
async def test_seed_decides_what_is_drawn(small_chat: ChatModel) -> None:
    request = ask("Tell me a story.", temperature=1.5, top_p=1, top_k=0)
    texts = [text_of(await small_chat.complete({**request, "seed": seed})) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


async def test_answer_follows_a_schema(small_chat: ChatModel) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
        "required": ["name", "age"],
    }
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
    value = json.loads(text_of(await small_chat.complete(ask("Describe Tom.", response_format=form, max_tokens=80))))
    jsonschema.validate(value, schema)


async def test_characters_of_several_tokens_arrive_whole(small_chat: ChatModel) -> None:
    wanted = "漢字 🦜🏽 naïve ẞ \u200d 👩‍👩‍👧"
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": wanted}}}
    async with aclosing(small_chat.chat(ask("?", response_format=form, max_tokens=200))) as stream:
        pieces = [chunk["choices"][0]["delta"].get("content", "") async for chunk in stream]
    assert json.loads("".join(pieces)) == wanted
    assert len(pieces) > 5
    assert not any("\ufffd" in piece for piece in pieces)


HARD_TOOLS: list[dict[str, Any]] = [
    {
        "name": "plan",
        "parameters": {
            "type": "object",
            "properties": {
                "kind": {"enum": ["one-off", "daily", 7, None]},
                "steps": {
                    "type": "array",
                    "items": {"$ref": "#/$defs/step"},
                    "minItems": 1,
                    "maxItems": 2,
                },
                "note": {"anyOf": [{"type": "string", "maxLength": 20}, {"type": "null"}]},
            },
            "required": ["kind", "steps"],
            "additionalProperties": False,
            "$defs": {
                "step": {
                    "type": "object",
                    "properties": {"what": {"type": "string", "maxLength": 16}, "after": {"$ref": "#/$defs/step"}},
                    "required": ["what"],
                    "additionalProperties": False,
                }
            },
        },
    },
    {
        "name": "measure",
        "parameters": {
            "type": "object",
            "properties": {"value": {"type": "number"}, "exact": {"type": "boolean"}, 'un"it\\': {"const": "µm\n"}},
            "required": ["value", 'un"it\\'],
        },
    },
    {"name": "nothing"},
]


async def test_constrained_calls_always_parse_and_fit_their_schema(small_chat: ChatModel) -> None:
    """A model that draws at random under the grammar: what it calls is valid whatever it would rather say."""
    tools = [{"type": "function", "function": function} for function in HARD_TOOLS]
    schemas = {tool["name"]: tool.get("parameters", {"maxProperties": 0}) for tool in HARD_TOOLS}
    called: list[tuple[str, Any]] = []

    async def call(seed: int, choice: Any) -> None:
        request = ask(
            "Plan and measure.", tools=tools, tool_choice=choice, temperature=1.8, top_k=0, top_p=1, seed=seed
        )
        completion = await small_chat.complete({**request, "max_tokens": 120, "parallel_tool_calls": seed % 2 == 0})
        message = completion["choices"][0]["message"]
        calls = message.get("tool_calls", [])
        assert message["content"] is None
        assert calls or completion["choices"][0]["finish_reason"] == "length"
        called.extend((c["function"]["name"], json.loads(c["function"]["arguments"])) for c in calls)

    async with anyio.create_task_group() as tasks:
        for seed in range(5):
            tasks.start_soon(call, seed, "required")
        for name in schemas:
            tasks.start_soon(call, 1, {"type": "function", "function": {"name": name}})
    assert len(called) >= 5
    for name, arguments in called:
        jsonschema.validate(arguments, schemas[name])


@pytest.mark.parametrize(
    "body",
    [
        {"messages": []},
        ask("Hi", n_discard=-1),
        ask("Hi\ud800"),
        ask("Hi", tools=[{"type": "function", "function": {"name": "f"}}], tool_choice="always"),
    ],
    ids=["no messages", "unknown field", "lone surrogate", "unknown choice"],
)
async def test_bad_request_is_refused_and_the_worker_lives_on(small_chat: ChatModel, body: dict[str, Any]) -> None:
    await small_chat.load()
    pid = small_chat.worker_pid
    with pytest.raises(BadRequest):
        await small_chat.complete(body)
    assert small_chat.worker_pid == pid


TEMPLATE_BOMBS = {
    "endless loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "doubling": (
        "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"
    ),
    "endless output": "{% for i in range(99999) %}{{ 'x' * 999 }}{% endfor %}",
}


@pytest.mark.parametrize("bomb", TEMPLATE_BOMBS)
@pytest.mark.sec("SEC-099")
async def test_template_of_a_hostile_model_costs_one_request(smollm2: StoredModel, bomb: str) -> None:
    assert smollm2.chat_template
    source = f"{{% if messages[0].content == 'boom' %}}{TEMPLATE_BOMBS[bomb]}{{% endif %}}{smollm2.chat_template}"
    async with ChatModel(replace(smollm2, chat_template=source), n_ctx=512) as model:
        await model.load()
        pid = model.worker_pid
        with anyio.fail_after(30), pytest.raises(BadRequest, match="chat template"):
            await model.complete(ask("boom"))
        await model.complete(ask("Hi", max_tokens=2))
        assert model.worker_pid == pid


async def test_base_model_without_a_template_is_refused(smollm2: StoredModel, tmp_path: Path) -> None:
    async with ChatModel(replace(smollm2, chat_template=None), n_ctx=512) as model:
        with pytest.raises(BadRequest, match="without a chat template"):
            await model.complete(ask("Hi"))
        completed = await model.complete_text({"prompt": "The capital of France is", "temperature": 0})
        assert completed["choices"][0]["text"]


async def test_model_that_repeats_a_call_is_stopped(small_chat: ChatModel) -> None:
    """Left alone this model calls the same function until its tokens are used up."""
    tool = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}
    request = ask("What time is it?", tools=[tool], tool_choice="required", max_tokens=400)
    completion = await small_chat.complete(request)
    choice = completion["choices"][0]
    assert len(choice["message"]["tool_calls"]) == 1
    assert choice["finish_reason"] == "tool_calls"
    assert 0 < completion["usage"]["completion_tokens"] < 200


@alike_once
async def test_completion_is_what_its_chunks_say(small_chat: ChatModel) -> None:
    request = ask("Name three colours.", stream_options={"include_usage": True})
    streamed = await collect(small_chat.chat(request))
    whole = await small_chat.complete(request)
    assert streamed["choices"] == whole["choices"]
    assert whole["object"] == "chat.completion"
    assert whole["model"] == "smollm2:135m"
