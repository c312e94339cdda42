"""A gateway as users run it: `lockgate serve` in a process of its own, with a catalog and a state folder of its own.

Knows the command, its environment and the run file; nothing of what is measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

ROOT: Final = Path(__file__).resolve().parent.parent
START_TIMEOUT_S: Final = 900.0
"""The first start may install packages and build an image."""
STOP_TIMEOUT_S: Final = 30.0
LAST_LINE: Final = "Ctrl-C stops the gateway"
PROFILE: Final = "benchmark"


class GatewayFailed(Exception):
    """The gateway did not start, or a server behind it did not; carries what it printed."""


@dataclass
class GatewayProcess:
    """One running gateway. Enter it to start it, leave it to stop it and everything it started."""

    folder: Path
    runtime: str
    servers: Mapping[str, Mapping[str, Any]]
    """Catalog entries by id."""
    must_answer: bool = True
    """Whether each of them must have been asked for its tools."""
    url: str = ""
    pid: int = 0
    id: str = ""
    """The label on its containers."""

    def __enter__(self) -> Self:
        env = environment(self.folder, self.runtime, self.servers)
        log = (self.folder / "stderr.log").open("w")
        self._process = subprocess.Popen(
            [*command(), "serve", "--no-model"],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        log.close()
        try:
            self._wait_until_ready()
        except BaseException:
            self._stop()
            raise
        return self

    def _wait_until_ready(self) -> None:
        printed: list[str] = []
        assert self._process.stdout is not None
        for line in self._process.stdout:
            printed.append(line)
            if line.startswith(LAST_LINE):
                break
        else:
            raise GatewayFailed("".join(printed) + (self.folder / "stderr.log").read_text())
        missing = [line for line in printed if line.startswith("  OFF")]
        if missing and self.must_answer:
            raise GatewayFailed("".join(missing))
        state = self.folder / "state"
        self.url = json.loads((state / "gateway.json").read_text())["url"]
        self.id = (state / "gateway-id").read_text().strip()
        self.pid = self._process.pid

    def _stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __exit__(self, *exc: object) -> None:
        self._stop()


def environment(folder: Path, runtime: str, servers: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Make a gateway's folder with its catalog; what its process finds it by."""
    folder.mkdir(parents=True)
    # JSON is YAML.
    catalog = {
        "version": 1,
        "servers": {id: {"title": id, "description": "Answers.", **entry} for id, entry in servers.items()},
        "profiles": {PROFILE: {"title": "Benchmark", "servers": list(servers)}},
    }
    (folder / "catalog.yaml").write_text(json.dumps(catalog))
    env = {name: value for name, value in os.environ.items() if not name.startswith("LOCKGATE_")}
    env |= {name: os.environ[name] for name in ("LOCKGATE_CACHE_DIR", "LOCKGATE_DOCKER_HOST") if name in os.environ}
    return env | {
        "LOCKGATE_STATE_DIR": str(folder / "state"),
        "LOCKGATE_CATALOG": str(folder / "catalog.yaml"),
        "LOCKGATE_PROFILE": PROFILE,
        "LOCKGATE_RUNTIME": runtime,
        "LOCKGATE_PORT": "0",
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
    }


def command() -> list[str]:
    """`lockgate` beside this Python, or what it would run."""
    program = Path(sys.executable).with_name("lockgate")
    if program.exists():
        return [str(program)]
    return [sys.executable, "-c", "from gateway.cli import main; main()"]
