"""What every runtime must do, each with real servers; and what a container may not do."""

import asyncio
import gc
import itertools
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import docker
import pytest
from anyio import to_thread

from catalog import Entry, Limits, Remote, Volume, find_shipped_catalog, load_catalog
from gateway.errors import UpstreamError, UpstreamUnavailable
from gateway.images import ImageStore
from gateway.packages import PackageStore
from gateway.runs import Run
from gateway.runtimes import Runtime
from gateway.runtimes.docker import CONTAINER_UID, DockerRuntime
from gateway.runtimes.labels import GATEWAY, SERVER
from gateway.runtimes.process import ProcessRuntime
from gateway.runtimes.remote import RemoteRuntime
from gateway.serverlog import ServerLog
from gateway.settings import Settings
from gateway.upstream import Upstream
from gateway.wire import envelope
from gateway.wire.channel import Channel
from tests.servers import DEADLINE_S, LocalRuntime, entry, until
from tests.servers.remote import remote

pytestmark = pytest.mark.anyio

SHIPPED = load_catalog(find_shipped_catalog())
BUILD_S = 1800.0


class Case(NamedTuple):
    """A runtime and servers for it. `tool` takes `arguments` and its answer holds `text`; `broken` cannot start."""

    runtime: Runtime
    good: Entry
    tool: str
    arguments: dict[str, Any]
    text: str
    broken: Entry
    left: Callable[[], list[Any]]
    kill: Callable[[Channel], None]


TIME = ("convert_time", {"source_timezone": "UTC", "time": "12:00", "target_timezone": "Asia/Tokyo"}, "21:00")


def with_a_bad_option(one: Entry) -> Entry:
    return one.model_copy(update={"command": ("mcp-server-time", "--no-such-option")})


def engine() -> docker.APIClient:
    """The engine that tests use, as the gateway would find it."""
    try:
        client = docker.APIClient(os.environ.get("DOCKER_HOST") or Settings.docker_host, timeout=30)
        client.ping()
    except docker.errors.DockerException as exc:
        pytest.skip(f"no Docker Engine: {exc}")
    return client


async def as_published(images: ImageStore, one: Entry, *argv: str) -> Entry:
    """The entry by its local image, as if that were published: other arguments then need no other image."""
    with anyio.fail_after(BUILD_S):
        image = await images.ensure(only_package(one), progress=lambda _: None)
    return one.model_copy(
        update={"image": image.reference, "args": argv or one.command, "package": None, "command": ()}
    )


def only_package(one: Entry) -> Entry:
    """The entry as it is where no registry can be reached."""
    return one.model_copy(update={"image": None, "args": ()})


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """A run on a state folder of its own."""
    with Run(tmp_path / "state") as entered:
        yield entered


@pytest.fixture(params=["local", "process", "remote", pytest.param("docker", marks=pytest.mark.docker)])
async def case(request: pytest.FixtureRequest, tmp_path: Path, cache_dir: Path, run: Run) -> AsyncIterator[Case]:
    match request.param:
        case "local":
            local = LocalRuntime()

            def kill_process(channel: Channel) -> None:
                os.killpg(int(channel.detail["pid"]), signal.SIGKILL)

            broken = entry("broken", "hostile", "exits_at_once")
            yield Case(local, entry("good"), "echo", {"x": "y"}, "y", broken, local.processes, kill_process)
            await local.aclose()
        case "process":
            process = ProcessRuntime(PackageStore(cache_dir), tmp_path / "volumes", run)
            marked = LocalRuntime()  # finds children of this process
            time = only_package(SHIPPED.entry("time"))

            def kill_group(channel: Channel) -> None:
                os.killpg(int(channel.detail["pid"]), signal.SIGKILL)

            yield Case(process, time, *TIME, with_a_bad_option(time), marked.processes, kill_group)
            await process.aclose()
        case "remote":
            async with remote() as server:
                far = RemoteRuntime()
                url = server.url
                parts = {"title": "Far", "description": "A server elsewhere."}
                good = Entry(id="good", remote=Remote(url=url), **parts)
                broken = Entry(id="broken", remote=Remote(url="http://127.0.0.1:1/mcp"), **parts)
                yield Case(
                    far,
                    good,
                    "echo",
                    {"x": "y"},
                    "y",
                    broken,
                    lambda: [None] * server.n_connections,
                    lambda _: server.hang_up(),
                )
                await far.aclose()
        case "docker":
            client = engine()
            url = os.environ.get("DOCKER_HOST") or Settings.docker_host
            images = ImageStore(cache_dir, docker_url=url)
            containers = DockerRuntime(url, images, tmp_path / "volumes", run)
            assert await containers.probe() is None
            time = only_package(SHIPPED.entry("time"))

            def left() -> list[Any]:
                return list(client.containers(all=True, filters={"label": f"{GATEWAY}={run.gateway}"}))

            yield Case(
                containers,
                time,
                *TIME,
                await as_published(images, time, "mcp-server-time", "--no-such-option"),
                left,
                lambda channel: client.kill(channel.detail["container"]),
            )
            await containers.aclose()
            client.close()


