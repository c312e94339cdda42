"""The audit file: a JSON line for each call before it is sent to its server, and one before its answer is given.

Knows what is recorded; never arguments or results themselves, only the arguments' digest."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Literal

import anyio
import msgspec
from anyio import to_thread

from gateway import auditchain, auditlog
from gateway.auditchain import Checkpoint, Key
from gateway.auditlog import CHECKPOINTS, KEY
from gateway.wire import envelope
from policies import Principal

_log: Final = logging.getLogger(__name__)

MAX_BYTES: Final = 64 << 20
CHECKPOINT_RECORDS: Final = 1000
CHECKPOINT_S: Final = 10.0
PREFIX: Final = 16
"""Hexadecimal digits of a digest that are recorded: 64 bits."""
ID_BYTES: Final = 8
IDS_AT_ONCE: Final = 512

Outcome = Literal[
    "ok",
    "tool_error",
    "error",
    "denied",
    "limited",
    "unknown",
    "upstream",
    "cancelled",
    "input_required",
    "task",
    "kept_back",
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
    entry_digest: str = ""
    """Of the entry that ran, with its image or package; a SHA-256 prefix."""
    tool_digest: str = ""
    """Of the tool's definition as its server listed it; a SHA-256 prefix."""
    outcome: Outcome = "cancelled"
    detail: str = ""
    ms: float = 0.0
    bytes: int = 0
    """Of the answer."""
    who: Principal | None = None
    """All that policy knows of the principal."""
    source: str = ""
    """The address the request came from, if it came by a network."""
    guards: tuple[str, ...] = ()
    """What content guards found, by side, guard, mode and number; then of which kinds."""

    def start(self) -> Start:
        return Start(
            self.call, self.at, self.principal, self.client, self.profile, self.method, self.server, self.item,
            self.arguments, self.instance, self.policy, self.policies, self.entry_digest, self.tool_digest,
        )  # fmt: skip


