"""uvicorn's HTTP/1.1 protocol with a request cycle of ours: an answer leaves in one write, and costs fewer steps.

Knows bytes on a connection only; what is answered is the application's."""

from __future__ import annotations

import asyncio
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.flow_control import service_unavailable
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

if TYPE_CHECKING:
    from collections.abc import Iterable

JOIN_BYTES: Final = 64 * 1024
"""Heads and bodies up to this size are copied together; larger bodies follow in a write of their own."""
MAX_REMEMBERED_BYTES: Final = 256
_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE: Final = re.compile(rb"[^\x00-\x08\x0a-\x1f\x7f]*")
_BODILESS: Final = (204, 304)


class OneWriteCycle(RequestResponseCycle):
    """One request and its answer. A head waits for the body that follows it, at most until the loop comes round."""

    _head: bytes | None = None

    async def send(self, message: Any) -> None:
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        kind = message["type"]
        if not self.response_started:
            if kind != "http.response.start":
                raise RuntimeError(f"{kind} before http.response.start")
            self.response_started = True
            self.waiting_for_100_continue = False
            self._head = self._written(message["status"], message.get("headers", ()))
            if self.chunked_encoding:
                asyncio.get_running_loop().call_soon(self._release_head)
            return
        if kind != "http.response.body" or self.response_complete:
            raise RuntimeError(f"{kind} after the answer began or ended")
        self._send_body(message.get("body", b""), more=message.get("more_body", False))

    def _written(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
        """The head of the answer as bytes; finds out on the way how its body is delimited."""
        parts = [STATUS_LINE[status]]
        closing = False
        for name, value in [*self.default_headers, *headers]:
            parts.append(header_line(name, value) if len(value) <= MAX_REMEMBERED_BYTES else _line(name, value))
            lower = name.lower()
            if lower == b"content-length" and self.chunked_encoding is None:
                self.expected_content_length = int(value)
                self.chunked_encoding = False
            elif lower == b"transfer-encoding" and value.lower() == b"chunked":
                self.expected_content_length = 0
                self.chunked_encoding = True
            elif lower == b"connection" and b"close" in [token.strip() for token in value.lower().split(b",")]:
                self.keep_alive = False
                closing = True
        if not self.keep_alive and not closing:
            parts.append(b"connection: close\r\n")
        if self.chunked_encoding is None and self.scope["method"] != "HEAD" and status not in _BODILESS:
            self.chunked_encoding = True
            parts.append(b"transfer-encoding: chunked\r\n")
        parts.append(b"\r\n")
        return b"".join(parts)

    def _release_head(self) -> None:
        head, self._head = self._head, None
        if head is not None and not self.disconnected:
            self.transport.write(head)

    def _send_body(self, body: bytes, *, more: bool) -> None:
        if self.scope["method"] == "HEAD":
            self.expected_content_length = 0
            body = b""
        elif self.chunked_encoding:
            body = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            if not more:
                body += b"0\r\n\r\n"
        elif len(body) > self.expected_content_length:
            raise RuntimeError("Response content longer than Content-Length")
        else:
            self.expected_content_length -= len(body)
        head, self._head = self._head, None
        if head is None:
            if body:
                self.transport.write(body)
        elif len(body) <= JOIN_BYTES:
            self.transport.write(head + body)
        else:
            self.transport.write(head)
            self.transport.write(body)
        if more:
            return
        if self.expected_content_length:
            raise RuntimeError("Response content shorter than Content-Length")
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()


def _line(name: bytes, value: bytes) -> bytes:
    """One header line.

    Raises:
        RuntimeError: a byte that would end the line or the name.
    """
    if not _NAME.fullmatch(name):
        raise RuntimeError("Invalid HTTP header name.")
    if not _VALUE.fullmatch(value):
        raise RuntimeError("Invalid HTTP header value.")
    return b"%b: %b\r\n" % (name.lower(), value)


header_line: Final = lru_cache(512)(_line)


@lru_cache(256)
def _short_target(url: bytes) -> tuple[str, bytes, bytes]:
    parsed = httptools.parse_url(url)
    path: bytes = parsed.path
    return unquote(path.decode("ascii")), path, parsed.query or b""


def _target(url: bytes) -> tuple[str, bytes, bytes]:
    """Path, path as sent, and query of a request target."""
    return _short_target(url) if len(url) <= MAX_REMEMBERED_BYTES else _short_target.__wrapped__(url)


class OneWriteProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol over such cycles. A connection has one timer for all its idle times, looked at when
    it fires, in place of one for each."""

    _idle_since: float | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn's own signature
        super().connection_made(transport)
        # An answer leaves at once, not when the event loop comes round.
        transport.set_write_buffer_limits(0)

    def on_headers_complete(self) -> None:
        scope = self.scope
        version = self.parser.get_http_version()
        scope["method"] = self.parser.get_method().decode("ascii")
        if version != "1.1":
            scope["http_version"] = version
        scope["path"], scope["raw_path"], scope["query_string"] = _target(self.url)
        earlier = self.cycle
        self.cycle = OneWriteCycle(
            scope,
            self.transport,
            self.flow,
            self.logger,
            self.access_logger,
            self.access_log,
            self.server_state.default_headers,
            asyncio.Event(),
            self.expect_100_continue,
            version != "1.0" and self.parser.should_keep_alive(),
            self.on_response_complete,
        )
        app = self.app if self._has_room() else service_unavailable
        if earlier is None or earlier.response_complete:
            self._start_asgi_task(self.cycle, app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, app))

    def _has_room(self) -> bool:
        limit = self.limit_concurrency
        return limit is None or (len(self.connections) < limit and len(self.tasks) < limit)

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            return
        self._idle_since = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._look_again(self.timeout_keep_alive)

    def _unset_keepalive_if_required(self) -> None:
        """Called by uvicorn for every piece of a request: the connection is not idle."""
        self._idle_since = None

    def _look_again(self, after_s: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(after_s, self._end_if_idle)

    def _end_if_idle(self) -> None:
        self.timeout_keep_alive_task = None
        if self._idle_since is None:
            return  # the end of the request that is under way sets the timer again
        left_s = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if left_s > 0:
            self._look_again(left_s)
        else:
            self.timeout_keep_alive_handler()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None
