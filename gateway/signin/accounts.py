"""Accounts of people: made on the command line or by the first administrator's code, proved by password.

Knows passwords and how often they may be tried; not requests."""

from __future__ import annotations

import ipaddress
import re
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal

from anyio import CapacityLimiter, to_thread
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from sqlalchemy import Row, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from gateway.auth.keys import check_word
from gateway.database import Database
from gateway.errors import SettingsError
from gateway.signin.tables import accounts
from gateway.signin.tickets import Tickets

NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
MIN_PASSWORD: Final = 10
MAX_PASSWORD: Final = 1024
BOOTSTRAP_S: Final = 3600.0
FREE_TRIES: Final = 5
"""Wrong passwords before an account, or an address, has to wait."""
FREE_TRIES_OF_ADDRESS: Final = 50
FIRST_WAIT_S: Final = 2.0
MAX_WAIT_S: Final = 900.0
MAX_WATCHED: Final = 10_000

Strength = Literal["password", "multi"]

_hasher: Final = PasswordHasher()  # Argon2id, RFC 9106's second choice: 64 MiB, three passes
_hashing: Final = CapacityLimiter(2)
"""Each takes 64 MiB and a processor; more at once would be a way to exhaust the machine."""


@dataclass(frozen=True)
class Account:
    """Somebody who can sign in."""

    name: str
    groups: frozenset[str]
    is_admin: bool
    created_at: float
    disabled_at: float | None
    strength: Strength = "password"
    """How its person proved it, where somebody is signed in: a passkey is two proofs, the device and what opens it."""

    @property
    def subject(self) -> str:
        """The principal: a provider's user has the provider's name before the colon."""
        return self.name if ":" in self.name else f"user:{self.name}"


class TooManyTries(Exception):
    """Wrong passwords came too often; `wait_s` says when to try again."""

    def __init__(self, wait_s: float) -> None:
        super().__init__("too many wrong passwords")
        self.wait_s = wait_s


class Tries:
    """Counts failures by account and by address; after some, each failure doubles the wait."""

    def __init__(self) -> None:
        self._failures: dict[str, tuple[int, float]] = {}

    def check(self, *who: tuple[str, int]) -> None:
        """`who` are names with the failures they have free.

        Raises:
            TooManyTries: one of them has to wait.
        """
        now = time.monotonic()
        for name, free in who:
            count, last = self._failures.get(name, (0, 0.0))
            wait = min(FIRST_WAIT_S * 2 ** min(count - free, 20), MAX_WAIT_S) if count >= free else 0.0
            if now < last + wait:
                raise TooManyTries(last + wait - now)

    def failed(self, *who: tuple[str, int]) -> None:
        now = time.monotonic()
        for name, _ in who:
            count, last = self._failures.pop(name, (0, now))
            self._failures[name] = (1 if now > last + 2 * MAX_WAIT_S else count + 1, now)
        while len(self._failures) > MAX_WATCHED:
            self._failures.pop(next(iter(self._failures)))

    def forget(self, name: str) -> None:
        self._failures.pop(name, None)

    def take_back(self, *names: str) -> None:
        """What was counted for these a moment ago was no failure."""
        for name in names:
            if name in self._failures:
                count, last = self._failures[name]
                self._failures[name] = (count - 1, last)


