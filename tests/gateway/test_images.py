"""Images of servers, found, pulled and built with a real Docker Engine and a real registry.

Does not run servers under the gateway: that is the docker runtime's test."""

import io
import json
import os
import socket
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import docker
import pytest
from docker.errors import DockerException

from catalog import Entry, Package, Volume
from gateway.errors import ImageError
from gateway.images import Image, ImageStore
from gateway.images.reachability import DEFAULT_REGISTRY, UNREACHABLE_FOR_S, Reachability, registry_address
from gateway.images.recipes import UID, base_tag, server_recipe
from tests.gateway.registries import registry as real_registry
from tests.servers import until

TIME = Entry(
    id="time",
    title="Time",
    description="The time in any zone.",
    package=Package(ecosystem="pypi", name="mcp-server-time", version="2026.10.19"),
    command=("mcp-server-time", "--local-timezone", "UTC"),
)
EVERYTHING = Entry(
    id="everything",
    title="Everything",
    description="One of each kind.",
    package=Package(ecosystem="npm", name="@modelcontextprotocol/server-everything", version="2026.8.31"),
    command=("mcp-server-everything",),
)
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    },
}
NO_IMAGE = "lockgate.invalid/nobody/nothing@sha256:" + "0" * 64

pytestmark = pytest.mark.anyio


