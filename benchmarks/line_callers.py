"""Callers over the stdio transport, without a gateway: the floor for processes and containers.

Knows pipes and the Docker Engine's attach stream, each as raw as asyncio has them. All callers share one stream, as
they do behind a gateway."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from benchmarks import answers
from benchmarks.answers import WrongAnswer

if TYPE_CHECKING:
    from benchmarks.load import Meter

FRAME_HEADER_BYTES = 8
STDOUT = 1


class LineCallers:
    """Calls over one stream of lines, told apart by id. Subclasses open the stream."""

    def __init__(self, tool: str, reply_prefix: str, count: int) -> None:
        self.count = count
        """Callers in the next sample."""
        self._tool = tool.encode()
        self._prefix = reply_prefix
        self._write_end: asyncio.WriteTransport | None = None
        self._rest = b""
        self._meter: Meter | None = None
        self._started_ns: dict[int, int] = {}
        self._id = 0
        self._initialized: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def initialize(self, write_end: asyncio.WriteTransport) -> None:
        self._write_end = write_end
        self._write(answers.INITIALIZE)
        await self._initialized
        self._write(answers.INITIALIZED)

    def start(self, meter: Meter) -> None:
        self._meter = meter
        for _ in range(self.count):
            self._call()

    def _call(self) -> None:
        self._id += 1
        message = answers.call(self._tool, self._id)
        self._started_ns[self._id] = time.perf_counter_ns()
        self._write(message)

    def _write(self, message: bytes) -> None:
        if self._write_end is not None:
            self._write_end.write(message + b"\n")

    def feed(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if not self._initialized.done():
                self._initialized.set_result(line)
            elif b'"result":' in line and self._meter is not None:  # a server may also notify
                self._answered(line, self._meter)

    def _answered(self, line: bytes, meter: Meter) -> None:
        try:
            started_ns = self._started_ns.pop(answers.check(line, self._prefix))
        except (WrongAnswer, KeyError) as exc:
            meter.fail(exc)
            return
        if meter.goes_on(started_ns):
            self._call()

    def lost(self, reason: str) -> None:
        lost = WrongAnswer(reason)
        if not self._initialized.done():
            self._initialized.set_exception(lost)
        if self._meter is not None:
            self._meter.fail(lost)


class PipedCallers(LineCallers):
    """Over the pipes of a child process."""

    def __init__(self, argv: Sequence[str], tool: str, reply_prefix: str, count: int) -> None:
        super().__init__(tool, reply_prefix, count)
        self._argv = argv
        self._process: asyncio.SubprocessTransport | None = None

    @property
    def pids(self) -> tuple[int, ...]:
        return (self._process.get_pid(),) if self._process is not None else ()

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        self._process, _ = await loop.subprocess_exec(
            lambda: _Pipes(self), *self._argv, stderr=asyncio.subprocess.DEVNULL
        )
        await self.initialize(cast("asyncio.WriteTransport", self._process.get_pipe_transport(0)))

    async def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.close()


class _Pipes(asyncio.SubprocessProtocol):
    def __init__(self, callers: LineCallers) -> None:
        self._callers = callers

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self._callers.feed(data)

    def process_exited(self) -> None:
        self._callers.lost("the server process ended")


class AttachedCallers(LineCallers):
    """Over the attach stream of a container that runs."""

    def __init__(self, socket: str, container: str, tool: str, reply_prefix: str, count: int) -> None:
        super().__init__(tool, reply_prefix, count)
        self._socket = socket
        self._container = container
        self._transport: asyncio.Transport | None = None

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        transport, frames = await loop.create_unix_connection(lambda: _Frames(self), self._socket)
        self._transport = transport
        transport.write(
            b"POST /containers/%b/attach?stream=1&stdin=1&stdout=1&stderr=1 HTTP/1.1\r\n"
            b"Host: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n\r\n"
            % self._container.encode()
        )
        await frames.upgraded
        await self.initialize(transport)

    async def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class _Frames(asyncio.Protocol):
    """The Engine's answer to the upgrade, then multiplexed frames (Engine API, ContainerAttach)."""

    def __init__(self, callers: LineCallers) -> None:
        self.upgraded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._callers = callers
        self._buffer = b""

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data
        if not self.upgraded.done():
            head, end, buffer = buffer.partition(b"\r\n\r\n")
            if not end:
                self._buffer = head
                return
            if b" 101 " not in head:
                self.upgraded.set_exception(WrongAnswer(repr(head)))
                return
            self.upgraded.set_result(None)
        while len(buffer) >= FRAME_HEADER_BYTES:
            end_of_frame = FRAME_HEADER_BYTES + int.from_bytes(buffer[4:8], "big")
            if len(buffer) < end_of_frame:
                break
            if buffer[0] == STDOUT:
                self._callers.feed(buffer[FRAME_HEADER_BYTES:end_of_frame])
            buffer = buffer[end_of_frame:]
        self._buffer = buffer

    def connection_lost(self, exc: Exception | None) -> None:
        self._callers.lost(f"the attach stream ended: {exc}")
