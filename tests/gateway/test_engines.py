"""Containers on engines reached in every way there is: a socket file, TLS with certificates, ssh, Podman's socket;
and on an engine that goes away, comes back, or stops answering in the middle of something."""

import asyncio
import datetime
import gc
import ipaddress
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path

import anyio
import docker
import pytest
import requests
from anyio import to_thread
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from catalog import Entry
from gateway.docker_engine import DockerEngine
from gateway.engine_address import EngineAddress
from gateway.errors import EngineDown, UpstreamError, UpstreamUnavailable
from gateway.images import ImageStore
from gateway.runs import Run
from gateway.runtimes.docker import DockerRuntime
from gateway.serverlog import ServerLog
from gateway.upstream import Upstream
from gateway.wire import envelope
from tests.gateway.engines import (
    HELLO,
    client,
    engine_socket,
    make_tiny_image,
    road_to_engine,
    tiny_entry,
    tiny_rootfs,
    tls_to_engine,
)
from tests.servers import DEADLINE_S

pytestmark = [pytest.mark.anyio, pytest.mark.docker]

START_S = 60.0
NAME = "lockgate.local/test-tiny"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Entry]:
    """An entry whose image is in the engine."""
    engine = client()
    name = f"{NAME}-{os.getpid()}"
    make_tiny_image(engine, tmp_path_factory.mktemp("tiny"), name)
    yield tiny_entry(f"{name}:1")
    engine.remove_image(f"{name}:1", force=True)
    engine.close()


@asynccontextmanager
async def runtime_on(address: EngineAddress | str, folder: Path) -> AsyncIterator[DockerRuntime]:
    engine = DockerEngine(address)
    with Run(folder / "state") as run:
        runtime = DockerRuntime(engine, ImageStore(folder / "cache", engine, run=run), folder / "volumes", run)
        try:
            reason = await runtime.probe()
            assert reason is None
            yield runtime
        finally:
            with anyio.CancelScope(shield=True):
                await runtime.aclose()


async def left(runtime: DockerRuntime) -> int:
    """How many containers of this runtime are still there."""
    assert runtime.reconciler is not None
    return await runtime.reconciler.sweep()


async def start(runtime: DockerRuntime, one: Entry) -> tuple[Upstream, AsyncExitStack]:
    """A started server; the stack closes it."""
    stack = AsyncExitStack()
    upstream = Upstream(one.id, ServerLog(), call_timeout_s=DEADLINE_S, on_notification=lambda *_: None)
    with anyio.fail_after(START_S):
        channel = await runtime.start(one, upstream, upstream.log)
        stack.push_async_callback(channel.close)
        try:
            await upstream.open(channel)
        except BaseException:
            await stack.aclose()
            raise
    return upstream, stack


async def call(upstream: Upstream) -> str:
    members = {"name": envelope.raw("hello"), "arguments": envelope.raw({})}
    return (await upstream.request("tools/call", members)).decode()


async def serves(runtime: DockerRuntime, one: Entry) -> None:
    """A server starts, answers, exits when told to, and leaves nothing."""
    upstream, stack = await start(runtime, one)
    assert HELLO in await call(upstream)
    assert HELLO in await call(upstream)
    await stack.aclose()
    assert await left(runtime) == 0


# -- ways to an engine ---------------------------------------------------------------------------


async def test_an_engine_behind_a_socket_file(tiny: Entry, tmp_path: Path) -> None:
    async with runtime_on(f"unix://{engine_socket()}", tmp_path) as runtime:
        await serves(runtime, tiny)


class Certificates:
    """An authority of our own, and a certificate each for the engine and its client."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        self._write("ca.pem", self._sign(self._name, self._key, x509.BasicConstraints(True, None)))
        for name, host in (("server", "127.0.0.1"), ("", "client")):
            key = ec.generate_private_key(ec.SECP256R1())
            subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
            prefix = f"{name}-" if name else ""
            self._write(f"{prefix}cert.pem", self._sign(subject, key, x509.BasicConstraints(False, None)))
            private = key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            (folder / f"{prefix}key.pem").write_bytes(private)

    def _sign(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, kind: x509.BasicConstraints
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self._name).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(hours=1))
        builder = builder.not_valid_after(now + datetime.timedelta(hours=1)).add_extension(kind, critical=True)
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        builder = builder.add_extension(names, critical=False)
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = builder.add_extension(authority, critical=False)
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        builder = builder.add_extension(identifier, critical=False)
        if kind.ca:
            usage = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
            builder = builder.add_extension(usage, critical=True)
        return builder.sign(self._key, hashes.SHA256())

    def _write(self, name: str, certificate: x509.Certificate) -> None:
        (self.folder / name).write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def server(self) -> ssl.SSLContext:
        """For the engine's side: wants a certificate of its client."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / "server-cert.pem", self.folder / "server-key.pem")
        context.load_verify_locations(self.folder / "ca.pem")
        context.verify_mode = ssl.CERT_REQUIRED
        return context


