"""Servers as local processes, in a bubblewrap sandbox where there is one: weaker than a container, and said so.

Knows how to confine and end a process; not how its package came to be installed (packages.py)."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, cast

from catalog import Entry
from gateway import errors
from gateway.descriptors import keep_only
from gateway.mounts import MountGuard
from gateway.packages import InstalledPackage, PackageStore
from gateway.runs import MARK, Run
from gateway.runtimes.handover import Handover
from gateway.runtimes.launcher import SECRETS_FOLDER
from gateway.secrets import Secrets, SecretValue
from gateway.serverlog import ServerLog
from gateway.wire.channel import Receiver
from gateway.wire.lines import LineChannel

EXIT_GRACE_S: Final = 2.0
"""After stdin is closed, and again after SIGTERM."""
SYSTEM_FOLDERS: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
NETWORK_FILES: Final = (
    "/etc/resolv.conf",
    "/etc/hosts",
    "/etc/nsswitch.conf",
    "/etc/host.conf",
    "/etc/gai.conf",
)
COMMON_FILES: Final = ("/etc/ssl", "/etc/ca-certificates", "/usr/share/ca-certificates", "/etc/localtime")


class ProcessRuntime:
    """Child processes of the gateway, each leading its own process group."""

    name = "process"

    def __init__(self, packages: PackageStore, volumes: Path, run: Run, secrets: Secrets | None = None) -> None:
        self._run = run
        self._packages = packages
        self._handover = Handover(volumes, secrets or Secrets(), MountGuard((), ()))
        self._volumes = volumes
        self._bwrap = shutil.which("bwrap")

    @property
    def label(self) -> str:
        return "process (bubblewrap sandbox)" if self._bwrap else "process (NOT sandboxed)"

    async def prepare(self, entry: Entry, log: ServerLog) -> None:
        await self._installed(entry, log)

    async def _installed(self, entry: Entry, log: ServerLog) -> InstalledPackage:
        if entry.package is None:
            raise errors.UpstreamUnavailable(
                f"server {entry.id} has no package to run as a process; it needs the Docker Engine"
            )
        try:
            return await self._packages.ensure(entry.package, progress=lambda line: log.write("gateway", line))
        except errors.PackageError as exc:
            raise errors.UpstreamUnavailable(str(exc)) from exc

    async def start(self, entry: Entry, receiver: Receiver, log: ServerLog, owner: str = "") -> ProcessChannel:
        self._refuse_what_only_containers_can(entry)
        installed = await self._installed(entry, log)
        handed = await self._handover.collect(entry, owner)
        if handed.files and self._bwrap is None:
            raise errors.UpstreamUnavailable(
                f"server {entry.id} reads secrets from files, which needs bubblewrap or the Docker Engine here"
            )
        folders = {folder.target: folder.source for folder in handed.folders}
        path = os.pathsep.join([*map(str, installed.path_dirs), "/usr/local/bin", "/usr/bin", "/bin"])
        home = self._volumes / entry.id / "home"
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        env = {"PATH": path, "HOME": "/tmp" if self._bwrap else str(home), "LANG": "C.UTF-8"}  # noqa: S108
        env |= {**installed.env, **self._relocated_env(entry, folders), MARK: self._run.mark}
        # Its own environment: only its user and root can read that, and inside a sandbox of its own nobody else's.
        env |= {name: one.reveal().decode() for name, one in {**handed.plain, **handed.env}.items()}
        log.hide(handed.redactor)
        with _open_files(handed.files) as files:
            argv = self._argv(entry, installed, folders, files)
            try:
                return await spawn(
                    argv, env=env, cwd=str(home), receiver=receiver, log=log, label=self.label, files=files.values()
                )
            except OSError as exc:
                raise errors.UpstreamUnavailable(f"server {entry.id} could not be started: {exc}") from exc

    @staticmethod
    def _refuse_what_only_containers_can(entry: Entry) -> None:
        """A process shares the kernel's view of network and devices with everybody, or has none at all.

        Raises:
            UpstreamUnavailable: the entry asks for something that only a container can be held to.
        """
        reasons = []
        if entry.hosts:
            reasons.append("may reach certain hosts only, and the traffic of a process is not filtered")
        if entry.mounts:
            reasons.append("wants folders of this machine mounted, which could be exchanged under a process")
        if entry.container_runtime:
            reasons.append(f"wants the container runtime {entry.container_runtime}")
        if reasons:
            raise errors.UpstreamUnavailable(f"server {entry.id} {'; it '.join(reasons)}: it needs the Docker Engine")

    def _argv(
        self, entry: Entry, installed: InstalledPackage, folders: Mapping[str, Path], files: Mapping[str, int]
    ) -> list[str]:
        program = next(
            (found for d in installed.path_dirs if (found := shutil.which(entry.command[0], path=str(d)))),
            None,
        ) or shutil.which(entry.command[0])
        if program is None:
            raise errors.UpstreamUnavailable(f"package of {entry.id} installed no program named {entry.command[0]!r}")
        if self._bwrap is None:
            return [*_die_with_parent(), program, *(_relocated(arg, folders) for arg in entry.command[1:])]
        return [*self._sandbox(entry, installed, folders, files), program, *entry.command[1:]]

    def _sandbox(
        self, entry: Entry, installed: InstalledPackage, folders: Mapping[str, Path], files: Mapping[str, int]
    ) -> list[str]:
        """The bubblewrap command line: system folders and the package read-only, volumes writable, nothing else."""
        argv = [self._bwrap or "", "--die-with-parent", "--new-session", "--unshare-all", "--cap-drop", "ALL"]
        if entry.network == "internet":
            argv += ["--share-net"]
        for folder in SYSTEM_FOLDERS:
            if Path(folder).is_symlink():
                argv += ["--symlink", str(Path(folder).readlink()), folder]
            elif Path(folder).exists():
                argv += ["--ro-bind", folder, folder]
        for file in COMMON_FILES + (NETWORK_FILES if entry.network == "internet" else ()):
            argv += ["--ro-bind-try", file, file]
        argv += ["--tmpfs", "/tmp", "--proc", "/proc", "--dev", "/dev"]  # noqa: S108  # the sandbox's own
        for visible in _outside_system(installed):
            argv += ["--ro-bind", str(visible), str(visible)]
        for target, path in folders.items():
            argv += ["--bind", str(path), target]
        for name, fd in files.items():
            argv += ["--perms", "0400", "--ro-bind-data", str(fd), f"{SECRETS_FOLDER}/{name}"]
        return [*argv, "--chdir", "/tmp", "--"]  # noqa: S108

    def _relocated_env(self, entry: Entry, folders: Mapping[str, Path]) -> dict[str, str]:
        if self._bwrap:
            return dict(entry.env)
        return {name: _relocated(value, folders) for name, value in entry.env.items()}

    async def aclose(self) -> None:
        """Processes are closed with their channels."""


async def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: str,
    receiver: Receiver,
    log: ServerLog,
    label: str,
    files: Iterable[int] = (),
) -> ProcessChannel:
    """Start a program whose stdin and stdout are the channel. `label` says how it is confined; `files` are the
    descriptors it inherits beside.

    Raises:
        OSError: it cannot be started.
    """
    channel = ProcessChannel(receiver, log, label)
    inherited = tuple(files)
    transport, _ = await asyncio.get_running_loop().subprocess_exec(
        lambda: _ServerProcess(channel),
        *argv,
        env=env,
        cwd=cwd,
        start_new_session=True,
        pass_fds=inherited,
        preexec_fn=keep_only(*inherited),
    )
    channel.started(transport)
    log.write("gateway", f"started process {transport.get_pid()} {label}")
    return channel


@contextmanager
def _open_files(files: Mapping[str, SecretValue]) -> Iterator[Mapping[str, int]]:
    """Each file's content behind a descriptor of memory, closed here once the program has it."""
    opened = {}
    try:
        for name, value in files.items():
            opened[name] = os.memfd_create("secret", os.MFD_CLOEXEC)
            os.write(opened[name], value.reveal())
            os.lseek(opened[name], 0, os.SEEK_SET)
        yield opened
    finally:
        for fd in opened.values():
            os.close(fd)


