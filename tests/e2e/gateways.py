"""Real gateways in processes of their own: started with a state folder, watched from outside, stopped without a trace.

Knows the command line, the state folder's files and the container labels; nothing of the gateway's insides.
"""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlsplit

import docker
import pytest
from docker.errors import DockerException, NotFound

from gateway import auditlog

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
LOCKGATE = (sys.executable, "-c", "from gateway.cli import main; main()")
MARK = "E2E_GATEWAY"
"""The variable by which a gateway's processes are found again; one named LOCKGATE_* would be a setting."""

STARTER = ("time", "filesystem", "memory", "sequentialthinking", "git", "SQLite", "everything")
READY_S = 60
LEARNT_S = 1200
"""The first time on a machine seven images are built, and their base before them."""
STOP_S = 45
"""Seven servers, each with a few seconds to exit by itself, on a busy machine."""
GONE_S = 5
COMMAND_S = 120
POLL_S = 0.05
LOG_LINES = 60

running: list["RunningGateway"] = []
"""The gateways whose logs belong into the report of a failed test."""


def eventually(what: str, probe: Callable[[], T], within_s: float) -> T:
    """The first truthy answer of `probe`. Other processes can only be watched: this looks until the deadline."""
    deadline = time.monotonic() + within_s
    while not (found := probe()):
        if time.monotonic() > deadline:
            pytest.fail(f"not within {within_s:g} s: {what}")
        time.sleep(POLL_S)
    return found


def missing(reason: str) -> NoReturn:
    """A part of the machine is missing: CI must have it, elsewhere the test is skipped."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"CI has to run this test: {reason}")
    pytest.skip(reason)


def cache_dir() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("LOCKGATE_CACHE_DIR") or Path(home) / "lockgate")


def environment(state: Path, **settings: object) -> dict[str, str]:
    """What a command of this checkout runs with: the given settings only, and the user's own cache."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("LOCKGATE_") or name == "LOCKGATE_CACHE_DIR"
    }
    changes = {
        f"LOCKGATE_{name.upper()}": str(value) for name, value in {"state_dir": state, "port": 0, **settings}.items()
    }
    return {**inherited, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "COLUMNS": "160", **changes}


def lockgate(
    *arguments: str, state: Path, within_s: float = COMMAND_S, **settings: object
) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    state.parent.mkdir(parents=True, exist_ok=True)
    return subprocess.run(
        [*LOCKGATE, *arguments],
        env=environment(state, **settings),
        cwd=state.parent,
        capture_output=True,
        text=True,
        timeout=within_s,
        check=False,
    )


