"""Which servers to start with the gateway: those whose entry says so, and those that are called time and again.

Knows a small record of past runs; starts nothing.

The rule, which needs no clock: of the last `RUNS` runs of the gateway in which anything was called, a server that was
called in at least `OFTEN` is likely to be called in this one. The likeliest come first, at most `MOST` of them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from catalog import Entry

_log: Final = logging.getLogger(__name__)

RUNS: Final = 5
OFTEN: Final = 3
MOST: Final = 8


class UseRecord:
    """The servers called in each of the last runs, oldest first, in one small file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._past = _read(path)
        self._now: list[str] = []

    def note(self, id: str) -> None:
        """A server is called for the first time in this run."""
        self._now.append(id)
        temporary = self._path.with_suffix(".tmp")
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(msgspec.json.encode([*self._past[1 - RUNS :], self._now]))
            temporary.replace(self._path)
        except OSError as exc:
            # It only makes a later first call faster.
            _log.warning("which servers are used could not be recorded in %s: %s", self._path, exc.strerror)

    def wanted(self, entries: Iterable[Entry]) -> list[str]:
        """The ids of the entries to start now, in order."""
        entries = list(entries)
        counts = {entry.id: sum(entry.id in run for run in self._past) for entry in entries}
        asked = [entry.id for entry in entries if entry.prewarm]
        learnt = sorted(
            (id for id, count in counts.items() if count >= OFTEN and id not in asked), key=lambda id: (-counts[id], id)
        )
        return [*asked, *learnt[:MOST]]


def _read(path: Path) -> list[list[str]]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[list[str]])[-RUNS:]
    except (OSError, msgspec.DecodeError):
        return []  # none yet, or damaged: learnt anew
