"""The door: the one function every call passes, from any client, era or transport.

Resolves the name, decides, forwards, checks the result, audits. Knows no transport and no session."""

from __future__ import annotations

import logging
import secrets
import time
import weakref
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from typing import Final, NamedTuple

import anyio
from msgspec import Raw

from catalog import Profile
from gateway import audit, errors, names, surface
from gateway.audit import Audit, Record
from gateway.listings import PROMPTS, RESOURCES, TEMPLATES, TOOLS, Kind, Listing
from gateway.pool import Pool
from gateway.surface import Surface, Target
from gateway.upstream import Notice, Reply
from gateway.wire import envelope
from gateway.wire.envelope import Fields, WireError
from policies import Action, PolicyEngine, Principal, Request

_log: Final = logging.getLogger(__name__)

PAGE_SIZE: Final = 250
LEARN_TIMEOUT_S: Final = 45.0
"""How long a listing waits for servers that were never asked before; they are announced when they are known."""
MAX_SURFACES: Final = 256
MAX_INSTRUCTIONS_CHARS: Final = 2000
Notify = Callable[[Notice], Awaitable[None]]
LISTS: Final[Mapping[str, Kind]] = {kind.method: kind for kind in (TOOLS, PROMPTS, RESOURCES, TEMPLATES)}


class Caller:
    """Whoever is on the other side: one session of one principal in one profile."""

    def __init__(self, principal: Principal, profile: Profile, client: str = "") -> None:
        self.principal = principal
        self.profile = profile
        self.client = client
        self.log_level = ""
        self.servers: set[str] = set()
        """Servers this caller has called: whose log messages it may see."""

    def deliver(self, message: bytes) -> None:
        """A notification that belongs to no call of this caller; a caller without a place for it drops it."""


class _Route(NamedTuple):
    """How a method names its item."""

    action: Action
    kind: Kind


ROUTES: Final[Mapping[str, _Route]] = {
    "tools/call": _Route("call", TOOLS),
    "prompts/get": _Route("prompt", PROMPTS),
    "resources/read": _Route("read", RESOURCES),
    "completion/complete": _Route("complete", PROMPTS),
}
LOG_LEVELS: Final = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")
"""RFC 5424 severities, least severe first."""


