"""Removing what dead runs left on this machine: their servers' processes, folders of work and temporary files.

Knows /proc, locks and our marks; what is left in an engine is runtimes/reconcile.py's to remove. What a living process
works on, of this gateway or of another that shares the cache, is never touched."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import anyio
from anyio import to_thread

from gateway import durable, packages
from gateway.images import rootfs
from gateway.images.builder import BUILDS
from gateway.runs import MARK, PIPES, RUN_FILE, SOCKET, Run
from gateway.ssh_bridge import remove_dead_bridges

PROC: Final = Path("/proc")
LATER_S: Final = (1.0, 2.0, 4.0)
"""Pauses of the looks after the first: the programs of a killed gateway may take a moment to end."""


def remove_leftovers(run: Run, state_dir: Path, cache_dir: Path) -> None:
    """Only right for the holder of the state folder's lock: nobody else writes its files."""
    _end_processes(run)
    for name in (RUN_FILE, SOCKET):  # the address of a gateway that is no more
        (state_dir / name).unlink(missing_ok=True)
    for folder in (state_dir, state_dir / "listings", state_dir / "definitions"):
        for file in folder.glob("*.tmp"):
            file.unlink(missing_ok=True)
    remove_unfinished(run, state_dir, cache_dir)
    run.forget_dead()


async def watch(run: Run, state_dir: Path, cache_dir: Path) -> None:
    """Look a few times more for what was still held at the start."""
    for pause_s in LATER_S:
        await anyio.sleep(pause_s)
        await to_thread.run_sync(remove_unfinished, run, state_dir, cache_dir)


def remove_unfinished(run: Run, state_dir: Path, cache_dir: Path) -> None:
    """Remove the work that a dead process did not finish: builds, pipes, installations, file systems, files
    half written."""
    for folder in (*_entries(cache_dir / BUILDS), *_entries(state_dir / PIPES)):
        mark = ".".join(folder.name.split(".")[:2])
        if run.is_dead(mark):
            shutil.rmtree(folder, ignore_errors=True)
    rootfs.remove_unfinished(cache_dir / "rootfs")
    packages.remove_unfinished(cache_dir)
    remove_dead_bridges()
    for file in _half_written(state_dir, cache_dir):
        file.unlink(missing_ok=True)


def _half_written(state_dir: Path, cache_dir: Path) -> Iterator[Path]:
    """Files named by the process that writes them, where there is no such process any more."""
    for folder in (cache_dir / "catalogs", cache_dir / "signatures", cache_dir / "vectors"):
        yield from (file for file in folder.glob("*.tmp") if _is_gone(file.suffixes[-2:][0].lstrip(".")))
    yield from (file for file in state_dir.glob(f".*{durable.SUFFIX}") if _is_gone(file.suffixes[-2:][0].lstrip(".")))
    yield from (file for file in state_dir.glob(".catalog.lock.*") if _is_gone(file.suffix.lstrip(".")))


def _is_gone(pid: str) -> bool:
    return pid.isdigit() and not (PROC / pid).exists()


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _end_processes(run: Run) -> None:
    """Kill every process of this user's whose environment bears the mark of a dead run. A sandbox ends with its
    gateway; without one, what a server started may have gone on."""
    for folder in PROC.iterdir():
        if not folder.name.isdigit() or not _is_left(run, folder):
            continue
        with suppress(OSError):
            # A handle on this very process: its id may be another's by the time of the signal.
            handle = os.pidfd_open(int(folder.name))
            try:
                if _is_left(run, folder):
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
            finally:
                os.close(handle)


def _is_left(run: Run, folder: Path) -> bool:
    try:
        if folder.stat().st_uid != os.getuid():
            return False
        environment = (folder / "environ").read_bytes()
    except OSError:
        return False  # gone, or not ours to read
    prefix = f"{MARK}=".encode()
    marks = [one.removeprefix(prefix) for one in environment.split(b"\0") if one.startswith(prefix)]
    return any(run.is_dead(mark.decode(errors="replace")) for mark in marks)
