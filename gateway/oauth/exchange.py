"""What a client asks an authorization server for: to be registered, tokens for a code or a refresh token, revocation.

Knows requests and answers of RFC 6749, 7591, 7009 and 8707; keeps nothing."""

from __future__ import annotations

import base64
import time
from typing import Any, Final
from urllib.parse import quote, urlencode

import msgspec

from gateway.auth.fetch import Fetcher, FetchRefused
from gateway.errors import CredentialMissing
from gateway.oauth.discovery import Authority

FORM: Final = "Content-Type: application/x-www-form-urlencoded\r\n"
EARLY_S: Final = 30
"""A token that ends so soon is renewed before it is used."""
DEFAULT_LIFE_S: Final = 3600
MAX_LIFE_S: Final = 30 * 86_400


class Client(msgspec.Struct, frozen=True):
    """Who the gateway is for one authorization server."""

    id: str
    secret: str = ""
    method: str = "none"
    redirect: str = ""

    def __repr__(self) -> str:
        return f"Client({self.id})"


class Grant(msgspec.Struct, frozen=True):
    """What one user allowed: kept in the vault as it is here."""

    issuer: str
    resource: str
    token_endpoint: str
    revocation_endpoint: str
    client: Client
    access: str
    refresh: str = ""
    scope: tuple[str, ...] = ()
    expires_at: float = 0.0

    def __repr__(self) -> str:
        return f"Grant({self.issuer})"

    @property
    def is_stale(self) -> bool:
        return time.time() > self.expires_at - EARLY_S


class Refused(CredentialMissing):
    """The authorization server said no; `code` is its reason."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


def method_for(authority: Authority, secret: str) -> str:
    """How to prove oneself: as the server offers, the header first."""
    if not secret:
        return "none"
    offered = authority.methods or ("client_secret_basic",)
    return next((one for one in ("client_secret_basic", "client_secret_post") if one in offered), "client_secret_basic")


async def register(fetcher: Fetcher, authority: Authority, redirect: str, scope: str) -> Client:
    """Register this gateway (RFC 7591).

    Raises:
        CredentialMissing: it is refused.
    """
    wanted = authority.methods or ("none",)
    method = next((one for one in ("none", "client_secret_basic", "client_secret_post") if one in wanted), "none")
    body: dict[str, Any] = {
        "client_name": "Lockgate",
        "redirect_uris": [redirect],
        "grant_types": ["authorization_code", "refresh_token"],
        "response_types": ["code"],
        "token_endpoint_auth_method": method,
        "application_type": "native" if redirect.startswith("http://") else "web",
    }
    if scope:
        body["scope"] = scope
    given = b"Content-Type: application/json\r\n"
    found = await _ask(fetcher, authority.register, given, msgspec.json.encode(body), (200, 201))
    id, secret = found.get("client_id"), found.get("client_secret", "")
    if not isinstance(id, str) or not isinstance(secret, str) or not id:
        raise CredentialMissing("the authorization server registered nothing that can be used")
    chosen = found.get("token_endpoint_auth_method")
    return Client(id, secret, chosen if isinstance(chosen, str) else method, redirect)


async def tokens(fetcher: Fetcher, grant: Grant, form: dict[str, str]) -> Grant:
    """The grant with the tokens that the server gives for what the form holds.

    Raises:
        Refused: it gives none.
        CredentialMissing: it does not answer, or answers no token.
    """
    headers, fields = _proved(grant.client, {**form, "resource": grant.resource})
    found = await _ask(fetcher, grant.token_endpoint, headers, urlencode(fields).encode(), (200,))
    access, refresh, scope = found.get("access_token"), found.get("refresh_token"), found.get("scope")
    if not isinstance(access, str) or not _in_header(access) or str(found.get("token_type", "")).lower() != "bearer":
        raise CredentialMissing("the authorization server answered with something that is no bearer token")
    life = found.get("expires_in")
    life_s = min(max(float(life), 0.0), MAX_LIFE_S) if isinstance(life, int | float) else DEFAULT_LIFE_S
    return msgspec.structs.replace(
        grant,
        access=access,
        refresh=refresh if isinstance(refresh, str) and refresh else grant.refresh,
        scope=tuple(scope.split()) if isinstance(scope, str) else grant.scope,
        expires_at=time.time() + life_s,
    )


async def revoke(fetcher: Fetcher, grant: Grant) -> bool:
    """Tell the server that the grant is over, if it wants to know; whether it said that it is."""
    if not grant.revocation_endpoint:
        return False
    token, hint = (grant.refresh, "refresh_token") if grant.refresh else (grant.access, "access_token")
    headers, fields = _proved(grant.client, {"token": token, "token_type_hint": hint})
    try:
        form = urlencode(fields).encode()
        answer = await fetcher.send("POST", grant.revocation_endpoint, headers, form, json_only=False)
    except FetchRefused:
        return False
    return answer.status == 200


def _proved(client: Client, fields: dict[str, str]) -> tuple[bytes, dict[str, str]]:
    if client.method == "client_secret_basic":
        pair = f"{quote(client.id, safe='')}:{quote(client.secret, safe='')}".encode()
        return f"{FORM}Authorization: Basic {base64.b64encode(pair).decode()}\r\n".encode(), fields
    fields = {**fields, "client_id": client.id}
    if client.method == "client_secret_post":
        fields["client_secret"] = client.secret
    return FORM.encode(), fields


async def _ask(fetcher: Fetcher, url: str, headers: bytes, body: bytes, good: tuple[int, ...]) -> dict[str, Any]:
    try:
        answer = await fetcher.send("POST", url, headers, body)
    except FetchRefused as exc:
        raise CredentialMissing(f"the authorization server cannot be asked: {exc}") from exc
    try:
        found = msgspec.json.decode(answer.body)
    except msgspec.DecodeError:
        found = None
    if answer.status not in good or not isinstance(found, dict):
        code = found.get("error", "") if isinstance(found, dict) else ""
        code = code if isinstance(code, str) and code.isascii() and code.isprintable() else ""
        raise Refused(f"the authorization server refuses (HTTP {answer.status} {code[:64]})", code)
    return found


def _in_header(token: str) -> bool:
    return 0 < len(token) <= 16_384 and all(33 <= ord(c) <= 126 for c in token)
