"""Clients: those that registered themselves (RFC 7591), and those that are a document at an address of their own.

Knows what a client says of itself; trusts none of it."""

from __future__ import annotations

import hmac
import json
import re
import secrets
import time
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from sqlalchemy import delete, func, insert, select, update

from gateway.auth.configuration import Configuration
from gateway.auth.fetch import Fetcher, FetchRefused
from gateway.auth.urls import LOOPBACK
from gateway.database import Database
from gateway.signin import redirects
from gateway.signin.accounts import is_loopback
from gateway.signin.tables import clients
from gateway.signin.tickets import hashed

MAX_DOCUMENT_BYTES: Final = 64 * 1024
MAX_NAME: Final = 80
MAX_CLIENTS: Final = 5000
UNUSED_S: Final = 86400.0
"""A client that nobody signed in with is forgotten after so long."""
REGISTRATIONS_A_MINUTE: Final = 30
FETCHES_A_MINUTE: Final = 60
KEPT_S: Final = (60.0, 300.0, 86400.0)
"""How long a client's document is kept: at least, if it does not say, at most."""
MAX_KEPT: Final = 500
GRANT_TYPES: Final = frozenset({"authorization_code", "refresh_token", "urn:ietf:params:oauth:grant-type:device_code"})
METHODS: Final = ("none", "client_secret_basic", "client_secret_post")
_MAX_AGE: Final = re.compile(r"max-age=(\d{1,9})")


class ClientRefused(Exception):
    """What a client says of itself will not do. `error` is RFC 7591's word for it."""

    def __init__(self, error: str, message: str) -> None:
        super().__init__(message)
        self.error = error


@dataclass(frozen=True)
class Client:
    """A client as it describes itself."""

    id: str
    name: str
    redirect_uris: tuple[str, ...]
    method: str = "none"
    secret_hash: str | None = None

    @property
    def host(self) -> str:
        """Who vouches for it: the host of its document, or nobody."""
        return urlsplit(self.id).netloc if "://" in self.id else ""

    def knows(self, secret: str) -> bool:
        return self.secret_hash is not None and hmac.compare_digest(self.secret_hash, hashed(secret))


