"""The modern era, server side: every request stands alone (MCP revision 2026-07-28).

Knows methods and what a request must carry; not the transport that carries it."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple

from msgspec import Raw

from catalog import Entry, Profile
from gateway import __version__, errors, tasks
from gateway.audit import AuditUnwritable
from gateway.bridge import InputRequired
from gateway.caller import Caller, wants_log
from gateway.door import Door
from gateway.hearing import UPDATED
from gateway.pool import Lease
from gateway.routes import LISTS, ROUTES, tool_error
from gateway.taskwatch import TaskWatch
from gateway.upstream import LOG, Notice
from gateway.wire import envelope, headers, meta, methods, revisions
from gateway.wire.envelope import Envelope, Fields, WireError
from policies import Principal

_log: Final = logging.getLogger(__name__)

LIST_TTL_MS: Final = 5_000
"""How long a client may keep a list; changes are announced to those who listen."""
MAX_EVENTS: Final = 1000
MAX_EVENT_BYTES: Final = 4 * 1024 * 1024
MAX_LISTENERS: Final = 1024
MAX_LISTENERS_OF_ONE: Final = 256
MAX_WATCHED: Final = 256
MAX_REMEMBERED_BYTES: Final = 2048

Send = Callable[[bytes], Awaitable[None]]
HeaderValues = Mapping[bytes, list[bytes]]

_SERVER_INFO: Final = envelope.raw({"name": "lockgate", "title": "Lockgate", "version": __version__})
_FLAGS: Final = {
    "toolsListChanged": "notifications/tools/list_changed",
    "promptsListChanged": "notifications/prompts/list_changed",
    "resourcesListChanged": "notifications/resources/list_changed",
}


class Answer(NamedTuple):
    """The end of a request: a whole JSON-RPC message, the error code in it (0 for a result), and the HTTP status where
    the code does not say it."""

    message: bytes
    code: int = 0
    status: int = 0


class Rejected(Exception):
    """A request that is wrong before anything is done: answered with this error."""

    def __init__(self, code: int, message: str, data: object = None, *, status: int = 0) -> None:
        super().__init__(message)
        self.code = code
        self.data = data
        self.status = status


class ModernCaller(Caller):
    """The client behind one modern request."""


class ModernEra:
    """Answers modern requests. One for the whole gateway; a request leaves nothing behind but parked calls."""

    def __init__(self, the_door: Door) -> None:
        self._door = the_door
        self._listeners: set[_Listener] = set()

    def close(self) -> None:
        """End every task, and every listening stream with its result."""
        self._door.end_tasks()
        for listener in self._listeners:
            listener.end()

    async def request(
        self,
        incoming: Envelope,
        principal: Principal,
        profile: Profile,
        given: HeaderValues | None,
        send: Send,
        *,
        follows_default: bool = False,
    ) -> Answer:
        """Answer one request; what precedes the answer goes to `send`. `given` are HTTP headers, None elsewhere. A
        caller that `follows_default` listens to whichever profile is the default one."""
        id = bytes(incoming.id)
        try:
            members = envelope.fields(incoming.params)
            caller = self._caller(incoming.method, members, principal, profile, given)
            caller.follows_default = follows_default
            return Answer(envelope.result(id, await self._result(id, incoming, members, caller, given, send)))
        except Rejected as exc:
            return Answer(envelope.error(id, exc.code, str(exc), exc.data), exc.code, exc.status)
        except WireError as exc:
            return Answer(envelope.error(id, exc.code, exc.message), exc.code)
        except _ErrorReply as exc:
            return Answer(envelope.error_raw(id, exc.error), exc.code)
        except errors.BadCursor as exc:
            return Answer(envelope.error(id, envelope.INVALID_PARAMS, str(exc)), envelope.INVALID_PARAMS)
        except errors.UnknownName as exc:
            # -32602 for everything that is not there (MCP 2026-07-28), with the URI as the client spelled it.
            data = {"uri": envelope.value(members["uri"])} if "uri" in members else None
            return Answer(envelope.error(id, envelope.INVALID_PARAMS, str(exc), data), envelope.INVALID_PARAMS)
        except errors.UpstreamError as exc:
            return Answer(envelope.error(id, envelope.INTERNAL_ERROR, f"{exc}. {exc.retry}"), envelope.INTERNAL_ERROR)
        except AuditUnwritable as exc:
            _log.error("refusing calls: %s", exc)
            text = "the audit log cannot be written; no call is answered"
            return Answer(envelope.error(id, envelope.INTERNAL_ERROR, text), envelope.INTERNAL_ERROR)
        except Exception:  # noqa: BLE001  # outermost border of a request
            incident = secrets.token_hex(4)
            _log.exception("incident %s in %s", incident, incoming.method)
            text = f"internal error, incident {incident}"
            return Answer(envelope.error(id, envelope.INTERNAL_ERROR, text), envelope.INTERNAL_ERROR)

    # -- what a request must carry -----------------------------------------------------------

    @staticmethod
    def _caller(
        method: str, members: Fields, principal: Principal, profile: Profile, given: HeaderValues | None
    ) -> ModernCaller:
        """
        Raises:
            Rejected: `_meta` or a header is missing or wrong; in the order the specification gives.
        """
        facts = meta.read(bytes(members.get("_meta", envelope.ABSENT)))
        if isinstance(facts, meta.Problem):
            raise Rejected(*facts)
        if given is not None:
            _check_headers(method, members, facts.version, given)
        if facts.problem is not None:
            raise Rejected(*facts.problem)
        caller = ModernCaller(principal, profile, facts.client)
        caller.capabilities = facts.capabilities
        caller.takes_tasks = tasks.declared(caller.capabilities)
        caller.log_level = facts.log_level
        return caller

    # -- methods -----------------------------------------------------------------------------

    async def _result(
        self,
        id: bytes,
        incoming: Envelope,
        members: Fields,
        caller: ModernCaller,
        given: HeaderValues | None,
        send: Send,
    ) -> bytes:
        method = incoming.method
        if method in ROUTES:
            if method == "tools/call" and given is not None:
                self._check_mirrored(caller, members, given)
            return await self._call(caller, method, bytes(incoming.params), send)
        if method in tasks.METHODS:
            if not caller.takes_tasks:
                raise _lacks_tasks()
            return await self._call(caller, method, bytes(incoming.params), send)
        if method in LISTS:
            page = await self._door.list(caller, method, bytes(incoming.params))
            # What is listed depends on who asks, so no shared cache may keep it.
            return _complete(page, ttl_ms=LIST_TTL_MS)
        if method == "server/discover":
            return self._discover(caller)
        if method == "subscriptions/listen":
            return await self._listen(id, members, caller, send)
        if methods.is_foreign(method):
            return await self._call(caller, method, bytes(incoming.params), send)
        raise Rejected(envelope.METHOD_NOT_FOUND, f"Method not found: {method}")

    def _check_mirrored(self, caller: Caller, members: Fields, given: HeaderValues) -> None:
        name = envelope.text(members.get("name", envelope.ABSENT), "name")
        target = self._door.surface(caller).tools.get(name)
        if target is None:
            return
        parameters = self._door.mirrored(target)
        if parameters:
            arguments = envelope.value(members.get("arguments", Raw(b"{}")))
            problem = headers.mismatch(parameters, arguments, given)
            if problem is not None:
                raise Rejected(envelope.HEADER_MISMATCH, problem)

    async def _call(self, caller: ModernCaller, method: str, params: bytes, send: Send) -> bytes:
        async def notify(notice: Notice) -> None:
            if notice.method != LOG or wants_log(caller, notice.params):
                await send(envelope.notification(notice.method, notice.params))

        try:
            call = self._door.call_or_task if caller.takes_tasks else self._door.call
            outcome = await call(caller, method, params, notify)
        except errors.UpstreamError as exc:
            if method != "tools/call":
                raise
            outcome = tool_error(f"{exc}. {exc.retry}")
        if isinstance(outcome, InputRequired):
            return self._input_required(outcome)
        if outcome.result is None:
            raise _ErrorReply(outcome.error or b"{}")
        return _complete(outcome.result, ttl_ms=0 if method == "resources/read" else None)

    def _input_required(self, required: InputRequired) -> bytes:
        members: Fields = {
            "resultType": Raw(b'"input_required"'),
            "requestState": envelope.raw(self._door.sealed(required)),
            "_meta": envelope.raw({revisions.SERVER_INFO: _SERVER_INFO}),
        }
        if required.requests:
            members["inputRequests"] = envelope.raw(required.requests)
        return envelope.encode(members)

    def _discover(self, caller: Caller) -> bytes:
        answer: dict[str, Any] = {
            "supportedVersions": list(revisions.MODERN),
            "capabilities": {
                "tools": {"listChanged": True},
                "prompts": {"listChanged": True},
                "resources": {"listChanged": True, "subscribe": True},
                "completions": {},
                "logging": {},
            },
        }
        answer["capabilities"]["extensions"] = {**self._door.extensions(caller), tasks.EXTENSION: {}}
        if instructions := self._door.instructions(caller):
            answer["instructions"] = instructions
        return _complete(envelope.encode(answer), ttl_ms=LIST_TTL_MS)

    async def _listen(self, id: bytes, members: Fields, caller: ModernCaller, send: Send) -> bytes:
        """`subscriptions/listen`: acknowledge, then pass on what was asked for until the gateway or the client ends
        it."""
        own = sum(1 for listener in self._listeners if listener.principal == caller.principal)
        if own >= MAX_LISTENERS_OF_ONE:
            raise Rejected(envelope.INTERNAL_ERROR, "you have too many listeners; end one first", status=429)
        if len(self._listeners) >= MAX_LISTENERS:
            raise Rejected(envelope.INTERNAL_ERROR, "there are too many listeners; try again later", status=503)
        wanted = envelope.fields(members.get("notifications", envelope.ABSENT))
        honoured: dict[str, object] = {flag: True for flag in _FLAGS if bytes(wanted.get(flag, b"")) == b"true"}
        uris = [envelope.text(raw, "resourceSubscriptions") for raw in _listed(wanted, "resourceSubscriptions")]
        if len(uris) > MAX_WATCHED:
            raise Rejected(envelope.INVALID_PARAMS, f"resourceSubscriptions holds at most {MAX_WATCHED} URIs")
        ids = [envelope.text(raw, "taskIds") for raw in _listed(wanted, "taskIds")]
        if ids and not caller.takes_tasks:
            raise _lacks_tasks()
        if len(ids) > MAX_WATCHED:
            raise Rejected(envelope.INVALID_PARAMS, f"taskIds holds at most {MAX_WATCHED} ids")
        listener = _Listener(caller, id, frozenset(_FLAGS[flag] for flag in honoured))
        self._listeners.add(listener)
        self._door.hearing.enter(listener)
        watch = TaskWatch(self._door, listener)
        try:
            watched = []
            for uri in uris:
                try:
                    await self._door.hearing.subscribe(listener, uri)
                    watched.append(uri)
                except (errors.UnknownName, errors.UpstreamError) as exc:
                    _log.info("not watching a resource: %s", exc)
            if watched:
                honoured["resourceSubscriptions"] = watched
            if found := [task for task in dict.fromkeys(ids) if watch.add(task)]:
                honoured["taskIds"] = found
            await send(listener.stamped("notifications/subscriptions/acknowledged", {"notifications": honoured}))
            async for message in listener.messages():
                await send(message)
        finally:
            self._listeners.discard(listener)
            self._door.hearing.leave(listener)
            await watch.aclose()
        return _complete(b"{}", ttl_ms=None, meta={revisions.SUBSCRIPTION_ID: Raw(id)})


class _Listener(ModernCaller):
    """One open `subscriptions/listen` stream."""

    def __init__(self, caller: ModernCaller, id: bytes, methods: frozenset[str]) -> None:
        super().__init__(caller.principal, caller.profile, caller.client)
        self.capabilities, self.takes_tasks = caller.capabilities, caller.takes_tasks
        self.follows_default = caller.follows_default
        self._id = id
        self._methods = methods
        self._events: deque[bytes] = deque()
        self._bytes = 0
        self._wake = asyncio.Event()
        self._ended = False

    def deliver(self, method: str, params: bytes) -> None:
        if method not in self._methods and method not in (UPDATED, tasks.CHANGED):
            return
        if len(self._events) >= MAX_EVENTS or self._bytes > MAX_EVENT_BYTES:
            # A client that does not read is told so by the end of its stream; it asks again and lists again.
            self.end()
            return
        message = self.stamped(method, envelope.fields(params))
        self._events.append(message)
        self._bytes += len(message)
        self._wake.set()

    def lease(self, entry: Entry) -> Lease | None:
        return None

    def stamped(self, method: str, members: Mapping[str, object]) -> bytes:
        meta = {revisions.SUBSCRIPTION_ID: Raw(self._id)}
        return envelope.notification(method, envelope.encode({**members, "_meta": meta}))

    async def messages(self) -> Any:
        while True:
            while self._events:
                message = self._events.popleft()
                self._bytes -= len(message)
                yield message
            if self._ended:
                return
            self._wake.clear()
            await self._wake.wait()

    def end(self) -> None:
        self._ended = True
        self._wake.set()


class _ErrorReply(Exception):
    """The server's own error, passed on with the code this revision wants."""

    def __init__(self, error: bytes) -> None:
        members = envelope.fields(error)
        self.code = int(envelope.value(members.get("code", Raw(b"0"))))
        if self.code == envelope.RESOURCE_NOT_FOUND:
            self.code = envelope.INVALID_PARAMS
            members["code"] = envelope.raw(self.code)
        self.error = envelope.encode(members)
        super().__init__(self.code)


