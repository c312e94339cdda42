"""Engines that a user runs: rootless Docker and rootless Podman. What holds there of the sandbox, what is refused."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest
from anyio import to_thread

from catalog import Entry, Volume
from gateway.docker_engine import DockerEngine
from gateway.errors import UpstreamUnavailable
from gateway.images import ImageStore
from gateway.runs import Run
from gateway.runtimes.docker import DockerRuntime
from gateway.runtimes.kind import EngineKind
from gateway.serverlog import ServerLog
from tests.gateway.engines import client, tiny_entry, tiny_rootfs
from tests.gateway.test_engines import serves, start
from tests.servers import until

pytestmark = pytest.mark.anyio

USER = "lockgate-rootless"
"""Has ids of its own to give to containers; made by .ci/parts in CI."""
IMAGE = "lockgate.local/test-rootless"
READY_S = 60.0
DOCKERD = Path("/usr/share/docker.io/contrib/dockerd-rootless.sh")


def account() -> pwd.struct_passwd:
    """The user that runs the engines; skips where there is none, or no way to act as one."""
    try:
        found = pwd.getpwnam(USER)
    except KeyError:
        pytest.skip(f"needs the user {USER} (useradd {USER})")
    if os.geteuid() or shutil.which("newuidmap") is None or not Path("/etc/subuid").exists():
        pytest.skip("needs root and Debian's uidmap")
    if not any(line.startswith(f"{USER}:") for line in Path("/etc/subuid").read_text().splitlines()):
        pytest.skip(f"{USER} has no ids in /etc/subuid")
    return found


class UsersEngine:
    """A rootless engine in folders of its own below `folder`."""

    def __init__(self, which: str, folder: Path, user: pwd.struct_passwd) -> None:
        self.url = f"unix://{folder}/e.sock"
        self._which = which
        self._folder = folder
        self._user = user
        self._env = {
            "HOME": str(folder),
            "XDG_RUNTIME_DIR": f"{folder}/run",
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            # Without a network: /dev/net/tun may not be the user's to open.
            "DOCKERD_ROOTLESS_ROOTLESSKIT_NET": "host",
            "DOCKERD_ROOTLESS_ROOTLESSKIT_PORT_DRIVER": "none",
            "DOCKERD_ROOTLESS_ROOTLESSKIT_MTU": "1500",
        }

    def argv(self) -> list[str]:
        if self._which == "podman":
            return ["podman", "system", "service", "--time=0", self.url]
        options = ["--storage-driver=vfs", "--bridge=none", "--iptables=false", "--ip6tables=false"]
        return [str(DOCKERD), *options, "-H", self.url, f"--data-root={self._folder}/data"]

    def start(self) -> subprocess.Popen[bytes]:
        with (self._folder / "log").open("ab") as log:
            return subprocess.Popen(
                self.argv(),
                env=self._env,
                cwd=self._folder,
                stdout=log,
                stderr=log,
                user=self._user.pw_uid,
                group=self._user.pw_gid,
                extra_groups=[],
                start_new_session=True,
            )

    def take(self, image: bytes) -> None:
        """Put the image into the engine, as its user would: each has a client of its own."""
        if self._which == "podman":
            argv = ["podman", "import", "--change", 'ENTRYPOINT ["/tiny"]', "-", f"{IMAGE}:1"]
            users = {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}
            subprocess.run(
                argv,
                input=image,
                env=self._env,
                cwd=self._folder,
                check=True,
                capture_output=True,
                **users,  # type: ignore[call-overload]
            )
            return
        api = client(self.url)
        api.import_image_from_data(image, repository=IMAGE, tag="1", changes=['ENTRYPOINT ["/tiny"]'])
        api.close()

    def end(self, process: subprocess.Popen[bytes]) -> None:
        """The engine, and whatever of it goes on without it."""
        process.terminate()
        try:
            process.wait(READY_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        mark = f"XDG_RUNTIME_DIR={self._folder}/run".encode()
        deadline = time.monotonic() + READY_S
        while left := [pid for pid in _processes() if mark in _environment(pid)]:
            assert time.monotonic() < deadline, "the engine does not end"
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.05)


def _processes() -> list[int]:
    return [int(one.name) for one in Path("/proc").iterdir() if one.name.isdigit()]


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


@contextmanager
def users_engine(which: str) -> Iterator[UsersEngine]:
    user = account()
    program = shutil.which("podman") if which == "podman" else shutil.which("rootlesskit") and DOCKERD.exists()
    if not program:
        pytest.skip(f"needs Debian's {'podman' if which == 'podman' else 'docker.io and rootlesskit'}")
    folder = Path(tempfile.mkdtemp(prefix="rootless-"))  # engines want short paths
    try:
        (folder / "run").mkdir(mode=0o700)
        for one in (folder, folder / "run"):
            os.chown(one, user.pw_uid, user.pw_gid)
        engine = UsersEngine(which, folder, user)
        process = engine.start()
        try:
            deadline = time.monotonic() + READY_S
            while not (folder / "e.sock").exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    said = (folder / "log").read_text().strip().splitlines()[-1:]
                    pytest.skip(f"a rootless engine does not start on this machine: {said}")
                time.sleep(0.05)
            engine.take(tiny_rootfs(folder))
            yield engine
        finally:
            engine.end(process)
    finally:
        mounted = {line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()}
        for mount in sorted((one for one in mounted if one.startswith(f"{folder}/")), reverse=True):
            subprocess.run(["umount", "--lazy", mount], check=False)
        shutil.rmtree(folder, ignore_errors=True)


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: text.strip() for name, _, text in (line.partition(":") for line in lines)}


@pytest.mark.docker
@pytest.mark.sec("SEC-066")
@pytest.mark.parametrize("which", ["docker", "podman"])
async def test_the_core_of_the_sandbox_holds_on_an_engine_that_a_user_runs(which: str, tmp_path: Path) -> None:
    with users_engine(which) as users:
        api = client(users.url)
        engine = DockerEngine(users.url)
        tiny = tiny_entry(f"{IMAGE}:1")
        with Run(tmp_path / "state") as run:
            images = ImageStore(tmp_path / "cache", engine, run=run)
            runtime = DockerRuntime(engine, images, tmp_path / "volumes", run)
            assert await runtime.probe() is None
            assert runtime.label.startswith("docker (rootless")
            info = api.info()
            enforced = info.get("CgroupVersion") == "2" and info.get("CgroupDriver") != "none"
            assert ("NO limits" not in runtime.label) is enforced
            await serves(runtime, tiny)

            upstream, stack = await start(runtime, tiny)
            (one,) = api.containers()
            seen = api.inspect_container(one["Id"])
            found = status(seen["State"]["Pid"])
            assert {found[name] for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")} == {"0" * 16}
            assert (found["NoNewPrivs"], found["Seccomp"]) == ("1", "2")
            # Neither root's nor the engine's user, but one of those that are lent to its containers.
            lent = next(line for line in Path("/etc/subuid").read_text().splitlines() if line.startswith(f"{USER}:"))
            first, count = map(int, lent.split(":")[1:])
            assert all(first <= int(uid) < first + count for uid in found["Uid"].split())
            inside = Path(f"/proc/{seen['State']['Pid']}")
            lines = [line.split() for line in (inside / "mounts").read_text().splitlines()]
            mounts = {where: options.split(",") for _, where, _, options, *_ in lines}
            assert "ro" in mounts["/"]
            assert {"noexec", "nosuid", "nodev"} <= set(mounts["/tmp"])  # the container's own
            writable = {
                where for where, options in mounts.items() if "rw" in options and where.startswith(("/run", "/var"))
            }
            assert all("noexec" in mounts[where] and any("size=" in one for one in mounts[where]) for where in writable)
            assert [line.split(":")[0].strip() for line in (inside / "net/dev").read_text().splitlines()[2:]] == ["lo"]
            assert seen["HostConfig"]["Privileged"] is False
            await stack.aclose()
            assert await runtime.reconciler.sweep() == 0  # type: ignore[union-attr]
            await until(lambda: not api.containers(all=True), "nothing is left")

            for wants, why in (
                ({"network": "internet", "hosts": ("example.com:443",)}, "are not known to keep it to them"),
                ({"volumes": (Volume(name="data", target="/data"),)}, "may not write"),
            ):
                refused: Entry = tiny.model_copy(update=wants)
                with pytest.raises(UpstreamUnavailable, match=why):
                    await runtime.start(refused, upstream, ServerLog())
            assert not api.containers(all=True)
            _, stack = await start(runtime, tiny)
            stack.pop_all()  # its gateway ends without closing it
            with anyio.CancelScope(shield=True):
                await runtime.aclose()
        with Run(tmp_path / "state") as run:
            engine = DockerEngine(users.url)
            runtime = DockerRuntime(engine, ImageStore(tmp_path / "cache", engine, run=run), tmp_path / "volumes", run)
            assert await runtime.probe() is None
            await until(lambda: not api.containers(all=True), "what the dead run left is gone")
            await runtime.aclose()
        await to_thread.run_sync(api.close)


def test_an_engine_says_of_itself_what_it_cannot_do() -> None:
    def kind(is_podman: bool = False, **info: object) -> EngineKind:
        return EngineKind.of(info, is_podman=is_podman)

    rootful = kind(CgroupDriver="systemd", CgroupVersion="1", SecurityOptions=["name=seccomp,profile=default"])
    assert rootful == EngineKind()
    assert rootful.label == "docker"
    user = {"SecurityOptions": ["name=rootless"], "CgroupVersion": "2", "CgroupDriver": "systemd"}
    assert kind(**user).label == "docker (rootless)"
    assert kind(**{**user, "CgroupDriver": "none"}).label == "docker (rootless, NO limits)"
    assert kind(True, Rootless=True, CgroupVersion="1").label == "docker (rootless, NO limits)"
    assert kind(True, Rootless=True, CgroupVersion="2").has_limits
    listed = tiny_entry("x:1").model_copy(update={"network": "internet", "hosts": ("example.com:443",)})
    kept = tiny_entry("x:1").model_copy(update={"volumes": (Volume(name="data", target="/data"),)})
    assert not [*rootful.lacks(listed), *rootful.lacks(kept)]
    assert len([*kind(True).lacks(listed), *kind(**user).lacks(listed), *kind(**user).lacks(kept)]) == 3
    assert not [*kind(True).lacks(kept)]
