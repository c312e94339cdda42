"""One live connection to a server behind the gateway: ids, answers, progress, listings.

Knows no profile, principal or policy, and not what carries its bytes (a channel does)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Final, NamedTuple, TypeAlias

from msgspec import Raw

from gateway import errors
from gateway.serverlog import ServerLog
from gateway.wire import envelope, headers, methods
from gateway.wire.channel import Channel, Routing
from gateway.wire.envelope import Envelope, Fields, WireError
from gateway.wire.handshake import OWN_CAPABILITIES, ServerFacts, legacy_meta, modern_meta, shake_hands
from gateway.wire.meta import onward
from gateway.wire.revisions import Era

PROGRESS: Final = "notifications/progress"
LOG: Final = "notifications/message"
MAX_PAGES: Final = 1000
MAX_ITEMS: Final = 10_000
"""Bounds on one listing: a hostile server must not page for ever."""
MAX_LISTED_COMMAS: Final = 1_000_000
"""In one page of a listing: ten thousand items with a hundred members each, and nothing is built from more."""
MAX_UNREAD_NOTICES: Final = 1000
MAX_UNREAD_BYTES: Final = 4 * 1024 * 1024
"""Progress and log messages kept for a caller that does not read; older ones are dropped first."""
MAX_UNREAD_QUESTIONS: Final = 64
"""Questions of one call that wait to be put to its caller; one more is declined."""
MAX_ID_BYTES: Final = 1024
"""Of a server's question: we must repeat it in the answer."""
TICK_S: Final = 0.002
"""An event loop may count in milliseconds: its timers come that much too early."""
MAX_CALL_FACTOR: Final = 10
"""Progress extends a call's deadline, up to this many times the deadline in all."""


class Notice(NamedTuple):
    """A notification that belongs to one call (progress)."""

    method: str
    params: bytes


class Question(NamedTuple):
    """A request of the server's, asked in the course of one call. `id` is the server's own, as raw JSON."""

    id: bytes
    method: str
    params: bytes


class Reply(NamedTuple):
    """The end of a call; exactly one of the two is set, as raw JSON."""

    result: bytes | None
    error: bytes | None


Item: TypeAlias = Notice | Question | Reply | errors.UpstreamError
"""What a call brings; the last two end it."""


class CallerFacts(NamedTuple):
    """What a server may know of the client a call is made for; both members are that client's own JSON."""

    capabilities: Raw = OWN_CAPABILITIES
    log_level: str = ""


class Call:
    """One request in flight: any number of notices and questions, then exactly one reply."""

    __slots__ = ("_items", "_unread_bytes", "_waiter", "due", "extended_s", "id", "progress_token", "timeout_s")

    def __init__(self, id: int, progress_token: Raw | None, timeout_s: float | None) -> None:
        self.id = id
        self.progress_token = progress_token
        self.timeout_s = timeout_s
        """None for a stream that has no end of its own."""
        self.extended_s = 0.0
        self.due: float | None = None
        """When it runs out of time, in seconds of the loop's clock; None while it waits for a person."""
        self._items: list[Item] = []
        self._unread_bytes = 0
        self._waiter: asyncio.Future[Item] | None = None

    def push(self, item: Item) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(item)
            return
        if isinstance(item, Notice):
            self._unread_bytes += len(item.params)
            while len(self._items) >= MAX_UNREAD_NOTICES or self._unread_bytes > MAX_UNREAD_BYTES:
                if not self._drop_oldest_notice():
                    break
        self._items.append(item)

    def _drop_oldest_notice(self) -> bool:
        for position, item in enumerate(self._items):
            if isinstance(item, Notice):
                self._unread_bytes -= len(item.params)
                del self._items[position]
                return True
        return False

    def has_room_for_a_question(self) -> bool:
        return sum(isinstance(item, Question) for item in self._items) < MAX_UNREAD_QUESTIONS

    def put_back(self, item: Item) -> None:
        """Undo one `next`."""
        self._items.insert(0, item)
        if isinstance(item, Notice):
            self._unread_bytes += len(item.params)

    async def next(self) -> Notice | Question | Reply:
        """
        Raises:
            UpstreamError: no reply will come.
        """
        if self._items:
            item = self._items.pop(0)
            if isinstance(item, Notice):
                self._unread_bytes -= len(item.params)
        else:
            item = await self._pushed()
        if isinstance(item, errors.UpstreamError):
            raise item
        return item

    async def _pushed(self) -> Item:
        """What is pushed next. If it came in the same step in which we were cancelled, it is kept."""
        waiter: asyncio.Future[Item] = asyncio.get_running_loop().create_future()
        self._waiter = waiter
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.put_back(waiter.result())
            raise
        finally:
            self._waiter = None


