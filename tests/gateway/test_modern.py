"""The stateless era over HTTP, and questions that servers ask in the middle of a call, in both eras."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from gateway import bridge
from tests.gateway.callers import ACCEPT, JSON, Response, Session, Stream, message
from tests.gateway.running import Place, running
from tests.servers import DEADLINE_S, LOCAL, until

pytestmark = pytest.mark.anyio

VERSION = "2026-07-28"
POLL_S = 0.02
PREFIX = "io.modelcontextprotocol/"
HEADER_MISMATCH = -32020
TWO = {"a": ["friendly"], "b": ["friendly"]}
ASKING = {"a": {"package": dict(LOCAL), "command": ["friendly"], "interactive": True}}
SAMPLING = ["sampling/createMessage", {"messages": [], "maxTokens": 5}]
ROOTS = ["roots/list", {}]


def meta(**more: Any) -> dict[str, Any]:
    own = {"protocolVersion": VERSION, "clientCapabilities": {}, "clientInfo": {"name": "tester", "version": "1"}}
    token = {"progressToken": more.pop("token")} if "token" in more else {}
    return token | {PREFIX + key: value for key, value in (own | more).items() if value is not None}


def request(method: str, params: Any = None, **more: Any) -> tuple[bytes, list[tuple[str, str]]]:
    """Body and headers of a proper request."""
    params = {**(params or {}), "_meta": meta(**more)}
    headers = [JSON, ACCEPT, ("MCP-Protocol-Version", VERSION), ("Mcp-Method", method)]
    named = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}
    name = named.get(method, "taskId" if method.startswith("tasks/") else "")
    if name in params:
        headers.append(("Mcp-Name", params[name]))
    return message(method, params, 1), headers


async def post(place: Place, method: str, params: Any = None, **more: Any) -> Response:
    return await place.http.request("POST", "/mcp", *request(method, params, **more))


async def result(place: Place, method: str, params: Any = None, **more: Any) -> Any:
    answer = (await post(place, method, params, **more)).messages()[-1]
    assert "result" in answer, answer
    return answer["result"]


@asynccontextmanager
async def streaming(place: Place, method: str, params: Any = None, **more: Any) -> AsyncIterator[Stream]:
    async with place.http.stream("POST", "/mcp", *request(method, params, **more)) as stream:
        yield stream


# -- requests that stand alone -------------------------------------------------------------------


async def test_each_request_stands_alone(tmp_path: Path) -> None:
    async with running(tmp_path, TWO) as place:
        facts = await result(place, "server/discover")
        assert facts["supportedVersions"] == [VERSION]
        tools = await result(place, "tools/list")
        assert "a__echo" in [tool["name"] for tool in tools["tools"]]
        assert tools["cacheScope"] == "private"
        called = await post(place, "tools/call", {"name": "a__echo", "arguments": {"x": 1.5}})
        assert "mcp-session-id" not in called.headers
        assert json.loads(called.messages()[0]["result"]["content"][0]["text"]) == {"x": 1.5}
        read = await result(place, "resources/read", {"uri": "lockgate://b/memo://one"})
        assert read["contents"][0]["uri"] == "lockgate://b/memo://one"
        assert read["cacheScope"] == "private"


async def test_what_a_client_says_of_itself_to_us_is_not_passed_on(tmp_path: Path) -> None:
    async with running(tmp_path, TWO) as place:
        params = {"name": "a__raw", "arguments": {}}
        seen = (await result(place, "tools/call", params, clientCapabilities={"sampling": {}}))["content"][0]["text"]
        assert PREFIX not in seen
        assert "tester" not in seen


WRONG_HEADERS = {
    "no method": lambda h: [x for x in h if x[0] != "Mcp-Method"],
    "another method": lambda h: [("Mcp-Method", "tools/list") if x[0] == "Mcp-Method" else x for x in h],
    "method twice": lambda h: [*h, ("Mcp-Method", "tools/call")],
    "method in capitals": lambda h: [("Mcp-Method", "TOOLS/CALL") if x[0] == "Mcp-Method" else x for x in h],
    "no name": lambda h: [x for x in h if x[0] != "Mcp-Name"],
    "another name": lambda h: [("Mcp-Name", "a__pid") if x[0] == "Mcp-Name" else x for x in h],
    "name twice": lambda h: [*h, ("Mcp-Name", "a__echo")],
    "name in capitals": lambda h: [("Mcp-Name", "A__ECHO") if x[0] == "Mcp-Name" else x for x in h],
    "broken base64": lambda h: [("Mcp-Name", "=?base64?YV9fZWNobw?=") if x[0] == "Mcp-Name" else x for x in h],
    "base64 of another name": lambda h: [("Mcp-Name", "=?base64?YV9fcGlk?=") if x[0] == "Mcp-Name" else x for x in h],
    "version twice": lambda h: [*h, ("MCP-Protocol-Version", VERSION)],
}


@pytest.mark.sec("SEC-008")
async def test_headers_that_do_not_repeat_the_body_are_refused_and_nothing_is_called(tmp_path: Path) -> None:
    async with running(tmp_path, TWO) as place:
        body, headers = request("tools/call", {"name": "a__echo", "arguments": {}})
        for what, change in WRONG_HEADERS.items():
            answer = await place.http.request("POST", "/mcp", body, change(headers))
            assert answer.status == 400, what
            assert answer.messages()[0]["error"]["code"] == HEADER_MISMATCH, what
        assert place.audit() == []
        assert place.local.starts == []
        encoded = f"=?base64?{base64.b64encode(b'a__echo').decode()}?="
        headers = [("Mcp-Name", encoded) if name == "Mcp-Name" else (name, value) for name, value in headers]
        assert (await place.http.request("POST", "/mcp", body, headers)).status == 200


async def test_a_body_of_another_revision_than_its_header_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path, TWO) as place:
        for version in ("2025-11-25", "2099-01-01", 5, None, [VERSION]):
            answer = await post(place, "tools/call", {"name": "a__echo"}, protocolVersion=version)
            assert answer.status == 400, version
            assert answer.messages()[0]["error"]["code"] in (HEADER_MISMATCH, -32602, -32022)
        assert place.audit() == []


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"_meta": 5},
        {"_meta": {}},
        {"_meta": {PREFIX + "protocolVersion": VERSION}},
        {"_meta": meta(clientCapabilities=[])},
    ],
)
async def test_a_request_without_what_it_must_carry_is_refused(tmp_path: Path, params: Any) -> None:
    async with running(tmp_path, TWO) as place:
        _, headers = request("tools/list")
        answer = await place.http.request("POST", "/mcp", message("tools/list", params, 1), headers)
        assert answer.status == 400
        assert answer.messages()[0]["error"]["code"] == -32602


@pytest.mark.sec("SEC-009")
async def test_the_selection_of_a_profile_holds_in_this_era_too(tmp_path: Path) -> None:
    async with running(tmp_path, TWO, {"all": {"servers": ["a", "b"], "tools": {"a": ["echo"], "b": []}}}) as place:
        assert [tool["name"] for tool in (await result(place, "tools/list"))["tools"]] == ["a__echo"]
        answers = []
        for name in ("a__fail", "a__fall"):
            answer = await post(place, "tools/call", {"name": name})
            answers.append((answer.status, answer.body.replace(name.encode(), b"NAME")))
        assert answers[0] == answers[1]
        assert answers[0][0] == 400


async def test_a_client_that_hangs_up_withdraws_its_call(tmp_path: Path) -> None:
    async with running(tmp_path, TWO) as place:
        params = {"name": "a__hold", "arguments": {"key": "k"}}
        async with streaming(place, "tools/call", params, token="x") as stream:
            assert (await stream.message())["params"]["progressToken"] == "x"
        upstream = await place.gateway.pool.connection("a")
        await until(lambda: upstream.in_flight == 0, "the call is withdrawn")
        records = await until(place.audit, "it is recorded")
        assert [record["outcome"] for record in records] == ["cancelled"]


async def test_a_listener_hears_what_it_asked_for_and_no_more(tmp_path: Path) -> None:
    async with running(tmp_path, TWO) as place:
        await result(place, "tools/list")
        wanted = {"notifications": {"toolsListChanged": True}}
        async with streaming(place, "subscriptions/listen", wanted) as stream:
            acknowledged = await stream.message()
            assert acknowledged["method"] == "notifications/subscriptions/acknowledged"
            assert acknowledged["params"]["notifications"] == {"toolsListChanged": True}
            await result(place, "tools/call", {"name": "a__change", "arguments": {"lists": ["prompts"]}})
            await result(place, "tools/call", {"name": "a__change", "arguments": {"add": "fresh"}})
            while "a__fresh" not in [tool["name"] for tool in (await result(place, "tools/list"))["tools"]]:
                await anyio.sleep(0.01)
            assert (await stream.message())["method"] == "notifications/tools/list_changed"


# -- questions to a session ----------------------------------------------------------------------


async def reply(session: Session, id: Any, answer: Any) -> None:
    body = {"jsonrpc": "2.0", "id": id, "result": answer}
    assert (await session.post(json.dumps(body).encode())).status == 202


async def test_a_server_asks_the_session_that_called_it_and_nobody_else_can_answer(tmp_path: Path) -> None:
    async with running(tmp_path, ASKING) as place:
        session = await place.session(capabilities={"sampling": {}, "roots": {}})
        stranger = await place.session(capabilities={"sampling": {}})
        async with session.calling("a__ask", {"questions": [SAMPLING, ROOTS]}) as stream:
            question = await stream.until("sampling/createMessage")
            assert question["params"] == SAMPLING[1]
            for id in (question["id"], str(question["id"]), 0, 99):
                await reply(stranger, id, {"who": "stranger"})
            await reply(session, str(question["id"]) + "0", {"who": "wrong id"})
            await reply(session, question["id"], {"role": "assistant", "n": 1.5})
            question = await stream.until("roots/list")
            await reply(session, question["id"], {"roots": []})
            await reply(session, question["id"], {"roots": ["late"]})
            end = await stream.message()
        answers = json.loads(end["result"]["content"][0]["text"])
        assert answers == [{"result": {"role": "assistant", "n": 1.5}}, {"result": {"roots": []}}]


async def test_questions_of_two_sessions_do_not_meet(tmp_path: Path) -> None:
    async with running(tmp_path, ASKING) as place:
        sessions = [await place.session(capabilities={"sampling": {}}) for _ in range(4)]

        async def work(number: int, session: Session) -> None:
            asked = ["sampling/createMessage", {"number": number}]
            for _ in range(3):
                async with session.calling("a__ask", {"questions": [asked]}) as stream:
                    question = await stream.until("sampling/createMessage")
                    assert question["params"] == {"number": number}
                    await reply(session, question["id"], {"number": number})
                    end = await stream.message()
                assert json.loads(end["result"]["content"][0]["text"]) == [{"result": {"number": number}}]

        async with asyncio.TaskGroup() as group:
            for number, session in enumerate(sessions):
                group.create_task(work(number, session))


async def test_a_question_the_client_cannot_answer_is_declined_and_the_call_goes_on(tmp_path: Path) -> None:
    async with running(tmp_path, ASKING) as place:
        session = await place.session(capabilities={"sampling": {}})
        answers = json.loads(await session.call("a__ask", {"questions": [ROOTS, ["x/y", {}], ["ping", {}]]}))
        assert [answer.get("error", {}).get("code") for answer in answers] == [-32601, -32601, None]
        silent = await place.session()
        assert json.loads(await silent.call("a__ask", {"questions": [SAMPLING]}))[0]["error"]["code"] == -32601


async def test_a_session_that_ends_withdraws_the_call_that_waits_for_it(tmp_path: Path) -> None:
    async with running(tmp_path, ASKING) as place:
        session = await place.session(capabilities={"sampling": {}})
        async with session.calling("a__ask", {"questions": [SAMPLING]}) as stream:
            await stream.until("sampling/createMessage")
            await session.close()
            assert (await stream.message())["error"]["code"] == -32800
        server = place.gateway.pool.servers["a"]
        await until(lambda: not any(key.is_leased for key in server.connections), "it ends")


# -- questions to a client without sessions ------------------------------------------------------

ABLE = {"sampling": {}, "roots": {}}
CALL = {"name": "a__ask", "arguments": {"questions": [SAMPLING, ROOTS]}}


async def test_a_stateless_client_answers_by_asking_again(tmp_path: Path) -> None:
    async with running(tmp_path, ASKING) as place:
        first = await result(place, "tools/call", CALL, clientCapabilities=ABLE)
        assert first["resultType"] == "input_required"
        ((key, question),) = first["inputRequests"].items()
        assert question == {"method": SAMPLING[0], "params": SAMPLING[1]}
        more = {"requestState": first["requestState"], "inputResponses": {key: {"role": "assistant"}}}
        second = await result(place, "tools/call", {**CALL, **more}, clientCapabilities=ABLE)
        assert second["resultType"] == "input_required"
        ((key, question),) = second["inputRequests"].items()
        assert question["method"] == "roots/list"
        more = {"requestState": second["requestState"], "inputResponses": {key: {"roots": []}}}
        last = await result(place, "tools/call", {**CALL, **more}, clientCapabilities=ABLE)
        assert last["resultType"] == "complete"
        assert json.loads(last["content"][0]["text"]) == [{"result": {"role": "assistant"}}, {"result": {"roots": []}}]
        assert [record["outcome"] for record in place.audit()] == ["input_required", "input_required", "ok"]


@pytest.mark.sec("SEC-010")
async def test_the_state_of_a_request_is_good_for_that_request_once(tmp_path: Path) -> None:
    async with running(tmp_path, ASKING, {"all": ["a"], "other": ["a"]}) as place:
        first = await result(place, "tools/call", CALL, clientCapabilities=ABLE)
        state, (key,) = first["requestState"], first["inputRequests"]
        answers = {key: {"role": "assistant"}}

        async def refused(params: Any, path: str = "/mcp") -> None:
            body, headers = request("tools/call", params, clientCapabilities=ABLE)
            answer = (await place.http.request("POST", path, body, headers)).messages()[-1]
            assert answer.get("error", {}).get("code") == -32602, answer

        flipped = [
            state[:place_] + ("A" if state[place_] != "A" else "B") + state[place_ + 1 :] for place_ in (0, 9, 40, -3)
        ]
        for forged in (
            *flipped,
            "",
            "é",
            state + state,
            state[:-4],
            base64.urlsafe_b64encode(b"{}" * 20).decode(),
            5,
            {},
        ):
            await refused({**CALL, "requestState": forged, "inputResponses": answers})
        others = ({"name": "a__echo"}, {"name": "a__ask", "arguments": {"questions": [SAMPLING]}}, {"name": "a__ask"})
        for other in others:
            await refused({**other, "requestState": state, "inputResponses": answers})
        await refused({**CALL, "requestState": state, "inputResponses": answers}, "/p/other/mcp")
        params = {**CALL, "requestState": state, "inputResponses": answers}
        second = await result(place, "tools/call", params, clientCapabilities=ABLE)
        assert second["resultType"] == "input_required"
        await refused(params)


async def test_what_a_server_offers_only_to_clients_it_can_ask_is_listed_and_stays_so(tmp_path: Path) -> None:
    async with running(tmp_path, ASKING) as place:
        session = await place.session(capabilities={"sampling": {}})

        async def listed() -> bool:
            return "a__consult" in await session.tools()

        await session.call("a__echo")
        with anyio.fail_after(DEADLINE_S):
            while not await listed():
                await anyio.sleep(POLL_S)
        assert "consult" in await session.call("a__consult")
        called = await result(place, "tools/call", {"name": "a__consult", "arguments": {}}, clientCapabilities=ABLE)
        assert "consult" in called["content"][0]["text"]
        # Announced by the shared connection, to which the server does not offer it.
        async with session.listening() as stream:
            await session.call("a__change")
            await stream.until("notifications/tools/list_changed")
            assert await listed()


async def test_a_call_that_waits_too_long_for_its_client_is_withdrawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridge, "PARK_S", 0.2)
    async with running(tmp_path, ASKING) as place:
        first = await result(place, "tools/call", CALL, clientCapabilities=ABLE)
        server = place.gateway.pool.servers["a"]
        await until(
            lambda: not any(one.upstream and one.upstream.in_flight for one in server.connections.values()), "it ended"
        )
        (key,) = first["inputRequests"]
        params = {**CALL, "requestState": first["requestState"], "inputResponses": {key: {"roots": []}}}
        answer = (await post(place, "tools/call", params, clientCapabilities=ABLE)).messages()[-1]
        assert answer["error"]["code"] == -32602
        # The connection it held is free for the next one.
        again = await result(place, "tools/call", CALL, clientCapabilities=ABLE)
        assert again["resultType"] == "input_required"


async def test_an_answer_that_is_no_object_ends_the_call(tmp_path: Path) -> None:
    async with running(tmp_path, ASKING) as place:
        first = await result(place, "tools/call", CALL, clientCapabilities=ABLE)
        (key,) = first["inputRequests"]
        params = {**CALL, "requestState": first["requestState"], "inputResponses": {key: "yes"}}
        answer = (await post(place, "tools/call", params, clientCapabilities=ABLE)).messages()[-1]
        assert answer["error"]["code"] == -32602
        server = place.gateway.pool.servers["a"]
        await until(
            lambda: not any(one.upstream and one.upstream.in_flight for one in server.connections.values()), "it ended"
        )


async def test_answers_to_nothing_change_nothing(tmp_path: Path) -> None:
    async with running(tmp_path, TWO) as place:
        params = {"name": "a__raw", "arguments": {}, "inputResponses": {"x": {}}}
        assert (await result(place, "tools/call", params, clientCapabilities=ABLE))["resultType"] == "complete"


@pytest.mark.sec("SEC-021")
async def test_more_waiting_calls_than_there_is_room_for_are_refused_and_those_that_wait_go_on(tmp_path: Path) -> None:
    async with running(tmp_path, ASKING) as place:
        call = {"name": "a__ask", "arguments": {"questions": [SAMPLING]}}
        waiting = []
        refusals = 0
        for _ in range(20):
            outcome = await result(place, "tools/call", call, clientCapabilities=ABLE)
            if outcome.get("isError"):
                refusals += 1
                assert "try again" in outcome["content"][0]["text"]
            else:
                waiting.append(outcome)
        assert refusals
        assert len(waiting) >= 10
        for one in waiting:
            (key,) = one["inputRequests"]
            params = {**call, "requestState": one["requestState"], "inputResponses": {key: {"n": 1}}}
            assert (await result(place, "tools/call", params, clientCapabilities=ABLE))["resultType"] == "complete"
        assert (await result(place, "tools/call", call, clientCapabilities=ABLE))["resultType"] == "input_required"
