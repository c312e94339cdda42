"""The servers whose chats are compared: the gateway with its engine, and llama-server of the same llama.cpp.

Knows how to start and stop them, and llama.cpp's own measuring program; nothing of what is measured."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.gateways import GatewayProcess
from benchmarks.processes import tree
from engine import StoredModel

N_CTX: Final = 8_192
N_SEQUENCES: Final = 16
START_TIMEOUT_S: Final = 120.0


@dataclass(frozen=True)
class Server:
    """Somebody who answers chats. `pid` is the root of its processes."""

    name: str
    url: str
    pid: int

    def memory_mb(self) -> float:
        """Resident memory of all its processes, the weights that are mapped from their file too."""
        pages = (Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2] for pid in tree(self.pid))
        return sum(int(page.split()[0]) for page in pages if page) / 1024


@contextmanager
def lockgate(folder: Path) -> Iterator[Server]:
    # A profile names at least one server; nobody is at this one, and nothing calls it.
    nobody = {"nobody": {"remote": {"url": "http://127.0.0.1:9/mcp"}}}
    with GatewayProcess(folder / "gateway", "process", nobody, must_answer=False) as gateway:
        yield Server("lockgate", gateway.url, gateway.pid)


@contextmanager
def llama_server(programs: Path, model: StoredModel, n_threads: int) -> Iterator[Server]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # As the engine does it: the sequences share two full contexts of cache.
    argv = [str(programs / "llama-server"), "-m", str(model.path), "--host", "127.0.0.1", "--port", str(port)]
    argv += ["-np", str(N_SEQUENCES), "-c", str(2 * N_CTX), "--kv-unified", "-t", str(n_threads), "--log-disable"]
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(f"{url}/health", process)
        yield Server("llama-server", url, process.pid)
    finally:
        process.terminate()
        process.wait(30)


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"llama-server ended with status {process.returncode}")
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError(f"llama-server was not ready within {START_TIMEOUT_S:.0f} s")


def llama_bench(programs: Path, model: StoredModel, n_threads: int) -> tuple[float, float]:
    """Prompt and generation tokens a second, as llama.cpp measures itself: one sequence, no server."""
    argv = [str(programs / "llama-bench"), "-m", str(model.path), "-p", "512", "-n", "64", "-r", "2"]
    argv += ["-t", str(n_threads), "-o", "json"]
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    rates = {(run["n_prompt"] > 0): float(run["avg_ts"]) for run in json.loads(done.stdout)}
    return rates[True], rates[False]


def locked(model: StoredModel, n_threads: int, max_tokens: int, callers: Sequence[Sequence[str]]) -> float:
    """Tokens a second of the package's own high-level interface, which takes one request at a time."""
    order = {"path": str(model.path), "n_ctx": N_CTX, "n_threads": n_threads, "max_tokens": max_tokens}
    argv = [sys.executable, str(Path(__file__).with_name("locked.py"))]
    asked = json.dumps({**order, "callers": callers})
    done = subprocess.run(argv, input=asked, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    return float(found["n_tokens"] / found["took_s"])
