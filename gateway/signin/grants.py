"""Grants: what somebody allowed a client, and the refresh tokens that hang on it.

Knows the rules of rotation (RFC 9700, section 4.14.2); not requests."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Row, delete, insert, select, update

from gateway import durable
from gateway.auth.keys import is_disabled
from gateway.auth.keys import table as api_keys
from gateway.database import Database
from gateway.signin.accounts import Strength
from gateway.signin.tables import accounts, grants, refreshes
from gateway.signin.tickets import hashed

REFRESH_S: Final = 30 * 86400.0
GRACE_S: Final = 10.0
"""A client that did not get the answer may ask again for so long; after that a used token counts as stolen."""
KEEP_OWN_S: Final = 3600.0
"""How long a grant of a client's own is kept: longer than its token is good."""
DELEGATED_S: Final = 86400.0
"""How long a grant of somebody who signed in at a provider is good: nobody says when they are removed there."""
PREFIX: Final = "lgr_"
SECRET_BYTES: Final = 32


@dataclass(frozen=True)
class Grant:
    """A grant that is good, and the groups of whoever it speaks for as they are now."""

    id: str
    subject: str
    account: str | None
    client: str
    client_name: str
    resource: str
    scopes: frozenset[str]
    created_at: float
    groups: frozenset[str]
    strength: str
    """How whoever allowed it had signed in."""


class Reused(Exception):
    """A refresh token came a second time: the grant was ended."""

    def __init__(self, grant: str, client: str) -> None:
        super().__init__("a refresh token was used twice")
        self.grant = grant
        self.client = client


