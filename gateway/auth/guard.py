"""The gate before every path: a bearer token for what is protected, or the challenge that says how to get one.

Knows HTTP (RFC 6750, RFC 9728); credentials are the authenticator's."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.audit import Audit, AuditUnwritable, call_id, signed_in
from gateway.auth.authenticator import Authenticator, Credential
from gateway.auth.errors import AuthError, BadCredential, IssuerUnreachable
from gateway.auth.resources import METADATA, SCOPES, Names, Resource, resource_at, resource_named
from policies import Principal

PRINCIPAL: Final = "lockgate.principal"
"""Where a request's scope carries who makes it."""
MAX_RECORDS_A_MINUTE: Final = 60
"""Failures that are written down: whoever sends nonsense must not fill the disk with it."""
RETRY_AFTER_S: Final = 5


def authenticated_principal(scope: Scope) -> Principal:
    """Who makes a request that passed the guard."""
    principal: Principal = scope[PRINCIPAL]
    return principal


class Gate:
    """One application behind the guard."""

    def __init__(self, guard: Guard, app: ASGIApp) -> None:
        self.guard = guard
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        resource = _resource_at(scope["path"])
        if resource is not None and (refusal := await self.guard.admit(scope, resource)) is not None:
            await refusal(scope, receive, send)
            return
        await self.app(scope, receive, send)


class Guard:
    """Lets a request pass when its token is good, is for this resource, and has its scope."""

    def __init__(
        self,
        authenticator: Authenticator,
        names: Names,
        issuers: tuple[str, ...],
        audit: Audit,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`issuers` are the authorization servers that clients are sent to; without one there are only API keys."""
        self.authenticator = authenticator
        self.names = names
        self.issuers = issuers
        self._audit = audit
        self._clock = clock
        self._audiences = lru_cache(maxsize=256)(names.audiences)
        self._minute = 0
        self._recorded = 0

    def around(self, app: ASGIApp) -> ASGIApp:
        """The application behind this gate."""
        return Gate(self, app)

    async def admit(self, scope: Scope, resource: Resource) -> Response | None:
        """Note who makes the request; what to answer instead if it may not pass."""
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if not given and scope["path"] == "/v1/messages":  # how clients of Anthropic's API send their key
            given = [b"Bearer " + value for name, value in scope["headers"] if name == b"x-api-key"]
        if b"access_token=" in scope.get("query_string", b""):
            return self._refusal(scope, resource, 400, "invalid_request", "a token belongs in the Authorization header")
        if not given:
            return self._refusal(scope, resource, 401, "", "")
        kind, _, token = given[0].partition(b" ")
        if len(given) > 1 or not token:
            return self._refusal(scope, resource, 400, "invalid_request", "one Authorization header with one token")
        if kind.lower() != b"bearer":
            return self._refusal(scope, resource, 401, "", "")
        credential = self.authenticator.remembered(token)
        if credential is None:
            try:
                credential = await self.authenticator.check(token)
            except IssuerUnreachable as exc:
                self._record_failure(scope, exc)
                headers = {"Retry-After": str(RETRY_AFTER_S)}
                return JSONResponse({"error": "temporarily_unavailable"}, 503, headers)
            except AuthError as exc:
                self._record_failure(scope, exc)
                return self._refusal(scope, resource, 401, "invalid_token", "the token is not good here")
            self._record(scope, "token", credential)
        if credential.audiences is not None and credential.audiences.isdisjoint(self._audiences(resource)):
            self._record_failure(scope, BadCredential("the token is for another resource"))
            return self._refusal(scope, resource, 401, "invalid_token", "the token is not good here")
        scopes = credential.principal.scopes
        if scopes is not None and resource.scope not in scopes:
            return self._refusal(scope, resource, 403, "insufficient_scope", f"this needs the scope {resource.scope}")
        scope[PRINCIPAL] = credential.principal
        return None

    def _refusal(self, scope: Scope, resource: Resource, status: int, error: str, text: str) -> Response:
        host = next((value for name, value in scope["headers"] if name == b"host"), b"")
        parts = [f'resource_metadata="{self.names.under(host)}{METADATA}{resource.path}"'] if self.issuers else []
        parts.append(f'scope="{resource.scope}"')
        if error:
            parts += [f'error="{error}"', f'error_description="{text}"']
        message = text or "sign in: send Authorization: Bearer and a token or an API key"
        body: dict[str, Any] = {"error": error or "unauthorized", "error_description": message}
        if resource.path == "/v1":
            body = {"error": {"message": message, "type": error or "unauthorized", "code": status}}
        return Response(
            json.dumps(body),
            status,
            {"WWW-Authenticate": "Bearer " + ", ".join(parts), "Cache-Control": "no-store"},
            media_type="application/json",
        )

    def _record(self, scope: Scope, what: str, credential: Credential) -> None:
        principal = credential.principal
        if principal.kind != "loopback":
            self._write(signed_in(call_id(), principal.id, what, _peer(scope), client=principal.client))

    def _record_failure(self, scope: Scope, failure: AuthError) -> None:
        minute = int(self._clock() // 60)
        if minute != self._minute:
            self._minute, self._recorded = minute, 0
        self._recorded += 1
        if self._recorded <= MAX_RECORDS_A_MINUTE:
            self._write(signed_in(call_id(), "", "token", _peer(scope), failure=str(failure)))

    def _write(self, record: Any) -> None:
        with suppress(AuditUnwritable):  # the call itself is refused by the door for the same reason
            self._audit.write(record)

    # -- what tells clients how to sign in (RFC 9728) ----------------------------------------------

    def routes(self) -> list[Route]:
        if not self.issuers:
            return []
        return [Route(METADATA, self._metadata), Route(METADATA + "/{path:path}", self._metadata)]

    async def _metadata(self, request: Request) -> Response:
        path = "/" + str(request.path_params.get("path", "mcp"))
        resource = resource_named(path)
        if resource is None:
            return JSONResponse({"error": "no such resource"}, 404)
        document = {
            "resource": self.names.under(request.headers.get("host", "").encode("latin-1")) + resource.path,
            "authorization_servers": list(self.issuers),
            "scopes_supported": [scope for scope in SCOPES if scope == resource.scope],
            "bearer_methods_supported": ["header"],
            "resource_name": f"Lockgate {resource.path}",
        }
        return JSONResponse(document, headers={"Cache-Control": "public, max-age=300"})


_resource_at = lru_cache(maxsize=512)(resource_at)


def _peer(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else ""