class Door:
    """Composes policy, pool and audit. One for the whole gateway."""

    def __init__(self, policy: PolicyEngine, audit_file: Audit, *, page_size: int = PAGE_SIZE) -> None:
        self._policy = policy
        self._audit = audit_file
        self._page_size = page_size
        self._pool: Pool | None = None
        self._surfaces: OrderedDict[tuple[object, ...], Surface] = OrderedDict()
        self._callers: weakref.WeakSet[Caller] = weakref.WeakSet()

    def serve(self, pool: Pool) -> None:
        self._pool = pool

    @property
    def pool(self) -> Pool:
        if self._pool is None:
            raise RuntimeError("the door is used before the pool exists")
        return self._pool

    def enter(self, caller: Caller) -> None:
        """From now on the caller hears of changes. Forgotten when the caller is garbage."""
        self._callers.add(caller)

    def leave(self, caller: Caller) -> None:
        self._callers.discard(caller)

    # -- the one function --------------------------------------------------------------------

    async def call(self, caller: Caller, method: str, params: bytes, notify: Notify) -> Reply:
        """Carry one call to its reply; progress goes to `notify` as it comes. Cancelling withdraws the call upstream.

        Raises:
            UnknownName, WireError: the request is at fault.
            UpstreamError: the server is at fault.
            AuditUnwritable: the call happened but could not be recorded, so it is not answered.
        """
        started = time.perf_counter()
        record = Record(
            call=secrets.token_hex(8),
            at=audit.now(),
            principal=caller.principal.id,
            client=caller.client,
            profile=caller.profile.name,
            method=method,
            name="",
        )
        try:
            return await self._admit(caller, method, params, notify, record)
        except errors.UnknownName:
            record.outcome = "unknown"
            raise
        except errors.UpstreamError as exc:
            record.outcome, record.detail = "upstream", type(exc).__name__
            raise
        except WireError as exc:
            record.outcome, record.detail = "error", str(exc.code)
            raise
        finally:
            record.ms = round((time.perf_counter() - started) * 1000, 3)
            self._audit.write(record)

    async def _admit(self, caller: Caller, method: str, params: bytes, notify: Notify, record: Record) -> Reply:
        route = ROUTES[method]
        members = envelope.fields(params)
        view, target = await self._find(caller, route, members, record)
        record.server, record.item = target.server, target.item
        arguments = bytes(members.get("arguments", envelope.ABSENT))
        record.arguments = audit.digest(arguments)
        decision = self._policy.decide(
            Request(
                caller.principal,
                route.action,
                caller.profile.name,
                target.server,
                target.item,
                envelope.value(arguments) if self._policy.reads_arguments and arguments else {},
            )
        )
        record.policies = decision.policy_ids
        if not decision.allowed:
            record.outcome = "denied"
            return denied(route, decision.reason)
        upstream = await self.pool.connection(target.server)
        caller.servers.add(target.server)
        call = await upstream.start(method, members)
        try:
            while isinstance(item := await call.next(), Notice):
                await notify(item)
        finally:
            upstream.cancel(call, "the caller withdrew the request")
        return _checked(view, target, method, item, record)

    async def _find(self, caller: Caller, route: _Route, members: Fields, record: Record) -> tuple[Surface, Target]:
        """Resolve the name; if it belongs to a server that was never asked what it offers, ask that one first."""
        view = self.surface(caller)
        try:
            return view, _resolve(view, route, members, record)
        except errors.UnknownName:
            owner = caller.profile.servers[0] if view.single else names.owner(record.name)
            if owner not in caller.profile.servers or self.pool.listing(owner) is not None:
                raise
        await self.learn([owner])
        view = self.surface(caller)
        return view, _resolve(view, route, members, record)

    # -- listings ----------------------------------------------------------------------------

    async def list(self, caller: Caller, method: str, params: bytes) -> bytes:
        """One page of what the caller may see. Starts only servers that were never asked what they offer.

        Raises:
            BadCursor, WireError: the request is at fault.
        """
        raw_cursor = envelope.fields(params).get("cursor")
        cursor = envelope.text(raw_cursor, "cursor") if raw_cursor is not None else None
        await self.learn(caller.profile.servers)
        return self.surface(caller).page(LISTS[method], cursor, self._page_size)

    async def learn(self, servers: Iterable[str], timeout_s: float = LEARN_TIMEOUT_S) -> None:
        """Ask the servers among these that are not known yet, all at once, within the given time."""
        unknown = [id for id in servers if self.pool.listing(id) is None]
        if not unknown:
            return
        with anyio.move_on_after(timeout_s):
            async with anyio.create_task_group() as group:
                for id in unknown:
                    group.start_soon(self._learn_one, id)

    async def _learn_one(self, id: str) -> None:
        """Wait for a server's first listing. One that failed before is tried again, but nobody waits for it."""
        try:
            if self.pool.servers[id].failures:
                self.pool.start_soon(id)
            else:
                await self.pool.learn(id)
        except errors.UpstreamError as exc:
            # Its own tools are missing; the others are listed all the same. `server list` shows why.
            _log.warning("%s", exc)

    def surface(self, caller: Caller) -> Surface:
        """What this caller sees, rebuilt only when a listing or the policy changed."""
        profile = caller.profile
        key = (profile.name, caller.principal, self._policy.generation, self.pool.generation)
        found = self._surfaces.get(key)
        if found is None:
            listings = {id: known for id in profile.servers if (known := self.pool.listing(id)) is not None}

            def visible(kind: Kind, server: str, item: str) -> bool:
                action: Action = "list" if kind is TOOLS else "prompt" if kind is PROMPTS else "read"
                return self._policy.decide(Request(caller.principal, action, profile.name, server, item)).allowed

            found = surface.build(profile, listings, visible)
            self._surfaces[key] = found
            if len(self._surfaces) > MAX_SURFACES:
                self._surfaces.popitem(last=False)
        return found

    def instructions(self, caller: Caller) -> str:
        """The known instructions of the profile's servers, each under its name, each bounded."""
        parts = []
        for id in caller.profile.servers:
            listing: Listing | None = self.pool.listing(id)
            if listing is not None and listing.instructions:
                parts.append(f"[{id}]\n{listing.instructions[:MAX_INSTRUCTIONS_CHARS]}")
        return "\n\n".join(parts)

    # -- what servers say unasked (Events of the pool) ---------------------------------------

    def listing_changed(self, server: str, lists: Collection[str]) -> None:
        for caller in list(self._callers):
            if server in caller.profile.servers:
                for name in sorted(lists):
                    caller.deliver(envelope.notification(f"notifications/{name}/list_changed"))

    def server_notified(self, server: str, method: str, params: bytes) -> None:
        """Log messages go to those who called the server, unless callers of several principals did: a message cannot be
        tied to the call that caused it, and must not show one principal what another does."""
        if method != "notifications/message":
            return
        hearers = [caller for caller in self._callers if server in caller.servers]
        if len({caller.principal for caller in hearers}) != 1:
            return
        try:
            level = envelope.text(envelope.fields(params).get("level", Raw(b'"info"')), "level")
        except WireError:
            return
        message = envelope.one_line(envelope.notification(method, params))
        for caller in hearers:
            if caller.log_level and _severity(level) >= _severity(caller.log_level):
                caller.deliver(message)

    def set_log_level(self, caller: Caller, level: str) -> None:
        """Set what one caller wants to hear; servers are told the most talkative level anybody asked for."""
        caller.log_level = level
        wanted = [other.log_level for other in self._callers if other.log_level]
        self.pool.set_log_level(min(wanted, key=_severity, default=level))


