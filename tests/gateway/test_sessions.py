"""Sessions belong to one principal, come back, idle out and are bounded in number and memory."""

import asyncio
import json
from pathlib import Path
from typing import Any

import anyio
import pytest

from gateway.wire import http, modern, sessions
from tests.gateway.callers import ACCEPT, JSON, Session, message
from tests.gateway.running import USER, Place, by_header, running
from tests.gateway.test_modern import request, streaming
from tests.servers import LOCAL, until

pytestmark = pytest.mark.anyio

ONE = {"a": ["friendly"]}
ASKING = {"a": {"package": dict(LOCAL), "command": ["friendly"], "interactive": True}}
SAMPLING = ["sampling/createMessage", {"messages": [], "maxTokens": 5}]


async def of(place: Place, user: str, **options: Any) -> Session:
    return await place.session(always=[(USER, user)], **options)


def resumed(session: Session, event: str) -> Any:
    headers = session.headers(("Accept", "text/event-stream"), ("Last-Event-ID", event))
    return session.http.stream("GET", session.path, headers=headers)


# -- whose they are ------------------------------------------------------------------------------


@pytest.mark.sec("SEC-005")
@pytest.mark.sec("SEC-006")
async def test_a_session_id_is_worth_nothing_to_another_principal(tmp_path: Path) -> None:
    async with running(tmp_path, ONE, principal_of=by_header) as place:
        alice, bob = await of(place, "alice"), await of(place, "bob")
        unknown = await of(place, "bob")
        unknown.id = "0" * 32
        for thief in (alice, bob):
            victim = bob if thief is alice else alice
            own, thief.id = thief.id, victim.id
            for method, body in (("POST", message("ping", {}, 1)), ("GET", b""), ("DELETE", b"")):
                answers = []
                for one in (thief, unknown):
                    headers = one.headers(JSON, ACCEPT)
                    answers.append(await place.http.request(method, "/mcp", body, headers))
                assert answers[0].status == 404, method
                assert answers[0] == answers[1], method
            thief.id = own
        assert await alice.result("ping") == await bob.result("ping") == {}
        nobody = [("Mcp-Session-Id", alice.id), JSON, ACCEPT]
        assert (await place.http.request("POST", "/mcp", message("ping", {}, 1), nobody)).status == 404
        assert (await place.http.request("GET", "/admin/servers", headers=nobody)).status == 401
        wrong = [*nobody, ("Authorization", f"Bearer {alice.id}")]
        assert (await place.http.request("GET", "/admin/servers", headers=wrong)).status == 401


@pytest.mark.sec("SEC-005")
async def test_a_client_cannot_choose_the_id_of_its_session(tmp_path: Path) -> None:
    async with running(tmp_path, ONE, principal_of=by_header) as place:
        params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}}
        headers = [JSON, ACCEPT, ("Mcp-Session-Id", "f" * 32), (USER, "alice")]
        answer = await place.http.request("POST", "/mcp", message("initialize", params, 1), headers)
        assert answer.status == 404
        assert len(place.service.endpoint.sessions) == 0


@pytest.mark.sec("SEC-007")
async def test_an_event_id_replays_the_callers_own_streams_only(tmp_path: Path) -> None:
    async with running(tmp_path, ONE, principal_of=by_header) as place:
        alice, bob = await of(place, "alice"), await of(place, "bob")
        for session, secret in ((alice, "of alice"), (bob, "of bob")):
            async with session.calling("a__hold", {"key": secret}, id="lost") as held:
                await held.message()
            await session.call("a__release", {"key": secret})
        stolen, bob.id = bob.id, alice.id
        async with resumed(bob, "1-0") as stream:
            assert stream.status == 404
        bob.id = stolen
        async with resumed(bob, "1-0") as stream:
            seen = [one async for one in _messages(stream)]
        assert seen[-1]["result"]["content"][0]["text"] == "of bob"
        assert "of alice" not in json.dumps(seen)


async def _messages(stream: Any) -> Any:
    while (one := await stream.message()) is not None:
        yield one