class Opened(NamedTuple):
    """A started server."""

    channel: Channel
    upstream: Upstream
    log: ServerLog


async def start(case: Case, one: Entry | None = None) -> Opened:
    """Start a server and shake hands; on failure nothing is left."""
    one = one or case.good
    log = ServerLog()
    with anyio.fail_after(BUILD_S):
        await case.runtime.prepare(one, log)
    upstream = Upstream(one.id, log, call_timeout_s=DEADLINE_S, on_notification=lambda *_: None)
    with anyio.fail_after(60):
        channel = await case.runtime.start(one, upstream, log)
        try:
            await upstream.open(channel)
        except BaseException:
            await channel.close()
            raise
    return Opened(channel, upstream, log)


async def call(case: Case, upstream: Upstream) -> str:
    members = {"name": envelope.raw(case.tool), "arguments": envelope.raw(case.arguments)}
    return (await upstream.request("tools/call", members)).decode()


async def call_until_it_fails(case: Case, upstream: Upstream) -> None:
    with anyio.fail_after(DEADLINE_S):
        while True:
            await call(case, upstream)


async def prepare_and_start(case: Case, one: Entry) -> None:
    log = ServerLog()
    upstream = Upstream("x", log, call_timeout_s=DEADLINE_S, on_notification=lambda *_: None)
    await case.runtime.prepare(one, log)
    await case.runtime.start(one, upstream, log)


async def gone(case: Case) -> None:
    deadline = anyio.current_time() + DEADLINE_S
    while await to_thread.run_sync(case.left):
        assert anyio.current_time() < deadline, "something is left"
        await anyio.sleep(0.02)


async def test_a_server_starts_answers_and_leaves_nothing_when_it_is_closed(case: Case) -> None:
    channel, upstream, log = await start(case)
    assert case.text in await call(case, upstream)
    assert channel.detail
    await channel.close()
    await channel.close()
    await gone(case)
    assert not [line for line in log.lines() if "could not" in line.text]


async def test_two_servers_of_one_entry_do_not_get_in_each_others_way(case: Case) -> None:
    one, two = await start(case), await start(case)
    assert case.text in await call(case, one.upstream)
    await one.channel.close()
    assert case.text in await call(case, two.upstream)
    await two.channel.close()
    await gone(case)


async def test_a_call_to_a_server_that_dies_fails_with_a_reason(case: Case) -> None:
    channel, upstream, _ = await start(case)
    assert case.text in await call(case, upstream)
    case.kill(channel)
    with pytest.raises(UpstreamError) as caught:
        await call_until_it_fails(case, upstream)
    # A dead remote server shows itself in one of three ways: at the open connection, in mid-exchange, at the next one.
    remote = ("closed the connection", "the connection failed", "cannot connect")
    reasons = ("killed", "exit code 137", "not connected", *remote)
    assert any(reason in str(caught.value) for reason in reasons)
    await channel.close()
    await gone(case)


async def test_a_server_that_cannot_start_fails_with_a_reason_and_leaves_nothing(case: Case) -> None:
    with pytest.raises(UpstreamError) as caught:
        await start(case, case.broken)
    assert len(str(caught.value)) > 20
    await gone(case)


async def test_a_cancelled_start_leaves_nothing(case: Case) -> None:
    log = ServerLog()
    with anyio.fail_after(BUILD_S):
        await case.runtime.prepare(case.good, log)
    # A deadline of asyncio's own cancels the task from within, which no scope of anyio shields from.
    for delay_s, is_native in itertools.product((0, 0.005, 0.02, 0.05, 0.2), (True, False)):
        upstream = Upstream("x", log, call_timeout_s=DEADLINE_S, on_notification=lambda *_: None)
        channel = None
        with anyio.move_on_after(None if is_native else delay_s), suppress(TimeoutError):
            async with asyncio.timeout(delay_s if is_native else None):
                channel = await case.runtime.start(case.good, upstream, log)
                await upstream.open(channel)
        if channel is not None:
            await channel.close()
        await gone(case)


