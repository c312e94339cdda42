"""Removing what dead runs left on this machine: their servers' processes, and temporary files.

Knows /proc and our marks; what is left in an engine is runtimes/reconcile.py's to remove."""

from __future__ import annotations

import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path
from typing import Final

from gateway.images.builder import BUILDS
from gateway.runs import MARK, Run

PROC: Final = Path("/proc")


def remove_leftovers(run: Run, state_dir: Path, cache_dir: Path) -> None:
    """Only right for the holder of the state folder's lock: nobody else writes its files."""
    _end_processes(run)
    for folder in _entries(cache_dir / BUILDS):
        mark = ".".join(folder.name.split(".")[:2])
        if run.is_dead(mark):
            shutil.rmtree(folder, ignore_errors=True)
    for file in (*state_dir.glob("*.tmp"), *(state_dir / "listings").glob("*.tmp")):
        file.unlink(missing_ok=True)
    run.forget_dead()


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