class ModelRecord(Record, gc=False):
    """One use of a language model: `name` and `item` are its name, `entry_digest` is of its weights. What is said to it
    and what it says is nowhere."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class RunRecord(Record, gc=False):
    """One run of an agent: `item` is the agent, `name` its model, `arguments` the digest of its task, `run` the id of
    its transcript."""

    run: str = ""
    steps: int = 0
    calls: int = 0
    tokens: int = 0


class Start(msgspec.Struct, gc=False):
    """A call that is about to be sent to its server. The record of its end has the same `call`."""

    call: str
    at: float
    principal: str
    client: str
    profile: str
    method: str
    server: str
    item: str
    arguments: str
    instance: str = ""
    policy: str = ""
    policies: tuple[str, ...] = ()
    entry_digest: str = ""
    tool_digest: str = ""
    event: Literal["start"] = "start"


StepName = Literal["held", "approved", "denied", "expired", "withdrawn", "used"]


class Step(msgspec.Struct, gc=False):
    """Something that happened to a call that a person must approve. `by` is who decided; `arguments` a SHA-256
    prefix."""

    call: str
    at: float
    approval: str
    step: StepName
    by: str
    principal: str
    profile: str
    server: str
    item: str
    arguments: str
    policies: tuple[str, ...]
    method: str = "approval"
    event: Literal["approval"] = "approval"


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
    """Appends records to one file, each chained to the one before it by a single `write` of one line; signs where the
    chain is every `CHECKPOINT_RECORDS`, every `CHECKPOINT_S` and at the end.

    A file over `MAX_BYTES` is put aside, and the chain goes on in a new one. This process alone writes here.
    """

    def __init__(self, path: Path, clean: Callable[[bytes], bytes] = bytes, *, max_bytes: int = MAX_BYTES) -> None:
        """`clean` takes secrets out of what callers wrote."""
        self._path = path
        self.clean = clean
        self._max_bytes = max_bytes
        self._fd = -1
        self._size = 0
        self._seq = 0
        self._chain = auditchain.FIRST
        self._signed = 0
        self._key: Key | None = None

    def open(self) -> None:
        """
        Raises:
            OSError: the file cannot be made or opened.
        """
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._go_on()
        self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._fd).st_size

    def write(self, record: Record | Start | Step) -> None:
        """
        Raises:
            AuditUnwritable: disk full, file closed, or any other failure.
        """
        body = envelope.encode(record)
        if record.method != "tools/call" or (isinstance(record, Record) and record.outcome != "ok"):
            body = self.clean(body)  # else all names in it are the servers' own
        line, chain = auditchain.sealed(body, self._seq + 1, self._chain)
        try:
            written = os.write(self._fd, line)
            if written != len(line):
                # A part would spoil the next record too; this process alone writes here.
                os.ftruncate(self._fd, os.fstat(self._fd).st_size - written)
                raise AuditUnwritable(f"{self._path}: only part of a record could be written; is the disk full?")
        except OSError as exc:
            raise AuditUnwritable(f"{self._path}: {exc.strerror}") from exc
        self._seq += 1
        self._chain = chain
        self._size += written
        if self._seq - self._signed >= CHECKPOINT_RECORDS:
            self.checkpoint()
        if self._size > self._max_bytes:
            self._turn()

    def checkpoint(self) -> None:
        """Sign where the chain is, if it moved. If that cannot be written, it is tried again with a later record."""
        if self._seq == self._signed:
            return
        try:
            if self._key is None:
                self._key = Key.load(self._path.with_name(KEY))
            signed = self._key.sign(Checkpoint(self._seq, self._chain.decode(), now()))
            fd = os.open(
                self._path.with_name(CHECKPOINTS), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
            with os.fdopen(fd, "wb", buffering=0) as file:
                line = envelope.encode(signed) + b"\n"
                if (written := file.write(line)) != len(line):
                    os.ftruncate(fd, os.fstat(fd).st_size - (written or 0))
                    raise OSError(errno.ENOSPC, "only part of it could be written")
        except (OSError, ValueError) as exc:
            _log.error("no checkpoint of the audit file: %s", exc)
            return
        self._signed = self._seq

    async def watch(self) -> None:
        """Until cancelled: sign and put on disk what was written since the last time."""
        while True:
            await anyio.sleep(CHECKPOINT_S)
            if self._seq != self._signed and self._fd >= 0:
                self.checkpoint()
                fd = os.dup(self._fd)
                try:
                    await to_thread.run_sync(os.fdatasync, fd)
                except OSError as exc:
                    _log.error("the audit file could not be put on disk: %s", exc)
                finally:
                    os.close(fd)

    def close(self) -> None:
        if self._fd >= 0:
            self.checkpoint()
            os.close(self._fd)
            self._fd = -1

    def _go_on(self) -> None:
        """Find the end of the chain. A line that a crash left unfinished was never answered for, and is removed."""
        end = auditlog.last_line(self._path) or auditlog.last_line(auditlog.put_aside(self._path))
        if end is None:
            return None
        if not end.endswith(b"\n"):
            _log.warning("%s: an unfinished record at its end is removed; its call was not answered", self._path)
            os.truncate(self._path, self._path.stat().st_size - len(end))
            return self._go_on()
        found = auditchain.place(end)
        if found is None:
            self._path.rename(self._path.with_name(f"audit.unchained-{int(time.time())}.jsonl"))
            _log.warning("%s: was written without a chain and is put aside", self._path)
            return None
        self._seq, self._chain = found
        known = auditchain.last_checkpoint(self._path.with_name(CHECKPOINTS))
        self._signed = min(known.seq, self._seq) if known is not None else 0
        if known is not None and (
            known.seq > self._seq or (known.seq == self._seq and known.chain.encode() != self._chain)
        ):
            _log.error(
                "%s ends with record %d, but record %d was signed: it was cut short or changed; see: "
                "lockgate audit verify", self._path, self._seq, known.seq
            )  # fmt: skip
        return None

    def _turn(self) -> None:
        """Go on in a new file."""
        self.checkpoint()
        full = auditlog.aside(self._path, self._seq)
        try:
            self._path.rename(full)
            try:
                fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError:
                full.rename(self._path)  # else it could not be put aside with a later record
                raise
        except OSError as exc:
            _log.error("the audit file goes on growing, as no new one could be made: %s", exc)
            return
        os.close(self._fd)
        self._fd, self._size = fd, 0


def digest(arguments: bytes) -> str:
    """A short fingerprint that lets two records be compared without keeping what was said."""
    if not arguments:
        return ""
    begun = _sha256.copy()  # half the price of a new one
    begun.update(arguments)
    return begun.hexdigest()[:PREFIX]


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
