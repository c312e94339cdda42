"""Callers over Streamable HTTP, each with its own connection (and session), with no more HTTP than that takes.

Knows nothing of gateways: the same code, at the same cost, calls a server directly."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

from benchmarks import answers
from benchmarks.answers import Era, WrongAnswer

if TYPE_CHECKING:
    from benchmarks.load import Meter


class HttpCaller(asyncio.Protocol):
    """One connection, one call at a time; in the legacy era one session, too."""

    def __init__(self, authority: str, path: str, tool: str, reply_prefix: str, era: Era) -> None:
        self._era = era
        self._prefix = reply_prefix
        self._tool = tool.encode()
        self._line = f" {path} HTTP/1.1\r\nHost: {authority}\r\n".encode()
        self._head = b"Accept: application/json, text/event-stream\r\nContent-Type: application/json\r\n"
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._waiter: asyncio.Future[tuple[bytes, bytes]] | None = None
        self._meter: Meter | None = None
        self._id = 0
        self._started_ns = 0

    # -- before and after a sample -----------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    async def _ask(self, method: bytes, body: bytes) -> tuple[bytes, bytes]:
        self._waiter = asyncio.get_running_loop().create_future()
        self._send(method, body)
        return await self._waiter

    async def open_session(self) -> None:
        if self._era == "modern":
            revision, tool = answers.MODERN.encode(), self._tool
            self._head += b"MCP-Protocol-Version: %b\r\nMcp-Method: tools/call\r\nMcp-Name: %b\r\n" % (revision, tool)
            return
        head, _ = await self._ask(b"POST", answers.INITIALIZE)
        for line in head.split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name.lower() == b"mcp-session-id":
                self._head += b"Mcp-Session-Id: %b\r\n" % value.strip()
        self._head += b"MCP-Protocol-Version: %b\r\n" % answers.LEGACY.encode()
        await self._ask(b"POST", answers.INITIALIZED)

    async def close_session(self) -> None:
        if self._era == "legacy":
            await self._ask(b"DELETE", b"")
        if self._transport is not None:
            self._transport.close()

    # -- during a sample ---------------------------------------------------------------------

    def start(self, meter: Meter) -> None:
        self._meter = meter
        self._call()

    def _call(self) -> None:
        self._id += 1
        body = answers.call(self._tool, self._id, self._era)
        self._started_ns = time.perf_counter_ns()
        self._send(b"POST", body)

    def _send(self, method: bytes, body: bytes) -> None:
        if self._transport is not None:
            self._transport.write(
                b"%b%b%bContent-Length: %d\r\n\r\n%b" % (method, self._line, self._head, len(body), body)
            )

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data
        end = buffer.find(b"\r\n\r\n")
        body = whole_body(buffer[:end].lower(), buffer[end + 4 :]) if end >= 0 else None
        if body is None:
            self._buffer = buffer
            return
        self._buffer = b""
        if self._meter is not None:
            self._answered(buffer[:end], body, self._meter)
        elif self._waiter is not None:
            waiter, self._waiter = self._waiter, None
            if not 200 <= int(buffer[9:12]) < 300:
                waiter.set_exception(WrongAnswer(repr(buffer[:500])))
            else:
                waiter.set_result((buffer[:end], body))

    def _answered(self, head: bytes, body: bytes, meter: Meter) -> None:
        try:
            if answers.check(message_in(body), self._prefix) != self._id:
                raise WrongAnswer(f"an answer to another call than {self._id}: {body[:300]!r}")
        except WrongAnswer as exc:
            meter.fail(WrongAnswer(f"{exc} after {head[:300]!r}"))
            return
        if meter.goes_on(self._started_ns):
            self._call()
        else:
            self._meter = None

    def connection_lost(self, exc: Exception | None) -> None:
        lost = WrongAnswer(f"the connection was closed: {exc}")
        if self._meter is not None:
            self._meter.fail(lost)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(lost)


def whole_body(head: bytes, rest: bytes) -> bytes | None:
    """The body of a response with this lower-case head, or None while some of it is missing."""
    if b"\r\ntransfer-encoding: chunked" in head:
        parts: list[bytes] = []
        while True:
            size, line_end, rest = rest.partition(b"\r\n")
            if not line_end:
                return None
            length = int(size, 16)
            if len(rest) < length + 2:
                return None
            if not length:
                return b"".join(parts)
            parts.append(rest[:length])
            rest = rest[length + 2 :]
    at = head.find(b"\r\ncontent-length:")
    length = int(head[at + 17 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
    return rest if len(rest) >= length else None


def message_in(body: bytes) -> bytes:
    """The answer in a body: all of it, or the event that carries an id."""
    if body[:1] == b"{":
        return body
    for line in body.splitlines():
        if line.startswith(b"data:") and b'"id":' in line:
            return line[5:]
    raise WrongAnswer(f"no answer in the stream {body[:300]!r}")


class HttpCallers:
    """Several of them."""

    def __init__(self, url: str, tool: str, reply_prefix: str, era: Era, count: int) -> None:
        self._era: Era = era
        self._parts = urlsplit(url)
        self._tool = tool
        self._prefix = reply_prefix
        self.count = count
        self._callers: list[HttpCaller] = []

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        parts = self._parts
        for _ in range(self.count):
            _, caller = await loop.create_connection(
                lambda: HttpCaller(parts.netloc, parts.path, self._tool, self._prefix, self._era),
                parts.hostname or "",
                parts.port or 80,
            )
            await caller.open_session()
            self._callers.append(caller)

    def start(self, meter: Meter) -> None:
        for caller in self._callers:
            caller.start(meter)

    async def close(self) -> None:
        for caller in self._callers:
            await caller.close_session()