def silent(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def engine() -> Iterator[docker.DockerClient]:
    try:
        client = docker.from_env()
    except DockerException as exc:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI has to test with a Docker Engine, and none answers: {exc}")
        pytest.skip("no Docker Engine answers")
    yield client
    client.close()


@pytest.fixture(scope="module")
def cache_dir() -> Path:
    """The user's own cache, so that the base image is made once per machine and not once per run."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("LOCKGATE_CACHE_DIR") or Path(home) / "lockgate")


def server_info(image: Image, *command: str) -> dict[str, str]:
    process = subprocess.Popen(
        ["docker", "run", "--rm", "-i", "--network=none", "--read-only", image.reference, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(INITIALIZE) + "\n")
        process.stdin.flush()
        for line in process.stdout:
            message = json.loads(line)
            if message.get("id") == 1:
                process.stdin.close()
                info: dict[str, str] = message["result"]["serverInfo"]
                return info
    raise AssertionError("the server ended without an answer")


def run_in(image: Image, *command: str) -> str:
    done = subprocess.run(
        ["docker", "run", "--rm", "--network=none", image.reference, *command],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def files_of(engine: docker.DockerClient, image: Image) -> Iterator[tuple[str, bytes]]:
    """Every file in the image with its content."""
    container = engine.containers.create(image.id)
    try:
        exported = io.BytesIO(b"".join(container.export()))  # type: ignore[arg-type]  # the stub says str
        with tarfile.open(fileobj=exported) as archive:
            for member in archive:
                content = archive.extractfile(member) if member.isfile() else None
                yield member.name, content.read() if content else b""
    finally:
        container.remove()


DPKG = ("dpkg-query", "-W", "-f", "${Version}", "libc6")


def installed(image: Image) -> set[tuple[str, str]]:
    """The Python packages as the image's own interpreter sees them."""
    code = "import importlib.metadata as m, json; print(json.dumps([(d.name, d.version) for d in m.distributions()]))"
    return {(name, version) for name, version in json.loads(run_in(image, "python", "-c", code))}


def build_containers(engine: docker.DockerClient) -> list[str]:
    # Only the list: the other call inspects each one, and fails for those that are gone by then.
    found = engine.api.containers(all=True, filters={"name": "lockgate-build-"})
    return [name for one in found for name in one["Names"]]


@pytest.mark.docker
@pytest.mark.parametrize(
    ("entry", "name"), [(TIME, "mcp-time"), (EVERYTHING, "mcp-servers/everything")], ids=["pypi", "npm"]
)
async def test_a_package_becomes_an_image_that_serves_without_root_or_network(
    entry: Entry, name: str, engine: docker.DockerClient, cache_dir: Path
) -> None:
    image = await ImageStore(cache_dir).ensure(entry, progress=silent)
    assert image.origin == "local"
    assert image.reference.startswith(f"lockgate.local/{entry.id}:")
    assert server_info(image, *entry.command)["name"] == name
    assert run_in(image, "id", "-u") == str(UID)
    assert run_in(image, "sh", "-c", "find /opt /usr /etc -writable -not -type l 2>&- || true") == ""
    labels = engine.images.get(image.id).labels
    assert (labels["lockgate.image"], labels["lockgate.entry"]) == ("local", entry.id)
    assert labels["lockgate.recipe"] == image.reference.partition(":")[2]


@pytest.mark.docker
async def test_an_image_that_is_there_is_used_at_once(engine: docker.DockerClient, cache_dir: Path) -> None:
    first = await ImageStore(cache_dir).ensure(TIME, progress=silent)
    lines: list[str] = []
    started = time.process_time()
    again = await ImageStore(cache_dir).ensure(TIME, progress=lines.append)
    assert again == first
    assert lines == []
    assert time.process_time() - started < 1.0


@pytest.mark.docker
@pytest.mark.parametrize("entry", [TIME, EVERYTHING], ids=["pypi", "npm"])
async def test_settings_of_the_build_stay_out_of_the_image(
    entry: Entry,
    engine: docker.DockerClient,
    cache_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle = next(
        Path(found)
        for found in (os.environ.get("SSL_CERT_FILE"), "/etc/ssl/certs/ca-certificates.crt")
        if found and Path(found).is_file()
    )
    marker = "lockgate-build-marker"
    certificates = tmp_path / f"{marker}.pem"
    certificates.write_bytes(bundle.read_bytes() + f"# {marker}\n".encode())
    npmrc = tmp_path / "npmrc"
    npmrc.write_text(f"//{marker}.example/:_authToken={marker}\n@{marker}:registry=https://{marker}.example\n")
    for variable in ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"):
        monkeypatch.setenv(variable, str(certificates))
    monkeypatch.setenv("PIP_TRUSTED_HOST", f"{marker}.example")
    monkeypatch.setenv("NPM_CONFIG_USERCONFIG", str(npmrc))

    # The images that others use keep their names: this one is built under a name of its own.
    entry = entry.model_copy(update={"id": f"test-{entry.id}"})
    image = await ImageStore(cache_dir).build(entry, progress=silent)
    try:
        inspected: dict[str, Any] = engine.images.get(image.id).attrs
        history = json.dumps(engine.images.get(image.id).history())
        for shown in (json.dumps(inspected), history):
            assert marker not in shown
            for setting in ("PIP_", "UV_", "NPM_", "SSL_CERT", "ca-certificates", str(cache_dir)):
                assert setting not in shown
        assert not inspected["Config"]["Volumes"]
        assert inspected["Config"]["Hostname"] != socket.gethostname()
        leaked = [name for name, content in files_of(engine, image) if marker in name or marker.encode() in content]
        assert leaked == []
        assert run_in(image, "ls", "/run").find("lockgate") == -1

        again = await ImageStore(cache_dir).build(entry, progress=silent)
        assert again.id == image.id, "two builds of the same packages differ"
        listed = json.loads(ImageStore(cache_dir).sbom_path(image).read_bytes())
        assert listed["metadata"]["component"]["version"] == image.id
        found = {(one["name"], one["version"]) for one in listed["components"]}
        assert entry.package is not None
        assert {(entry.package.name, entry.package.version), ("libc6", run_in(image, *DPKG))} <= found
        if entry.package.ecosystem == "pypi":
            assert found >= installed(image)
    finally:
        engine.images.remove(image.reference)


@pytest.mark.docker
async def test_programs_and_volumes_of_the_entry_are_in_its_image(engine: docker.DockerClient, cache_dir: Path) -> None:
    git = Entry(
        id="git",
        title="Git",
        description="Work with repositories.",
        package=Package(ecosystem="pypi", name="mcp-server-git", version="2026.10.19", apt=("git",)),
        command=("mcp-server-git",),
        volumes=(Volume(name="data", target="/data"),),
    )
    image = await ImageStore(cache_dir).ensure(git, progress=silent)
    assert run_in(image, "git", "--version").startswith("git version")
    assert run_in(image, "stat", "-c", "%u:%g", "/data") == f"{UID}:{UID}"


@pytest.mark.docker
async def test_without_an_image_or_a_package_the_error_gives_both_reasons(
    engine: docker.DockerClient, tmp_path: Path
) -> None:
    entry = Entry(id="nothing", title="Nothing", description="Cannot run.", image=NO_IMAGE)
    with pytest.raises(ImageError) as failure:
        await ImageStore(tmp_path).ensure(entry, progress=silent)
    message = str(failure.value)
    assert message.startswith("no image for nothing: published image: lockgate.invalid/nobody/nothing@sha256:")
    assert "its registry (lockgate.invalid) cannot be reached" in message
    assert "names no package to build an image from" in message


@pytest.mark.docker
async def test_an_unreachable_image_gives_way_to_the_package(engine: docker.DockerClient, cache_dir: Path) -> None:
    entry = TIME.model_copy(update={"image": NO_IMAGE})
    image = await ImageStore(cache_dir).ensure(entry, progress=silent)
    assert image.origin == "local"


@pytest.mark.docker
async def test_a_failed_build_repeats_the_installer_and_leaves_no_container(
    engine: docker.DockerClient, cache_dir: Path
) -> None:
    package = Package(ecosystem="pypi", name="mcp-server-time", version="1900.1.1")
    entry = TIME.model_copy(update={"package": package})
    with pytest.raises(ImageError, match=r"(?s)the installer said:.*mcp-server-time==1900\.1\.1"):
        await ImageStore(cache_dir).ensure(entry, progress=silent)
    await until(lambda: not build_containers(engine), "the container is gone")


@pytest.mark.docker
async def test_a_package_without_a_wheel_is_built_from_source(engine: docker.DockerClient, cache_dir: Path) -> None:
    entry = Entry(
        id="test-source-only",
        title="A package that has only a source archive",
        description="Not a server.",
        package=Package(ecosystem="pypi", name="docopt", version="0.6.2"),
        command=("python", "-c", "import docopt; print(docopt.__version__)"),
    )
    lines: list[str] = []
    image = await ImageStore(cache_dir).build(entry, progress=lines.append)
    try:
        assert any("building it from source" in line for line in lines)
        assert run_in(image) == "0.6.2"
        again = await ImageStore(cache_dir).build(entry, progress=silent)
        assert again == image  # a wheel that was built twice is in both, to the last byte
    finally:
        engine.images.remove(image.reference)


@pytest.mark.docker
async def test_a_cancelled_build_leaves_no_container_and_no_image(engine: docker.DockerClient, cache_dir: Path) -> None:
    entry = EVERYTHING.model_copy(update={"id": "test-cancelled"})
    assert entry.package is not None
    store = ImageStore(cache_dir)
    await store.ensure(EVERYTHING, progress=silent)  # the base is there
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: store.build(entry, progress=silent))
        with anyio.fail_after(60):
            while not build_containers(engine):
                await anyio.sleep(0.05)
        tasks.cancel_scope.cancel()
    await until(lambda: not build_containers(engine), "the container is gone")
    assert engine.images.list(server_recipe(entry, entry.package).tag) == []


@pytest.mark.docker
async def test_two_stores_that_want_the_same_image_build_it_once(engine: docker.DockerClient, cache_dir: Path) -> None:
    entry = TIME.model_copy(update={"id": "test-twice"})
    lines: list[str] = []
    found: list[Image] = []

    async def ensure() -> None:
        found.append(await ImageStore(cache_dir).ensure(entry, progress=lines.append))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ensure)
        tasks.start_soon(ensure)
    engine.images.remove(found[0].reference)
    assert found[0] == found[1]
    assert sum("building an image" in line for line in lines) == 1


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    with real_registry(tmp_path / "registry") as one:
        yield one.host


