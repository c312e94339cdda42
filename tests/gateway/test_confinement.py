"""What a container cannot do: compared with the specification from the outside, and tried from the inside."""

import os
import secrets
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import docker
import pytest
from anyio import to_thread

from catalog import Entry, Volume, find_shipped_catalog, load_catalog
from gateway.errors import UpstreamError, UpstreamUnavailable
from gateway.images import Image
from gateway.images.recipes import server_recipe
from gateway.runtimes.handover import CONTAINER_UID
from gateway.runtimes.specification import Folder, Given, ImageFacts, filter_specification, specification
from tests.e2e.gateways import STARTER
from tests.gateway.engines import tiny_rootfs
from tests.gateway.sandboxes import Sandbox, base_image, engine, probe_entry, sandbox

ESCAPES = (Path(__file__).parent.parent / "servers" / "escapes.py").read_text()
SHIPPED = load_catalog(find_shipped_catalog())
RUN_HERE = [entry for entry in SHIPPED.entries.values() if entry.image or entry.package]
STARTED = 67
"""How many servers of packages start, by docs/servers.md: each is compared."""
MIB = 1024 * 1024


def given(folder: Path, entry: Entry) -> Given:
    folders = [Folder(folder / volume.name, volume.target) for volume in entry.volumes]
    return Given(f"{CONTAINER_UID}:{CONTAINER_UID}", {"lockgate.server": entry.id}, folders)


def assert_confined(host: dict[str, Any], entry: Entry | None = None) -> None:
    """What holds for every container, in a create request as in an engine's answer."""
    assert host["CapDrop"] == ["ALL"]
    assert not host.get("CapAdd")
    assert "no-new-privileges" in host["SecurityOpt"]
    assert not any("unconfined" in one for one in host["SecurityOpt"])
    assert host["Privileged"] is False
    assert host["ReadonlyRootfs"] is True
    assert host["IpcMode"] == "private"
    assert host["CgroupnsMode"] == "private"
    assert host["LogConfig"] == {"Type": "none", "Config": {}}
    assert host["RestartPolicy"]["Name"] == "no"
    assert host["Init"] is True
    assert host["AutoRemove"] is True
    assert host["OomScoreAdj"] > 0
    assert host["Memory"] == host["MemorySwap"] > 0
    assert host["NanoCpus"] > 0
    assert 0 < host["PidsLimit"] <= 32768
    for key in ("Devices", "VolumesFrom", "Links", "PortBindings", "GroupAdd", "DeviceCgroupRules", "ExtraHosts"):
        assert not host.get(key), key
    for key in ("PidMode", "UTSMode", "UsernsMode", "NetworkMode"):
        assert host.get(key, "") != "host", key
    assert {"nofile", "core", "fsize"} <= {limit["Name"] for limit in host["Ulimits"]}
    for options in host["Tmpfs"].values():
        assert {"noexec", "nosuid", "nodev"} <= set(options.split(","))
        assert "size=" in options
        assert "nr_inodes=" in options
    if entry is not None:
        assert host["Memory"] == entry.limits.memory_mib * MIB
        assert host["PidsLimit"] == entry.limits.pids
        assert bool(host.get("DeviceRequests")) == bool(entry.limits.gpus)
        assert (host["NetworkMode"] == "none") or entry.network == "internet"


@pytest.mark.sec("SEC-066")
def test_every_entry_of_the_catalogue_is_specified_as_confined(tmp_path: Path) -> None:
    assert len(RUN_HERE) > 200
    for entry in RUN_HERE:
        for origin in ("published", "local"):
            image = Image("x:1", origin, "sha256:0")  # type: ignore[arg-type]
            spec = specification(entry, image, ImageFacts(), given(tmp_path, entry))
            assert_confined(spec["HostConfig"], entry)
            assert spec["User"].split(":")[0] not in ("", "0", "root")
            assert spec["Tty"] is False
            assert "NetworkingConfig" not in spec
    assert_confined(filter_specification("x:1", ["x"], {}, "bridge")["HostConfig"])


