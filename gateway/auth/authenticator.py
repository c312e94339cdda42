"""From a bearer token to the principal it stands for: remembered while it is good, checked anew now and then.

Knows the kinds of credentials; not requests, and not what a principal may do."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from gateway.auth import keys, tokens
from gateway.auth.configuration import Issuer
from gateway.auth.errors import BadCredential
from gateway.auth.issuers import IssuerKeys
from gateway.auth.resources import SCOPES
from gateway.auth.tokens import Unverified
from policies import Principal

RECHECK_S: Final = 30.0
"""A key or token that another process revoked is refused after so long at the latest."""
RECHECK_KEYS_S: Final = 300.0
"""The same for a provider that withdraws a key."""
MAX_REMEMBERED: Final = 8192

LOCAL: Final = Principal("local")
"""The user of this machine: whoever has its admin token, and everybody where nobody signs in."""


@dataclass(frozen=True, slots=True)
class Credential:
    """A credential that was good when it was checked."""

    principal: Principal
    audiences: frozenset[str] | None
    """The resources it is for; None for all of this gateway's."""
    good_until: float
    """Until then it need not be checked again."""
    refs: frozenset[str] = frozenset()
    """What it hangs on: `key:NAME`, `grant:ID`, `user:NAME`; when one of these ends, so does it."""


class Trusted(Protocol):
    """An issuer whose access tokens are taken."""

    async def credential(self, unverified: Unverified, now: float) -> Credential:
        """
        Raises:
            AuthError: the token is not good, or that cannot be known now.
        """


class External:
    """A provider's tokens, and what its claims are called here."""

    def __init__(self, issuer: Issuer, keys: IssuerKeys) -> None:
        self._issuer = issuer
        self._keys = keys
        self._own = frozenset(issuer.audiences)

    async def credential(self, unverified: Unverified, now: float) -> Credential:
        issuer = self._issuer
        if unverified.algorithm not in issuer.algorithms:
            raise BadCredential("the algorithm is not allowed for this issuer")
        key = await self._keys.key(unverified.kid, unverified.algorithm)
        if key is None:
            raise BadCredential("the issuer has no such key")
        claims = tokens.verify(unverified, key, issuer.algorithms, issuer.types, now)
        for name, value in issuer.require.items():
            if claims.all.get(name) != value:
                raise BadCredential(f"claim {name} is not what it must be")
        given = tokens.words(claims.all.get("scope", claims.all.get("scp")))
        scopes = (given & frozenset(SCOPES)) | frozenset(issuer.grant)
        scopes = scopes.union(*(issuer.scopes.get(one, ()) for one in given))
        named = _listed(claims.all.get(issuer.groups_claim))
        groups = frozenset(issuer.groups[one] for one in named if one in issuer.groups)
        alone = claims.client == claims.subject
        principal = Principal(
            f"{issuer.name}:{claims.subject}", "client" if alone else "user", groups, claims.client, scopes, "password"
        )
        # The provider's word for us covers all that is here; what is here by its own URL is that alone.
        audiences = None if claims.audiences & self._own else claims.audiences
        until = min(claims.expires_at + tokens.LEEWAY_S, now + RECHECK_KEYS_S)
        return Credential(principal, audiences, until)


def _listed(value: object) -> frozenset[str]:
    if isinstance(value, str):
        return frozenset({value})
    return frozenset(one for one in value if isinstance(one, str)) if isinstance(value, list) else frozenset()


class Authenticator:
    """Every credential that opens something here."""

    def __init__(
        self,
        own: keys.Keys,
        trusted: dict[str, Trusted],
        admin_token: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """
        Args:
            trusted: issuers of tokens, by exactly what their tokens call them.
            admin_token: opens everything; only this machine's user can read it.
        """
        self._keys = own
        self._trusted = trusted
        self._admin_token = admin_token.encode()
        self._clock = clock
        self._remembered: dict[bytes, Credential] = {}

    def remembered(self, token: bytes) -> Credential | None:
        """The credential of a token that was checked a moment ago; the warm path, without any waiting."""
        found = self._remembered.get(hashlib.sha256(token).digest())
        return found if found is not None and self._clock() < found.good_until else None

    async def check(self, token: bytes) -> Credential:
        """The credential of a token, checked now.

        Raises:
            BadCredential: it is none, or no longer.
            IssuerUnreachable: whether it is good cannot be known now.
        """
        digest = hashlib.sha256(token).digest()
        self._remembered.pop(digest, None)
        found = await self._checked(token)
        while len(self._remembered) >= MAX_REMEMBERED:
            self._remembered.pop(next(iter(self._remembered)))
        self._remembered[digest] = found
        return found

    async def _checked(self, token: bytes) -> Credential:
        now = self._clock()
        if hmac.compare_digest(token, self._admin_token):
            return Credential(LOCAL, None, now + RECHECK_S)
        try:
            text = token.decode("ascii")
        except UnicodeDecodeError as exc:
            raise BadCredential("not ASCII") from exc
        if text.startswith(keys.PREFIX):
            key = await self._keys.find(text)
            if key is None:
                raise BadCredential("no such API key, or it has expired or was revoked")
            until = min(key.expires_at or now + RECHECK_S, now + RECHECK_S)
            return Credential(key.principal, None, until, frozenset({f"key:{key.name}"}))
        unverified = tokens.take_apart(text)
        trusted = self._trusted.get(unverified.issuer)
        if trusted is None:
            raise BadCredential("its issuer is not trusted here")
        return await trusted.credential(unverified, now)

    def forget(self, refs: Iterable[str]) -> None:
        """Check again, at their next use, all credentials that hang on one of these."""
        ended = frozenset(refs)
        for digest, credential in list(self._remembered.items()):
            if not ended.isdisjoint(credential.refs):
                del self._remembered[digest]

    def forget_all(self) -> None:
        """Check every credential again at its next use."""
        self._remembered.clear()
