"""The pages of signing in: plain HTML that works without scripts, styles of its own and nothing from elsewhere.

Knows what is shown; every text that is not ours is escaped."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from typing import Final

from starlette.responses import HTMLResponse

STYLE: Final = (
    "body{font:1rem/1.5 system-ui,sans-serif;max-width:34rem;margin:3rem auto;padding:0 1rem;color:#111}"
    "h1{font-size:1.4rem}label{display:block;margin:1rem 0 .25rem;font-weight:600}"
    "input{font:inherit;width:100%;box-sizing:border-box;padding:.5rem;border:1px solid #767676;border-radius:4px}"
    "button{font:inherit;padding:.6rem 1.2rem;margin:1.2rem .6rem 0 0;border:1px solid #333;border-radius:4px;"
    "background:#fff;color:#111}button.yes{background:#0b4f8a;border-color:#0b4f8a;color:#fff}"
    "dt{font-weight:600;margin-top:.6rem}dd{margin:0;overflow-wrap:anywhere}"
    ".warning{border-left:4px solid #a15c00;padding:.2rem 1rem;background:#fff6e5}"
    ".error{border-left:4px solid #b00020;padding:.2rem 1rem;background:#fdecee}"
)
_STYLE_HASH: Final = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()


def page(title: str, body: str, *, status: int = 200, form_to: str = "", script: str = "") -> HTMLResponse:
    """A whole page. `form_to` is where a form may lead beside this gateway; `script` is the SHA-256 of its only one."""
    action = f"'self' {form_to}" if form_to else "'self'"
    scripts = f"script-src 'sha256-{script}'; " if script else ""
    policy = (
        f"default-src 'none'; {scripts}style-src 'sha256-{_STYLE_HASH}'; form-action {action}; frame-ancestors 'none'; "
        "base-uri 'none'"
    )
    text = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)} · Lockgate</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>'
        f"<body><main><h1>{escape(title)}</h1>{body}</main></body></html>"
    )
    headers = {
        "Content-Security-Policy": policy,
        "X-Frame-Options": "DENY",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "same-origin",
        "Cache-Control": "no-store",
        "Cross-Origin-Opener-Policy": "same-origin",
    }
    return HTMLResponse(text, status, headers)


def problem(message: str, status: int = 400) -> HTMLResponse:
    """What went wrong, for the person; nobody is sent anywhere."""
    return page("This did not work", f'<p class="error" role="alert">{escape(message)}</p>', status=status)


def alert(message: str) -> str:
    return f'<p class="error" role="alert">{escape(message)}</p>' if message else ""


def login(
    form: str, following: str, provider: str, error: str = "", provider_origin: str = "", *, passkeys: bool = False
) -> HTMLResponse:
    hidden = _hidden("form", form) + _hidden("next", following)
    body = (
        f'{alert(error)}<form method="post" action="/oauth/login">{hidden}'
        '<label for="name">Account</label>'
        '<input id="name" name="name" autocomplete="username" autocapitalize="none" required autofocus>'
        '<label for="password">Password</label>'
        '<input id="password" name="password" type="password" autocomplete="current-password" required>'
        '<button class="yes" type="submit">Sign in</button></form>'
    )
    if passkeys:
        body += (
            f'<form method="post" action="/oauth/login/passkey">{hidden}'
            '<button type="submit">Sign in with a passkey</button></form>'
        )
    if provider:
        body += (
            f'<form method="post" action="/oauth/login/provider">{hidden}'
            f'<button type="submit">Sign in with {escape(provider)}</button></form>'
        )
    return page("Sign in", body, status=401 if error else 200, form_to=provider_origin)


def setup(form: str, error: str = "") -> HTMLResponse:
    body = (
        f"{alert(error)}<p>This gateway has no account yet. The code was printed where it runs; "
        "<code>lockgate user bootstrap</code> prints a new one.</p>"
        f'<form method="post" action="/oauth/setup">{_hidden("form", form)}'
        '<label for="code">Code</label><input id="code" name="code" autocomplete="off" required>'
        '<label for="name">Account</label>'
        '<input id="name" name="name" autocomplete="username" autocapitalize="none" required>'
        '<label for="password">Password</label>'
        '<input id="password" name="password" type="password" autocomplete="new-password" required>'
        '<button class="yes" type="submit">Create the first administrator</button></form>'
    )
    return page("Set up", body, status=400 if error else 200)


def consent(
    ticket: str,
    *,
    account: str,
    client: str,
    vouched: str,
    resource: str,
    scopes: list[tuple[str, str]],
    target: str,
    loopback: bool,
    form_to: str,
) -> HTMLResponse:
    """Ask whether a client may act for whoever is signed in. `target` is where the browser goes afterwards."""
    named = f"{escape(client)}" if client else "A client without a name"
    vouch = (
        f"<dd>published at <strong>{escape(vouched)}</strong></dd>"
        if vouched
        else "<dd>it registered itself: nobody vouches for its name</dd>"
    )
    rights = "".join(f"<li>{escape(text)} (<code>{escape(scope)}</code>)</li>" for scope, text in scopes)
    warning = (
        '<p class="warning" role="note">Afterwards you are sent to a program on your own computer. Any program '
        "there could have started this: go on only if you did.</p>"
        if loopback
        else ""
    )
    body = (
        f"<p><strong>{named}</strong> asks to use this gateway as <strong>{escape(account)}</strong>.</p>"
        f"<dl><dt>Client</dt>{vouch}<dt>It may</dt><dd><ul>{rights}</ul></dd>"
        f"<dt>At</dt><dd>{escape(resource)}</dd><dt>Then you are sent to</dt>"
        f'<dd><strong id="target">{escape(target)}</strong></dd></dl>{warning}'
        f'<form method="post" action="/oauth/consent">{_hidden("ticket", ticket)}'
        '<button class="yes" type="submit" name="answer" value="allow">Allow</button>'
        '<button type="submit" name="answer" value="deny">Do not allow</button></form>'
        '<form method="post" action="/oauth/logout">'
        f'{_hidden("ticket", ticket)}<button type="submit">Sign in as somebody else</button></form>'
    )
    return page("Allow this client?", body, form_to=form_to)


def device(form: str, error: str = "") -> HTMLResponse:
    body = (
        f"{alert(error)}<p>Enter the code that the device shows. Go on only if you started this yourself.</p>"
        f'<form method="post" action="/oauth/device">{_hidden("form", form)}<label for="code">Code</label>'
        '<input id="code" name="code" autocomplete="off" autocapitalize="characters" required autofocus>'
        '<button class="yes" type="submit">Continue</button></form>'
    )
    return page("Connect a device", body, status=400 if error else 200)


def _hidden(name: str, value: str) -> str:
    return f'<input type="hidden" name="{name}" value="{escape(value)}">'
