"""The keys that our tokens are signed with, and the tokens: made here, known again by any gateway of this database.

Knows JWTs; not who gets one. Private keys are files of this gateway; the database has the public ones."""

from __future__ import annotations

import json
import secrets
import time
from pathlib import Path
from typing import Any, Final, Literal

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, Key
from sqlalchemy import delete, insert, select

from gateway import durable
from gateway.auth import tokens
from gateway.auth.authenticator import RECHECK_S, Credential
from gateway.auth.errors import BadCredential
from gateway.auth.issuers import read_keys
from gateway.auth.tokens import Unverified
from gateway.database import Database
from gateway.signin.clients import Rate
from gateway.signin.grants import Grant, Grants
from gateway.signin.tables import signing_keys
from policies import Principal

ALGORITHM: Final = "ES256"
TOKEN_S: Final = 600
ROTATE_S: Final = 90 * 86400.0
KEEP_S: Final = 86400.0
"""A key is published for so long after it signed its last token."""
RELOAD_S: Final = 5.0
"""Between two looks into the database for a key that is not known, once the looks of this minute are spent."""
LOOKS_A_MINUTE: Final = 12
"""So many need not wait: another gateway on this database may have made its first key a moment ago."""


class SigningKeys:
    """The newest private key of this gateway, and all public keys that are good."""

    def __init__(self, folder: Path, database: Database) -> None:
        self._folder = folder
        self._database = database
        self._private: ECKey | None = None
        self._made_at = 0.0
        self._public: list[Key] = []
        self._loaded_at = -RELOAD_S
        self._looks = Rate(LOOKS_A_MINUTE)

    async def current(self) -> ECKey:
        """The key to sign with; a new one when the last is 90 days old."""
        if self._private is None:
            await self._load_private()
        if self._private is None or time.time() - self._made_at > ROTATE_S:
            await self.rotate()
        assert self._private is not None  # noqa: S101  # made above
        return self._private

    async def rotate(self) -> None:
        """Sign with a new key from now on; tokens of the old one stay good."""
        key = ECKey.generate_key("P-256", auto_kid=True)
        now = time.time()
        public = {**key.as_dict(private=False), "alg": ALGORITHM, "use": "sig"}
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._folder / f"{now:.0f}-{key.kid}.json"
        durable.write(path, json.dumps(key.as_dict(private=True)).encode())
        async with self._database.begin() as connection:
            await connection.execute(delete(signing_keys).where(signing_keys.c.created_at < now - ROTATE_S - KEEP_S))
            await connection.execute(insert(signing_keys).values(kid=key.kid, jwk=json.dumps(public), created_at=now))
        for old in sorted(self._folder.glob("*.json")):
            if old != path:
                old.unlink(missing_ok=True)  # it signs nothing any more
        self._private, self._made_at = key, now
        self._loaded_at = -RELOAD_S

    async def _load_private(self) -> None:
        known = {str(key.kid) for key in await self.public()}
        for path in sorted(self._folder.glob("*.json"), reverse=True):
            try:
                key = ECKey.import_key(json.loads(path.read_text()))
            except (JoseError, ValueError, TypeError, KeyError):
                continue  # damaged: there will be a new one
            if key.kid in known:
                self._private, self._made_at = key, float(path.name.partition("-")[0])
                return

    async def public(self) -> list[Key]:
        """Every key whose tokens are taken."""
        self._loaded_at = time.monotonic()
        async with self._database.begin() as connection:
            rows = await connection.execute(
                select(signing_keys.c.jwk).where(signing_keys.c.created_at > time.time() - ROTATE_S - KEEP_S)
            )
            keys = [json.loads(row.jwk) for row in rows]
        self._public = read_keys(json.dumps({"keys": keys}).encode())
        return self._public

    async def find(self, kid: str | None) -> Key | None:
        found = [key for key in self._public if key.kid == kid]
        if not found and (time.monotonic() - self._loaded_at >= RELOAD_S or self._looks.take()):
            found = [key for key in await self.public() if key.kid == kid]
        return found[0] if found else None


class OwnTokens:
    """The access tokens of this authorization server."""

    def __init__(self, issuer: str, keys: SigningKeys, grants: Grants) -> None:
        self.issuer = issuer
        self._keys = keys
        self._grants = grants

    async def issue(self, grant: Grant, scopes: frozenset[str]) -> str:
        """An access token for what was granted, or for a part of it."""
        key = await self._keys.current()
        now = int(time.time())
        claims: dict[str, Any] = {
            "iss": self.issuer,
            "sub": grant.subject,
            "aud": grant.resource,
            "client_id": grant.client,
            "scope": " ".join(sorted(scopes)),
            "iat": now,
            "exp": now + TOKEN_S,
            "jti": secrets.token_hex(16),
            "grant": grant.id,
        }
        return jwt.encode({"alg": ALGORITHM, "typ": "at+jwt", "kid": key.kid}, claims, key, algorithms=[ALGORITHM])

    async def read(self, unverified: Unverified, now: float) -> tuple[tokens.Claims, Grant]:
        """What a token says, and the grant that it hangs on.

        Raises:
            BadCredential: it is not ours, or no longer good.
        """
        key = await self._keys.find(unverified.kid) if unverified.algorithm == ALGORITHM else None
        if key is None:
            raise BadCredential("no key of ours signed it")
        claims = tokens.verify(unverified, key, (ALGORITHM,), ("at+jwt",), now)
        grant = await self._grants.get(str(claims.all.get("grant", "")))
        if grant is None:
            raise BadCredential("what it was issued for was revoked")
        return claims, grant

    async def credential(self, unverified: Unverified, now: float) -> Credential:
        claims, grant = await self.read(unverified, now)
        groups, scopes = grant.groups, tokens.words(claims.all.get("scope"))
        proof: Literal["password", "multi"] = "multi" if grant.strength == "multi" else "password"
        principal = Principal(
            grant.subject,
            "user" if grant.account else "client",
            groups,
            grant.client,
            scopes,
            proof if grant.account else "key",
        )
        own = grant.subject if grant.account else f"key:{grant.client}"
        refs = frozenset({f"grant:{grant.id}", own})
        until = min(claims.expires_at + tokens.LEEWAY_S, now + RECHECK_S)
        return Credential(principal, claims.audiences, until, refs)
