"""The agent loop with a model that follows a script: limits, order and what the model is told."""

import itertools
import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from engine.agent import Budget, ToolOutcome, run_agent
from engine.conversation import trim
from engine.events import Answered, Event, StepStarted, Stopped, TextWritten, ToolCalled, ToolReturned, Turned

pytestmark = pytest.mark.anyio

Say = str | Sequence[tuple[str, Any]]  # text, or calls as (name, arguments)


def tool(name: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"n": {"type": "integer"}}}
    return {"type": "function", "function": {"name": name, "description": f"The {name} tool", "parameters": parameters}}


class ScriptedModel:
    """Answers the requests of an agent in order from a script; the last entry is repeated for ever."""

    def __init__(self, *script: Say, tokens: int = 10) -> None:
        self.script = script
        self.tokens = tokens
        self.requests: list[dict[str, Any]] = []

    async def generate(self, request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        said = self.script[min(len(self.requests), len(self.script) - 1)]
        self.requests.append(json.loads(json.dumps(request)))
        deltas: list[dict[str, Any]] = []
        if isinstance(said, str):
            deltas += [{"content": said[:3]}, {"content": said[3:]}]
        else:
            for index, (name, arguments) in enumerate(said):
                text = arguments if isinstance(arguments, str) else json.dumps(arguments)
                call = {
                    "index": index,
                    "id": f"c{index}",
                    "type": "function",
                    "function": {"name": name, "arguments": text},
                }
                deltas.append({"tool_calls": [call]})
        for delta in deltas:
            yield {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
        yield {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        yield {"choices": [], "usage": {"completion_tokens": self.tokens}}


async def echo(name: str, arguments: dict[str, Any]) -> ToolOutcome:
    return ToolOutcome(f"{name} says {arguments}")


async def run(model: ScriptedModel, *, call_tool: Any = echo, **options: Any) -> list[Event]:
    tools = [tool("alpha"), tool("beta")]
    agent = run_agent("task", generate=model.generate, call_tool=call_tool, tools=tools, **options)
    return [event async for event in agent]


async def test_answer_without_tools_ends_the_run() -> None:
    events = await run(ScriptedModel("Hello there."))
    assert events == [
        StepStarted(1, ("alpha", "beta")),
        TextWritten("Hel"),
        TextWritten("lo there."),
        Turned("Hello there.", (), 10),
        Answered("Hello there."),
        Stopped("answered", steps=1, calls=0, tokens=10),
    ]


async def test_result_of_a_call_goes_back_to_the_model() -> None:
    model = ScriptedModel([("alpha", {"n": 1})], "It says so.")
    events = await run(model)
    assert ToolCalled("c0", "alpha", {"n": 1}) in events
    assert ToolReturned("c0", "alpha", "alpha says {'n': 1}", False) in events
    assert events[-1] == Stopped("answered", steps=2, calls=1, tokens=20)
    assert [message["role"] for message in model.requests[1]["messages"]] == [
        "system",
        "user",
        "assistant",
        "tool",
        "user",
    ]
    assert model.requests[1]["messages"][-2]["content"] == "alpha says {'n': 1}"


async def test_calls_of_one_turn_run_at_once_and_are_told_in_their_order() -> None:
    beta_is_back = anyio.Event()

    async def crossed(name: str, arguments: dict[str, Any]) -> ToolOutcome:
        if name == "alpha":
            await beta_is_back.wait()
        else:
            beta_is_back.set()
        return ToolOutcome(f"{name} is back")

    model = ScriptedModel([("alpha", {"n": 1}), ("beta", {"n": 2})], "Done.")
    with anyio.fail_after(30):
        events = await run(model, call_tool=crossed)
    assert [event.name for event in events if isinstance(event, ToolCalled)] == ["alpha", "beta"]
    told = [message["content"] for message in model.requests[1]["messages"] if message["role"] == "tool"]
    assert told == ["alpha is back", "beta is back"]


async def test_no_more_than_eight_calls_run_at_once() -> None:
    running = most = 0

    async def counting(name: str, arguments: dict[str, Any]) -> ToolOutcome:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await anyio.lowlevel.checkpoint()
        running -= 1
        return ToolOutcome("ok")

    calls = counting_calls()
    await run(ScriptedModel(calls(40), "Done."), call_tool=counting, budget=Budget(calls=99))
    assert most == 8


async def test_calls_under_way_are_cancelled_when_the_run_is_closed() -> None:
    cancelled: list[str] = []

    async def hanging(name: str, arguments: dict[str, Any]) -> ToolOutcome:
        if name == "alpha":
            return ToolOutcome("ok")
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.append(name)
        raise AssertionError

    model = ScriptedModel([("alpha", {"n": 1}), ("beta", {"n": 2})])
    agent = run_agent("task", generate=model.generate, call_tool=hanging, tools=[tool("alpha"), tool("beta")])
    async for event in agent:
        if isinstance(event, ToolReturned):
            break
    await agent.aclose()
    assert cancelled == ["beta"]


async def test_prompt_only_grows_at_its_end() -> None:
    calls = counting_calls()
    model = ScriptedModel(calls(1), calls(2), calls(1), "Done.")
    await run(model)
    for earlier, later in itertools.pairwise(model.requests):
        assert later["messages"][: len(earlier["messages"])] == earlier["messages"]
        assert later["tools"] == earlier["tools"]


async def test_nothing_but_errors_ends_the_run() -> None:
    async def failing(name: str, arguments: dict[str, Any]) -> ToolOutcome:
        return ToolOutcome("no", is_error=True)

    calls = counting_calls()
    model = ScriptedModel(*[calls(1) for _ in range(9)])
    events = await run(model, call_tool=failing, budget=Budget(steps=20))
    assert events[-1] == Stopped("no_progress", steps=4, calls=4, tokens=40)
    assert "tools" not in model.requests[3]  # it was asked to answer from what it had


async def test_what_was_left_out_of_a_result_can_be_read_by_its_handle() -> None:
    text = "".join(f"{n:05}" for n in range(4_000))

    async def long(name: str, arguments: dict[str, Any]) -> ToolOutcome:
        return ToolOutcome(text)

    model = ScriptedModel(
        [("alpha", {})],
        [("read_result", {"handle": "r1", "start": 3_000})],
        [("read_result", {"handle": "r9"})],
        "Done.",
    )
    events = await run(model, call_tool=long)
    assert "read_result" not in [tool["function"]["name"] for tool in model.requests[0]["tools"]]
    assert "read_result with handle r1 and start 3000" in model.requests[1]["messages"][-2]["content"]
    assert [tool["function"]["name"] for tool in model.requests[1]["tools"]] == ["alpha", "beta", "read_result"]
    read, unknown = [event for event in events if isinstance(event, ToolReturned) and event.name == "read_result"]
    assert read.text.startswith(text[3_000:6_000])
    assert unknown.is_error


async def test_answer_takes_the_form_of_a_schema() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    model = ScriptedModel([("alpha", {})], "It is five.", '{"n": 5}')
    events = await run(model, schema=schema, budget=Budget(steps=2))
    assert events[-2] == Answered('{"n": 5}', {"n": 5})
    assert events[-1] == Stopped("answered", steps=3, calls=1, tokens=30)
    asked = model.requests[-1]
    assert asked["response_format"]["json_schema"]["schema"] == schema
    assert "tools" not in asked
    assert [message["content"] for message in asked["messages"]][-2:] == ["It is five.", "Give that answer as JSON."]


async def test_answer_cut_off_before_it_is_json_is_none() -> None:
    model = ScriptedModel("It is five.", '{"n": ')
    events = await run(model, schema={"type": "object"})
    assert events[-1] == Stopped("no_answer", steps=2, calls=0, tokens=20)


async def test_calls_that_come_in_pieces_are_put_together() -> None:
    async def pieces(request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        parts: list[dict[str, Any]] = [
            {"index": 0, "id": "x", "function": {"name": "alpha", "arguments": ""}},
            {"index": 0, "function": {"arguments": '{"n": '}},
            {"index": 1, "id": "x", "function": {"name": "beta"}},
            {"index": 0, "function": {"arguments": "1}"}},
        ]
        said = len(request["messages"]) > 2
        for part in parts:
            delta = {"content": "."} if said else {"tool_calls": [part]}
            yield {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}

    agent = run_agent("t", generate=pieces, call_tool=echo, tools=[tool("alpha"), tool("beta")])
    events = [event async for event in agent]
    calls = [event for event in events if isinstance(event, ToolCalled)]
    assert calls == [ToolCalled("x", "alpha", {"n": 1}), ToolCalled("x_1", "beta", {})]


# -- a run that was interrupted --------------------------------------------------------------------


async def test_run_goes_on_from_any_of_its_events_to_the_same_end() -> None:
    calls = counting_calls()
    script = [calls(1), calls(2), 'Call: {"name": "alpha", "argu', calls(1), "Done."]
    whole = [event for event in await run(ScriptedModel(*script)) if not isinstance(event, TextWritten)]
    ends = (Answered, Stopped)
    for at in range(len(whole) - 2):
        history = whole[:at]
        turns = sum(isinstance(event, Turned) for event in history)
        model = ScriptedModel(*script[turns:])
        rest = [event for event in await run(model, history=history) if not isinstance(event, TextWritten)]
        steps = [*history, *rest]
        assert next(event for event in steps if isinstance(event, ends)) == Answered("Done.")
        made = [event.arguments["n"] for event in steps if isinstance(event, ToolCalled)]
        assert made == [0, 1, 2, 3], at  # each once, whatever was going on


async def test_call_that_was_interrupted_is_not_made_again() -> None:
    history = [
        StepStarted(1, ("alpha", "beta")),
        Turned("", tuple(as_call(n, name) for n, name in enumerate(["alpha", "beta"])), 10),
        ToolCalled("c0", "alpha", {}),
    ]
    made: list[str] = []

    async def noting(name: str, arguments: dict[str, Any]) -> ToolOutcome:
        made.append(name)
        return ToolOutcome("ok")

    model = ScriptedModel("Done.")
    events = await run(model, call_tool=noting, history=history)
    assert made == ["beta"]
    assert "not known" in model.requests[0]["messages"][3]["content"]
    assert model.requests[0]["messages"][4]["content"] == "ok"
    assert events[-1] == Stopped("answered", steps=2, calls=2, tokens=20)


def as_call(index: int, name: str) -> dict[str, Any]:
    return {"index": index, "id": f"c{index}", "type": "function", "function": {"name": name, "arguments": "{}"}}


async def test_error_of_a_tool_is_told_to_the_model() -> None:
    async def failing(name: str, arguments: dict[str, Any]) -> ToolOutcome:
        return ToolOutcome("no such file", is_error=True)

    model = ScriptedModel([("alpha", {})], "It failed.")
    events = await run(model, call_tool=failing)
    assert ToolReturned("c0", "alpha", "no such file", True) in events
    assert model.requests[1]["messages"][-2]["content"] == "Error: no such file"
    assert isinstance(events[-2], Answered)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (("gamma", {}), "no function gamma"),
        (("Alpha", {}), "no function Alpha"),
        (("alpha\u200b", {}), "no function"),
        (("beta__alpha", {}), "no function"),
        (("alpha", "not json"), "not a JSON object"),
        (("alpha", "[1]"), "not a JSON object"),
    ],
)
async def test_invented_call_is_never_made(call: tuple[str, Any], told: str) -> None:
    async def never(name: str, arguments: dict[str, Any]) -> ToolOutcome:
        raise AssertionError(name)

    model = ScriptedModel([call], "Sorry.")
    events = await run(model, call_tool=never)
    assert not [event for event in events if isinstance(event, ToolCalled)]
    assert told in model.requests[1]["messages"][-2]["content"]


async def test_repeated_call_is_not_made_again_and_ends_the_run_if_it_goes_on() -> None:
    made: list[str] = []

    async def counting(name: str, arguments: dict[str, Any]) -> ToolOutcome:
        made.append(name)
        return ToolOutcome("same")

    model = ScriptedModel([("alpha", {"n": 1})])
    events = await run(model, call_tool=counting)
    assert made == ["alpha"]
    assert [request.get("tool_choice") for request in model.requests] == ["auto", "auto", None]
    assert events[-1] == Stopped("repetition", steps=3, calls=3, tokens=30)


async def test_same_arguments_in_another_order_are_the_same_call() -> None:
    model = ScriptedModel([("alpha", '{"a": 1, "b": 2}')], [("alpha", '{"b": 2, "a": 1}')], "Done.")
    events = await run(model)
    assert len([event for event in events if isinstance(event, ToolCalled)]) == 1


def counting_calls() -> Callable[[int], list[tuple[str, Any]]]:
    numbers = itertools.count()
    return lambda n: [("alpha", {"n": next(numbers)}) for _ in range(n)]


@pytest.mark.parametrize(
    ("budget", "reason"),
    [
        (Budget(steps=3), "steps"),
        (Budget(tokens=25), "tokens"),
        (Budget(calls=4, steps=99), "calls"),
    ],
)
async def test_model_that_never_stops_is_stopped(budget: Budget, reason: str) -> None:
    calls = counting_calls()
    model = ScriptedModel(*[calls(1) for _ in range(50)])
    events = await run(model, budget=budget)
    stopped = events[-1]
    assert isinstance(stopped, Stopped)
    assert stopped.reason == reason
    assert stopped.steps <= budget.steps
    assert stopped.calls <= budget.calls
    assert stopped.tokens <= budget.tokens + model.tokens


async def test_many_calls_in_one_turn_stay_within_the_budget() -> None:
    calls = counting_calls()
    events = await run(ScriptedModel(calls(50)), budget=Budget(calls=3))
    assert len([event for event in events if isinstance(event, ToolCalled)]) == 3
    assert events[-1] == Stopped("calls", steps=1, calls=3, tokens=10)


async def test_tool_that_hangs_is_cancelled_when_time_is_up() -> None:
    cancelled = anyio.Event()

    async def hanging(name: str, arguments: dict[str, Any]) -> ToolOutcome:
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.set()

    with anyio.fail_after(5):
        events = await run(ScriptedModel([("alpha", {})]), call_tool=hanging, budget=Budget(seconds=0.05))
    assert cancelled.is_set()
    assert events[-1] == Stopped("seconds", steps=1, calls=1, tokens=10)


async def test_model_that_hangs_is_cancelled_when_time_is_up() -> None:
    async def hanging(request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        await anyio.sleep_forever()
        yield {}

    with anyio.fail_after(5):
        agent = run_agent("t", generate=hanging, call_tool=echo, tools=[], budget=Budget(seconds=0.05))
        events = [event async for event in agent]
    assert events[-1] == Stopped("seconds", steps=1, calls=0, tokens=0)


async def test_malformed_call_is_retried_once_with_a_call_required() -> None:
    model = ScriptedModel('Call: {"name": "alpha", "argu', [("alpha", {"n": 1})], "Done.")
    events = await run(model)
    assert [request.get("tool_choice") for request in model.requests] == ["auto", "required", "auto"]
    assert events[-2] == Answered("Done.")


async def test_empty_answer_is_retried_once_and_then_said() -> None:
    model = ScriptedModel("")
    events = await run(model)
    assert len(model.requests) == 2
    assert events[-1] == Stopped("no_answer", steps=2, calls=0, tokens=20)


async def test_long_results_are_trimmed_for_the_model_but_not_for_the_reader() -> None:
    async def long(name: str, arguments: dict[str, Any]) -> ToolOutcome:
        return ToolOutcome("x" * 100_000)

    calls = counting_calls()
    model = ScriptedModel(*[calls(1) for _ in range(6)], "Done.")
    events = await run(model, call_tool=long)
    assert {len(event.text) for event in events if isinstance(event, ToolReturned)} == {100_000}
    for request in model.requests:
        assert sum(len(message["content"] or "") for message in request["messages"]) < 20_000
    assert "characters left out" in model.requests[-1]["messages"][-2]["content"]


async def test_only_the_fitting_tools_are_offered() -> None:
    model = ScriptedModel("Hi.")
    tools = [tool(f"tool{n}") for n in range(40)] + [tool("weather")]
    agent = run_agent("What is the weather?", generate=model.generate, call_tool=echo, tools=tools, kept=3)
    async for event in agent:
        if isinstance(event, StepStarted):
            assert len(event.offered) == 3
            assert event.offered[0] == "weather"
    assert len(model.requests[0]["tools"]) == 3


async def test_closing_the_run_closes_the_generation() -> None:
    closed = anyio.Event()

    async def endless(request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        try:
            while True:
                yield {"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": None}]}
        finally:
            closed.set()

    agent = run_agent("task", generate=endless, call_tool=echo, tools=[])
    async for event in agent:
        if isinstance(event, TextWritten):
            break
    await agent.aclose()
    assert closed.is_set()


async def test_trimmed_text_keeps_both_ends() -> None:
    trimmed = trim("a" * 1_000 + "z" * 1_000, 100)
    assert trimmed.startswith("aaa")
    assert trimmed.endswith("zzz")
    assert "1900 characters left out" in trimmed
    assert trim("short", 100) == "short"


# -- small models that answer from nothing -----------------------------------------------------------


async def insisting(
    model: ScriptedModel, task: str = "Use alpha.", *, call_tool: Any = echo, **options: Any
) -> list[Event]:
    tools = [tool("alpha"), tool("beta")]
    agent = run_agent(task, generate=model.generate, call_tool=call_tool, tools=tools, insist=True, **options)
    return [event async for event in agent]


async def test_answer_without_a_call_is_asked_for_once_more_with_a_call_required() -> None:
    model = ScriptedModel("I guess it is five.", [("alpha", {"n": 5})], "alpha says 5.")
    events = await insisting(model)
    assert [request.get("tool_choice") for request in model.requests] == ["auto", "required", "auto"]
    assert events[-2] == Answered("alpha says 5.")
    stubborn = ScriptedModel("I guess it is five.")
    assert (await insisting(stubborn))[-2] == Answered("I guess it is five.")
    assert len(stubborn.requests) == 2


async def test_small_talk_is_answered_without_a_call() -> None:
    model = ScriptedModel("Hello!")
    assert (await insisting(model, "Good morning!"))[-2] == Answered("Hello!")
    assert len(model.requests) == 1


async def test_answer_with_nothing_of_the_results_is_asked_for_once_more_from_the_results_alone() -> None:
    model = ScriptedModel([("alpha", {"n": 5})], "You can use the function.", "alpha says 5.")
    events = await insisting(model)
    assert "tools" not in model.requests[2]
    assert "{'n': 5}" in model.requests[2]["messages"][1]["content"]
    assert events[-2] == Answered("alpha says 5.")


async def test_result_takes_the_place_of_an_answer_that_twice_has_nothing_of_it() -> None:
    model = ScriptedModel([("alpha", {"n": 5})], "You can use the function.", "I am not sure about that.")
    events = await insisting(model)
    assert events[-2] == Answered("alpha returned: alpha says {'n': 5}")
    assert len(model.requests) == 3


async def test_answer_that_tells_how_to_do_what_is_done_gives_way_to_the_result() -> None:
    how = "To get alpha, you need to call it with 5."
    model = ScriptedModel([("alpha", {"n": 5})], how, how)
    assert (await insisting(model))[-2] == Answered("alpha returned: alpha says {'n': 5}")
    plain = ScriptedModel([("alpha", {"n": 5})], how)
    assert (await run(plain))[-2] == Answered(how)


async def test_names_of_members_are_nothing_that_a_result_told() -> None:
    async def status(name: str, arguments: dict[str, Any]) -> ToolOutcome:
        return ToolOutcome('{"harbour": [{"temperature": 451}]}')

    asked = [("alpha", {"n": 5})]
    vague = ScriptedModel(asked, "The harbour has a temperature.", "The harbour has a temperature.")
    found = await insisting(vague, call_tool=status)
    assert found[-2] == Answered('alpha returned: {"harbour": [{"temperature": 451}]}')
    exact = ScriptedModel(asked, "It is 451 degrees.")
    assert (await insisting(exact, call_tool=status))[-2] == Answered("It is 451 degrees.")


async def test_answer_with_an_abbreviation_out_of_nowhere_is_not_taken() -> None:
    async def clock(name: str, arguments: dict[str, Any]) -> ToolOutcome:
        return ToolOutcome('{"datetime": "2026-11-25T18:42:41+09:00"}')

    wrong, right = "It is 18:42:41 UTC.", "It is 18:42:41 (PM)."
    model = ScriptedModel([("alpha", {})], wrong, right)
    assert (await insisting(model, call_tool=clock))[-2] == Answered(right)
    model = ScriptedModel([("alpha", {})], wrong, wrong)
    assert (await insisting(model, call_tool=clock))[-2] == Answered(
        'alpha returned: {"datetime": "2026-11-25T18:42:41+09:00"}'
    )
    model = ScriptedModel([("alpha", {})], wrong)
    assert (await insisting(model, "What is it in UTC?", call_tool=clock))[-2] == Answered(wrong)


@pytest.mark.parametrize(
    ("hour", "said", "is_told"),
    [
        ("00:00", "15:33 AM", False),
        ("00:00", "00:00", True),
        ("00:00", "12:00 AM", True),
        ("00:00", "12:00 p.m.", False),
        ("01:30", "1:30 PM", False),
        ("01:30", "1:30:33 am", True),
        ("19:30", "7:30", True),
        ("19:30", "7:30 PM", True),
        ("19:30", "07:30", False),
        ("12:05", "12:05 PM", True),
        ("12:05", "12:05 AM", False),
        ("15:33", "15:33 AM", False),
        ("15:33", "15:33 PM", True),
    ],
)
async def test_time_of_day_out_of_nowhere_gives_way_to_the_result(hour: str, said: str, is_told: bool) -> None:
    async def clock(name: str, arguments: dict[str, Any]) -> ToolOutcome:
        return ToolOutcome(f'{{"zone": "Tokyo", "datetime": "2026-11-25T{hour}:33+09:00"}}')

    model = ScriptedModel([("alpha", {})], f"In Tokyo it is {said}.")
    answer = (await insisting(model, call_tool=clock))[-2]
    assert isinstance(answer, Answered)
    assert (answer.text == f"In Tokyo it is {said}.") is is_told
    assert f"2026-11-25T{hour}:33+09:00" in answer.text or is_told


async def test_answer_that_closes_a_run_is_not_asked_for_twice_in_the_same_words() -> None:
    model = ScriptedModel([("alpha", {"n": 5})], [("alpha", {"n": 5})], "I am not sure about that.")
    events = await insisting(model)
    assert events[-2] == Answered("alpha returned: alpha says {'n': 5}")
    assert len(model.requests) == 3


async def test_failed_calls_are_no_information_where_another_succeeded() -> None:
    async def once(name: str, arguments: dict[str, Any]) -> ToolOutcome:
        return ToolOutcome("no such zone", True) if arguments else ToolOutcome('{"hour": 451}')

    model = ScriptedModel([("alpha", {})], [("alpha", {"n": 1})], "You can use the function.", "It is 451.")
    await insisting(model, call_tool=once)
    told = model.requests[3]["messages"][1]["content"]
    assert "451" in told
    assert "no such zone" not in told


async def test_failed_call_is_never_quoted_as_the_answer() -> None:
    async def broken(name: str, arguments: dict[str, Any]) -> ToolOutcome:
        return ToolOutcome("the disk is on fire", is_error=True)

    model = ScriptedModel([("alpha", {"n": 5})], "It did not work.")
    assert (await insisting(model, call_tool=broken))[-2] == Answered("It did not work.")


async def test_call_of_an_invented_function_as_text_is_tried_again() -> None:
    model = ScriptedModel('```json\n{"name": "gamma", "arguments": {}}\n```', [("alpha", {})], "Done.")
    events = await run(model)
    assert [request.get("tool_choice") for request in model.requests] == ["auto", "required", "auto"]
    assert events[-2] == Answered("Done.")
