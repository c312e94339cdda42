"""Connections that dawdle, stall, lie about their length or hide a second request in the first."""

import asyncio
import gzip
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from gateway import patience
from tests.gateway.callers import ACCEPT, JSON, message
from tests.gateway.running import Place, running
from tests.gateway.test_modern import request
from tests.servers import DEADLINE_S, until

pytestmark = pytest.mark.anyio

ONE = {"a": ["friendly"]}
SHORT_S = 0.3


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "SWEEP_S", 0.02)
    for name in ("HEAD_S", "BODY_IDLE_S", "WRITE_STALL_S"):
        monkeypatch.setattr(patience, name, SHORT_S)


class Socket:
    """A bare connection to the gateway."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def rest(self) -> bytes:
        """What comes until the gateway hangs up."""
        with anyio.fail_after(DEADLINE_S):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""

    async def drip(self, piece: bytes) -> None:
        """Send the same again and again until the gateway hangs up."""
        with anyio.fail_after(DEADLINE_S):
            while not self.reader.at_eof() and not self.writer.is_closing():
                try:
                    self.writer.write(piece)
                    await self.writer.drain()
                except ConnectionError:
                    return
                await asyncio.sleep(0.02)


@asynccontextmanager
async def connected(place: Place) -> AsyncIterator[Socket]:
    reader, writer = await asyncio.open_connection(place.http.host, place.http.port)
    try:
        yield Socket(reader, writer)
    finally:
        writer.close()


def n_connections(place: Place) -> int:
    return len(place.service._server.server_state.connections)


# -- too slow ------------------------------------------------------------------------------------


HEAD = b"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\n"
SLOW_HEADS = {
    "silence": (b"", b""),
    "a head without end": (HEAD, b"X-A: b\r\n"),
    "a name without end": (HEAD, b"x"),
    "a method without end": (b"", b"G"),
    "empty lines": (b"", b"\r\n"),
    "empty lines after a request": (b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"\r\n"),
    "half a head after a request": (b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET /h", b"e"),
}


@pytest.mark.sec("SEC-018")
@pytest.mark.usefixtures("impatient")
async def test_a_head_that_does_not_end_ends_the_connection(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:

        async def slow(start: bytes, piece: bytes) -> None:
            async with connected(place) as socket:
                socket.writer.write(start)
                if piece:
                    await socket.drip(piece)
                answers = await socket.rest()
                assert answers.count(b"HTTP/1.1 200") <= start.count(b"/healthz")

        async with asyncio.TaskGroup() as group:
            for start, piece in SLOW_HEADS.values():
                group.create_task(slow(start, piece))
        await until(lambda: n_connections(place) == 0, "nothing of them is left")
        assert await (await place.session()).call("a__echo") == "{}"


@pytest.mark.sec("SEC-018")
@pytest.mark.usefixtures("impatient")
async def test_a_body_that_does_not_come_ends_the_connection_and_frees_its_place(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        places = place.service.endpoint.places
        _, modern = request("tools/list")
        for headers in ([JSON, ACCEPT], modern):
            for begun in (b"", b'{"jsonrpc"', b"x" * 100_000):
                async with connected(place) as socket:
                    socket.writer.write(place.http.head("POST", "/mcp", headers, 200_000) + begun)
                    await until(lambda: places.taken == 1, "the request is under way")
                    assert b" 408 " in await socket.rest()
                await until(lambda: (places.taken, places.held_bytes) == (0, 0), "its place is free")
        assert place.audit() == []


@pytest.mark.sec("SEC-018")
async def test_a_body_that_drips_for_ever_ends_the_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "SWEEP_S", 0.02)
    monkeypatch.setattr(patience, "BODY_S", SHORT_S)
    async with running(tmp_path, ONE) as place:
        for head in (
            place.http.head("POST", "/mcp", [JSON, ACCEPT], 200_000),
            place.http.head("POST", "/v1/chat/completions", [JSON], 200_000),
        ):
            async with connected(place) as socket:
                socket.writer.write(head)
                await socket.drip(b" ")
        await until(lambda: n_connections(place) == 0, "nothing of them is left")


@pytest.mark.sec("SEC-018")
@pytest.mark.sec("SEC-020")
@pytest.mark.usefixtures("impatient")
async def test_a_client_that_does_not_read_its_answer_is_cut_off(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        session = await place.session()
        call = {"name": "a__big", "arguments": {"bytes": 25_000_000}}
        body, headers = request("tools/call", call)
        for given, sent in ((headers, body), (session.headers(JSON, ACCEPT), message("tools/call", call, 1))):
            async with connected(place) as socket:
                socket.writer.transport.pause_reading()  # type: ignore[attr-defined]
                socket.writer.write(place.http.head("POST", "/mcp", given, len(sent)) + sent)
                await until(lambda: place.service.endpoint.places.taken == 1, "the call is under way")
                await until(lambda: n_connections(place) == 0, "it is cut off")
        await until(lambda: place.service.endpoint.places.taken == 0, "nothing is under way")
        assert await session.call("a__echo") == "{}"


@pytest.mark.sec("SEC-020")
async def test_a_flood_for_a_client_that_does_not_read_stays_within_bounds_until_it_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, {"a": ["hostile", "floods_progress"]}) as place:
        session = await place.session()
        await session.tools()
        call = {"name": "a__poke", "arguments": {}, "_meta": {"progressToken": 1}}
        upstream = await place.gateway.pool.connection("a")
        modern_body, modern_headers = request("tools/call", {"name": "a__poke", "arguments": {}}, token=1)
        before = resident_bytes()
        for given, sent in (
            (modern_headers, modern_body),
            (session.headers(JSON, ACCEPT), message("tools/call", call, 1)),
        ):
            async with connected(place) as socket:
                socket.writer.transport.pause_reading()  # type: ignore[attr-defined]
                socket.writer.write(place.http.head("POST", "/mcp", given, len(sent)) + sent)
                await until(lambda: upstream.in_flight == 1, "the flood has begun")
                await until(lambda: upstream.in_flight == 0, "the flood is over")
                assert resident_bytes() - before < 32 * 1024 * 1024
                assert place.service.endpoint.places.taken == 1
                with monkeypatch.context() as patch:
                    patch.setattr(patience, "SWEEP_S", 0.02)
                    patch.setattr(patience, "WRITE_STALL_S", SHORT_S)
                    await until(lambda: place.service.endpoint.places.taken == 0, "the client is cut off")
        assert [record["outcome"] for record in place.audit()] == ["cancelled", "ok"]


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.sec("SEC-018")
@pytest.mark.usefixtures("impatient")
async def test_calls_and_streams_that_only_take_long_are_left_alone(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        session, other = await place.session(), await place.session()
        loop = asyncio.get_running_loop()
        begun = loop.time()
        async with session.listening() as listening, session.calling("a__hold", {"key": "k"}) as held:
            assert (await held.message())["method"] == "notifications/progress"
            while loop.time() < begun + 4 * SHORT_S:
                assert await other.call("a__echo") == "{}"
            await other.call("a__release", {"key": "k"})
            assert "result" in await held.message()
            await other.call("a__change")
            assert (await listening.message())["method"].endswith("list_changed")


@pytest.mark.sec("SEC-018")
@pytest.mark.usefixtures("impatient")
async def test_hundreds_of_slow_connections_do_not_keep_a_good_client_from_its_work(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        session = await place.session()
        await session.tools()

        async def slow(number: int) -> bytes:
            async with connected(place) as socket:
                socket.writer.write(HEAD if number % 2 else place.http.head("POST", "/mcp", [JSON, ACCEPT], 9))
                return await socket.rest()

        async with asyncio.TaskGroup() as group:
            attack = [group.create_task(slow(number)) for number in range(400)]
            for number in range(100):
                assert json.loads(await session.call("a__echo", {"n": number})) == {"n": number}
        assert all(b"HTTP/1.1 200" not in task.result() for task in attack)
        await until(lambda: n_connections(place) == 0, "nothing of them is left")


@pytest.mark.sec("SEC-018")
@pytest.mark.sec("SEC-021")
async def test_more_connections_than_there_may_be_are_refused_and_make_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "MAX_CONNECTIONS", 10)
    async with running(tmp_path, ONE) as place:
        async with anyio.create_task_group() as group:
            gone = asyncio.Event()

            async def idle() -> None:
                async with connected(place):
                    await gone.wait()

            for _ in range(10):
                group.start_soon(idle)
            await until(lambda: n_connections(place) == 10, "all connections are taken")
            assert (await place.http.request("GET", "/healthz")).status == 503
            gone.set()
        await until(lambda: n_connections(place) == 0, "they are gone")
        assert (await place.http.request("GET", "/healthz")).status == 200


# -- packed --------------------------------------------------------------------------------------


@pytest.mark.sec("SEC-017")
async def test_a_packed_body_is_refused_before_it_is_read(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        bomb = gzip.compress(b" " * 10_000_000)
        for route in ("/mcp", "/p/all/mcp", "/v1/chat/completions", "/admin/servers/a/start"):
            for coding in ("gzip", "br", "deflate", "zstd", "identity, gzip", "x-gzip", "identity"):
                packed = [JSON, ACCEPT, ("Content-Encoding", coding)]
                assert (await place.http.request("POST", route, bomb, packed)).status == 415, (route, coding)
        endless = place.http.head("POST", "/mcp", [JSON, ("Content-Encoding", "gzip")], 10_000_000_000)
        assert (await place.http.raw(endless)).status == 415
        host = ("Host", f"127.0.0.1:{place.http.port}")
        before_host = [("Content-Encoding", "gzip"), host, JSON, ACCEPT]
        assert (await place.http.request("POST", "/mcp", bomb, before_host)).status == 415
        foreign = [("Host", "evil.example"), ("Content-Encoding", "gzip")]
        assert (await place.http.request("POST", "/mcp", bomb, foreign)).status == 403


# -- two in one ----------------------------------------------------------------------------------

INNER = (
    b"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    b"MCP-Protocol-Version: 2026-07-28\r\nMcp-Method: tools/call\r\nMcp-Name: a__pid\r\nContent-Length: %d\r\n\r\n%b"
)
SMUGGLED = request("tools/call", {"name": "a__pid", "arguments": {}})[0]
HIDDEN = INNER % (len(SMUGGLED), SMUGGLED)
START = b"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
CHUNKED = b"0\r\n\r\n"
SMUGGLING = {
    "length and chunks": START
    + b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n" % (5 + len(HIDDEN))
    + CHUNKED,
    "chunks and length": START + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n" + CHUNKED,
    "two lengths": START + b"Content-Length: 0\r\nContent-Length: %d\r\n\r\n" % len(HIDDEN),
    "the same length twice": START + b"Content-Length: 0\r\nContent-Length: 0\r\n\r\n",
    "lengths in a list": START + b"Content-Length: 0, %d\r\n\r\n" % len(HIDDEN),
    "a length with a sign": START + b"Content-Length: +0\r\n\r\n",
    "a length below zero": START + b"Content-Length: -1\r\n\r\n",
    "a length in hex": START + b"Content-Length: 0x0\r\n\r\n",
    "a length with a space in it": START + b"Content-Length: 0 0\r\n\r\n",
    "a length past all bounds": START + b"Content-Length: 99999999999999999999999999\r\n\r\n",
    "a folded header": START + b"X-A: b\r\n Content-Length: 0\r\n\r\n",
    "a folded length": START + b"Content-Length:\r\n 0\r\n\r\n",
    "a folded coding": START + b"Transfer-Encoding:\r\n chunked\r\n\r\n" + CHUNKED,
    "a space before the colon": START + b"Transfer-Encoding : chunked\r\n\r\n" + CHUNKED,
    "a tab before the colon": START + b"Content-Length\t: 0\r\n\r\n",
    "chunked twice": START + b"Transfer-Encoding: chunked, chunked\r\n\r\n" + CHUNKED,
    "chunked, then something": START + b"Transfer-Encoding: chunked, identity\r\n\r\n" + CHUNKED,
    "almost chunked": START + b"Transfer-Encoding: xchunked\r\n\r\n" + CHUNKED,
    "chunked in quotes": START + b'Transfer-Encoding: "chunked"\r\n\r\n' + CHUNKED,
    "chunked after a vertical tab": START + b"Transfer-Encoding: \x0bchunked\r\n\r\n" + CHUNKED,
    "bare line feeds": START.replace(b"\r\n", b"\n") + b"Content-Length: 0\n\n",
    "a bare line feed in the head": START + b"X-A: b\nContent-Length: 0\r\n\r\n",
    "a bare return in a header": START + b"X-A: b\rContent-Length: 0\r\n\r\n",
    "a null in a header": START + b"X-A: b\0c\r\n\r\n",
    "a header without a name": START + b": x\r\n\r\n",
    "a header without a colon": START + b"Content-Length 0\r\n\r\n",
    "a chunk size with a sign": START + b"Transfer-Encoding: chunked\r\n\r\n+0\r\n\r\n",
    "a chunk size in 0x": START + b"Transfer-Encoding: chunked\r\n\r\n0x0\r\n\r\n",
    "a chunk size past all bounds": START + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 17 + b"\r\n\r\n",
    "a chunk ended by a line feed": START + b"Transfer-Encoding: chunked\r\n\r\n0\n\n",
    "a chunk that is longer than its size": START + b"Transfer-Encoding: chunked\r\n\r\n1\r\nxx\r\n0\r\n\r\n",
    "a space in the target": b"POST /mcp x HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "a version of its own": b"POST /mcp HTTP/9.9\r\nHost: 127.0.0.1\r\n\r\n",
    "no version": b"GET /healthz\r\n\r\n",
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a TLS handshake": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "a method in small letters": b"post /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
}


@pytest.mark.sec("SEC-019")
async def test_a_request_of_doubtful_length_is_refused_and_what_follows_is_no_request(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        for what, doubtful in SMUGGLING.items():
            async with connected(place) as socket:
                socket.writer.write(doubtful + HIDDEN)
                socket.writer.write_eof()
                answers = await socket.rest()
            assert answers.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 403 ")), what
            assert answers.count(b"HTTP/1.1 ") == 1, what
        assert place.audit() == []


@pytest.mark.sec("SEC-019")
async def test_an_upgrade_hides_no_request(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        for protocol in (b"h2c", b"websocket", b"TLS/1.0"):
            async with connected(place) as socket:
                upgrade = b"Connection: Upgrade\r\nUpgrade: %b\r\n" % protocol
                socket.writer.write(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n" + upgrade + b"\r\n" + HIDDEN)
                socket.writer.write_eof()
                assert (await socket.rest()).count(b"HTTP/1.1 ") == 1
            async with connected(place) as socket:
                socket.writer.write(b"CONNECT evil.example:80 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" + HIDDEN)
                socket.writer.write_eof()
                assert (await socket.rest()).count(b"HTTP/1.1 ") <= 1
        assert place.audit() == []


@pytest.mark.sec("SEC-019")
async def test_requests_one_after_the_other_on_one_connection_are_answered_in_order(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place, connected(place) as socket:
        first, second = (request("tools/call", {"name": "a__echo", "arguments": {"n": n}})[0] for n in (1, 2))
        named = INNER.replace(b"a__pid", b"a__echo")
        end = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
        socket.writer.write(named % (len(first), first) + named % (len(second), second) + end + HIDDEN)
        answers = await socket.rest()
        assert answers.count(b"HTTP/1.1 200") == 3
        assert answers.index(b'{\\"n\\": 1}') < answers.index(b'{\\"n\\": 2}') < answers.index(b'{"status":"ok"')
        assert len(place.audit()) == 2


@pytest.mark.sec("SEC-019")
async def test_a_request_that_is_cut_short_is_never_made(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        await (await place.session()).tools()
        whole = request("tools/call", {"name": "a__echo", "arguments": {"x": 1}})
        for padding in (1, 100_000):
            async with connected(place) as socket:
                head = place.http.head("POST", "/mcp", whole[1], len(whole[0]) + padding)
                socket.writer.write(head + whole[0] + b" " * (padding // 2))
                await until(lambda: place.service.endpoint.places.taken == 1, "it is being read")
            await until(lambda: place.service.endpoint.places.taken == 0, "it is over")
        assert place.audit() == []
