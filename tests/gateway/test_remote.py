"""Servers reached over HTTP: the transport's client side against a real server that keeps or breaks its rules."""

import asyncio
import json
from pathlib import Path
from typing import Any

import anyio
import pytest

from tests.gateway.running import Place, running
from tests.servers import DEADLINE_S, until
from tests.servers.remote import RemoteServer, remote

pytestmark = pytest.mark.anyio


def entry_of(server: RemoteServer, **more: Any) -> dict[str, Any]:
    """A remote entry beside a friendly local one."""
    return {"far": {"remote": {"url": server.url}, **more}, "good": ["friendly"]}


async def good_works(place: Place) -> None:
    session = await place.session()
    assert json.loads(await session.call("good__echo", {"still": "fine"})) == {"still": "fine"}


@pytest.mark.parametrize("options", [{}, {"stream": True}, {"listen": False}, {"sessions": False}, {"pad": "\r\n  "}])
async def test_calls_work_whichever_way_the_server_uses_the_transport(tmp_path: Path, options: Any) -> None:
    async with remote(**options) as server, running(tmp_path, entry_of(server)) as place:
        session = await place.session()
        assert "far__echo" in await session.tools()
        assert json.loads(await session.call("far__echo", {"x": 1})) == {"x": 1}
        assert await session.failure("far__fail") == "it did not work"
        assert (await session.error("tools/call", {"name": "far__error"}))["code"] == -32050


async def test_the_session_and_revision_are_repeated_in_every_request(tmp_path: Path) -> None:
    headers = {"Authorization": "Bearer of good news", "X-Team": "a b"}
    async with remote(revision="2025-06-18") as server:
        entries = {"far": {"remote": {"url": server.url + "?tenant=1", "headers": headers}}}
        async with running(tmp_path, entries) as place:
            session = await place.session()
            await session.call("far__echo")
            await until(lambda: server.listeners, "it listens")
        hello = server.rpc("initialize")[0]
        assert "mcp-session-id" not in hello.headers
        later = [r for r in server.requests if r.rpc not in ("initialize", "server/discover")]
        assert {r.method for r in later} == {"POST", "GET", "DELETE"}
        for request in server.requests:
            assert request.target == "/mcp?tenant=1"
            assert request.headers["authorization"] == "Bearer of good news"
            assert request.headers["x-team"] == "a b"
        for request in later:
            assert request.headers["mcp-session-id"] == "session-1"
            assert request.headers["mcp-protocol-version"] == "2025-06-18"
        for request in server.requests:
            if request.method == "POST":
                assert request.headers["content-type"] == "application/json"
                assert {"application/json", "text/event-stream"} <= set(request.headers["accept"].split(", "))


async def test_nothing_of_the_callers_own_headers_reaches_the_server(tmp_path: Path) -> None:
    async with remote() as server, running(tmp_path, entry_of(server)) as place:
        session = await place.session()
        await session.tools()
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "far__echo"}}).encode()
        await session.post(body, ("Authorization", "Bearer canary"), ("Cookie", "canary=1"), ("X-Canary", "canary"))
        assert len(server.rpc("tools/call")) == 1
        for request in server.requests:
            assert not any("canary" in value for value in request.headers.values())


async def test_progress_comes_through_from_the_calls_own_stream(tmp_path: Path) -> None:
    async with remote() as server, running(tmp_path, entry_of(server)) as place:
        session = await place.session()
        async with session.calling("far__progress", {"n": 3}, token="mine") as stream:
            for number in (1, 2, 3):
                params = (await stream.message())["params"]
                assert params == {"progressToken": "mine", "progress": number, "total": 3}
            assert (await stream.message())["result"]["content"][0]["text"] == "done"


@pytest.mark.sec("SEC-013")
async def test_many_calls_at_once_each_get_their_own_answer(tmp_path: Path) -> None:
    async with remote() as server, running(tmp_path, entry_of(server)) as place:
        sessions = [await place.session() for _ in range(20)]
        await sessions[0].tools()

        async def work(number: int) -> None:
            for turn in range(5):
                mark = f"{number}/{turn}"
                assert await sessions[number].call("far__delay", {"ms": (number + turn) % 5, "mark": mark}) == mark

        async with asyncio.TaskGroup() as group:
            for number in range(20):
                group.create_task(work(number))


async def test_what_a_server_says_on_its_listening_stream_is_heard(tmp_path: Path) -> None:
    async with remote() as server, running(tmp_path, entry_of(server)) as place:
        session = await place.session()
        await session.tools()
        await until(lambda: server.listeners, "the gateway listens")
        async with session.listening() as stream:
            await session.call("far__change", {"add": "fresh"})
            while "far__fresh" not in await session.tools():
                await stream.until("notifications/tools/list_changed")


async def test_a_listening_stream_that_breaks_is_opened_again(tmp_path: Path) -> None:
    async with remote() as server, running(tmp_path, entry_of(server)) as place:
        session = await place.session()
        await session.tools()
        await until(lambda: server.listeners, "the gateway listens")
        server.hang_up()
        await until(lambda: len([r for r in server.requests if r.method == "GET"]) == 2, "it listens again")
        assert await session.call("far__echo") == "{}"


