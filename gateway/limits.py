"""Limits on calls: rates counted in memory, quotas of a day or a month in the database.

Knows counts; which limits there are is read by policies/limits.py, and the door asks before it sends a call."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from sqlalchemy import BigInteger, Column, PrimaryKeyConstraint, String, Table, delete
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from catalog.yamltext import parse_plain
from gateway import errors
from gateway.database import Database, metadata
from gateway.settings import Settings
from gateway.upstream import Reply
from gateway.wire import envelope
from policies import Principal
from policies.limits import Limit, LimitsInvalid, Window, read_limits

FILE_NAME: Final = "limits.yaml"
MAX_FILE_BYTES: Final = 1_000_000
MAX_KNOWN: Final = 4096
"""Callers and tools whose limits are remembered."""
SWEEP_AT: Final = 10_000
"""Counts in memory before those that say nothing any more are dropped."""

spending: Final = Table(
    "spending",
    metadata,
    Column("name", String(64), nullable=False),
    Column("who", String(256), nullable=False),
    Column("span", String(10), nullable=False),
    Column("used", BigInteger, nullable=False),
    PrimaryKeyConstraint("name", "who", "span"),
)
"""What was used of each quota: by whom (empty for everybody together), in which day or month of UTC."""


@dataclass(frozen=True, slots=True)
class Reached:
    """A limit that a call would exceed, and in how many seconds it would not."""

    limit: str
    wait_s: int

    @property
    def detail(self) -> str:
        return f"limit {self.limit}"

    def reply(self) -> Reply:
        """The error of the call; `data` says how long to wait."""
        text = f"The limit {self.limit} is reached; try again in {self.wait_s} seconds. The call was not made."
        data = {"limit": self.limit, "retryAfterS": self.wait_s}
        return Reply(None, envelope.encode({"code": envelope.LIMIT_REACHED, "message": text, "data": data}))


class Limits:
    """Counts calls. Lives in the event loop, which makes the rates of this gateway atomic; quotas are by the database,
    also for several gateways on one."""

    def __init__(
        self, database: Database, clock: Callable[[], float] = time.monotonic, today: Callable[[], float] = time.time
    ) -> None:
        self._database = database
        self._clock = clock
        self._today = today
        self.limits: tuple[Limit, ...] = ()
        self._known: dict[tuple[Principal, str, str], tuple[tuple[Limit, ...], tuple[Limit, ...]]] = {}
        self._due: dict[tuple[str, str], float] = {}
        """When each bucket would be full again: all there is to know of it (the generic cell rate algorithm)."""
        self._sweep_at = SWEEP_AT

    def follow(self, limits: tuple[Limit, ...]) -> None:
        """From the next call on these hold. Counts of a limit that keeps its name go on."""
        self.limits = limits
        self._known.clear()

    async def take(self, who: Principal, server: str, tool: str) -> Reached | None:
        """Count one call, or say which limit keeps it from being made.

        Raises:
            UpstreamUnavailable: a quota cannot be counted, so the call must not be made.
        """
        key = (who, server, tool)
        found = self._known.get(key)
        if found is None:
            found = self._find(who, server, tool)
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            self._known[key] = found
        rates, quotas = found
        if rates and (reached := self._take_rates(rates, who)) is not None:
            return reached
        return await self._take_quotas(quotas, who) if quotas else None

    def _find(self, who: Principal, server: str, tool: str) -> tuple[tuple[Limit, ...], tuple[Limit, ...]]:
        met = [limit for limit in self.limits if limit.meets(who, server, tool)]
        return (
            tuple(limit for limit in met if limit.window is None),
            tuple(limit for limit in met if limit.window is not None),
        )

    def _take_rates(self, rates: Sequence[Limit], who: Principal) -> Reached | None:
        """All of them or none: there is no wait between looking and counting."""
        now = self._clock()
        due: list[tuple[tuple[str, str], float]] = []
        reached: Reached | None = None
        for limit in rates:
            key = (limit.name, limit.key(who))
            then = max(self._due.get(key, 0.0), now) + limit.period_s / limit.n
            early_s = then - now - limit.period_s
            if early_s > 1e-9 and (reached is None or early_s > reached.wait_s):
                reached = Reached(limit.name, max(1, math.ceil(early_s)))
            due.append((key, then))
        if reached is None:
            self._due.update(due)
            if len(self._due) > self._sweep_at:
                self._due = {key: then for key, then in self._due.items() if then > now}
                self._sweep_at = max(SWEEP_AT, 2 * len(self._due))
        return reached

    async def _take_quotas(self, quotas: Sequence[Limit], who: Principal) -> Reached | None:
        now = self._today()
        try:
            async with self._database.begin() as connection:
                for limit in quotas:
                    row = {"name": limit.name, "who": limit.key(who), "span": span(limit.window, now), "used": 1}
                    if (await connection.execute(count(self._database, row, limit.n))).rowcount != 1:
                        raise _Spent(Reached(limit.name, left_s(limit.window, now)))
        except _Spent as exc:
            return exc.reached
        except (SQLAlchemyError, OSError) as exc:
            raise errors.UpstreamUnavailable("what limits count cannot be written to the database") from exc
        return None

    async def open(self) -> None:
        """Forget what was used long ago."""
        before = datetime.fromtimestamp(self._today(), UTC) - timedelta(days=62)
        async with self._database.begin() as connection:
            await connection.execute(delete(spending).where(spending.c.span < before.strftime("%Y-%m")))


def count(database: Database, row: Mapping[str, Any], at_most: int) -> Any:
    """One statement that counts up to the quota and no further, whoever else counts at the same time.

    The `used` of the row is added to what was used; by itself it is within the quota."""
    insert = sqlite.insert if database.is_sqlite else postgresql.insert
    statement = insert(spending).values(row)
    return statement.on_conflict_do_update(
        index_elements=["name", "who", "span"],
        set_={"used": spending.c.used + row["used"]},
        where=spending.c.used <= at_most - row["used"],
    )


class _Spent(Exception):
    """Undoes what was counted for a call that is not made."""

    def __init__(self, reached: Reached) -> None:
        super().__init__(reached.limit)
        self.reached = reached


def span(window: Window | None, now: float) -> str:
    """The day or month that a moment is in."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m" if window == "month" else "%Y-%m-%d")