def _outside_system(installed: InstalledPackage) -> list[Path]:
    """What the package needs beside the system folders: itself, and the interpreter its environment points to."""
    visible = [installed.root]
    for folder in installed.path_dirs:
        for program in ("python", "node"):
            real = Path(os.path.realpath(folder / program))
            if real.exists() and not real.is_relative_to("/usr") and not real.is_relative_to(installed.root):
                visible.append(real.parent.parent)
    if shutil.which("node"):
        real = Path(os.path.realpath(shutil.which("node") or ""))
        if not real.is_relative_to("/usr"):
            visible.append(real.parent.parent)
    prefix = Path(sys.base_prefix)
    if not prefix.is_relative_to("/usr"):
        visible.append(prefix)
    return list(dict.fromkeys(visible))


def _relocated(text: str, folders: Mapping[str, Path]) -> str:
    """Without a sandbox a volume's mount point does not exist: use the folder itself."""
    for target, path in folders.items():
        if text == target or text.startswith(target + "/"):
            return str(path) + text[len(target) :]
    return text


def _die_with_parent() -> Sequence[str]:
    setpriv = shutil.which("setpriv")
    return (setpriv, "--pdeathsig", "KILL", "--no-new-privs", "--") if setpriv else ()


class _ServerProcess(asyncio.SubprocessProtocol):
    """Hands what the process writes to its channel."""

    def __init__(self, channel: ProcessChannel) -> None:
        self._channel = channel

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Before anything else: a process may have ended by the time that its starter hears of it.
        self._channel.owns(cast("asyncio.SubprocessTransport", transport))

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd == 2:
            self._channel.complain(data)
        else:
            self._channel.feed(data)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        if fd == 1:
            self._channel.stdout_closed()

    def pause_writing(self) -> None:
        self._channel.pause()

    def resume_writing(self) -> None:
        self._channel.resume()

    def process_exited(self) -> None:
        self._channel.exited()


