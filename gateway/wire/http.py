"""Streamable HTTP, server side (MCP 2025-11-25, basic/transports): POST, GET and DELETE on one endpoint.

Knows HTTP, streams and session ids; methods belong to the era behind it, which it finds by header."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

from msgspec import Raw
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from catalog import Profile
from gateway.caller import SOURCE
from gateway.door import Door
from gateway.wire import envelope, sse
from gateway.wire.envelope import WireError
from gateway.wire.legacy import REVISIONS
from gateway.wire.modern import ModernEra
from gateway.wire.sessions import EventLog, Full, HttpSession, Place, Places, Sessions
from policies import Principal

MAX_BODY_BYTES: Final = 16 * 1024 * 1024
PRIMED_FROM: Final = "2025-11-25"
"""Older clients may not expect an event without a message."""
MAX_BATCH: Final = 100
RETRY_AFTER_S: Final = 1
WATCH_AFTER_S: Final = 0.05

_STATUS: Final[Mapping[int, int]] = {
    envelope.PARSE_ERROR: 400,
    envelope.INVALID_REQUEST: 400,
    envelope.INVALID_PARAMS: 400,
    envelope.HEADER_MISMATCH: 400,
    envelope.MISSING_CAPABILITY: 400,
    envelope.UNSUPPORTED_PROTOCOL_VERSION: 400,
    envelope.METHOD_NOT_FOUND: 404,
}
"""HTTP status by JSON-RPC error code (MCP 2026-07-28, basic/transports); everything else is 200."""
_LEGACY: Final = frozenset(revision.encode() for revision in REVISIONS)
_JSON: Final = (b"content-type", b"application/json")
_SSE: Final = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
)


NO_SUCH_PROFILE: Final = PlainTextResponse("No such profile\n", 404)
"""What everybody is told for whom there is none, whatever the reason."""


class ClientGone(Exception):
    """The client hung up before its request was complete."""


class McpEndpoint:
    """An ASGI application serving each profile at its path."""

    def __init__(self, door: Door, principal_of: Callable[[Scope], Principal]) -> None:
        self.principal_of = principal_of
        self.sessions = Sessions(door)
        self.places = Places()
        self._watches = _Watches()
        self.modern = ModernEra(door)

    def close(self) -> None:
        """End every session and stream; called when the gateway shuts down."""
        self.modern.close()
        self.sessions.close()

    async def serve(
        self, profile: Profile, scope: Scope, receive: Receive, send: Send, *, follows_default: bool = False
    ) -> None:
        """Answer one request. A profile that is not for this principal is as one that does not exist."""
        principal = self.principal_of(scope)
        if not profile.admits(principal.id, principal.groups):
            await NO_SUCH_PROFILE(scope, receive, send)
            return
        SOURCE.set(scope["client"][0] if scope.get("client") else "")
        try:
            place = self.places.enter(principal)
        except Full as exc:
            await _refuse_full(send, exc)
            return
        try:
            headers = dict(scope["headers"])
            if _is_modern(headers):
                await self._serve_modern(profile, principal, place, scope, receive, send, follows_default)
            else:
                method = scope["method"]
                await self._serve_legacy(profile, principal, place, method, headers, receive, send, follows_default)
        except Full as exc:
            await _refuse_full(send, exc)
        except ClientGone:
            pass  # a request of which the end is missing was never made
        finally:
            place.leave()

    async def _serve_legacy(
        self,
        profile: Profile,
        principal: Principal,
        place: Place,
        method: str,
        headers: Mapping[bytes, bytes],
        receive: Receive,
        send: Send,
        follows_default: bool,
    ) -> None:
        match method:
            case "POST":
                await self._post(profile, principal, place, headers, receive, send, follows_default)
            case "GET":
                await self._get(profile, principal, headers, receive, send)
            case "DELETE":
                await self._delete(profile, principal, headers, send)
            case _:
                await _answer(send, 405, b"", ((b"allow", b"GET, POST, DELETE"),))

    # -- POST --------------------------------------------------------------------------------

    async def _post(
        self,
        profile: Profile,
        principal: Principal,
        place: Place,
        headers: Mapping[bytes, bytes],
        receive: Receive,
        send: Send,
        follows_default: bool,
    ) -> None:
        if headers.get(b"content-type", b"").partition(b";")[0].strip().lower() != b"application/json":
            await _refuse(send, 415, envelope.INVALID_REQUEST, "Content-Type must be application/json")
            return
        body = await _body(receive, place)
        if body is None:
            await _refuse(send, 413, envelope.INVALID_REQUEST, f"body over {MAX_BODY_BYTES} bytes")
            return
        id = headers.get(b"mcp-session-id", b"").decode("latin-1")
        if id:
            session = self.sessions.find(id, principal, profile)
            if session is None:
                text = "Session not found; initialize again"
                await _answer(send, 404, envelope.error(_id_in(body), envelope.INVALID_REQUEST, text))
                return
            await self._in_session(session, body, headers, send)
        else:
            await self._open(profile, principal, body, send, follows_default)

    async def _open(
        self, profile: Profile, principal: Principal, body: bytes, send: Send, follows_default: bool
    ) -> None:
        try:
            incoming = envelope.decode_from_client(body)
        except WireError as exc:
            await _answer(send, 400, envelope.error(exc.id, exc.code, exc.message))
            return
        if incoming.method != "initialize" or incoming.kind != "request":
            text = "Mcp-Session-Id header is missing; begin with initialize"
            await _answer(send, 400, envelope.error(bytes(incoming.id) or b"null", envelope.INVALID_REQUEST, text))
            return
        session = self.sessions.new(principal, profile)
        session.era.follows_default = follows_default
        answer = await session.era.request(incoming, _drop)
        if session.era.revision:
            self.sessions.add(session)
            await _answer(send, 200, answer, ((b"mcp-session-id", session.id.encode()),))
        else:
            await _answer(send, 400, answer)

    async def _in_session(self, session: HttpSession, body: bytes, headers: Mapping[bytes, bytes], send: Send) -> None:
        may_stream = b"text/event-stream" in headers.get(b"accept", b"text/event-stream")
        stream = _ResponseStream(send, may_stream, session)
        session.open += 1
        try:
            try:
                if body.lstrip()[:1] == b"[":
                    answer = await self._batch(session, body, stream)
                else:
                    answer = await session.era.message(envelope.decode_from_client(body), stream.send)
            except WireError as exc:
                await _answer(send, 400, envelope.error(exc.id, exc.code, exc.message))
                return
            if answer is None:
                await _answer(send, 202, b"")
            else:
                await stream.finish(answer)
        finally:
            session.open -= 1
            session.last_used = asyncio.get_running_loop().time()

    @staticmethod
    async def _batch(session: HttpSession, body: bytes, stream: _ResponseStream) -> bytes | None:
        """Batches exist in revision 2025-03-26 only (basic/index, "Batching")."""
        if session.era.revision != "2025-03-26":
            raise WireError(envelope.INVALID_REQUEST, "batches are not part of this protocol revision")
        members = envelope.decode_batch(body)
        if not 0 < len(members) <= MAX_BATCH:
            raise WireError(envelope.INVALID_REQUEST, f"a batch holds 1 to {MAX_BATCH} messages")

        async def answered(member: Raw) -> bytes | None:
            try:
                return await session.era.message(envelope.decode_from_client(member), stream.send)
            except WireError as exc:
                return envelope.error(exc.id, exc.code, exc.message)

        answers = await asyncio.gather(*map(answered, members))
        given = [answer for answer in answers if answer is not None]
        return b"[" + b",".join(given) + b"]" if given else None

    # -- modern POST -------------------------------------------------------------------------

    async def _serve_modern(
        self,
        profile: Profile,
        principal: Principal,
        place: Place,
        scope: Scope,
        receive: Receive,
        send: Send,
        follows_default: bool,
    ) -> None:
        if scope["method"] != "POST":
            await _answer(send, 405, b"", ((b"allow", b"POST"),))
            return
        given = {name: [value] for name, value in scope["headers"]}
        if len(given) != len(scope["headers"]):
            given = {}
            for name, value in scope["headers"]:
                given.setdefault(name, []).append(value)
        if given.get(b"content-type", [b""])[0].partition(b";")[0].strip().lower() != b"application/json":
            await _refuse(send, 415, envelope.INVALID_REQUEST, "Content-Type must be application/json")
            return
        body = await _body(receive, place)
        if body is None:
            await _refuse(send, 413, envelope.INVALID_REQUEST, f"body over {MAX_BODY_BYTES} bytes")
            return
        try:
            incoming = envelope.decode_from_client(body)
        except WireError as exc:
            await _answer(send, 400, envelope.error(exc.id, exc.code, exc.message))
            return
        if incoming.kind == "notification":
            # This revision has none over HTTP; old habits are acknowledged and dropped.
            await _answer(send, 202, b"")
            return
        if incoming.kind == "response":
            await _refuse(send, 400, envelope.INVALID_REQUEST, "a server of this revision asks no questions")
            return
        stream = _ResponseStream(send, b"text/event-stream" in given.get(b"accept", [b"text/event-stream"])[0])
        watch = _DisconnectWatch(receive, self._watches)
        try:
            answer = await self.modern.request(
                incoming, principal, profile, given, stream.send, follows_default=follows_default
            )
        except asyncio.CancelledError:
            if not watch.client_gone:
                raise
            # The client closed the stream: that is how this revision cancels, and nothing may be sent after.
            watch.swallow()
            return
        finally:
            watch.stop()
        await stream.finish(answer.message, answer.status or _STATUS.get(answer.code, 200))

    # -- GET and DELETE ----------------------------------------------------------------------

    async def _get(
        self,
        profile: Profile,
        principal: Principal,
        headers: Mapping[bytes, bytes],
        receive: Receive,
        send: Send,
    ) -> None:
        session = self.sessions.find(headers.get(b"mcp-session-id", b"").decode("latin-1"), principal, profile)
        if session is None:
            known = b"mcp-session-id" in headers
            await _refuse(send, 404 if known else 400, envelope.INVALID_REQUEST, "no such session; initialize first")
            return
        found = session.find_log(headers.get(b"last-event-id", b"").decode("latin-1"))
        log, after = found if found is not None else (session.outbox, session.outbox.sent)
        listens = log is session.outbox
        if listens and session.listening:
            await _refuse(send, 409, envelope.INVALID_REQUEST, "this session is already listening")
            return
        session.listening, session.open = session.listening or listens, session.open + 1
        gone = asyncio.get_running_loop().create_task(_disconnected(receive))
        writer = asyncio.get_running_loop().create_task(_write_log(log, after, send))
        try:
            await asyncio.wait({gone, writer}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (gone, writer):
                task.cancel()
            await asyncio.gather(gone, writer, return_exceptions=True)
            session.listening, session.open = session.listening and not listens, session.open - 1
            session.last_used = asyncio.get_running_loop().time()

    async def _delete(self, profile: Profile, principal: Principal, headers: Mapping[bytes, bytes], send: Send) -> None:
        session = self.sessions.find(headers.get(b"mcp-session-id", b"").decode("latin-1"), principal, profile)
        if session is None:
            await _refuse(send, 404, envelope.INVALID_REQUEST, "Session not found")
            return
        self.sessions.end(session)
        await _answer(send, 204, b"")


class _ResponseStream:
    """One POST's answer: plain JSON if nothing precedes it, an event stream from the first message that does.

    With a session the events are kept, so that a client that loses the connection can fetch the rest.
    """

    def __init__(self, send: Send, may_stream: bool, session: HttpSession | None = None) -> None:
        self._send = send
        self._may_stream = may_stream
        self._session = session
        self._log: EventLog | None = None
        self._started = False

    async def send(self, message: bytes) -> None:
        if not self._may_stream:
            return
        if not self._started:
            self._started = True
            await self._send({"type": "http.response.start", "status": 200, "headers": list(_SSE)})
            if self._session is not None:
                self._log = self._session.new_log()
                if self._session.era.revision >= PRIMED_FROM:
                    priming = self._log.priming()
                    await self._send({"type": "http.response.body", "body": priming, "more_body": True})
        await self._send({"type": "http.response.body", "body": self._event(message), "more_body": True})

    def _event(self, message: bytes, *, last: bool = False) -> bytes:
        if self._log is not None:
            return self._log.add(message, last=last)
        return sse.event(envelope.one_line(message))

    async def finish(self, answer: bytes, status: int = 200) -> None:
        if not self._started:
            await _answer(self._send, status, answer)
            return
        await self._send({"type": "http.response.body", "body": self._event(answer, last=True), "more_body": False})


async def _write_log(log: EventLog, after: int, send: Send) -> None:
    """Send a stream's events from one on, until it is finished."""
    await send({"type": "http.response.start", "status": 200, "headers": list(_SSE)})
    await send({"type": "http.response.body", "body": b": open\n\n", "more_body": True})
    while True:
        if await log.more(after):
            body = log.since(after)
            after = log.sent
            await send({"type": "http.response.body", "body": body, "more_body": True})
        elif not log.finished:
            await send({"type": "http.response.body", "body": b": keep-alive\n\n", "more_body": True})
        if log.finished:
            break
    await send({"type": "http.response.body", "body": b"", "more_body": False})


