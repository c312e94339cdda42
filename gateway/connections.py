"""Connections to servers as the pool keeps them: by whom they may be used, whether they start, run or are to end.

Knows what each one is; what to do with it is the pool's business. Only the pool changes any of this."""

from __future__ import annotations

import asyncio
import itertools
from collections import OrderedDict
from collections.abc import Hashable
from typing import Final, Literal, NamedTuple

from msgspec import Raw

from catalog import Entry
from gateway.breaker import Breaker
from gateway.listings import Listing
from gateway.serverlog import ServerLog
from gateway.upstream import Upstream

SHARED: Final = "shared"
SPARE: Final = "spare"
"""A connection of an interactive server kept ready for the next caller that needs one of its own."""


class Credential(NamedTuple):
    """Whose credential a server is given. Callers share a connection only if both members are the same."""

    owner: str = ""
    """The principal whose own secrets or tokens it holds; empty where it holds shared ones or none."""
    version: str = ""
    """Changes with each change of what the owner keeps for this server."""


NOBODY: Final = Credential()
"""Servers that are given no credential of a caller's."""
HANDED_S: Final = 0.1
"""A connection handed out so short a time ago is about to be used, and not idle."""

MAX_BREAKERS: Final = 1024
"""Credentials of whose last starts is remembered whether they failed."""

_turns = itertools.count()

State = Literal["idle", "preparing", "starting", "running", "failed"]


class Lease(NamedTuple):
    """A connection of one's own. `owner` ends all its connections at once; `exclusive` ones serve one call at a
    time."""

    owner: Hashable
    capabilities: Raw
    exclusive: bool


class Key(NamedTuple):
    """Who may use a connection: everybody with the same credential (`SHARED`), nobody yet (`SPARE`), or one owner."""

    owner: Hashable
    number: int = 0
    credential: Credential = NOBODY

    @property
    def is_leased(self) -> bool:
        return self.owner not in (SHARED, SPARE)


SHARED_KEY: Final = Key(SHARED)


class Connection:
    """One connection to a server, from the wish for it to its end."""

    def __init__(self, key: Key, capabilities: Raw | None) -> None:
        self.key = key
        self.capabilities = capabilities
        self.upstream: Upstream | None = None
        self.starting: asyncio.Future[Upstream] | None = None
        self.taken = False
        """An exclusive lease holds it, or a listing is made over it."""
        self.callers = 0
        """How many wait for it to start."""
        self.counts = True
        """Whether it takes a place: a remote server does not."""
        self.handed_at = 0.0
        self.turn = 0
        """Orders what was handed out within one tick of the loop's clock, which is a millisecond."""
        self.stop = asyncio.Event()
        self.why = ""
        """What calls in flight are told when it is stopped, where there is more to say than that it was."""
        self.is_sick = False
        """It is stopped because it answers nothing any more."""

    def hand_out(self, now: float) -> None:
        self.handed_at, self.turn = now, next(_turns)

    def end(self, why: str) -> None:
        self.why = why
        self.stop.set()

    @property
    def is_live(self) -> bool:
        """Ready for a call right now."""
        return (
            self.upstream is not None
            and self.starting is None
            and not self.stop.is_set()
            and not self.upstream.ended.is_set()
        )

    def is_unused(self, now: float) -> bool:
        """No call of anybody's runs on it, or is about to."""
        in_use = self.upstream is not None and (self.upstream.in_flight or self.upstream.pins)
        return not in_use and not self.taken and now - self.handed_at > HANDED_S

    def is_idle(self, now: float) -> bool:
        """Ready, unused, and nobody would miss it."""
        return self.is_live and self.is_unused(now) and self.upstream is not None and not self.upstream.busy

    @property
    def last_used(self) -> float:
        return max(self.handed_at, self.upstream.last_used if self.upstream is not None else 0.0)


class Server:
    """One catalogue entry as it runs here."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.refusal = ""
        """Why the rules in force refuse it; then it offers nothing, and nothing is started."""
        self.log = ServerLog()
        self.state: State = "idle"
        self.runtime = ""
        self.error = ""
        self.heard: Listing | None = None
        """What it says it offers."""
        self.listing: Listing | None = None
        """What of that is offered: tools that wait for a person's approval are left out."""
        self.connections: dict[Key, Connection] = {}
        self.breaker = Breaker()
        self._breakers: OrderedDict[Credential, Breaker] = OrderedDict()
        """Of connections with a credential of one principal's: a bad one must not keep others waiting."""
        self.was_used = False
        """Whether anybody asked for a connection since the gateway started."""
        self.is_retired = False
        """Its entry was replaced: nothing new is started for it."""
        self.relisting = False
        self.announced: set[str] = set()
        """Lists the server says have changed since the last listing."""
        self.waiting = 0
        """Callers that wait for room for a connection of their own."""
        self.room = asyncio.Event()
        """Set whenever a connection is given back or ends."""

    @property
    def asks(self) -> bool:
        """Whether it may put questions to clients over connections of their own."""
        return self.entry.may_ask and self.listing is not None and self.listing.era == "legacy"

    @property
    def kept_back(self) -> int:
        """How many tools wait for a person's approval."""
        if self.heard is None or self.listing is None:
            return 0
        return len(self.heard.tools) - len(self.listing.tools)

    @property
    def failures(self) -> int:
        return self.breaker.failures

    @property
    def upstream(self) -> Upstream | None:
        """The shared connection if there is one, else any."""
        live = [c.upstream for c in self.connections.values() if c.upstream is not None]
        return next((u for u in live if not u.may_ask), live[0] if live else None)

    def breaker_of(self, credential: Credential) -> Breaker:
        """The breaker of starts with this credential."""
        if credential == NOBODY:
            return self.breaker
        found = self._breakers.setdefault(credential, Breaker())
        self._breakers.move_to_end(credential)
        if len(self._breakers) > MAX_BREAKERS:
            self._breakers.popitem(last=False)
        return found

    def upstream_of(self, credential: Credential) -> Upstream | None:
        """One that holds this credential, if any is open."""
        live = (c.upstream for c in self.connections.values() if c.key.credential == credential)
        return next((upstream for upstream in live if upstream is not None), None)

    def made_room(self) -> None:
        self.room.set()
        self.room = asyncio.Event()
