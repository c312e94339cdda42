"""Tasks that a server of the stateless era made: handed on, or followed for clients that take none."""

import json
from pathlib import Path
from typing import Any

import anyio
import pytest

from gateway import tasks
from tests.gateway.callers import Response, Session
from tests.gateway.running import USER, Place, by_header, running
from tests.gateway.taskclient import (
    MISSING_CAPABILITY,
    TAKES,
    ask,
    call,
    error,
    eventually,
    get,
    is_gone,
    reaches,
    task,
)
from tests.gateway.test_modern import post, request, result, streaming
from tests.servers import DEADLINE_S, LOCAL, until

pytestmark = pytest.mark.anyio


def tasker(**options: Any) -> list[str]:
    return ["tasker", json.dumps(options)]


ONE = {"a": tasker()}
RUDE = {"a": tasker(rude=True)}
TELLS = {"a": tasker(message="begun")}
"""Its first status message is what opens the stream of a call."""


async def log(place: Place) -> list[Any]:
    """What the server has heard."""
    found: list[Any] = json.loads((await call(place, "a__log"))["content"][0]["text"])
    return found


async def heard(place: Place, method: str) -> list[Any]:
    return [one for one in await log(place) if one.get("method") == method]


# -- relayed -------------------------------------------------------------------------------------