async def test_an_engine_behind_tls_takes_our_certificate_and_shows_its_own(tiny: Entry, tmp_path: Path) -> None:
    ours, foreign = Certificates(tmp_path / "ours"), Certificates(tmp_path / "foreign")
    async with tls_to_engine(ours.server()) as port:
        url = f"tcp://127.0.0.1:{port}"
        async with runtime_on(EngineAddress(url, ours.folder), tmp_path) as runtime:
            await serves(runtime, tiny)
        # An engine with a foreign certificate is not talked to.
        stranger = DockerEngine(EngineAddress(url, foreign.folder))
        with pytest.raises(EngineDown, match="certificate"):
            await stranger.check()
        await stranger.aclose()
        # Without the client's certificate the engine does not talk to us.
        (foreign.folder / "ca.pem").write_bytes((ours.folder / "ca.pem").read_bytes())
        nobody = DockerEngine(EngineAddress(url, foreign.folder))
        with pytest.raises(EngineDown):
            await nobody.check()
        await nobody.aclose()
        missing = DockerEngine(EngineAddress(url, tmp_path / "nothing"))
        with pytest.raises(EngineDown, match=r"ca\.pem is missing"):
            await missing.check()
        await missing.aclose()


@contextmanager
def ssh_server(folder: Path) -> Iterator[int]:
    """A real sshd on a free port of this machine, with throwaway keys."""
    sshd = shutil.which("sshd") or "/usr/sbin/sshd"
    if os.getuid() != 0 or not Path(sshd).exists() or shutil.which("ssh-keygen") is None:
        pytest.skip("needs root and Debian's openssh-server")
    for name in ("host", "client"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = folder / "sshd_config"
    config.write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {folder}/host\n"
        f"AuthorizedKeysFile {folder}/client.pub\nStrictModes no\n"
        f"UsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\nPidFile {folder}/sshd.pid\n"
        f"SetEnv PATH={os.environ['PATH']}\n"
    )
    with (folder / "sshd.log").open("wb") as log:
        process = subprocess.Popen([sshd, "-D", "-e", "-f", config], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + START_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, (folder / "sshd.log").read_text()
                assert time.monotonic() < deadline, "sshd did not start"
                time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait(START_S)


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The engine's address over ssh; `ssh` finds throwaway keys in place of the user's."""
    with ssh_server(tmp_path) as port:
        config = tmp_path / "ssh_config"
        config.write_text(f"IdentityFile {tmp_path}/client\nStrictHostKeyChecking no\nUserKnownHostsFile /dev/null\n")
        programs = tmp_path / "bin"
        programs.mkdir()
        (programs / "ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {config} "$@"\n')
        (programs / "ssh").chmod(0o755)
        monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
        yield f"ssh://root@127.0.0.1:{port}{engine_socket()}"


def ssh_processes(folder: Path) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if f"{folder}/ssh_config".encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


async def test_an_engine_behind_ssh_serves_and_leaves_no_ssh(tiny: Entry, ssh: str, tmp_path: Path) -> None:
    async with runtime_on(ssh, tmp_path) as runtime:
        await serves(runtime, tiny)
        assert await to_thread.run_sync(ssh_processes, tmp_path)
    assert await to_thread.run_sync(ssh_processes, tmp_path) == []


async def test_an_engine_behind_an_ssh_that_refuses_us_is_down_with_the_reason(ssh: str, tmp_path: Path) -> None:
    (tmp_path / "client.pub").write_text("")
    engine = DockerEngine(ssh)
    with pytest.raises(EngineDown, match=r"ssh: .*Permission denied"):
        await engine.check()
    await engine.aclose()
    assert await to_thread.run_sync(ssh_processes, tmp_path) == []


@contextmanager
def podman_service() -> Iterator[str]:
    """Podman's own service with an image in it, in folders of its own."""
    podman = shutil.which("podman")
    if podman is None or os.getuid() != 0:
        pytest.skip("needs root and Debian's podman")
    folder = Path(tempfile.mkdtemp(prefix="podman-"))  # Podman wants short paths
    argv = [podman, "--root", f"{folder}/root", "--runroot", f"{folder}/run", "--cgroup-manager=cgroupfs"]
    url = f"unix://{folder}/podman.sock"
    try:
        done = subprocess.run(
            [*argv, "import", "--change", 'ENTRYPOINT ["/tiny"]', "-", f"{NAME}:1"],
            input=tiny_rootfs(folder),
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        with (folder / "podman.log").open("wb") as log:
            service = subprocess.Popen([*argv, "system", "service", "--time=0", url], stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + START_S
            while not Path(f"{folder}/podman.sock").exists():
                assert service.poll() is None, (folder / "podman.log").read_text()
                assert time.monotonic() < deadline, "podman did not start"
                time.sleep(0.05)
            yield url
        finally:
            service.terminate()
            service.wait(START_S)
            subprocess.run([*argv, "rm", "--all", "--force"], capture_output=True, check=False)
    finally:
        subprocess.run([*argv, "system", "reset", "--force"], capture_output=True, check=False)
        shutil.rmtree(folder, ignore_errors=True)


async def test_podmans_compatible_socket(tmp_path: Path) -> None:
    with podman_service() as url:
        async with runtime_on(url, tmp_path) as runtime:
            await serves(runtime, tiny_entry(f"{NAME}:1"))


# -- an engine in trouble ------------------------------------------------------------------------


async def test_an_engine_that_goes_and_comes_back_is_used_again(tiny: Entry, tmp_path: Path) -> None:
    path = tmp_path / "engine.sock"
    async with road_to_engine(path) as road, runtime_on(f"unix://{path}", tmp_path) as runtime:
        upstream, stack = await start(runtime, tiny)
        assert HELLO in await call(upstream)
        road.cut("refusing")
        with anyio.fail_after(DEADLINE_S):
            await upstream.ended.wait()  # no call waits for an engine that is gone
        with pytest.raises(UpstreamError):
            await call(upstream)
        with pytest.raises(UpstreamUnavailable, match="no Docker Engine answers"):
            await start(runtime, tiny)
        road.cut("open")
        with anyio.fail_after(DEADLINE_S):
            while True:
                try:
                    again, more = await start(runtime, tiny)
                    break
                except UpstreamUnavailable:
                    await anyio.sleep(0.1)
        assert HELLO in await call(again)
        await more.aclose()
        await stack.aclose()
        assert await left(runtime) == 0


async def test_an_engine_that_stops_answering_is_noticed_by_the_ping_and_not_by_each_caller(
    tiny: Entry, tmp_path: Path
) -> None:
    path = tmp_path / "engine.sock"
    async with road_to_engine(path) as road, runtime_on(f"unix://{path}", tmp_path) as runtime:
        road.cut("silent")
        failures: list[str] = []

        async def try_it() -> None:
            with pytest.raises(UpstreamUnavailable) as caught:
                await runtime.start(
                    tiny, Upstream("x", ServerLog(), call_timeout_s=1, on_notification=print), ServerLog()
                )
            failures.append(str(caught.value))

        before = road.n_connections
        with anyio.fail_after(DEADLINE_S):  # each alone would wait a minute for the engine's answer
            async with anyio.create_task_group() as group:
                for _ in range(20):
                    group.start_soon(try_it)
        assert len(failures) == 20
        assert all("no answer within" in text or "no Docker Engine answers" in text for text in failures)
        assert road.n_connections - before < 20  # one question for all of them
        road.cut("open")


async def test_work_in_the_middle_of_which_the_engine_falls_silent_is_given_up(tiny: Entry, tmp_path: Path) -> None:
    path = tmp_path / "engine.sock"
    async with road_to_engine(path) as road:
        engine = DockerEngine(f"unix://{path}")
        begun = asyncio.Event()
        loop = asyncio.get_running_loop()

        def work(client: docker.APIClient) -> object:
            loop.call_soon_threadsafe(begun.set)
            return list(client.events(decode=True))  # ends only with the connection

        async def fall_silent() -> None:
            await begun.wait()
            road.mode = "silent"

        async with anyio.create_task_group() as group:
            group.start_soon(fall_silent)
            with anyio.fail_after(START_S), pytest.raises(EngineDown):
                await engine.run(work)
        road.cut("open")
        await engine.aclose()


async def test_other_servers_answer_while_the_engine_is_silent(tmp_path: Path) -> None:
    """The loop is never blocked by an engine: only who needs it waits."""
    path = tmp_path / "engine.sock"
    async with road_to_engine(path) as road:
        road.mode = "silent"
        engine = DockerEngine(f"unix://{path}")
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await anyio.sleep(0)
                ticks += 1

        async with anyio.create_task_group() as group:
            group.start_soon(tick)
            with pytest.raises(EngineDown, match="no answer within"):
                await engine.check()
            group.cancel_scope.cancel()
        assert ticks > 100
        await engine.aclose()


@pytest.mark.filterwarnings("error")
def test_an_engine_that_takes_no_connection_costs_no_socket(tmp_path: Path) -> None:
    """The docker library forgets the socket of a connection that fails; a warning of Python's would say so."""
    address = EngineAddress(f"unix://{tmp_path}/gone.sock")
    client = DockerEngine(address)._client("1.41", 1.0)
    with closing(client), pytest.raises(requests.exceptions.ConnectionError):
        client.ping()
    del client
    gc.collect()