def _lacks_tasks() -> Rejected:
    text = f"this needs a client that declares the extension {tasks.EXTENSION}"
    return Rejected(envelope.MISSING_CAPABILITY, text, tasks.MISSING)


def _check_headers(method: str, members: Fields, version: str, given: HeaderValues) -> None:
    """The headers that repeat the body must be there once and say the same."""
    _check_header(b"mcp-protocol-version", version, given)
    _check_header(b"mcp-method", method, given)
    member = headers.NAME_OF.get(method)
    if member is not None and member in members:
        _check_header(b"mcp-name", envelope.text(members[member], member), given)


def _check_header(name: bytes, value: str, given: HeaderValues) -> None:
    values = given.get(name, ())
    if len(values) != 1 or not headers.says(values[0], value):
        text = f"header {name.decode()} is missing, repeated, or does not equal the request"
        raise Rejected(envelope.HEADER_MISMATCH, text)


def _listed(wanted: Fields, member: str) -> list[Raw]:
    raw = wanted.get(member)
    return envelope.items(raw) if raw is not None and bytes(raw) != b"null" else []


def _complete(result: bytes, *, ttl_ms: int | None, meta: Mapping[str, object] | None = None) -> bytes:
    """A result with what this revision wants in it: its type, who served it and, for cacheable ones, for how long."""
    members = envelope.fields(result)
    members.setdefault("resultType", Raw(b'"complete"'))
    if ttl_ms is not None:
        members.setdefault("ttlMs", envelope.raw(ttl_ms))
        members["cacheScope"] = Raw(b'"private"')
    given = bytes(members.get("_meta", b"{}"))
    if meta is None and len(given) <= MAX_REMEMBERED_BYTES:
        members["_meta"] = _stamped(given)
    else:
        members["_meta"] = envelope.raw({**envelope.fields(given), revisions.SERVER_INFO: _SERVER_INFO, **(meta or {})})
    return envelope.encode(members)


@lru_cache(256)
def _stamped(given: bytes) -> Raw:
    """`_meta` of a result with our name in it; a server gives the same with nearly every result."""
    return envelope.raw({**envelope.fields(given), revisions.SERVER_INFO: _SERVER_INFO})