@pytest.mark.sec("SEC-007")
async def test_a_stateless_request_is_answered_alone_whatever_event_id_it_names(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        session = await place.session()
        async with session.calling("a__hold", {"key": "secret"}) as held:
            await held.message()
        await session.call("a__release", {"key": "secret"})
        body, headers = request("tools/call", {"name": "a__echo", "arguments": {"x": 1}})
        headers += [("Mcp-Session-Id", session.id), ("Last-Event-ID", "1-0")]
        (answer,) = (await place.http.request("POST", "/mcp", body, headers)).messages()
        assert json.loads(answer["result"]["content"][0]["text"]) == {"x": 1}
        assert (await place.http.request("GET", "/mcp", headers=headers)).status == 405


# -- how they end --------------------------------------------------------------------------------


@pytest.mark.sec("SEC-021")
async def test_an_idle_session_ends_by_itself_with_the_servers_it_leased(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "SWEEP_S", 0.02)
    async with running(tmp_path, ASKING) as place:
        idle, busy = await place.session(capabilities={"sampling": {}}), await place.session()
        await idle.call("a__echo")
        assert place.gateway.pool.leased(idle.id)
        async with busy.listening() as stream:
            monkeypatch.setattr(sessions, "SESSION_IDLE_S", 0.05)
            await until(lambda: len(place.service.endpoint.sessions) == 1, "the idle one has ended")
            assert (await idle.post(message("ping", {}, 1))).status == 404
            await until(lambda: not place.gateway.pool.leased(idle.id), "its lease has ended")
            await busy.result("ping")
            assert stream.status == 200
        await until(lambda: len(place.service.endpoint.sessions) == 0, "nobody listens any more")
        assert place.service.endpoint.sessions.kept.size_bytes == 0


async def test_a_question_is_never_put_to_a_caller_whose_call_did_not_raise_it(tmp_path: Path) -> None:
    async with running(tmp_path, ASKING, principal_of=by_header) as place:
        able = {"sampling": {}}
        alice, bob = await of(place, "alice", capabilities=able), await of(place, "bob", capabilities=able)
        pids = {await alice.call("a__pid"), await bob.call("a__pid")}
        assert len(pids) == 2
        async with bob.listening() as overheard, alice.calling("a__ask", {"questions": [SAMPLING]}) as stream:
            question = await stream.until("sampling/createMessage")
            forged = json.dumps({"jsonrpc": "2.0", "id": question["id"], "result": {"who": "bob"}}).encode()
            assert (await bob.post(forged)).status == 202
            real = json.dumps({"jsonrpc": "2.0", "id": question["id"], "result": {"who": "alice"}}).encode()
            assert (await alice.post(real)).status == 202
            end = await stream.message()
            assert json.loads(end["result"]["content"][0]["text"]) == [{"result": {"who": "alice"}}]
            await bob.call("a__change")
            assert (await overheard.message())["method"].endswith("list_changed")


# -- how many there may be -----------------------------------------------------------------------


async def hello(place: Place, user: str) -> int:
    params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}}
    answer = await place.http.request("POST", "/mcp", message("initialize", params, 1), [JSON, ACCEPT, (USER, user)])
    assert answer.status == 200 or "retry-after" in answer.headers
    return answer.status


@pytest.mark.sec("SEC-021")
async def test_sessions_are_counted_by_principal_and_in_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "MAX_SESSIONS_OF_ONE", 20)
    monkeypatch.setattr(sessions, "MAX_SESSIONS", 30)
    async with running(tmp_path, ONE, principal_of=by_header) as place:
        assert [await hello(place, "greedy") for _ in range(25)] == [200] * 20 + [429] * 5
        assert [await hello(place, "modest") for _ in range(12)] == [200] * 10 + [503] * 2
        assert len(place.service.endpoint.sessions) == 30


@pytest.mark.sec("SEC-021")
async def test_the_session_idle_for_longest_makes_room_for_a_new_one_of_its_principal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "MAX_SESSIONS_OF_ONE", 3)
    monkeypatch.setattr(sessions, "SPARED_S", 0.0)
    async with running(tmp_path, ONE, principal_of=by_header) as place:
        first, second, third = [await of(place, "me") for _ in range(3)]
        other = await of(place, "other")
        loop = asyncio.get_running_loop()
        opened = loop.time()
        await until(lambda: loop.time() > opened, "the clock has moved on")
        await first.result("ping")
        async with second.listening():
            fourth = await of(place, "me")
            assert (await third.post(message("ping", {}, 1))).status == 404
        for left in (first, second, fourth, other):
            assert await left.result("ping") == {}


@pytest.mark.sec("SEC-021")
async def test_requests_under_way_are_counted_by_principal_and_in_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "MAX_OPEN_OF_ONE", 4)
    monkeypatch.setattr(sessions, "MAX_OPEN", 6)
    async with running(tmp_path, ONE, principal_of=by_header) as place:
        places = place.service.endpoint.places

        async def hold(user: str, key: str) -> None:
            body, headers = request("tools/call", {"name": "a__hold", "arguments": {"key": key}})
            assert (await place.http.request("POST", "/mcp", body, [*headers, (USER, user)])).status == 200

        async def statuses(user: str) -> list[int]:
            body, headers = request("tools/list")
            return [(await place.http.request("POST", "/mcp", body, [*headers, (USER, user)])).status for _ in range(2)]

        keys = [f"k{number}" for number in range(6)]
        async with asyncio.TaskGroup() as group:
            for key in keys[:4]:
                group.create_task(hold("greedy", key))
            upstream = await place.gateway.pool.connection("a")
            await until(lambda: upstream.in_flight == 4, "four calls are under way")
            assert await statuses("greedy") == [429, 429]
            assert await statuses("modest") == [200, 200]
            for key in keys[4:]:
                group.create_task(hold("modest", key))
            await until(lambda: upstream.in_flight == 6, "six calls are under way")
            assert await statuses("third") == [503, 503]
            for number, key in enumerate(keys):
                members = {"name": http.envelope.raw("release"), "arguments": http.envelope.raw({"key": key})}
                await upstream.request("tools/call", members)
                await until(lambda left=5 - number: places.taken <= left, "its place is free again")
        assert (places.taken, places.by_principal) == (0, {})
        assert await statuses("greedy") == [200, 200]


