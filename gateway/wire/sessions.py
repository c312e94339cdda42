"""Sessions of clients over HTTP, the streams kept for those that come back, and how much of all that there may be.

Knows no request and no socket; what a session does is the era's."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from typing import Final

from catalog import Profile
from gateway.door import Door
from gateway.wire import envelope, sse
from gateway.wire.legacy import LegacySession
from policies import Principal

MAX_SESSIONS: Final = 10_000
MAX_SESSIONS_OF_ONE: Final = 1_000
"""Of one principal; its session that idled longest makes room, if it idled for `SPARED_S` at least."""
SESSION_IDLE_S: Final = 1800.0
SWEEP_S: Final = 60.0
SPARED_S: Final = 60.0
MAX_OPEN: Final = 4096
MAX_OPEN_OF_ONE: Final = 1024
"""Requests under way, and streams open, at once: of all principals, and of one."""
MAX_HELD_BYTES: Final = 256 * 1024 * 1024
"""Large request bodies of all requests under way; small ones are bounded by their number."""
MAX_EVENTS: Final = 1000
MAX_LOG_BYTES: Final = 4 * 1024 * 1024
MAX_LOGS: Final = 32
"""What is kept of each stream, and how many streams of a session, for clients that come back."""
MAX_KEPT_BYTES: Final = 128 * 1024 * 1024
"""The same for all streams of all sessions; the oldest streams are forgotten first."""
RETRY_MS: Final = 1000
KEEP_ALIVE_S: Final = 25.0


class Full(Exception):
    """There is no room for one more; `status` is 429 if the caller has taken its share, 503 if all together did."""

    def __init__(self, status: int, what: str) -> None:
        whose = "you have" if status == 429 else "there are"
        super().__init__(f"{whose} too many {what}; try again later")
        self.status = status


class Place:
    """One request under way, from its first byte to its last; must be left."""

    __slots__ = ("_places", "_principal", "_size")

    def __init__(self, places: Places, principal: str) -> None:
        self._places = places
        self._principal = principal
        self._size = 0

    def hold(self, size: int) -> None:
        """Count bytes of a large body until the place is left.

        Raises:
            Full: all requests under way hold too many already.
        """
        if self._places.held_bytes + size > MAX_HELD_BYTES:
            raise Full(503, "large requests under way")
        self._size += size
        self._places.held_bytes += size

    def leave(self) -> None:
        places = self._places
        places.held_bytes -= self._size
        places.taken -= 1
        left = places.by_principal.pop(self._principal) - 1
        if left:
            places.by_principal[self._principal] = left


class Places:
    """Counts what is under way, in all and by principal."""

    def __init__(self) -> None:
        self.taken = 0
        self.by_principal: dict[str, int] = {}
        self.held_bytes = 0

    def enter(self, principal: Principal) -> Place:
        """
        Raises:
            Full: every place is taken, or every one this principal may take.
        """
        own = self.by_principal.get(principal.id, 0)
        if own >= MAX_OPEN_OF_ONE:
            raise Full(429, "requests under way")
        if self.taken >= MAX_OPEN:
            raise Full(503, "requests under way")
        self.taken += 1
        self.by_principal[principal.id] = own + 1
        return Place(self, principal.id)


class Kept:
    """What the logs of all sessions hold together, oldest first."""

    def __init__(self) -> None:
        self.size_bytes = 0
        self._logs: dict[EventLog, None] = {}

    def grew(self, log: EventLog, by: int) -> None:
        self.size_bytes += by
        self._logs.setdefault(log)
        while self.size_bytes > MAX_KEPT_BYTES and len(self._logs) > 1:
            oldest = next(one for one in self._logs if one is not log)
            oldest.forget()

    def forgot(self, log: EventLog, size: int) -> None:
        self.size_bytes -= size
        self._logs.pop(log, None)


class EventLog:
    """The events of one stream, kept for a client that loses the connection and comes back with Last-Event-ID.

    Ids are `STREAM-NUMBER`. Bounded: the oldest events go first.
    """

    def __init__(self, name: str, kept: Kept) -> None:
        self.name = name
        self.finished = False
        self.sent = 0
        """The number of the last event handed to a connection."""
        self._kept = kept
        self._last = 0
        self._events: deque[tuple[int, bytes]] = deque()
        self._bytes = 0
        self._wake = asyncio.Event()

    def add(self, message: bytes, *, last: bool = False) -> bytes:
        """Keep a message and return it as an event."""
        self._last += 1
        event = sse.event(envelope.one_line(message), f"{self.name}-{self._last}".encode())
        self._events.append((self._last, event))
        before = self._bytes
        self._bytes += len(event)
        while (self._bytes > MAX_LOG_BYTES or len(self._events) > MAX_EVENTS) and len(self._events) > 1:
            self._bytes -= len(self._events.popleft()[1])
        self._kept.grew(self, self._bytes - before)
        self.finished = last
        self._wake.set()
        return event

    def forget(self) -> None:
        """Keep nothing of what was; numbering goes on."""
        self._kept.forgot(self, self._bytes)
        self._events.clear()
        self._bytes = 0

    def priming(self) -> bytes:
        """The first event of a stream: an id to come back with, and when (MCP 2025-11-25, basic/transports)."""
        return b"id: %b-0\nretry: %d\ndata: \n\n" % (self.name.encode(), RETRY_MS)

    def since(self, number: int) -> bytes:
        """Everything after an event, ready to send."""
        self.sent = self._last
        return b"".join(event for n, event in self._events if n > number)

    async def more(self, number: int) -> bool:
        """Wait for events after `number`, at most `KEEP_ALIVE_S`; False if none came."""
        if self._last > number:
            return True
        if self.finished:
            return False
        self._wake.clear()
        try:
            async with asyncio.timeout(KEEP_ALIVE_S):
                await self._wake.wait()
        except TimeoutError:
            return False
        return self._last > number

    def end(self) -> None:
        self.finished = True
        self._wake.set()


class HttpSession:
    """A legacy session with its id, its listening stream and the streams that may be resumed."""

    def __init__(self, door: Door, principal: Principal, profile: Profile, kept: Kept) -> None:
        self.era = LegacySession(door, principal, profile, self._keep)
        self.id = self.era.id
        self.last_used = asyncio.get_running_loop().time()
        self.open = 0
        """Requests and streams under way; a session in use does not idle."""
        self.listening = False
        self.outbox = EventLog("0", kept)
        """What belongs to no request; the listening stream sends it."""
        self._kept = kept
        self._logs: OrderedDict[str, EventLog] = OrderedDict()
        self._count = 0

    def _keep(self, message: bytes) -> None:
        self.outbox.add(message)

    def new_log(self) -> EventLog:
        self._count += 1
        log = self._logs[str(self._count)] = EventLog(str(self._count), self._kept)
        if len(self._logs) > MAX_LOGS:
            self._logs.popitem(last=False)[1].forget()
        return log

    def find_log(self, event_id: str) -> tuple[EventLog, int] | None:
        """The stream and event number behind a Last-Event-ID of this session."""
        name, _, number = event_id.partition("-")
        log = self.outbox if name == self.outbox.name else self._logs.get(name)
        after = envelope.number(number.encode())
        return (log, after) if log is not None and after is not None else None

    def close(self) -> None:
        for log in (self.outbox, *self._logs.values()):
            log.end()
            log.forget()
        self.era.close()


class Sessions:
    """Every session of one endpoint, found only by the principal and the profile it was opened for."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._sessions: dict[str, HttpSession] = {}
        self._by_principal: Counter[Principal] = Counter()
        self._sweep: asyncio.TimerHandle | None = None
        self.kept = Kept()

    def __len__(self) -> int:
        return len(self._sessions)

    def new(self, principal: Principal, profile: Profile) -> HttpSession:
        """A session that is not among these yet.

        Raises:
            Full: there is no room for it.
        """
        self._make_room(principal)
        return HttpSession(self._door, principal, profile, self.kept)

    def _make_room(self, principal: Principal) -> None:
        if self._by_principal[principal] >= MAX_SESSIONS_OF_ONE:
            spared = asyncio.get_running_loop().time() - SPARED_S
            own = [one for one in self._sessions.values() if one.era.principal == principal and not one.open]
            idlest = min(own, key=lambda one: one.last_used, default=None)
            if idlest is None or idlest.last_used > spared:
                raise Full(429, "sessions")
            self.end(idlest)
        if len(self._sessions) >= MAX_SESSIONS:
            raise Full(503, "sessions")

    def add(self, session: HttpSession) -> None:
        self._sessions[session.id] = session
        self._by_principal[session.era.principal] += 1
        if self._sweep is None:
            self._sweep = asyncio.get_running_loop().call_later(SWEEP_S, self._expire)

    def find(self, id: str, principal: Principal, profile: Profile) -> HttpSession | None:
        """A session of this very principal and profile; anybody else's looks like none at all."""
        session = self._sessions.get(id)
        if session is None or session.era.principal != principal or session.era.profile.name != profile.name:
            return None
        return session

    def end(self, session: HttpSession) -> None:
        """Withdraw what the session has open and forget it; idempotent."""
        if self._sessions.pop(session.id, None) is not None:
            self._by_principal[session.era.principal] -= 1
            session.close()

    def _expire(self) -> None:
        self._sweep = None
        oldest_allowed = asyncio.get_running_loop().time() - SESSION_IDLE_S
        for session in list(self._sessions.values()):
            if not session.open and session.last_used < oldest_allowed:
                self.end(session)
        if self._sessions:
            self._sweep = asyncio.get_running_loop().call_later(SWEEP_S, self._expire)

    def close(self) -> None:
        for session in list(self._sessions.values()):
            self.end(session)
        if self._sweep is not None:
            self._sweep.cancel()
