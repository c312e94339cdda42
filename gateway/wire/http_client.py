"""A small HTTP/1.1 client whose answers arrive by callback, for the hot path to remote servers.

Knows connections, not MCP: no redirects, no cookies, no retries. A warm request costs one write and one read, with
no task and no lock; that is why it exists (measured in benchmarks/relay.py)."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol, cast
from urllib.parse import urlsplit

import httptools

CONNECT_TIMEOUT_S: Final = 10.0
MAX_CONNECTIONS: Final = 256
MAX_WAITING: Final = 1024
MAX_HEAD_BYTES: Final = 64 * 1024
"""Status line and headers of one answer."""
MAX_IDLE_S: Final = 4.0
"""Servers commonly close idle connections after 5 s; ours are dropped before, so that no request meets a dying one."""
CLOSED: Final = "this client was closed"
_COMMON: Final = {
    spelled.encode(): name
    for name in ("content-length", "content-type", "date", "server", "transfer-encoding")
    for spelled in (name, name.title())
}
"""Header names in most answers, as they are spelled there."""


class HttpFailure(Exception):
    """The exchange did not complete. `sent` says whether the server may have seen the request."""

    def __init__(self, reason: str, *, sent: bool) -> None:
        super().__init__(reason)
        self.sent = sent


class Sink(Protocol):
    """Receives one answer. Called on the event loop; must not block."""

    def head(self, status: int, headers: dict[str, str]) -> None:
        """Status and headers, names in lower case."""

    def body(self, data: bytes) -> None: ...

    def done(self) -> None:
        """The answer is complete; nothing follows."""

    def failed(self, failure: HttpFailure) -> None:
        """The answer will not be completed; nothing follows."""


class Exchange:
    """A handle on one request: `abort` closes its connection and silences its sink."""

    __slots__ = ("connection", "sink")

    def __init__(self, sink: Sink) -> None:
        self.sink: Sink | None = sink
        self.connection: _Connection | None = None

    def fail(self, failure: HttpFailure) -> None:
        sink, self.sink = self.sink, None
        if sink is not None:
            sink.failed(failure)

    def abort(self) -> None:
        self.sink = None
        if self.connection is not None:
            self.connection.close()


class _Connection(asyncio.Protocol):
    """One connection, one exchange at a time. The names with `on_` are httptools' callbacks."""

    def __init__(self, origin: HttpOrigin) -> None:
        self.idle_since = 0.0
        self._origin = origin
        self._exchange: Exchange | None = None
        self._transport: asyncio.Transport | None = None
        self._headers: dict[str, str] = {}
        self._parser = httptools.HttpResponseParser(self)
        self._head_bytes = 0
        self._in_body = False
        self._ends_with_connection = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        # A request leaves at once, not when the event loop comes round: the server works while we tidy up.
        self._transport.set_write_buffer_limits(0)

    def carry(self, exchange: Exchange, request: bytes) -> None:
        self._exchange = exchange
        self._head_bytes = 0
        self._in_body = self._ends_with_connection = False
        exchange.connection = self
        assert self._transport is not None  # noqa: S101  # set before the pool ever sees the connection
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        if self._exchange is None:
            self.close()  # an answer to nothing; the next request must not meet it
            return
        if not self._in_body:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as exc:
            self._fail(f"the server's answer is not HTTP/1.1: {exc}")
            self.close()
        if not self._in_body and self._head_bytes > MAX_HEAD_BYTES:
            self._fail(f"the headers of the server's answer are over {MAX_HEAD_BYTES} bytes")
            self.close()

    def on_message_begin(self) -> None:
        self._headers = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[_COMMON.get(name) or name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200:
            self._in_body = True
            # RFC 9112, section 6.3: without a length, and if there may be a body, it ends with the connection.
            self._ends_with_connection = not ({"content-length", "transfer-encoding"} & self._headers.keys())
        if self._exchange is not None and self._exchange.sink is not None:
            self._exchange.sink.head(self._parser.get_status_code(), self._headers)

    def on_body(self, data: bytes) -> None:
        if self._exchange is not None and self._exchange.sink is not None:
            self._exchange.sink.body(data)

    def on_message_complete(self) -> None:
        if 100 <= self._parser.get_status_code() < 200:
            return
        exchange, self._exchange = self._exchange, None
        keep = self._parser.should_keep_alive()
        self._parser = httptools.HttpResponseParser(self)
        self._origin.release(self, keep)
        if exchange is not None:
            exchange.connection = None
            if exchange.sink is not None:
                exchange.sink.done()

    def connection_lost(self, exc: Exception | None) -> None:
        self._origin.forget(self)
        if exc is None and self._ends_with_connection and self._exchange is not None:
            exchange, self._exchange = self._exchange, None
            if exchange.sink is not None:
                exchange.sink.done()
        self._fail("the server closed the connection" if exc is None else f"the connection failed: {exc}")

    def _fail(self, reason: str) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.fail(HttpFailure(reason, sent=True))

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


Dial = Callable[[Callable[[], Any]], Awaitable[tuple[asyncio.BaseTransport, Any]]]
"""Connects a protocol to the server some other way than by the URL; raises OSError."""


class HttpOrigin:
    """Keep-alive connections to one origin: `http://`, `https://`, or `unix:///path` for a socket file."""

    def __init__(
        self,
        url: str,
        *,
        max_connections: int = MAX_CONNECTIONS,
        max_idle_s: float = MAX_IDLE_S,
        dial: Dial | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`tls` is how an `https://` server is known, where not by the system's authorities."""
        parts = urlsplit(url)
        self._dial = dial
        self._max_idle_s = max_idle_s
        self._scheme = parts.scheme
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._path = parts.path
        self._tls = (tls or ssl.create_default_context()) if parts.scheme == "https" else None
        self.authority = parts.netloc.rpartition("@")[2] if parts.scheme != "unix" else "localhost"
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()
        self._connecting = 0
        self._max = max_connections
        self._waiting: deque[tuple[Exchange, bytes]] = deque()
        self._tasks: dict[asyncio.Task[None], Exchange] = {}
        self._closed = False

    def request(self, method: str, target: str, headers: bytes, body: bytes, sink: Sink) -> Exchange:
        """Send a request; `headers` are complete lines ending in CRLF, without Host and Content-Length.

        The sink is always told the end, also when no connection can be made.
        """
        line = f"{method} {target} HTTP/1.1\r\nHost: {self.authority}\r\n".encode()
        request = b"%b%bContent-Length: %d\r\n\r\n%b" % (line, headers, len(body), body)
        exchange = Exchange(sink)
        connection = self._take_idle()
        if connection is not None:
            connection.carry(exchange, request)
        elif self._closed:
            sink.failed(HttpFailure(CLOSED, sent=False))
        elif len(self._open) + self._connecting < self._max:
            self._begin(exchange, request)
        elif len(self._waiting) < MAX_WAITING:
            self._waiting.append((exchange, request))
        else:
            sink.failed(HttpFailure(f"{MAX_WAITING} requests already wait for {self.authority}", sent=False))
        return exchange

    def _begin(self, exchange: Exchange, request: bytes) -> None:
        self._connecting += 1
        task = asyncio.get_running_loop().create_task(self._connect(exchange, request))
        self._tasks[task] = exchange
        task.add_done_callback(self._tasks.pop)

    def _take_idle(self) -> _Connection | None:
        now = asyncio.get_running_loop().time()
        while self._idle:
            connection = self._idle.pop()
            if connection.usable and now - connection.idle_since < self._max_idle_s:
                return connection
            connection.close()
        return None

    async def _connect(self, exchange: Exchange, request: bytes) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                connection: _Connection
                if self._dial is not None:
                    _, connection = await self._dial(lambda: _Connection(self))
                elif self._scheme == "unix":
                    _, connection = await loop.create_unix_connection(lambda: _Connection(self), self._path)
                else:
                    _, connection = await loop.create_connection(
                        lambda: _Connection(self), self._host, self._port, ssl=self._tls
                    )
        except (OSError, TimeoutError) as exc:
            reason = str(exc) or f"no connection within {CONNECT_TIMEOUT_S:g} s"
            exchange.fail(HttpFailure(f"cannot connect to {self.authority}: {reason}", sent=False))
            self._next_waiting()
            return
        finally:
            self._connecting -= 1
        self._open.add(connection)
        if exchange.sink is None or self._closed:
            connection.close()
        else:
            connection.carry(exchange, request)

    def release(self, connection: _Connection, keep: bool) -> None:
        while self._waiting and keep and connection.usable:
            exchange, request = self._waiting.popleft()
            if exchange.sink is not None:
                connection.carry(exchange, request)
                return
        if keep and connection.usable and not self._closed:
            connection.idle_since = asyncio.get_running_loop().time()
            self._idle.append(connection)
        else:
            connection.close()

    def forget(self, connection: _Connection) -> None:
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._next_waiting()

    def _next_waiting(self) -> None:
        """There is room for one connection more."""
        if self._waiting and not self._closed:
            self._begin(*self._waiting.popleft())

    async def aclose(self) -> None:
        self._closed = True
        while self._waiting:
            exchange, _ = self._waiting.popleft()
            exchange.fail(HttpFailure(CLOSED, sent=False))
        connecting = dict(self._tasks)
        for task in connecting:
            task.cancel()
        await asyncio.gather(*connecting, return_exceptions=True)
        for exchange in connecting.values():
            if exchange.connection is None:
                exchange.fail(HttpFailure(CLOSED, sent=False))
        for connection in list(self._open):
            connection.close()


class Answer:
    """A sink that gathers a whole bounded answer, for callers off the hot path."""

    def __init__(self, limit: int = 16 * 1024 * 1024) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self._parts: list[bytes] = []
        self._room = limit
        self._finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def head(self, status: int, headers: dict[str, str]) -> None:
        self.status, self.headers = status, headers

    def body(self, data: bytes) -> None:
        self._room -= len(data)
        if self._room >= 0:
            self._parts.append(data)

    def done(self) -> None:
        if self._room < 0:
            self.failed(HttpFailure("the answer is too large", sent=True))
        elif not self._finished.done():
            self._finished.set_result(None)

    def failed(self, failure: HttpFailure) -> None:
        if not self._finished.done():
            self._finished.set_exception(failure)
            self._finished.exception()  # nobody may be waiting any more; that is not an accident to report

    async def content(self) -> bytes:
        """The whole body.

        Raises:
            HttpFailure: it did not arrive, or is larger than the limit.
        """
        await self._finished
        return b"".join(self._parts)
