"""The servers behind this gateway: started on first use, kept warm, stopped when idle, each owned by one task.

Knows entries, runtimes and connections; not callers, profiles or policies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Hashable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Final, NamedTuple, Protocol

import anyio
from anyio.abc import TaskGroup

from catalog import Entry
from gateway import errors, sampling
from gateway.admission import LOOK_AGAIN_S, MAX_WAITING, QUEUE_S, Places
from gateway.background import Background
from gateway.connections import NOBODY, SHARED, SHARED_KEY, SPARE, Connection, Credential, Key, Lease, Server
from gateway.keeper import Keeper, Ready, always
from gateway.listings import Listing, ListingStore
from gateway.relisting import Admit, Relisting, everything
from gateway.runtimes import Runtime
from gateway.upstream import Upstream
from gateway.wire import envelope

FINISH_S: Final = 5.0
"""How long running calls may go on once the gateway is to end."""
POLL_S: Final = 0.05
REPLACED: Final = "its entry in the catalogue was replaced"
RENEWED: Final = "a secret it was given has changed"
MOVED: Final = "it moves into a container, now that there is an engine"
LIST_CHANGED: Final = {f"notifications/{name}/list_changed": name for name in ("tools", "prompts", "resources")}

"""What a connection declares that serves one modern caller after another; each is asked only what it can answer."""


class Bounds(NamedTuple):
    """How many servers at once, and how long for what, in seconds."""

    servers: int = 64
    """Containers and processes in all; each entry has a limit of its own besides."""
    queue_s: float = QUEUE_S
    health_s: float = 15.0
    """A server that left a call unanswered must answer a ping within this time."""
    drain_s: float = 30.0
    """Calls that run when their server's entry is replaced may go on for this long."""


BOUNDS: Final = Bounds()


class Events(Protocol):
    """Who hears what servers do."""

    def listing_changed(self, server: str, lists: Collection[str]) -> None:
        """The server offers something else than before, or says so; `lists` names tools, prompts or resources."""

    def server_started(self, server: str, upstream: Upstream) -> None:
        """A connection is open: what was subscribed on an earlier one must be again."""

    def server_notified(self, upstream: Upstream, method: str, params: bytes) -> None:
        """A notification that belongs to no call."""


LISTS: Final = ("prompts", "resources", "tools")
"""Which lists are other ones when the rules begin or cease to refuse a server."""


