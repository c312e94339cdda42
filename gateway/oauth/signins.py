"""Sign-ins: who is on the way to a provider, who has been there, and tokens that are fresh when they are used.

Knows the vault and the steps of a sign-in; no page and no connection. A ticket is a link for one principal; it becomes
a flow when it is opened, bound to the browser that opened it; a flow becomes a grant in the vault."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import urlencode, urlsplit

import msgspec
from anyio import to_thread

from catalog import Entry
from catalog.reference import is_loopback
from gateway.auth.fetch import Fetcher, FetchRefused, Reach
from gateway.errors import CredentialMissing, SecretsError
from gateway.oauth import discovery, exchange
from gateway.oauth.exchange import Client, Grant, Refused
from gateway.secrets import Secrets, SecretValue
from gateway.vault import TOKEN, Change, Place, Vault

TICKET_S: Final = 600.0
"""How long a link may be opened, and how long a sign-in may take."""
MAX_OPEN: Final = 1000
MAX_STEP_UPS: Final = 2
"""How often one server may ask for the same scopes before it is taken for a loop: three sign-ins with the first."""
CLIENT: Final = "client"
ISSUER: Final = "issuer"
"""Which authorization server a client that the operator has set is for."""
PROBE: Final = (
    b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},'
    b'"clientInfo":{"name":"lockgate","version":"1"}}}'
)
LIST: Final = b'{"jsonrpc":"2.0","id":2,"method":"tools/list"}'
"""For servers that anybody may begin to speak to."""
T = TypeVar("T")


class Ticket(NamedTuple):
    principal: str
    entry: Entry
    scope: tuple[str, ...]
    """Scopes that a server has asked for by name."""
    until: float


class Flow(NamedTuple):
    """A sign-in under way."""

    ticket: Ticket
    browser: bytes
    """A hash of what the cookie holds of the browser that began it."""
    verifier: str
    grant: Grant
    says_issuer: bool
    until: float


class Begun(NamedTuple):
    """Where to send the browser, and what to put into its cookie."""

    location: str
    cookie: str


class Signins:
    """All sign-ins of a gateway. `base` is where browsers reach it; empty until it listens."""

    def __init__(self, vault: Vault, secrets: Secrets) -> None:
        self.base = ""
        self.gives_links = True
        """Whether a caller may be given a link: not where callers sign in, as nobody could tell who opens it."""
        self._vault = vault
        self._secrets = secrets
        self._tickets: OrderedDict[str, Ticket] = OrderedDict()
        self._flows: OrderedDict[str, Flow] = OrderedDict()
        self._refreshing: dict[Place, asyncio.Task[Grant]] = {}
        self._step_ups: OrderedDict[str, int] = OrderedDict()
        """How often which scopes were asked of whom for which server."""

    # -- links -------------------------------------------------------------------------------

    def link(self, principal: str, entry: Entry, scope: tuple[str, ...] = ()) -> str:
        """A link under which this principal can sign in for the entry, once and soon."""
        ticket = secrets.token_urlsafe(32)
        _keep(self._tickets, ticket, Ticket(principal, entry, scope, time.monotonic() + TICKET_S))
        return f"{self.base}/connect/{ticket}"

    def missing(self, principal: str, entry: Entry, scope: tuple[str, ...] = ()) -> CredentialMissing:
        """What a caller without a grant is told."""
        text = f"server {entry.id} wants you to sign in at {entry.oauth.provider if entry.oauth else 'its provider'}"
        if principal and self.base and self.gives_links:
            return CredentialMissing(f"{text}: open {self.link(principal, entry, scope)} and then try again")
        return CredentialMissing(
            f"{text}: run lockgate oauth connect {entry.id}" + (f" --user {principal}" if principal else "")
        )

    def peek(self, ticket: str) -> Ticket | None:
        """The ticket, if it may be opened."""
        found = self._tickets.get(ticket)
        return found if found is not None and found.until > time.monotonic() else None

    # -- signing in --------------------------------------------------------------------------

    async def begin(self, ticket: str) -> Begun:
        """Open a ticket, which is used up by that.

        Raises:
            CredentialMissing: it is used or too old, or the provider cannot be used.
        """
        found, known = self.peek(ticket), self._tickets.pop(ticket, None)
        if found is None or known is None:
            raise CredentialMissing("this link was used already or is too old; ask for a new one")
        entry, url = found.entry, _url(found.entry)
        fetcher = _fetcher(url)
        said = await _challenge(fetcher, url)
        resource = await discovery.protected_resource(fetcher, url, said.metadata)
        authority = await discovery.authority(fetcher, resource.issuers[0])
        asked = (entry.oauth.scopes if entry.oauth else ()) or said.scope or resource.scopes
        scope = tuple(dict.fromkeys([*asked, *found.scope, *self._granted(found.principal, entry)]))
        if scope and "offline_access" in authority.scopes:
            scope = tuple(dict.fromkeys([*scope, "offline_access"]))
        client = await self._client(entry, authority, fetcher, " ".join(scope))
        verifier, state, browser = secrets.token_urlsafe(48), secrets.token_urlsafe(32), secrets.token_urlsafe(32)
        grant = Grant(
            authority.issuer, resource.resource, authority.token, authority.revoke, client, access="", scope=scope
        )
        hashed = hashlib.sha256(browser.encode()).digest()
        until = time.monotonic() + TICKET_S
        _keep(self._flows, state, Flow(found, hashed, verifier, grant, authority.says_issuer, until))
        query = {
            "response_type": "code",
            "client_id": client.id,
            "redirect_uri": client.redirect,
            "state": state,
            "code_challenge": _s256(verifier),
            "code_challenge_method": "S256",
            "resource": grant.resource,
        }
        if scope:
            query["scope"] = " ".join(scope)
        joint = "&" if urlsplit(authority.authorize).query else "?"
        return Begun(f"{authority.authorize}{joint}{urlencode(query)}", browser)

    async def finish(self, query: dict[str, str], cookie: str) -> Ticket:
        """Take the answer that the provider sent the browser back with; the ticket that is now a grant.

        Raises:
            CredentialMissing: it is not the answer to anything, of another browser, or of another issuer.
        """
        flow = self._flows.pop(query.get("state", ""), None)
        if flow is None or flow.until < time.monotonic():
            raise CredentialMissing("this sign-in is over or was never begun; ask for a new link")
        if not hmac.compare_digest(hashlib.sha256(cookie.encode()).digest(), flow.browser):
            raise CredentialMissing("this sign-in was begun in another browser; ask for a new link")
        issuer = query.get("iss")
        if (issuer is None and flow.says_issuer) or (issuer is not None and issuer != flow.grant.issuer):
            raise CredentialMissing("the answer is of another authorization server than the one that was asked")
        if "error" in query or not query.get("code"):
            raise CredentialMissing("the provider did not allow it; ask for a new link to try again")
        ticket, url = flow.ticket, _url(flow.ticket.entry)
        form = {
            "grant_type": "authorization_code",
            "code": query["code"],
            "redirect_uri": flow.grant.client.redirect,
            "code_verifier": flow.verifier,
        }
        grant = await exchange.tokens(_fetcher(url), flow.grant, form)
        await self._store(_place(ticket.principal, ticket.entry), grant)
        return ticket

    async def _client(self, entry: Entry, authority: discovery.Authority, fetcher: Fetcher, scope: str) -> Client:
        """Who we are there: a client that the operator has set, one registered before, or a new one."""
        redirect = f"{self.base}/connect/callback"
        given, secret = await to_thread.run_sync(
            lambda: (
                self._secrets.get(f"{entry.entry_id}.client_id"),
                self._secrets.get(f"{entry.entry_id}.client_secret"),
            )
        )
        if given is not None:
            shared = secret.reveal().decode() if secret is not None else ""
            await self._bind(entry, given, authority.issuer)
            return Client(given.reveal().decode(), shared, exchange.method_for(authority, shared), redirect)
        place = Place(CLIENT, "", f"{authority.issuer} {redirect}")
        known = self._read(place, Client)
        if known is not None:
            return known
        if not authority.register:
            raise CredentialMissing(
                f"{urlsplit(authority.issuer).netloc} registers nobody by itself: register this gateway there with the "
                f"redirect address {redirect}, and run lockgate secret set {entry.entry_id}.client_id"
            )
        client = await exchange.register(fetcher, authority, redirect, scope)
        await self._vault.write([Change(place, msgspec.json.encode(client))])
        return client

    async def _bind(self, entry: Entry, id: SecretValue, issuer: str) -> None:
        """A client that the operator has set is for the authorization server it is first used at, and for no other: the
        remote server alone says which one that is, and must not have its secret sent elsewhere.

        Raises:
            CredentialMissing: it is another one now.
        """
        place = Place(ISSUER, "", f"{entry.id} {hashlib.sha256(id.reveal()).hexdigest()}")
        try:
            known = self._vault.value(place)
        except SecretsError as exc:
            raise CredentialMissing(str(exc)) from exc
        if known is None:
            await self._vault.write([Change(place, issuer.encode())])
        elif known != issuer.encode():
            raise CredentialMissing(
                f"server {entry.id} names another authorization server ({issuer[:200]}) than {entry.id}.client_id is "
                f"for ({known.decode()}), so no sign-in; if that is right, register this gateway there and set it anew"
            )

    # -- grants ------------------------------------------------------------------------------

    def version(self, principal: str, entry: Entry) -> str:
        """Changes with each token: part of what tells connections apart."""
        return str(self._vault.version(_place(principal, entry)))

    async def ready(self, principal: str, entry: Entry) -> None:
        """Have a token that is fresh.

        Raises:
            CredentialMissing: this principal has to sign in; says where.
        """
        place = _place(principal, entry)
        grant, version = self._read(place, Grant), self._vault.version(place)
        if grant is None:
            raise self.missing(principal, entry)
        if grant.is_stale and grant.refresh:
            try:
                await self._fresh(place, grant, entry)
            except Refused as exc:
                if exc.code not in ("invalid_grant", "invalid_client", "unauthorized_client"):
                    raise
                if self._vault.version(place) == version:  # else it is another one by now
                    await self._vault.write([Change(place, None)])
                raise self.missing(principal, entry) from exc
            if not self._vault.version(place):
                raise self.missing(principal, entry)

    async def _fresh(self, place: Place, grant: Grant, entry: Entry) -> Grant:
        """One refresh for however many wait for it. It goes to the server that gave the token and to no other."""
        task = self._refreshing.get(place)
        if task is None:
            task = self._refreshing[place] = asyncio.get_running_loop().create_task(self._refresh(place, grant, entry))
            task.add_done_callback(lambda _: self._refreshing.pop(place, None))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(task)

    async def _refresh(self, place: Place, grant: Grant, entry: Entry) -> Grant:
        form, version = {"grant_type": "refresh_token", "refresh_token": grant.refresh}, self._vault.version(place)
        fresh = await exchange.tokens(_fetcher(_url(entry)), grant, form)
        if self._vault.version(place) == version:
            await self._store(place, fresh)  # before anybody uses it
        else:  # signed out meanwhile, or in anew: what was given for the old sign-in is of no use any more
            await exchange.revoke(_fetcher(_url(entry)), fresh)
        return fresh

    def token(self, principal: str, entry: Entry) -> SecretValue:
        """
        Raises:
            CredentialMissing: there is none.
        """
        grant = self._read(_place(principal, entry), Grant) if principal else None
        if grant is None:
            raise self.missing(principal, entry)
        return SecretValue(f"{entry.id}.token", grant.access.encode())

    async def challenged(self, principal: str, entry: Entry, header: str) -> CredentialMissing:
        """A server refuses the token: what its caller is told. More scopes are asked for a few times only."""
        said = discovery.challenge(header)
        place = _place(principal, entry)
        grant = self._read(place, Grant)
        if said.error != "insufficient_scope":
            if grant is not None and grant.refresh:
                if not grant.is_stale and place not in self._refreshing:  # of several calls the first one marks it
                    await self._store(place, msgspec.structs.replace(grant, expires_at=0.0))
                return CredentialMissing(f"server {entry.id} refuses the token it was given; try again")
            if grant is not None:
                await self._vault.write([Change(place, None)])
            return self.missing(principal, entry)
        key = " ".join((principal, entry.id, *sorted(said.scope)))
        tries = self._step_ups.get(key, 0) + 1
        _keep(self._step_ups, key, tries)
        if tries > MAX_STEP_UPS:
            return CredentialMissing(
                f"server {entry.id} asks for more rights again and again; it is not asked any more"
            )
        return self.missing(principal, entry, said.scope)

    async def revoke(self, principal: str, entry: Entry) -> bool:
        """Forget a grant, and tell the provider; whether that one took it.

        Raises:
            CredentialMissing: there is none.
        """
        place = _place(principal, entry)
        grant = self._read(place, Grant)
        if grant is None:
            raise CredentialMissing(f"{principal} is not signed in for {entry.id}")
        await self._vault.write([Change(place, None)])
        return await exchange.revoke(_fetcher(_url(entry)), grant)

    def granted(self) -> list[dict[str, Any]]:
        """Who is signed in where; no tokens."""
        rows = []
        for kept in self._vault.kept(TOKEN):
            grant = self._read(Place(*kept[:3]), Grant)
            if grant is not None:
                id, _, _ = kept.name.partition(" ")
                rows.append(
                    {
                        "server": id,
                        "owner": kept.owner,
                        "issuer": grant.issuer,
                        "scope": " ".join(grant.scope),
                        "expires_at": int(grant.expires_at),
                        "refreshes": bool(grant.refresh),
                    }
                )
        return rows

    def _granted(self, principal: str, entry: Entry) -> tuple[str, ...]:
        grant = self._read(_place(principal, entry), Grant)
        return () if grant is None else grant.scope

    async def _store(self, place: Place, grant: Grant) -> None:
        await self._vault.write([Change(place, msgspec.json.encode(grant))])

    def _read(self, place: Place, kind: type[T]) -> T | None:
        try:
            value = self._vault.value(place)
        except SecretsError as exc:
            raise CredentialMissing(str(exc)) from exc
        return None if value is None else msgspec.json.decode(value, type=kind)


def signs_in(entry: Entry) -> bool:
    """Whether a server is reached with tokens of its callers' own."""
    return (
        entry.oauth is not None
        and entry.remote is not None
        and entry.image is None
        and entry.package is None
        and entry.oauth.secret not in [secret.name for secret in entry.secrets]
    )


async def _challenge(fetcher: Fetcher, url: str) -> discovery.Challenge:
    """What the server says to somebody without a token."""
    headers = b"Content-Type: application/json\r\n"
    for body in (PROBE, LIST):
        try:
            answer = await fetcher.send("POST", url, headers, body)
        except FetchRefused:
            continue
        if answer.challenge:
            return discovery.challenge(answer.challenge)
    return discovery.Challenge()


def _fetcher(url: str) -> Fetcher:
    """Public addresses only, unless the operator's own entry is on this machine."""
    host = urlsplit(url).hostname or ""
    return Fetcher(Reach(loopback=is_loopback(host)))


def _url(entry: Entry) -> str:
    assert entry.remote is not None  # noqa: S101  # `signs_in` has asked
    return entry.remote.url


def _place(principal: str, entry: Entry) -> Place:
    return Place(TOKEN, principal, f"{entry.id} {_url(entry)}")


def _s256(verifier: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()


def _keep(kept: OrderedDict[str, Any], key: str, value: Any) -> None:
    """Add one, and forget the oldest where there are too many."""
    kept[key] = value
    while len(kept) > MAX_OPEN:
        kept.popitem(last=False)