async def test_a_call_to_a_server_that_hangs_up_may_have_happened_and_the_next_one_works(tmp_path: Path) -> None:
    async with remote() as server, running(tmp_path, entry_of(server)) as place:
        session = await place.session()
        await session.tools()
        call = asyncio.create_task(session.failure("far__hold", {"key": "k"}))
        await until(lambda: server.behaviour.held, "the call has arrived")
        server.hang_up()
        assert "a retry may repeat side effects" in await call
        assert await session.call("far__echo") == "{}"
        await good_works(place)


async def test_a_call_to_a_server_that_is_gone_did_not_happen_and_works_when_it_is_back(tmp_path: Path) -> None:
    async with remote(listen=False) as server:
        pass
    port = int(server.url.removesuffix("/mcp").rpartition(":")[2])
    async with running(tmp_path, entry_of(server)) as place:
        session = await place.session()
        async with remote(listen=False, sessions=False, port=port):
            await session.ask("tools/call", {"name": "far__echo"})
            assert await session.call("far__echo") == "{}"
        text = await session.failure("far__echo")
        while "cannot connect" not in text:  # a connection may still have been open
            text = await session.failure("far__echo")
        assert "a retry is safe" in text
        async with remote(listen=False, sessions=False, port=port):
            assert await session.call("far__echo") == "{}"
        await good_works(place)


@pytest.mark.parametrize(
    ("status", "text"),
    [
        ("401 Unauthorized", "wants authorization"),
        ("403 Forbidden", "wants authorization"),
        ("404 Not Found", "HTTP 404"),
        ("500 Internal Server Error", "HTTP 500"),
        ("302 Found", "HTTP 302"),
    ],
)
async def test_a_server_that_refuses_at_the_door_is_named_and_the_others_work(
    tmp_path: Path, status: str, text: str
) -> None:
    answer = f"HTTP/1.1 {status}\r\nContent-Length: 4\r\nLocation: http://127.0.0.1:1/\r\n\r\noops".encode()
    raw = {"initialize": answer, "server/discover": answer}
    async with remote(raw=raw) as server, running(tmp_path, entry_of(server)) as place:
        session = await place.session()
        assert all(tool.startswith("good__") for tool in await session.tools())
        assert text in place.gateway.pool.servers["far"].error
        await good_works(place)


async def test_a_server_nobody_answers_for_is_named_and_the_others_work(tmp_path: Path) -> None:
    async with remote() as server:
        pass
    async with running(tmp_path, entry_of(server)) as place:
        session = await place.session()
        assert all(tool.startswith("good__") for tool in await session.tools())
        assert "cannot connect to 127.0.0.1" in place.gateway.pool.servers["far"].error


JSON_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
SSE_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (JSON_HEAD + b"Content-Length: 5\r\n\r\noops!", "another message than the answer"),
        (JSON_HEAD + b"Content-Length: 0\r\n\r\n", "another message than the answer"),
        (
            JSON_HEAD + b"Content-Length: 40\r\n\r\n" + b'{"jsonrpc":"2.0","id":999999,"result":{}}'[:40],
            "another message",
        ),
        (JSON_HEAD + b"Content-Length: 100\r\n\r\n{}", "closed the connection"),
        (SSE_HEAD + b"Content-Length: 0\r\n\r\n", "ended the stream without an answer"),
        (SSE_HEAD + b"\r\ndata: {}\n\ndata: nonsense\n\n", "ended the stream without an answer"),
        (SSE_HEAD + b"\r\n" + b"data: x" * 5_000_000, "event over the size limit"),
        (JSON_HEAD + b"\r\n" + b" " * 40_000_000, "answer is over the size limit"),
        (b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n", "HTTP 202"),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy", "HTTP 503: busy"),
        (b"not http at all\r\n\r\n", "not HTTP/1.1"),
    ],
    ids=range(11),
)
async def test_a_call_that_gets_no_proper_answer_says_what_came_instead(
    tmp_path: Path, answer: bytes, text: str
) -> None:
    async with remote(raw={"tools/call": answer}) as server, running(tmp_path, entry_of(server)) as place:
        session = await place.session()
        assert text in await session.failure("far__echo")
        await good_works(place)


async def test_an_answer_without_length_that_ends_with_the_connection_is_an_answer(tmp_path: Path) -> None:
    async with remote() as server, running(tmp_path, entry_of(server)) as place:
        session = await place.session()
        await session.tools()
        upstream = place.gateway.pool.servers["far"].upstream
        assert upstream is not None
        result = b'{"content":[{"type":"text","text":"hello"}]}'
        for head in (JSON_HEAD + b"\r\n%b", SSE_HEAD + b"\r\ndata: %b\n\n"):
            number = upstream._next_id + 1
            body = b'{"jsonrpc":"2.0","id":%d,"result":%b}' % (number, result)
            server.options["raw"] = {"tools/call": head % body}
            assert await session.call("far__echo") == "hello"


