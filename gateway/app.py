"""The HTTP application: routes, and the guard in front of them.

Knows paths; each path's work is done by the module it names."""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import Final
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from catalog import CatalogError
from gateway.admin import AdminApi
from gateway.gateway import Gateway
from gateway.openai import OpenAiApi
from gateway.wire.http import McpEndpoint
from policies import Principal


class Front:
    """Refuses, on every route and before any body is read, what a page in a browser could have sent here, and bodies
    that are packed; then passes the default MCP endpoint straight on and everything else to the router.

    Host must be a loopback name (DNS rebinding), and Origin, if any, too (MCP 2025-11-25, basic/transports,
    "Security Warning").
    """

    def __init__(self, mcp: ASGIApp, router: ASGIApp) -> None:
        self._mcp = mcp
        self._router = router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (refusal := _refusal(scope)) is not None:
            await refusal(scope, receive, send)
            return
        # The router costs a tenth of a call's time, and nearly every request is one of these.
        app = self._mcp if scope["type"] == "http" and scope["path"] == "/mcp" else self._router
        await app(scope, receive, send)


def _refusal(scope: Scope) -> Response | None:
    hosts = 0
    foreign = packed = False
    for name, value in scope["headers"]:
        if name == b"host":
            hosts += 1
            foreign = foreign or not _names_loopback(b"//" + value)
        elif name == b"origin":
            foreign = foreign or not (value.startswith((b"http://", b"https://")) and _names_loopback(value))
        elif name == b"content-encoding":
            packed = True
    if foreign or hosts != 1:
        return PlainTextResponse("Forbidden: Host or Origin is not this machine\n", 403)
    if packed:
        return PlainTextResponse("Content-Encoding is not accepted; send the body as it is\n", 415)
    return None


@lru_cache(maxsize=256)
def _names_loopback(url: bytes) -> bool:
    name = _hostname(url)
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _hostname(value: bytes) -> str:
    text = value.decode("latin-1")
    if "@" in text:
        return ""
    try:
        return urlsplit(text).hostname or ""
    except ValueError:
        return ""


class Mcp:
    """The MCP endpoint of the default profile at /mcp and of every profile at /p/NAME/mcp."""

    def __init__(self, gateway: Gateway, endpoint: McpEndpoint) -> None:
        self._gateway = gateway
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = scope.get("path_params", {}).get("profile")
        try:
            profile = self._gateway.catalog.profile(name) if name else self._gateway.profile
        except CatalogError:
            await PlainTextResponse("No such profile\n", 404)(scope, receive, send)
            return
        await self._endpoint.serve(profile, scope, receive, send)


_LOCAL: Final = Principal("local")


def loopback_principal(scope: Scope) -> Principal:
    """Everybody who reaches a loopback listener is the local user."""
    return _LOCAL


def create_app(gateway: Gateway, endpoint: McpEndpoint, admin_token: str) -> ASGIApp:
    """The application over an entered gateway. `admin_token` opens the admin API."""
    admin = AdminApi(gateway, admin_token)
    openai = OpenAiApi(gateway.models)
    mcp = Mcp(gateway, endpoint)

    async def health(request: Request) -> Response:
        """Whether the gateway lives, and whether servers can start in containers; no reasons, which name places."""
        containers, _ = await gateway.engine.now()
        return JSONResponse({"status": "ok", "containers": containers})

    app = Starlette(
        routes=[
            Route("/p/{profile}/mcp", mcp),
            Route("/v1/models", openai.list_models),
            Route("/v1/chat/completions", openai.chat_completions, methods=["POST"]),
            Route("/healthz", health),
            *admin.routes(),
        ],
    )
    return Front(mcp, app)
