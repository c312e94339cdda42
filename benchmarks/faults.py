"""The fault benchmark: what happens to calls of a healthy server while something happens to another one.

Knows two servers in containers behind one pool, and what can be done to one of them; plain_docker.py knows the same
without a gateway.

    python benchmarks/faults.py [--quick] [FAULT ...]

Writes benchmarks/results/faults.json; docs/benchmarks.md explains the figures."""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import anyio
import docker
import uvloop
from anyio import to_thread
from msgspec import Raw

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.containers import Deaf
from benchmarks.plain_docker import Plain, Step
from catalog import Entry, Limits, find_shipped_catalog, load_catalog
from gateway import errors
from gateway.docker_engine import DockerEngine
from gateway.images import ImageStore
from gateway.listings import ListingStore
from gateway.pool import Bounds, Pool
from gateway.runs import Run
from gateway.runtimes import Runtime
from gateway.runtimes.docker import DockerRuntime
from gateway.serverlog import ServerLog
from gateway.serving import COLLECT_EVERY
from gateway.settings import read_settings
from gateway.wire import envelope
from gateway.wire.channel import Channel, Receiver
from tests.gateway.engines import engine_url, make_tiny_image, tiny_entry
from tests.gateway.test_engine_restart import private_engine

RESULTS: Final = Path(__file__).with_name("results") / "faults.json"
PROGRAM: Final = Path(__file__).with_name("servers") / "faulty.py"
CALLERS: Final = 4
PAUSE_S: Final = 0.004
"""Between two calls of one caller: about 900 calls a second in all, so that neither core is busy without the fault."""
CALL_S: Final = 3.0
HELLO: Final = "hello"
RECOVER_S: Final = 60.0


class Window(NamedTuple):
    """Calls of the healthy server in one stretch of time."""

    calls: int
    p50_ms: float
    p99_ms: float


class Row(NamedTuple):
    """One fault: the windows without it, and while it lasts."""

    fault: str
    without: list[Window]
    during: list[Window]
    plain_without: list[Window]
    """The same without a gateway, where that was measured."""
    plain_during: list[Window]

    def ratio(self, of: Callable[[Window], float]) -> float:
        return median(map(of, self.during)) / median(map(of, self.without))

    def plain_ratio(self, of: Callable[[Window], float]) -> float | None:
        if not self.plain_during:
            return None
        return median(map(of, self.plain_during)) / median(map(of, self.plain_without))


