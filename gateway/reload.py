"""Taking a changed catalog into a running gateway: whole or not at all, and without touching calls under way.

Knows the parts that depend on the catalog and in which order they change; not what a catalog says."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

import anyio

from catalog import CatalogError, Difference
from gateway import errors

_log: Final = logging.getLogger(__name__)

WATCH_EVERY_S: Final = 1.0
"""How soon a changed file is seen; looking costs a few system calls."""

Stamp: TypeAlias = tuple[int, int, int] | None


class Outcome(NamedTuple):
    """What a reload came to: a difference, or the reason why everything stays as it was."""

    difference: Difference | None
    reason: str = ""


class CatalogWatch:
    """Reloads when asked, and when one of the files changes, comes or goes. One reload at a time; a failed one changes
    nothing."""

    def __init__(self, paths: Callable[[], Iterable[Path]], reload: Callable[[], Awaitable[Difference]]) -> None:
        self._paths = paths
        self._reload = reload
        self._stamps = self._look()
        self._one = anyio.Lock()
        self._asked = anyio.Event()
        self.reason = ""
        """Why the last reload failed; empty if it did not."""

    async def reload(self) -> Outcome:
        """Reload now. Whoever asks is told; the log is, too."""
        async with self._one:
            self._stamps = self._look()
            try:
                difference = await self._reload()
            except (CatalogError, errors.GatewayError) as exc:
                self.reason = str(exc)
                _log.error("catalog and policies stay as they were: %s", self.reason)
                return Outcome(None, self.reason)
            self.reason = ""
            if difference:
                _log.warning("catalog loaded again: %s", summary(difference))
            return Outcome(difference)

    def reload_soon(self) -> None:
        """The same from a signal handler."""
        self._asked.set()

    async def watch(self) -> None:
        """Until cancelled: reload whenever the file has changed or somebody asked."""
        while True:
            with anyio.move_on_after(WATCH_EVERY_S):
                await self._asked.wait()
            if self._asked.is_set():
                self._asked = anyio.Event()
            elif self._look() == self._stamps:
                continue
            await self.reload()

    def _look(self) -> dict[Path, Stamp]:
        return {path: _stamp(path) for path in self._paths()}


def summary(difference: Difference) -> str:
    """A difference in one line."""
    parts = [
        f"{len(names)} {what}"
        for names, what in (
            (difference.added, "added"),
            (difference.removed, "removed"),
            ([changed for changed in difference.changed if changed.restarts], "changed"),
            ([changed for changed in difference.changed if not changed.restarts], "described anew"),
        )
        if names
    ]
    profiles = sum(
        map(len, (difference.added_profiles, difference.removed_profiles, difference.changed_profiles))
    )  # fmt: skip
    parts += [f"{profiles} profiles changed"] if profiles else []
    publishers = sum(
        map(len, (difference.added_publishers, difference.removed_publishers, difference.changed_publishers))
    )
    parts += [f"{publishers} publishers changed"] if publishers else []
    return ", ".join(parts) or "nothing changed"


def _stamp(path: Path) -> Stamp:
    """What tells one state of the file from the next; None while it is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
