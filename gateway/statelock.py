"""One gateway a state folder: the lock that says so.

Knows one file; the system releases its lock however the process ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from gateway import errors


class StateInUse(errors.GatewayError):
    """Another gateway holds this state folder; stop it, or give this one another LOCKGATE_STATE_DIR."""


def lock_state(state_dir: Path) -> int:
    """Hold the state folder for this process; the system releases it however the process ends.

    Raises:
        StateInUse: another process holds it.
    """
    path = state_dir / "lock"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        os.close(fd)
        raise StateInUse(f"another gateway uses {path.parent}; stop it or set LOCKGATE_STATE_DIR") from exc
    return fd


def release_state(fd: int) -> None:
    os.close(fd)