async def test_a_servers_task_is_handed_on_under_an_id_of_our_own(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        made = await call(place, "a__job", {"key": "k"})
        assert made["resultType"] == "task"
        id = made["taskId"]
        assert "upstream" not in id
        assert made["x-kept"] == "k"
        assert (await get(place, id))["status"] == "working"
        await call(place, "a__finish", {"key": "k"})
        state = await get(place, id)
        assert state["status"] == "completed"
        assert state["result"]["content"][1]["uri"] == "lockgate://a/memo://k"
        assert state["x-kept"] == "k"
        assert [one["params"] for one in await heard(place, "tasks/get")] == [{"taskId": "upstream k"}] * 2
        records = [(r["method"], r["item"], r["outcome"], r["detail"] or r["name"]) for r in place.audit()]
        assert ("tools/call", "job", "task", id) in records
        assert records.count(("tasks/get", "job", "ok", id)) == 2


async def test_answers_and_cancellation_reach_the_servers_own_task(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        id = await task(place, "a__job", {"key": "k"})
        await call(place, "a__ask", {"key": "k", "questions": ["one", "two"]})
        state = await get(place, id)
        assert state["status"] == "input_required"
        assert state["inputRequests"]["one"]["method"] == "elicitation/create"
        await ask(place, "tasks/update", id, inputResponses={"one": {"action": "accept"}})
        assert (await get(place, id))["inputRequests"].keys() == {"two"}
        await ask(place, "tasks/update", id, inputResponses={"two": {"action": "decline"}})
        assert (await get(place, id))["status"] == "working"
        assert (await ask(place, "tasks/cancel", id))["resultType"] == "complete"
        assert (await get(place, id))["status"] == "cancelled"
        updates = [one["params"] for one in await heard(place, "tasks/update")]
        assert updates[0] == {"taskId": "upstream k", "inputResponses": {"one": {"action": "accept"}}}


async def test_a_relayed_task_belongs_to_its_profile(tmp_path: Path) -> None:
    async with running(tmp_path, ONE, {"all": ["a"], "other": ["a"]}) as place:
        id = await task(place, "a__job", {"key": "k"})
        nobody = await error(place, "tasks/get", {"taskId": "upstream k"})
        assert nobody["code"] == -32602
        for method in tasks.METHODS:
            body, headers = request(method, {"taskId": id, "inputResponses": {}}, clientCapabilities=TAKES)
            answer = await place.http.request("POST", "/p/other/mcp", body, headers)
            assert answer.messages()[-1]["error"] == nobody
        assert await heard(place, "tasks/update") == []
        assert await heard(place, "tasks/cancel") == []


async def test_tasks_are_worth_nothing_to_another_principal(tmp_path: Path) -> None:
    """A task of a server's and one of the gateway's own: to anybody else they are like ids that never were."""
    own = {"package": dict(LOCAL), "command": ["friendly"], "tasks": {"after_s": 0.0}}
    async with running(tmp_path, {"a": tasker(), "b": own}, principal_of=by_header) as place:

        async def asks(user: str, method: str, params: Any) -> Response:
            body, headers = request(method, params, clientCapabilities=TAKES)
            return await place.http.request("POST", "/mcp", body, [*headers, (USER, user)])

        ids = []
        for name in ("a__job", "b__hold"):
            made = await asks("alice", "tools/call", {"name": name, "arguments": {"key": "k"}})
            ids.append(made.messages()[-1]["result"]["taskId"])
        for id in ids:
            for method in tasks.METHODS:
                stolen = await asks("bob", method, {"taskId": id, "inputResponses": {}})
                never = await asks("bob", method, {"taskId": "never", "inputResponses": {}})
                assert stolen == never
                assert stolen.messages()[0]["error"]["code"] == -32602
        body, headers = request("subscriptions/listen", {"notifications": {"taskIds": ids}}, clientCapabilities=TAKES)
        async with place.http.stream("POST", "/mcp", body, [*headers, (USER, "bob")]) as stream:
            assert (await stream.message())["params"]["notifications"] == {}
        for id in ids:
            state = (await asks("alice", "tasks/get", {"taskId": id})).messages()[-1]["result"]
            assert state["status"] == "working"
        thefts = [(r["principal"], r["server"], r["outcome"]) for r in place.audit() if "bob" in r["principal"]]
        assert {outcome for _, _, outcome in thefts} == {"unknown"}
        assert {server for _, server, _ in thefts} == {""}


async def test_a_client_without_the_extension_is_told_what_the_server_told_it(tmp_path: Path) -> None:
    """A server may refuse such clients; it may not be made to think that there is a client that takes tasks."""
    async with running(tmp_path, ONE) as place:
        refusal = await error(place, "tools/call", {"name": "a__job", "arguments": {"key": "k"}}, capabilities={})
        assert refusal["code"] == MISSING_CAPABILITY
        assert refusal["data"]["requiredCapabilities"]["extensions"]
        called = [one for one in await heard(place, "tools/call") if one["params"]["name"] == "job"]
        assert [one["tasks"] for one in called] == [False]


async def test_a_server_with_open_tasks_is_not_idle(tmp_path: Path) -> None:
    limits = {"idle_s": 0.5, "start_timeout_s": DEADLINE_S, "call_timeout_s": DEADLINE_S}
    servers = {id: {"package": dict(LOCAL), "command": tasker(), "limits": limits} for id in ("a", "b")}
    async with running(tmp_path, servers) as place:
        id = await task(place, "a__job", {"key": "k"})
        pool = place.gateway.pool
        first = pool.servers["a"].upstream
        for _ in range(2):
            await call(place, "b__pid")
            await until(lambda: pool.servers["b"].upstream is None, "the idle server is stopped")
        assert first is not None
        assert pool.servers["a"].upstream is first
        await call(place, "a__finish", {"key": "k"})
        assert (await get(place, id))["status"] == "completed"
        await until(lambda: pool.servers["a"].upstream is None, "now it is idle too")


async def test_a_task_that_cannot_be_recorded_is_not_kept(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        await result(place, "tools/list")
        upstream = await place.gateway.pool.connection("a")
        place.gateway.audit.close()
        refusal = await error(place, "tools/call", {"name": "a__job", "arguments": {"key": "k"}})
        assert refusal["code"] == -32603
        assert upstream.pins == 0


async def test_a_task_that_is_over_keeps_no_server_running(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        id = await task(place, "a__job", {"key": "k"})
        upstream = await place.gateway.pool.connection("a")
        assert upstream.pins == 1
        await call(place, "a__finish", {"key": "k"})
        await reaches(place, id, "completed")
        await post(place, "tasks/cancel", {"taskId": id}, clientCapabilities=TAKES)
        assert upstream.pins == 0


async def test_a_task_that_its_server_has_lost_is_not_found(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        id = await task(place, "a__job", {"key": "k"})
        assert (await call(place, "a__crash"))["isError"]

        async def is_lost() -> bool:
            return await is_gone(place, id)

        await eventually(is_lost)
        upstream = await place.gateway.pool.connection("a")
        assert upstream.pins == 0


async def test_a_task_is_kept_for_its_time_and_no_longer(tmp_path: Path) -> None:
    async with running(tmp_path, {"a": tasker(ttl_ms=200), "b": tasker(ttl_ms=None)}) as place:
        short = await task(place, "a__job", {"key": "k"})
        endless = await call(place, "b__job", {"key": "k"})
        assert endless["ttlMs"] == 86_400_000

        async def is_forgotten() -> bool:
            return await is_gone(place, short)

        await eventually(is_forgotten)
        upstream = await place.gateway.pool.connection("a")
        assert upstream.pins == 0
        assert (await get(place, endless["taskId"]))["ttlMs"] == 86_400_000


async def test_a_listener_hears_of_a_servers_task(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        id = await task(place, "a__job", {"key": "k"})
        wanted = {"notifications": {"taskIds": [id]}}
        async with streaming(place, "subscriptions/listen", wanted, clientCapabilities=TAKES) as stream:
            assert (await stream.message())["params"]["notifications"] == {"taskIds": [id]}
            assert (await stream.message())["params"]["status"] == "working"
            await call(place, "a__state", {"key": "k", "state": {"statusMessage": "halfway"}})
            assert (await stream.message())["params"]["statusMessage"] == "halfway"
            await call(place, "a__finish", {"key": "k"})
            event = await stream.message()
            assert event["method"] == "notifications/tasks"
            assert event["params"]["taskId"] == id
            assert event["params"]["result"]["content"][1]["uri"] == "lockgate://a/memo://k"


async def test_tasks_of_the_gateways_own_are_for_servers_that_make_none(tmp_path: Path) -> None:
    plain = {"package": dict(LOCAL), "command": tasker(plain=True), "tasks": {"after_s": 0.0}}
    makes = {"package": dict(LOCAL), "command": tasker(), "tasks": {"after_s": 0.0}}
    async with running(tmp_path, {"a": plain, "b": makes}) as place:
        state = await reaches(place, await task(place, "a__hold"), "completed")
        assert state["result"]["content"][0]["text"].startswith("hold")
        assert (await call(place, "b__hold"))["resultType"] == "complete"


async def test_a_server_that_answers_nonsense_costs_its_own_task(tmp_path: Path) -> None:
    plain = {"package": dict(LOCAL), "command": tasker(plain=True), "tasks": {"after_s": 0.0}}
    async with running(tmp_path, {"a": tasker(), "b": plain}) as place:
        id = await task(place, "a__job", {"key": "k"})
        await call(place, "a__state", {"key": "k", "state": {"status": "input_required", "inputRequests": ["x"]}})
        refusal = await error(place, "tasks/get", {"taskId": id})
        assert refusal["code"] == -32603
        assert "state" in refusal["message"]
        await call(
            place, "a__state", {"key": "k", "state": {"status": 5, "ttlMs": -1, "inputRequests": {}, "result": "x"}}
        )
        assert (await get(place, id))["ttlMs"] == 86_400_000
        for raw in ("task", ["task"], 5, None):
            own = await task(place, "b__hold", {"raw": raw})
            assert (await reaches(place, own, "completed", "failed"))["status"] == "failed"
        assert (await call(place, "a__hold"))["resultType"] == "complete"


# -- followed ------------------------------------------------------------------------------------


async def finish_when_followed(place: Place, key: str) -> None:
    async def is_asked_for() -> bool:
        return bool(await heard(place, "tasks/get"))

    await eventually(is_asked_for)
    await call(place, "a__finish", {"key": key})


async def test_a_session_gets_the_result_of_a_task(tmp_path: Path) -> None:
    """Its era has no such tasks, so the gateway takes them for it."""
    async with running(tmp_path, ONE) as place:
        session = await place.session()
        answers: list[Any] = []

        async def work() -> None:
            answers.append(await session.result("tools/call", {"name": "a__job", "arguments": {"key": "k"}}))

        async with anyio.create_task_group() as group:
            group.start_soon(work)
            await finish_when_followed(place, "k")
        assert answers[0]["content"][0]["text"] == "done k"
        assert answers[0]["content"][1]["uri"] == "lockgate://a/memo://k"
        assert "taskId" not in answers[0]
        assert [r["outcome"] for r in place.audit() if r["item"] == "job"] == ["ok"]


async def reply(session: Session, id: Any, answer: Any) -> None:
    body = {"jsonrpc": "2.0", "id": id, "result": answer}
    assert (await session.post(json.dumps(body).encode())).status == 202


async def test_a_session_is_asked_a_tasks_questions_and_told_its_progress(tmp_path: Path) -> None:
    async with running(tmp_path, TELLS) as place:
        session = await place.session(capabilities={"elicitation": {}})
        async with session.calling("a__job", {"key": "k"}) as stream:
            told = [await stream.until("notifications/progress")]
            await call(place, "a__state", {"key": "k", "state": {"statusMessage": "halfway"}})
            told.append(await stream.until("notifications/progress"))
            assert [one["params"]["message"] for one in told] == ["begun", "halfway"]
            assert [one["params"]["progress"] for one in told] == [1, 2]
            assert {one["params"]["progressToken"] for one in told} == {"t"}
            await call(place, "a__ask", {"key": "k", "questions": ["sure"]})
            question = await stream.until("elicitation/create")
            assert question["params"]["message"] == "Sure?"
            await reply(session, question["id"], {"action": "accept", "content": {}})

            async def is_answered() -> bool:
                return bool(await heard(place, "tasks/update"))

            await eventually(is_answered)
            await call(place, "a__finish", {"key": "k"})
            while "result" not in (end := await stream.message()):
                assert end["method"] == "notifications/progress"
        assert end["result"]["content"][0]["text"] == "done k"
        (update,) = await heard(place, "tasks/update")
        assert update["params"]["inputResponses"] == {"sure": {"action": "accept", "content": {}}}


async def test_a_question_nobody_can_answer_withdraws_the_task(tmp_path: Path) -> None:
    async with running(tmp_path, TELLS) as place:
        session = await place.session()
        async with session.calling("a__job", {"key": "k"}) as stream:
            await stream.until("notifications/progress")
            await call(place, "a__ask", {"key": "k", "questions": ["sure"]})
            end = await stream.message()
        assert end["result"]["isError"]

        async def is_withdrawn() -> bool:
            return bool(await heard(place, "tasks/cancel"))

        await eventually(is_withdrawn)


async def test_a_session_that_cancels_withdraws_the_task(tmp_path: Path) -> None:
    async with running(tmp_path, TELLS) as place:
        session = await place.session()
        async with session.calling("a__job", {"key": "k"}, id="mine") as stream:
            await stream.until("notifications/progress")
            note = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": "mine"}}
            await session.post(json.dumps(note).encode())
            assert (await stream.message())["error"]["code"] == -32800

            async def is_withdrawn() -> bool:
                return bool(await heard(place, "tasks/cancel"))

            await eventually(is_withdrawn)


async def test_a_task_nobody_asked_for_reaches_no_client_that_takes_none(tmp_path: Path) -> None:
    """The server breaks the rule; the gateway waits, and asks the task's questions as those of the call."""
    async with running(tmp_path, RUDE) as place:
        params = {"name": "a__job", "arguments": {"key": "k"}}
        able = {"elicitation": {}}
        answers: list[Any] = []

        async def work(more: Any) -> None:
            answers.append(await result(place, "tools/call", {**params, **more}, clientCapabilities=able))

        async def followed() -> bool:
            return bool(await heard(place, "tasks/get"))

        async with anyio.create_task_group() as group:
            group.start_soon(work, {})
            await eventually(followed)
            await call(place, "a__ask", {"key": "k", "questions": ["sure"]})
        (asked,) = answers
        assert asked["resultType"] == "input_required"
        assert asked["inputRequests"]["sure"]["method"] == "elicitation/create"
        assert "taskId" not in asked
        more = {"requestState": asked["requestState"], "inputResponses": {"sure": {"action": "accept"}}}
        other = {**params, "arguments": {"key": "other"}, **more}
        refusal = (await post(place, "tools/call", other, clientCapabilities=able)).messages()[-1]
        assert refusal["error"]["code"] == -32602

        async def updated() -> bool:
            return bool(await heard(place, "tasks/update"))

        async with anyio.create_task_group() as group:
            group.start_soon(work, more)
            await eventually(updated)
            await call(place, "a__finish", {"key": "k"})
        assert answers[1]["resultType"] == "complete"
        assert answers[1]["content"][0]["text"] == "done k"


async def test_a_task_that_finds_no_room_is_followed_for_its_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "MAX_OPEN_PER_PRINCIPAL", 0)
    async with running(tmp_path, ONE) as place:
        answers: list[Any] = []

        async def work() -> None:
            answers.append(await call(place, "a__job", {"key": "k"}))

        async with anyio.create_task_group() as group:
            group.start_soon(work)
            await finish_when_followed(place, "k")
        assert answers[0]["resultType"] == "complete"
        assert answers[0]["content"][0]["text"] == "done k"
        assert (await place.gateway.pool.connection("a")).pins == 0


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"status": "failed", "error": {"code": -32099, "message": "broke"}}, -32099),
        ({"status": "cancelled"}, "cancelled"),
        ({"status": "completed", "result": {"content": [{"type": "text", "text": "bad"}], "isError": True}}, "bad"),
    ],
)
async def test_whatever_a_followed_task_comes_to_is_told(tmp_path: Path, state: Any, said: Any) -> None:
    async with running(tmp_path, ONE) as place:
        session = await place.session()
        answers: list[Any] = []

        async def work() -> None:
            answers.append(await session.ask("tools/call", {"name": "a__job", "arguments": {"key": "k"}}))

        async def is_followed() -> bool:
            return bool(await heard(place, "tasks/get"))

        async with anyio.create_task_group() as group:
            group.start_soon(work)
            await eventually(is_followed)
            await call(place, "a__state", {"key": "k", "state": state})
        (answer,) = answers
        if isinstance(said, int):
            assert answer["error"]["code"] == said
        else:
            assert answer["result"]["isError"]
            assert said in answer["result"]["content"][0]["text"]
