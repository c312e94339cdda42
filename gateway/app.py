"""The HTTP application: routes, and the guard in front of them.

Knows paths; each path's work is done by the module it names."""

from __future__ import annotations

from functools import lru_cache
from typing import Final
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from catalog import CatalogError
from catalog.reference import is_loopback
from gateway.admin import AdminApi
from gateway.apis import model_routes
from gateway.auth.guard import Guard
from gateway.auth.resources import Names
from gateway.gateway import Gateway
from gateway.oauth.pages import ConnectPages
from gateway.signin.server import AuthorizationServer
from gateway.wire.http import NO_SUCH_PROFILE, McpEndpoint
from policies import Principal


class Front:
    """Refuses, on every route and before any body is read, what a page in a browser could have sent here, and bodies
    that are packed; then passes the default MCP endpoint straight on and everything else to the router.

    Host must be a loopback name or the gateway's own (DNS rebinding), and Origin, if any, too (MCP 2025-11-25,
    basic/transports, "Security Warning").
    """

    def __init__(self, mcp: ASGIApp, router: ASGIApp, names: Names | None = None) -> None:
        """`names` are what the gateway is called where that is not the name of a loopback listener."""
        self._mcp = mcp
        self._router = router
        bases = names.bases if names is not None else ()
        self._hosts = frozenset(urlsplit(base).netloc.lower().encode() for base in bases)
        self._origins = frozenset(base.lower().encode() for base in bases)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (refusal := self._refusal(scope)) is not None:
            await refusal(scope, receive, send)
            return
        # The router costs a tenth of a call's time, and nearly every request is one of these.
        app = self._mcp if scope["type"] == "http" and scope["path"] == "/mcp" else self._router
        await app(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        hosts = 0
        foreign = packed = False
        for name, value in scope["headers"]:
            if name == b"host":
                hosts += 1
                foreign = foreign or not (_names_loopback(b"//" + value) or value.lower() in self._hosts)
            elif name == b"origin":
                foreign = foreign or not (_is_local_origin(value) or value in self._origins)
            elif name == b"content-encoding":
                packed = True
        if foreign or hosts != 1:
            return PlainTextResponse("Forbidden: Host or Origin is not this machine\n", 403)
        if packed:
            return PlainTextResponse("Content-Encoding is not accepted; send the body as it is\n", 415)
        return None


def _is_local_origin(value: bytes) -> bool:
    return value.startswith((b"http://", b"https://")) and _names_loopback(value)


@lru_cache(maxsize=256)
def _names_loopback(url: bytes) -> bool:
    return is_loopback(_hostname(url))


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
            await NO_SUCH_PROFILE(scope, receive, send)
            return
        await self._endpoint.serve(profile, scope, receive, send, follows_default=not name)


_LOCAL: Final = Principal("local")


def loopback_principal(scope: Scope) -> Principal:
    """Everybody who reaches a loopback listener is the local user."""
    return _LOCAL


def create_app(
    gateway: Gateway,
    endpoint: McpEndpoint,
    admin_token: str,
    guard: Guard | None = None,
    server: AuthorizationServer | None = None,
) -> ASGIApp:
    """The application over an entered gateway. `admin_token` opens the admin API; `guard` asks callers to sign in,
    `server` is where."""
    admin = AdminApi(gateway, admin_token, guard)
    mcp = Mcp(gateway, endpoint)

    async def health(request: Request) -> Response:
        """Whether the gateway lives, and whether servers can start in containers; no reasons, which name places."""
        containers, _ = await gateway.engine.now()
        return JSONResponse({"status": "ok", "containers": containers})

    app = Starlette(
        routes=[
            Route("/p/{profile}/mcp", mcp),
            *model_routes(gateway.models, gateway.model_uses, endpoint.principal_of),
            Route("/healthz", health),
            *admin.routes(),
            *ConnectPages(gateway.signins, gateway.signed_in).routes(),
            *(guard.routes() if guard is not None else ()),
            *(
                server.routes(guard.authenticator, gateway.door.approvals, gateway.administration)
                if server is not None and guard is not None
                else ()
            ),
        ],
    )
    if guard is None:
        return Front(mcp, app)
    return Front(guard.around(mcp), guard.around(app), guard.names)
