"""The keys of a provider: found by its metadata, kept for a while, fetched again within limits.

Knows discovery and key sets; not tokens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlsplit

from joserfc.errors import JoseError
from joserfc.jwk import Key, KeySet

from gateway.auth.errors import IssuerUnreachable
from gateway.auth.fetch import Fetcher, FetchRefused
from gateway.auth.urls import check_url

FRESH_S: Final = 3600.0
"""After so long a key set is fetched again."""
STALE_S: Final = 24 * 3600.0
"""So long an old one is used while no new one can be had."""
PAUSE_S: Final = 60.0
"""Between two fetches, whatever tokens name."""
MAX_KEYS: Final = 64
MIN_RSA_BITS: Final = 2048
KEY_TYPES: Final = {"R": "RSA", "P": "RSA", "E": "EC"}


class IssuerKeys:
    """The keys of one issuer. Fetched by the first token that needs them; others that need them wait for that."""

    def __init__(self, issuer: str, fetcher: Fetcher, clock: Callable[[], float]) -> None:
        self.issuer = issuer
        self._fetcher = fetcher
        self._clock = clock
        self._keys: list[Key] = []
        self._fetched_at = -STALE_S
        self._tried_at = -PAUSE_S
        self._failure = "not asked yet"
        self._fetching: asyncio.Task[None] | None = None

    async def key(self, kid: str | None, algorithm: str) -> Key | None:
        """The issuer's key of this id that fits the algorithm; without an id its only one that does.

        Raises:
            IssuerUnreachable: no keys could be fetched, or not for a day.
        """
        age = self._clock() - self._fetched_at
        if age < FRESH_S and (found := self._pick(kid, algorithm)) is not None:
            return found
        if self._fetching is not None or self._clock() - self._tried_at >= PAUSE_S:
            await self._refresh()
        if self._clock() - self._fetched_at >= STALE_S:
            raise IssuerUnreachable(f"the keys of {self.issuer} cannot be fetched: {self._failure}")
        return self._pick(kid, algorithm)

    def _pick(self, kid: str | None, algorithm: str) -> Key | None:
        fitting = [key for key in self._keys if _fits(key, algorithm) and (kid is None or key.kid == kid)]
        return fitting[0] if len(fitting) == 1 else None

    async def _refresh(self) -> None:
        if self._fetching is None:
            self._tried_at = self._clock()
            self._fetching = asyncio.get_running_loop().create_task(self._fetch())
        # The request that waits may be cancelled; the fetch is for all of them.
        await asyncio.shield(self._fetching)

    async def _fetch(self) -> None:
        try:
            metadata = await discover(self._fetcher, self.issuer)
            document = await self._fetcher.get(check_url(str(metadata.get("jwks_uri", ""))))
            if document.status != 200:
                raise FetchRefused(f"its key set answers with HTTP {document.status}")
            self._keys = read_keys(document.body)
            self._fetched_at = self._clock()
        except (FetchRefused, ValueError) as exc:
            self._failure = str(exc)
        finally:
            self._fetching = None


def read_keys(body: bytes) -> list[Key]:
    """The public signing keys in a key set; others are left out.

    Raises:
        ValueError: it is no key set, or too large.
    """
    try:
        raw = json.loads(body)["keys"]
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise ValueError("it has no key set where its metadata says") from exc
    if not isinstance(raw, list) or len(raw) > MAX_KEYS:
        raise ValueError(f"its key set is no list of at most {MAX_KEYS} keys")
    keys: list[Key] = []
    for one in raw:
        if not isinstance(one, dict) or one.get("kty") not in ("RSA", "EC", "OKP") or one.get("use", "sig") != "sig":
            continue
        if one["kty"] == "RSA" and len(str(one.get("n"))) * 6 < MIN_RSA_BITS:
            continue
        try:
            (key,) = KeySet.import_key_set({"keys": [one]}).keys
        except (JoseError, ValueError, TypeError):
            continue
        keys.append(key)
    return keys


def _fits(key: Key, algorithm: str) -> bool:
    wanted = "OKP" if algorithm in ("EdDSA", "Ed25519") else KEY_TYPES.get(algorithm[:1])
    return key.key_type == wanted and key.alg in (None, algorithm)


async def discover(fetcher: Fetcher, issuer: str) -> dict[str, Any]:
    """The issuer's metadata (RFC 8414, OpenID Connect Discovery), in the order of MCP's specification.

    Raises:
        FetchRefused: there is none that is this issuer's own.
    """
    parts = urlsplit(issuer)
    root, path = f"{parts.scheme}://{parts.netloc}", parts.path.rstrip("/")
    urls = [f"{root}/.well-known/oauth-authorization-server{path}", f"{root}/.well-known/openid-configuration{path}"]
    if path:
        urls.append(f"{root}{path}/.well-known/openid-configuration")
    for url in dict.fromkeys(urls):
        document = await fetcher.get(url)
        if document.status != 200:
            continue
        try:
            metadata = json.loads(document.body)
        except (ValueError, RecursionError) as exc:
            raise FetchRefused(f"the metadata of {issuer} is not JSON") from exc
        if not isinstance(metadata, dict) or metadata.get("issuer") != issuer:
            raise FetchRefused(f"the metadata at {url} is of another issuer than {issuer}")
        return metadata
    raise FetchRefused(f"{issuer} has no metadata")
