"""The HTTP client against real sockets: well-behaved servers, hostile ones, and the ends of connections."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
import pytest

from gateway.wire import http_client
from gateway.wire.http_client import Answer, HttpFailure, HttpOrigin

pytestmark = pytest.mark.anyio
DEADLINE_S = 10.0
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Site:
    """A TCP server that counts its connections; `url` is where it listens."""

    def __init__(self) -> None:
        self.url = ""
        self.connections = 0
        self.open = 0
        self.most_open = 0
        self.closed = asyncio.Event()
        """Set each time a connection ends."""


@asynccontextmanager
async def serving(handler: Handler, path: Path | None = None) -> AsyncIterator[Site]:
    site = Site()
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        site.connections += 1
        site.open += 1
        site.most_open = max(site.most_open, site.open)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await handler(reader, writer)
                await writer.drain()
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
            site.open -= 1
            site.closed.set()
            tasks.discard(task)

    if path is not None:
        server = await asyncio.start_unix_server(connected, path)
        site.url = f"unix://{path}"
    else:
        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        site.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield site
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def origin(site: Site, **options: int) -> AsyncIterator[HttpOrigin]:
    client = HttpOrigin(site.url, **options)
    try:
        yield client
    finally:
        await client.aclose()


async def read_request(reader: asyncio.StreamReader) -> tuple[str, bytes]:
    """The request line's target and the body."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    length = next((line for line in head.split("\r\n") if line.lower().startswith("content-length:")), "x:0")
    body = await reader.readexactly(int(length.partition(":")[2]))
    return head.split(" ")[1], body