def test_gpus_and_a_runtime_are_asked_for_only_where_they_are_wanted() -> None:
    plain = probe_entry("x:1")
    wanted = probe_entry("x:1", limits={"gpus": 2})
    image = Image("x:1", "published", "sha256:0")
    for entry, requests in ((plain, None), (wanted, [{"Driver": "", "Count": 2, "Capabilities": [["gpu"]]}])):
        host = specification(entry, image, ImageFacts(), Given("1:1", {}))["HostConfig"]
        assert host.get("DeviceRequests") == requests
        assert "Runtime" not in host
    assert specification(plain, image, ImageFacts(), Given("1:1", {}, container_runtime="runsc"))["HostConfig"][
        "Runtime"
    ] == ("runsc")


def differences(wanted: dict[str, Any], got: dict[str, Any], path: str = "") -> Iterator[str]:
    """Where an engine's answer says something else than the request."""
    for key, value in wanted.items():
        where, found = f"{path}{key}", got.get(key)
        if isinstance(value, dict) and isinstance(found, dict) and key not in ("Labels", "Tmpfs", "Sysctls"):
            yield from differences(value, found, f"{where}.")
        elif key == "Image":
            continue  # by id in the request
        elif key == "Env":
            if missing := set(value) - set(found or ()):
                yield f"{where}: {missing}"
        elif key == "Labels":
            if any((found or {}).get(name) != text for name, text in value.items()):
                yield f"{where}: {found}"
        elif key == "Ulimits":
            if sorted(map(repr, value)) != sorted(repr({**one}) for one in found or ()) and {
                (one["Name"], one["Soft"], one["Hard"]) for one in value
            } != {(one["Name"], one["Soft"], one["Hard"]) for one in found or ()}:
                yield f"{where}: {found}"
        elif (value or None) != (found or None):
            yield f"{where}: wanted {value!r}, got {found!r}"


@pytest.mark.docker
@pytest.mark.sec("SEC-066")
def test_the_engine_made_what_was_specified_for_every_entry(tmp_path: Path) -> None:
    """Created and not started, one container for each way an entry runs. What is specified depends on the entry and on
    what its image says of itself; one tiny image that says much stands for all of them."""
    name = f"lockgate.local/test-specified-{secrets.token_hex(4)}"
    launcher = f"{name.rpartition('/')[2]}-launcher"
    with closing(engine()) as client:
        packed = tiny_rootfs(tmp_path)
        changes = ['ENTRYPOINT ["/tiny"]', "VOLUME /declared", "LABEL traefik.enable=true"]
        changes += ["USER 0", "HEALTHCHECK CMD /tiny", "EXPOSE 80", "ENV FROM_IMAGE=1"]
        client.import_image_from_data(packed, repository=name, tag="1", changes=changes)
        try:
            inspected = client.inspect_image(f"{name}:1")
            ways = [(entry, origin) for entry in RUN_HERE for origin in _ways(entry)]

            def check(way: tuple[Entry, Literal["published", "local"]]) -> None:
                entry, origin = way
                _check_made(
                    client, entry, Image(f"{name}:1", origin, str(inspected["Id"])), inspected, tmp_path, launcher
                )

            with ThreadPoolExecutor(4) as pool:
                assert len(list(pool.map(check, ways))) == len(ways)
        finally:
            client.remove_image(f"{name}:1", force=True)
            with suppress(docker.errors.NotFound):
                client.remove_volume(launcher, force=True)
    packages = sum(origin == "local" for _, origin in ways)
    print(f"{len(ways)} containers compared for {len(RUN_HERE)} entries, {packages} of them from a package")
    assert packages >= STARTED
    assert len(ways) >= len(RUN_HERE) > 200


def _ways(entry: Entry) -> Iterator[Literal["published", "local"]]:
    if entry.image is not None:
        yield "published"
    if entry.package is not None:
        yield "local"


def _check_made(
    client: docker.APIClient, entry: Entry, image: Image, inspected: dict[str, Any], folder: Path, launcher: str
) -> None:
    network = "none" if entry.network == "none" else "bridge"
    over_http = entry.transport != "stdio" and image.origin == "published"
    pipes = None if over_http else folder / "pipes"
    handed = replace(given(folder, entry), launcher_volume=launcher, pipes=pipes, network=network)
    seen = _made(client, entry, image, inspected, handed)
    # What the image says of itself has no effect.
    config = seen["Config"]
    assert config["User"] == f"{CONTAINER_UID}:{CONTAINER_UID}"
    assert config["Healthcheck"]["Test"] == ["NONE"]
    assert config["Labels"]["traefik.enable"] == ""
    assert "noexec" in seen["HostConfig"]["Tmpfs"]["/declared"]
    assert seen["HostConfig"]["PublishAllPorts"] is False
    program = [*(config["Entrypoint"] or ()), *(config["Cmd"] or ())]
    words = list(entry.command if image.origin == "local" else entry.args)
    assert program[len(program) - len(words) :] == words, entry.id


