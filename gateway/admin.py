"""The admin API that the command line uses: what runs here, its log, and stopping it.

Knows HTTP and the admin token; shows state, holds none."""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any, Final

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from catalog import CatalogError
from gateway import errors
from gateway.administration import Act
from gateway.agentadmin import AgentAdmin
from gateway.approvaladmin import ApprovalAdmin
from gateway.audit import AuditUnwritable, call_id, signed_in
from gateway.auth.authenticator import LOCAL
from gateway.auth.guard import PRINCIPAL, Guard
from gateway.boundedbody import body_within
from gateway.gateway import Gateway
from gateway.oauth.signins import signs_in
from gateway.pool import Server
from gateway.reload import summary
from gateway.vault.desk import MAX_BODY_BYTES, VaultDesk, subject
from policies import Principal

_log: Final = logging.getLogger(__name__)

Handler = Callable[[Request], Awaitable[Response]]


class _TooLong(errors.GatewayError):
    """A body with more bytes than anybody needs."""


def describe(server: Server, runtime: str, lacks: str = "") -> dict[str, Any]:
    """One server as an operator sees it. `lacks` says why it could not be started now."""
    listing, upstream, now = server.listing, server.upstream, asyncio.get_running_loop().time()
    return {
        "id": server.entry.id,
        "entry": server.entry.entry_id,
        "title": server.entry.title,
        "state": server.state,
        # What is not running says what would run it: that may be something else than the last time.
        "runtime": server.runtime if server.connections and not runtime.startswith(server.runtime) else runtime,
        "tools": len(listing.tools) if listing else None,
        "kept_back": server.kept_back,
        "prompts": len(listing.prompts) if listing else None,
        "resources": len(listing.resources) if listing else None,
        "error": server.error,
        "lacks": lacks,
        "circuit": server.breaker.circuit(now),
        "failures": server.failures,
        "retry_in_s": round(server.breaker.pause_s(now), 1),
        "connections": len(server.connections),
        "in_flight": upstream.in_flight if upstream else 0,
        "detail": upstream.detail if upstream else {},
        "revision": upstream.facts.revision if upstream and upstream.facts else "",
    }