class Accounts:
    """The accounts of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._tickets = Tickets(database)
        self._tries = Tries()
        self._nobody = ""
        """A hash for names that are none, so that they take as long as others."""

    async def create(self, name: str, password: str, *, groups: Iterable[str] = (), is_admin: bool = False) -> Account:
        """
        Raises:
            SettingsError: the name or password will not do, or the name is taken.
        """
        if not NAME.fullmatch(name):
            raise SettingsError(f"account {name!r}: lower-case letters, digits, '.', '_' and '-', at most 64")
        words = sorted({check_word(group, "group") for group in groups})
        row = {
            "name": name,
            "password": await hash_password(password),
            "groups": " ".join(words),
            "is_admin": is_admin,
            "created_at": time.time(),
        }
        try:
            async with self._database.begin() as connection:
                await connection.execute(insert(accounts).values(row))
        except IntegrityError as exc:
            raise SettingsError(f"there is an account {name!r} already") from exc
        return Account(name, frozenset(words), is_admin, float(str(row["created_at"])), None)

    async def create_first(self, code: str, name: str, password: str) -> Account | None:
        """The first administrator, by the code that this machine printed; None if the code is not good."""
        await hash_password(password)  # a password that will not do must not cost the code
        if not NAME.fullmatch(name):
            raise SettingsError(f"account {name!r}: lower-case letters, digits, '.', '_' and '-', at most 64")
        if await self.count() or await self._tickets.take("bootstrap", code) is None:
            return None
        return await self.create(name, password, is_admin=True)

    async def bootstrap_code(self) -> str:
        """A new code for the first administrator; the one before is good no longer.

        Raises:
            SettingsError: there are accounts already.
        """
        if await self.count():
            raise SettingsError("there are accounts already; `lockgate user create` makes more")
        await self._tickets.clear("bootstrap")
        code = "-".join(secrets.token_hex(2).upper() for _ in range(6))
        return await self._tickets.issue("bootstrap", {}, BOOTSTRAP_S, code)

    async def count(self) -> int:
        async with self._database.begin() as connection:
            return int((await connection.execute(select(func.count()).select_from(accounts))).scalar_one())

    async def list(self) -> list[Account]:
        async with self._database.begin() as connection:
            return [_account(row) for row in await connection.execute(select(accounts).order_by(accounts.c.name))]

    async def get(self, name: str) -> Account | None:
        """The account, if it may sign in."""
        async with self._database.begin() as connection:
            row = (await connection.execute(select(accounts).where(accounts.c.name == name))).first()
            return _account(row) if row is not None and row.disabled_at is None else None

    async def change(self, name: str, **values: Any) -> None:
        """
        Raises:
            SettingsError: there is no such account.
        """
        async with self._database.begin() as connection:
            changed = await connection.execute(update(accounts).where(accounts.c.name == name).values(values))
            if changed.rowcount != 1:
                raise SettingsError(f"there is no account {name!r}; `lockgate user list` names them")

    async def prove(self, name: str, password: str, address: str) -> Account | None:
        """The account of this name and password; takes as long for names that are none.

        Raises:
            TooManyTries: this account, or this address, had too many wrong ones.
        """
        who = [(f"account {name[:64]}", FREE_TRIES)]
        if not is_loopback(address):  # a proxy on this machine is everybody's address
            who.append((f"address {address}", FREE_TRIES_OF_ADDRESS))
        self._tries.check(*who)
        # Counted before it is known: many at once must not have one free try together.
        self._tries.failed(*who)
        async with self._database.begin() as connection:
            row = (await connection.execute(select(accounts).where(accounts.c.name == name))).first()
        if not self._nobody:
            self._nobody = await hash_password(secrets.token_urlsafe(16))
        known = row is not None and bool(row.password)
        right = await _verify(row.password if row is not None and known else self._nobody, password)
        if row is None or not known or not right or row.disabled_at is not None:
            return None
        self._tries.forget(who[0][0])
        self._tries.take_back(*(name for name, _ in who[1:]))
        return _account(row)

    async def note_provider_user(self, name: str, groups: Iterable[str]) -> Account | None:
        """The account of a provider's user, made at the first sign-in; None if it was disabled here."""
        words = " ".join(sorted(group for group in groups))
        async with self._database.begin() as connection:
            row = (await connection.execute(select(accounts).where(accounts.c.name == name))).first()
            if row is None:
                fresh = {"password": "", "is_admin": False, "created_at": time.time()}
                await connection.execute(insert(accounts).values(name=name, groups=words, **fresh))
            elif row.disabled_at is None:
                await connection.execute(update(accounts).where(accounts.c.name == name).values(groups=words))
        return await self.get(name)


def is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


async def hash_password(password: str) -> str:
    """
    Raises:
        SettingsError: it is too short or too long.
    """
    if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD:
        raise SettingsError(f"a password has {MIN_PASSWORD} to {MAX_PASSWORD} characters")
    return await to_thread.run_sync(_hasher.hash, password, limiter=_hashing)


async def _verify(hash: str, password: str) -> bool:
    def verify() -> bool:
        try:
            return _hasher.verify(hash, password[: MAX_PASSWORD + 1])
        except (VerificationError, InvalidHashError):
            return False

    return await to_thread.run_sync(verify, limiter=_hashing)


def _account(row: Row[Any]) -> Account:
    return Account(row.name, frozenset(row.groups.split()), bool(row.is_admin), row.created_at, row.disabled_at)
