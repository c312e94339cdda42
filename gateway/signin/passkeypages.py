"""The pages of passkeys: using one in place of a password, and each account's own list of them.

Knows requests of browsers. These are the only pages with a script; it is fixed and named by its hash."""

from __future__ import annotations

import base64
import hashlib
import time
from html import escape
from typing import Final
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from gateway.errors import SettingsError
from gateway.signin import pages
from gateway.signin.accounts import Account, TooManyTries
from gateway.signin.authorization import Authorization, Form, safe_next, with_form
from gateway.signin.parts import Parts
from gateway.signin.passkeys import PasskeyRefused, Place, challenge, place_of

PATH: Final = "/oauth/passkeys"
CHALLENGE_S: Final = 300.0
SCRIPT: Final = """
const form = document.getElementById("passkey"), said = document.getElementById("said");
const bytes = (text) => Uint8Array.from(atob(text.replace(/-/g, "+").replace(/_/g, "/")), (c) => c.charCodeAt(0));
const text = (buffer) => btoa(String.fromCharCode(...new Uint8Array(buffer)))
  .replace(/\\+/g, "-").replace(/\\//g, "_").replace(/=+$/, "");
const ask = async () => {
  said.textContent = "";
  try {
    const options = JSON.parse(form.dataset.options), make = options.user !== undefined;
    options.challenge = bytes(options.challenge);
    if (make) options.user.id = bytes(options.user.id);
    for (const one of options.excludeCredentials ?? options.allowCredentials ?? []) one.id = bytes(one.id);
    const found = await navigator.credentials[make ? "create" : "get"]({ publicKey: options });
    const names = make ? ["clientDataJSON", "attestationObject"]
      : ["clientDataJSON", "authenticatorData", "signature", "userHandle"];
    const response = Object.fromEntries(names.map((name) => [name, text(found.response[name] ?? new ArrayBuffer(0))]));
    form.elements.credential.value = JSON.stringify(
      { id: found.id, rawId: text(found.rawId), type: found.type, response, clientExtensionResults: {} });
    form.submit();
  } catch (error) {
    said.textContent = "This did not work (" + error.name + "). You can try again.";
  }
};
document.getElementById("go").addEventListener("click", ask);
""".strip()
_SCRIPT_HASH: Final = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()


