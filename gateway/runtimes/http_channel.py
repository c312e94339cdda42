"""A channel to a server by Streamable HTTP, client side (MCP 2025-11-25, basic/transports): its session and streams.

Knows no runtime; the messages in the streams are the receiver's business."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

from gateway import errors
from gateway.runtimes import address
from gateway.serverlog import ServerLog
from gateway.wire import headers
from gateway.wire.channel import MAX_MESSAGE_BYTES, Receiver, Routing
from gateway.wire.http_client import Exchange, HttpFailure, HttpOrigin
from gateway.wire.revisions import Era
from gateway.wire.sse import Event, EventReader, EventTooLarge

LISTEN_RETRIES: Final = 5
"""Attempts to reopen a listening stream that ends without a word; a server that always ends it wants none."""
LISTEN_PAUSE_S: Final = 1.0
MAX_PAUSE_S: Final = 60.0
LISTEN_OPEN_S: Final = 2.0
RESUME_TRIES: Final = 10
CLOSE_TIMEOUT_S: Final = 2.0
MAX_REMEMBERED: Final = 256
"""Characters of a name whose header is remembered."""


class HttpChannel:
    """One session with a Streamable HTTP server: a POST for each message, a GET for what the server sends unasked."""

    def __init__(
        self,
        url: str,
        fixed: Mapping[str, str],
        receiver: Receiver,
        log: ServerLog,
        origin: HttpOrigin | None = None,
    ) -> None:
        """`origin` is how the URL's host is reached, where that is not by its name. The channel closes it."""
        self.detail: Mapping[str, str] = {"url": address.shown(url)}
        self.receiver = receiver
        self.log = log
        self._origin = origin or HttpOrigin(url)
        self._target = address.target(url)
        self._fixed = address.head(fixed)
        self._era: Era = "legacy"
        self._revision = ""
        self._session = ""
        self._post_head = b""
        self._exchanges: dict[int, Exchange] = {}
        self._listener: asyncio.Task[None] | None = None
        self._listening = asyncio.Event()
        """The server has answered the first GET, whatever it said."""
        self._resuming: set[asyncio.Task[None]] = set()
        self._lost = False
        self._write_head()

    def _write_head(self) -> None:
        lines = "Content-Type: application/json\r\nAccept: application/json, text/event-stream\r\n"
        self._post_head = self._fixed + lines.encode() + self._session_head()

    def _session_head(self) -> bytes:
        head = f"Mcp-Session-Id: {self._session}\r\n" if self._session and self._era == "legacy" else ""
        if self._revision:
            head += f"MCP-Protocol-Version: {self._revision}\r\n"
        return head.encode("latin-1")

    # -- Channel -----------------------------------------------------------------------------

    def send(self, message: bytes, id: int | None = None, routing: Routing | None = None) -> None:
        sink = _PostSink(self, id)
        head = self._post_head if routing is None else self._post_head + _routing_head(routing)
        exchange = sink.exchange = self._origin.request("POST", self._target, head, message, sink)
        if id is not None and sink.open:
            self._exchanges[id] = exchange

    def abort(self, id: int) -> bool:
        exchange = self._exchanges.pop(id, None)
        if exchange is not None:
            exchange.abort()
        # A legacy server does not take the end of a stream for a withdrawal: it is told in words too.
        return self._era == "modern"

    @property
    def is_full(self) -> bool:
        return False

    async def drain(self) -> None:
        """Requests are small and bounded in number; the connection's own buffer is enough."""

    def negotiated(self, era: Era, revision: str) -> None:
        self._era, self._revision = era, revision
        self._write_head()
        if era == "legacy" and revision and self._listener is None:
            self._listener = asyncio.get_running_loop().create_task(self._listen())

    async def settled(self) -> None:
        # A question that belongs to no request would be lost before the listening stream is open.
        if self._listener is not None:
            try:
                async with asyncio.timeout(LISTEN_OPEN_S):
                    await self._listening.wait()
            except TimeoutError:
                self.log.write("gateway", "the server does not answer the request for a listening stream")

    async def close(self) -> None:
        self._lost = True
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.gather(self._listener, return_exceptions=True)
        for task in self._resuming:
            task.cancel()
        await asyncio.gather(*self._resuming, return_exceptions=True)
        for exchange in list(self._exchanges.values()):
            exchange.abort()
        if self._session:
            await self._end_session()
        await self._origin.aclose()

    async def _end_session(self) -> None:
        sink = _ListenSink(self)
        self._origin.request("DELETE", self._target, self._fixed + self._session_head(), b"", sink)
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await sink.ended.wait()
        except TimeoutError:
            self.log.write("gateway", "the server did not confirm the end of the session")

    # -- what sinks report -------------------------------------------------------------------

    def opened(self, headers: Mapping[str, str]) -> None:
        session = headers.get("mcp-session-id", "")
        if session and not self._session and session.isprintable() and session.isascii():
            self._session = session
            self._write_head()

    def finished(self, id: int | None) -> None:
        if id is not None:
            self._exchanges.pop(id, None)

    def session_over(self) -> None:
        if not self._lost:
            self._lost = True
            self._session = ""
            self.receiver.lost("the remote server ended the session")

    def resume(self, id: int, event_id: bytes, pause_s: float) -> None:
        """Fetch the rest of a POST's stream that ended before its answer (MCP 2025-11-25, "Resumability")."""
        task = asyncio.get_running_loop().create_task(self._resume(id, event_id, pause_s))
        self._resuming.add(task)
        task.add_done_callback(self._resuming.discard)

    async def _resume(self, id: int, event_id: bytes, pause_s: float) -> None:
        for _ in range(RESUME_TRIES):
            await asyncio.sleep(pause_s)
            sink = _ListenSink(self, id)
            last = b"Last-Event-ID: %b\r\n" % event_id
            head = self._fixed + b"Accept: text/event-stream\r\n" + last + self._session_head()
            exchange = self._exchanges[id] = self._origin.request("GET", self._target, head, b"", sink)
            try:
                await sink.ended.wait()
            except asyncio.CancelledError:
                exchange.abort()
                raise
            self.finished(id)
            event_id = sink.last_id or event_id
            if not self.receiver.waits_for(id) or sink.status != 200:
                break
        self.receiver.failed(id, errors.UpstreamLost("the server ended the stream without an answer"))

    # -- listening ---------------------------------------------------------------------------

    async def _listen(self) -> None:
        retries = 0
        while retries < LISTEN_RETRIES and not self._lost:
            sink = _ListenSink(self, opened=self._listening)
            head = self._fixed + b"Accept: text/event-stream\r\n" + self._session_head()
            exchange = self._origin.request("GET", self._target, head, b"", sink)
            try:
                await sink.ended.wait()
            except asyncio.CancelledError:
                exchange.abort()
                raise
            if sink.status != 200:
                return
            retries = 0 if sink.heard else retries + 1
            await asyncio.sleep(max(sink.retry_s, LISTEN_PAUSE_S))