class Upstream:
    """Correlates requests and answers over one channel. Owned by the pool task that opened it."""

    def __init__(
        self,
        server: str,
        log: ServerLog,
        *,
        call_timeout_s: float,
        on_notification: Callable[[Upstream, str, bytes], None],
        capabilities: Raw | None = None,
        owner: str = "",
    ) -> None:
        """`owner` is the principal whose own credential the connection holds, if it does. `capabilities` are declared
        to a legacy server, which may then ask; None for a connection that serves several callers, over which a question
        could not be tied to the call that caused it."""
        self.server = server
        self.owner = owner
        self.log = log
        self.call_timeout_s = call_timeout_s
        self.facts: ServerFacts | None = None
        self.ended = asyncio.Event()
        self.end_reason = ""
        self.stopped_because = ""
        """Why the gateway ends it, if it does: of more use to callers than how the server then ended."""
        self.suspect = asyncio.Event()
        """Set when a call was not answered in time: the server may be busy, or not well."""
        self.last_used = asyncio.get_running_loop().time()
        self.subscribed: set[str] = set()
        """Resource URIs, as the server knows them, whose changes somebody wants to hear of."""
        self.pins = 0
        """Open tasks that live in this server: it is not idle."""
        self.filter_changed = asyncio.Event()
        self.listening: int | None = None
        """The id of the open `subscriptions/listen` request to a modern server."""
        self.mirrored: dict[str, dict[headers.Path, tuple[str, str]]] = {}
        """By tool name: the arguments that a modern HTTP request repeats in headers."""
        self._on_notification = on_notification
        self._capabilities = capabilities
        self._channel: Channel | None = None
        self._calls: dict[int, Call] = {}
        self._alarm: asyncio.TimerHandle | None = None
        """Fires when the first of the open calls runs out of time, or one that has ended would have."""
        self._next_id = 0
        self.n_dropped = 0
        """Answers to nothing: repeated, late, or never asked for."""
        self._era: Era = "legacy"
        self._revision = ""

    # -- opening -----------------------------------------------------------------------------

    async def open(self, channel: Channel, known: Era | None = "legacy") -> None:
        """Shake hands over a channel that already delivers to us; `known` is the era this server spoke before.

        Raises:
            UpstreamError: the server ended, stayed silent, or does not speak MCP.
        """
        self._channel = channel
        self.facts = await shake_hands(self, known, self._capabilities or Raw(b"{}"))
        if self.facts.era == "legacy":
            self.notify("notifications/initialized")
        await channel.settled()

    def speaks(self, era: Era, revision: str) -> None:
        self._era, self._revision = era, revision
        if self._channel is not None:
            self._channel.negotiated(era, revision)

    @property
    def detail(self) -> dict[str, str]:
        return dict(self._channel.detail) if self._channel else {}

    @property
    def in_flight(self) -> int:
        return len(self._calls) - (self.listening in self._calls)

    @property
    def busy(self) -> bool:
        """Whether it must not be taken for idle."""
        return bool(self.in_flight or self.subscribed or self.pins)

    def listen_filter(self) -> dict[str, object]:
        """What to listen for: changes of every list the server has, and of the subscribed resources."""
        wanted: dict[str, object] = {}
        for name in ("tools", "prompts", "resources"):
            if self.facts is not None and self.facts.offers(name):
                wanted[f"{name}ListChanged"] = True
        if self.subscribed:
            wanted["resourceSubscriptions"] = sorted(self.subscribed)
        return wanted

    async def subscribe(self, uri: str) -> None:
        """Ask for `notifications/resources/updated` of one resource, in the server's era.

        Raises:
            UpstreamError: a legacy server refuses.
        """
        self.subscribed.add(uri)
        if self._era == "modern":
            self.filter_changed.set()
            return
        try:
            await self.request("resources/subscribe", {"uri": envelope.raw(uri)})
        except errors.UpstreamError:
            self.subscribed.discard(uri)
            raise

    async def unsubscribe(self, uri: str) -> None:
        """The reverse of `subscribe`."""
        self.subscribed.discard(uri)
        if self._era == "modern":
            self.filter_changed.set()
        else:
            await self.request("resources/unsubscribe", {"uri": envelope.raw(uri)})

    @property
    def may_ask(self) -> bool:
        return self._capabilities is not None

    # -- sending -----------------------------------------------------------------------------

    async def start(
        self,
        method: str,
        members: Fields,
        *,
        caller: Callable[[], CallerFacts] = CallerFacts,
        timeout_s: float | None = None,
        endless: bool = False,
    ) -> Call:
        """Send a request with the given params. The caller must read the call to its reply, or `cancel` it. Whom it is
        made for is asked only where the server is told.

        Raises:
            UpstreamUnavailable: the connection is gone; nothing was sent.
        """
        if self.ended.is_set() or self._channel is None:
            raise errors.UpstreamUnavailable(f"server {self.server} is not connected: {self.end_reason}")
        self._next_id += 1
        id = self._next_id
        token = self._prepare(members, id, caller) if "_meta" in members or self._era == "modern" else None
        call = Call(id, token, None if endless else timeout_s or self.call_timeout_s)
        self._calls[id] = call
        message = envelope.request(b"%d" % id, method, envelope.encode(members) if members else b"")
        routing = self._routing(method, members) if self._era == "modern" else None
        channel = self._channel
        channel.send(envelope.one_line(message), id, routing)
        if id in self._calls:  # else it has failed already
            self.resume_timer(call)
            if call.timeout_s is not None:
                self.last_used = asyncio.get_running_loop().time()
        if channel.is_full:
            await self._until_read(call, channel)
        return call

    async def _until_read(self, call: Call, channel: Channel) -> None:
        """Wait until the server reads what it was sent, so that nobody sends it ever more."""
        try:
            async with asyncio.timeout(call.timeout_s):
                await channel.drain()
        except TimeoutError:
            pass  # the call's own deadline is the same, and says so to whoever reads the call
        except BaseException:
            self.cancel(call, "the gateway stopped waiting")
            raise

    def _prepare(self, members: Fields, id: int, caller: Callable[[], CallerFacts]) -> Raw | None:
        """Write `_meta` as this server's era wants it, with our progress token; returns the caller's token."""
        raw_meta = members.get("_meta")
        facts = caller()
        if self._era == "modern":
            known = _onward(raw_meta, self._revision, facts)
            if known is not None:
                members["_meta"] = known
                return None
        meta = envelope.fields(raw_meta) if raw_meta is not None else {}
        token = meta.get("progressToken")
        if token is not None:
            meta["progressToken"] = envelope.raw(id)
        if self._era == "modern":
            meta = modern_meta(meta, self._revision, facts.capabilities, facts.log_level)
        else:
            meta = legacy_meta(meta)
        if meta:
            members["_meta"] = envelope.raw(meta)
        else:
            members.pop("_meta", None)
        return token

    def _routing(self, method: str, members: Fields) -> Routing:
        member = headers.NAME_OF.get(method)
        name = envelope.text(members[member], member) if member is not None and member in members else None
        params: dict[str, str] = {}
        if method == "tools/call" and name is not None and (parameters := self.mirrored.get(name)):
            params = headers.mirrored(parameters, envelope.value(members.get("arguments", Raw(b"{}"))))
        return Routing(method, name, params)

    async def request(self, method: str, members: Fields | None = None, *, timeout_s: float | None = None) -> bytes:
        """Send a request of the gateway's own and return the raw result, ignoring progress.

        Raises:
            UpstreamError: no reply, or an error reply (`UpstreamRefused` with the server's message).
        """
        call = await self.start(method, members if members is not None else {}, timeout_s=timeout_s)
        try:
            while not isinstance(item := await call.next(), Reply):
                if isinstance(item, Question):
                    self.answer(item, None)
        finally:
            self.cancel(call, "the gateway stopped waiting")
        if item.result is None:
            code, text, data = _error_parts(item.error)
            raise errors.UpstreamRefused(f"server {self.server} refused {method}: {text}", code, data)
        return item.result

    def notify(self, method: str, params: bytes = b"") -> None:
        if self._channel is not None and not self.ended.is_set():
            self._channel.send(envelope.one_line(envelope.notification(method, params)))

    def answer(self, question: Question, result: bytes | None, error: bytes | None = None) -> None:
        """Answer a question of the server's; with neither result nor error, decline it."""
        if self._channel is None or self.ended.is_set():
            return
        if result is not None:
            message = envelope.result(question.id, result)
        elif error is not None:
            message = envelope.error_raw(question.id, error)
        else:
            message = envelope.error(question.id, envelope.METHOD_NOT_FOUND, f"{question.method} is not offered here")
        self._channel.send(envelope.one_line(message))

    def cancel(self, call: Call, reason: str) -> None:
        """Withdraw a call if it is still open: the server is told, a late answer is dropped."""
        if self._calls.pop(call.id, None) is None:
            return
        self._finish(call)
        self._withdraw(call.id, reason)
        call.push(errors.UpstreamCancelled(f"cancelled: {reason}"))

    def _withdraw(self, id: int, reason: str) -> None:
        # Closing the stream is the modern form over HTTP, a notification everything else (MCP basic/utilities).
        if self._channel is not None and not self._channel.abort(id):
            self.notify("notifications/cancelled", envelope.encode({"requestId": id, "reason": reason}))

    def pause_timer(self, call: Call) -> None:
        """The call waits for a person, not for the server."""
        call.due = None

    def resume_timer(self, call: Call) -> None:
        """The call has its whole time from now on. There is one timer for all calls: one for each would cost more than
        sending the request."""
        if call.timeout_s is not None and call.due is None:
            call.due = asyncio.get_running_loop().time() + call.timeout_s
            self._wake_at(call.due)

    def _wake_at(self, due: float) -> None:
        if self._alarm is not None:
            if self._alarm.when() <= due:
                return
            self._alarm.cancel()
        self._alarm = asyncio.get_running_loop().call_at(due, self._expire_due)

    def _expire_due(self) -> None:
        """End the calls whose time is over, and wait for the next."""
        self._alarm = None
        now = asyncio.get_running_loop().time() + TICK_S
        over = [call for call in self._calls.values() if call.due is not None and call.due <= now]
        left = [call.due for call in self._calls.values() if call.due is not None and call.due > now]
        if left:
            self._wake_at(min(left))
        for call in over:
            self._expire(call)

    def _finish(self, call: Call) -> None:
        """A call puts the idle stop off, also at its end; listening for changes does not."""
        call.due = None
        if call.timeout_s is not None:
            self.last_used = asyncio.get_running_loop().time()

    def _expire(self, call: Call) -> None:
        if self._calls.pop(call.id, None) is None:
            return
        self.suspect.set()
        self._finish(call)
        waited = (call.timeout_s or 0) + call.extended_s
        call.push(errors.UpstreamTimeout(f"server {self.server} did not answer within {waited:g} s"))
        self._withdraw(call.id, "timed out")

    # -- receiving (Receiver) ----------------------------------------------------------------

    def received(self, message: bytes, id: int | None = None) -> bool:
        if self.log.hides is not None:
            message = self.log.hides.clean(message)
        if message[:1] != b"{":
            return self._unreadable(message, id)
        try:
            incoming = envelope.decode(message)
        except WireError:
            return self._unreadable(message, id)
        if not incoming.method:
            return self._answered(incoming)
        if bytes(incoming.id):
            self._asked(incoming, id)
        else:
            self._notified(incoming, id)
        return False

    def _unreadable(self, message: bytes, id: int | None) -> bool:
        if message[:1] == b"[":
            try:
                members = envelope.decode_batch(message)
            except WireError:
                self.log.stray(message)
                return False
            answers = [self.received(bytes(member), id) for member in members if bytes(member)[:1] == b"{"]
            return bool(answers) and all(answers)
        self.log.stray(message)
        return False

    def _answered(self, incoming: Envelope) -> bool:
        id = envelope.number(incoming.id)
        call = self._calls.pop(id, None) if id is not None else None
        if call is None:
            # Unknown, repeated or late answers are dropped: they must never reach another caller.
            self.n_dropped += 1
            if self.n_dropped == 1:
                self.log.write("gateway", "it answered a request that is not open; such answers are dropped")
            return False
        self._finish(call)
        if error := bytes(incoming.error):
            call.push(Reply(None, error))
        else:
            call.push(Reply(bytes(incoming.result), None))
        return True

    def _notified(self, incoming: Envelope, id: int | None) -> None:
        if incoming.method == PROGRESS:
            self._progressed(incoming.params)
        elif self._is_of_a_call(incoming.method) and (call := self._caused_by(id)) is not None:
            call.push(Notice(incoming.method, bytes(incoming.params)))
        else:
            self._on_notification(self, incoming.method, bytes(incoming.params))

    @staticmethod
    def _is_of_a_call(method: str) -> bool:
        """Whether a notification may be about the call on whose stream it comes."""
        return method == LOG or methods.is_foreign_notification(method)

    def _caused_by(self, id: int | None) -> Call | None:
        """The call a message belongs to: that of its stream, or the only one on a connection that serves one caller.
        The stream we listen on is no caller's."""
        if id is not None:
            return self._calls.get(id) if id != self.listening else None
        return next(iter(self._calls.values())) if self.may_ask and len(self._calls) == 1 else None

    def _progressed(self, params: Raw) -> None:
        try:
            members = envelope.fields(params)
        except WireError:
            return
        token = envelope.number(members.get("progressToken", b""))
        call = self._calls.get(token) if token is not None else None
        if call is None or call.progress_token is None:
            return
        if call.due is not None and call.timeout_s is not None and call.extended_s < call.timeout_s * MAX_CALL_FACTOR:
            call.extended_s += asyncio.get_running_loop().time() + call.timeout_s - call.due
            self.pause_timer(call)
            self.resume_timer(call)
        members["progressToken"] = call.progress_token
        call.push(Notice(PROGRESS, envelope.encode(members)))

    def _asked(self, incoming: Envelope, id: int | None) -> None:
        """A question from the server goes to the call on whose stream it came, else to the latest one."""
        if len(bytes(incoming.id)) > MAX_ID_BYTES:
            self.log.stray(bytes(incoming.id))
            return
        question = Question(bytes(incoming.id), incoming.method, bytes(incoming.params))
        if question.method == "ping":
            self.answer(question, b"{}")
            return
        call = self._calls.get(id) if id is not None else None
        if call is None and self._calls:
            call = self._calls[max(self._calls)]
        if call is None or not self.may_ask or not call.has_room_for_a_question():
            self.answer(question, None)
        else:
            call.push(question)

    def waits_for(self, id: int) -> bool:
        return id in self._calls

    def failed(self, id: int, error: errors.UpstreamError) -> None:
        call = self._calls.pop(id, None)
        if call is not None:
            self._finish(call)
            call.push(error)

    def lost(self, reason: str) -> None:
        if self.ended.is_set():
            return
        reason = self.end_reason = self.stopped_because or reason
        self.ended.set()
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
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
                listed = bytes(page.get(key, b"[]"))
                if listed.count(b",") > MAX_LISTED_COMMAS:
                    raise errors.UpstreamInvalid(f"server {self.server} lists more in {method} than anybody could read")
                found += envelope.items(listed)
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


def _onward(meta: Raw | None, revision: str, facts: CallerFacts) -> Raw | None:
    return onward(bytes(meta) if meta is not None else b"{}", revision, bytes(facts.capabilities), facts.log_level)


def _error_parts(error: bytes | None) -> tuple[int, str, bytes]:
    """Code, message and data of an error object, as far as it is one."""
    try:
        members = envelope.fields(error or b"{}")
        code, text = int(envelope.value(members["code"])), envelope.text(members["message"], "message")[:500]
        return code, text, bytes(members.get("data", b""))
    except (WireError, KeyError, TypeError, ValueError):
        return 0, "no message", b""
