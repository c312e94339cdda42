"""What a server tried to reach: counted for people, and denied attempts handed on to be audited.

Bounded, in memory; knows no network."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final, NamedTuple

MAX_KEPT: Final = 200
MAX_AUDITED_A_MINUTE: Final = 60
"""A server may try a thousand names a second; the audit file is not its to fill."""


class Attempt(NamedTuple):
    """One kind of attempt. `via` is dns, tls, http, connect or tcp."""

    denied: bool
    via: str
    host: str
    port: int
    reason: str = ""


class Seen(NamedTuple):
    """How often, and when first and last, in seconds since the epoch."""

    times: int
    first: float
    last: float


class Attempts:
    """The attempts of one server, in order of their last time; the oldest are forgotten."""

    def __init__(self) -> None:
        self._seen: OrderedDict[Attempt, Seen] = OrderedDict()
        self._minute = 0
        self._audited = 0
        self.unaudited = 0
        """Denied attempts that were only counted."""
        self.uncounted = 0
        """Attempts of which the filter told nothing but their number: there were too many at once."""

    def add(self, attempt: Attempt, audit: Callable[[Attempt], None]) -> None:
        now = time.time()
        before = self._seen.pop(attempt, None)
        self._seen[attempt] = Seen(before.times + 1, before.first, now) if before else Seen(1, now, now)
        if len(self._seen) > MAX_KEPT:
            self._seen.popitem(last=False)
        if not attempt.denied:
            return
        if int(now // 60) != self._minute:
            self._minute, self._audited = int(now // 60), 0
        if self._audited < MAX_AUDITED_A_MINUTE:
            self._audited += 1
            audit(attempt)
        else:
            self.unaudited += 1

    def rows(self) -> list[dict[str, Any]]:
        """The latest last."""
        return [{**attempt._asdict(), **seen._asdict()} for attempt, seen in self._seen.items()]
