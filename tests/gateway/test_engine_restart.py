"""An engine that is stopped and started again under load: one of the test's own, with its own socket and data."""

import asyncio
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import docker
import pytest
from anyio import to_thread
from msgspec import Raw

from catalog import Entry
from gateway.docker_engine import DockerEngine
from gateway.errors import UpstreamError, UpstreamLost, UpstreamUnavailable
from gateway.images import ImageStore
from gateway.listings import ListingStore
from gateway.pool import Pool
from gateway.runs import Run
from gateway.runtimes import Runtime
from gateway.runtimes.docker import DockerRuntime
from tests.gateway.engines import client, make_tiny_image, tiny_entry
from tests.gateway.test_pool import Heard
from tests.servers import DEADLINE_S, LocalRuntime, entry, until

pytestmark = [pytest.mark.anyio, pytest.mark.docker]

ENGINE_S = 90.0
HELLO = {"name": Raw(b'"hello"'), "arguments": Raw(b"{}")}


class PrivateEngine:
    """A Docker Engine that nobody else uses; without networks, which tiny servers do not need."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.url = f"unix://{folder}/e.sock"
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        places = {"data-root": "data", "exec-root": "run", "pidfile": "pid"}
        options = [f"--{name}={self._folder}/{place}" for name, place in places.items()]
        # In a network namespace of its own: an engine without a bridge removes the one of the machine's engine.
        argv = ["unshare", "--net", "dockerd", *options, "-H", self.url]
        argv += ["--bridge=none", "--iptables=false", "--ip6tables=false"]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(argv, stdout=log, stderr=log, start_new_session=True)
        await until(self._answers, "the engine answers", ENGINE_S)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._folder / "log").read_text()[-2000:]
        try:
            with socket.socket(socket.AF_UNIX) as knock:  # the docker library leaks the socket of one that fails
                knock.connect(str(self._folder / "e.sock"))
        except OSError:
            return False
        asking = docker.APIClient(self.url, version="1.41", timeout=30)
        try:
            return bool(asking.ping())
        except (docker.errors.DockerException, OSError):
            return False
        finally:
            asking.close()

    async def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                await to_thread.run_sync(lambda: self._process and self._process.wait(ENGINE_S))
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None


@asynccontextmanager
async def private_engine(*, started: bool = True) -> AsyncIterator[PrivateEngine]:
    if os.geteuid() or shutil.which("dockerd") is None:
        pytest.skip("an engine of the test's own takes root and dockerd")
    folder = Path(tempfile.mkdtemp(prefix="lockgate-engine-"))  # not pytest's: it may hold mounts of the engine
    engine = PrivateEngine(folder)
    try:
        if started:
            await engine.start()
        yield engine
    finally:
        with anyio.CancelScope(shield=True):
            await engine.stop()
            mounted = {line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()}
            for mount in sorted((one for one in mounted if one.startswith(f"{folder}/")), reverse=True):
                subprocess.run(["umount", "--lazy", mount], check=False)
            shutil.rmtree(folder, ignore_errors=True)


# The docker library leaves the socket of a failed connection to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_an_engine_that_restarts_under_load_costs_the_calls_of_its_servers_and_no_others(tmp_path: Path) -> None:
    local = LocalRuntime()
    async with private_engine() as private:
        api = client(private.url)
        name = "lockgate.local/test-restart"
        make_tiny_image(api, tmp_path, name)
        tiny, other = tiny_entry(f"{name}:1"), entry("other")
        engine = DockerEngine(private.url)
        with Run(tmp_path / "state") as run:
            images = ImageStore(tmp_path / "cache", engine, run=run)
            runtime = DockerRuntime(engine, images, tmp_path / "volumes", run)
            assert await runtime.probe() is None

            def runtime_for(one: Entry) -> Runtime:
                return runtime if one.id == "tiny" else local

            async with anyio.create_task_group() as tasks:
                store = ListingStore(tmp_path / "listings")
                pool = Pool([tiny, other], runtime_for, store, tasks, Heard())
                outcomes: list[BaseException | None] = []
                answered = asyncio.Event()

                async def load() -> None:
                    while True:
                        try:
                            await (await pool.connection("tiny")).request("tools/call", dict(HELLO))
                            outcomes.append(None)
                            answered.set()
                        except UpstreamError as exc:
                            outcomes.append(exc)
                        await anyio.sleep(0.01)

                for _ in range(8):
                    tasks.start_soon(load)
                steady = await pool.connection("other")
                async with asyncio.timeout(DEADLINE_S * 3):
                    await answered.wait()
                await private.stop()
                await until(lambda: isinstance(outcomes[-1], UpstreamUnavailable), "calls are refused")
                assert await pool.connection("other") is steady
                await steady.request("ping")
                await private.start()
                answered.clear()
                async with asyncio.timeout(DEADLINE_S * 3):
                    await answered.wait()
                kinds = {type(one) for one in outcomes if one is not None}
                assert all(issubclass(kind, (UpstreamUnavailable, UpstreamLost)) for kind in kinds), kinds
                assert await pool.connection("other") is steady
                tasks.cancel_scope.cancel()
            await until(lambda: not api.containers(all=True), "no container is left")
            await runtime.aclose()
        api.close()
    await until(lambda: not local.processes(), "no process is left")
