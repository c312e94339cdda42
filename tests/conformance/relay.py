"""A relay that passes bytes on unchanged and keeps the HTTP exchanges it saw: stands before or behind a gateway.

Knows HTTP/1.1 and nothing of MCP. It runs in a thread with an event loop of its own.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Self
from urllib.parse import urlsplit

import httptools

CHUNK_BYTES: Final = 64 * 1024
START_S: Final = 30


@dataclass
class Exchange:
    """One request and what was answered so far; header names are in lower case."""

    at: float
    """Unix time of the request's end of headers."""
    method: str = ""
    asked: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    status: int = 0
    answered: dict[str, str] = field(default_factory=dict)
    answer: bytes = b""


class Relay:
    """Listens on a free loopback port for the length of the context; `url` is the target's with that port."""

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        assert parts.hostname
        assert parts.port
        self._target = parts
        self._address = (parts.hostname, parts.port)
        self._connections: set[asyncio.Task[None]] = set()
        self._ends: set[asyncio.WriteTransport] = set()
        """Of all connections, past ones too: closing one takes as long as its last bytes do."""
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="relay", daemon=True)
        self.exchanges: list[Exchange] = []
        """In the order in which they began; to be read after the context."""
        self.unread: list[str] = []
        """Why something that passed could not be understood as HTTP."""

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(START_S), "the relay did not start"
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    @property
    def url(self) -> str:
        return self._target._replace(netloc=f"{self._target.hostname}:{self._port}").geturl()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        self._port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        for listening in server.sockets:
            self._loop.remove_reader(listening.fileno())
        await _turns()  # what was accepted just now begins, and is known; a closed server would lose it
        server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        for end in self._ends:
            end.abort()
        await _turns()  # each is told and closes its socket

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        self._ends.add(writer.transport)
        task.add_done_callback(self._connections.discard)
        with suppress(OSError, asyncio.CancelledError):  # nobody waits for this task; it is cancelled at the end only
            await self._carry(reader, writer)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Until either side ends: a client that closes its connection withdraws its request, and that must arrive."""
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._address)
        except OSError:
            writer.close()
            return
        self._ends.add(far_writer.transport)
        watched = _Watched(self)
        ways = [
            asyncio.ensure_future(_pump(reader, far_writer, watched.asked)),
            asyncio.ensure_future(_pump(far_reader, writer, watched.answered)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for end in (writer, far_writer):
                end.close()


async def _turns() -> None:
    """Let the loop do what follows from what was done; each step of asyncio's takes a turn of its own."""
    for _ in range(10):
        await asyncio.sleep(0)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, see: Callable[[bytes], None]) -> None:
    while data := await reader.read(CHUNK_BYTES):
        see(data)
        writer.write(data)
        await writer.drain()


class _Watched:
    """What passes on one connection, taken apart; one exchange after the other (nobody here pipelines)."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._unanswered: deque[Exchange] = deque()
        self._request: httptools.HttpRequestParser | None = httptools.HttpRequestParser(_Asked(self))
        self._response: httptools.HttpResponseParser | None = httptools.HttpResponseParser(_Answered(self))

    def asked(self, data: bytes) -> None:
        if self._request is not None:
            try:
                self._request.feed_data(data)
            except httptools.HttpParserError as exc:
                self._relay.unread.append(f"a request: {exc}")
                self._request = None

    def answered(self, data: bytes) -> None:
        if self._response is not None:
            try:
                self._response.feed_data(data)
            except httptools.HttpParserError as exc:
                self._relay.unread.append(f"an answer: {exc}")
                self._response = None

    def began(self) -> Exchange:
        exchange = Exchange(time.time())
        self._relay.exchanges.append(exchange)
        self._unanswered.append(exchange)
        return exchange

    def current(self) -> Exchange:
        return self._unanswered[0]

    def ended(self) -> None:
        self._unanswered.popleft()

    def request_method(self) -> str:
        assert self._request is not None
        return str(self._request.get_method().decode())

    def response_status(self) -> int:
        assert self._response is not None
        return int(self._response.get_status_code())


class _Asked:
    """httptools' callbacks for requests."""

    def __init__(self, watched: _Watched) -> None:
        self._watched = watched
        self._headers: dict[str, str] = {}
        self._exchange: Exchange | None = None

    def on_message_begin(self) -> None:
        self._headers = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1").strip()

    def on_headers_complete(self) -> None:
        self._exchange = self._watched.began()
        self._exchange.method = self._watched.request_method()
        self._exchange.asked = self._headers

    def on_body(self, data: bytes) -> None:
        assert self._exchange is not None
        self._exchange.body += data


class _Answered:
    """httptools' callbacks for answers; interim ones are passed over."""

    def __init__(self, watched: _Watched) -> None:
        self._watched = watched
        self._headers: dict[str, str] = {}

    def on_message_begin(self) -> None:
        self._headers = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1").strip()

    def on_headers_complete(self) -> None:
        exchange = self._watched.current()
        exchange.status = self._watched.response_status()
        exchange.answered = self._headers

    def on_body(self, data: bytes) -> None:
        self._watched.current().answer += data

    def on_message_complete(self) -> None:
        if self._watched.response_status() >= 200:
            self._watched.ended()
