"""The load generator: a program that takes orders as JSON lines on stdin and answers each with what it measured.

Knows how callers take turns and what a sample is; not what is compared with what."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol

import msgspec
import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.answers import Era
from benchmarks.http_callers import HttpCallers
from benchmarks.line_callers import AttachedCallers, PipedCallers

SETUP_TIMEOUT_S: Final = 20.0
DRAIN_TIMEOUT_S: Final = 20.0


class Order(msgspec.Struct, omit_defaults=True):
    """One sample to take. Exactly one of `url`, `argv`, `container` and `door` says where the server is."""

    tool: str
    reply_prefix: str
    callers: int = 1
    seconds: float = 1.0
    warm_up_s: float = 0.1
    url: str = ""
    era: Era = "legacy"
    """How HTTP callers speak."""
    argv: tuple[str, ...] = ()
    container: str = ""
    socket: str = ""
    """The Docker Engine's socket file."""
    door: bool = False
    """Call the door of the gateway in this process, if there is one (benchmarks/embedded.py)."""
    gateway_pids: tuple[int, ...] = ()
    server_pids: tuple[int, ...] = ()


class Sample(msgspec.Struct):
    """What one order measured. CPU is milliseconds per call; None where nobody was watched."""

    calls: int
    calls_per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    load_cpu_ms: float
    gateway_cpu_ms: float | None
    server_cpu_ms: float | None


class Callers(Protocol):
    """Some callers of one server. Each has at most one call open, and makes the next from the answer's callback."""

    count: int

    async def open(self) -> None: ...

    def start(self, meter: Meter) -> None:
        """Every caller makes its first call."""

    async def close(self) -> None: ...


class Meter:
    """Collects the latencies of one sample, and tells callers when to stop."""

    def __init__(self, order: Order) -> None:
        loop = asyncio.get_running_loop()
        self.finished: asyncio.Future[Sample] = loop.create_future()
        self._order = order
        self._open = order.callers
        self._latencies_ns: list[int] = []
        self._going = True
        self._sample: Sample | None = None
        loop.call_later(order.warm_up_s, self._begin)

    def _begin(self) -> None:
        self._latencies_ns.clear()
        self._cpu = self._clocks()
        self._began = time.perf_counter()
        asyncio.get_running_loop().call_later(self._order.seconds, self._end)

    def _clocks(self) -> tuple[float, float, float]:
        order = self._order
        return time.process_time(), cpu_s(order.gateway_pids), cpu_s(order.server_pids)

    def _end(self) -> None:
        if not self._latencies_ns:
            # A machine that is busy with something else: go on, as long as `take` allows.
            asyncio.get_running_loop().call_later(self._order.seconds, self._end)
            return
        elapsed_s = time.perf_counter() - self._began
        load, gateway, server = (
            (after - before) * 1000 for before, after in zip(self._cpu, self._clocks(), strict=True)
        )
        latencies = sorted(self._latencies_ns)
        n = len(latencies)
        p50, p95, p99 = (latencies[min(n - 1, int(n * part))] / 1e6 for part in (0.50, 0.95, 0.99))
        self._going = False
        self._sample = Sample(
            n,
            n / elapsed_s,
            p50,
            p95,
            p99,
            load / n,
            gateway / n if self._order.gateway_pids else None,
            server / n if self._order.server_pids else None,
        )

    def goes_on(self, started_ns: int) -> bool:
        """Record one finished call; whether its caller makes another."""
        self._latencies_ns.append(time.perf_counter_ns() - started_ns)
        if self._going:
            return True
        self._open -= 1
        if not self._open and self._sample is not None and not self.finished.done():
            self.finished.set_result(self._sample)
        return False

    def fail(self, error: Exception) -> None:
        self._going = False
        if not self.finished.done():
            self.finished.set_exception(error)


def cpu_s(pids: Sequence[int]) -> float:
    """User and system time of whole processes, to the nanosecond: clock_getcpuclockid(3), which Python lacks, gives
    a process the clock id that follows (kernel, include/linux/posix-timers.h: CPUCLOCK_SCHED is 2)."""
    return sum(time.clock_gettime((~pid << 3) | 2) for pid in pids)


def callers_for(order: Order) -> Callers:
    if order.url:
        return HttpCallers(order.url, order.tool, order.reply_prefix, order.era, order.callers)
    if order.argv:
        return PipedCallers(order.argv, order.tool, order.reply_prefix, order.callers)
    return AttachedCallers(order.socket, order.container, order.tool, order.reply_prefix, order.callers)


async def take(order: Order, callers: Callers) -> Sample:
    """One sample with callers that are open."""
    meter = Meter(order)
    callers.start(meter)
    async with asyncio.timeout(order.warm_up_s + order.seconds + DRAIN_TIMEOUT_S):
        return await meter.finished


async def work(callers_for: Callable[[Order], Callers] = callers_for) -> None:
    """Obey orders until stdin ends. HTTP callers sign on for each sample; a pipe or attach stream stays open."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer)
    streams: dict[tuple[object, ...], Callers] = {}
    decoder = msgspec.json.Decoder(Order)
    while line := await reader.readline():
        order = decoder.decode(line)
        key = order.argv or (order.container, order.door and order.tool)
        callers = streams.get(key) if not order.url else None
        if callers is None:
            callers = callers_for(order)
            async with asyncio.timeout(SETUP_TIMEOUT_S):
                await callers.open()
            if not order.url:
                streams[key] = callers
        if not isinstance(callers, HttpCallers):
            callers.count = order.callers
        if isinstance(callers, PipedCallers):
            order.server_pids = callers.pids
        sample = await take(order, callers)
        if order.url:
            await callers.close()
        sys.stdout.buffer.write(msgspec.json.encode(sample) + b"\n")
        sys.stdout.buffer.flush()
    for callers in streams.values():
        await callers.close()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work())
