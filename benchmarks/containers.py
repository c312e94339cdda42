"""The container benchmark: starting, calling and listing servers in containers, each beside its floor in the same run.

Knows a pool on a real engine and the smallest server there is; what HTTP adds is relay.py's to measure.

    python benchmarks/containers.py [--quick]

Writes benchmarks/results/containers.json; docs/benchmarks.md explains the figures."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import anyio
import docker
import msgspec
import uvloop
from msgspec import Raw

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.answers import HELLO
from benchmarks.embedded import DoorCallers
from benchmarks.line_callers import AttachedCallers
from benchmarks.load import Callers, Order, take
from benchmarks.twins import Engine, Twin
from catalog import Entry
from gateway.caller import Caller
from gateway.docker_engine import DockerEngine
from gateway.gateway import Gateway
from gateway.images import ImageStore
from gateway.listings import Listing, ListingStore
from gateway.pool import Bounds, Pool
from gateway.runs import Run
from gateway.runtimes.docker import DockerRuntime
from gateway.settings import Settings
from gateway.upstream import Upstream
from policies import Principal
from tests.gateway.engines import engine_url, make_tiny_image
from tests.servers import write_catalog

RESULTS: Final = Path(__file__).with_name("results") / "containers.json"
MESSAGES: Final = (
    b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},'
    b'"clientInfo":{"name":"bench","version":"1"}}}\n',
    b'{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"hello","arguments":{}}}\n',
)
ASKED: Final = {"name": Raw(b'"hello"'), "arguments": Raw(b"{}")}
WARM: Final = "warm call at the door, p50"
AT_ONCE: Final = 50
ENTRIES: Final = 300
MIB: Final = 1024 * 1024


class Figure(NamedTuple):
    """One thing measured. `floor` is the least it can take, measured in the same run by other means."""

    what: str
    unit: str
    measured: float
    floor: float | None
    floor_is: str


class Deaf:
    """Hears what servers do, and does nothing."""

    def listing_changed(self, server: str, lists: object) -> None: ...

    def server_started(self, server: str, upstream: Upstream) -> None: ...

    def server_notified(self, upstream: Upstream, method: str, params: bytes) -> None: ...


@asynccontextmanager
async def pool_of(folder: Path, run: Run, entries: Sequence[Entry]) -> AsyncIterator[Pool]:
    engine = DockerEngine(engine_url())
    runtime = DockerRuntime(engine, ImageStore(folder / "cache", engine, run=run), folder / "volumes", run)
    if reason := await runtime.probe():
        raise SystemExit(reason)
    async with anyio.create_task_group() as tasks:
        store = ListingStore(folder / "listings")
        yield Pool(entries, lambda _: runtime, store, tasks, Deaf(), Bounds(servers=AT_ONCE * 2))
        tasks.cancel_scope.cancel()
    await runtime.aclose()


def tiny(image: str, id: str) -> Entry:
    return Entry(id=id, title=id, description="The smallest server.", image=image)


async def stopped(pool: Pool) -> None:
    for id, server in pool.servers.items():
        pool.stop(id)
        while server.connections:
            await anyio.sleep(0.01)


# -- what is measured ------------------------------------------------------------------------------


def docker_run(image: str) -> float:
    """Seconds from `docker run` of the image to its first answer to a call."""
    began = time.perf_counter()
    argv = ["docker", "run", "--rm", "-i", "--network=none", "--log-driver=none", image]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for message in MESSAGES:
            process.stdin.write(message)
            process.stdin.flush()
            process.stdout.readline()
        took = time.perf_counter() - began
        process.stdin.close()
    return took


async def cold_start(pool: Pool, image: str, rounds: int) -> Figure:
    ours, floor = [], []
    await (await pool.connection("s0")).request("tools/call", dict(ASKED))  # the listing is recorded
    for _ in range(rounds):
        await stopped(pool)
        floor.append(await asyncio.to_thread(docker_run, image))
        began = time.perf_counter()
        await (await pool.connection("s0")).request("tools/call", dict(ASKED))
        ours.append(time.perf_counter() - began)
    ours_ms, floor_ms = 1000 * median(ours), 1000 * median(floor)
    return Figure("cold start to first answer", "ms", ours_ms, floor_ms, "docker run, same image")


async def warm_call(folder: Path, image: str, rounds: int) -> Figure:
    """At the gateway's door against a plain asyncio client of the attach stream, in turns and on one event loop."""
    order = Order("hello", HELLO, seconds=0.2, warm_up_s=0.05)
    async with Gateway(
        settings_of(folder, "warm", write_catalog(folder / "warm.yaml", {"s0": {"image": image}}))
    ) as it:
        await it.door.learn(["s0"])
        engine = Engine(urlsplit(engine_url()).path)
        original = await asyncio.to_thread(engine.of_gateway, it.run.gateway, "s0")
        with Twin(engine, original) as twin:
            bare = AttachedCallers(engine.path, twin.id, order.tool, HELLO, 1)
            await bare.open()
            door = DoorCallers(it, msgspec.structs.replace(order, tool="s0__hello", door=True))
            pairs = []
            for number in range(2 * rounds):
                ways: tuple[Callers, ...] = (bare, door) if number % 2 else (door, bare)
                samples = {one: await take(order, one) for one in ways}
                pairs.append((samples[bare].p50_ms, samples[door].p50_ms))
            await door.close()
            await bare.close()
    # As in relay.py: what disturbs the machine for longer than a round disturbs both sides alike.
    floor_ms, ratio = median(floor for floor, _ in pairs), median(ours / floor for floor, ours in pairs)
    return Figure(WARM, "ms", ratio * floor_ms, floor_ms, "bare attach stream, asyncio")