class Watched(DockerRuntime):
    """Remembers when it started which server, so that the same can be done without it."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.starts: list[tuple[str, float]] = []

    async def start(self, entry: Entry, receiver: Receiver, log: ServerLog, owner: str = "") -> Channel:
        self.starts.append((entry.id, time.perf_counter()))
        return await super().start(entry, receiver, log, owner)


@dataclass
class Bench:
    """A pool with a server that is called all the time, `good`, and one for the fault, `bad`."""

    pool: Pool
    engine: docker.APIClient
    runtime: Watched
    kills: list[float] = field(default_factory=list)
    """When the other server's container was killed by us."""

    async def call(self, id: str, tool: str = HELLO, arguments: str = "{}") -> None:
        upstream = await self.pool.connection(id)
        members = {"name": envelope.raw(tool), "arguments": Raw(arguments.encode())}
        await upstream.request("tools/call", members)

    async def container(self) -> str:
        return (await self.pool.connection("bad")).detail["container"]

    async def good(self) -> None:
        await self.call("good")

    @staticmethod
    async def window(call: Callable[[], Awaitable[None]], seconds: float) -> Window:
        """Call the healthy server for so long. Time counts from when a call was due: one that held up its caller's
        others is not counted once only."""
        took: list[float] = []
        until = time.perf_counter() + seconds

        async def caller(offset_s: float) -> None:
            await asyncio.sleep(offset_s)
            while (began := time.perf_counter()) < until:
                await call()
                took.append(1000 * (time.perf_counter() - began))
                await asyncio.sleep(PAUSE_S)

        await asyncio.gather(*(caller(PAUSE_S * number / CALLERS) for number in range(CALLERS)))
        took.sort()
        return Window(len(took), took[len(took) // 2], took[int(len(took) * 0.99)])

    async def recovers(self) -> None:
        """Wait until the other server answers again, and is quiet."""
        async with asyncio.timeout(RECOVER_S):
            while True:
                try:
                    await self.call("bad")
                    return
                except errors.UpstreamError:
                    await asyncio.sleep(0.2)

    async def asks(self, tool: str, arguments: str = "{}") -> None:
        """Call the other server again and again; that it fails is the point."""
        while True:
            with suppress(errors.UpstreamError):
                await self.call("bad", tool, arguments)
            await asyncio.sleep(0.05)


Fault = Callable[[Bench], AbstractAsyncContextManager[None]]
"""While it is entered, the fault lasts."""


@asynccontextmanager
async def working(*jobs: Awaitable[Any]) -> AsyncIterator[None]:
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def asking(*tools: str, arguments: str = "{}") -> Fault:
    """The server does it to itself whenever it is asked to."""
    return lambda bench: working(*(bench.asks(tool, arguments) for tool in tools))


@asynccontextmanager
async def killed(bench: Bench) -> AsyncIterator[None]:
    async def again_and_again() -> None:
        while True:
            with suppress(errors.UpstreamError, docker.errors.APIError):
                container = await bench.container()
                bench.kills.append(time.perf_counter())
                await to_thread.run_sync(bench.engine.kill, container)
            await asyncio.sleep(0.5)

    async with working(again_and_again(), bench.asks(HELLO)):
        yield


@asynccontextmanager
async def paused(bench: Bench) -> AsyncIterator[None]:
    name = await bench.container()
    await to_thread.run_sync(bench.engine.pause, name)
    try:
        async with working(bench.asks(HELLO), bench.asks(HELLO)):
            yield
    finally:
        with suppress(docker.errors.APIError):  # replaced by another one meanwhile
            await to_thread.run_sync(bench.engine.unpause, name)


@asynccontextmanager
async def stuck(bench: Bench) -> AsyncIterator[None]:
    """It reads nothing, and is sent more than any pipe holds."""
    large = f'{{"text":"{"x" * (8 << 20)}"}}'
    async with working(bench.asks("deaf"), bench.asks(HELLO, large), bench.asks(HELLO, large)):
        yield


def engine_stopped(start: Callable[[], Awaitable[None]], stop: Callable[[], Awaitable[None]]) -> Fault:
    """The engine of the other server stops, and starts again."""

    @asynccontextmanager
    async def entered(bench: Bench) -> AsyncIterator[None]:
        async def restart() -> None:
            await stop()
            await start()

        restarting = asyncio.ensure_future(restart())
        async with working(bench.asks(HELLO)):
            yield
        await restarting

    return entered


KILLED: Final = "container killed"
OUT_OF_MEMORY: Final = "out of memory"

FAULTS: Final[dict[str, Fault]] = {
    KILLED: killed,
    "container paused": paused,
    OUT_OF_MEMORY: asking("eat"),
    "disk full": asking("fill"),
    "stdout flooded with messages": asking("messages"),
    "stdout flooded with noise": asking("noise"),
    "stderr flooded": asking("complaints"),
    "stdout flooded with one line": asking("line"),
    "stdin not read": stuck,
}
ENGINE: Final = "engine stopped and started"


def steps_of(name: str, bench: Bench, began: float) -> list[Step]:
    """What happened to the other server's container from then on, to be done again without a gateway."""
    starts = [at - began for id, at in bench.runtime.starts if id == "bad" and at >= began]
    if name == OUT_OF_MEMORY:
        return [(0.0, "eat"), *((at, what) for at in starts for what in ("start", "eat"))]
    kills = [at - began for at in bench.kills if at >= began]
    return sorted([*((at, "start") for at in starts), *((at, "kill") for at in kills)])


async def measure(
    bench: Bench, name: str, fault: Fault, rounds: int, seconds: float, plain: Plain | None = None
) -> Row:
    row = Row(name, [], [], [], [])
    for _ in range(rounds):
        await bench.recovers()
        row.without.append(await bench.window(bench.good, seconds))
        began = time.perf_counter()
        async with fault(bench):
            row.during.append(await bench.window(bench.good, seconds))
        steps = steps_of(name, bench, began)
        await bench.recovers()
        row.without.append(await bench.window(bench.good, seconds))
        if plain is not None:
            row.plain_without.append(await bench.window(plain.hello, seconds))
            async with plain.replayed(steps):
                row.plain_during.append(await bench.window(plain.hello, seconds))
            await plain.recovers()
            row.plain_without.append(await bench.window(plain.hello, seconds))
    return row


def faulty(id: str, image: str) -> Entry:
    limits = Limits(memory_mib=64, tmpfs_mib=8, call_timeout_s=CALL_S)
    args = ("python3", "-c", PROGRAM.read_text())
    return Entry(id=id, title=id, description="For the benchmark.", image=image, args=args, limits=limits)


async def python_image(run: Run) -> str:
    """What the starter profile's time server runs on."""
    entry = load_catalog(find_shipped_catalog()).entry("time").model_copy(update={"image": None, "args": ()})
    images = ImageStore(cache_dir(), DockerEngine(engine_url()), run=run)
    return (await images.ensure(entry, progress=lambda line: print(line, file=sys.stderr))).reference


def cache_dir() -> Path:
    return read_settings(os.environ).cache_dir


@asynccontextmanager
async def runtime_on(url: str, folder: Path, run: Run) -> AsyncIterator[Watched]:
    engine = DockerEngine(url)
    runtime = Watched(engine, ImageStore(cache_dir(), engine, run=run), folder / "volumes", run)
    if reason := await runtime.probe():
        raise SystemExit(reason)
    try:
        yield runtime
    finally:
        await runtime.aclose()


@asynccontextmanager
async def pool_of(
    entries: Sequence[Entry], runtime_for: Callable[[Entry], Runtime], listings: Path
) -> AsyncIterator[Pool]:
    async with anyio.create_task_group() as tasks:
        yield Pool(entries, runtime_for, ListingStore(listings), tasks, Deaf(), Bounds(health_s=CALL_S))
        tasks.cancel_scope.cancel()


async def measured(names: Sequence[str], quick: bool) -> list[Row]:
    rounds, seconds = (1, 2.0) if quick else (5, 4.0)
    folder = Path(tempfile.mkdtemp(prefix="lockgate-bench-"))
    rows = []
    api = docker.APIClient(engine_url(), timeout=120)
    try:
        with Run(folder / "state") as run:
            async with runtime_on(engine_url(), folder, run) as runtime:
                image = await python_image(run)
                good, bad = faulty("good", image), faulty("bad", image)
                async with pool_of([good, bad], lambda _: runtime, folder / "listings") as pool:
                    bench = Bench(pool, api, runtime)
                    for name in FAULTS:
                        if name in names and name in (KILLED, OUT_OF_MEMORY):
                            async with await plain_of(bench) as plain:
                                rows.append(await measure(bench, name, FAULTS[name], rounds, seconds, plain))
                        elif name in names:
                            rows.append(await measure(bench, name, FAULTS[name], rounds, seconds))
                if ENGINE in names and os.geteuid() == 0 and shutil.which("dockerd"):
                    rows.append(await another_engine(good, runtime, folder, run, rounds, seconds))
    finally:
        api.close()
        shutil.rmtree(folder, ignore_errors=True)
    return rows


async def plain_of(bench: Bench) -> Plain:
    """Both containers once more, as the gateway made its own."""
    await bench.recovers()
    names = [(await bench.pool.connection(id)).detail["container"] for id in ("good", "bad")]
    good, bad = [await to_thread.run_sync(bench.engine.inspect_container, name) for name in names]
    return Plain(urlsplit(engine_url()).path, good, bad)


async def another_engine(
    good: Entry, runtime: DockerRuntime, folder: Path, run: Run, rounds: int, seconds: float
) -> Row:
    """The other server has an engine of its own, which stops."""
    async with private_engine() as private:
        api = docker.APIClient(private.url, version="1.41", timeout=120)
        try:
            make_tiny_image(api, folder, "lockgate.local/faults")
            async with runtime_on(private.url, folder / "other", run) as second:
                entries = [good, tiny_entry("lockgate.local/faults:1", "bad")]
                runtimes: dict[str, Runtime] = {"good": runtime, "bad": second}
                async with pool_of(entries, lambda one: runtimes[one.id], folder / "others") as pool:
                    fault = engine_stopped(private.start, private.stop)
                    return await measure(Bench(pool, api, second), ENGINE, fault, rounds, seconds)
        finally:
            api.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one round, coarser")
    parser.add_argument("fault", nargs="*", help="only these")
    options = parser.parse_args()
    names = options.fault or [*FAULTS, ENGINE]
    # As the gateway does once it serves (serving.py).
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_EVERY)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        rows = runner.run(measured(names, options.quick))
    machine = {"cpus": os.cpu_count(), "load_before": os.getloadavg()[0], "python": platform.python_version()}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"machine": machine, "rows": [row._asdict() for row in rows]}, indent=1) + "\n")
    print(
        f"{'the other server':30} {'p50 ms: without  during':>24} {'p99 ms: without  during':>25} {'p50':>7} {'p99':>7}"
        f"  plain docker's: {'p50':>6} {'p99':>7}"
    )
    for row in rows:
        p50, p99 = (
            [median(getattr(window, of) for window in windows) for windows in (row.without, row.during)]
            for of in ("p50_ms", "p99_ms")
        )
        ratios = f"{p50[1] / p50[0]:5.2f} x {p99[1] / p99[0]:5.2f} x"
        plain = [row.plain_ratio(of) for of in (lambda window: window.p50_ms, lambda window: window.p99_ms)]
        ratios += "                " + " ".join("      -" if one is None else f"{one:5.2f} x" for one in plain)
        print(f"{row.fault:30} {p50[0]:16.2f} {p50[1]:7.2f} {p99[0]:17.2f} {p99[1]:7.2f} {ratios}")
    worst = max(rows, key=lambda row: row.ratio(lambda window: window.p99_ms))
    print(f"faults: worst_p99={worst.ratio(lambda window: window.p99_ms):.2f} ({worst.fault})")


if __name__ == "__main__":
    main()
