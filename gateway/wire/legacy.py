"""The legacy era, server side: sessions opened by `initialize` (MCP revisions 2025-03-26 to 2025-11-25).

Knows methods and sessions; not the transport that carries them."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

import msgspec
from msgspec import Raw

from catalog import Entry, Profile
from gateway import __version__, bridge, errors, sampling, tasks
from gateway.audit import AuditUnwritable
from gateway.bridge import InputRequired, Resume
from gateway.caller import Caller, wants_log
from gateway.door import Door
from gateway.pool import Lease
from gateway.routes import LISTS, ROUTES, tool_error
from gateway.upstream import LOG, CallerFacts, Notice, Reply
from gateway.wire import envelope, methods, revisions
from gateway.wire.envelope import Envelope, WireError
from gateway.wire.meta import LOG_LEVELS
from policies import Principal

_log: Final = logging.getLogger(__name__)

REVISIONS: Final = revisions.LEGACY
MAX_IN_FLIGHT: Final = 256
"""Requests one session may have open; one more is refused."""
ANSWER_TIMEOUT_S: Final = bridge.PARK_S
"""How long this client may take to answer a server's question."""

Send = Callable[[bytes], Awaitable[None]]


class _InitializeParams(msgspec.Struct):
    protocolVersion: str
    capabilities: dict[str, Raw] = {}
    clientInfo: dict[str, Raw] = {}


_initialize_params: Final = msgspec.json.Decoder(_InitializeParams)


