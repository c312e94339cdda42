"""Small real servers, friendly and hostile, and what tests need to run them: a runtime, catalog files, a look at /proc.

Knows the gateway's public parts only."""

import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio

from catalog import Entry, Limits, Package
from gateway.gateway import Gateway
from gateway.runtimes import Runtime
from gateway.runtimes.process import spawn
from gateway.secrets import Secrets
from gateway.serverlog import ServerLog
from gateway.settings import Settings
from gateway.wire.channel import Channel, Receiver

HERE = Path(__file__).parent
MARK = "LOCKGATE_TEST_MARK"
LOCAL: Mapping[str, str] = {"ecosystem": "pypi", "name": "local", "version": "1.0"}
"""A package that is never installed: `LocalRuntime` runs a script of this folder instead."""
DEADLINE_S = 20.0
"""For anything that takes milliseconds on an idle machine."""


class LocalRuntime:
    """Runs the scripts of this folder: the first word of an entry's command is a script's name.

    Every process carries `mark` in its environment, also one that a server starts, so that a test can find them all.
    """

    name = "local"

    def __init__(self) -> None:
        self.mark = secrets.token_hex(8)
        self.starts: list[str] = []
        self.secrets = Secrets()
        self._others = {pid for pid, parent, _ in _processes() if parent == os.getpid()}

    async def prepare(self, entry: Entry, log: ServerLog) -> None:
        """The scripts are there."""

    async def start(self, entry: Entry, receiver: Receiver, log: ServerLog, owner: str = "") -> Channel:
        self.starts.append(entry.id)
        script, *arguments = entry.command
        argv = [sys.executable, "-S", str(HERE / f"{script}.py"), *arguments]
        env = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1", MARK: self.mark}
        found = self.secrets.resolve(entry, owner) if entry.secrets else {}
        env |= {one.env: found[one.name].reveal().decode() for one in entry.secrets if one.env and one.name in found}
        return await spawn(argv, env=env, cwd=str(HERE), receiver=receiver, log=log, label="local")

    def processes(self) -> list[int]:
        """The processes with our mark, and children of this process that came since: one that is only just starting
        has no mark yet, and one that ended but was not reaped has none any more."""
        mark = f"{MARK}={self.mark}".encode()
        return [pid for pid, parent, environment in _processes() if mark in environment or self._is_new(pid, parent)]

    def _is_new(self, pid: int, parent: int) -> bool:
        return parent == os.getpid() and pid not in self._others

    async def aclose(self) -> None:
        """Processes end with their channels."""


def _processes() -> Iterator[tuple[int, int, bytes]]:
    """Each process's id, its parent's, and its environment as far as we may see it."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except (ProcessLookupError, FileNotFoundError):
                continue  # it ended meanwhile
            try:
                environment = (folder / "environ").read_bytes()
            except OSError:
                environment = b""  # another user's, or one that has ended
            yield int(folder.name), parent, environment


class LocalGateway(Gateway):
    """The gateway, with the scripts of this folder in place of packages."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.local = LocalRuntime()

    def runtime_for(self, entry: Entry) -> Runtime:
        self.local.secrets = self.secrets
        return self.local if entry.package is not None else super().runtime_for(entry)


def entry(id: str, *command: str, **limits: float) -> Entry:
    """A catalog entry for `LocalRuntime`: `entry("a", "hostile", "answers_twice", idle_s=1.0)`."""
    return Entry(
        id=id,
        title=id,
        description="A test server.",
        package=Package.model_validate(LOCAL),
        command=command or ("friendly",),
        limits=Limits.model_validate({"start_timeout_s": DEADLINE_S, "call_timeout_s": DEADLINE_S} | limits),
    )


def write_catalog(
    path: Path,
    servers: Mapping[str, Mapping[str, Any] | Sequence[str]],
    profiles: Mapping[str, Mapping[str, Any] | Sequence[str]] | None = None,
) -> Path:
    """A catalog file. A server is a mapping as in the file, or the command of a local script; a profile likewise a
    mapping or its servers. Without profiles there is one, `all`, with every server."""
    limits = {"start_timeout_s": DEADLINE_S, "call_timeout_s": DEADLINE_S}
    full: dict[str, Any] = {}
    for id, server in servers.items():
        ways = server if isinstance(server, Mapping) else {"package": LOCAL, "command": list(server)}
        full[id] = {"title": id, "description": "A test server.", "limits": limits, **ways}
    named = {
        name: {"title": name, **(profile if isinstance(profile, Mapping) else {"servers": list(profile)})}
        for name, profile in (profiles or {"all": list(servers)}).items()
    }
    # JSON is YAML.
    path.write_text(json.dumps({"version": 1, "servers": full, "profiles": named}, indent=1))
    return path


def settings(folder: Path, catalog: Path, **changes: Any) -> Settings:
    """Settings for a gateway of its own, on any free port, without containers."""
    folders = {"state_dir": folder / "state", "cache_dir": folder / "cache", "catalog": catalog}
    return Settings(**(folders | {"port": 0, "runtime": "process", "profile": "all"} | changes))


async def until(condition: Callable[[], Any], what: str, timeout_s: float = DEADLINE_S) -> Any:
    """Wait until the condition is true, for what announces itself by no event (such as /proc).

    Raises:
        AssertionError: it did not become true in time.
    """
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        await anyio.sleep(0.005)
    return value
