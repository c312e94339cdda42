"""Quotas of the tokens that local models use: taken before an answer, given back when it needed fewer.

Knows counts; how many tokens a request may use and did use, the engine says."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Final

import anyio
from sqlalchemy import update
from sqlalchemy.exc import SQLAlchemyError

from engine import ModelNotFound, Spent
from engine.store import full_ref
from gateway import errors
from gateway.chatstream import is_elsewhere
from gateway.database import Database
from gateway.limits import count, left_s, span, spending
from policies import Principal
from policies.limits import Limit

SETTLE_S: Final = 30.0
"""For giving back what an answer did not use; after that it stays counted."""

Row = dict[str, Any]
_log: Final = logging.getLogger(__name__)


class TokenQuotas:
    """Counts tokens in the database, for all gateways on it.

    What a request may use at most is counted as used before the model sees it, so that requests at the same time never
    exceed a quota. What it did not use is taken off at its end, however it ends. If this process dies before, all stays
    counted: nothing waits for anybody to clear it.
    """

    def __init__(self, database: Database, today: Callable[[], float] = time.time) -> None:
        self._database = database
        self._today = today
        self.limits: tuple[Limit, ...] = ()
        self._writing = anyio.Lock()
        """Writes of this gateway wait for each other in their order; a busy database would choose by chance."""

    def follow(self, limits: Sequence[Limit]) -> None:
        """From the next request on these hold; those on calls are left to others."""
        self.limits = tuple(replace(limit, model=_whole(limit.model)) for limit in limits if limit.tokens)

    @asynccontextmanager
    async def spending(self, who: Principal, model: str, most: Callable[[], Awaitable[int]]) -> AsyncIterator[Spent]:
        """Count what the block notes in what it is given. `most` says how many tokens it may use, if that matters.

        Raises:
            LimitReached: a quota has no room for so many.
            UpstreamUnavailable: the quotas cannot be counted.
        """
        spent = Spent()
        met = [limit for limit in self.limits if limit.meets_model(who, model)]
        if not met:
            yield spent
            return
        n = await most()
        rows = await self._take(met, who, n)
        try:
            yield spent
        finally:
            with anyio.move_on_after(SETTLE_S, shield=True):
                await self._settle(rows, n - spent.total)

    async def _take(self, limits: Sequence[Limit], who: Principal, n: int) -> list[Row]:
        """All of them or none."""
        now = self._today()
        rows = []
        try:
            async with self._writing, self._database.begin() as connection:
                for limit in limits:
                    row = {"name": limit.name, "who": limit.key(who), "span": span(limit.window, now), "used": n}
                    if n > limit.n or (await connection.execute(count(self._database, row, limit.n))).rowcount != 1:
                        raise errors.LimitReached(limit.name, left_s(limit.window, now), n, is_never=n > limit.n)
                    rows.append(row)
        except (SQLAlchemyError, OSError) as exc:
            raise errors.UpstreamUnavailable("what limits count cannot be written to the database") from exc
        return rows

    async def _settle(self, rows: Sequence[Row], unused: int) -> None:
        try:
            async with self._writing, self._database.begin() as connection:
                for row in rows:
                    counted = [spending.c[key] == row[key] for key in ("name", "who", "span")]
                    await connection.execute(update(spending).where(*counted).values(used=spending.c.used - unused))
        except (SQLAlchemyError, OSError) as exc:
            _log.warning("tokens that a model did not use stay counted: %s", exc.__class__.__name__)


def _whole(model: str) -> str:
    try:
        return full_ref(model) if model and not is_elsewhere(model) else model
    except ModelNotFound:
        return model  # it names no model, so nothing is counted for it