@pytest.mark.sec("SEC-021")
async def test_large_bodies_under_way_are_bounded_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "MAX_HELD_BYTES", 3_000_000)
    async with running(tmp_path, ONE) as place:
        places = place.service.endpoint.places
        head = place.http.head("POST", "/mcp", [JSON, ACCEPT], 2_500_000)
        reader, writer = await asyncio.open_connection(place.http.host, place.http.port)
        try:
            writer.write(head + b"x" * 2_000_000)
            await until(lambda: places.held_bytes > 1_500_000, "the first body is coming in")
            assert (await place.http.request("POST", "/mcp", b"x" * 2_000_000, [JSON, ACCEPT])).status == 503
            assert (await (await place.session()).result("ping")) == {}
        finally:
            writer.close()
            del reader
        await until(lambda: places.held_bytes == 0, "its client is gone")
        assert (await place.http.request("POST", "/mcp", b"x" * 2_000_000, [JSON, ACCEPT])).status == 400


@pytest.mark.sec("SEC-021")
async def test_listening_streams_are_counted_by_principal_and_in_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modern, "MAX_LISTENERS_OF_ONE", 2)
    monkeypatch.setattr(modern, "MAX_LISTENERS", 3)
    async with running(tmp_path, ONE, principal_of=by_header) as place:
        body, headers = request("subscriptions/listen", {"notifications": {"toolsListChanged": True}})

        def listening(user: str) -> Any:
            return place.http.stream("POST", "/mcp", body, [*headers, (USER, user)])

        async with listening("me") as one, listening("me") as two, listening("other") as three:
            for stream in (one, two, three):
                assert (await stream.message())["method"].endswith("acknowledged")
            for user, status in (("me", 429), ("third", 503)):
                assert (await place.http.request("POST", "/mcp", body, [*headers, (USER, user)])).status == status
        endpoint = place.service.endpoint
        await until(lambda: not endpoint.modern._listeners, "they are gone")
        async with listening("me") as again:
            assert (await again.message())["method"].endswith("acknowledged")


@pytest.mark.sec("SEC-021")
async def test_streams_kept_for_clients_that_come_back_are_bounded_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "MAX_KEPT_BYTES", 40_000)
    async with running(tmp_path, ONE) as place:
        kept = place.service.endpoint.sessions.kept
        many = [await place.session() for _ in range(6)]
        for session in many:
            for _ in range(3):
                body = message(
                    "tools/call", {"name": "a__progress", "arguments": {"n": 30}, "_meta": {"progressToken": 1}}, 1
                )
                assert (await session.post(body)).is_stream
                assert kept.size_bytes <= 40_000
        async with resumed(many[-1], "3-0") as stream:
            assert [one async for one in _messages(stream)][-1]["id"] == 1
        async with resumed(many[0], "1-0") as stream:
            assert [one async for one in _messages(stream)] == []
        for session in many:
            await session.close()
        assert kept.size_bytes == 0


@pytest.mark.sec("SEC-021")
async def test_opening_sessions_without_end_keeps_memory_flat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "MAX_SESSIONS_OF_ONE", 50)
    async with running(tmp_path, ONE, principal_of=by_header) as place:
        limiter = anyio.CapacityLimiter(16)
        seen: set[int] = set()

        async def one() -> None:
            async with limiter:
                seen.add(await hello(place, "flood"))

        async with asyncio.TaskGroup() as group:
            for _ in range(600):
                group.create_task(one())
        assert seen == {200, 429}
        assert len(place.service.endpoint.sessions) == 50
        callers = len(place.gateway.door.hearing._callers)
        assert callers == 50


@pytest.mark.sec("SEC-021")
async def test_a_listener_that_does_not_read_is_ended_and_not_kept_in_memory(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        wanted = {"notifications": {"toolsListChanged": True}}
        async with streaming(place, "subscriptions/listen", wanted) as stream:
            assert (await stream.message())["method"].endswith("acknowledged")
            (listener,) = place.service.endpoint.modern._listeners
            for _ in range(20):
                listener.deliver("notifications/tools/list_changed", b'{"x":"%b"}' % (b"x" * 1_000_000))
            assert listener._bytes < modern.MAX_EVENT_BYTES + 2_000_000
            messages = [one async for one in _messages(stream)]
            assert 1 < len(messages) <= 7
            assert messages[-1]["id"] == 1