class ProcessChannel(LineChannel):
    """The pipes of one process, and the process's end."""

    def __init__(self, receiver: Receiver, log: ServerLog, label: str) -> None:
        super().__init__(receiver, log)
        self._label = label
        self._transport: asyncio.SubprocessTransport | None = None
        self._gone = asyncio.Event()

    def owns(self, transport: asyncio.SubprocessTransport) -> None:
        self._transport = transport

    def started(self, transport: asyncio.SubprocessTransport) -> None:
        self.detail: Mapping[str, str] = {"pid": str(transport.get_pid()), "runtime": self._label}
        stdin = transport.get_pipe_transport(0)
        if stdin is not None:
            self.writes_to(cast("asyncio.WriteTransport", stdin))
        pipes = (transport.get_pipe_transport(fd) for fd in (1, 2))
        self.reads_from(*(cast("asyncio.ReadTransport", pipe) for pipe in pipes if pipe is not None))

    def stdout_closed(self) -> None:
        """Usually the process is about to exit; if not, it can no longer answer."""
        asyncio.get_running_loop().call_later(EXIT_GRACE_S, self.end, "it closed its stdout")

    def exited(self) -> None:
        self._gone.set()
        code = self._transport.get_returncode() if self._transport else None
        if self._transport is not None:
            # Children it left behind are still in its group, which keeps the id from being reused until they end.
            with suppress(ProcessLookupError):
                os.killpg(self._transport.get_pid(), signal.SIGKILL)
        if code is not None and code < 0:
            self.end(f"its process was killed by signal {signal.Signals(-code).name}")
        else:
            self.end(f"its process ended with exit code {code}")

    def hang_up(self) -> None:
        self.kill()

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        """Signal the whole process group; the group leader's id stays ours until it is reaped."""
        if self._transport is not None and self._transport.get_returncode() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._transport.get_pid(), how)

    async def close(self) -> None:
        if self._transport is None:
            return
        stdin = self._transport.get_pipe_transport(0)
        if stdin is not None:
            stdin.close()
        if not await self._exits():
            self.kill(signal.SIGTERM)
            if not await self._exits():
                self.kill()
                await self._exits()
        self._transport.close()
        self.end("the gateway stopped it")

    async def _exits(self) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(EXIT_GRACE_S):
                await self._gone.wait()
        return self._gone.is_set()
