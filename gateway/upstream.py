"""One live connection to a server behind the gateway: ids, answers, progress, listings.

Knows no profile, principal or policy, and not what carries its bytes (a channel does)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Final, NamedTuple

from msgspec import Raw

from gateway import errors
from gateway.serverlog import ServerLog
from gateway.wire import envelope
from gateway.wire.channel import Channel
from gateway.wire.envelope import Envelope, Fields, WireError
from gateway.wire.handshake import ServerFacts, legacy_handshake

PROGRESS: Final = "notifications/progress"
MAX_PAGES: Final = 1000
MAX_ITEMS: Final = 10_000
"""Bounds on one listing: a hostile server must not page for ever."""
MAX_UNREAD_NOTICES: Final = 1000
"""Progress messages kept for a caller that does not read; older ones are dropped first."""
MAX_CALL_FACTOR: Final = 10
"""Progress extends a call's deadline, up to this many times the deadline in all."""


class Notice(NamedTuple):
    """A notification that belongs to one call (progress)."""

    method: str
    params: bytes


class Reply(NamedTuple):
    """The end of a call; exactly one of the two is set, as raw JSON."""

    result: bytes | None
    error: bytes | None


class Call:
    """One request in flight. Iterating yields any number of notices, then exactly one reply.

    Raises from iteration:
        UpstreamError: no reply will come.
    """

    __slots__ = ("_items", "_waiter", "deadline", "extended_s", "id", "progress_token", "timeout_s", "timer")

    def __init__(self, id: int, progress_token: Raw | None, timeout_s: float) -> None:
        self.id = id
        self.progress_token = progress_token
        self.timeout_s = timeout_s
        self.extended_s = 0.0
        self.timer: asyncio.TimerHandle | None = None
        self._items: deque[Notice | Reply | errors.UpstreamError] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def push(self, item: Notice | Reply | errors.UpstreamError) -> None:
        if len(self._items) >= MAX_UNREAD_NOTICES and isinstance(item, Notice):
            self._items.popleft()
        self._items.append(item)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next(self) -> Notice | Reply:
        if not self._items:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        item = self._items.popleft()
        if isinstance(item, errors.UpstreamError):
            raise item
        return item