def _severity(level: str) -> int:
    return LOG_LEVELS.index(level) if level in LOG_LEVELS else 0


def _resolve(view: Surface, route: _Route, members: Fields, record: Record) -> Target:
    """Find the item and put its server's own name for it into `members`."""
    if route.action == "complete":
        return _resolve_reference(view, members, record)
    name = envelope.text(members.get(route.kind.key, envelope.ABSENT), route.kind.key)
    record.name = name[:256]
    if route.kind is RESOURCES:
        target = view.resource(name)
    else:
        table = view.tools if route.kind is TOOLS else view.prompts
        found = table.get(name)
        if found is None:
            raise errors.UnknownName(f"Unknown {route.kind.member[:-1]}: {name[:256]}")
        target = found
    members[route.kind.key] = envelope.raw(target.item)
    return target


def _checked(view: Surface, target: Target, method: str, reply: Reply, record: Record) -> Reply:
    """What a result must pass before the caller sees it; guards on content have their place here."""
    if reply.result is None:
        record.outcome = "error"
        return reply
    record.outcome = "tool_error" if b'"isError":true' in reply.result[-64:] else "ok"
    return Reply(surface.rewrite_uris(view, target.server, method, reply.result), None)


def denied(route: _Route, reason: str) -> Reply:
    """A visible item that policy refuses: for a tool an error the model can read, else a protocol error."""
    if route.action == "call":
        return tool_error(f"Denied by policy: {reason}.")
    return Reply(None, envelope.encode({"code": envelope.INVALID_PARAMS, "message": f"Denied by policy: {reason}."}))


def tool_error(text: str) -> Reply:
    """A tool result that tells the model what went wrong (MCP server/tools, "Error Handling")."""
    return Reply(envelope.encode({"content": [{"type": "text", "text": text}], "isError": True}), None)


def _resolve_reference(view: Surface, members: Fields, record: Record) -> Target:
    """completion/complete names a prompt or a resource template inside `ref`."""
    reference = envelope.fields(members.get("ref", envelope.ABSENT))
    kind = bytes(reference.get("type", b""))
    if kind == b'"ref/prompt"':
        name = envelope.text(reference.get("name", envelope.ABSENT), "ref.name")
        found = view.prompts.get(name)
        key = "name"
    elif kind == b'"ref/resource"':
        name = envelope.text(reference.get("uri", envelope.ABSENT), "ref.uri")
        found = view.templates.get(name) or view.resources.get(name)
        key = "uri"
    else:
        raise WireError(envelope.INVALID_PARAMS, "ref.type must be ref/prompt or ref/resource")
    record.name = name[:256]
    if found is None:
        raise errors.UnknownName(f"Unknown reference: {name[:256]}")
    reference[key] = envelope.raw(found.item)
    members["ref"] = envelope.raw(reference)
    return found