def _made(
    client: docker.APIClient, entry: Entry, image: Image, inspected: dict[str, Any], handed: Given
) -> dict[str, Any]:
    """Make the container, compare what the engine says of it with its specification, and remove it."""
    for source in (*(one.source for one in handed.folders), *([handed.pipes] if handed.pipes else [])):
        source.mkdir(exist_ok=True)
    spec = specification(entry, image, ImageFacts.of(inspected), handed)
    created = client.create_container_from_config(spec)  # type: ignore[no-untyped-call]
    try:
        seen: dict[str, Any] = client.inspect_container(created["Id"])
    finally:
        client.remove_container(created["Id"], force=True, v=True)
    assert not list(differences(spec, {**seen["Config"], "HostConfig": seen["HostConfig"]})), entry.id
    assert_confined(seen["HostConfig"], entry)
    targets = {volume.target for volume in entry.volumes} | ({"/run/lockgate"} if handed.launcher_volume else set())
    targets |= {"/run/lockgate-pipes"} if handed.pipes else set()
    assert {one["Destination"] for one in seen["Mounts"]} == targets, entry.id
    assert not any(one["RW"] for one in seen["Mounts"] if one["Destination"].startswith("/run/lockgate")), entry.id
    return seen


@pytest.mark.docker
@pytest.mark.anyio
@pytest.mark.sec("SEC-066")
async def test_the_engine_made_what_was_specified_from_the_images_that_are_here(
    tmp_path: Path, cache_dir: Path
) -> None:
    """The same with the real images of a handful of entries, where they are built already, else with the bare one."""
    base = await base_image(cache_dir)
    own = 0

    def check(client: docker.APIClient, entry: Entry) -> bool:
        assert entry.package is not None
        tag = server_recipe(entry, entry.package).tag
        try:
            inspected = client.inspect_image(tag)
        except docker.errors.ImageNotFound:
            tag, inspected = base, client.inspect_image(base)
        _made(client, entry, Image(tag, "local", str(inspected["Id"])), inspected, given(tmp_path, entry))
        return tag != base

    with closing(engine()) as client:
        for id in STARTER:
            own += await to_thread.run_sync(check, client, SHIPPED.entry(id))
    print(f"{len(STARTER)} entries compared, {own} of them with an image of their own")


# -- from the inside -----------------------------------------------------------------------------


@pytest.fixture
async def box(tmp_path: Path, cache_dir: Path) -> AsyncIterator[Sandbox]:
    entry = probe_entry(
        await base_image(cache_dir),
        volumes=(Volume(name="data", target="/data"),),
        limits={"pids": 40, "tmpfs_mib": 8, "volume_mib": 4, "cpus": 0.25, "memory_mib": 96},
    )
    async with sandbox(cache_dir, tmp_path, entry) as opened:
        yield opened


@pytest.mark.docker
@pytest.mark.anyio
@pytest.mark.sec("SEC-066")
async def test_no_way_out_of_a_container_works(box: Sandbox) -> None:
    got: dict[str, str] = await box.run(ESCAPES + "\nresult = run()")
    assert len(got) > 55
    assert not {way: answer for way, answer in got.items() if not answer.startswith("refused")}