class Rate:
    """At most so many in each minute."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._minute = 0
        self._count = 0

    def take(self) -> bool:
        minute = int(time.monotonic() // 60)
        if minute != self._minute:
            self._minute, self._count = minute, 0
        self._count += 1
        return self._count <= self._limit


class Shares:
    """At most so many in each minute, and a third of them for one address, so that a stranger takes them from nobody.

    Programs on this machine share in what is there: they may be a proxy, which is everybody's address."""

    def __init__(self, limit: int) -> None:
        self._all = Rate(limit)
        self._each = max(limit // 3, 1)
        self._minute = 0
        self._counts: dict[str, int] = {}

    def take(self, address: str) -> bool:
        minute = int(time.monotonic() // 60)
        if minute != self._minute:
            self._minute, self._counts = minute, {}
        if not is_loopback(address):
            if self._counts.get(address, 0) >= self._each:
                return False
            if self._all.take():  # so that no more addresses are noted than there are places
                self._counts[address] = self._counts.get(address, 0) + 1
                return True
            return False
        return self._all.take()


class Clients:
    """All clients of this authorization server."""

    def __init__(self, database: Database, configuration: Configuration, fetcher: Fetcher) -> None:
        self._database = database
        self._configuration = configuration
        self._fetcher = fetcher
        self._kept: dict[str, tuple[float, Client]] = {}
        self._registrations = Shares(REGISTRATIONS_A_MINUTE)
        self._fetches = Rate(FETCHES_A_MINUTE)

    async def find(self, id: str) -> Client | None:
        """The client of this id.

        Raises:
            ClientRefused: its document cannot be had, or will not do.
        """
        if "://" in id:
            return await self._described(id)
        async with self._database.begin() as connection:
            row = (await connection.execute(select(clients).where(clients.c.id == id[:64]))).first()
        return _client(id, json.loads(row.document), row.secret_hash) if row is not None else None

    async def note_used(self, id: str) -> None:
        async with self._database.begin() as connection:
            await connection.execute(update(clients).where(clients.c.id == id[:64]).values(used_at=time.time()))

    # -- documents (OAuth Client ID Metadata Document) ---------------------------------------------

    async def _described(self, url: str) -> Client:
        found = self._kept.get(url)
        if found is not None and time.monotonic() < found[0]:
            return found[1]
        self._check_address(url)
        if not self._fetches.take():
            raise ClientRefused("temporarily_unavailable", "too many clients were looked up; try again in a minute")
        try:
            answer = await self._fetcher.get(url, MAX_DOCUMENT_BYTES)
        except FetchRefused as exc:
            raise ClientRefused("invalid_client", f"its document cannot be fetched: {exc}") from exc
        if answer.status != 200:
            raise ClientRefused("invalid_client", f"its document answers with HTTP {answer.status}")
        try:
            document = json.loads(answer.body)
        except (ValueError, RecursionError) as exc:
            raise ClientRefused("invalid_client", "its document is not JSON") from exc
        if not isinstance(document, dict) or document.get("client_id") != url:
            raise ClientRefused("invalid_client", "its document is of another client")
        client = _client(url, check_document(document, ("none",)), None)
        least, usual, most = KEPT_S
        age = _MAX_AGE.search(answer.cache_control)
        seconds = min(max(float(age[1]), least), most) if age else usual
        if "no-store" in answer.cache_control:
            seconds = least
        while len(self._kept) >= MAX_KEPT:
            self._kept.pop(next(iter(self._kept)))
        self._kept[url] = (time.monotonic() + seconds, client)
        return client

    def _check_address(self, url: str) -> None:
        if redirects.problem(url) is not None:
            raise ClientRefused("invalid_client", "client_id is no https:// address with a path that is taken here")
        parts = urlsplit(url)
        host = parts.hostname or ""
        local = self._configuration.client_loopback and host in LOOPBACK and parts.scheme == "http"
        hosts = self._configuration.client_hosts
        wrong = (
            (parts.scheme != "https" and not local)
            or len(parts.path) < 2
            or (hosts and host not in hosts and not local)
        )
        if wrong:
            raise ClientRefused("invalid_client", "client_id is no https:// address with a path that is taken here")

    # -- registration (RFC 7591) -------------------------------------------------------------------

    async def register(self, document: Any, address: str = "127.0.0.1") -> dict[str, Any]:
        """What a new client is told.

        Raises:
            ClientRefused: it may not register, or not like this.
        """
        if not self._configuration.open_registration:
            raise ClientRefused("access_denied", "clients do not register themselves here")
        if not self._registrations.take(address):
            raise ClientRefused("temporarily_unavailable", "too many registrations; try again in a minute")
        if not isinstance(document, dict):
            raise ClientRefused("invalid_client_metadata", "this is no JSON object")
        kept = check_document(document, METHODS)
        now, id = time.time(), secrets.token_hex(16)
        public = kept["token_endpoint_auth_method"] == "none"  # noqa: S105 - a method's name
        secret = None if public else secrets.token_urlsafe(32)
        async with self._database.begin() as connection:
            idle = clients.c.used_at.is_(None) & (clients.c.created_at < now - UNUSED_S)
            await connection.execute(delete(clients).where(idle))
            count = (await connection.execute(select(func.count()).select_from(clients))).scalar_one()
            if count >= MAX_CLIENTS:
                # The oldest that nobody ever signed in with makes room.
                oldest = select(clients.c.id).where(clients.c.used_at.is_(None)).order_by(clients.c.created_at).limit(1)
                unused = (await connection.execute(oldest)).scalar_one_or_none()
                count -= (await connection.execute(delete(clients).where(clients.c.id == unused))).rowcount
            if count >= MAX_CLIENTS:
                raise ClientRefused("temporarily_unavailable", "there are too many clients")
            row = {"id": id, "document": json.dumps(kept), "created_at": now}
            row["secret_hash"] = hashed(secret) if secret is not None else None
            await connection.execute(insert(clients).values(row))
        answer = {"client_id": id, "client_id_issued_at": int(now), **kept}
        return answer if secret is None else {**answer, "client_secret": secret, "client_secret_expires_at": 0}


def check_document(document: dict[str, Any], methods: tuple[str, ...]) -> dict[str, Any]:
    """What is kept of a client's words about itself.

    Raises:
        ClientRefused: they will not do.
    """
    uris = document.get("redirect_uris", [])
    if not isinstance(uris, list) or len(uris) > redirects.MAX_URIS or not all(isinstance(one, str) for one in uris):
        raise ClientRefused("invalid_redirect_uri", f"redirect_uris is a list of at most {redirects.MAX_URIS} texts")
    for uri in uris:
        if (why := redirects.problem(uri)) is not None:
            raise ClientRefused("invalid_redirect_uri", f"a redirect URI {why}")
    grant_types = document.get("grant_types", ["authorization_code"])
    if not isinstance(grant_types, list) or not all(isinstance(one, str) for one in grant_types):
        raise ClientRefused("invalid_client_metadata", "grant_types is a list of texts")
    taken = sorted(GRANT_TYPES & set(grant_types))
    if not taken:
        raise ClientRefused("invalid_client_metadata", "none of these grant_types is offered to clients here")
    if "authorization_code" in taken and not uris:
        raise ClientRefused("invalid_redirect_uri", "redirect_uris is missing")
    method = document.get("token_endpoint_auth_method", methods[0] if len(methods) == 1 else "client_secret_basic")
    if method not in methods:
        raise ClientRefused("invalid_client_metadata", f"token_endpoint_auth_method is one of {', '.join(methods)}")
    name = document.get("client_name", "")
    if not isinstance(name, str):
        raise ClientRefused("invalid_client_metadata", "client_name is a text")
    return {
        "client_name": "".join(c for c in name if c.isprintable())[:MAX_NAME],
        "redirect_uris": uris,
        "grant_types": taken,
        "response_types": ["code"],
        "token_endpoint_auth_method": method,
    }


def _client(id: str, kept: dict[str, Any], secret_hash: str | None) -> Client:
    method = str(kept["token_endpoint_auth_method"])
    return Client(id, str(kept["client_name"]), tuple(kept["redirect_uris"]), method, secret_hash)
