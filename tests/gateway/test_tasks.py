"""Calls that become tasks of the gateway's own, because the server behind has none."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from catalog import Profile
from gateway import tasks
from gateway.caller import Caller
from gateway.surface import Target
from gateway.tasks import Task, Tasks
from policies import AllowList, Principal
from tests.gateway.running import Place, running
from tests.gateway.taskclient import (
    MISSING_CAPABILITY,
    TAKES,
    TASKS,
    ask,
    call,
    error,
    eventually,
    get,
    is_gone,
    reaches,
    task,
)
from tests.gateway.test_modern import ROOTS, SAMPLING, request, result, streaming
from tests.servers import LOCAL, until

pytestmark = pytest.mark.anyio


def slow(*command: str, after_s: float = 0.0, **more: Any) -> dict[str, Any]:
    """A catalog entry whose calls become tasks at once, or after a while."""
    return {"package": dict(LOCAL), "command": list(command or ["friendly"]), "tasks": {"after_s": after_s}, **more}


ONE = {"a": slow()}
PATIENT = {"a": slow(after_s=60.0)}
ASKING = {"a": slow(interactive=True)}
ABLE = {**TAKES, "sampling": {}, "roots": {}}


def text(state: Any) -> str:
    return str(state["result"]["content"][0]["text"])


async def upstream_of(place: Place) -> Any:
    return await place.gateway.pool.connection("a")


# -- how a call becomes a task -------------------------------------------------------------------


async def test_a_slow_call_becomes_a_task_that_outlives_the_request(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        await result(place, "tools/list")
        made = await call(place, "a__hold", {"key": "k"})
        assert made["resultType"] == "task"
        assert made["ttlMs"] > 0
        assert made["pollIntervalMs"] > 0
        id = made["taskId"]
        state = await get(place, id)
        assert state["status"] == "working"
        assert "result" not in state
        other = await task(place, "a__release", {"key": "k"})
        assert text(await reaches(place, id, "completed")) == "k"
        assert text(await reaches(place, other, "completed")) == "released"
        assert (await get(place, id))["result"]["resultType"] == "complete"
        records = place.audit()
        calls = [(r["item"], r["outcome"]) for r in records if r["method"] == "tools/call"]
        assert sorted(calls) == [("hold", "ok"), ("hold", "task"), ("release", "ok"), ("release", "task")]
        assert records[0]["detail"] == id
        assert ("tasks/get", id, "hold", "ok") in {(r["method"], r["name"], r["item"], r["outcome"]) for r in records}


async def test_a_call_that_is_answered_soon_stays_a_call(tmp_path: Path) -> None:
    async with running(tmp_path, PATIENT) as place:
        answer = await call(place, "a__echo", {"x": 1})
        assert answer["resultType"] == "complete"
        assert json.loads(answer["content"][0]["text"]) == {"x": 1}
        assert (await error(place, "tools/call", {"name": "a__error"}))["code"] == -32050
        for wrong in ("a__nope", "zz__echo"):
            assert (await error(place, "tools/call", {"name": wrong}))["code"] == -32602
        outcomes = [record["outcome"] for record in place.audit()]
        assert outcomes == ["ok", "error", "unknown", "unknown"]
        hint = {"name": "a__raw", "arguments": {}, "task": {"ttl": 5}}
        seen = await result(place, "tools/call", hint, clientCapabilities=TAKES)
        assert '"task"' not in seen["content"][0]["text"].replace('\\"', '"')


async def test_a_client_without_the_extension_waits_for_the_result(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        session = await place.session()
        assert "extensions" not in session.hello["capabilities"]
        assert json.loads(await session.call("a__echo", {"x": 1})) == {"x": 1}
        answer = await result(place, "tools/call", {"name": "a__echo", "arguments": {"x": 2}})
        assert json.loads(answer["content"][0]["text"]) == {"x": 2}
        for method in tasks.METHODS:
            refusal = await error(place, method, {"taskId": "x", "inputResponses": {}}, capabilities={})
            assert refusal["code"] == MISSING_CAPABILITY
            assert refusal["data"] == {"requiredCapabilities": {"extensions": {TASKS: {}}}}
            assert (await session.error(method, {"taskId": "x"}))["code"] == -32601


async def test_the_gateway_declares_the_extension_and_not_the_tasks_of_old(tmp_path: Path) -> None:
    old = {"tools": {}, "tasks": {"requests": {"tools": {"call": {}}}}}
    lists = {"tools/list": [{"name": "t", "inputSchema": {}, "execution": {"taskSupport": "optional", "other": 1}}]}
    async with running(tmp_path, {"a": slow("friendly", json.dumps({"capabilities": old, "lists": lists}))}) as place:
        await result(place, "tools/list")
        offered = (await result(place, "server/discover"))["capabilities"]
        assert offered["extensions"] == {TASKS: {}}
        assert "tasks" not in offered
        session = await place.session()
        assert "tasks" not in session.hello["capabilities"]
        (tool,) = (await session.result("tools/list"))["tools"]
        assert tool["execution"] == {"other": 1}
        assert (await session.error("tasks/list"))["code"] == -32601
        assert (await error(place, "tasks/list", {}))["code"] == -32601
        assert (await error(place, "tasks/result", {"taskId": "x"}))["code"] == -32601


async def test_tools_that_are_only_for_tasks_refuse_other_clients(tmp_path: Path) -> None:
    servers = {"a": {**slow(), "tasks": {"after_s": 0.0, "only": ["echo"]}}}
    async with running(tmp_path, servers) as place:
        session = await place.session()
        refusals = [await session.error("tools/call", {"name": "a__echo", "arguments": {}})]
        refusals.append(await error(place, "tools/call", {"name": "a__echo"}, capabilities={}))
        for refusal in refusals:
            assert refusal["code"] == MISSING_CAPABILITY
            assert refusal["data"] == {"requiredCapabilities": {"extensions": {TASKS: {}}}}
        assert await session.call("a__pid")
        await reaches(place, await task(place, "a__echo"), "completed")


async def test_hanging_up_before_there_is_a_task_withdraws_the_call(tmp_path: Path) -> None:
    async with running(tmp_path, PATIENT) as place:
        params = {"name": "a__hold", "arguments": {"key": "k"}}
        async with streaming(place, "tools/call", params, token="x", clientCapabilities=TAKES) as stream:
            assert (await stream.message())["params"]["progressToken"] == "x"
        upstream = await upstream_of(place)
        await until(lambda: upstream.in_flight == 0, "the call is withdrawn")
        records = await until(place.audit, "it is recorded")
        assert [record["outcome"] for record in records] == ["cancelled"]


# -- what becomes of it --------------------------------------------------------------------------


async def test_a_failed_tool_completes_and_an_error_fails(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        state = await reaches(place, await task(place, "a__fail"), "completed", "failed")
        assert state["status"] == "completed"
        assert state["result"]["isError"] is True
        state = await reaches(place, await task(place, "a__error"), "completed", "failed")
        assert state["status"] == "failed"
        assert state["error"] == {"code": -32050, "message": "a very own error", "data": {"why": "because"}}
        assert "result" not in state
        state = await reaches(place, await task(place, "a__crash"), "completed", "failed")
        assert state["result"]["isError"] is True
        assert "went away" in text(state)


async def test_results_have_the_uris_that_clients_can_read(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        state = await reaches(place, await task(place, "a__links"), "completed")
        link, embedded = state["result"]["content"]
        assert link["uri"] == "lockgate://a/memo://one"
        assert embedded["resource"]["uri"] == "lockgate://a/memo://two"


async def test_progress_becomes_the_status_message(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        id = await task(place, "a__hold", {"key": "k"})

        async def says() -> bool:
            return (await get(place, id)).get("statusMessage") == "0 of 1"

        await eventually(says)
        assert (await get(place, id))["lastUpdatedAt"] >= (await get(place, id))["createdAt"]


async def test_a_cancelled_task_is_withdrawn_from_the_server(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        id = await task(place, "a__hold", {"key": "k"})
        upstream = await upstream_of(place)
        await until(lambda: upstream.in_flight == 1, "the call is made")
        assert (await ask(place, "tasks/cancel", id)).keys() == {"resultType", "_meta"}
        assert (await get(place, id))["status"] == "cancelled"
        await until(lambda: upstream.in_flight == 0, "the call is withdrawn")
        assert (await ask(place, "tasks/cancel", id))["resultType"] == "complete"
        assert (await get(place, id))["status"] == "cancelled"
        notes = await reaches(place, await task(place, "a__notes"), "completed")
        assert "notifications/cancelled" in text(notes)
        done = await task(place, "a__echo")
        await reaches(place, done, "completed")
        await ask(place, "tasks/cancel", done)
        assert (await get(place, done))["status"] == "completed"


# -- questions -----------------------------------------------------------------------------------


async def test_a_server_asks_by_the_task_and_is_answered_in_portions(tmp_path: Path) -> None:
    """Each key stands for one question in the whole life of the task, answers to nothing are ignored."""
    async with running(tmp_path, ASKING) as place:
        questions = {"questions": [SAMPLING, ROOTS]}
        id = await task(place, "a__ask", questions, clientCapabilities=ABLE)
        state = await reaches(place, id, "input_required")
        ((first, question),) = state["inputRequests"].items()
        assert question == {"method": SAMPLING[0], "params": SAMPLING[1]}
        await ask(place, "tasks/update", id, inputResponses={"nobody": {"asked": 1}})
        assert (await get(place, id))["inputRequests"].keys() == {first}
        wrong = {"taskId": id, "inputResponses": {first: "yes"}}
        assert (await error(place, "tasks/update", wrong))["code"] == -32602
        answered = await ask(place, "tasks/update", id, inputResponses={first: {"role": "assistant"}})
        assert answered.keys() == {"resultType", "_meta"}

        async def asks_again() -> bool:
            return first not in (await get(place, id)).get("inputRequests", {first: 0})

        await eventually(asks_again)
        ((second, question),) = (await reaches(place, id, "input_required"))["inputRequests"].items()
        assert question["method"] == "roots/list"
        await ask(place, "tasks/update", id, inputResponses={first: {"late": 1}, second: {"roots": []}})
        answers = json.loads(text(await reaches(place, id, "completed")))
        assert answers == [{"result": {"role": "assistant"}}, {"result": {"roots": []}}]
        outcomes = [r["outcome"] for r in place.audit() if r["method"] == "tools/call"]
        assert outcomes[-1] == "ok"
        assert outcomes.count("input_required") == 2


async def test_a_question_before_there_is_a_task_is_asked_at_once(tmp_path: Path) -> None:
    """And the call may become a task in a later round, which shows nothing of the earlier ones."""
    servers = {"a": slow(after_s=60.0, interactive=True), "b": slow(interactive=True)}
    async with running(tmp_path, servers) as place:
        params = {"name": "a__ask", "arguments": {"questions": [SAMPLING, ROOTS]}}
        first = await result(place, "tools/call", params, clientCapabilities=ABLE)
        assert first["resultType"] == "input_required"
        assert "taskId" not in first
        place.gateway.pool.servers["a"].entry = place.gateway.pool.servers["a"].entry.model_copy(
            update={"tasks": {"after_s": 0.0}}
        )
        (key,) = first["inputRequests"]
        more = {"requestState": first["requestState"], "inputResponses": {key: {"n": 1}}}
        second = await result(place, "tools/call", {**params, **more}, clientCapabilities=ABLE)
        assert second["resultType"] == "task"
        assert not {"requestState", "inputRequests"} & second.keys()
        (key,) = (await reaches(place, second["taskId"], "input_required"))["inputRequests"]
        await ask(place, "tasks/update", second["taskId"], inputResponses={key: {"roots": []}})
        answers = json.loads(text(await reaches(place, second["taskId"], "completed")))
        assert answers == [{"result": {"n": 1}}, {"result": {"roots": []}}]


async def test_a_task_that_is_cancelled_while_it_asks_lets_the_server_go(tmp_path: Path) -> None:
    async with running(tmp_path, ASKING) as place:
        id = await task(place, "a__ask", {"questions": [SAMPLING]}, clientCapabilities=ABLE)
        await reaches(place, id, "input_required")
        await ask(place, "tasks/cancel", id)
        state = await get(place, id)
        assert state["status"] == "cancelled"
        assert "inputRequests" not in state
        server = place.gateway.pool.servers["a"]
        await until(
            lambda: not any(one.upstream and one.upstream.in_flight for one in server.connections.values()), "it ended"
        )
        await until(lambda: not any(one.taken for one in server.connections.values()), "its connection is free")


# -- who may have it, and for how long -----------------------------------------------------------


async def test_a_task_belongs_to_its_profile_and_to_tools_that_may_be_seen(tmp_path: Path) -> None:
    async with running(tmp_path, ONE, {"all": ["a"], "other": ["a"]}) as place:
        id = await task(place, "a__echo")
        await reaches(place, id, "completed")
        others = ("nope", id[:-1], id + "x", "", "upstream k")
        strangers = [await error(place, "tasks/get", {"taskId": other}) for other in others]
        assert {refusal["code"] for refusal in strangers} == {-32602}
        assert len({refusal["message"] for refusal in strangers}) == 1
        for method in tasks.METHODS:
            body, headers = request(method, {"taskId": id, "inputResponses": {}}, clientCapabilities=TAKES)
            answer = await place.http.request("POST", "/p/other/mcp", body, headers)
            assert answer.messages()[-1]["error"] == strangers[0]
            assert (await place.http.request("POST", "/mcp", body, headers)).status == 200
            wrong = [("Mcp-Name", "nope") if name == "Mcp-Name" else (name, value) for name, value in headers]
            refusal = await place.http.request("POST", "/mcp", body, wrong)
            assert refusal.status == 400
            assert refusal.messages()[0]["error"]["code"] == -32020
        place.gateway.door.policy = AllowList({"all": {"a": frozenset({"pid"})}})
        for method in tasks.METHODS:
            assert await error(place, method, {"taskId": id, "inputResponses": {}}) == strangers[0]


class Plain(Task):
    """A task whose time is told by the test."""

    at = 1e12
    forgotten = ""

    @property
    def expires_at(self) -> float:
        return self.at

    def over(self) -> bool:
        return True

    def forget(self, reason: str) -> None:
        self.forgotten = reason


def held_by(name: str, profile: str = "p") -> Plain:
    caller = Caller(Principal(name), Profile(name=profile, title="P", servers=("a",)))
    return Plain(caller, Target("a", "t"))


async def test_a_task_is_found_by_its_holder_alone() -> None:
    table, mine = Tasks(), held_by("me")
    assert table.enter(mine)
    me, you = (Caller(Principal(name), Profile(name="p", title="P", servers=("a",))) for name in ("me", "you"))
    elsewhere = Caller(Principal("me"), Profile(name="q", title="Q", servers=("a",)))
    assert table.find(me, mine.id) is mine
    refusals = set()
    for caller, id in ((you, mine.id), (elsewhere, mine.id), (me, "nope")):
        with pytest.raises(tasks.errors.UnknownName) as refusal:
            table.find(caller, id)
        refusals.add(str(refusal.value))
    assert len(refusals) == 1
    table.close()
    assert mine.forgotten == "the gateway stopped"
    with pytest.raises(tasks.errors.UnknownName):
        table.find(me, mine.id)


async def test_a_holder_has_room_for_so_many_tasks_and_the_others_keep_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "MAX_OPEN_PER_PRINCIPAL", 2)
    monkeypatch.setattr(tasks, "MAX_OPEN", 3)
    monkeypatch.setattr(tasks, "MAX_KEPT_PER_PRINCIPAL", 3)
    table = Tasks()
    mine = [held_by("me") for _ in range(2)]
    assert all(table.enter(one) for one in mine)
    assert not table.enter(held_by("me"))
    assert table.enter(held_by("you"))
    assert not table.enter(held_by("them"))
    mine[0].open = mine[1].open = False
    assert table.enter(held_by("me"))
    assert not table.enter(held_by("me"))
    table.leave(mine[0], "over")
    assert table.enter(held_by("me"))
    table.close()


async def test_a_call_that_finds_no_room_for_a_task_is_answered_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "MAX_OPEN_PER_PRINCIPAL", 1)
    async with running(tmp_path, ONE) as place:
        id = await task(place, "a__hold", {"key": "k"})
        answer = await call(place, "a__release", {"key": "k"})
        assert answer["resultType"] == "complete"
        assert answer["content"][0]["text"] == "released"
        await reaches(place, id, "completed")


async def test_a_task_is_forgotten_after_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it runs its time is prolonged; what its holder is told of the time is true."""
    monkeypatch.setattr("gateway.slowcall.TTL_S", 0.5)
    async with running(tmp_path, ONE) as place:
        id = await task(place, "a__hold", {"key": "k"})

        async def is_prolonged() -> bool:
            return int((await get(place, id))["ttlMs"]) > 1000

        await eventually(is_prolonged)
        assert (await get(place, id))["status"] == "working"
        other = await task(place, "a__release", {"key": "k"})

        async def both_gone() -> bool:
            return await is_gone(place, id) and await is_gone(place, other)

        await eventually(both_gone)


