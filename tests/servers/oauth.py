"""A remote MCP server that wants tokens, and a strict authorization server beside it: real sockets, one process.

What it refuses it says in `refused`; everything it is asked is in `requests`. Knows nothing of the gateway."""

import asyncio
import base64
import hashlib
import json
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, urlencode

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

PRM = "/.well-known/oauth-protected-resource"
REVISION = "2025-11-25"


class Provider:
    """`changes` are put over the metadata; `life_s` is how long a token lives. Refresh tokens are used once: a second
    use ends the grant."""

    def __init__(self, life_s: int = 3600, **changes: Any) -> None:
        self.url = ""
        self.life_s = life_s
        self.changes = changes
        self.requests: list[tuple[str, str, dict[str, str], dict[str, str]]] = []
        self.clients: dict[str, dict[str, Any]] = {}
        self.codes: dict[str, dict[str, str]] = {}
        self.tokens: dict[str, dict[str, str]] = {}
        self.refreshes: dict[str, dict[str, str]] = {}
        self.used: set[str] = set()
        self.user = "alice at the provider"
        self.n_refreshed = 0
        self.says_issuer: str | None = None
        """`iss` in the answer in place of the right one."""
        self.needs = "read"
        self.needed_for = ("tools/call",)
        """The methods that want the scope `needs`."""

    @property
    def resource(self) -> str:
        return f"{self.url}/mcp"

    # -- metadata ----------------------------------------------------------------------------

    async def protected(self, request: Request) -> Response:
        found = {"resource": self.resource, "authorization_servers": [self.url], "scopes_supported": ["read"]}
        return JSONResponse(found | self.changes.get("protected", {}))

    async def metadata(self, request: Request) -> Response:
        found = {
            "issuer": self.url,
            "authorization_endpoint": f"{self.url}/authorize",
            "token_endpoint": f"{self.url}/token",
            "registration_endpoint": f"{self.url}/register",
            "revocation_endpoint": f"{self.url}/revoke",
            "code_challenge_methods_supported": ["S256"],
            "token_endpoint_auth_methods_supported": ["none"],
            "authorization_response_iss_parameter_supported": True,
        }
        return JSONResponse(
            {name: v for name, v in (found | self.changes.get("metadata", {})).items() if v is not None}
        )

    # -- the authorization server ------------------------------------------------------------

    async def register(self, request: Request) -> Response:
        asked = await request.json()
        id = secrets.token_hex(8)
        self.clients[id] = asked
        return JSONResponse({**asked, "client_id": id}, 201)

    async def authorize(self, request: Request) -> Response:
        query = dict(request.query_params)
        client = self.clients.get(query.get("client_id", ""))
        fits = (
            client is not None
            and query.get("redirect_uri") in client["redirect_uris"]
            and query.get("response_type") == "code"
            and query.get("code_challenge_method") == "S256"
            and len(query.get("code_challenge", "")) == 43
            and query.get("resource") == self.resource
            and query.get("state")
        )
        if not fits:
            return JSONResponse({"error": "invalid_request", "query": query}, 400)
        code = secrets.token_hex(8)
        self.codes[code] = {**query, "user": self.user}
        answer = {"code": code, "state": query["state"], "iss": self.says_issuer or self.url}
        return RedirectResponse(f"{query['redirect_uri']}?{urlencode(answer)}", 302)

    async def token(self, request: Request) -> Response:
        form = {name: values[0] for name, values in parse_qs((await request.body()).decode()).items()}
        self.requests.append(("POST", "/token", dict(request.headers), form))
        if form.get("resource") != self.resource or form.get("client_id") not in self.clients:
            return JSONResponse({"error": "invalid_request"}, 400)
        if form.get("grant_type") == "authorization_code":
            known = self.codes.pop(form.get("code", ""), None)
            digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
            challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
            if known is None or known["code_challenge"] != challenge or known["redirect_uri"] != form["redirect_uri"]:
                return JSONResponse({"error": "invalid_grant"}, 400)
        elif form.get("grant_type") == "refresh_token":
            known = self.refreshes.get(form.get("refresh_token", ""))
            if known is None or form["refresh_token"] in self.used:
                self.refreshes.clear()
                self.tokens.clear()
                return JSONResponse({"error": "invalid_grant"}, 400)
            self.used.add(form["refresh_token"])
            self.n_refreshed += 1
        else:
            return JSONResponse({"error": "unsupported_grant_type"}, 400)
        access, refresh = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
        self.tokens[access] = self.refreshes[refresh] = known
        return JSONResponse(
            {
                "access_token": access,
                "token_type": "Bearer",
                "expires_in": self.life_s,
                "refresh_token": refresh,
                "scope": known.get("scope", ""),
            }
        )

    async def revoke(self, request: Request) -> Response:
        form = parse_qs((await request.body()).decode())
        known = self.refreshes.pop(form["token"][0], None)
        self.tokens = {token: grant for token, grant in self.tokens.items() if grant is not known}
        return Response(status_code=200)

    # -- the MCP server ----------------------------------------------------------------------

    async def mcp(self, request: Request) -> Response:
        body = await request.body()
        message = json.loads(body) if body else {}
        self.requests.append((request.method, "/mcp", dict(request.headers), message.get("params") or {}))
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        grant = self.tokens.get(token) if kind == "Bearer" else None
        said = f'Bearer resource_metadata="{self.url}{PRM}/mcp"'
        if grant is None:
            return Response(status_code=401, headers={"WWW-Authenticate": said})
        if message.get("method") in self.needed_for and self.needs not in grant.get("scope", "").split():
            said += f', error="insufficient_scope", scope="{self.needs}"'
            return Response(status_code=403, headers={"WWW-Authenticate": said})
        if request.method != "POST":
            return Response(status_code=405)
        if "id" not in message:
            return Response(status_code=202)
        result: dict[str, Any] = {}
        match message["method"]:
            case "initialize":
                info = {"name": "far", "version": "1"}
                result = {"protocolVersion": REVISION, "capabilities": {"tools": {}}, "serverInfo": info}
            case "tools/list":
                tool = {"name": "whoami", "description": "Says who is asking.", "inputSchema": {"type": "object"}}
                result = {"tools": [tool]}
            case "tools/call":
                result = {"content": [{"type": "text", "text": f"{grant['user']}; {grant.get('scope', '')}"}]}
            case "ping":
                result = {}
            case _:
                error = {"code": -32601, "message": "Method not found"}
                return JSONResponse({"jsonrpc": "2.0", "id": message["id"], "error": error})
        return JSONResponse({"jsonrpc": "2.0", "id": message["id"], "result": result})

    def routes(self) -> list[Route]:
        return [
            Route(f"{PRM}/mcp", self.protected),
            Route("/.well-known/oauth-authorization-server", self.metadata),
            Route("/register", self.register, methods=["POST"]),
            Route("/authorize", self.authorize),
            Route("/token", self.token, methods=["POST"]),
            Route("/revoke", self.revoke, methods=["POST"]),
            Route("/mcp", self.mcp, methods=["GET", "POST", "DELETE"]),
        ]


@asynccontextmanager
async def providing(provider: Provider) -> AsyncIterator[Provider]:
    config = uvicorn.Config(Starlette(routes=provider.routes()), port=0, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        provider.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        serving = asyncio.get_running_loop().create_task(server._serve([listener]))
        try:
            yield provider
        finally:
            server.should_exit = server.force_exit = True
            await asyncio.gather(serving, return_exceptions=True)
