"""Asking a person: the authorization endpoint, the login page, consent, and the pages for devices.

Knows requests of browsers; what is granted is kept elsewhere."""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from gateway.auth.resources import ADMIN, SCOPE_TEXTS, Names, Resource
from gateway.errors import SettingsError
from gateway.signin import pages, redirects
from gateway.signin.accounts import Account, Strength, TooManyTries, Tries
from gateway.signin.clients import Client, ClientRefused
from gateway.signin.forms import FormRefused, form_of, query_of
from gateway.signin.parts import Parts, Refused
from gateway.signin.passkeys import place_of

Form = dict[str, str]
CODE_S: Final = 60.0
CONSENT_S: Final = 600.0
AFTER_SIGNING_IN: Final = ("/oauth/authorize?", "/oauth/device", "/oauth/approvals", "/oauth/passkeys")
OFFLINE: Final = "offline_access"
OFFLINE_TEXT: Final = "Go on without asking you again, for 30 days after its last use"
_CHALLENGE: Final = re.compile(r"[A-Za-z0-9_-]{43}")
CODES_FREE: Final = 10
"""Wrong device codes before an account has to wait."""


@dataclass(frozen=True)
class Asked:
    """A request for authorization that may be put before a person."""

    client: Client
    redirect_uri: str
    state: str
    resource: str
    scopes: frozenset[str]
    challenge: str


def resource_of(names: Names, given: Mapping[str, str]) -> tuple[str, Resource]:
    """The resource that a request is for: its URL as the client says it, and what that is here.

    Raises:
        Refused: it is none of ours.
    """
    url = given.get("resource", f"{names.base}/mcp")
    resource = names.resource_for(url)
    if resource is None:
        raise Refused("invalid_target", "resource is not an endpoint of this gateway")
    return url, resource


def scopes_of(given: Mapping[str, str], resource: Resource) -> frozenset[str]:
    """The scopes that a request is for; those that the resource does not know are left out.

    Raises:
        Refused: none is left.
    """
    asked = frozenset(given.get("scope", resource.scope).split())
    scopes = asked & {resource.scope, OFFLINE}
    if resource.scope not in scopes:
        raise Refused("invalid_scope", f"this resource has the scope {resource.scope}")
    return scopes


def with_form(handler: Callable[[Any, Request, Form], Awaitable[Response]]) -> Callable[[Any, Request], Any]:
    """A handler of a form that a browser sent; what is none is answered with a page that says so."""

    @wraps(handler)
    async def handle(self: Any, request: Request) -> Response:
        try:
            form = await form_of(request)
        except FormRefused as exc:
            return pages.problem(str(exc))
        return await handler(self, request, form)

    return handle


