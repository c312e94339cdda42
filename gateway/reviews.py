"""What servers say of their tools, compared with what was approved: unchanged tools pass, others wait for a person.

Owns the tools in the catalogue's lock file and the definitions behind their hashes. Knows listings and the judge of
definitions; not who calls, and not how people are asked."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import msgspec

from catalog.definitions import canonical, difference, digest
from catalog.lock import Lock, read_lock, write_lock
from gateway import errors
from gateway.filelock import file_lock_in_thread
from gateway.listings import Item, Listing
from gateway.wire import envelope
from gateway.wire.envelope import WireError
from policies.definitions import inspect, inspect_text

_log: Final = logging.getLogger(__name__)

LOCK_TIMEOUT_S: Final = 10.0
"""Another command holds the lock file for the time of one write."""

Why: TypeAlias = Literal["changed", "suspicious", "rejected"]


class Waiting(msgspec.Struct, frozen=True):
    """One tool that is kept back: what it says now, and why it waits."""

    why: Why
    definition: dict[str, Any]
    findings: tuple[str, ...] = ()


class Book(msgspec.Struct):
    """What is known of one server's tools: one file in the state folder."""

    approved: dict[str, dict[str, Any]] = {}
    waiting: dict[str, Waiting] = {}
    rejected: dict[str, str] = {}
    """Tool to the hash that was rejected; the same definition is not asked about again."""


@dataclass(frozen=True, slots=True)
class Pending:
    """One tool to be judged by a person."""

    server: str
    tool: str
    why: Why
    findings: tuple[str, ...]
    difference: tuple[str, ...]
    digest: str
    """The hash of what the tool says now: what a person judged may have changed again before the answer comes."""