async def test_an_expired_session_is_opened_anew_at_the_next_call(tmp_path: Path) -> None:
    async with remote() as server, running(tmp_path, entry_of(server)) as place:
        session = await place.session()
        await session.tools()
        server.sessions.clear()  # the server forgets whom it knew
        text = await session.failure("far__echo")
        assert "a retry is safe" in text
        again = text
        while again != "{}":
            result = await session.result("tools/call", {"name": "far__echo"})
            again = result["content"][0]["text"]
            assert again == "{}" or "a retry is safe" in again
            await asyncio.sleep(0.02)
        assert len(server.rpc("initialize")) == 2


async def test_a_cancelled_call_is_told_to_the_server(tmp_path: Path) -> None:
    async with remote() as server, running(tmp_path, entry_of(server)) as place:
        session = await place.session()
        async with session.calling("far__hold", {"key": "k"}, id=77) as held:
            await held.message()
            body = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 77}}
            await session.post(json.dumps(body).encode())
            assert (await held.message())["error"]["code"] == -32800
        await until(lambda: server.rpc("notifications/cancelled"), "the server is told")


async def test_the_end_of_the_gateway_ends_the_session_with_the_server(tmp_path: Path) -> None:
    async with remote() as server:
        async with running(tmp_path, entry_of(server)) as place:
            await (await place.session()).call("far__echo")
        deleted = [request for request in server.requests if request.method == "DELETE"]
        assert [request.headers["mcp-session-id"] for request in deleted] == ["session-1"]
        await until(lambda: not server.listeners, "nobody listens any more")


async def test_a_session_id_that_is_not_plain_text_is_not_repeated(tmp_path: Path) -> None:
    async with remote() as server, running(tmp_path, entry_of(server)) as place:
        hello = server.behaviour._hello({})
        body = json.dumps({"jsonrpc": "2.0", "id": 2, "result": hello}).encode()
        head = JSON_HEAD + b"Mcp-Session-Id: \xe9vil\r\nContent-Length: %d\r\n\r\n"
        server.options["sessions"] = False
        server.options["raw"] = {"initialize": head % len(body) + body}
        assert await (await place.session()).call("far__echo") == "{}"
        assert not any("mcp-session-id" in request.headers for request in server.requests)


async def test_calls_that_run_out_of_time_keep_no_connection(tmp_path: Path) -> None:
    limits = {"call_timeout_s": 0.2, "start_timeout_s": 20.0}
    async with remote() as server, running(tmp_path, entry_of(server, limits=limits)) as place:
        session = await place.session()
        await session.tools()
        for number in range(5):
            assert "did not answer within 0.2 s" in await session.failure("far__hold", {"key": str(number)})
        await until(lambda: server.n_connections <= 2, "only the listening stream and one for calls are open")
        await until(lambda: len(server.rpc("notifications/cancelled")) == 5, "the server was told of each")


async def test_an_endless_answer_is_cut_off(tmp_path: Path) -> None:
    for number, head in enumerate((JSON_HEAD + b"\r\n", SSE_HEAD + b"\r\ndata: ", SSE_HEAD + b"\r\n")):
        folder = tmp_path / str(number)
        folder.mkdir()
        async with remote() as server:
            gone = asyncio.Event()
            usual = server._post

            async def endless(
                request: Any, writer: asyncio.StreamWriter, head: bytes = head, gone: Any = gone, usual: Any = usual
            ) -> bool:
                if request.rpc != "tools/call":
                    return bool(await usual(request, writer))
                writer.write(head)
                try:
                    while True:
                        writer.write(b"x" * 1_000_000)
                        await writer.drain()
                finally:
                    gone.set()

            server._post = endless  # type: ignore[method-assign]
            async with running(folder, entry_of(server)) as place:
                assert "over the size limit" in await (await place.session()).failure("far__echo")
                async with asyncio.timeout(10):
                    await gone.wait()
                await good_works(place)


async def test_an_old_server_that_forgot_the_session_while_its_stream_is_open_is_reached_anew(tmp_path: Path) -> None:
    async with remote(old=True) as server:
        entries = {"far": {"remote": {"url": server.url, "transport": "sse"}}}
        async with running(tmp_path, entries) as place:
            session = await place.session()
            assert json.loads(await session.call("far__echo", {"n": 1})) == {"n": 1}
            server.old.clear()
            assert "HTTP 404" in await session.failure("far__echo", {"n": 2})
            await until(lambda: not place.gateway.pool.servers["far"].connections, "the connection is given up")
            asked = {"name": "far__echo", "arguments": {"n": 3}}
            with anyio.fail_after(DEADLINE_S):
                while (result := await session.result("tools/call", asked)).get("isError"):
                    await anyio.sleep(0.05)  # until the next attempt is allowed
            assert json.loads(result["content"][0]["text"]) == {"n": 3}
            assert server.n_opened == 2