async def test_a_result_too_large_to_keep_fails_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.slowcalls.MAX_KEPT_BYTES_PER_PRINCIPAL", 3000)
    async with running(tmp_path, ONE) as place:
        kept = await task(place, "a__big", {"bytes": 2000})
        await reaches(place, kept, "completed")
        state = await reaches(place, await task(place, "a__big", {"bytes": 2000}), "completed", "failed")
        assert state["status"] == "failed"
        assert "room" in state["error"]["message"]
        assert len(text(await get(place, kept))) == 2000


async def test_an_error_too_large_to_keep_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.slowcalls.MAX_KEPT_BYTES_PER_PRINCIPAL", 40)
    async with running(tmp_path, ONE) as place:
        state = await reaches(place, await task(place, "a__error"), "failed")
        assert "room" in state["error"]["message"]


async def test_a_task_that_cannot_be_recorded_is_not_handed_out(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        await result(place, "tools/list")
        place.gateway.audit.close()
        refusal = await error(place, "tools/call", {"name": "a__hold", "arguments": {"key": "k"}})
        assert refusal["code"] == -32603
        upstream = await upstream_of(place)
        await until(lambda: upstream.in_flight == 0, "the call is withdrawn")


# -- status events -------------------------------------------------------------------------------


async def test_a_listener_hears_of_its_tasks(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        id = await task(place, "a__hold", {"key": "k"})
        unheard = await task(place, "a__hold", {"key": "other"})
        wanted = {"notifications": {"taskIds": [id, "nobody's"]}}
        assert (await error(place, "subscriptions/listen", wanted, capabilities={}))["code"] == MISSING_CAPABILITY
        async with streaming(place, "subscriptions/listen", wanted, clientCapabilities=TAKES) as stream:
            acknowledged = await stream.message()
            assert acknowledged["params"]["notifications"] == {"taskIds": [id]}
            seen = (await stream.message())["params"]
            assert seen["status"] == "working"
            assert "resultType" not in seen
            await call(place, "a__release", {"key": "other"})
            await reaches(place, unheard, "completed")
            await call(place, "a__release", {"key": "k"})
            while seen["status"] == "working":
                event = await stream.message()
                assert event["method"] == "notifications/tasks"
                seen = event["params"]
            assert seen["taskId"] == id
            assert seen["status"] == "completed"
            assert seen["result"]["content"][0]["text"] == "k"


async def test_tasks_end_with_the_gateway_and_say_so(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        id = await task(place, "a__hold", {"key": "k"})
        wanted = {"notifications": {"taskIds": [id]}}
        async with streaming(place, "subscriptions/listen", wanted, clientCapabilities=TAKES) as stream:
            await stream.message()
            while (await stream.message())["params"].get("statusMessage") != "0 of 1":
                pass
            place.service.endpoint.close()
            event = await stream.until("notifications/tasks")
            assert event["params"]["status"] == "failed"
            assert "the gateway stopped" in event["params"]["error"]["message"]
            assert "result" in await stream.message()
        upstream = await upstream_of(place)
        await until(lambda: upstream.in_flight == 0, "the call is withdrawn")
        assert await is_gone(place, id)


async def test_many_tasks_at_once_each_have_their_own_result(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        await result(place, "tools/list")
        marks = [f"mark {number}" for number in range(24)]

        async def one(number: int, mark: str) -> None:
            id = await task(place, "a__delay", {"ms": 5 * (number % 7), "mark": mark})
            if number % 5 == 4:
                await ask(place, "tasks/cancel", id)
                state = await reaches(place, id, "cancelled", "completed")
                assert state["status"] == "cancelled" or text(state) == mark
            else:
                assert text(await reaches(place, id, "completed")) == mark

        async with asyncio.TaskGroup() as group:
            for number, mark in enumerate(marks):
                group.create_task(one(number, mark))
        upstream = await upstream_of(place)
        await until(lambda: upstream.in_flight == 0, "nothing is left open")
