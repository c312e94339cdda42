"""A PostgreSQL of a test's own, on a socket in a folder of its own and on no port.

Knows how Debian lays its programs out; what is kept in the database is the tests'."""

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
from typing import Any

from tests.e2e.gateways import missing

START_S = 120.0
STOP_S = 60.0


def programs() -> Path:
    """The folder of the programs, Debian's newest or that on PATH; skips, or in CI fails, where there is none."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda one: int(one.parent.name))
    on_path = shutil.which("initdb")
    found = [folder for folder in folders if (folder / "initdb").exists() and (folder / "postgres").exists()]
    if not found and on_path is None:
        missing("there is no PostgreSQL here; Debian's package is postgresql")
    return found[-1] if found else Path(str(on_path)).parent


@contextmanager
def running() -> Iterator[str]:
    """The URL of a PostgreSQL that ends with the block."""
    bin = programs()
    with tempfile.TemporaryDirectory(prefix="lockgate-pg-") as name:
        folder, more = Path(name), dict[str, Any]()
        if os.geteuid() == 0:  # it does not run as root
            who = pwd.getpwnam(_user())
            os.chown(folder, who.pw_uid, who.pw_gid)
            more = {"user": who.pw_uid, "group": who.pw_gid, "extra_groups": []}
        data, log = folder / "data", folder / "log"
        with log.open("wb") as told:
            more |= {"cwd": folder, "stdin": subprocess.DEVNULL, "stdout": told, "stderr": subprocess.STDOUT}
            make = [bin / "initdb", "-D", data, "-U", "lockgate", "-A", "trust", "-N", "-E", "UTF8", "--locale=C"]
            made = subprocess.run(make, check=False, timeout=START_S, **more)
            assert made.returncode == 0, log.read_text(errors="replace")
            argv = [bin / "postgres", "-D", data, "-k", name, "-c", "listen_addresses=", "-F"]
            with subprocess.Popen(argv, **more) as server:
                try:
                    _await_ready(server, data / "postmaster.pid", log)
                    yield f"postgresql://lockgate@/postgres?host={name}"
                finally:
                    server.send_signal(signal.SIGINT)  # connections are ended, and files left whole
                    try:
                        server.wait(STOP_S)
                    except subprocess.TimeoutExpired:
                        server.kill()


def _user() -> str:
    try:
        return pwd.getpwnam("postgres").pw_name
    except KeyError:
        return "nobody"


def _await_ready(server: subprocess.Popen[bytes], status: Path, log: Path) -> None:
    """Its status file says so; another process can only be watched."""
    deadline = time.monotonic() + START_S
    while True:
        try:
            if "ready" in status.read_text():
                return
        except FileNotFoundError:
            pass
        assert server.poll() is None, log.read_text(errors="replace")
        assert time.monotonic() < deadline, log.read_text(errors="replace")
        time.sleep(0.02)
