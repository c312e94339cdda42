"""Things that are good once and for minutes: kept by hash, taken at most once, also by two who come together.

Knows no kind of ticket."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from typing import Any, Final

from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.database import Database
from gateway.signin.tables import tickets

SPENT_S: Final = 3600.0
"""Spent and expired tickets are remembered for so long, to notice a second use."""


def hashed(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class Tickets:
    """The tickets of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def issue(self, kind: str, data: dict[str, Any], seconds: float, text: str | None = None) -> str:
        """A new ticket; `text` is its text if it is not to be a random one."""
        text = text or secrets.token_urlsafe(32)
        now = time.time()
        async with self._database.begin() as connection:
            await connection.execute(delete(tickets).where(tickets.c.expires_at < now - SPENT_S))
            row = {"hash": hashed(text), "kind": kind, "data": json.dumps(data), "expires_at": now + seconds}
            await connection.execute(insert(tickets).values(row))
        return text

    async def look(self, kind: str, text: str) -> dict[str, Any] | None:
        """What is written on a ticket that is good now."""
        async with self._database.begin() as connection:
            return await _good(connection, kind, hashed(text))

    async def take(self, kind: str, text: str) -> dict[str, Any] | None:
        """The same, and it is spent."""
        async with self._database.begin() as connection:
            found = await _good(connection, kind, hashed(text))
            where = (tickets.c.hash == hashed(text)) & (tickets.c.used_at.is_(None))
            if found is None:
                return None
            spent = await connection.execute(update(tickets).where(where).values(used_at=time.time()))
            return found if spent.rowcount == 1 else None

    async def spent(self, kind: str, text: str) -> dict[str, Any] | None:
        """What was written on a ticket that was taken before."""
        async with self._database.begin() as connection:
            where = (tickets.c.hash == hashed(text)) & (tickets.c.kind == kind) & tickets.c.used_at.is_not(None)
            row = (await connection.execute(select(tickets.c.data).where(where))).first()
            return json.loads(row.data) if row is not None else None

    async def rewrite(
        self, kind: str, hash: str, data: dict[str, Any], *, before: dict[str, Any] | None = None
    ) -> None:
        """Write something else on it; with `before` only if that is what still stands there."""
        async with self._database.begin() as connection:
            where = (tickets.c.hash == hash) & (tickets.c.kind == kind) & tickets.c.used_at.is_(None)
            if before is not None:
                where &= tickets.c.data == json.dumps(before)
            await connection.execute(update(tickets).where(where).values(data=json.dumps(data)))

    async def clear(self, kind: str) -> None:
        async with self._database.begin() as connection:
            await connection.execute(delete(tickets).where(tickets.c.kind == kind))


async def _good(connection: AsyncConnection, kind: str, hash: str) -> dict[str, Any] | None:
    where = (tickets.c.hash == hash) & (tickets.c.kind == kind) & tickets.c.used_at.is_(None)
    row = (await connection.execute(select(tickets).where(where))).first()
    if row is None or row.expires_at <= time.time():
        return None
    data: dict[str, Any] = json.loads(row.data)
    return data