FORKS = """
import os, signal, time
children = []
try:
    while len(children) < 500:
        pid = os.fork()
        if pid == 0:
            time.sleep(600); os._exit(0)
        children.append(pid)
    result = ["done", len(children)]
except OSError as exc:
    result = [exc.errno, len(children)]
for pid in children:
    os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0)
"""
FILES = """
import os
opened = []
try:
    while len(opened) < 100_000:
        opened.append(os.open("/dev/null", os.O_RDONLY))
    result = ["done", len(opened)]
except OSError as exc:
    result = [exc.errno, len(opened)]
for fd in opened:
    os.close(fd)
"""
DISK = """
import os, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
def fill(path, limit):
    n = 0
    try:
        with open(path, "wb", buffering=0) as file:
            while n < limit:
                n += file.write(b"x" * 65536)
        return ["done", n]
    except OSError as exc:
        return [exc.errno, n]
    finally:
        os.unlink(path)
result = [fill("/tmp/big", 64 << 20), fill("/data/big", 64 << 20), fill("/dev/shm/big", 64 << 20)]
"""
INODES = """
import os
n = 0
try:
    while n < 100_000:
        os.close(os.open(f"/tmp/{n}", os.O_CREAT | os.O_WRONLY)); n += 1
    result = ["done", n]
except OSError as exc:
    result = [exc.errno, n]
for one in range(n):
    os.unlink(f"/tmp/{one}")
"""
SPIN = """
import glob, os, signal, time
def throttled():
    paths = glob.glob("/sys/fs/cgroup/cpu/cpu.stat") + glob.glob("/sys/fs/cgroup/cpu.stat")
    lines = "".join(open(path).read() for path in paths).splitlines()
    return {line.split()[0]: int(line.split()[1]) for line in lines}["nr_throttled"]
children = []
for _ in range(4):
    pid = os.fork()
    while pid == 0:
        pass
    children.append(pid)
until = time.monotonic() + 30
while not throttled() and time.monotonic() < until:
    time.sleep(0.05)
for pid in children:
    os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0)
result = throttled()
"""
TALK = """
import os
line = b"y" * 999 + b"\\n"
for _ in range(64 * 1024):
    os.write(2, line)
for _ in range(16 * 1024):
    os.write(1, line)
result = "said"
"""
EAT = """
kept = []
while True:
    kept.append(bytearray(8 << 20))
"""
EAGAIN, EMFILE, EFBIG, ENOSPC = 11, 24, 27, 28


@pytest.mark.docker
@pytest.mark.anyio
class TestBombs:
    """Each is limited, and the server still answers; only the one that eats its memory is gone."""

    pytestmark = pytest.mark.sec("SEC-069")

    async def test_processes(self, box: Sandbox) -> None:
        code, n = await box.run(FORKS)
        assert (code, n < 40) == (EAGAIN, True)

    async def test_open_files(self, box: Sandbox) -> None:
        code, n = await box.run(FILES)
        assert (code, n <= 4096) == (EMFILE, True)

    async def test_disk(self, box: Sandbox) -> None:
        tmp, volume, shm = await box.run(DISK)
        assert (tmp[0], tmp[1] <= 8 << 20) in ((ENOSPC, True), (EFBIG, True))
        assert (volume[0], volume[1] <= 4 << 20) == (EFBIG, True)
        assert (shm[0] in (ENOSPC, EFBIG), shm[1] <= 16 << 20) == (True, True)

    async def test_inodes(self, box: Sandbox) -> None:
        code, n = await box.run(INODES)
        assert (code, n <= 8 * 256) == (ENOSPC, True)

    async def test_processor(self, box: Sandbox) -> None:
        assert await box.run(SPIN) > 0
        host = (await box.inspect())["HostConfig"]
        assert host["NanoCpus"] == 250_000_000

    async def test_log(self, box: Sandbox) -> None:
        assert await box.run(TALK) == "said"
        assert len(box.log.lines()) <= 1000
        assert sum(len(line.text) for line in box.log.lines()) < 3_000_000
        assert await box.run("result = 1") == 1

    async def test_memory(self, box: Sandbox) -> None:
        with pytest.raises(UpstreamError, match="memory limit of 96 MiB"):
            await box.run(EAT)


# -- what an image says of itself ----------------------------------------------------------------


@contextmanager
def crafted(client: docker.APIClient, base: str, *changes: str) -> Iterator[str]:
    """The base image with other words about itself."""
    name = f"lockgate-test/crafted-{secrets.token_hex(4)}"
    health = docker.types.Healthcheck(test=["CMD", "touch", "/tmp/checked"], interval=1_000_000_000)
    container = client.create_container(base, ["true"], healthcheck=health, stop_signal="SIGUSR1")
    try:
        client.commit(container["Id"], repository=name, tag="1", changes=list(changes))
        config = client.inspect_image(f"{name}:1")["Config"]
        assert config["Healthcheck"]
        assert config["StopSignal"] == "SIGUSR1"
    finally:
        client.remove_container(container["Id"], force=True)
    try:
        yield f"{name}:1"
    finally:
        client.remove_image(f"{name}:1", force=True)