class PasskeyPages:
    """What a browser sees of passkeys."""

    def __init__(self, parts: Parts, people: Authorization) -> None:
        self._parts = parts
        self._people = people

    def routes(self) -> list[Route]:
        return [
            Route("/oauth/login/passkey", self.ask, methods=["POST"]),
            Route("/oauth/login/passkey/used", self.used, methods=["POST"]),
            Route(PATH, self.own),
            Route(f"{PATH}/new", self.new, methods=["POST"]),
            Route(f"{PATH}/made", self.made, methods=["POST"]),
            Route(f"{PATH}/remove", self.remove, methods=["POST"]),
        ]

    def _place(self, request: Request) -> Place | None:
        return place_of(self._parts.names.bases, request.headers.get("host", ""))

    # -- signing in ----------------------------------------------------------------------------------

    @with_form
    async def ask(self, request: Request, form: Form) -> Response:
        place, browsers = self._place(request), self._parts.browsers
        if place is None:
            return pages.problem(NOT_HERE)
        if not browsers.owns_form(request, form.get("form", "")):
            return self._people.show_login(request, form.get("next", ""), "This form was too old. Please try again.")
        if not self._parts.passkey_asks.take(request.client.host if request.client else ""):
            return pages.problem("Too many tries. Please wait a minute, then try again.", 429)
        data = {
            "challenge": challenge(),
            "form": browsers.form_cookie(request),
            "next": safe_next(form.get("next", "")),
        }
        ticket = await self._parts.tickets.issue("passkey", data, CHALLENGE_S)
        options = self._parts.passkeys.request(place, data["challenge"])
        return _with_script("Sign in with a passkey", "/oauth/login/passkey/used", ticket, options, "Use my passkey")

    @with_form
    async def used(self, request: Request, form: Form) -> Response:
        parts, place = self._parts, self._place(request)
        data = await parts.tickets.take("passkey", form.get("ticket", ""))
        if place is None or data is None or data["form"] != parts.browsers.form_cookie(request):
            return self._people.show_login(request, "", "This form was too old. Please try again.")
        try:
            name = await parts.passkeys.prove(place, data["challenge"], form.get("credential", ""))
        except PasskeyRefused as exc:
            parts.record(request, "", "passkey", failure=str(exc))
            return self._people.show_login(request, data["next"], "The passkey was not taken.")
        account = await parts.accounts.get(name)
        if account is None:
            parts.record(request, f"user:{name}", "passkey", failure="the account is disabled")
            return self._people.show_login(request, data["next"], "The passkey was not taken.")
        parts.record(request, account.subject, "passkey")
        return await self._people.signed_in(request, account, data["next"], strength="multi")

    # -- an account's own ----------------------------------------------------------------------------

    async def own(self, request: Request) -> Response:
        account = await self._parts.browsers.account(request)
        if account is None:
            return RedirectResponse(f"/oauth/login?{urlencode({'next': PATH})}", 303)
        return await self._show(request, account)

    async def _show(self, request: Request, account: Account, error: str = "") -> Response:
        data = {"session": self._parts.browsers.session_id(request), "account": account.name}
        ticket = await self._parts.tickets.issue("passkeys", data, CHALLENGE_S * 2)
        hidden = f'<input type="hidden" name="ticket" value="{ticket}">'
        rows = ""
        for one in await self._parts.passkeys.of(account.name):
            used = _day(one.used_at) if one.used_at is not None else "never"
            rows += (
                f"<li><strong>{escape(one.name)}</strong>, made {_day(one.created_at)}, used last: {used}"
                f'<form method="post" action="{PATH}/remove">{hidden}'
                f'<button type="submit" name="name" value="{escape(one.name)}">Remove {escape(one.name)}</button>'
                "</form></li>"
            )
        body = pages.alert(error) + f"<p>Signed in as {escape(account.name)}.</p>"
        body += f"<ul>{rows}</ul>" if rows else "<p>This account has no passkey.</p>"
        if self._place(request) is None:
            body += f"<p>{NOT_HERE}</p>"
        elif ":" in account.name:
            body += "<p>You sign in at a provider, so passkeys are its affair.</p>"
        else:
            body += (
                f'<form method="post" action="{PATH}/new">{hidden}<label for="name">A name for this device</label>'
                '<input id="name" name="name" autocomplete="off" maxlength="64" required>'
                '<label for="password">Your password</label>'
                '<input id="password" name="password" type="password" autocomplete="current-password" required>'
                '<button class="yes" type="submit">Add a passkey</button></form>'
            )
        return pages.page("Passkeys", body, status=400 if error else 200)

    async def _owner(self, request: Request, form: Form, kind: str) -> tuple[Account, dict[str, str]] | None:
        """Whoever is signed in and was given this form by this session; the form is spent."""
        account = await self._parts.browsers.account(request)
        data = await self._parts.tickets.look(kind, form.get("ticket", ""))
        if account is None or data is None or data["session"] != self._parts.browsers.session_id(request):
            return None
        spent = await self._parts.tickets.take(kind, form["ticket"])
        return (account, data) if spent is not None and data["account"] == account.name else None

    @with_form
    async def new(self, request: Request, form: Form) -> Response:
        """Whoever finds a browser that is signed in must not be able to stay: the password is asked for again."""
        parts, owner, place = self._parts, await self._owner(request, form, "passkeys"), self._place(request)
        if owner is None or place is None or ":" in owner[0].name:
            return pages.problem(TOO_OLD, 403)
        account, name = owner[0], form.get("name", "").strip().replace(" ", "-")
        try:
            address = request.client.host if request.client else ""
            proved = await parts.accounts.prove(account.name, form.get("password", ""), address)
        except TooManyTries:
            return await self._show(request, account, "Too many tries. Please wait, then try again.")
        if proved is None:
            parts.record(request, account.subject, "passkey added", failure="wrong password")
            return await self._show(request, account, "The password is wrong.")
        data = {"session": parts.browsers.session_id(request), "account": account.name, "name": name}
        data["challenge"] = challenge()
        ticket = await parts.tickets.issue("passkey new", data, CHALLENGE_S)
        options = await parts.passkeys.creation(place, account.name, data["challenge"])
        return _with_script("Add a passkey", f"{PATH}/made", ticket, options, "Make the passkey")

    @with_form
    async def made(self, request: Request, form: Form) -> Response:
        parts, owner, place = self._parts, await self._owner(request, form, "passkey new"), self._place(request)
        if owner is None or place is None:
            return pages.problem(TOO_OLD, 403)
        account, data = owner
        try:
            await parts.passkeys.add(place, account.name, data["name"], data["challenge"], form.get("credential", ""))
        except PasskeyRefused as exc:
            parts.record(request, account.subject, "passkey added", failure=str(exc))
            return await self._show(request, account, "The passkey was not taken.")
        except SettingsError as exc:
            return await self._show(request, account, str(exc))
        parts.record(request, account.subject, "passkey added")
        return RedirectResponse(PATH, 303)

    @with_form
    async def remove(self, request: Request, form: Form) -> Response:
        owner = await self._owner(request, form, "passkeys")
        if owner is None:
            return pages.problem(TOO_OLD, 403)
        account = owner[0]
        try:
            await self._parts.passkeys.remove(account.name, form.get("name", ""))
        except SettingsError:
            return await self._show(request, account, "It is gone already.")
        self._parts.record(request, account.subject, "passkey removed")
        return RedirectResponse(PATH, 303)


TOO_OLD: Final = "This form is too old, or not yours. Open the page of your passkeys again."
NOT_HERE: Final = (
    "Browsers use passkeys only where the gateway has a name: at its public https:// address, or as localhost on this "
    "machine."
)


def _day(at: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(at))


def _with_script(title: str, action: str, ticket: str, options: str, button: str) -> Response:
    body = (
        f"<noscript>{pages.alert('Passkeys need scripts, which are off here. Use your password.')}</noscript>"
        f'<form id="passkey" method="post" action="{action}" data-options="{escape(options)}">'
        f'<input type="hidden" name="ticket" value="{ticket}"><input type="hidden" name="credential" value="">'
        f'<p id="said" role="alert"></p><button id="go" class="yes" type="button">{button}</button></form>'
        f"<script>{SCRIPT}</script>"
    )
    return pages.page(title, body, script=_SCRIPT_HASH)