def created_and_started(image: str) -> float:
    """Seconds to create and start as many containers through the engine's API, eight at a time."""
    api = docker.APIClient(engine_url(), timeout=120)
    host = api.create_host_config(network_mode="none", auto_remove=True, log_config={"Type": "none"}, init=True)

    def one(_: int) -> str:
        id = str(api.create_container(image, stdin_open=True, host_config=host)["Id"])
        api.start(id)
        return id

    began = time.perf_counter()
    with ThreadPoolExecutor(8) as threads:
        ids = list(threads.map(one, range(AT_ONCE)))
        took = time.perf_counter() - began
        list(threads.map(lambda id: api.remove_container(id, force=True), ids))
    api.close()
    return took


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def many_at_once(pool: Pool, image: str) -> list[Figure]:
    floor = await asyncio.to_thread(created_and_started, image)
    await stopped(pool)
    before, began = resident_bytes(), time.perf_counter()
    await asyncio.gather(*(pool.connection(id) for id in pool.servers))
    took, each = time.perf_counter() - began, (resident_bytes() - before) / AT_ONCE
    await stopped(pool)
    return [
        Figure(f"{AT_ONCE} servers at once, ready", "s", took, floor, "create and start through the API"),
        Figure("memory of the gateway per idle server", "KiB", each / 1024, None, "-"),
    ]


def settings_of(folder: Path, name: str, catalog: Path) -> Settings:
    return Settings(
        state_dir=folder / name,
        cache_dir=folder / "cache",
        catalog=catalog,
        profile="all",
        port=0,
        docker_host=engine_url(),
        runtime="docker",
    )


async def many_entries(folder: Path, listing: Listing, rounds: int) -> list[Figure]:
    """Start-up and listing with many entries, all known, and no container."""
    servers = {f"s{number}": {"image": "lockgate.local/none:1"} for number in range(ENTRIES)}
    catalog = write_catalog(folder / "many.yaml", servers)
    settings = settings_of(folder, "many", catalog)
    async with Gateway(settings) as gateway:
        store = ListingStore(settings.state_dir / "listings")
        for server in gateway.pool.servers.values():
            store.save(server.entry, msgspec.structs.replace(listing, digest=server.entry.digest))
    starts, reads, lists, joins = [], [], [], []
    for _ in range(rounds):
        began = time.perf_counter()
        files = [file.read_bytes() for file in (settings.state_dir / "listings").iterdir()]
        decoded = [msgspec.json.decode(content) for content in (*files, catalog.read_bytes())]
        reads.append(1000 * (time.perf_counter() - began))
        began = time.perf_counter()
        async with Gateway(settings) as gateway:
            starts.append(1000 * (time.perf_counter() - began))
            caller = Caller(Principal("local"), gateway.profile)
            began = time.perf_counter()
            await gateway.door.list(caller, "tools/list", b"{}")
            lists.append(1000 * (time.perf_counter() - began))
            began = time.perf_counter()
            msgspec.json.encode([tool for one in decoded[:-1] for tool in one["tools"]])
            joins.append(1000 * (time.perf_counter() - began))
            if any(server.connections for server in gateway.pool.servers.values()):
                raise SystemExit("listing started a server")
    return [
        Figure(f"start-up with {ENTRIES} entries", "ms", median(starts), median(reads), "decode the same files"),
        Figure(f"first listing of {ENTRIES} servers", "ms", median(lists), median(joins), "encode the same tools"),
    ]


async def measured(quick: bool) -> list[Figure]:
    rounds = 3 if quick else 9
    folder = Path(tempfile.mkdtemp(prefix="lockgate-bench-"))
    api = docker.APIClient(engine_url(), timeout=120)
    name = f"lockgate.local/bench-{os.getpid()}"
    try:
        make_tiny_image(api, folder, name)
        image = f"{name}:1"
        with Run(folder / "state") as run:
            async with pool_of(folder, run, [tiny(image, "s0")]) as pool:
                figures = [await cold_start(pool, image, rounds), await warm_call(folder, image, rounds)]
                listing = pool.listing("s0")
            async with pool_of(folder, run, [tiny(image, f"s{number}") for number in range(AT_ONCE)]) as pool:
                figures += await many_at_once(pool, image)
        if listing is not None:
            figures += await many_entries(folder, listing, rounds)
        return figures
    finally:
        api.remove_image(f"{name}:1", force=True)
        api.close()
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds, coarser")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        figures = runner.run(measured(parser.parse_args().quick))
    machine = {"cpus": os.cpu_count(), "load_before": os.getloadavg()[0], "python": platform.python_version()}
    RESULTS.parent.mkdir(exist_ok=True)
    content = {"machine": machine, "figures": [figure._asdict() for figure in figures]}
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")
    for one in figures:
        floor = f"{one.floor:10.2f}" if one.floor is not None else f"{'-':>10}"
        ratio = f"{one.measured / one.floor:6.2f} x" if one.floor else f"{'-':>8}"
        print(f"{one.what:40} {one.measured:10.2f} {one.unit:4} floor {floor} {ratio}  ({one.floor_is})")
    (warm,) = (one.measured / one.floor for one in figures if one.what == WARM and one.floor)
    print(f"attach: tiny_door={warm:.2f}")


if __name__ == "__main__":
    main()