@pytest.mark.docker
@pytest.mark.anyio
@pytest.mark.sec("SEC-073")
async def test_what_an_image_says_of_itself_does_not_shape_its_container(tmp_path: Path, cache_dir: Path) -> None:
    base = await base_image(cache_dir)
    client = engine()
    with (
        closing(client),
        crafted(
            client,
            base,
            "LABEL lockgate.gateway=forged lockgate.server=forged traefik.enable=true com.docker.compose.project=x",
            "ENV HOME=/root HTTP_PROXY=http://evil.example LD_PRELOAD=/tmp/x.so",
            'ENTRYPOINT ["python3"]',
            "VOLUME /declared /srv/also",
            "EXPOSE 8080",
            "USER root",
        ) as image,
    ):
        entry = probe_entry(image, args=probe_entry(image).args[1:])  # the entrypoint is the program
        async with sandbox(cache_dir, tmp_path, entry) as box:
            seen = await box.inspect()
            inside = await box.run("import os; result = [os.getuid(), os.environ['HOME'], open('/proc/mounts').read()]")
            volumes = client.volumes()["Volumes"] or []
    config = seen["Config"]
    assert config["Labels"]["lockgate.gateway"] != "forged"
    assert config["Labels"]["lockgate.server"] == "probe"
    assert config["Labels"]["traefik.enable"] == config["Labels"]["com.docker.compose.project"] == ""
    assert config["Healthcheck"]["Test"] == ["NONE"]
    assert config["StopSignal"] == "SIGTERM"
    assert not seen["HostConfig"]["PortBindings"]
    assert not any(one["RW"] for one in seen["Mounts"])
    assert {one["Destination"] for one in seen["Mounts"]} <= {"/run/lockgate", "/run/lockgate-pipes"}
    mounted = [one["Name"] for one in volumes if one["Name"] in str(seen)]
    assert all(name.startswith("lockgate-launcher-") for name in mounted)
    assert inside[:2] == [os.getuid() or CONTAINER_UID, "/tmp"]
    for target in ("/declared", "/srv/also"):
        (line,) = [line for line in inside[2].splitlines() if f" {target} " in line]
        assert line.startswith("tmpfs")
        assert {"noexec", "nosuid", "nodev"} <= set(line.split()[3].split(","))


@pytest.mark.sec("SEC-073")
@pytest.mark.parametrize(
    "volume", ["/", "/etc", "/proc/sys", "/usr/lib", "/run/lockgate", "/../etc", "/var/run", "relative", "/a b"]
)
def test_an_image_that_declares_a_volume_over_the_system_is_refused(volume: str) -> None:
    entry, image = probe_entry("x:1"), Image("x:1", "published", "sha256:0")
    with pytest.raises(UpstreamUnavailable, match="declares a volume that is refused"):
        specification(entry, image, ImageFacts(volumes=(volume,)), Given("1:1", {}))


@pytest.mark.sec("SEC-073")
def test_an_image_with_many_volumes_is_refused() -> None:
    entry, image = probe_entry("x:1"), Image("x:1", "published", "sha256:0")
    facts = ImageFacts(volumes=tuple(f"/v{index}" for index in range(17)))
    with pytest.raises(UpstreamUnavailable, match="more than 16 volumes"):
        specification(entry, image, facts, Given("1:1", {}))


# -- stronger runtimes ---------------------------------------------------------------------------


@pytest.mark.docker
@pytest.mark.anyio
async def test_a_runtime_is_used_if_the_engine_lists_it_and_refused_if_not(tmp_path: Path, cache_dir: Path) -> None:
    client = engine()
    with closing(client):
        listed = sorted(client.info()["Runtimes"])
    base = await base_image(cache_dir)
    async with sandbox(cache_dir, tmp_path, probe_entry(base), container_runtime=listed[0]) as box:
        assert (await box.inspect())["HostConfig"]["Runtime"] == listed[0]
    for entry, setting in ((probe_entry(base, container_runtime="nosuch"), listed[0]), (probe_entry(base), "nosuch")):
        with pytest.raises(UpstreamUnavailable, match="nosuch, which the engine does not list"):
            async with sandbox(cache_dir, tmp_path, entry, container_runtime=setting):
                pass