class Reviews:
    """The approvals of one gateway. Calls block on files: use a worker thread. Safe to call from several.

    A server that was never seen is trusted on first use, but for tools whose definitions the judge stumbles over.
    """

    def __init__(self, lock_file: Path, folder: Path, report: Callable[[str, str, str], None]) -> None:
        """`report(server, tool, why)` is told of every tool that is newly kept back."""
        self._lock_file = lock_file
        self._folder = folder
        self._report = report
        self._one_at_a_time = threading.Lock()
        self._names: dict[str, frozenset[str]] = {}
        """The tools of each server seen so far, whose mention by another is noticed."""
        self._held: dict[str, dict[str, dict[str, Waiting]]] = {}
        """What waits, by server and instance: one that offers a tool as approved settles nothing for the others."""
        self._lock: tuple[object, Lock] = (None, Lock())
        """The lock file as last read, and by what it is known not to have changed."""

    def admit(self, server: str, listing: Listing, instance: str = "") -> Listing:
        """The listing without the tools that wait for a person; what is new and clean is pinned on the way. Pins are an
        entry's, so its instances are held to the same ones.

        Raises:
            CatalogError: the lock file is damaged; nothing is guessed.
            OSError: approvals cannot be recorded.
        """
        with self._holding():
            lock, book = self._locked(), self._read(server)
            pinned = dict(lock.tools.get(server, {}))
            before = (dict(pinned), msgspec.json.encode(book))
            names = self._names[server] = frozenset(item.key for item in listing.tools)
            foreign = {name for id, others in self._names.items() if id != server for name in others} - names
            waiting = {}
            for item in listing.tools:
                found = self._judged(item, pinned, book, foreign)
                if found is not None:
                    waiting[item.key] = found
            news = [(tool, found.why) for tool, found in waiting.items() if book.waiting.get(tool) != found]
            held = self._held.setdefault(server, {})
            held[instance] = waiting
            book.waiting = {tool: found for one in held.values() for tool, found in one.items()}
            if before != (pinned, msgspec.json.encode(book)):
                self._write(server, lock, pinned, book)
        for tool, why in news:
            _log.warning("server %s: tool %s is kept back (%s); see: lockgate catalog review", server, tool, why)
            self._report(server, tool, why)
        instructions = listing.instructions if not inspect_text(listing.instructions) else ""
        if not waiting and instructions == listing.instructions:
            return listing
        tools = tuple(item for item in listing.tools if item.key not in waiting)
        return msgspec.structs.replace(listing, tools=tools, instructions=instructions)

    @staticmethod
    def _judged(item: Item, pinned: dict[str, str], book: Book, foreign: Collection[str]) -> Waiting | None:
        definition = _definition(item)
        now = digest(definition)
        if pinned.get(item.key) == now:
            book.approved.setdefault(item.key, canonical(definition))
            return None
        if book.rejected.get(item.key) == now:
            return Waiting("rejected", canonical(definition))
        findings = tuple(str(finding) for finding in inspect(canonical(definition), foreign))
        if item.key in pinned:
            return Waiting("changed", canonical(definition), findings)
        if findings:
            return Waiting("suspicious", canonical(definition), findings)
        pinned[item.key] = now
        book.approved[item.key] = canonical(definition)
        return None

    def pending(self, server: str | None = None) -> list[Pending]:
        """Every tool that waits for a person, with what changed; rejected ones are settled."""
        servers = [server] if server is not None else sorted(path.stem for path in self._folder.glob("*.json"))
        found = []
        for id in servers:
            book = self._read(id)
            for tool, waiting in sorted(book.waiting.items()):
                if waiting.why == "rejected":
                    continue
                lines = tuple(difference(book.approved.get(tool), waiting.definition))
                found.append(Pending(id, tool, waiting.why, waiting.findings, lines, digest(waiting.definition)))
        return found

    def approve(self, server: str, tool: str, seen: str = "") -> None:
        """Pin what the tool says now; with the hash of what was looked at, only if it still says that.

        Raises:
            UnknownName: no such tool waits, or it says something else.
        """
        self._settle(server, tool, seen, approved=True)

    def reject(self, server: str, tool: str, seen: str = "") -> None:
        """Keep the tool back for as long as it says this.

        Raises:
            UnknownName: no such tool waits, or it says something else.
        """
        self._settle(server, tool, seen, approved=False)

    def _settle(self, server: str, tool: str, seen: str, *, approved: bool) -> None:
        with self._holding():
            lock, book = self._locked(), self._read(server)
            waiting = book.waiting.pop(tool, None)
            for held in self._held.get(server, {}).values():
                held.pop(tool, None)
            if waiting is None:
                raise errors.UnknownName(f"no tool {tool} of {server} waits for review; see: lockgate catalog review")
            if seen and digest(waiting.definition) != seen:
                raise errors.UnknownName(
                    f"tool {tool} of {server} changed again; see: lockgate catalog review {server}"
                )
            pinned = dict(lock.tools.get(server, {}))
            if approved:
                pinned[tool] = digest(waiting.definition)
                book.approved[tool] = waiting.definition
                book.rejected.pop(tool, None)
            else:
                book.rejected[tool] = digest(waiting.definition)
                book.waiting[tool] = Waiting("rejected", waiting.definition, waiting.findings)
            self._write(server, lock, pinned, book)

    @contextmanager
    def _holding(self) -> Iterator[None]:
        """One change at a time, among threads and among processes."""
        path = self._lock_file
        with self._one_at_a_time, file_lock_in_thread(path.with_name(f".{path.name}.lock"), LOCK_TIMEOUT_S):
            yield

    # -- files -----------------------------------------------------------------------------------

    def _locked(self) -> Lock:
        try:
            status = self._lock_file.stat()
        except FileNotFoundError:
            return Lock()
        stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        if self._lock[0] != stamp:
            self._lock = (stamp, read_lock(self._lock_file))
        return self._lock[1]

    def _read(self, server: str) -> Book:
        try:
            content = self._path(server).read_bytes()
        except FileNotFoundError:
            return Book()
        try:
            return msgspec.json.decode(content, type=Book)
        except msgspec.DecodeError:
            # Only what differences are shown against; the hashes that decide are in the lock file.
            _log.warning("the approved definitions of %s are damaged; changes are shown whole until approved", server)
            return Book()

    def _write(self, server: str, lock: Lock, pinned: Mapping[str, str], book: Book) -> None:
        """The lock file decides, so it comes last: a crash in between only asks again."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._path(server)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_bytes(msgspec.json.encode(book))
        temporary.replace(path)
        if dict(lock.tools.get(server, {})) != dict(pinned):
            write_lock(self._lock_file, lock.with_tools(server, pinned))

    def _path(self, server: str) -> Path:
        return self._folder / f"{server}.json"


def _definition(item: Item) -> dict[str, Any]:
    try:
        value = envelope.value(item.raw)
    except WireError:
        value = None
    # What cannot be read cannot be approved: it hashes as itself.
    return (
        value
        if isinstance(value, dict)
        else {"name": item.key, "description": bytes(item.raw).decode(errors="replace")}
    )