class _Watches:
    """The watches of requests that began a moment ago: one timer starts them all, as most are over by then."""

    def __init__(self) -> None:
        self._new: set[_DisconnectWatch] = set()
        self._waiting = False

    def add(self, watch: _DisconnectWatch) -> None:
        self._new.add(watch)
        if not self._waiting:
            self._waiting = True
            asyncio.get_running_loop().call_later(WATCH_AFTER_S, self._start)

    def drop(self, watch: _DisconnectWatch) -> None:
        self._new.discard(watch)

    def _start(self) -> None:
        self._waiting = False
        started, self._new = self._new, set()
        for watch in started:
            watch.start()


class _DisconnectWatch:
    """Cancels the current task when its client hangs up. Looks only after a moment: most calls are over by then."""

    def __init__(self, receive: Receive, watches: _Watches) -> None:
        self.client_gone = False
        self._receive = receive
        self._owner = asyncio.current_task()
        self._task: asyncio.Task[None] | None = None
        self._watches = watches
        watches.add(self)

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        await _disconnected(self._receive)
        self.client_gone = True
        if self._owner is not None:
            self._owner.cancel()

    def swallow(self) -> None:
        if self._owner is not None:
            self._owner.uncancel()

    def stop(self) -> None:
        self._watches.drop(self)
        if self._task is not None:
            self._task.cancel()


