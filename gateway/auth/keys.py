"""API keys: high-entropy texts of which only a hash is kept.

Knows the table of keys; not requests."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Column, Float, Row, String, Table, Text, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.auth.resources import SCOPES
from gateway.database import Database, metadata
from gateway.errors import SettingsError
from gateway.signin.tables import accounts
from policies import Principal

PREFIX: Final = "lgk_"
SHOWN_CHARS: Final = 10
"""How much of a key is kept in the clear, so that people can tell keys apart."""
MAX_NAME: Final = 64

table: Final = Table(
    "api_keys",
    metadata,
    Column("name", String(MAX_NAME), primary_key=True),
    Column("hash", String(64), nullable=False, unique=True),
    Column("prefix", String(16), nullable=False),
    Column("account", String(128), nullable=False),
    Column("groups", Text, nullable=False),
    Column("scopes", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float),
    Column("used_at", Float),
    Column("revoked_at", Float),
)
"""Groups and scopes are words between spaces. A revoked key stays, so that its name is never another key's."""


@dataclass(frozen=True)
class Key:
    """An API key as it is known here."""

    name: str
    prefix: str
    account: str
    groups: frozenset[str]
    scopes: frozenset[str]
    created_at: float
    expires_at: float | None
    used_at: float | None
    revoked_at: float | None

    def is_good(self, now: float) -> bool:
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)

    @property
    def state(self) -> str:
        if self.revoked_at is not None:
            return "revoked"
        return "good" if self.is_good(time.time()) else "expired"

    @property
    def principal(self) -> Principal:
        id = f"user:{self.account}" if self.account else f"key:{self.name}"
        return Principal(id, "key", self.groups, self.name, self.scopes, "key")


def hashed(key: str) -> str:
    """A key has 256 random bits: nobody guesses one from its hash, and a slow hash would only slow us down."""
    return hashlib.sha256(key.encode()).hexdigest()


def check_word(text: str, what: str) -> str:
    """
    Raises:
        SettingsError: it is no single word of printable ASCII.
    """
    if not 0 < len(text) <= MAX_NAME or not all(33 <= ord(c) <= 126 and c not in '"\\' for c in text):
        raise SettingsError(f"{what} {text!r}: 1 to {MAX_NAME} characters of printable ASCII without spaces")
    return text


class Keys:
    """The API keys of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(
        self,
        name: str,
        *,
        account: str = "",
        groups: Iterable[str] = (),
        scopes: Iterable[str] = ("mcp",),
        expires_at: float | None = None,
    ) -> str:
        """A new key, shown this once.

        Raises:
            SettingsError: the name is taken, or a word is none.
        """
        check_word(name, "key")
        if account:
            check_word(account, "user")
        groups = sorted({check_word(group, "group") for group in groups})
        if unknown := set(scopes) - set(SCOPES):
            raise SettingsError(f"scope {', '.join(sorted(unknown))}: there are {', '.join(SCOPES)}")
        key = PREFIX + secrets.token_urlsafe(32)
        row = {
            "name": name,
            "hash": hashed(key),
            "prefix": key[:SHOWN_CHARS],
            "account": account,
            "groups": " ".join(groups),
            "scopes": " ".join(sorted(set(scopes))),
            "created_at": time.time(),
            "expires_at": expires_at,
        }
        try:
            async with self._database.begin() as connection:
                await connection.execute(insert(table).values(row))
        except IntegrityError as exc:
            raise SettingsError(f"there is, or was, a key {name!r} already; choose another name") from exc
        return key

    async def list(self) -> list[Key]:
        async with self._database.begin() as connection:
            rows = await connection.execute(select(table).order_by(table.c.created_at, table.c.name))
            return [_key(row) for row in rows]

    async def revoke(self, name: str) -> None:
        """
        Raises:
            SettingsError: there is no such key.
        """
        async with self._database.begin() as connection:
            known = (await connection.execute(select(table.c.revoked_at).where(table.c.name == name))).first()
            if known is None:
                raise SettingsError(f"there is no key {name!r}; `lockgate key list` names them")
            if known.revoked_at is None:
                await connection.execute(update(table).where(table.c.name == name).values(revoked_at=time.time()))

    async def find(self, key: str) -> Key | None:
        """The key, if it is good now; notes that it was used."""
        now = time.time()
        async with self._database.begin() as connection:
            row = (await connection.execute(select(table).where(table.c.hash == hashed(key)))).first()
            if row is None or not (found := _key(row)).is_good(now):
                return None
            if await is_disabled(connection, found.account):
                return None
            await connection.execute(update(table).where(table.c.name == found.name).values(used_at=now))
            return found


async def is_disabled(connection: AsyncConnection, account: str) -> bool:
    """Whether this is an account that was ended: keys that act as it are good no longer."""
    found = select(accounts.c.disabled_at).where(accounts.c.name == account)
    return bool(account) and (await connection.execute(found)).scalar_one_or_none() is not None


def _key(row: Row[Any]) -> Key:
    return Key(
        row.name,
        row.prefix,
        row.account,
        frozenset(row.groups.split()),
        frozenset(row.scopes.split()),
        row.created_at,
        row.expires_at,
        row.used_at,
        row.revoked_at,
    )
