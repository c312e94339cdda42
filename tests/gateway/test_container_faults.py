"""What can happen to a container in the middle of a call: each ends in a typed error, and other servers go on."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import docker
import pytest
from anyio import to_thread

from catalog import Entry, Limits, find_shipped_catalog, load_catalog
from gateway.docker_engine import DockerEngine
from gateway.errors import UpstreamError, UpstreamLost, UpstreamTimeout
from gateway.images import ImageStore
from gateway.listings import ListingStore
from gateway.pool import Bounds, Pool
from gateway.runs import Run
from gateway.runtimes.docker import DockerRuntime
from gateway.runtimes.labels import GATEWAY
from gateway.wire import envelope
from tests.gateway.engines import client, engine_url
from tests.gateway.test_pool import Heard
from tests.servers import DEADLINE_S, until

pytestmark = [pytest.mark.anyio, pytest.mark.docker]

SERVER = """
import json, os, sys, time
def eat(): return "x" * (1 << 30)
def fill():
    with open("/tmp/full", "wb", buffering=0) as file:
        while True: file.write(b"0" * (1 << 20))
def flood():
    while True: os.write(1, b"x" * 65536)
def noise():
    for _ in range(20000): print("noise")
def deaf(): time.sleep(1000)
for line in sys.stdin:
    message = json.loads(line)
    if "id" not in message: continue
    method, params = message["method"], message.get("params", {})
    result = {}
    if method == "initialize":
        result = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}}
        result["serverInfo"] = {"name": "x", "version": "1"}
    elif method == "tools/list":
        result = {"tools": [{"name": "hello", "inputSchema": {"type": "object"}}]}
    elif method == "tools/call":
        try:
            said = globals().get(params["name"], lambda: "hello")() or "done"
        except OSError as exc:
            said = exc.strerror
        result = {"content": [{"type": "text", "text": said[:100]}]}
    print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