class AdminApi:
    """Every route wants the admin token, which only this machine's user can read from the state folder; or, where
    callers sign in, a credential with the scope `admin`."""

    def __init__(self, gateway: Gateway, token: str, guard: Guard | None = None) -> None:
        self._gateway = gateway
        self._token = token
        self._guard = guard

    def routes(self) -> list[Route]:
        guarded = self._guarded
        return [
            Route("/admin/credentials/changed", guarded(self._credentials_changed, ""), methods=["POST"]),
            Route("/admin/catalog", guarded(self._catalog, "catalog", "show")),
            Route("/admin/catalog/reload", guarded(self._reload, "catalog", "reload"), methods=["POST"]),
            Route("/admin/profiles/{name}/use", guarded(self._use, "profiles", "use"), methods=["POST"]),
            Route("/admin/reviews", guarded(self._reviews, "reviews", "list")),
            Route("/admin/reviews/{server}/{decision}", guarded(self._review, "reviews"), methods=["POST"]),
            Route("/admin/oauth", guarded(self._oauth_list, "connections", "list")),
            Route("/admin/oauth/{id}/{verb}", guarded(self._oauth, "connections"), methods=["POST"]),
            Route("/admin/secrets/{verb}", guarded(self._secrets, "secrets"), methods=["POST"]),
            Route("/admin/servers", guarded(self._servers, "servers", "list")),
            Route("/admin/servers/{id}", guarded(self._server, "servers", "show")),
            Route("/admin/servers/{id}/logs", guarded(self._logs, "servers", "logs")),
            Route("/admin/servers/{id}/egress", guarded(self._egress, "servers", "egress")),
            Route("/admin/servers/{id}/start", guarded(self._start, "servers", "start"), methods=["POST"]),
            Route("/admin/servers/{id}/stop", guarded(self._stop, "servers", "stop"), methods=["POST"]),
            *ApprovalAdmin(self._gateway.door.approvals, self._is_local).routes(guarded),
            *AgentAdmin(self._gateway, self._gateway.agent_uses, self._who).routes(guarded),
        ]

    def _guarded(self, handler: Handler, area: str, verb: str = "") -> Handler:
        """The handler for whom the way is open, if policy lets them do it in the area, and recorded if it changes
        something. Without a verb here the path has it; without an area it is no act of administration."""

        async def guarded(request: Request) -> Response:
            # A guard has asked for the scope `admin` already: without one there are no other credentials.
            if not self._is_local(request) and (self._guard is None or PRINCIPAL not in request.scope):
                return JSONResponse(
                    {"error": "the admin token is missing or wrong"}, 401, {"WWW-Authenticate": "Bearer"}
                )
            try:
                if not area:
                    return await handler(request)
                return await self._carried(request, handler, await self._act(request, area, verb))
            except (CatalogError, errors.UnknownName) as exc:
                return JSONResponse({"error": str(exc)}, 404)
            except errors.Denied as exc:
                return JSONResponse({"error": str(exc)}, 403)
            except errors.UpstreamError as exc:
                return JSONResponse({"error": str(exc)}, 502)
            except _TooLong as exc:
                return JSONResponse({"error": str(exc)}, 413)
            except errors.GatewayError as exc:
                return JSONResponse({"error": str(exc)}, 500)
            except AuditUnwritable as exc:
                _log.error("the gateway is not administered, as that cannot be recorded: %s", exc)
                return JSONResponse({"error": "this cannot be recorded, so it is not done or not told"}, 503)

        return guarded

    async def _carried(self, request: Request, handler: Handler, act: Act) -> Response:
        who = self._who(request)
        source = request.client.host if request.client is not None else ""
        with self._gateway.administration.act(who, act, source, who.client) as record:
            response = await handler(request)
            if response.status_code >= 400:
                record.outcome, record.detail = "error", f"HTTP {response.status_code}"
        return response

    async def _act(self, request: Request, area: str, verb: str) -> Act:
        """What is asked for, to the part of the gateway that the request names."""
        path, query = request.path_params, request.query_params
        verb = verb or path.get("verb") or path.get("decision") or ""
        changes = request.method == "POST"
        server, item, owner = "", "", ""
        match area:
            case "servers" | "connections" | "reviews":
                name = path.get("id") or path.get("server") or ""
                server = self._find(name).entry.entry_id if name else ""
                owner = (query.get("user") or LOCAL.id) if area == "connections" and name else ""
                item = query.get("tool", "") if area == "reviews" else ""
            case "profiles":
                item = path["name"]
            case "approvals":
                item = path.get("id", "")
                held = self._gateway.door.approvals.find(item)
                server = held.asked.server if held is not None else ""
            case "secrets":
                wish = subject(await self._body(request))
                item, owner = wish.name, wish.owner
                changes = verb not in ("list", "check") or wish.accept
        return Act(area, verb, changes, server, owner, item)

    def _who(self, request: Request) -> Principal:
        return LOCAL if self._is_local(request) else request.scope[PRINCIPAL]

    def _is_local(self, request: Request) -> bool:
        """Whether it is this machine's user who asks."""
        given = request.headers.get("authorization", "")
        return hmac.compare_digest(given.encode(), f"Bearer {self._token}".encode())

    async def _credentials_changed(self, request: Request) -> Response:
        """A command made or revoked a credential: write that down, and check all of them anew."""
        given = request.query_params
        self._gateway.audit.write(
            signed_in(call_id(), given.get("principal", "")[:128], given.get("what", "")[:64], "command line")
        )
        if self._guard is not None:
            self._guard.authenticator.forget_all()
        return JSONResponse({"checked": self._guard is not None})

    def _find(self, id: str) -> Server:
        """A server by its id; one that a profile gives another name also by that, where it is the only one."""
        servers = self._gateway.pool.servers
        named = [other for other in servers if other.partition(".")[0] == id]
        if id not in servers and len(named) == 1:
            return servers[named[0]]
        if id not in servers:
            self._gateway.catalog.entry(id)
        return servers[id]

    def _describe(self, server: Server) -> dict[str, Any]:
        return describe(server, *self._gateway.would_run(server.entry))

    async def _catalog(self, request: Request) -> Response:
        """Which catalog this gateway follows, and why the last reload failed, if it did."""
        catalog = self._gateway.catalog
        return JSONResponse(
            {
                "path": str(catalog.path),
                "entries": len(catalog.entries),
                "profiles": list(catalog.profiles),
                "default": self._gateway.profile.name,
                "error": self._gateway.catalog_watch.reason,
            }
        )

    async def _reload(self, request: Request) -> Response:
        """Load the catalog again; 422 with the reason if it cannot be taken, and everything stays as it was."""
        outcome = await self._gateway.catalog_watch.reload()
        if outcome.difference is None:
            return JSONResponse({"error": outcome.reason}, 422)
        refused = self._gateway.rulebook.refused(self._gateway.catalog)
        found = {"summary": summary(outcome.difference), "refused": refused}
        return JSONResponse({**found, **asdict(outcome.difference)})

    async def _use(self, request: Request) -> Response:
        """Serve another profile at /mcp."""
        profile = self._gateway.use(request.path_params["name"])
        return JSONResponse({"profile": profile.name, "title": profile.title})

    async def _reviews(self, request: Request) -> Response:
        """Every tool that waits for a person, with what changed."""
        pending = await to_thread.run_sync(self._gateway.reviews.pending)
        return JSONResponse({"reviews": [asdict(one) for one in pending]})

    async def _review(self, request: Request) -> Response:
        """Approve or reject one tool (`?tool=NAME`, `&seen=` the digest of what was looked at); its server offers what
        it may from then on."""
        server, decision = request.path_params["server"], request.path_params["decision"]
        if decision not in ("approve", "reject"):
            return JSONResponse({"error": f"{decision} is no decision; approve or reject"}, 422)
        tool, seen = request.query_params.get("tool", ""), request.query_params.get("seen", "")
        reviews = self._gateway.reviews
        await to_thread.run_sync(reviews.approve if decision == "approve" else reviews.reject, server, tool, seen)
        await self._gateway.pool.review_again(server)
        return JSONResponse({"server": server, "tool": tool, "decision": decision})

    async def _oauth_list(self, request: Request) -> Response:
        """Who is signed in at which server's provider."""
        return JSONResponse({"grants": self._gateway.signins.granted()})

    async def _oauth(self, request: Request) -> Response:
        """A link to sign in with (`connect`), or the end of a grant (`revoke`), for `?user=`."""
        server, verb = self._find(request.path_params["id"]), request.path_params["verb"]
        user = request.query_params.get("user") or LOCAL.id
        if verb not in ("connect", "revoke") or not signs_in(server.entry):
            return JSONResponse({"error": f"{server.entry.id} is no server that callers sign in for"}, 422)
        signins = self._gateway.signins
        if verb == "connect":
            return JSONResponse({"url": signins.link(user, server.entry)})
        told = await signins.revoke(user, server.entry)
        self._gateway.pool.end_credentials(server.entry.id, user)
        return JSONResponse({"server": server.entry.id, "owner": user, "provider_told": told})

    async def _secrets(self, request: Request) -> Response:
        """What `lockgate secret` asks for; see vault/desk.py. Only this machine's user names paths and programs."""
        desk = VaultDesk(self._gateway.vault, is_local=self._is_local(request))
        try:
            return JSONResponse(await desk.do(request.path_params["verb"], await self._body(request)))
        except errors.SecretsError as exc:
            return JSONResponse({"error": str(exc)}, 422)

    @staticmethod
    async def _body(request: Request) -> bytes:
        """
        Raises:
            _TooLong: it is.
        """
        if not hasattr(request.state, "body"):
            if (body := await body_within(request, MAX_BODY_BYTES)) is None:
                raise _TooLong(f"more than {MAX_BODY_BYTES} bytes")
            request.state.body = body
        found: bytes = request.state.body
        return found

    async def _servers(self, request: Request) -> Response:
        """The servers of one profile (`?profile=NAME`), of all with `?profile=*`, else of the default profile."""
        name = request.query_params.get("profile") or self._gateway.profile.name
        servers = self._gateway.pool.servers
        ids = list(servers) if name == "*" else list(self._gateway.catalog.profile(name).names)
        state, reason = await self._gateway.engine.now()
        return JSONResponse(
            {
                "profile": name,
                "containers": {"state": state, "reason": reason},
                "servers": [self._describe(servers[id]) for id in ids],
            }
        )

    async def _server(self, request: Request) -> Response:
        server = self._find(request.path_params["id"])
        listing = server.listing
        return JSONResponse(
            {
                **self._describe(server),
                "entry": server.entry.model_dump(mode="json"),
                "digest": server.entry.digest,
                "tool_names": [item.key for item in listing.tools] if listing else [],
            }
        )

    async def _logs(self, request: Request) -> Response:
        lines = self._find(request.path_params["id"]).log.lines()
        return JSONResponse({"lines": [{"at": line.at, "origin": line.origin, "text": line.text} for line in lines]})

    async def _egress(self, request: Request) -> Response:
        server = self._find(request.path_params["id"])
        entry, attempts = server.entry, server.log.attempts
        reach = "none" if entry.network == "none" else "hosts" if entry.hosts else "internet"
        return JSONResponse(
            {
                "reach": reach,
                "hosts": entry.hosts,
                "attempts": attempts.rows(),
                "unaudited": attempts.unaudited,
                "uncounted": attempts.uncounted,
            }
        )

    async def _start(self, request: Request) -> Response:
        server = self._find(request.path_params["id"])
        await self._gateway.pool.connection(server.entry.id)
        return JSONResponse(self._describe(server))

    async def _stop(self, request: Request) -> Response:
        server = self._find(request.path_params["id"])
        self._gateway.pool.stop(server.entry.id)
        return JSONResponse(self._describe(server))