class Authorization:
    """What a browser sees."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._tries = Tries()

    # -- the authorization endpoint ------------------------------------------------------------------

    async def authorize(self, request: Request) -> Response:
        try:
            given = query_of(request)
            client = await self._client(given)
        except (FormRefused, ClientRefused) as exc:
            return pages.problem(f"The program that sent you here made a mistake: {exc}")
        redirect_uri = given.get("redirect_uri", "")
        # Until client and address are known to belong together nobody is sent anywhere.
        if not redirects.matches(redirect_uri, client.redirect_uris):
            return pages.problem("The program that sent you here named an address that it had not announced.")
        if given.get("response_type") != "code":
            return pages.problem("The program that sent you here asked for something that is not offered.")
        state = given.get("state", "")
        try:
            asked = self._asked(given, client, redirect_uri)
        except Refused as exc:
            return self._answer(redirect_uri, state, error=exc.error, error_description=exc.message)
        account = await self._parts.browsers.account(request)
        if account is None:
            return RedirectResponse(f"/oauth/login?{urlencode({'next': f'/oauth/authorize?{request.url.query}'})}", 303)
        return await self._ask(request, account, asked, {"redirect_uri": redirect_uri, "state": state})

    async def _client(self, given: Mapping[str, str]) -> Client:
        client = await self._parts.clients.find(given.get("client_id", ""))
        if client is None:
            raise ClientRefused("invalid_client", "its client_id is not known here")
        return client

    def _asked(self, given: Mapping[str, str], client: Client, redirect_uri: str) -> Asked:
        challenge = given.get("code_challenge", "")
        if given.get("code_challenge_method") != "S256" or not _CHALLENGE.fullmatch(challenge):
            raise Refused("invalid_request", "PKCE with code_challenge_method S256 is required")
        if "request" in given or "request_uri" in given:
            raise Refused("request_not_supported", "request objects are not supported")
        if given.get("response_mode", "query") != "query":
            raise Refused("invalid_request", "response_mode is query")
        url, resource = resource_of(self._parts.names, given)
        return Asked(client, redirect_uri, given.get("state", ""), url, scopes_of(given, resource), challenge)

    async def _ask(self, request: Request, account: Account, asked: Asked, more: dict[str, Any]) -> Response:
        """The consent page. It is always shown: what was allowed once says nothing of who asks now."""
        resource = self._parts.names.resource_for(asked.resource)
        if resource is None or (resource.scope == ADMIN and not account.is_admin):
            if "redirect_uri" not in more:
                return pages.problem("Your account may not do that.", 403)
            return self._answer(asked.redirect_uri, asked.state, error="access_denied")
        data = {
            "session": self._parts.browsers.session_id(request),
            "account": account.name,
            "client": asked.client.id,
            "client_name": asked.client.name,
            "resource": asked.resource,
            "scopes": sorted(asked.scopes),
            "challenge": asked.challenge,
            **more,
        }
        ticket = await self._parts.tickets.issue("consent", data, CONSENT_S)
        shown = [(scope, SCOPE_TEXTS.get(scope, OFFLINE_TEXT)) for scope in asked.scopes]
        uri = asked.redirect_uri
        return pages.consent(
            ticket,
            account=account.name,
            client=asked.client.name,
            vouched=asked.client.host,
            resource=asked.resource,
            scopes=sorted(shown),
            target=redirects.shown(uri) if uri else "nowhere: the device goes on by itself",
            loopback=bool(uri) and redirects.is_loopback(uri),
            form_to=redirects.origin(uri) if uri else "",
        )

    @with_form
    async def consent(self, request: Request, form: Form) -> Response:
        parts = self._parts
        account = await parts.browsers.account(request)
        data = await parts.tickets.look("consent", form.get("ticket", ""))
        if account is None or data is None or data["session"] != parts.browsers.session_id(request):
            return pages.problem("This form is too old, or not yours. Start again where you came from.", 403)
        if await parts.tickets.take("consent", form["ticket"]) is None or data["account"] != account.name:
            return pages.problem("This form was sent before. Start again where you came from.", 403)
        allowed = form.get("answer") == "allow"
        what = "consent given" if allowed else "consent refused"
        parts.record(request, account.subject, what, client=data["client"])
        device = data.get("device")
        if not allowed:
            if device:
                await parts.tickets.rewrite("device", device, {**data["request"], "state": "denied"})
                return pages.page("Not allowed", "<p>The device was told. You can close this page.</p>")
            return self._answer(data["redirect_uri"], data["state"], error="access_denied")
        grant = await parts.grants.create(
            subject=account.subject,
            account=account.name,
            client=data["client"],
            client_name=data["client_name"],
            resource=data["resource"],
            scopes=frozenset(data["scopes"]),
            strength=account.strength,
        )
        await parts.clients.note_used(data["client"])
        if device:
            await parts.tickets.rewrite("device", device, {**data["request"], "state": "allowed", "grant": grant})
            return pages.page("Allowed", "<p>The device goes on by itself. You can close this page.</p>")
        kept = {"grant": grant, **{name: data[name] for name in ("client", "redirect_uri", "resource", "challenge")}}
        code = await parts.tickets.issue("code", kept, CODE_S)
        return self._answer(data["redirect_uri"], data["state"], code=code)

    def _answer(self, redirect_uri: str, state: str, **fields: str) -> Response:
        """Send the browser back to the client, with our name on it (RFC 9207)."""
        query = urlencode({**fields, **({"state": state} if state else {}), "iss": self._parts.issuer})
        separator = "&" if urlsplit(redirect_uri).query else "?"
        return RedirectResponse(f"{redirect_uri}{separator}{query}", 303, {"Cache-Control": "no-store"})

    def _bound(self, request: Request, page: Callable[[str], Response]) -> Response:
        """A page with a form that only the browser it is given to can send."""
        cookie, token = self._parts.browsers.form_token(request)
        response = page(token)
        self._parts.browsers.keep_form(response, cookie)
        return response

    # -- signing in --------------------------------------------------------------------------------

    async def login_page(self, request: Request) -> Response:
        if not await self._parts.accounts.count():
            return RedirectResponse("/oauth/setup", 303)
        return self.show_login(request, request.query_params.get("next", ""))

    def show_login(self, request: Request, following: str, error: str = "") -> Response:
        provider = self._parts.provider
        name, origin = (provider.name, provider.origin) if provider else ("", "")
        has = place_of(self._parts.names.bases, request.headers.get("host", "")) is not None
        after = safe_next(following)
        return self._bound(request, lambda token: pages.login(token, after, name, error, origin, passkeys=has))

    @with_form
    async def login(self, request: Request, form: Form) -> Response:
        if not self._parts.browsers.owns_form(request, form.get("form", "")):
            return self.show_login(request, form.get("next", ""), "This form was too old. Please try again.")
        name = form.get("name", "").strip().lower()
        try:
            address = request.client.host if request.client else ""
            account = await self._parts.accounts.prove(name, form.get("password", ""), address)
        except TooManyTries as exc:
            self._parts.record(request, "", "password", failure="too many wrong passwords")
            response = self.show_login(request, form.get("next", ""), "Too many tries. Please wait, then try again.")
            response.status_code = 429
            response.headers["Retry-After"] = str(int(exc.wait_s) + 1)
            return response
        if account is None:
            self._parts.record(request, "", "password", failure="wrong account or password")
            return self.show_login(request, form.get("next", ""), "Account or password is wrong.")
        self._parts.record(request, account.subject, "password")
        return await self.signed_in(request, account, form.get("next", ""))

    async def signed_in(
        self, request: Request, account: Account, following: str, *, strength: Strength = "password"
    ) -> Response:
        response = RedirectResponse(safe_next(following) or "/oauth/device", 303)
        await self._parts.browsers.sign_in(request, response, account, strength)
        return response

    @with_form
    async def logout(self, request: Request, form: Form) -> Response:
        """End this browser's session; only a form that was given to this very session can ask for it."""
        data = await self._parts.tickets.take("consent", form.get("ticket", ""))
        if data is None or data["session"] != self._parts.browsers.session_id(request):
            return pages.problem("This form is too old, or not yours.", 403)
        response = pages.page("Signed out", "<p>Start again in the program that sent you here.</p>")
        await self._parts.browsers.sign_out(request, response)
        return response

    # -- the first administrator ---------------------------------------------------------------------

    async def setup_page(self, request: Request) -> Response:
        if await self._parts.accounts.count():
            return pages.problem("This gateway is set up already.", 404)
        return self._bound(request, pages.setup)

    @with_form
    async def setup(self, request: Request, form: Form) -> Response:
        if not self._parts.browsers.owns_form(request, form.get("form", "")):
            return pages.problem("This form is too old. Open the page again.", 403)
        address = (f"setup {request.client.host if request.client else ''}", CODES_FREE)
        error = "The code is not good, or no longer."
        try:
            self._tries.check(address)
            self._tries.failed(address)
            code = form.get("code", "").strip().upper()
            account = await self._parts.accounts.create_first(code, form.get("name", ""), form.get("password", ""))
        except TooManyTries:
            account, error = None, "Too many tries. Please wait, then try again."
        except SettingsError as exc:
            account, error = None, str(exc)
        if account is None:
            self._parts.record(request, "", "bootstrap", failure=error)
            return pages.setup(form["form"], error)
        self._parts.record(request, account.subject, "bootstrap")
        return await self.signed_in(request, account, "")

    # -- devices (RFC 8628) ------------------------------------------------------------------------

    async def device_page(self, request: Request) -> Response:
        if await self._parts.browsers.account(request) is None:
            return RedirectResponse("/oauth/login?next=/oauth/device", 303)
        return self._show_device(request)

    def _show_device(self, request: Request, error: str = "") -> Response:
        return self._bound(request, lambda token: pages.device(token, error))

    @with_form
    async def device(self, request: Request, form: Form) -> Response:
        account = await self._parts.browsers.account(request)
        if account is None or not self._parts.browsers.owns_form(request, form.get("form", "")):
            return pages.problem("This form is too old. Open the page again.", 403)
        who = (account.name, CODES_FREE)
        try:
            self._tries.check(who)
        except TooManyTries:
            return self._show_device(request, "Too many tries. Please wait, then try again.")
        code = "".join(c for c in form.get("code", "").upper() if c.isalnum())
        pointer = await self._parts.tickets.take("usercode", code)
        if pointer is None:
            self._tries.failed(who)
            return self._show_device(request, "There is no such code, or it is too old.")
        client = Client(pointer["client"], pointer["client_name"], ())
        asked = Asked(client, "", "", pointer["resource"], frozenset(pointer["scopes"]), "")
        return await self._ask(request, account, asked, {"device": pointer["device"], "request": pointer})


def safe_next(following: str) -> str:
    """Where to go after signing in: back to the authorization endpoint, or to a page here, and nowhere else."""
    plain = following.isascii() and following.isprintable() and "\\" not in following
    return following if plain and following.startswith(AFTER_SIGNING_IN) else ""


def user_code() -> str:
    """Eight letters that are hard to mistake (RFC 8628, section 6.1): 20 ** 8 of them, good for ten minutes."""
    return "".join(secrets.choice("BCDFGHJKLMNPQRSTVWXZ") for _ in range(8))