"""
CALL_S = 5.0
PREPARE_S = 1800.0


class Bench:
    """A pool on a real engine with two servers of one image: `bad`, to which things happen, and `good`."""

    def __init__(self, pool: Pool, engine: docker.APIClient, run: Run) -> None:
        self.pool = pool
        self.engine = engine
        self._run = run

    async def call(self, id: str, tool: str, arguments: Any = None) -> str:
        upstream = await self.pool.connection(id)
        members = {"name": envelope.raw(tool), "arguments": envelope.raw(arguments or {})}
        return str(json.loads(await upstream.request("tools/call", members))["content"][0]["text"])

    async def container(self, id: str = "bad") -> str:
        return (await self.pool.connection(id)).detail["container"]

    def containers(self) -> list[Any]:
        return list(self.engine.containers(all=True, filters={"label": f"{GATEWAY}={self._run.gateway}"}))

    async def others_go_on(self) -> None:
        """The good server is the same one as before, and answers."""
        assert self.pool.servers["good"].failures == 0
        assert await self.call("good", "hello") == "hello"

    async def comes_back(self) -> None:
        """The bad server is started anew: while it rests, calls are refused, and it is said that a retry is safe."""
        with anyio.fail_after(DEADLINE_S * 5):
            while True:
                try:
                    assert await self.call("bad", "hello") == "hello"
                    return
                except UpstreamError:
                    await anyio.sleep(0.1)


@asynccontextmanager
async def bench_on(folder: Path, cache_dir: Path) -> AsyncIterator[Bench]:
    api, engine = client(), DockerEngine(engine_url())
    with Run(folder / "state") as run:
        images = ImageStore(cache_dir, engine, run=run)
        runtime = DockerRuntime(engine, images, folder / "volumes", run)
        assert await runtime.probe() is None
        time = load_catalog(find_shipped_catalog()).entry("time").model_copy(update={"image": None, "args": ()})
        with anyio.fail_after(PREPARE_S):
            image = await images.ensure(time, progress=lambda _: None)
        limits = Limits(memory_mib=64, tmpfs_mib=8, call_timeout_s=CALL_S, start_timeout_s=DEADLINE_S * 3)
        entries = [
            Entry(
                id=id,
                title=id,
                description="For tests.",
                image=image.reference,
                args=("python3", "-c", SERVER),
                limits=limits,
            )
            for id in ("bad", "good")
        ]
        try:
            async with anyio.create_task_group() as tasks:
                store = ListingStore(folder / "listings")
                pool = Pool(entries, lambda _: runtime, store, tasks, Heard(), Bounds(health_s=CALL_S))
                yield Bench(pool, api, run)
                tasks.cancel_scope.cancel()
            bench = Bench(pool, api, run)
            await until(lambda: not bench.containers(), "no container is left")
        finally:
            with anyio.CancelScope(shield=True):
                await runtime.aclose()
                api.close()


@pytest.fixture
async def bench(tmp_path: Path, cache_dir: Path) -> AsyncIterator[Bench]:
    async with bench_on(tmp_path, cache_dir) as it:
        await it.call("good", "hello")
        await it.call("bad", "hello")
        yield it


async def during(it: Bench, tool: str, arguments: Any = None) -> asyncio.Task[str]:
    """A call that is on its way."""
    upstream = await it.pool.connection("bad")
    calling = asyncio.create_task(it.call("bad", tool, arguments))
    await until(lambda: upstream.in_flight, "the call is on its way")
    return calling


async def test_a_killed_container(bench: Bench) -> None:
    calling = await during(bench, "deaf")
    await to_thread.run_sync(bench.engine.kill, await bench.container())
    with pytest.raises(UpstreamLost, match="exit code 137"):
        await calling
    await bench.others_go_on()
    await bench.comes_back()


async def test_a_paused_container(bench: Bench) -> None:
    paused = await bench.container()
    await to_thread.run_sync(bench.engine.pause, paused)
    with pytest.raises(UpstreamTimeout, match="did not answer within"):
        await bench.call("bad", "hello")
    await bench.others_go_on()
    await until(lambda: "answered neither" in bench.pool.servers["bad"].error, "it is noticed", DEADLINE_S * 3)
    await bench.comes_back()
    assert await bench.container() != paused


async def test_a_container_out_of_memory(bench: Bench) -> None:
    with pytest.raises(UpstreamLost, match="memory limit of 64 MiB"):
        await bench.call("bad", "eat")
    await bench.others_go_on()
    await bench.comes_back()


async def test_a_container_whose_disk_is_full_says_so_itself_and_goes_on(bench: Bench) -> None:
    before = await bench.container()
    assert await bench.call("bad", "fill") == "No space left on device"
    assert await bench.container() == before
    await bench.others_go_on()


async def test_a_container_that_floods_its_stdout(bench: Bench) -> None:
    assert await bench.call("bad", "noise") == "done"
    with pytest.raises(UpstreamLost, match="endless line"):
        await bench.call("bad", "flood")
    await bench.others_go_on()
    await bench.comes_back()


async def test_a_container_that_does_not_read(bench: Bench) -> None:
    calling = await during(bench, "deaf")
    stuck = asyncio.create_task(bench.call("bad", "hello", {"text": "x" * (8 << 20)}))
    await bench.others_go_on()
    outcomes = await asyncio.gather(calling, stuck, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} <= {UpstreamTimeout, UpstreamLost}
    await bench.comes_back()


async def test_a_call_that_runs_out_of_time_while_its_server_is_stopped_ends(bench: Bench) -> None:
    accidents: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: accidents.append(context))
    upstream = await bench.pool.connection("bad")
    members = {"name": envelope.raw("deaf"), "arguments": envelope.raw({})}
    # It takes as long to stop as a server may that sleeps and does not see the end of its input.
    calls = [await upstream.start("tools/call", dict(members), timeout_s=0.3) for _ in range(2)]
    bench.pool.stop("bad")
    with anyio.fail_after(DEADLINE_S):
        for call in calls:
            with pytest.raises((UpstreamTimeout, UpstreamLost)):
                await call.next()
    await bench.comes_back()
    assert accidents == []


async def test_ten_thousand_calls_one_after_the_other_start_one_container(bench: Bench) -> None:
    upstream = await bench.pool.connection("good")
    before = await bench.container("good")
    for _ in range(10_000):
        assert await bench.pool.connection("good") is upstream
        await upstream.request("ping")
    assert await bench.container("good") == before
    log = [line.text for line in bench.pool.servers["good"].log.lines()]
    assert sum(text.startswith("starting container") for text in log) == 1
    assert len(bench.containers()) == 2
