"""The pages of a sign-in: a link that says where it leads, and where the provider sends the browser back to.

Knows HTTP and HTML; what a sign-in is, signins.py knows. Nothing here needs a script or is shown in a frame."""

from __future__ import annotations

import html
from collections.abc import Awaitable, Callable
from typing import Final
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from gateway.errors import GatewayError
from gateway.oauth.signins import TICKET_S, Signins, Ticket

COOKIE: Final = "lockgate_connect"
HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>
<style>body{{font:1.1rem/1.5 sans-serif;max-width:36rem;margin:3rem auto;padding:0 1rem}}</style></head>
<body><main><h1>{title}</h1>{body}</main></body></html>
"""


class ConnectPages:
    """`/connect/TICKET` and `/connect/callback`. Without a ticket there is nothing to see."""

    def __init__(self, signins: Signins, connected: Callable[[Ticket], Awaitable[str]]) -> None:
        """`connected` is told of each sign-in that came to its end; says what the server wants besides."""
        self._signins = signins
        self._connected = connected

    def routes(self) -> list[Route]:
        return [
            Route("/connect/callback", self._callback),
            Route("/connect/{ticket}", self._show),
            Route("/connect/{ticket}", self._open, methods=["POST"]),
        ]

    async def _show(self, request: Request) -> Response:
        ticket = self._signins.peek(request.path_params["ticket"])
        if ticket is None:
            return _failed("This link was used already or is too old. Ask for a new one.")
        entry, url = ticket.entry, ticket.entry.remote.url if ticket.entry.remote else ""
        provider = entry.oauth.provider if entry.oauth else ""
        text = (
            f"<p>The server <strong>{_safe(entry.title)}</strong> ({_safe(entry.id)}) at "
            f"<strong>{_safe(urlsplit(url).netloc)}</strong> wants you to sign in at {_safe(provider)}.</p>"
            f"<p>What you allow there, the server does for the user <strong>{_safe(ticket.principal)}</strong>. "
            "Go on only if that is you and you asked for this.</p>"
            '<form method="post"><button type="submit">Go on</button></form>'
        )
        return _page("Sign in", text)

    async def _open(self, request: Request) -> Response:
        try:
            begun = await self._signins.begin(request.path_params["ticket"])
        except GatewayError as exc:
            return _failed(str(exc))
        answer = RedirectResponse(begun.location, 303, headers=HEADERS)
        secure = self._signins.base.startswith("https:")
        answer.set_cookie(
            COOKIE, begun.cookie, int(TICKET_S), path="/connect", secure=secure, httponly=True, samesite="lax"
        )
        return answer

    async def _callback(self, request: Request) -> Response:
        query = request.query_params
        given = {name: query[name] for name in ("state", "code", "iss", "error") if len(query.getlist(name)) == 1}
        try:
            ticket = await self._signins.finish(given, request.cookies.get(COOKIE, ""))
        except GatewayError as exc:
            return _failed(str(exc))
        besides = await self._connected(ticket)
        text = f"{ticket.entry.title} can be used now. You may close this page."
        answer = _page("Signed in", f"<p>{_safe(besides or text)}</p>")
        answer.delete_cookie(COOKIE, path="/connect")
        return answer


def _page(title: str, body: str, status: int = 200) -> HTMLResponse:
    return HTMLResponse(PAGE.format(title=title, body=body), status, HEADERS)


def _failed(why: str) -> HTMLResponse:
    return _page("Not signed in", f"<p>{_safe(why)}</p>", 400)


def _safe(text: str) -> str:
    return html.escape(text, quote=True)
