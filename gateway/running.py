"""Finding the gateway that runs on a state folder, and how to reach it.

Knows the files it leaves there; not how it serves. Imports little: most commands start with this."""

from __future__ import annotations

import os
import ssl
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from gateway.runs import RUN_FILE, SOCKET
from gateway.settings import Settings
from gateway.statelock import StateInUse, lock_state, release_state


class Running(msgspec.Struct):
    """How to reach a running gateway; kept in its state folder, readable by its user only."""

    url: str
    pid: int
    admin_token: str
    profile: str


def own_tls(settings: Settings) -> ssl.SSLContext | None:
    """For connections of this machine to the gateway itself: its very certificate, whatever name is in it."""
    if settings.tls_cert is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(settings.tls_cert)
    return context


def find_running(settings: Settings) -> Running | None:
    """The gateway that serves this state folder: the run file says how to reach it, the lock that it lives."""
    try:
        running = msgspec.json.decode((settings.state_dir / RUN_FILE).read_bytes(), type=Running)
        release_state(lock_state(settings.state_dir))
    except StateInUse:
        return running
    except (OSError, msgspec.DecodeError):
        return None
    return None


@contextmanager
def socket_path(state_dir: Path) -> Generator[Path, None, None]:
    """A short name for the socket file: `sockaddr_un` holds 108 bytes, a state folder's path may be longer."""
    folder = os.open(state_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield Path(f"/proc/self/fd/{folder}/{SOCKET}")
    finally:
        os.close(folder)
