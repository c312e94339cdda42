"""The tool `delegate`: the caller's rights and no more, an answer and a receipt, and an end when nobody waits.

The model follows a script; the servers and the gateway are real."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from engine.transcript import load
from gateway.delegation import Delegate
from tests.gateway.callers import Session, message
from tests.gateway.running import USER, Place, by_header, running
from tests.servers import DEADLINE_S, until
from tests.servers.scripted_model import ScriptedModel, Turn, scripted_model

pytestmark = pytest.mark.anyio

AGENT = {"built_in": "agent", "limits": {"call_timeout_s": 120}}
ECHO = ("good__echo", {"n": 7})


@asynccontextmanager
async def place(folder: Path, *turns: Turn, **more: Any) -> AsyncIterator[tuple[Place, ScriptedModel]]:
    servers = {"good": ["friendly"], "other": ["friendly"], "agent": AGENT}
    with scripted_model(*turns) as model:
        async with running(folder, servers, model=model.url, **more) as place:
            yield place, model


def transcripts(place: Place) -> list[Path]:
    return list((place.gateway.settings.state_dir / "transcripts").glob("*.jsonl"))


async def delegate(session: Session, task: str = "Find it.", **arguments: Any) -> dict[str, Any]:
    with anyio.fail_after(2 * DEADLINE_S):
        asked = {"name": "agent__delegate", "arguments": {"task": task, **arguments}}
        return dict(await session.result("tools/call", asked))


async def test_the_answer_comes_back_with_a_receipt_and_without_what_the_tools_said(tmp_path: Path) -> None:
    async with place(tmp_path, [ECHO], "It is seven.") as (place_, model):
        session = await place_.session()
        assert "agent__delegate" in await session.tools()
        result = await delegate(session)
        assert result["content"] == [{"type": "text", "text": "It is seven."}]
        receipt = result["structuredContent"]["receipt"]
        assert [(call["tool"], call["outcome"]) for call in receipt["calls"]] == [("good__echo", "ok")]
        assert (receipt["steps"], receipt["stopped"]) == (2, "answered")
        assert '"n"' not in json.dumps(result)
        told = next(one for one in model.asked[1]["messages"] if one["role"] == "tool")
        assert json.loads(told["content"]) == {"n": 7}
        lines = [(line["client"], line["name"], line["outcome"]) for line in place_.audit() if line.get("name")]
        assert ("lockgate delegate", "good__echo", "ok") in lines
        assert "agent__delegate" in [name for _, name, _ in lines]
        assert [path.stem for path in transcripts(place_)] == [receipt["run"]]


async def test_the_model_is_offered_what_the_caller_may_call_and_nothing_of_the_gateways_own(tmp_path: Path) -> None:
    profiles = {"all": {"servers": ["good", "other", "agent"], "tools": {"good": ["echo"]}}}
    servers = {"good": ["friendly"], "other": ["friendly"], "agent": AGENT}
    tries = [("good__fail", {}), ("agent__delegate", {"task": "again"}), ("other__echo", {"n": 1})]
    with scripted_model(tries, "Done.") as model:
        async with running(tmp_path, servers, profiles, model=model.url) as place_:
            result = await delegate(await place_.session(), tools=["good__*"])
    offered = {tool["function"]["name"] for tool in model.asked[0]["tools"]}
    assert offered == {"good__echo"}
    assert result["structuredContent"]["receipt"]["calls"] == []
    told = [message["content"] for message in model.asked[1]["messages"] if message["role"] == "tool"]
    assert all("there is no function" in text for text in told)
    assert len(told) == 3


async def test_with_a_budget_the_model_is_offered_all_tools_and_none_that_calls_others(tmp_path: Path) -> None:
    profiles = {
        "all": {"servers": ["agent", "good"], "tools": {"good": ["echo", "pid", "fail"]}, "budget": {"tools": 3}}
    }
    servers = {"good": ["friendly"], "agent": AGENT}
    again = ("lockgate__call_tool", {"name": "agent__delegate", "arguments": {"task": "again"}})
    with scripted_model([again, ("good__pid", {})], "Done.") as model:
        async with running(tmp_path, servers, profiles, model=model.url) as place_:
            result = await delegate(await place_.session())
    offered = {tool["function"]["name"] for tool in model.asked[0]["tools"]}
    assert offered == {"good__echo", "good__pid", "good__fail"}
    assert [call["tool"] for call in result["structuredContent"]["receipt"]["calls"]] == ["good__pid"]


async def test_an_accident_in_a_tool_of_the_gateways_own_is_answered(tmp_path: Path) -> None:
    async with place(tmp_path, "Done.") as (place_, _):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Delegate, "call", broken)
            answer = await (await place_.session()).ask("tools/call", {"name": "agent__delegate", "arguments": {}})
        assert answer["error"]["code"] == -32603


async def broken(*_: object) -> None:
    raise OSError("an accident")


async def test_whoever_calls_it_is_who_calls_the_tools(tmp_path: Path) -> None:
    async with place(tmp_path, [ECHO], "Done.", principal_of=by_header) as (place_, model):
        model.turns[:] = [[ECHO], "Done."]
        for name in ("ada", "bob"):
            model.asked.clear()
            session = await place_.session(always=((USER, name),))
            await delegate(session)
        made = [line for line in place_.audit() if line["client"] == "lockgate delegate"]
    assert [line["principal"] for line in made if line["method"] == "tools/call"] == ["ada", "bob"]
    assert [line["principal"] for line in made if line["method"] == "models/use"] == ["ada", "ada", "bob", "bob"]


async def test_answer_takes_the_form_of_a_schema(tmp_path: Path) -> None:
    async with place(tmp_path, "It is seven.", '{"n": 7}') as (place_, _):
        result = await delegate(await place_.session(), schema={"type": "object"})
        assert result["structuredContent"]["value"] == {"n": 7}


async def test_a_run_without_an_answer_is_an_error_with_a_receipt(tmp_path: Path) -> None:
    async with place(tmp_path, [ECHO]) as (place_, _):
        result = await delegate(await place_.session(), budget={"steps": 1})
        assert result["isError"] is True
        assert result["structuredContent"]["receipt"]["stopped"] == "steps"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"task": ""}, "length >= 1"),
        ({"budget": {"steps": 0}}, "$.budget.steps"),
        ({"tasks": "x"}, "tasks"),
        ({"schema": []}, "$.schema"),
    ],
)
async def test_arguments_that_do_not_fit_are_refused(tmp_path: Path, arguments: dict[str, Any], said: str) -> None:
    async with place(tmp_path, "Done.") as (place_, model):
        session = await place_.session()
        asked = {"name": "agent__delegate", "arguments": {"task": "x", **arguments}}
        answer = await session.ask("tools/call", asked)
        assert said in json.dumps(answer)
        assert model.asked == []


async def test_a_pattern_that_names_nothing_is_said(tmp_path: Path) -> None:
    async with place(tmp_path, "Done.") as (place_, model):
        result = await delegate(await place_.session(), tools=["nothing__*"])
        assert (result["isError"], "nothing__*" in result["content"][0]["text"]) == (True, True)
        assert model.asked == []


async def test_a_model_that_is_not_there_is_an_error_of_the_call(tmp_path: Path) -> None:
    servers = {"good": ["friendly"], "agent": AGENT}
    async with running(tmp_path, servers, model="nobody:1b") as place_:
        result = await delegate(await place_.session())
        assert result["isError"] is True
        assert "nobody:1b" in result["content"][0]["text"]


@contextmanager
def held(model: ScriptedModel) -> Iterator[None]:
    model.hold_from = 1
    try:
        yield
    finally:
        model.release.set()


async def asked_of(model: ScriptedModel, count: int = 1) -> None:
    await until(lambda: len(model.asked) >= count, "the model is asked")


async def test_no_more_than_four_of_one_caller_run_at_once(tmp_path: Path) -> None:
    async with place(tmp_path, "Done.") as (place_, model):
        session = await place_.session()
        results: list[dict[str, Any]] = []

        async def one() -> None:
            results.append(await delegate(session))

        async with anyio.create_task_group() as group:
            with held(model):
                for _ in range(4):
                    group.start_soon(one)
                await asked_of(model, 4)
                fifth = await delegate(session)
                assert (fifth["isError"], "try again" in fifth["content"][0]["text"]) == (True, True)
        assert [result["content"][0]["text"] for result in results] == ["Done."] * 4
        assert (await delegate(session))["content"][0]["text"] == "Done."


async def test_a_withdrawn_call_ends_the_run(tmp_path: Path) -> None:
    async with place(tmp_path, "Done.") as (place_, model):
        session = await place_.session()
        with held(model):
            async with session.calling("agent__delegate", {"task": "x"}, id=77):
                await asked_of(model)
                await session.post(message("notifications/cancelled", {"requestId": 77}))
                # The place of the run is free again: four more find room.
                async with anyio.create_task_group() as group:
                    for _ in range(4):
                        group.start_soon(delegate, session)
                    await asked_of(model, 5)
                    model.release.set()
        runs = [load(path.parent, path.stem) for path in transcripts(place_)]
        assert sorted(run.state for run in runs) == ["answered"] * 4 + ["unfinished"]


async def test_steps_are_told_as_progress(tmp_path: Path) -> None:
    async with place(tmp_path, [ECHO], "Done.") as (place_, _):
        session = await place_.session()
        told = []
        async with session.calling("agent__delegate", {"task": "x"}, token="p") as answer:
            while (event := await answer.message()) is not None:
                if event.get("method") == "notifications/progress":
                    told.append(event["params"])
        assert [one["message"] for one in told] == ["thinking", "calls good__echo", "thinking"]
        values = [one["progress"] for one in told]
        assert values == sorted(set(values))
        assert {one["progressToken"] for one in told} == {"p"}


async def test_the_model_is_used_under_the_policy_of_the_callers_profile_and_recorded(tmp_path: Path) -> None:
    """Also one that is served elsewhere."""
    servers = {"good": ["friendly"], "agent": AGENT}
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "tools.cedar").write_text(
        'permit (principal, action in [Action::"call", Action::"list", Action::"run"], resource);'
    )
    profiles = {"all": {"servers": list(servers)}, "none": {"servers": list(servers), "policy": "tools"}}
    with scripted_model([ECHO], "Done.") as model:
        async with running(tmp_path, servers, profiles, model=model.url) as place_:
            await delegate(await place_.session())
            asked = len(model.asked)
            refused = await delegate(await place_.session("/p/none/mcp"))
            uses = [line for line in place_.audit() if line["method"] == "models/use"]
    assert refused["isError"]
    assert f"you may not use the model {model.url}" in refused["content"][0]["text"]
    assert len(model.asked) == asked == 2
    assert [(line["client"], line["profile"], line["outcome"]) for line in uses] == [
        ("lockgate delegate", "all", "ok"),
        ("lockgate delegate", "all", "ok"),
        ("lockgate delegate", "none", "denied"),
    ]
    assert {line["item"] for line in uses} == {model.url}