def _pause_s(event: Event, before: float) -> float:
    """How long the server wants us to wait before we come back."""
    return before if event.retry_ms is None else min(event.retry_ms / 1000, MAX_PAUSE_S)


def _routing_head(routing: Routing) -> bytes:
    short = routing.name is None or len(routing.name) <= MAX_REMEMBERED
    head = _named(routing.method, routing.name) if short else _named.__wrapped__(routing.method, routing.name)
    if not routing.params:
        return head
    return head + "".join(f"{name}: {value}\r\n" for name, value in routing.params.items()).encode("ascii")


@lru_cache(1024)
def _named(method: str, name: str | None) -> bytes:
    lines = f"Mcp-Method: {method}\r\n"
    if name is not None:
        lines += f"Mcp-Name: {headers.encode(name)}\r\n"
    return lines.encode("ascii")


class _PostSink:
    """Reads the answer to one POST: JSON, an event stream, or an empty acknowledgement."""

    def __init__(self, channel: HttpChannel, id: int | None) -> None:
        self.open = True
        self.exchange: Exchange | None = None
        self._channel = channel
        self._id = id
        self._status = 0
        self._challenge = ""
        self._events: EventReader | None = None
        self._last_id: bytes | None = None
        self._retry_s = LISTEN_PAUSE_S
        self._parts: list[bytes] = []
        self._size = 0

    def head(self, status: int, headers: dict[str, str]) -> None:
        self._status = status
        if status in (401, 403):
            self._challenge = headers.get("www-authenticate", "")
        if status == 200:
            self._channel.opened(headers)
            if headers.get("content-type", "").startswith("text/event-stream"):
                self._events = EventReader()

    def body(self, data: bytes) -> None:
        if self._events is None:
            self._size += len(data)
            if self._size > MAX_MESSAGE_BYTES:
                self._refuse(errors.UpstreamInvalid("the server's answer is over the size limit"))
            else:
                self._parts.append(data)
            return
        try:
            for event in self._events.feed(data):
                self._last_id = event.id or self._last_id
                self._retry_s = _pause_s(event, self._retry_s)
                if event.data:
                    self._channel.receiver.received(event.data, self._id)
        except EventTooLarge:
            self._refuse(errors.UpstreamInvalid("the server sent an event over the size limit"))

    def _refuse(self, error: errors.UpstreamError) -> None:
        """Read no more of this answer."""
        self.open = False
        self._channel.finished(self._id)
        self._end(error)
        if self.exchange is not None:
            self.exchange.abort()

    def done(self) -> None:
        self.open = False
        self._channel.finished(self._id)
        if self._events is not None:
            if self._id is not None and self._last_id is not None and self._channel.receiver.waits_for(self._id):
                self._channel.resume(self._id, self._last_id, self._retry_s)
            else:
                self._end(errors.UpstreamLost("the server ended the stream without an answer"))
        elif self._status == 200:
            self._channel.receiver.received(b"".join(self._parts).strip(), self._id)
            self._end(errors.UpstreamInvalid("the server answered with another message than the answer"))
        elif self._status == 404 and self._channel._session:  # same module
            self._end(errors.UpstreamUnavailable("the remote session had expired"))
            self._channel.session_over()
        elif self._status != 202 or self._id is not None:
            if self._status >= 400 and self._parts and self._parts[0][:1] == b"{":
                # Modern servers send errors with a 4xx status; if this is one, it is the answer.
                self._channel.receiver.received(b"".join(self._parts), self._id)
            self._end(self._refusal())

    def _refusal(self) -> errors.UpstreamError:
        body = b"".join(self._parts)
        if self._channel.log.hides is not None:  # before it is cut: half a secret would not be found
            body = self._channel.log.hides.clean(body)
        if self._status in (401, 403):
            said = f"the remote server wants authorization (HTTP {self._status})"
            return errors.TokenRefused(said, self._challenge) if self._challenge else errors.UpstreamUnavailable(said)
        text = body[:300].decode("utf-8", "replace")
        return errors.UpstreamInvalid(f"the remote server answered HTTP {self._status}: {text}")

    def failed(self, failure: HttpFailure) -> None:
        self.open = False
        self._channel.finished(self._id)
        kind = errors.UpstreamLost if failure.sent else errors.UpstreamUnavailable
        self._end(kind(str(failure)))

    def _end(self, error: errors.UpstreamError) -> None:
        """Tell the receiver, which ignores it if the answer has already come."""
        if self._id is not None:
            self._channel.receiver.failed(self._id, error)


class _ListenSink:
    """Reads the stream of a GET, or the bare answer of a DELETE. `id` is the request whose stream is resumed."""

    def __init__(self, channel: HttpChannel, id: int | None = None, opened: asyncio.Event | None = None) -> None:
        self.last_id: bytes | None = None
        self._id = id
        self._opened = opened or asyncio.Event()
        self.status = 0
        self.heard = False
        self.retry_s = LISTEN_PAUSE_S
        self.ended = asyncio.Event()
        self._channel = channel
        self._events = EventReader()

    def head(self, status: int, headers: dict[str, str]) -> None:
        self.status = status
        self._opened.set()

    def body(self, data: bytes) -> None:
        if self.status != 200:
            return
        try:
            for event in self._events.feed(data):
                self.last_id = event.id or self.last_id
                self.retry_s = _pause_s(event, self.retry_s)
                if event.data:
                    self.heard = True
                    self._channel.receiver.received(event.data, self._id)
        except EventTooLarge:
            self.status = 0

    def done(self) -> None:
        self.ended.set()

    def failed(self, failure: HttpFailure) -> None:
        self._opened.set()
        self.ended.set()
