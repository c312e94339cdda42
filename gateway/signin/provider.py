"""Signing in at an OpenID provider in place of a password here.

Knows the code flow as its client; what the account may do is decided here all the same."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import time
from typing import Any, Final
from urllib.parse import quote_plus, urlencode

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from gateway.auth import tokens
from gateway.auth.configuration import Login
from gateway.auth.errors import BadCredential
from gateway.auth.fetch import Fetcher, FetchRefused
from gateway.auth.issuers import IssuerKeys, discover
from gateway.auth.tokens import words
from gateway.auth.urls import check_url
from gateway.errors import GatewayError
from gateway.secrets import Secrets
from gateway.signin import pages
from gateway.signin.authorization import Authorization, safe_next
from gateway.signin.forms import FormRefused, form_of, query_of
from gateway.signin.parts import Parts
from gateway.signin.redirects import origin

ALGORITHMS: Final = ("RS256", "PS256", "ES256", "EdDSA", "Ed25519")
FRESH_S: Final = 3600.0


class LoginProvider:
    """One provider, as its client."""

    def __init__(self, login: Login, fetcher: Fetcher, secrets: Secrets, callback: str) -> None:
        self._login = login
        self._fetcher = fetcher
        self._secrets = secrets
        self._callback = callback
        self._keys = IssuerKeys(login.issuer, fetcher, time.monotonic)
        self._metadata: dict[str, Any] = {}
        self._metadata_at = 0.0

    @property
    def name(self) -> str:
        return self._login.name

    @property
    def origin(self) -> str:
        """Where its login page is, as far as it is known: what a form may lead to."""
        endpoint = str(self._metadata.get("authorization_endpoint", self._login.issuer))
        return " ".join(dict.fromkeys((origin(self._login.issuer), origin(endpoint))))

    async def metadata(self) -> dict[str, Any]:
        """
        Raises:
            FetchRefused: the provider cannot be asked.
        """
        if not self._metadata or time.monotonic() - self._metadata_at > FRESH_S:
            self._metadata = await discover(self._fetcher, self._login.issuer)
            self._metadata_at = time.monotonic()
        return self._metadata

    async def address(self, state: str, nonce: str, verifier: str) -> str:
        """Where to send the browser.

        Raises:
            FetchRefused: the provider cannot be asked.
        """
        metadata = await self.metadata()
        try:
            endpoint = check_url(str(metadata.get("authorization_endpoint", "")))
        except ValueError as exc:
            raise FetchRefused("its authorization_endpoint will not do") from exc
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
        query = {
            "response_type": "code",
            "client_id": self._login.client_id,
            "redirect_uri": self._callback,
            "scope": " ".join(dict.fromkeys(("openid", *self._login.scopes))),
            "state": state,
            "nonce": nonce,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
        }
        return f"{endpoint}?{urlencode(query)}"

    async def subject(self, given: dict[str, str], nonce: str, verifier: str) -> tuple[str, frozenset[str]]:
        """Who the provider says it was, as an account name, and in which groups.

        Raises:
            AuthError: it says nobody, or cannot be believed.
        """
        metadata = await self.metadata()
        issuer = given.get("iss")
        advertised = metadata.get("authorization_response_iss_parameter_supported") is True
        if (issuer is None and advertised) or (issuer is not None and issuer != self._login.issuer):
            raise BadCredential("the answer is of another issuer")
        if "error" in given or "code" not in given:
            raise BadCredential("the provider did not sign anybody in")
        claims = await self._claims(metadata, given["code"], verifier)
        if not hmac.compare_digest(str(claims.all.get("nonce", "")).encode(errors="replace"), nonce.encode()):
            raise BadCredential("the ID token answers another question")
        listed = words(claims.all.get(self._login.groups_claim))
        groups = frozenset(self._login.groups[one] for one in listed if one in self._login.groups)
        return f"{self._login.name}:{claims.subject}", groups

    async def _claims(self, metadata: dict[str, Any], code: str, verifier: str) -> tokens.Claims:
        login = self._login
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._callback,
            "code_verifier": verifier,
            "client_id": login.client_id,
        }
        headers = "Content-Type: application/x-www-form-urlencoded\r\n"
        if login.client_secret:
            found = await to_thread.run_sync(self._secrets.get, login.client_secret)
            if found is None:
                raise BadCredential(f"the secret {login.client_secret} is missing")
            pair = f"{quote_plus(login.client_id)}:{quote_plus(found.reveal().decode())}"
            headers += f"Authorization: Basic {base64.b64encode(pair.encode()).decode()}\r\n"
            del form["client_id"]
        try:
            endpoint = check_url(str(metadata.get("token_endpoint", "")))
            answer = await self._fetcher.send("POST", endpoint, headers.encode(), urlencode(form).encode())
            given = json.loads(answer.body) if answer.status == 200 else {}
            token = given["id_token"]
        except (ValueError, KeyError, TypeError, RecursionError) as exc:
            raise BadCredential("the provider gave no ID token") from exc
        if not isinstance(token, str):
            raise BadCredential("the provider gave no ID token")
        unverified = tokens.take_apart(token)
        if unverified.issuer != login.issuer or unverified.algorithm not in ALGORITHMS:
            raise BadCredential("the ID token is of another issuer or kind")
        key = await self._keys.key(unverified.kid, unverified.algorithm)
        if key is None:
            raise BadCredential("the ID token is signed by no key of the provider")
        claims = tokens.verify(unverified, key, ALGORITHMS, ("JWT",), time.time(), typed=False)
        if claims.audiences != {login.client_id} and claims.all.get("azp") != login.client_id:
            raise BadCredential("the ID token is for another client")
        if login.client_id not in claims.audiences:
            raise BadCredential("the ID token is for another client")
        if (bound := claims.all.get("at_hash")) is not None:
            _check_bound(bound, given.get("access_token"), unverified.algorithm)
        return claims


def _check_bound(at_hash: object, access_token: object, algorithm: str) -> None:
    """An ID token that says which access token it came with came with that one (OpenID Connect Core, 3.1.3.6).

    Raises:
        BadCredential: it did not, or that cannot be told.
    """
    digest = hashlib.sha512 if algorithm in ("EdDSA", "Ed25519") else hashlib.sha256
    whole = digest(str(access_token).encode(errors="replace")).digest()
    half = base64.urlsafe_b64encode(whole[: len(whole) // 2]).rstrip(b"=").decode()
    if not isinstance(access_token, str) or at_hash != half:
        raise BadCredential("the ID token came with another access token")


class ProviderPages:
    """The way there and back."""

    def __init__(self, parts: Parts, authorization: Authorization) -> None:
        self._parts = parts
        self._authorization = authorization

    async def leave(self, request: Request) -> Response:
        try:
            form = await form_of(request)
        except FormRefused as exc:
            return pages.problem(str(exc))
        provider, browsers = self._parts.provider, self._parts.browsers
        if provider is None or not browsers.owns_form(request, form.get("form", "")):
            return pages.problem("This form is too old. Open the page again.", 403)
        nonce, verifier = secrets.token_urlsafe(32), secrets.token_urlsafe(48)
        # Bound to this browser: an answer that another browser brings signs nobody in.
        data = {
            "form": browsers.form_cookie(request),
            "nonce": nonce,
            "verifier": verifier,
            "next": safe_next(form.get("next", "")),
        }
        state = await self._parts.tickets.issue("provider", data, 600.0)
        try:
            return RedirectResponse(await provider.address(state, nonce, verifier), 303)
        except FetchRefused as exc:
            self._parts.record(request, "", f"login at {provider.name}", failure=str(exc))
            return pages.problem("The provider cannot be reached now. Please try again later.", 503)

    async def back(self, request: Request) -> Response:
        provider = self._parts.provider
        try:
            given = query_of(request)
        except FormRefused as exc:
            return pages.problem(str(exc))
        data = await self._parts.tickets.take("provider", given.get("state", ""))
        if provider is None or data is None or data["form"] != self._parts.browsers.form_cookie(request):
            return pages.problem("This answer is too old, or another browser's. Please sign in again.", 403)
        try:
            name, groups = await provider.subject(given, data["nonce"], data["verifier"])
        except GatewayError as exc:
            self._parts.record(request, "", f"login at {provider.name}", failure=str(exc))
            return pages.problem("The provider did not sign you in. Please try again.", 403)
        account = await self._parts.accounts.note_provider_user(name, groups)
        if account is None:
            self._parts.record(request, name, f"login at {provider.name}", failure="the account is disabled")
            return pages.problem("This account may not sign in here.", 403)
        self._parts.record(request, account.subject, f"login at {provider.name}")
        return await self._authorization.signed_in(request, account, data["next"])