@pytest.mark.docker
async def test_a_published_image_is_pulled_by_digest_and_preferred_to_a_build(
    engine: docker.DockerClient, registry: str, cache_dir: Path
) -> None:
    local = await ImageStore(cache_dir).ensure(TIME, progress=silent)
    name = f"{registry}/published/time"
    engine.images.get(local.id).tag(name, "1")
    engine.api.push(name, tag="1")
    digests = engine.images.get(f"{name}:1").attrs["RepoDigests"]
    reference = next(digest for digest in digests if digest.startswith(name))
    engine.images.remove(f"{name}:1")

    entry = TIME.model_copy(update={"image": reference})
    lines: list[str] = []
    image = await ImageStore(cache_dir).ensure(entry, progress=lines.append)
    try:
        assert image == Image(reference, "published", local.id)
        assert lines == [f"pulling {reference}"]
        absent = TIME.model_copy(update={"image": f"{name}:2", "package": None, "command": ()})
        with pytest.raises(ImageError, match=r"not found|manifest unknown"):
            await ImageStore(cache_dir).ensure(absent, progress=silent)
    finally:
        engine.images.remove(reference)


async def test_an_engine_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        store = ImageStore(tmp_path, docker_url=f"tcp://127.0.0.1:{free.getsockname()[1]}")
    with pytest.raises(ImageError, match="no Docker Engine answers"):
        await store.ensure(TIME, progress=silent)