class RunningGateway:
    """`lockgate serve` on a free port. Use as a context: leaving it stops the gateway and looks for what it left."""

    def __init__(self, state: Path, *arguments: str, **settings: object) -> None:
        self.state = state
        self.log = state.with_suffix(".log")
        self.url = ""
        self._mark = uuid.uuid4().hex
        self._arguments = arguments or ("--no-model",)
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None

    # -- life --------------------------------------------------------------------------------

    def __enter__(self) -> "RunningGateway":
        self.start()
        try:
            self.wait_until_ready()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        if kind is None:
            self.stop()
        else:
            self.kill()

    def start(self) -> None:
        self.state.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*LOCKGATE, "serve", *self._arguments],
                env={**environment(self.state, **self._settings), MARK: self._mark},
                cwd=self.state.parent,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        running.append(self)

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "this gateway was not started"
        return self._process

    def wait_until_ready(self) -> None:
        """Until it answers /healthz at the address in its run file."""

        def ready() -> bool:
            assert self.process.poll() is None, f"the gateway ended: {self.process.returncode}\n{self.log_tail()}"
            with suppress(OSError, ValueError, http.client.HTTPException):
                self.url = json.loads((self.state / "gateway.json").read_text())["url"]
                return self.get("/healthz")[0] == 200
            return False

        eventually("the gateway answers /healthz", ready, READY_S)

    def wait_until_learnt(self, servers: Iterable[str] = STARTER) -> None:
        """Until the gateway knows what each of the servers offers; images and packages are made the first time."""
        wanted = set(servers)

        def learnt() -> bool:
            assert self.process.poll() is None, f"the gateway ended: {self.process.returncode}\n{self.log_tail()}"
            seen = [server for server in self.servers() if server["id"] in wanted]
            failed = [f"{server['id']}: {server['error']}" for server in seen if server["state"] == "failed"]
            assert not failed, "\n".join(failed)
            return all(server["tools"] is not None for server in seen)

        eventually(f"{', '.join(sorted(wanted))} are listed", learnt, LEARNT_S)

    def stop(self) -> None:
        """SIGTERM, as service managers do: it must end by itself, with code 0, and leave nothing."""
        family = self.family()
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"the gateway did not end within {STOP_S} s of SIGTERM\n{self.log_tail()}")
        assert code == 0, f"exit code {code}\n{self.log_tail()}"
        self.assert_nothing_left(family)
        assert "Traceback" not in self.log.read_text(), self.log_tail()
        running.remove(self)

    def kill(self) -> None:
        """SIGKILL for the gateway alone, as the kernel does when memory runs out."""
        self.process.kill()
        self.process.wait()
        if self in running:
            running.remove(self)

    def assert_nothing_left(self, family: Mapping[int, str] | None = None) -> None:
        """No container with this gateway's label, and no process that descends from it."""
        # The engine lists a container for a moment longer while it removes it.
        eventually("no container is left", lambda: not self.containers(all=True), GONE_S)
        deadline = time.monotonic() + GONE_S
        while (left := {**alive(family or {}), **self.family()}) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        assert left == {}

    # -- what can be seen from outside -------------------------------------------------------

    def log_tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-LOG_LINES:])

    def family(self) -> dict[int, str]:
        """The gateway's processes by id: its descendants, and whatever carries its mark or names its state folder."""
        found = processes()
        mine = {self.process.pid} if self.process.poll() is None else set()
        before = 0
        while len(mine) != before:
            before = len(mine)
            mine |= {pid for pid, process in found.items() if process.parent in mine}
        marks = (f"{MARK}={self._mark}".encode(), os.fsencode(self.state))
        mine |= {pid for pid, process in found.items() if any(mark in process.memory for mark in marks)}
        return {pid: found[pid].identity for pid in mine - {os.getpid()} if pid in found}

    def containers(self, *, all: bool = False) -> list[Any]:
        """The gateway's containers, newest first; those that end while we look are left out."""
        found = found_engine()
        try:
            id = (self.state / "gateway-id").read_text().strip()
        except FileNotFoundError:
            return []
        if isinstance(found, str):
            return []
        return found.containers.list(all=all, filters={"label": f"lockgate.gateway={id}"}, ignore_removed=True)

    def containers_of(self, server: str) -> list[Any]:
        return [found for found in self.containers() if found.labels["lockgate.server"] == server]

    def audit(self) -> list[dict[str, Any]]:
        return list(auditlog.ends(self.state))

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
        return self._request("GET", path, headers or {})

    def _request(self, method: str, path: str, headers: Mapping[str, str]) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=COMMAND_S)
        try:
            connection.request(method, path, headers=dict(headers))
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def admin(self, method: str, path: str) -> Any:
        """What the admin API answers, with the token from the run file."""
        token = json.loads((self.state / "gateway.json").read_text())["admin_token"]
        status, body = self._request(method, f"/admin{path}", {"Authorization": f"Bearer {token}"})
        assert status == 200, body
        return json.loads(body)

    def servers(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.admin("GET", "/servers")["servers"]
        return found

    def server(self, id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.admin("GET", f"/servers/{id}")
        return found

    def cli(self, *arguments: str, within_s: float = COMMAND_S) -> subprocess.CompletedProcess[str]:
        """A command on this gateway's state folder."""
        return lockgate(*arguments, state=self.state, within_s=within_s, **self._settings)

    def stdio(self) -> dict[str, Any]:
        """The command with which a client starts `lockgate stdio` on this gateway, in the words of both SDKs."""
        command, *arguments = LOCKGATE
        return {
            "command": command,
            "args": [*arguments, "stdio"],
            "env": environment(self.state, **self._settings),
            "cwd": str(self.state.parent),
        }


# -- containers ----------------------------------------------------------------------------------


@cache
def found_engine() -> docker.DockerClient | str:
    """The Docker Engine, or why there is none."""
    address = urlsplit(os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock")
    try:
        if address.scheme == "unix":
            # The docker library leaks the socket of a connection that fails.
            with socket.socket(socket.AF_UNIX) as knock:
                knock.connect(address.path)
        return docker.from_env()
    except (DockerException, OSError) as exc:
        return f"no Docker Engine answers: {exc}"


def engine() -> docker.DockerClient:
    """The Docker Engine; skips the test where none answers."""
    found = found_engine()
    if isinstance(found, str):
        missing(found)
    return found


def exists(container: Any) -> bool:
    try:
        container.reload()
    except NotFound:
        return False
    return True


# -- processes -----------------------------------------------------------------------------------


class Process:
    """One process as /proc shows it: `identity` tells it from a later one with the same id."""

    def __init__(self, folder: Path) -> None:
        text = (folder / "stat").read_text()
        # proc(5): the name in brackets may hold anything; state, parent and, 18 fields on, the start time follow it.
        fields = text[text.rindex(")") + 2 :].split()
        self.parent = int(fields[1])
        command = (folder / "cmdline").read_bytes()
        self.memory = command + b"\0" + (folder / "environ").read_bytes()
        self.is_zombie = fields[0] in "ZX"
        self.cpu_s = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        self.command = command
        self.identity = f"{fields[19]} " + command.replace(b"\0", b" ").decode(errors="replace")[:200]


def processes() -> dict[int, Process]:
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                process = Process(folder)
                if not process.is_zombie:
                    found[int(folder.name)] = process
    return found


def alive(family: Mapping[int, str]) -> dict[int, str]:
    """Those of the processes that still run."""
    now = processes()
    start = {pid: identity.partition(" ")[0] for pid, identity in family.items()}
    return {
        pid: identity
        for pid, identity in family.items()
        if pid in now and now[pid].identity.partition(" ")[0] == start[pid]
    }
