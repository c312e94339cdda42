"""What programs ask: tokens for codes, refreshes and keys, revocation, introspection, registration, device codes.

Knows requests and errors of OAuth; people are asked elsewhere."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final
from urllib.parse import unquote_plus

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gateway.auth import tokens
from gateway.auth.errors import AuthError
from gateway.auth.keys import PREFIX as KEY_PREFIX
from gateway.auth.resources import ADMIN, Resource
from gateway.signin import grants
from gateway.signin.authorization import OFFLINE, resource_of, scopes_of, user_code
from gateway.signin.clients import Client, ClientRefused, Rate
from gateway.signin.forms import FormRefused, form_of, json_of
from gateway.signin.parts import Parts, Refused
from gateway.signin.signing import TOKEN_S
from gateway.signin.tickets import hashed

DEVICE_S: Final = 600.0
POLL_S: Final = 5.0
DEVICES_A_MINUTE: Final = 60
DEVICE_GRANT: Final = "urn:ietf:params:oauth:grant-type:device_code"
_VERIFIER: Final = re.compile(r"[A-Za-z0-9._~-]{43,128}")
_NO_STORE: Final = {"Cache-Control": "no-store", "Pragma": "no-cache"}

Handler = Callable[[Request], Awaitable[Response]]


def answering(handler: Handler) -> Handler:
    """The handler, with refusals in the words of RFC 6749, section 5.2."""

    async def answered(request: Request) -> Response:
        try:
            return await handler(request)
        except Refused as exc:
            return _error(exc.error, exc.message, exc.status)
        except ClientRefused as exc:
            status = {"temporarily_unavailable": 429, "access_denied": 403}.get(exc.error, 400)
            return _error(exc.error, str(exc), status)
        except FormRefused as exc:
            return _error("invalid_request", str(exc), 400)

    return answered


def _error(error: str, message: str, status: int) -> Response:
    headers = dict(_NO_STORE)
    if status == 401:
        headers["WWW-Authenticate"] = "Basic"
    if status == 429:
        headers["Retry-After"] = "60"
    return JSONResponse({"error": error, "error_description": message}, status, headers)


class TokenEndpoint:
    """The endpoints for programs."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._devices = Rate(DEVICES_A_MINUTE)

    # -- tokens ------------------------------------------------------------------------------------

    async def token(self, request: Request) -> Response:
        form = await form_of(request)
        match form.get("grant_type"):
            case "authorization_code":
                return await self._from_code(request, form)
            case "refresh_token":
                return await self._from_refresh(request, form)
            case "client_credentials":
                return await self._from_key(request, form)
            case grant_type if grant_type == DEVICE_GRANT:
                return await self._from_device(request, form)
        raise Refused("unsupported_grant_type", "this grant_type is not offered")

    async def _client(self, request: Request, form: dict[str, str]) -> Client:
        """The client that asks, proved if it has a secret (RFC 6749, section 2.3)."""
        id, secret = _credentials(request, form)
        client = await self._parts.clients.find(id) if id else None
        if client is None or (client.method == "none") is not (secret is None):
            raise Refused("invalid_client", "no such client, or it proves itself in another way", 401)
        if secret is not None and not client.knows(secret):
            raise Refused("invalid_client", "no such client, or it proves itself in another way", 401)
        return client

    async def _from_code(self, request: Request, form: dict[str, str]) -> Response:
        client = await self._client(request, form)
        code = form.get("code", "")
        data = await self._parts.tickets.take("code", code)
        if data is None:
            before = await self._parts.tickets.spent("code", code)
            if before is not None:
                # Somebody else has it too: what came of it ends (RFC 6749, section 4.1.2).
                await self._parts.end(before["grant"])
                self._parts.record(request, "", "code", client=client.id, failure="a code was used twice")
            raise Refused("invalid_grant", "the code is not good, or was used before")
        verifier = form.get("code_verifier", "")
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
        right = _VERIFIER.fullmatch(verifier) is not None and hmac.compare_digest(challenge, data["challenge"])
        fits = data["client"] == client.id and data["redirect_uri"] == form.get("redirect_uri", data["redirect_uri"])
        if not right or not fits:
            await self._parts.end(data["grant"])
            raise Refused("invalid_grant", "the code is not good for this client, redirect_uri and code_verifier")
        if form.get("resource", data["resource"]) != data["resource"]:
            await self._parts.end(data["grant"])
            raise Refused("invalid_target", "the code is for another resource")
        grant = await self._grant(data["grant"])
        return await self._issue(request, grant, await self._parts.grants.first_refresh(grant.id))

    async def _from_refresh(self, request: Request, form: dict[str, str]) -> Response:
        client = await self._client(request, form)
        token = form.get("refresh_token", "")
        id = await self._parts.grants.grant_of(token)
        grant = await self._grant(id or "")
        if grant.client != client.id:
            raise Refused("invalid_grant", "the refresh token is not good")
        scopes = frozenset(form.get("scope", " ".join(grant.scopes)).split())
        if not scopes or scopes - grant.scopes:
            raise Refused("invalid_scope", "this is more than was granted")
        if form.get("resource", grant.resource) != grant.resource:
            raise Refused("invalid_target", "the token is for another resource")
        try:
            rotated = await self._parts.grants.rotate(token, client.id)
        except grants.Reused as exc:
            await self._parts.end(exc.grant)
            self._parts.record(request, grant.subject, "refresh", client=client.id, failure=str(exc))
            rotated = None
        if rotated is None:
            raise Refused("invalid_grant", "the refresh token is not good")
        return await self._issue(request, grant, rotated[1], scopes)

    async def _from_key(self, request: Request, form: dict[str, str]) -> Response:
        """A machine's token: its API key is its secret, and the key's name its client_id."""
        id, secret = _credentials(request, form)
        key = await self._parts.api_keys.find(secret) if secret and secret.startswith(KEY_PREFIX) else None
        if key is None or key.name != id:
            raise Refused("invalid_client", "client_id is the name of an API key, client_secret the key itself", 401)
        url, resource = resource_of(self._parts.names, form)
        scopes = scopes_of(form, resource) - {OFFLINE}
        if not scopes <= key.scopes:
            raise Refused("invalid_scope", "the key has no such scope")
        made = await self._parts.grants.create(
            subject=key.principal.id,
            account=None,
            client=key.name,
            client_name=key.name,
            resource=url,
            scopes=scopes,
        )
        return await self._issue(request, await self._grant(made), None)

    async def _from_device(self, request: Request, form: dict[str, str]) -> Response:
        client = await self._client(request, form)
        code = form.get("device_code", "")
        data = await self._parts.tickets.look("device", code)
        if data is None or data["client"] != client.id:
            raise Refused("expired_token", "the device code is not good, or no longer")
        if data["state"] == "waiting":
            now = time.time()
            await self._parts.tickets.rewrite("device", hashed(code), {**data, "polled_at": now}, before=data)
            if now - data.get("polled_at", 0.0) < POLL_S - 0.5:
                raise Refused("slow_down", f"ask every {POLL_S:g} seconds")
            raise Refused("authorization_pending", "nobody has answered yet")
        if await self._parts.tickets.take("device", code) is None:
            raise Refused("expired_token", "the device code was used before")
        if data["state"] != "allowed":
            raise Refused("access_denied", "the answer was no")
        grant = await self._grant(data["grant"])
        return await self._issue(request, grant, await self._parts.grants.first_refresh(grant.id))

    async def _grant(self, id: str) -> grants.Grant:
        grant = await self._parts.grants.get(id)
        if grant is None:
            raise Refused("invalid_grant", "what was granted is over")
        return grant

    async def _issue(
        self, request: Request, grant: grants.Grant, refresh: str | None, scopes: frozenset[str] | None = None
    ) -> Response:
        scopes = grant.scopes if scopes is None else scopes
        answer: dict[str, Any] = {
            "access_token": await self._parts.tokens.issue(grant, scopes),
            "token_type": "Bearer",
            "expires_in": TOKEN_S,
            "scope": " ".join(sorted(scopes)),
        }
        if refresh is not None:
            answer["refresh_token"] = refresh
        self._parts.record(request, grant.subject, "token issued", client=grant.client)
        return JSONResponse(answer, headers=_NO_STORE)

    # -- revocation and introspection (RFC 7009, RFC 7662) -------------------------------------------

    async def revoke(self, request: Request) -> Response:
        form = await form_of(request)
        client = await self._client(request, form)
        grant = await self._grant_behind(form.get("token", ""))
        if grant is not None and grant.client == client.id:
            await self._parts.end(grant.id)
            self._parts.record(request, grant.subject, "grant revoked", client=client.id)
        return Response(status_code=200, headers=_NO_STORE)

    async def _grant_behind(self, token: str) -> grants.Grant | None:
        if token.startswith(grants.PREFIX):
            id = await self._parts.grants.grant_of(token)
            return await self._parts.grants.get(id) if id else None
        try:
            _, grant = await self._parts.tokens.read(tokens.take_apart(token), time.time())
        except AuthError:
            return None
        return grant

    async def introspect(self, request: Request) -> Response:
        """Whether an access token is good: for who has the scope `admin`, and for a client with a secret its own."""
        form = await form_of(request)
        kind, _, bearer = request.headers.get("authorization", "").partition(" ")
        client = None
        if kind.lower() == "bearer":
            try:
                caller = await self._parts.authenticator.check(bearer.encode("latin-1"))
            except AuthError as exc:
                raise Refused("invalid_client", "sign in to ask about tokens", 401) from exc
            here = self._parts.names.audiences(Resource("/admin", ADMIN))
            if caller.audiences is not None and caller.audiences.isdisjoint(here):
                raise Refused("invalid_client", "sign in to ask about tokens", 401)
            scopes = caller.principal.scopes
            if scopes is not None and ADMIN not in scopes:
                raise Refused("insufficient_scope", "this needs the scope admin", 403)
        else:
            client = await self._client(request, form)
            if client.method == "none":
                raise Refused("invalid_client", "sign in to ask about tokens", 401)
        try:
            claims, grant = await self._parts.tokens.read(tokens.take_apart(form.get("token", "")), time.time())
        except AuthError:
            return JSONResponse({"active": False}, headers=_NO_STORE)
        if client is not None and grant.client != client.id:
            return JSONResponse({"active": False}, headers=_NO_STORE)
        shown = {name: value for name, value in claims.all.items() if name != "grant"}
        return JSONResponse({"active": True, "token_type": "Bearer", **shown}, headers=_NO_STORE)

    # -- registration and devices ----------------------------------------------------------------------

    async def register(self, request: Request) -> Response:
        answer = await self._parts.clients.register(
            await json_of(request), request.client.host if request.client else ""
        )
        self._parts.record(request, "", "client registered", client=str(answer["client_id"]))
        return JSONResponse(answer, 201, headers=_NO_STORE)

    async def device_authorization(self, request: Request) -> Response:
        form = await form_of(request)
        client = await self._client(request, form)
        if not self._devices.take():
            raise ClientRefused("temporarily_unavailable", "too many devices; try again in a minute")
        url, resource = resource_of(self._parts.names, form)
        data = {
            "client": client.id,
            "client_name": client.name,
            "resource": url,
            "scopes": sorted(scopes_of(form, resource)),
            "state": "waiting",
        }
        code = await self._parts.tickets.issue("device", data, DEVICE_S)
        shown = user_code()
        await self._parts.tickets.issue("usercode", {**data, "device": hashed(code)}, DEVICE_S, shown)
        answer = {
            "device_code": code,
            "user_code": f"{shown[:4]}-{shown[4:]}",
            "verification_uri": f"{self._parts.issuer}/oauth/device",
            "expires_in": int(DEVICE_S),
            "interval": int(POLL_S),
        }
        return JSONResponse(answer, headers=_NO_STORE)


def _credentials(request: Request, form: dict[str, str]) -> tuple[str, str | None]:
    """The client_id and secret of a request, in one way only.

    Raises:
        Refused: they come in two ways, or cannot be read.
    """
    header = request.headers.get("authorization", "")
    if not header:
        return form.get("client_id", ""), form.get("client_secret")
    kind, _, value = header.partition(" ")
    if kind.lower() != "basic" or "client_secret" in form:
        raise Refused("invalid_client", "a client proves itself in one way, with its secret", 401)
    try:
        id, _, secret = base64.b64decode(value, validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError) as exc:
        raise Refused("invalid_client", "the Authorization header cannot be read", 401) from exc
    id, secret = unquote_plus(id), unquote_plus(secret)
    if form.get("client_id", id) != id:
        raise Refused("invalid_client", "two different client_id", 401)
    return id, secret
