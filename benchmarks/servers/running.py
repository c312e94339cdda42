"""HTTP servers of this folder and of installed packages, started on a free port of loopback.

Knows processes and ports; not what is asked of the servers."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).resolve().parent
START_TIMEOUT_S: Final = 20.0
POLL_S: Final = 0.02
STOP_TIMEOUT_S: Final = 5.0


class ServerFailed(Exception):
    """A server did not begin to listen."""


def python_server(file: str) -> Callable[[int], list[str]]:
    return lambda port: [sys.executable, str(FOLDER / file), str(port)]


@contextmanager
def running(argv_for: Callable[[int], Sequence[str]]) -> Iterator[tuple[int, int]]:
    """Run a server for the length of the body: its port and its process id. PORT is also in its environment."""
    port = _free_port()
    process = subprocess.Popen(
        argv_for(port),
        env=os.environ | {"PORT": str(port)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise ServerFailed(f"{' '.join(argv_for(port))} does not listen (exit code {process.poll()})")
            time.sleep(POLL_S)
        yield port, process.pid
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(POLL_S)
        return probe.connect_ex(("127.0.0.1", port)) == 0