class Upstream:
    """Correlates requests and answers over one channel. Owned by the pool task that opened it."""

    def __init__(
        self,
        server: str,
        log: ServerLog,
        *,
        call_timeout_s: float,
        on_notification: Callable[[Upstream, str, bytes], None],
    ) -> None:
        self.server = server
        self.log = log
        self.call_timeout_s = call_timeout_s
        self.facts: ServerFacts | None = None
        self.ended = asyncio.Event()
        self.end_reason = ""
        self.last_used = asyncio.get_running_loop().time()
        self._on_notification = on_notification
        self._channel: Channel | None = None
        self._calls: dict[int, Call] = {}
        self._next_id = 0

    # -- opening -----------------------------------------------------------------------------

    async def open(self, channel: Channel) -> None:
        """Shake hands over a channel that already delivers to us.

        Raises:
            UpstreamError: the server ended, stayed silent, or does not speak MCP.
        """
        self._channel = channel
        self.facts = await legacy_handshake(self)
        channel.negotiated(self.facts.revision)
        self.notify("notifications/initialized")

    @property
    def detail(self) -> dict[str, str]:
        return dict(self._channel.detail) if self._channel else {}

    @property
    def in_flight(self) -> int:
        return len(self._calls)

    # -- sending -----------------------------------------------------------------------------

    async def start(self, method: str, members: Fields, *, timeout_s: float | None = None) -> Call:
        """Send a request with the given params. The caller must read the call to its reply, or `cancel` it.

        Raises:
            UpstreamUnavailable: the connection is gone; nothing was sent.
        """
        if self.ended.is_set() or self._channel is None:
            raise errors.UpstreamUnavailable(f"server {self.server} is not connected: {self.end_reason}")
        self._next_id += 1
        id = self._next_id
        loop = asyncio.get_running_loop()
        call = Call(id, _exchange_token(members, id), timeout_s or self.call_timeout_s)
        call.timer = loop.call_later(call.timeout_s, self._expire, call)
        self._calls[id] = call
        self.last_used = loop.time()
        self._channel.send(_request(id, method, members), id)
        try:
            await self._channel.drain()
        except BaseException:
            self.cancel(call, "the gateway stopped waiting")
            raise
        return call

    async def request(self, method: str, members: Fields | None = None, *, timeout_s: float | None = None) -> bytes:
        """Send a request and return the raw result, ignoring progress.

        Raises:
            UpstreamError: no reply, or an error reply (`UpstreamInvalid` with the server's message).
        """
        call = await self.start(method, members or {}, timeout_s=timeout_s)
        try:
            while not isinstance(item := await call.next(), Reply):
                pass
        finally:
            self.cancel(call, "the gateway stopped waiting")
        if item.result is None:
            raise errors.UpstreamInvalid(f"server {self.server} refused {method}: {_error_text(item.error)}")
        return item.result

    def notify(self, method: str, params: bytes = b"") -> None:
        if self._channel is not None and not self.ended.is_set():
            self._channel.send(envelope.one_line(envelope.notification(method, params)))

    def cancel(self, call: Call, reason: str) -> None:
        """Withdraw a call if it is still open: the server is told, a late answer is dropped."""
        if self._calls.pop(call.id, None) is None:
            return
        self._finish(call)
        # MCP 2025-11-25 basic/utilities/cancellation.
        self.notify("notifications/cancelled", envelope.encode({"requestId": call.id, "reason": reason}))
        call.push(errors.UpstreamCancelled(f"cancelled: {reason}"))

    def _finish(self, call: Call) -> None:
        if call.timer is not None:
            call.timer.cancel()
            call.timer = None
        self.last_used = asyncio.get_running_loop().time()

    def _expire(self, call: Call) -> None:
        if self._calls.pop(call.id, None) is None:
            return
        self.notify("notifications/cancelled", envelope.encode({"requestId": call.id, "reason": "timed out"}))
        self._finish(call)
        waited = call.timeout_s + call.extended_s
        call.push(errors.UpstreamTimeout(f"server {self.server} did not answer within {waited:g} s"))

    # -- receiving (Receiver) ----------------------------------------------------------------

    def received(self, message: bytes) -> None:
        if message[:1] != b"{":
            self._unreadable(message)
            return
        try:
            incoming = envelope.decode(message)
        except WireError:
            self._unreadable(message)
            return
        match incoming.kind:
            case "response":
                self._answered(incoming)
            case "notification":
                self._notified(incoming)
            case "request":
                self._asked(incoming)

    def _unreadable(self, message: bytes) -> None:
        if message[:1] == b"[":
            try:
                members = envelope.decode_batch(message)
            except WireError:
                self.log.stray(message)
                return
            for member in members:
                if bytes(member)[:1] == b"{":
                    self.received(bytes(member))
            return
        self.log.stray(message)

    def _answered(self, incoming: Envelope) -> None:
        raw_id = bytes(incoming.id)
        call = self._calls.pop(int(raw_id), None) if raw_id.isdigit() else None
        if call is None:
            # Unknown, repeated or late answers are dropped: they must never reach another caller.
            return
        self._finish(call)
        if error := bytes(incoming.error):
            call.push(Reply(None, error))
        else:
            call.push(Reply(bytes(incoming.result), None))

    def _notified(self, incoming: Envelope) -> None:
        if incoming.method == PROGRESS:
            self._progressed(incoming.params)
        else:
            self._on_notification(self, incoming.method, bytes(incoming.params))

    def _progressed(self, params: Raw) -> None:
        try:
            members = envelope.fields(params)
        except WireError:
            return
        token = bytes(members.get("progressToken", b""))
        call = self._calls.get(int(token)) if token.isdigit() else None
        if call is None or call.progress_token is None:
            return
        if call.timer is not None and call.extended_s < call.timeout_s * MAX_CALL_FACTOR:
            loop = asyncio.get_running_loop()
            gained = loop.time() + call.timeout_s - call.timer.when()
            call.extended_s += gained
            call.timer.cancel()
            call.timer = loop.call_later(call.timeout_s, self._expire, call)
        members["progressToken"] = call.progress_token
        call.push(Notice(PROGRESS, envelope.encode(members)))

    def _asked(self, incoming: Envelope) -> None:
        """Questions from the server. This connection may be shared between callers, so the gateway declared no
        capability for any of them and answers only `ping`."""
        if self._channel is None:
            return
        id = bytes(incoming.id)
        if incoming.method == "ping":
            self._channel.send(envelope.result(id, b"{}"))
        else:
            self._channel.send(
                envelope.error(id, envelope.METHOD_NOT_FOUND, f"{incoming.method} was not offered by this client")
            )

    def failed(self, id: int, error: errors.UpstreamError) -> None:
        call = self._calls.pop(id, None)
        if call is not None:
            self._finish(call)
            call.push(error)

    def lost(self, reason: str) -> None:
        if self.ended.is_set():
            return
        self.end_reason = reason
        self.ended.set()
        calls, self._calls = self._calls, {}
        for call in calls.values():
            self._finish(call)
            call.push(errors.UpstreamLost(f"server {self.server} went away during the call: {reason}"))

    # -- listing -----------------------------------------------------------------------------

    async def list_all(self, method: str, key: str) -> list[Raw]:
        """Every item of a paginated listing, in the server's order.

        Raises:
            UpstreamError: no or invalid answer, or more pages than `MAX_PAGES`, more items than `MAX_ITEMS`.
        """
        found: list[Raw] = []
        async for page in self._pages(method):
            try:
                found += envelope.items(page.get(key, Raw(b"[]")))
            except WireError as exc:
                raise errors.UpstreamInvalid(f"server {self.server}: {method}: {exc}") from exc
            if len(found) > MAX_ITEMS:
                raise errors.UpstreamInvalid(f"server {self.server} lists more than {MAX_ITEMS} items in {method}")
        return found

    async def _pages(self, method: str) -> AsyncIterator[Fields]:
        cursor: Raw | None = None
        for _ in range(MAX_PAGES):
            # An empty-string cursor is a real cursor (MCP server/utilities/pagination): only absence ends it.
            members = {"cursor": cursor} if cursor is not None else None
            try:
                page = envelope.fields(await self.request(method, members))
            except WireError as exc:
                raise errors.UpstreamInvalid(f"server {self.server}: {method}: {exc}") from exc
            yield page
            cursor = page.get("nextCursor")
            if cursor is None or bytes(cursor) == b"null":
                return
        raise errors.UpstreamInvalid(f"server {self.server} gave more than {MAX_PAGES} pages for {method}")


def _request(id: int, method: str, members: Fields) -> bytes:
    params = envelope.encode(members) if members else b""
    return envelope.one_line(envelope.request(b"%d" % id, method, params))


def _exchange_token(members: Fields, id: int) -> Raw | None:
    """Put our own progress token (the request id) into `_meta` in place of the caller's, which is returned."""
    meta = members.get("_meta")
    if meta is None or b'"progressToken"' not in bytes(meta):
        return None
    inner = envelope.fields(meta)
    token = inner.get("progressToken")
    if token is not None:
        inner["progressToken"] = envelope.raw(id)
        members["_meta"] = envelope.raw(inner)
    return token


def _error_text(error: bytes | None) -> str:
    try:
        members = envelope.fields(error or b"{}")
        return envelope.text(members["message"], "message")[:500]
    except (WireError, KeyError):
        return "no message"