async def test_closing_tells_the_receiver_once(case: Case) -> None:
    log = ServerLog()
    await case.runtime.prepare(case.good, log)
    told: list[str] = []

    class Listener(Upstream):
        def lost(self, reason: str) -> None:
            told.append(reason)
            super().lost(reason)

    upstream = Listener("x", log, call_timeout_s=DEADLINE_S, on_notification=lambda *_: None)
    channel = await case.runtime.start(case.good, upstream, log)
    await upstream.open(channel)
    await channel.close()
    await channel.close()
    assert len(told) <= 1
    await gone(case)


async def test_an_entry_the_runtime_cannot_run_is_refused(case: Case) -> None:
    if case.runtime.name == "local":
        pytest.skip("the local runtime is the tests' own")
    foreign = {
        "remote": SHIPPED.entry("time"),
        "process": Entry(id="x", title="x", description="x", image="x:1"),
        "docker": Entry(id="x", title="x", description="x", image="lockgate.invalid/nobody/nothing:1"),
    }[case.runtime.name]
    with pytest.raises(UpstreamUnavailable):
        await prepare_and_start(case, foreign)
    await gone(case)


@pytest.mark.node
@pytest.mark.parametrize("kind", ["process", pytest.param("docker", marks=pytest.mark.docker)])
async def test_what_a_server_writes_on_stderr_is_in_its_log(
    kind: str, tmp_path: Path, cache_dir: Path, run: Run
) -> None:
    everything = only_package(SHIPPED.entry("everything"))
    url = os.environ.get("DOCKER_HOST") or Settings.docker_host
    if kind == "docker":
        engine().close()
        runtime: Any = DockerRuntime(url, ImageStore(cache_dir, docker_url=url), tmp_path, run)
        assert await runtime.probe() is None
    else:
        runtime = ProcessRuntime(PackageStore(cache_dir), tmp_path, run)
    log = ServerLog()
    await runtime.prepare(everything, log)
    upstream = Upstream("x", log, call_timeout_s=DEADLINE_S, on_notification=lambda *_: None)
    channel = await runtime.start(everything, upstream, log)
    try:
        await upstream.open(channel)
        await until(lambda: [line for line in log.lines() if line.origin == "stderr"], "stderr is in the log")
    finally:
        await channel.close()
        await runtime.aclose()


# -- containers ----------------------------------------------------------------------------------


