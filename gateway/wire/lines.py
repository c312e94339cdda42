"""Newline-delimited JSON-RPC over any byte stream: the stdio transport of MCP, client side.

Knows no process and no container; a runtime feeds it bytes and gives it a transport to write to."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Final, Protocol

from gateway.serverlog import ServerLog
from gateway.wire.allowance import Allowance
from gateway.wire.channel import LineSplitter, LineTooLong, Receiver, Routing
from gateway.wire.revisions import Era

MIN_REST_S: Final = 0.001
MAX_LAST_LINES: Final = 1000
"""Looked at when the stream is over, of a server that says more than it may: an answer may be among them."""
MAX_UNREAD_BYTES: Final = 1024 * 1024
"""Answers and notifications kept for a server that does not read its stdin: one that asks without end and never
listens must not fill our memory."""


class WriteEnd(Protocol):
    """The part of an asyncio write transport that is used here."""

    def write(self, data: bytes) -> None: ...

    def is_closing(self) -> bool: ...

    def get_write_buffer_size(self) -> int: ...


class ReadEnd(Protocol):
    """The part of an asyncio read transport that is used here."""

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class LineChannel:
    """Cuts incoming bytes into messages and writes outgoing ones; the runtime owns opening and closing."""

    def __init__(self, receiver: Receiver, log: ServerLog) -> None:
        self.log = log
        self.detail: Mapping[str, str] = {}
        self.ended = asyncio.Event()
        self._receiver = receiver
        self._splitter = LineSplitter()
        self._read_ends: Sequence[ReadEnd] = ()
        self._allowance = Allowance()
        self._unread: deque[bytes] = deque()
        """What was read and not looked at: the server says more than it may."""
        self._lines: Iterator[bytes] | None = None
        """The rest of it, cut into lines; None while nothing waits."""
        self._n_unkept = 0
        """Bytes on stderr that came meanwhile, and were not kept."""
        self._is_refused = False
        """It wrote what cannot be read, and is not listened to any more."""
        self._write_end: WriteEnd | None = None
        self._room = asyncio.Event()
        self._room.set()

    def writes_to(self, write_end: WriteEnd) -> None:
        self._write_end = write_end

    def reads_from(self, *read_ends: ReadEnd) -> None:
        """What is to wait when the server says too much; without any, all of it is read."""
        self._read_ends = read_ends

    def hang_up(self) -> None:
        """End a server that cannot be understood."""

    # -- reading -----------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Bytes from the server's stdout."""
        if self._lines is None:
            line = self._splitter.only_line(data)
            if line is not None:
                if not self._receiver.received(line):
                    self._spend(len(line))
                return
            self._lines = self._cut()
            self._unread.append(data)
            self._read_on()
        elif not self._is_refused:
            self._unread.append(data)

    def complain(self, data: bytes) -> None:
        """Bytes from the server's stderr."""
        if self._lines is not None and self._read_ends:
            self._n_unkept += len(data)
            return
        self.log.stderr(data)
        self._spend(len(data), data.count(b"\n"))

    def _cut(self) -> Iterator[bytes]:
        """The lines of what waits; an empty one stands for any number of blank ones, which are paid for already."""
        while self._unread:
            data = self._unread.popleft()
            n_blank = data.count(b"\n")
            for line in self._splitter.feed(data):
                n_blank -= 1
                yield line
            if n_blank:
                self._allowance.spend(0, n_blank)
                yield b""

    def _spend(self, size_bytes: int, n_lines: int = 1) -> None:
        self._allowance.spend(size_bytes, n_lines)
        if self._lines is None and self._read_ends and self._allowance.wait_s:
            self._lines = self._cut()
            self._rest()

    def _rest(self) -> None:
        """Read nothing for a while: what a server says unasked must not take the time of the others."""
        for read_end in self._read_ends:
            read_end.pause_reading()
        asyncio.get_running_loop().call_later(max(self._allowance.wait_s, MIN_REST_S), self._read_on)

    def _read_on(self) -> None:
        """Look at what waits, as far as the allowance goes."""
        if self._lines is None or self.ended.is_set() or self._is_refused:
            return
        try:
            for line in self._lines:
                if line and self._receiver.received(line):
                    continue
                self._allowance.spend(len(line))
                if self._read_ends and self._allowance.wait_s:
                    self._rest()
                    return
        except LineTooLong:
            self._is_refused = True
            self._unread.clear()
            self.end("it wrote an endless line on stdout")
            self.hang_up()
            return
        self._lines = None
        if self._n_unkept:
            self.log.write("gateway", f"it wrote too much on stderr: {self._n_unkept} bytes are not kept")
            self._n_unkept = 0
        for read_end in self._read_ends:
            read_end.resume_reading()

    def end(self, reason: str) -> None:
        """The stream is over; idempotent."""
        if self.ended.is_set():
            return
        if self._lines is not None and not self._is_refused:
            with suppress(LineTooLong):
                for line in islice(filter(None, self._lines), MAX_LAST_LINES):
                    self._receiver.received(line)
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
