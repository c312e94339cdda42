"""Access tokens that are JWTs (RFC 9068, RFC 8725): is this one good, whose is it, and what for?

Knows signatures and claims of trusted issuers; not where the keys come from, nor requests."""

from __future__ import annotations

import base64
import binascii
import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from joserfc import jws
from joserfc.errors import JoseError, SecurityWarning
from joserfc.jwk import Key

from gateway.auth.errors import BadCredential

MAX_TOKEN_BYTES: Final = 8192
MAX_HEADER_BYTES: Final = 1024
LEEWAY_S: Final = 60.0
"""Between the issuer's clock and ours."""
MAX_LIFETIME_S: Final = 24 * 3600.0
"""A token that is good for longer is not meant for this."""
MAX_TEXT: Final = 512
KEY_HEADERS: Final = frozenset({"jwk", "jku", "x5u", "x5c", "crit", "b64", "enc", "zip"})
"""Headers by which a token would choose its own key or its own rules."""


@dataclass(frozen=True)
class Unverified:
    """A token taken apart: nothing in it is true yet."""

    token: str
    header: Mapping[str, Any]
    claims: Mapping[str, Any]

    @property
    def issuer(self) -> str:
        issuer = self.claims.get("iss")
        return issuer if isinstance(issuer, str) else ""

    @property
    def algorithm(self) -> str:
        algorithm = self.header.get("alg")
        return algorithm if isinstance(algorithm, str) else ""

    @property
    def kid(self) -> str | None:
        kid = self.header.get("kid")
        if kid is not None and (not isinstance(kid, str) or not 0 < len(kid) <= MAX_TEXT):
            raise BadCredential("kid is no short text")
        return kid


@dataclass(frozen=True)
class Claims:
    """What a good token says."""

    subject: str
    client: str
    audiences: frozenset[str]
    expires_at: float
    all: Mapping[str, Any]


def take_apart(token: str) -> Unverified:
    """
    Raises:
        BadCredential: it is not a signed JWT of reasonable size, or would choose its own key.
    """
    parts = token.split(".")
    if len(token) > MAX_TOKEN_BYTES or len(parts) != 3 or len(parts[0]) > MAX_HEADER_BYTES or not all(parts):
        raise BadCredential("not a signed token of reasonable size")
    header, claims = _object(parts[0]), _object(parts[1])
    if found := KEY_HEADERS & header.keys():
        raise BadCredential(f"the header has {', '.join(sorted(found))}")
    return Unverified(token, header, claims)


def verify(
    unverified: Unverified,
    key: Key,
    algorithms: tuple[str, ...],
    types: tuple[str, ...],
    now: float,
    *,
    typed: bool = True,
) -> Claims:
    """What the token says, if this key signed it and it is good now. ID tokens need not be `typed`.

    Raises:
        BadCredential: it is not.
    """
    kind = unverified.header.get("typ")
    kinds = {one.lower() for one in types}
    if kind is None and not typed:
        kind = types[0]
    if not isinstance(kind, str) or kind.lower().removeprefix("application/") not in kinds:
        raise BadCredential("typ is not that of an access token")
    if unverified.algorithm not in algorithms:
        raise BadCredential("the algorithm is not allowed for this issuer")
    registry = jws.JWSRegistry(algorithms=list(algorithms), strict_check_header=False)
    registry.max_header_length = MAX_HEADER_BYTES
    try:
        # EdDSA is an old name (RFC 9864) that providers go on using; nobody here can change that.
        with warnings.catch_warnings(action="ignore", category=SecurityWarning):
            signed = jws.deserialize_compact(unverified.token.encode(), key, registry=registry)
    except (JoseError, ValueError, TypeError) as exc:
        raise BadCredential("the signature is wrong") from exc
    # What was signed is what was taken apart: the same bytes, read by the stricter reader.
    claims = _strict(signed.payload)
    return _checked(claims, now)


def _checked(claims: Mapping[str, Any], now: float) -> Claims:
    expires = _time(claims, "exp")
    issued = _time(claims, "iat")
    begins = _time(claims, "nbf")
    if expires is None or now >= expires + LEEWAY_S:
        raise BadCredential("expired")
    if begins is not None and begins > now + LEEWAY_S:
        raise BadCredential("not good yet")
    if issued is not None and issued > now + LEEWAY_S:
        raise BadCredential("issued in the future")
    if expires - (now if issued is None else issued) > MAX_LIFETIME_S:
        raise BadCredential("good for longer than a day")
    audience = claims.get("aud")
    audiences = [audience] if isinstance(audience, str) else audience
    if not isinstance(audiences, list) or not audiences or not all(isinstance(one, str) for one in audiences):
        raise BadCredential("aud is missing")
    client = claims.get("client_id", claims.get("azp", ""))
    return Claims(_text(claims.get("sub")), _text(client, ""), frozenset(audiences), expires, claims)


def words(value: Any) -> frozenset[str]:
    """A claim with several values: words between spaces, or a list."""
    if isinstance(value, str):
        return frozenset(value.split())
    return frozenset(one for one in value if isinstance(one, str)) if isinstance(value, list) else frozenset()


def _text(value: Any, default: str | None = None) -> str:
    if value == default and default is not None:
        return default
    if not isinstance(value, str) or not 0 < len(value) <= MAX_TEXT or not value.isprintable():
        raise BadCredential("sub or client_id is no short text")
    return value


def _time(claims: Mapping[str, Any], name: str) -> float | None:
    value = claims.get(name)
    if value is None and name not in claims:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise BadCredential(f"{name} is no time")
    return float(value)


def _object(part: str) -> dict[str, Any]:
    if not part.isascii() or "=" in part:
        raise BadCredential("not base64url")
    try:
        data = base64.b64decode(part + "=" * (-len(part) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as exc:
        raise BadCredential("not base64url") from exc
    return _strict(data)


def _strict(data: bytes) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({name for name, _ in pairs}) < len(pairs):
            raise ValueError("a name stands twice")
        return dict(pairs)

    try:
        value = json.loads(data, object_pairs_hook=once)
    except (ValueError, RecursionError) as exc:
        raise BadCredential("not a JSON object") from exc
    if not isinstance(value, dict):
        raise BadCredential("not a JSON object")
    return value