@pytest.mark.docker
async def test_a_container_has_nothing_it_was_not_given(tmp_path: Path, cache_dir: Path, run: Run) -> None:
    client = engine()
    url = os.environ.get("DOCKER_HOST") or Settings.docker_host
    images = ImageStore(cache_dir, docker_url=url)
    runtime = DockerRuntime(url, images, tmp_path / "volumes", run)
    assert await runtime.probe() is None
    limits = Limits(memory_mib=200, cpus=0.5, pids=40, tmpfs_mib=32)
    time = (await as_published(images, SHIPPED.entry("time"))).model_copy(
        update={"limits": limits, "volumes": (Volume(name="data", target="/data"),), "env": {"GREETING": "hi"}}
    )
    log = ServerLog()
    await runtime.prepare(time, log)
    upstream = Upstream("time", log, call_timeout_s=DEADLINE_S, on_notification=lambda *_: None)
    channel = await runtime.start(time, upstream, log)
    try:
        await upstream.open(channel)
        seen = await to_thread.run_sync(client.inspect_container, channel.detail["container"])
        top = await to_thread.run_sync(client.top, channel.detail["container"])
    finally:
        await channel.close()
        await runtime.aclose()
        client.close()
    config, host = seen["Config"], seen["HostConfig"]
    mib = 1024 * 1024
    assert host["CapDrop"] == ["ALL"]
    assert not host["CapAdd"]
    assert "no-new-privileges" in host["SecurityOpt"]
    assert not any("unconfined" in option for option in host["SecurityOpt"])
    assert host["Privileged"] is False
    assert host["ReadonlyRootfs"] is True
    assert list(host["Tmpfs"]) == ["/tmp"]
    assert {"rw", "noexec", "nosuid", "nodev", "size=32m", "nr_inodes=8192", "mode=1777"} == set(
        host["Tmpfs"]["/tmp"].split(",")
    )
    assert host["PidsLimit"] == 40
    assert host["Memory"] == host["MemorySwap"] == 200 * mib
    assert host["NanoCpus"] == 500_000_000
    assert host["NetworkMode"] == "none"
    assert host["LogConfig"] == {"Type": "none", "Config": {}}
    assert host["RestartPolicy"]["Name"] in ("no", "")
    assert host["IpcMode"] == "private"
    assert host["PidMode"] in ("", "private")
    assert host["UTSMode"] != "host"
    assert host["UsernsMode"] != "host"
    assert host["CgroupnsMode"] == "private"
    assert host["Init"] is True
    assert host["AutoRemove"] is True
    assert not host["Devices"]
    assert not host["DeviceRequests"]
    assert not host["VolumesFrom"]
    assert not host["Links"]
    assert not host["PortBindings"]
    assert not host["GroupAdd"]
    assert host["Binds"] == [f"{tmp_path}/volumes/time/data:/data:rw"]
    mounts = {mount["Destination"]: mount for mount in seen["Mounts"]}
    assert mounts.pop("/data")["Type"] == "bind"
    # The launcher's own, where it starts the server: one volume and one empty folder, neither to be written.
    assert set(mounts) in (set(), {"/run/lockgate", "/run/lockgate-pipes"})
    assert not any(mount["RW"] for mount in mounts.values())
    assert {"nofile", "core"} <= {limit["Name"] for limit in host["Ulimits"]}
    uid = os.getuid() or CONTAINER_UID
    assert config["User"].split(":")[0] == str(uid) != "0"
    assert config["Labels"][GATEWAY] == run.gateway
    assert config["Labels"][SERVER] == "time"
    assert "GREETING=hi" in config["Env"]
    inherited = {name for name in os.environ if len(os.environ[name]) > 3}
    assert not {one.partition("=")[0] for one in config["Env"]} & inherited - {"PATH", "HOME", "LANG", "GREETING"}
    assert not config["Tty"]
    assert top["Processes"]
    folder = tmp_path / "volumes/time/data"
    assert (folder.stat().st_uid, oct(folder.stat().st_mode)[-3:]) == (uid, "700")


# The docker library leaves the socket of a failed connection to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_an_engine_that_is_not_there_is_reported_and_nothing_else_happens(tmp_path: Path, run: Run) -> None:
    url = f"unix://{tmp_path}/no.sock"
    runtime = DockerRuntime(url, ImageStore(tmp_path, docker_url=url), tmp_path, run)
    reason = await runtime.probe()
    assert reason is not None
    assert "no.sock" in reason
    with pytest.raises(UpstreamUnavailable, match="no Docker Engine"):
        await runtime.prepare(SHIPPED.entry("time"), ServerLog())
    await runtime.aclose()
    gc.collect()


# -- processes -----------------------------------------------------------------------------------


async def test_a_sandboxed_process_sees_neither_the_gateways_files_nor_its_environment(
    tmp_path: Path, cache_dir: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = ProcessRuntime(PackageStore(cache_dir), tmp_path / "volumes", run)
    if "bubblewrap" not in runtime.label:
        pytest.skip("no bubblewrap")
    monkeypatch.setenv("CANARY_SECRET", "s3cret")
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    time = only_package(SHIPPED.entry("time")).model_copy(update={"volumes": (Volume(name="data", target="/data"),)})
    log = ServerLog()
    await runtime.prepare(time, log)
    upstream = Upstream("time", log, call_timeout_s=DEADLINE_S, on_notification=lambda *_: None)
    channel = await runtime.start(time, upstream, log)
    try:
        await upstream.open(channel)
        inner = descendant(int(channel.detail["pid"]))
        environment = Path(f"/proc/{inner}/environ").read_bytes()
        assert b"s3cret" not in environment
        root = Path(f"/proc/{inner}/root")
        with suppress(PermissionError):
            assert not (root / str(secret).lstrip("/")).exists()
            assert not (root / "etc/shadow").exists()
            assert (root / "data").is_dir()
        # Without capabilities a user writes only where the folder is its own.
        assert (tmp_path / "volumes/time/data").stat().st_uid == os.getuid()
        status = Path(f"/proc/{inner}/status").read_text()
        assert "CapEff:\t0000000000000000" in status
        assert "NoNewPrivs:\t1" in status
        network = Path(f"/proc/{inner}/net/dev").read_text()
        assert [line.split(":")[0].strip() for line in network.splitlines()[2:]] == ["lo"]
    finally:
        await channel.close()


def descendant(pid: int) -> int:
    """The innermost process below a sandbox."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    return descendant(children[0]) if children else pid