class Grants:
    """The grants of one database."""

    def __init__(self, database: Database, secret_file: Path, delegated_s: float = DELEGATED_S) -> None:
        """`secret_file` holds what the next refresh token is derived from; it is made when missing. `delegated_s` is
        how long grants of a provider's users are good."""
        self._database = database
        self._delegated_s = delegated_s
        self._secret_file = secret_file
        self._secret = b""

    async def create(
        self,
        *,
        subject: str,
        account: str | None,
        client: str,
        client_name: str,
        resource: str,
        scopes: frozenset[str],
        strength: Strength = "password",
    ) -> str:
        id = secrets.token_hex(16)
        row = {
            "id": id,
            "subject": subject,
            "account": account,
            "client": client,
            "client_name": client_name,
            "resource": resource,
            "scopes": " ".join(sorted(scopes)),
            "created_at": time.time(),
            "strength": strength,
        }
        async with self._database.begin() as connection:
            # A machine gets a grant with each token; it is of no use once the token has expired.
            over = grants.c.account.is_(None) & (grants.c.created_at < time.time() - KEEP_OWN_S)
            await connection.execute(delete(grants).where(over))
            await connection.execute(delete(refreshes).where(refreshes.c.expires_at < time.time() - GRACE_S))
            await connection.execute(insert(grants).values(row))
        return id

    async def get(self, id: str) -> Grant | None:
        """The grant, if neither it nor whoever it speaks for was ended."""
        async with self._database.begin() as connection:
            where = (grants.c.id == id) & (grants.c.revoked_at.is_(None))
            row = (await connection.execute(select(grants).where(where))).first()
            if row is None:
                return None
            if row.account is None:
                # A client's own: it is an API key that was traded for tokens, and ends with it.
                key = (await connection.execute(select(api_keys).where(api_keys.c.name == row.client))).first()
                late = key is not None and key.expires_at is not None and key.expires_at <= time.time()
                if key is None or key.revoked_at is not None or late or await is_disabled(connection, key.account):
                    return None
                return _grant(row, key.groups)
            if ":" in row.account and time.time() >= row.created_at + self._delegated_s:
                return None
            owner = (await connection.execute(select(accounts).where(accounts.c.name == row.account))).first()
            if owner is None or owner.disabled_at is not None:
                return None
            return _grant(row, owner.groups)

    async def of(self, account: str) -> list[Grant]:
        """Everything an account allowed and did not take back."""
        async with self._database.begin() as connection:
            where = (grants.c.account == account) & (grants.c.revoked_at.is_(None))
            rows = await connection.execute(select(grants).where(where).order_by(grants.c.created_at.desc()))
            return [_grant(row, "") for row in rows]

    async def revoke(self, id: str) -> None:
        async with self._database.begin() as connection:
            where = (grants.c.id == id) & (grants.c.revoked_at.is_(None))
            await connection.execute(update(grants).where(where).values(revoked_at=time.time()))

    async def revoke_account(self, account: str) -> None:
        async with self._database.begin() as connection:
            where = (grants.c.account == account) & (grants.c.revoked_at.is_(None))
            await connection.execute(update(grants).where(where).values(revoked_at=time.time()))

    # -- refresh tokens ----------------------------------------------------------------------------

    async def first_refresh(self, grant: str) -> str:
        token = PREFIX + secrets.token_urlsafe(32)
        async with self._database.begin() as connection:
            row = {"hash": hashed(token), "grant_id": grant, "expires_at": time.time() + REFRESH_S}
            await connection.execute(insert(refreshes).values(row))
        return token

    async def grant_of(self, token: str) -> str | None:
        """The id of the grant that a refresh token belongs to, used or not."""
        async with self._database.begin() as connection:
            where = refreshes.c.hash == hashed(token)
            return (await connection.execute(select(refreshes.c.grant_id).where(where))).scalar_one_or_none()

    async def rotate(self, token: str, client: str) -> tuple[str, str] | None:
        """The grant's id and the next refresh token, in place of this one; None if it is not this client's or too old.

        The next token is derived from this one with a secret of the gateway, so that a client which did not get the
        answer gets the same one again.

        Raises:
            Reused: it was replaced before; the grant is over.
        """
        now = time.time()
        following = self._following(token)
        reused = None
        async with self._database.begin() as connection:
            joined = select(refreshes, grants.c.client, grants.c.revoked_at).join_from(refreshes, grants)
            # Two that come together, also to two gateways: the second sees what the first did.
            locked = joined.where(refreshes.c.hash == hashed(token)).with_for_update(of=refreshes)
            row = (await connection.execute(locked)).first()
            if row is None or row.client != client or row.revoked_at is not None or row.expires_at <= now:
                return None
            if row.used_at is None:
                used = update(refreshes).where(refreshes.c.hash == row.hash).values(used_at=now)
                await connection.execute(used)
                fresh = {"hash": hashed(following), "grant_id": row.grant_id, "expires_at": now + REFRESH_S}
                await connection.execute(insert(refreshes).values(fresh))
            else:
                where = (refreshes.c.hash == hashed(following)) & (refreshes.c.used_at.is_(None))
                waiting = (await connection.execute(select(refreshes.c.hash).where(where))).first()
                if waiting is None or now - row.used_at > GRACE_S:
                    ended = update(grants).where(grants.c.id == row.grant_id).values(revoked_at=now)
                    await connection.execute(ended)
                    reused = Reused(row.grant_id, row.client)
        if reused is not None:
            raise reused
        return row.grant_id, following

    def _following(self, token: str) -> str:
        if not self._secret:
            self._secret = _read_or_make(self._secret_file)
        return PREFIX + hmac.new(self._secret, token.encode(), hashlib.sha256).hexdigest()


def _read_or_make(path: Path) -> bytes:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = durable.read(path)
    if found is not None and len(found) == SECRET_BYTES:  # a file cut short by a crash would let anybody derive tokens
        return found
    secret = secrets.token_bytes(SECRET_BYTES)
    durable.write(path, secret)
    return secret


def _grant(row: Row[Any], groups: str) -> Grant:
    return Grant(
        row.id,
        row.subject,
        row.account,
        row.client,
        row.client_name,
        row.resource,
        frozenset(row.scopes.split()),
        row.created_at,
        frozenset(groups.split()),
        row.strength or "password",
    )