class Pool:
    """All servers. `connection` is the only way to one; each connection lives in its own task of `tasks`."""

    def __init__(
        self,
        entries: Iterable[Entry],
        runtime_for: Callable[[Entry], Runtime],
        listings: ListingStore,
        tasks: TaskGroup,
        events: Events,
        bounds: Bounds = BOUNDS,
        first_use: Callable[[str], None] = lambda _: None,
        admit: Admit = everything,
        ready: Ready = always,
        refusal: Callable[[Entry], str] = lambda _: "",
    ) -> None:
        """`ready` refuses a server that lacks a secret; `first_use` is told of each server that is asked for the first
        time since the gateway started. `refusal` says why an entry must not run, if it must not; it is asked again at
        each `replace`."""
        self._refusal = refusal
        self._servers = {entry.id: self._server(entry) for entry in entries}
        self._retired: list[Server] = []
        """Servers of replaced entries, as long as a call of theirs runs."""
        self._tasks = Background(tasks)
        self._events = events
        self._bounds = bounds
        self._first_use = first_use
        self._places = Places(bounds.servers, bounds.queue_s, self._make_room)
        self._listings = Relisting(listings, self._tasks, events, self._start_spare, admit)
        self._keeper = Keeper(runtime_for, ready, self._places, self._listings, self, bounds.health_s)
        self._log_level = ""
        self._is_ending = False
        for server in self._servers.values():
            self._listings.load(server)

    @property
    def servers(self) -> Mapping[str, Server]:
        return self._servers

    @property
    def generation(self) -> int:
        """Changes whenever any listing does: part of every cache key."""
        return self._listings.generation

    def _connections(self) -> Iterator[tuple[Server, Connection]]:
        for server in (*self._servers.values(), *self._retired):
            for connection in server.connections.values():
                yield server, connection

    def listing(self, id: str) -> Listing | None:
        """What the server is known to offer; starts nothing."""
        server = self._servers.get(id)
        return server.listing if server is not None and not server.refusal else None

    def _server(self, entry: Entry) -> Server:
        server = Server(entry)
        server.refusal = self._refusal(entry)
        return server

    async def learn(self, id: str, credential: Credential = NOBODY) -> Listing:
        """What the server offers, starting it with this credential if that is not known yet.

        Raises:
            UpstreamError: it cannot be started or asked.
        """
        server = self._find(id)
        if server.listing is None:
            await self._connect(server, None, credential, self._wanted(server, None, credential))
        if server.listing is None:
            raise errors.UpstreamUnavailable(f"server {id} did not say what it offers")
        return server.listing

    async def review_again(self, entry: str) -> None:
        """Offer of an entry's tools what may be offered now that somebody approved or rejected one."""
        for server in list(self._servers.values()):
            if server.entry.entry_id == entry:
                await self._listings.review_again(server)

    def _find(self, id: str) -> Server:
        try:
            server = self._servers[id]
        except KeyError:
            raise errors.UpstreamUnavailable(f"server {id} is no longer in the catalog") from None
        if server.refusal:
            raise errors.UpstreamUnavailable(f"server {id} is refused: {server.refusal}")
        return server

    # -- handing out -------------------------------------------------------------------------

    async def connection(self, id: str, lease: Lease | None = None, credential: Credential = NOBODY) -> Upstream:
        """The live connection that all callers with the same credential share, or one's own under a lease; started if
        need be, with concurrent callers sharing one start. An exclusive one must be given back with `free`.

        Raises:
            UpstreamUnavailable: it cannot be started; says why, and when the next attempt is allowed.
            AtCapacity: too many run, and none became free in time.
        """
        if lease is None and (upstream := self.warm(id, credential)) is not None:
            return upstream
        server = self._find(id)
        if not server.was_used:
            server.was_used = True
            self._first_use(id)
        wanted = self._wanted(server, lease, credential)
        if wanted is not None and wanted.is_live and wanted.upstream is not None:
            wanted.hand_out(asyncio.get_running_loop().time())
            return wanted.upstream
        return await self._connect(server, lease, credential, wanted)

    def warm(self, id: str, credential: Credential = NOBODY) -> Upstream | None:
        """The connection that all callers with the same credential share, if it is ready for a call right now."""
        server = self._servers.get(id)
        if server is None or not server.was_used:
            return None
        connection = server.connections.get(SHARED_KEY if credential is NOBODY else Key(SHARED, 0, credential))
        if connection is None or not connection.is_live:
            return None
        connection.hand_out(asyncio.get_running_loop().time())
        return connection.upstream

    def live(self, id: str, lease: Lease | None, credential: Credential = NOBODY) -> Upstream | None:
        """The connection that `connection` would give if it is open already; an exclusive lease has none to give."""
        if lease is not None and lease.exclusive:
            return None
        server = self._servers.get(id)
        key = Key(SHARED if lease is None else lease.owner, 0, credential)
        connection = server.connections.get(key) if server else None
        if connection is None or connection.upstream is None or connection.upstream.ended.is_set():
            return None
        return connection.upstream

    async def _connect(
        self, server: Server, lease: Lease | None, credential: Credential, wanted: Connection | None
    ) -> Upstream:
        if wanted is None:
            wanted = await self._wait_for_room(server, lease, credential)
        wanted.callers += 1
        try:
            while (trial := self._trial(server, wanted)) is not None:
                await asyncio.wait([trial])
            upstream = wanted.upstream
            if upstream is None or not wanted.is_live:
                upstream = await asyncio.shield(self._start_soon(server, wanted))
        except BaseException:
            wanted.taken = False
            if wanted.starting is None and wanted.upstream is None and wanted.callers == 1:
                server.connections.pop(wanted.key, None)  # it may not even be tried yet
            server.made_room()
            raise
        finally:
            wanted.callers -= 1
        wanted.hand_out(asyncio.get_running_loop().time())
        return upstream

    def _wanted(self, server: Server, lease: Lease | None, credential: Credential) -> Connection | None:
        """The connection to use; None if there is no room for one more. Synchronous, so that two callers cannot both
        take the last free one."""
        if lease is None:
            return self._known_or_new(server, Key(SHARED, 0, credential), None)
        for number in range(server.entry.limits.instances if lease.exclusive else 1):
            key = Key(lease.owner, number, credential)
            connection = self._known_or_new(server, key, lease)
            if connection is None or not lease.exclusive:
                return connection
            if not connection.taken:
                connection.taken = True
                return connection
        return None

    @staticmethod
    def _known_or_new(server: Server, key: Key, lease: Lease | None) -> Connection | None:
        connection = server.connections.get(key)
        if connection is None and lease is not None and lease.exclusive and key.credential == NOBODY:
            connection = _take_spare(server, key)
        if connection is None and len(server.connections) < server.entry.limits.instances:
            connection = Connection(key, lease.capabilities if lease is not None else None)
            server.connections[key] = connection
        return connection

    async def _wait_for_room(self, server: Server, lease: Lease | None, credential: Credential) -> Connection:
        """Wait briefly for one of the server's connections to become free."""
        loop, id, limit = asyncio.get_running_loop(), server.entry.id, server.entry.limits.instances
        until = loop.time() + self._bounds.queue_s
        reason = f"server {id} already runs {limit} times, as often as its limits.instances allows"
        if server.waiting >= MAX_WAITING:
            raise errors.AtCapacity(f"{reason}, and {MAX_WAITING} calls wait; try again later")
        server.waiting += 1
        try:
            while (wanted := self._wanted(server, lease, credential)) is None:
                if (left_s := until - loop.time()) <= 0:
                    text = f"{reason}, and none became free within {self._bounds.queue_s:g} s; try again later"
                    raise errors.AtCapacity(text)
                # What nobody in particular waits for makes room for who does.
                self._end_idle(
                    [one for one in server.connections.values() if not one.key.is_leased], 1, f"a call of {id}"
                )
                with anyio.move_on_after(min(left_s, LOOK_AGAIN_S)):
                    await server.room.wait()
            return wanted
        finally:
            server.waiting -= 1

    def _make_room(self, id: str) -> None:
        """Stop what is idle, the longest unused first, for those who wait for a place."""
        holders = [one for _, one in self._connections() if one.counts]
        self._end_idle(holders, self._places.waiting, f"server {id}")

    @staticmethod
    def _end_idle(candidates: Iterable[Connection], n_wanted: int, for_what: str) -> None:
        now = asyncio.get_running_loop().time()
        ending, idle = 0, []
        for one in candidates:
            if one.stop.is_set() and one.upstream is not None:
                ending += 1
            elif one.is_idle(now):
                idle.append(one)
        idle.sort(key=lambda one: (one.last_used, one.turn))
        for one in idle[: max(0, n_wanted - ending)]:
            if one.upstream is not None:
                one.upstream.log.write("gateway", f"stopped while idle, to make room for {for_what}")
            one.end("it was stopped to make room")

    @staticmethod
    def _trial(server: Server, wanted: Connection) -> asyncio.Future[Upstream] | None:
        """The one start that is tried after a rest, if it is another connection's."""
        credential = wanted.key.credential
        if server.breaker_of(credential).circuit(asyncio.get_running_loop().time()) != "half-open":
            return None
        others = (
            one.starting
            for one in server.connections.values()
            if one is not wanted and one.key.credential == credential
        )
        return next((one for one in others if one is not None and not one.done()), None)

    def free(self, upstream: Upstream) -> None:
        """Give back an exclusive connection for the owner's next call."""
        if not upstream.may_ask:
            return  # nobody's own
        for server in (self._servers.get(upstream.server), *self._retired):
            for connection in server.connections.values() if server is not None else ():
                if connection.upstream is upstream and connection.taken and server is not None:
                    connection.taken = False
                    server.made_room()

    def release(self, owner: Hashable) -> None:
        """End every connection this owner leased."""
        for _, connection in self._connections():
            if connection.key.owner == owner and connection.key.is_leased:
                connection.stop.set()

    def leased(self, owner: Hashable) -> list[Upstream]:
        return [
            connection.upstream
            for _, connection in self._connections()
            if connection.key.owner == owner and connection.key.is_leased and connection.upstream is not None
        ]

    # -- starting ----------------------------------------------------------------------------

    def start_soon(self, id: str) -> asyncio.Future[Upstream]:
        """Begin a start of the shared connection unless one is under way; the future may be ignored.

        Raises:
            UpstreamUnavailable: it failed a moment ago and must not be tried again yet, or there is no room.
        """
        server = self._find(id)
        wanted = self._wanted(server, None, NOBODY)
        if wanted is None:
            raise errors.AtCapacity(f"server {id} already runs as often as its limits.instances allows")
        if wanted.is_live and wanted.upstream is not None:
            ready: asyncio.Future[Upstream] = asyncio.get_running_loop().create_future()
            ready.set_result(wanted.upstream)
            return ready
        return self._start_soon(server, wanted)

    def _start_soon(self, server: Server, connection: Connection) -> asyncio.Future[Upstream]:
        if connection.starting is None:
            self._refuse_if_resting(server, connection.key.credential)
            connection.starting = asyncio.get_running_loop().create_future()
            # A new event for the new start: whoever stops it from now on is heard, the old owner keeps its own.
            connection.stop = asyncio.Event()
            name = f"server {server.entry.id}"
            self._tasks.start_soon(self._keeper.own, server, connection, connection.starting, name=name)
        return connection.starting

    def _refuse_if_resting(self, server: Server, credential: Credential) -> None:
        if self._is_ending:
            raise errors.UpstreamUnavailable("the gateway is ending")
        if server.is_retired:
            raise errors.UpstreamUnavailable(f"server {server.entry.id} was just replaced; try again")
        breaker = server.breaker_of(credential)
        wait_s = breaker.pause_s(asyncio.get_running_loop().time())
        if wait_s > 0:
            raise errors.UpstreamUnavailable(f"{breaker.why} (next attempt in {wait_s:.0f} s)")

    def started(self, server: Server, upstream: Upstream) -> None:
        """A connection is open (Watcher of the keeper)."""
        if self._log_level:
            self._tasks.start_soon(self._send_log_level, upstream)
        self._events.server_started(server.entry.id, upstream)
        self._keep_spare(server)

    def _keep_spare(self, server: Server) -> None:
        """Interactive servers of the session era cannot be shared: have one ready before somebody waits for it."""
        if server.asks and set(server.connections) == {Key(SHARED)}:
            self._start_spare(server)

    def _start_spare(self, server: Server) -> bool:
        """Whether there was room for one, and no reason to wait."""
        if len(server.connections) >= server.entry.limits.instances or self._places.is_full:
            return False
        spare = Connection(Key(SPARE), sampling.asked(server.entry, sampling.EVERYTHING))
        try:
            self._start_soon(server, spare)
        except errors.UpstreamUnavailable:
            return False  # it rests after a failure, or is to end
        server.connections[spare.key] = spare
        return True

    # -- ending ------------------------------------------------------------------------------

    def stop(self, id: str) -> None:
        """Ask a running server to end; in-flight calls are told."""
        for connection in self._find(id).connections.values():
            connection.stop.set()

    def replace(self, entries: Iterable[Entry]) -> None:
        """From now on these are the entries. What did not change runs on; calls under way on servers whose entry
        changed or went may finish within `Bounds.drain_s`, while new calls meet the new entry."""
        before, self._servers = self._servers, {}
        for entry in entries:
            old, new = before.pop(entry.id, None), self._server(entry)
            if old is not None and old.entry == entry and bool(old.refusal) == bool(new.refusal):
                self._servers[entry.id], old.refusal = old, new.refusal
                continue
            self._servers[entry.id] = new
            if new.refusal or (old is not None and old.refusal):
                self._events.listing_changed(entry.id, LISTS)
            self._listings.load(new)
            if old is not None:
                new.log = old.log
                self._retire(old, REPLACED)
        for old in before.values():
            self._retire(old, REPLACED)
        self._listings.generation += 1

    def move(self, is_elsewhere: Callable[[Server], bool]) -> None:
        """Servers for which this holds would run elsewhere now: they are started anew there, as if their entry had
        been replaced. All others that failed may be tried again at once."""
        for old in list(self._servers.values()):
            if not old.connections or is_elsewhere(old):
                self._anew(old, MOVED)

    def renew(self, id: str) -> None:
        """Start the server anew for whoever comes next: something it was given is no longer so. Calls under way on it
        may finish as if its entry had been replaced; a failure of before counts no more."""
        old = self._servers[id]
        if old.refusal:
            return
        new = self._anew(old, RENEWED)
        if old.error and new.listing is None:
            with suppress(errors.UpstreamUnavailable):
                self.start_soon(id)

    def _anew(self, old: Server, why: str) -> Server:
        """The same entry with what is known of it, and nothing that runs or failed."""
        self._servers[old.entry.id] = new = self._server(old.entry)
        new.heard, new.listing, new.log, new.was_used = old.heard, old.listing, old.log, old.was_used
        self._retire(old, why)
        return new

    def end_credentials(self, id: str, owner: str) -> None:
        """The same for the connections that hold what this owner keeps."""
        server = self._servers.get(id)  # one that is refused holds none, and is no reason to fail
        held = server.connections.values() if server is not None else ()
        mine = [one for one in held if one.key.credential.owner == owner]
        if mine:
            self._tasks.start_soon(self._end_unused, mine)

    async def _end_unused(self, connections: Collection[Connection]) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + self._bounds.drain_s
        while left := [one for one in connections if not one.stop.is_set()]:
            for one in left:
                if loop.time() >= until or (one.upstream is not None and one.is_unused(loop.time())):
                    one.end("its credential was changed")
            await anyio.sleep(POLL_S)

    def _retire(self, server: Server, why: str) -> None:
        server.is_retired = True
        if server.connections:
            self._retired.append(server)
            self._tasks.start_soon(self._drain, server, why)

    @property
    def draining(self) -> int:
        """How many servers of replaced entries still run."""
        return len(self._retired)

    async def _drain(self, server: Server, why: str) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + self._bounds.drain_s
        try:
            while server.connections:
                for one in list(server.connections.values()):
                    if loop.time() >= until or (one.upstream is not None and one.is_unused(loop.time())):
                        one.end(why)
                await anyio.sleep(POLL_S)
        finally:
            self._retired.remove(server)

    async def finish(self) -> None:
        """The gateway is to end: start nothing any more, and let running calls finish for a moment."""
        self._is_ending = True
        with anyio.move_on_after(FINISH_S):
            while True:
                if not any(one.upstream is not None and one.upstream.in_flight for _, one in self._connections()):
                    return
                await anyio.sleep(POLL_S)

    # -- subscriptions -----------------------------------------------------------------------

    def resubscribe_soon(self, upstream: Upstream, uris: Collection[str]) -> None:
        for uri in uris:
            self._tasks.start_soon(self._logged, upstream, upstream.subscribe(uri))

    def unsubscribe_soon(self, id: str, uri: str) -> None:
        for server, connection in self._connections():
            upstream = connection.upstream
            if server.entry.id == id and upstream is not None and uri in upstream.subscribed:
                self._tasks.start_soon(self._logged, upstream, upstream.unsubscribe(uri))

    @staticmethod
    async def _logged(upstream: Upstream, work: Coroutine[None, None, None]) -> None:
        try:
            await work
        except errors.UpstreamError as exc:
            upstream.log.write("gateway", f"subscription: {exc}")

    def notified(self, server: Server, upstream: Upstream, method: str, params: bytes) -> None:
        if (changed := LIST_CHANGED.get(method)) is not None:
            self._listings.announced(server, changed)
        else:
            self._events.server_notified(upstream, method, params)

    # -- logging -----------------------------------------------------------------------------

    def set_log_level(self, level: str) -> None:
        """Tell every running server, and every one started later, how much to log."""
        self._log_level = level
        for _, connection in self._connections():
            if connection.upstream is not None:
                self._tasks.start_soon(self._send_log_level, connection.upstream)

    async def _send_log_level(self, upstream: Upstream) -> None:
        if upstream.facts is None or upstream.facts.era == "modern" or not upstream.facts.offers("logging"):
            return
        try:
            await upstream.request("logging/setLevel", {"level": envelope.raw(self._log_level)})
        except errors.UpstreamError as exc:
            upstream.log.write("gateway", f"logging/setLevel: {exc}")


def _take_spare(server: Server, key: Key) -> Connection | None:
    spare = server.connections.get(Key(SPARE))
    if spare is None or not spare.is_live or spare.taken:  # taken: for a listing
        return None
    del server.connections[Key(SPARE)]
    spare.key = key
    server.connections[key] = spare
    return spare


__all__ = ["Bounds", "Events", "Lease", "Pool", "Server"]