def page(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers each request with its target and body."""
    while True:
        target, body = await read_request(reader)
        writer.write(page(target.encode() + b" " + body))


def saying(*answers: bytes, then_close: bool = False) -> Handler:
    """Answers the requests of each connection with these bytes, whatever they are."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await read_request(reader)
            writer.write(answer)
            await writer.drain()
        if not then_close:
            await reader.read()

    return handle


async def ask(client: HttpOrigin, target: str = "/", body: bytes = b"") -> Answer:
    """A complete answer, within the deadline."""
    answer = Answer()
    client.request("POST", target, b"", body, answer)
    with anyio.fail_after(DEADLINE_S):
        await answer.content()
    return answer


async def turns() -> None:
    """Let the loop read what has arrived; on one machine the end of a connection arrives at once."""
    for _ in range(10):
        await asyncio.sleep(0)


async def failure(client: HttpOrigin) -> HttpFailure:
    with pytest.raises(HttpFailure) as caught:
        await ask(client)
    return caught.value


# -- proper answers ------------------------------------------------------------------------------


async def test_one_connection_serves_one_request_after_the_other() -> None:
    async with serving(echo) as site, origin(site) as client:
        for number in range(20):
            answer = await ask(client, f"/{number}", b"hello")
            assert (answer.status, await answer.content()) == (200, b"/%d hello" % number)
        assert site.connections == 1


async def test_the_request_is_what_the_standard_wants() -> None:
    seen = bytearray()

    async def record(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.extend(await reader.readuntil(b"\r\n\r\n") + await reader.readexactly(2))
        writer.write(page(b""))

    async with serving(record) as site, origin(site) as client:
        answer = Answer()
        client.request("POST", "/a?b", b"X-Mine: 1\r\n", b"hi", answer)
        await answer.content()
        host = site.url.removeprefix("http://")
    assert bytes(seen) == f"POST /a?b HTTP/1.1\r\nHost: {host}\r\nX-Mine: 1\r\nContent-Length: 2\r\n\r\nhi".encode()


async def test_a_password_in_the_url_is_not_sent_as_host() -> None:
    assert HttpOrigin("http://user:secret@127.0.0.1:81/x").authority == "127.0.0.1:81"


async def test_a_chunked_body_is_put_together_however_it_arrives() -> None:
    stream = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n1\r\n \r\nA\r\nbig world!\r\n0\r\n\r\n"
    )

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for size in (1, 7, len(stream)):
            await read_request(reader)
            for start in range(0, len(stream), size):
                writer.write(stream[start : start + size])
                await writer.drain()

    async with serving(drip) as site, origin(site) as client:
        for _ in range(3):
            assert await (await ask(client)).content() == b"hello big world!"
        assert site.connections == 1


async def test_a_body_that_ends_with_the_connection_is_complete() -> None:
    ended = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n{}"
    async with serving(saying(ended, then_close=True)) as site, origin(site) as client:
        for _ in range(2):
            assert await (await ask(client)).content() == b"{}"
    old = b"HTTP/1.0 200 OK\r\n\r\nold"
    async with serving(saying(old, then_close=True)) as site, origin(site) as client:
        assert await (await ask(client)).content() == b"old"


async def test_interim_answers_are_skipped() -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n"
    async with serving(saying(interim + page(b"real"), interim + page(b"more"))) as site, origin(site) as client:
        for expected in (b"real", b"more"):
            answer = await ask(client)
            assert (answer.status, await answer.content()) == (200, expected)
            assert "link" not in answer.headers
        assert site.connections == 1


async def test_answers_without_body_are_complete() -> None:
    empty = b"HTTP/1.1 204 No Content\r\n\r\n"
    async with serving(saying(empty, page(b"", "202 Accepted"), empty)) as site, origin(site) as client:
        assert [(await ask(client)).status for _ in range(3)] == [204, 202, 204]
        assert site.connections == 1


async def test_header_names_are_lower_case() -> None:
    async with serving(saying(page(b"", "200 OK", "Mcp-Session-Id: AbC", "X: \xe9"))) as site, origin(site) as client:
        assert (await ask(client)).headers["mcp-session-id"] == "AbC"


async def test_a_unix_socket_is_an_origin_too(tmp_path: Path) -> None:
    async with serving(echo, tmp_path / "socket") as site, origin(site) as client:
        assert await (await ask(client, "/over/unix", b"x")).content() == b"/over/unix x"


async def test_many_requests_at_once_each_get_their_own_answer_within_the_connection_limit() -> None:
    async def shuffled(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            target, _ = await read_request(reader)
            for _ in range(hash(target) % 7):
                await asyncio.sleep(0)
            writer.write(page(target.encode()))

    async with serving(shuffled) as site, origin(site, max_connections=5) as client:
        answers: dict[int, bytes] = {}

        async def one(number: int) -> None:
            answers[number] = await (await ask(client, f"/{number}")).content()

        async with anyio.create_task_group() as group:
            for number in range(500):
                group.start_soon(one, number)
        assert answers == {number: b"/%d" % number for number in range(500)}
        assert site.most_open <= 5


# -- failures ------------------------------------------------------------------------------------


async def test_a_refused_connection_says_that_nothing_was_sent() -> None:
    async with serving(echo) as site:
        url = site.url
    site.url = url
    async with origin(site) as client:
        refused = await failure(client)
        assert not refused.sent
        assert "cannot connect to 127.0.0.1" in str(refused)


async def test_a_missing_unix_socket_says_that_nothing_was_sent(tmp_path: Path) -> None:
    client = HttpOrigin(f"unix://{tmp_path}/none")
    assert not (await failure(client)).sent
    await client.aclose()


@pytest.mark.parametrize(
    "cut",
    [
        b"",
        b"HTTP/1.1 200",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
        b"HTTP/1.1 100 Continue\r\n\r\n",
    ],
)
async def test_an_answer_that_breaks_off_is_a_failure_after_sending(cut: bytes) -> None:
    async with serving(saying(cut, then_close=True)) as site, origin(site) as client:
        broken = await failure(client)
        assert broken.sent
        assert "closed the connection" in str(broken)


@pytest.mark.parametrize(
    "garbage",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 2x0 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nBad Header: 1\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\nraw bytes",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1_000_000,
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000,
    ],
    ids=range(10),
)
async def test_an_answer_that_is_not_http_is_a_failure_and_the_next_request_works(garbage: bytes) -> None:
    turns = iter([saying(garbage), echo])

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await next(turns)(reader, writer)

    async with serving(handle) as site, origin(site) as client:
        assert (await failure(client)).sent
        assert await (await ask(client, "/next")).content() == b"/next "


async def test_a_connection_that_the_server_closed_while_idle_is_not_used_again() -> None:
    async with serving(saying(page(b"once"), then_close=True)) as site, origin(site) as client:
        for number in range(1, 4):
            site.closed.clear()
            assert await (await ask(client)).content() == b"once"
            with anyio.fail_after(DEADLINE_S):
                await site.closed.wait()
            assert site.connections == number
            await turns()


async def test_an_answer_nobody_asked_for_never_reaches_another_request() -> None:
    async def twice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            target, _ = await read_request(reader)
            writer.write(page(target.encode()) + page(b"poison"))

    async with serving(twice) as site, origin(site, max_connections=3) as client:
        for _ in range(10):
            answers: dict[int, bytes] = {}

            async def one(number: int, answers: dict[int, bytes]) -> None:
                answers[number] = await (await ask(client, f"/{number}")).content()

            async with anyio.create_task_group() as group:
                for number in range(3):
                    group.start_soon(one, number, answers)
            assert answers == {number: b"/%d" % number for number in range(3)}


async def test_words_on_an_idle_connection_end_it() -> None:
    speak = asyncio.Event()

    async def talkative(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(page(b"asked"))
        await speak.wait()
        writer.write(page(b"unasked"))
        await reader.read()

    async with serving(talkative) as site, origin(site) as client:
        assert await (await ask(client)).content() == b"asked"
        speak.set()
        with anyio.fail_after(DEADLINE_S):
            await site.closed.wait()
        assert await (await ask(client)).content() == b"asked"
        assert site.connections == 2


# -- aborting, waiting, closing ------------------------------------------------------------------


class Recorder:
    """A sink that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.begun = asyncio.Event()
        self.ended = asyncio.Event()

    def head(self, status: int, headers: dict[str, str]) -> None:
        self.told.append(f"head {status}")

    def body(self, data: bytes) -> None:
        self.told.append(f"body {data.decode()}")
        self.begun.set()

    def done(self) -> None:
        self.told.append("done")
        self.ended.set()

    def failed(self, failure: HttpFailure) -> None:
        self.told.append(f"failed {failure.sent}")
        self.ended.set()


async def test_an_aborted_request_closes_its_connection_and_is_told_nothing_more() -> None:
    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        target, _ = await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n" + (b"half" if target == "/half" else b"x" * 10))
        await reader.read()

    async with serving(half) as site, origin(site) as client:
        sink = Recorder()
        exchange = client.request("GET", "/half", b"", b"", sink)
        with anyio.fail_after(DEADLINE_S):
            await sink.begun.wait()
            exchange.abort()
            exchange.abort()
            await site.closed.wait()
        assert await (await ask(client, "/whole")).content() == b"x" * 10
        assert site.connections == 2
        assert sink.told == ["head 200", "body half"]


async def test_a_request_aborted_before_it_was_sent_is_never_sent() -> None:
    asked = []

    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            target, _ = await read_request(reader)
            asked.append(target)
            writer.write(page(b""))

    async with serving(count) as site, origin(site, max_connections=1) as client:
        sinks = [Recorder() for _ in range(4)]
        exchanges = [client.request("GET", f"/{number}", b"", b"", sink) for number, sink in enumerate(sinks)]
        exchanges[0].abort()  # on its way to a connection
        exchanges[2].abort()  # in the queue
        await ask(client, "/last")
        assert asked == ["/1", "/3", "/last"]
        assert [sink.told for sink in sinks] == [[], ["head 200", "done"], [], ["head 200", "done"]]


async def test_a_full_queue_refuses_at_once_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "MAX_WAITING", 3)
    go_on = asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            await go_on.wait()
            writer.write(page(b""))

    async with serving(slow) as site, origin(site, max_connections=1) as client:
        sinks = [Recorder() for _ in range(6)]
        for sink in sinks:
            client.request("GET", "/", b"", b"", sink)
        assert [sink.told for sink in sinks] == [[], [], [], [], ["failed False"], ["failed False"]]
        go_on.set()
        with anyio.fail_after(DEADLINE_S):
            for sink in sinks:
                await sink.ended.wait()
        assert [sink.told for sink in sinks[:4]] == [["head 200", "done"]] * 4


async def test_requests_in_the_queue_are_told_when_no_connection_can_be_made() -> None:
    async with serving(echo) as site:
        pass
    async with origin(site, max_connections=1) as client:
        sinks = [Recorder() for _ in range(5)]
        for sink in sinks:
            client.request("GET", "/", b"", b"", sink)
        with anyio.fail_after(DEADLINE_S):
            for sink in sinks:
                await sink.ended.wait()
        assert all(sink.told == ["failed False"] for sink in sinks)


async def test_requests_in_the_queue_go_on_when_a_connection_breaks() -> None:
    async with serving(saying(page(b"one"), then_close=True)) as site, origin(site, max_connections=1) as client:
        sinks = [Recorder() for _ in range(5)]
        for sink in sinks:
            client.request("GET", "/", b"", b"", sink)
        with anyio.fail_after(DEADLINE_S):
            for sink in sinks:
                await sink.ended.wait()
        assert site.most_open == 1
        # A connection that ends between two requests costs at most the one that met it.
        assert sum(sink.told[-1] == "done" for sink in sinks) >= 3


async def test_closing_tells_every_request_that_is_open() -> None:
    arrived = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        arrived.set()
        await reader.read()

    async with serving(silent) as site:
        client = HttpOrigin(site.url, max_connections=1)
        sinks = [Recorder() for _ in range(3)]
        for sink in sinks:
            client.request("GET", "/", b"", b"", sink)
        with anyio.fail_after(DEADLINE_S):
            await arrived.wait()
            await client.aclose()
            await client.aclose()
            for sink in sinks:
                await sink.ended.wait()
        assert [sink.told for sink in sinks] == [["failed True"], ["failed False"], ["failed False"]]
        client = HttpOrigin(site.url)
        connecting, late = Recorder(), Recorder()
        client.request("GET", "/", b"", b"", connecting)
        with anyio.fail_after(DEADLINE_S):
            await client.aclose()
            client.request("GET", "/", b"", b"", late)
            await connecting.ended.wait()
            await late.ended.wait()
        assert (connecting.told, late.told) == (["failed False"], ["failed False"])


async def test_an_answer_over_the_limit_is_a_failure() -> None:
    async with serving(saying(page(b"x" * 1001))) as site, origin(site) as client:
        answer = Answer(limit=1000)
        client.request("GET", "/", b"", b"", answer)
        with pytest.raises(HttpFailure, match="too large"):
            await answer.content()
