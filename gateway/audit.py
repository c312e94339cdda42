"""The audit file: one JSON line for each call that passed the door, written before its answer is given.

Knows what is recorded; never arguments or results themselves, only the arguments' digest."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Literal

import msgspec

from gateway.wire import envelope

ID_BYTES: Final = 8
IDS_AT_ONCE: Final = 512

Outcome = Literal[
    "ok", "tool_error", "error", "denied", "unknown", "upstream", "cancelled", "input_required", "task", "kept_back"
]


class Record(msgspec.Struct, gc=False):
    """One call. `at` is seconds since the epoch, `ms` its duration, `arguments` a SHA-256 prefix."""

    call: str
    at: float
    principal: str
    client: str
    profile: str
    method: str
    name: str
    server: str = ""
    """The id of the catalog's entry."""
    instance: str = ""
    """Which of its instances, if the profile has one of its own."""
    item: str = ""
    arguments: str = ""
    policy: str = ""
    """The generation of the policies that decided."""
    policies: tuple[str, ...] = ()
    outcome: Outcome = "cancelled"
    detail: str = ""
    ms: float = 0.0


def egress_denied(call: str, server: str, where: str, detail: str, instance: str = "") -> Record:
    """The record of a connection that a server's egress filter refused: no caller, and `where` in place of a name."""
    return Record(
        call, now(), "", "", "", "egress", where, server=server, instance=instance, outcome="denied", detail=detail
    )


def kept_back(call: str, server: str, tool: str, why: str) -> Record:
    """The record of a tool that is not offered until a person has looked at it."""
    return Record(call, now(), "", "", "", "review", tool, server=server, item=tool, outcome="kept_back", detail=why)


def call_id() -> str:
    """A new id for a record."""
    return next(_ids)


def signed_in(call: str, principal: str, what: str, peer: str, *, client: str = "", failure: str = "") -> Record:
    """The record of a sign-in and what belongs to it: `what` was shown or done, from the address `peer`."""
    outcome: Outcome = "denied" if failure else "ok"
    detail = f"{peer}: {failure}" if failure else peer
    return Record(call, now(), principal, client, "", "signin", what, outcome=outcome, detail=detail)


class AuditUnwritable(Exception):
    """The audit file cannot be written; calls must not go on without it."""


class Audit:
    """Appends records to one file. The descriptor is held; each record is a single `write` of one line."""

    def __init__(self, path: Path, clean: Callable[[bytes], bytes] = bytes) -> None:
        """`clean` takes secrets out of what callers wrote."""
        self._path = path
        self._clean = clean
        self._fd = -1

    def open(self) -> None:
        """
        Raises:
            OSError: the file cannot be made or opened.
        """
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def write(self, record: Record) -> None:
        """
        Raises:
            AuditUnwritable: disk full, file closed, or any other failure.
        """
        line = envelope.encode(record) + b"\n"
        if record.outcome != "ok" or record.method != "tools/call":  # else all names in it are the servers' own
            line = self._clean(line)
        try:
            written = os.write(self._fd, line)
            if written != len(line):
                # A part would spoil the next record too; this process alone writes here.
                os.ftruncate(self._fd, os.fstat(self._fd).st_size - written)
                raise AuditUnwritable(f"{self._path}: only part of a record could be written; is the disk full?")
        except OSError as exc:
            raise AuditUnwritable(f"{self._path}: {exc.strerror}") from exc

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def digest(arguments: bytes) -> str:
    """A short fingerprint that lets two records be compared without keeping what was said."""
    if not arguments:
        return ""
    begun = _sha256.copy()  # half the price of a new one
    begun.update(arguments)
    return begun.hexdigest()[:16]


def _random_ids() -> Iterator[str]:
    """To ask the kernel for each would cost as much as writing the record."""
    while True:
        random = os.urandom(ID_BYTES * IDS_AT_ONCE).hex()
        for start in range(0, len(random), 2 * ID_BYTES):
            yield random[start : start + 2 * ID_BYTES]


_sha256: Final = hashlib.sha256()
_ids: Final = _random_ids()


def now() -> float:
    return round(time.time(), 3)
