"""Answers as they leave: real connections to a real listener, with small applications behind it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import pytest
import uvicorn

from gateway.onewrite import JOIN_BYTES, OneWriteProtocol
from tests.servers import DEADLINE_S

pytestmark = pytest.mark.anyio

App = Callable[[Any, Any, Any], Awaitable[None]]
GET = b"GET /%b HTTP/1.1\r\nHost: localhost\r\n\r\n"


class CountedTransport:
    """A transport that counts what is written to it."""

    def __init__(self, transport: asyncio.Transport, writes: list[bytes]) -> None:
        self._transport = transport
        self._writes = writes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        self._writes.append(data)
        self._transport.write(data)


@asynccontextmanager
async def listening(
    app: App, *, keep_alive_s: int = int(DEADLINE_S), limit: int | None = None
) -> AsyncIterator[tuple[int, list[bytes]]]:
    """Serve an application; its port, and what was written so far."""
    writes: list[bytes] = []

    class Counted(OneWriteProtocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn's own
            super().connection_made(CountedTransport(transport, writes))  # type: ignore[arg-type]

    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app,
        http=Counted,
        ws="none",
        lifespan="off",
        log_config=None,
        server_header=False,
        date_header=False,
        limit_concurrency=limit,
        timeout_keep_alive=keep_alive_s,
    )
    server = uvicorn.Server(config)
    server.capture_signals = nullcontext  # type: ignore[assignment,method-assign]
    task = asyncio.create_task(server.serve([listener]))
    try:
        yield listener.getsockname()[1], writes
    finally:
        server.should_exit = True
        await task


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    async with asyncio.timeout(DEADLINE_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            yield reader, writer
        finally:
            writer.close()


def answering(body: bytes, *headers: tuple[bytes, bytes], status: int = 200) -> App:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status, "headers": list(headers)})
        await send({"type": "http.response.body", "body": body})

    return app


def sized(body: bytes) -> tuple[bytes, bytes]:
    return (b"Content-Length", b"%d" % len(body))


async def test_an_answer_of_known_length_leaves_in_one_write_and_the_connection_stays() -> None:
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nx-own: 1\r\n\r\nhello"
    app = answering(b"hello", sized(b"hello"), (b"X-Own", b"1"))
    async with listening(app) as (port, writes), connected(port) as (reader, writer):
        for _ in range(2):
            writer.write(GET % b"")
            assert await reader.readexactly(len(answer)) == answer
    assert writes == [answer, answer]


async def test_a_large_body_is_not_copied_behind_its_head() -> None:
    body = b"x" * (JOIN_BYTES + 1)
    async with listening(answering(body, sized(body))) as (port, writes), connected(port) as (reader, writer):
        writer.write(GET % b"")
        head = await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(len(body)) == body
    assert writes == [head, body]


async def test_a_stream_shows_its_head_before_there_is_a_body_and_is_chunked() -> None:
    go_on = asyncio.Event()

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
        await go_on.wait()
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": True})
        await send({"type": "http.response.body", "body": b"three"})

    async with listening(app) as (port, _), connected(port) as (reader, writer):
        writer.write(GET % b"")
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.endswith(b"content-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n")
        go_on.set()
        assert await reader.readuntil(b"\r\n0\r\n\r\n") == b"3\r\none\r\n5\r\nthree\r\n0\r\n\r\n"


async def test_a_stream_that_begins_at_once_leaves_with_its_head() -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async with listening(app) as (port, writes), connected(port) as (reader, writer):
        writer.write(GET % b"")
        await reader.readuntil(b"0\r\n\r\n")
    assert writes == [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n", b"0\r\n\r\n"]


async def test_answers_to_head_and_without_content_have_no_body() -> None:
    async with listening(answering(b"hello", sized(b"hello"))) as (port, _), connected(port) as (reader, writer):
        writer.write(b"HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n" + GET % b"")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"
        assert await reader.readuntil(b"hello") == b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
    async with listening(answering(b"", status=204)) as (port, _), connected(port) as (reader, writer):
        writer.write(GET % b"")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 204 No Content\r\n\r\n"


@pytest.mark.parametrize(
    "header", [(b"x-own", b"1\r\nx-other: 2"), (b"x-own\r\nx-other", b"1"), (b"x own", b"1"), (b"", b"1")]
)
async def test_no_header_brings_another_line(header: tuple[bytes, bytes], caplog: pytest.LogCaptureFixture) -> None:
    async with listening(answering(b"", header)) as (port, writes), connected(port) as (reader, writer):
        writer.write(GET % b"")
        assert await reader.read() == b""
    assert writes == []
    assert "Invalid HTTP header" in caplog.text


@pytest.mark.parametrize("said", [b"4", b"6"])
async def test_a_body_of_another_length_than_said_ends_the_connection(
    said: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        listening(answering(b"hello", (b"content-length", said))) as (port, _),
        connected(port) as (reader, writer),
    ):
        writer.write(GET % b"")
        assert await reader.read() in (b"", b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nhello")
    assert "than Content-Length" in caplog.text


async def test_requests_sent_at_once_are_answered_one_after_the_other() -> None:
    async def app(scope: Any, _receive: Any, send: Any) -> None:
        body = scope["path"].encode() + b"?" + scope["query_string"]
        await send({"type": "http.response.start", "status": 200, "headers": [sized(body)]})
        await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": body})

    async with listening(app) as (port, _), connected(port) as (reader, writer):
        writer.write(GET % b"a%20b?x=1" + GET % b"second" + GET % (b"long" * 100))
        for expected in (b"/a b?x=1", b"/second?", b"/%b?" % (b"long" * 100)):
            await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(len(expected)) == expected


async def test_a_client_that_wants_no_other_answer_gets_its_connection_closed() -> None:
    async with listening(answering(b"hello", sized(b"hello"))) as (port, _), connected(port) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).endswith(b"connection: close\r\n\r\nhello")


async def test_a_connection_over_the_limit_is_told_so_and_closed() -> None:
    async with listening(answering(b"hello", sized(b"hello")), limit=2) as (port, _), connected(port) as (first, ask):
        ask.write(GET % b"")
        await first.readuntil(b"hello")
        async with connected(port) as (second, writer):
            writer.write(GET % b"")
            assert (await second.read()).startswith(b"HTTP/1.1 503 ")


async def test_an_idle_connection_is_closed_and_one_in_use_is_not() -> None:
    go_on = asyncio.Event()

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        if scope["path"] == "/slow":
            await go_on.wait()
        await answering(b"hello", sized(b"hello"))(scope, _receive, send)

    async with listening(app, keep_alive_s=3) as (port, _), connected(port) as (busy, ask), connected(port) as other:
        idle, ask_idle = other
        for reader, writer in ((busy, ask), (idle, ask_idle)):
            writer.write(GET % b"")
            await reader.readuntil(b"hello")
        ask.write(GET % b"slow")
        assert await idle.read() == b""
        go_on.set()
        assert (await busy.readuntil(b"hello")).startswith(b"HTTP/1.1 200 OK")
        assert await busy.read() == b""
