"""Newline-delimited JSON-RPC over any byte stream: the stdio transport of MCP, client side.

Knows no process and no container; a runtime feeds it bytes and gives it a transport to write to."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final, Protocol

from gateway.serverlog import ServerLog
from gateway.wire.channel import LineSplitter, LineTooLong, Receiver, Routing
from gateway.wire.revisions import Era

MAX_UNREAD_BYTES: Final = 1024 * 1024
"""Answers and notifications kept for a server that does not read its stdin: one that asks without end and never
listens must not fill our memory."""


class WriteEnd(Protocol):
    """The part of an asyncio write transport that is used here."""

    def write(self, data: bytes) -> None: ...

    def is_closing(self) -> bool: ...

    def get_write_buffer_size(self) -> int: ...


class LineChannel:
    """Cuts incoming bytes into messages and writes outgoing ones; the runtime owns opening and closing."""

    def __init__(self, receiver: Receiver, log: ServerLog) -> None:
        self.log = log
        self.detail: Mapping[str, str] = {}
        self.ended = asyncio.Event()
        self._receiver = receiver
        self._splitter = LineSplitter()
        self._write_end: WriteEnd | None = None
        self._room = asyncio.Event()
        self._room.set()

    def writes_to(self, write_end: WriteEnd) -> None:
        self._write_end = write_end

    def feed(self, data: bytes) -> None:
        """Bytes from the server's stdout.

        Raises:
            LineTooLong: the runtime must end the server.
        """
        line = self._splitter.only_line(data)
        if line is not None:
            self._receiver.received(line)
            return
        for line in self._splitter.feed(data):
            self._receiver.received(line)

    def end(self, reason: str) -> None:
        """The stream is over; idempotent."""
        if self.ended.is_set():
            return
        self.ended.set()
        self._room.set()
        if rest := self._splitter.rest():
            self.log.stray(rest)
        self.log.write("gateway", f"connection ended: {reason}")
        self._receiver.lost(reason)

    def pause(self) -> None:
        self._room.clear()

    def resume(self) -> None:
        self._room.set()

    def send(self, message: bytes, id: int | None = None, routing: Routing | None = None) -> None:
        if self._write_end is None or self._write_end.is_closing() or self.ended.is_set():
            return
        if id is None and self._write_end.get_write_buffer_size() > MAX_UNREAD_BYTES:
            return  # requests wait for room in `drain`; a server that reads nothing misses nothing else
        self._write_end.write(message + b"\n")

    def abort(self, id: int) -> bool:
        """One stream for all requests: a request is withdrawn by a message."""
        return False

    @property
    def is_full(self) -> bool:
        return not self._room.is_set()

    async def drain(self) -> None:
        await self._room.wait()

    async def settled(self) -> None:
        """One stream carries everything."""

    def negotiated(self, era: Era, revision: str) -> None:
        """The stdio transport does not repeat the revision."""


__all__ = ["LineChannel", "LineTooLong", "WriteEnd"]