def _is_modern(headers: Mapping[bytes, bytes]) -> bool:
    """Requests that name a revision without sessions, or one we never heard of, take the modern path and its errors."""
    revision = headers.get(b"mcp-protocol-version", b"").strip()
    return bool(revision) and revision not in _LEGACY


async def _body(receive: Receive, place: Place) -> bytes | None:
    """The whole request body, or None if it is over the limit.

    Raises:
        Full: other requests hold too much already.
        ClientGone: only a part of it came.
    """
    event = await receive()
    if event["type"] == "http.disconnect":
        raise ClientGone
    body: bytes = event.get("body", b"")
    if not event.get("more_body"):
        return body if len(body) <= MAX_BODY_BYTES else None
    parts = [body]
    size = len(body)
    place.hold(size)
    while event.get("more_body"):
        event = await receive()
        if event["type"] == "http.disconnect":
            raise ClientGone
        parts.append(event.get("body", b""))
        size += len(parts[-1])
        place.hold(len(parts[-1]))
        if size > MAX_BODY_BYTES:
            return None
    return b"".join(parts)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _drop(message: bytes) -> None:
    """Nothing precedes the answer to initialize."""


async def _answer(send: Send, status: int, body: bytes, extra: tuple[tuple[bytes, bytes], ...] = ()) -> None:
    headers = [(b"content-length", b"%d" % len(body)), *extra]
    if body:
        headers.append(_JSON)
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _id_in(body: bytes) -> bytes:
    """The id of the request in a body that is refused all the same; null if there is none."""
    try:
        return bytes(envelope.decode_from_client(body).id) or b"null"
    except WireError as exc:
        return exc.id


async def _refuse(send: Send, status: int, code: int, text: str) -> None:
    await _answer(send, status, envelope.error(b"null", code, text))


async def _refuse_full(send: Send, full: Full) -> None:
    body = envelope.error(b"null", envelope.INTERNAL_ERROR, str(full))
    await _answer(send, full.status, body, ((b"retry-after", b"%d" % RETRY_AFTER_S),))