async def test_a_registry_that_refused_is_not_asked_again_for_a_while() -> None:
    now = 0.0
    reachability = Reachability(clock=lambda: now)
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
        address = ("127.0.0.1", int(listener.extra(anyio.abc.SocketAttribute.local_port)))
        assert await reachability.check(address)
        reachability.refuse(address)
        assert not await reachability.check(address)
        now = UNREACHABLE_FOR_S + 1
        assert await reachability.check(address)
    assert not await reachability.check(address)


@pytest.mark.parametrize(
    ("reference", "address"),
    [
        ("time", DEFAULT_REGISTRY),
        ("mcp/time@sha256:00", DEFAULT_REGISTRY),
        ("docker.io/mcp/time:1", DEFAULT_REGISTRY),
        ("ghcr.example/owner/time:1", ("ghcr.example", 443)),
        ("localhost/time", ("localhost", 80)),
        ("127.0.0.1:5000/time:1", ("127.0.0.1", 5000)),
        ("[::1]:5000/time", ("::1", 5000)),
    ],
)
def test_the_registry_of_a_reference_follows_dockers_rules(reference: str, address: tuple[str, int]) -> None:
    assert registry_address(reference) == address


def test_the_name_of_a_local_image_changes_with_what_is_in_it() -> None:
    assert TIME.package is not None
    variants = [
        TIME,
        TIME.model_copy(update={"package": TIME.package.model_copy(update={"pins": ("mcp<2",)})}),
        TIME.model_copy(update={"package": TIME.package.model_copy(update={"apt": ("git",)})}),
        TIME.model_copy(update={"volumes": (Volume(name="data", target="/data"),)}),
        TIME.model_copy(update={"command": ("mcp-server-time",)}),
    ]
    tags = {server_recipe(entry, entry.package).tag for entry in variants if entry.package}
    assert len(tags) == len(variants)
    same = TIME.model_copy(update={"title": "Clock"})
    assert server_recipe(same, TIME.package).tag == server_recipe(TIME, TIME.package).tag
    assert base_tag("python") != base_tag("node")