def left_s(window: Window | None, now: float) -> int:
    """Seconds until the next day or month."""
    at = datetime.fromtimestamp(now, UTC)
    start = at.replace(hour=0, minute=0, second=0, microsecond=0)
    following = (start.replace(day=1) + timedelta(days=32)).replace(day=1) if window == "month" else None
    return max(1, math.ceil(((following or start + timedelta(days=1)) - at).total_seconds()))


def places(settings: Settings) -> list[Path]:
    """Where limits may be: beside a catalogue of one's own, and in the state folder."""
    beside = [settings.catalog.parent / FILE_NAME] if settings.catalog is not None else []
    return list(dict.fromkeys([*beside, settings.state_dir / FILE_NAME]))


def read(settings: Settings, servers: Mapping[str, Any]) -> tuple[Limit, ...]:
    """The limits of this machine; none without a file.

    Raises:
        PoliciesUnusable: the file cannot be read or breaks rules, or there are two.
    """
    found = [path for path in places(settings) if path.exists()]
    if not found:
        return ()
    if len(found) > 1:
        raise errors.PoliciesUnusable(f"there are limits in {found[0]} and {found[1]}; keep one of the files")
    try:
        if found[0].stat().st_size > MAX_FILE_BYTES:
            raise ValueError(f"larger than {MAX_FILE_BYTES} bytes")
        document = parse_plain(found[0].read_text("utf-8"))
    except (OSError, ValueError) as exc:
        raise errors.PoliciesUnusable(f"{found[0]}: cannot be read: {exc}; see docs/limits.md") from exc
    try:
        return read_limits(str(found[0]), document, servers)
    except LimitsInvalid as exc:
        raise errors.PoliciesUnusable(str(exc)) from exc