class LegacySession(Caller):
    """One client from its `initialize` on. `outlet` takes messages that belong to no request of the client's."""

    def __init__(
        self,
        the_door: Door,
        principal: Principal,
        profile: Profile,
        outlet: Callable[[bytes], None],
    ) -> None:
        super().__init__(principal, profile)
        self.id = self.owns = secrets.token_hex(16)
        self.revision = ""
        self._door = the_door
        self._outlet = outlet
        self._in_flight: dict[bytes, asyncio.Task[object]] = {}
        self._cancelled: set[bytes] = set()
        self._told = envelope.raw(tasks.with_extension({}))
        """What servers of the other era are told that this client can do. This era's tasks are others, so a server may
        make a task of a call, and the door waits for it."""
        self._asked: dict[int, asyncio.Future[Envelope]] = {}
        self._questions = 0

    def deliver(self, method: str, params: bytes) -> None:
        self._outlet(envelope.notification(method, params))

    def lease(self, entry: Entry) -> Lease | None:
        asked = sampling.asked(entry, self.capabilities)
        return Lease(self.id, asked, exclusive=False) if asked is not None else None

    def facts(self) -> CallerFacts:
        return CallerFacts(self._told, self.log_level)

    # -- messages from the client ------------------------------------------------------------

    async def request(self, incoming: Envelope, send: Send) -> bytes:
        """Answer one request. Messages that precede the answer go to `send`; whatever happens, there is an answer."""
        id = bytes(incoming.id)
        if id in self._in_flight:
            return envelope.error(id, envelope.INVALID_REQUEST, "a request with this id is still open")
        if len(self._in_flight) >= MAX_IN_FLIGHT:
            return envelope.error(id, envelope.INTERNAL_ERROR, f"{MAX_IN_FLIGHT} requests are already open")
        task = asyncio.current_task()
        if task is not None:
            self._in_flight[id] = task
        try:
            return await self._answer(id, incoming, send)
        except asyncio.CancelledError:
            if id not in self._cancelled or task is None:
                raise
            task.uncancel()
            return envelope.error(id, envelope.REQUEST_CANCELLED, "Request cancelled")
        finally:
            self._in_flight.pop(id, None)
            self._cancelled.discard(id)

    async def _answer(self, id: bytes, incoming: Envelope, send: Send) -> bytes:
        method = incoming.method
        try:
            if method in ROUTES:
                return _encoded(id, await self._call(method, bytes(incoming.params), send))
            if method in ("resources/subscribe", "resources/unsubscribe"):
                return envelope.result(id, await self._subscription(method, incoming.params))
            if method in LISTS:
                return envelope.result(id, await self._door.list(self, method, bytes(incoming.params)))
            if methods.is_foreign(method):
                return _encoded(id, await self._call(method, bytes(incoming.params), send))
            return envelope.result(id, self._other(method, incoming.params))
        except errors.UnknownName as exc:
            if method.startswith("resources/"):
                uri = envelope.value(envelope.fields(incoming.params).get("uri", Raw(b"null")))
                return envelope.error(id, envelope.RESOURCE_NOT_FOUND, str(exc), {"uri": uri})
            return envelope.error(id, envelope.INVALID_PARAMS, str(exc))
        except errors.UpstreamError as exc:
            return envelope.error(id, envelope.INTERNAL_ERROR, f"{exc}. {exc.retry}")
        except errors.BadCursor as exc:
            return envelope.error(id, envelope.INVALID_PARAMS, str(exc))
        except WireError as exc:
            return envelope.error(id, exc.code, exc.message)
        except AuditUnwritable as exc:
            _log.error("refusing calls: %s", exc)
            return envelope.error(id, envelope.INTERNAL_ERROR, "the audit log cannot be written; no call is answered")
        except Exception:  # noqa: BLE001  # outermost border of a request
            incident = secrets.token_hex(4)
            _log.exception("incident %s in %s", incident, method)
            return envelope.error(id, envelope.INTERNAL_ERROR, f"internal error, incident {incident}")

    async def _call(self, method: str, params: bytes, send: Send) -> Reply:
        async def notify(notice: Notice) -> None:
            if notice.method != LOG or wants_log(self, notice.params):
                await send(envelope.notification(notice.method, notice.params))

        try:
            outcome = await self._door.call(self, method, params, notify)
            for _ in range(bridge.MAX_ROUNDS):
                if isinstance(outcome, Reply):
                    return outcome
                resume = await self._ask(outcome, send)
                outcome = await self._door.call(self, method, params, notify, resume)
            if isinstance(outcome, Reply):
                return outcome
            self._door.give_up(outcome)
            raise errors.UpstreamInvalid(f"the server asked more than {bridge.MAX_ROUNDS} times in one call")
        except errors.UpstreamError as exc:
            text = f"{exc}. {exc.retry}"
            if method == "tools/call":
                return tool_error(text)
            return Reply(None, envelope.encode({"code": envelope.INTERNAL_ERROR, "message": text}))

    async def _ask(self, required: InputRequired, send: Send) -> Resume:
        """Put a server's questions to this client as requests on the call's own stream, and wait for the answers.

        Raises:
            UpstreamInvalid: the client cannot or will not answer; the call is over.
        """
        waiting: dict[str, asyncio.Future[Envelope]] = {}
        try:
            if not bridge.all_answerable(required.requests, self.capabilities):
                raise errors.UpstreamInvalid("the server asked for something this client did not offer")
            for key, raw in required.requests.items():
                question = envelope.fields(raw)
                self._questions += 1
                waiting[key] = self._asked[self._questions] = asyncio.get_running_loop().create_future()
                method = envelope.text(question["method"], "method")
                params = bytes(question.get("params", envelope.ABSENT))
                await send(envelope.request(b"%d" % self._questions, method, params))
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                if (elsewhere := self._door.holding.ended(required)) is not None:
                    ends: set[asyncio.Future[Any]] = {elsewhere, *waiting.values()}
                    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                    if elsewhere.done():
                        await self._take_back(waiting.values(), send)
                        return Resume(required.continuation, {})
                answers = {key: bridge.answer_of(await future) for key, future in waiting.items()}
        except BaseException as exc:
            self._door.give_up(required)
            if isinstance(exc, TimeoutError):
                raise errors.UpstreamTimeout("the client did not answer the server's question in time") from exc
            raise
        finally:
            for number in [number for number, future in self._asked.items() if future in waiting.values()]:
                del self._asked[number]
        return Resume(required.continuation, answers, required.ticket.approved, required.ticket.here)

    async def _take_back(self, futures: Iterable[asyncio.Future[Envelope]], send: Send) -> None:
        """Tell the client that it need not ask any more: somebody has decided elsewhere."""
        for number in [number for number, future in self._asked.items() if future in futures]:
            params = envelope.encode({"requestId": number, "reason": "decided elsewhere"})
            await send(envelope.notification("notifications/cancelled", params))

    def _answered(self, incoming: Envelope) -> None:
        """An answer of the client's; one without a question is dropped."""
        number = envelope.number(incoming.id)
        future = self._asked.get(number) if number is not None else None
        if future is not None and not future.done():
            future.set_result(incoming)

    async def _subscription(self, method: str, params: Raw) -> bytes:
        uri = envelope.text(envelope.fields(params).get("uri", envelope.ABSENT), "uri")
        if method == "resources/subscribe":
            await self._door.hearing.subscribe(self, uri)
        else:
            await self._door.hearing.unsubscribe(self, uri)
        return b"{}"

    def _other(self, method: str, params: Raw) -> bytes:
        match method:
            case "ping":
                return b"{}"
            case "initialize":
                return self._initialize(params)
            case "logging/setLevel":
                level = envelope.text(envelope.fields(params).get("level", envelope.ABSENT), "level")
                if level not in LOG_LEVELS:
                    raise WireError(envelope.INVALID_PARAMS, f"level must be one of {', '.join(LOG_LEVELS)}")
                self._door.hearing.set_log_level(self, level)
                return b"{}"
            case _:
                raise WireError(envelope.METHOD_NOT_FOUND, f"Method not found: {method}")

    def _initialize(self, params: Raw) -> bytes:
        if self.revision:
            raise WireError(envelope.INVALID_REQUEST, "this session is already initialized")
        try:
            wanted = _initialize_params.decode(params)
        except msgspec.DecodeError as exc:
            raise WireError(envelope.INVALID_PARAMS, f"initialize: {exc}") from exc
        name = wanted.clientInfo.get("name", envelope.ABSENT)
        self.client = envelope.text(name, "clientInfo.name")[:128] if bytes(name) else ""
        self.revision = wanted.protocolVersion if wanted.protocolVersion in REVISIONS else REVISIONS[0]
        self.capabilities = wanted.capabilities
        self._told = envelope.raw(tasks.with_extension(self.capabilities))
        self._door.hearing.enter(self)
        capabilities: dict[str, object] = {
            "tools": {"listChanged": True},
            "prompts": {"listChanged": True},
            "resources": {"listChanged": True, "subscribe": True},
            "completions": {},
            "logging": {},
        }
        if extensions := self._door.extensions(self):
            capabilities["extensions"] = extensions
        answer: dict[str, object] = {
            "protocolVersion": self.revision,
            "capabilities": capabilities,
            "serverInfo": {
                "name": "lockgate",
                "title": f"Lockgate ({self.profile.name})",
                "version": __version__,
            },
        }
        if instructions := self._door.instructions(self):
            answer["instructions"] = instructions
        return envelope.encode(answer)

    def notification(self, incoming: Envelope) -> None:
        """Take a notification; those that nobody knows are ignored, as JSON-RPC wants."""
        if methods.is_foreign_notification(incoming.method):
            try:
                self._door.tell(self, incoming.method, bytes(incoming.params))
            except AuditUnwritable as exc:
                _log.error("a notification is dropped: %s", exc)
        if incoming.method == "notifications/roots/list_changed":
            for upstream in self._door.pool.leased(self.id):
                upstream.notify(incoming.method)
        if incoming.method == "notifications/cancelled":
            try:
                id = bytes(envelope.fields(incoming.params).get("requestId", envelope.ABSENT))
            except WireError:
                return
            task = self._in_flight.get(id)  # an id this session never used cancels nothing
            if task is not None and id not in self._cancelled:
                self._cancelled.add(id)
                task.cancel()

    async def message(self, incoming: Envelope, send: Send) -> bytes | None:
        """Any one message: the answer to a request, None for what needs no answer."""
        match incoming.kind:
            case "request":
                return await self.request(incoming, send)
            case "notification":
                self.notification(incoming)
                return None
            case _:
                self._answered(incoming)
                return None

    def close(self) -> None:
        """Withdraw what is open and hear of nothing more."""
        self._door.hearing.leave(self)
        for id, task in self._in_flight.items():
            self._cancelled.add(id)
            task.cancel()


def _encoded(id: bytes, reply: Reply) -> bytes:
    if reply.result is not None:
        return envelope.result(id, reply.result)
    return envelope.error_raw(id, reply.error or b"{}")
