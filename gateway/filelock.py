"""A lock that one process at a time holds, kept in a file.

Knows not what it protects; it is released by the operating system when its holder dies.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

import anyio

POLL_S: Final = 0.1
"""How often a waiting process looks again: a task that waits inside flock(2) could not be cancelled."""


@asynccontextmanager
async def file_lock(path: Path) -> AsyncIterator[int]:
    """Hold the lock for the body; waits as long as another holds it. Not re-entrant, safe to cancel.

    Yields the lock's file descriptor. A child process that inherits it keeps the lock until it ends too, so
    that an installer which outlives a killed gateway never meets its successor.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await anyio.sleep(POLL_S)
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def lock_if_free(path: Path) -> Iterator[bool]:
    """Hold the lock for the body if nobody else does; whether that is so. Waits for nobody and makes no file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_free = True
    except OSError:
        is_free = False
    try:
        yield is_free
    finally:
        os.close(descriptor)


@contextmanager
def file_lock_in_thread(path: Path, timeout_s: float) -> Iterator[None]:
    """The same for a worker thread.

    Raises:
        TimeoutError: another process holds it for longer than that.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    until = time.monotonic() + timeout_s
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise TimeoutError(f"another process holds {path}") from None
                time.sleep(POLL_S)
        yield
    finally:
        os.close(descriptor)
