"""The servers behind this gateway: started on first use, kept warm, stopped when idle, each owned by one task.

Knows entries, runtimes and listings; not callers, profiles or policies."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Hashable, Iterable, Mapping
from typing import Final, Literal, NamedTuple, Protocol

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup
from msgspec import Raw

from catalog import Entry
from gateway import errors
from gateway.listings import Listing, ListingStore, learn
from gateway.runtimes import Runtime
from gateway.serverlog import ServerLog
from gateway.upstream import Reply, Upstream
from gateway.wire import envelope
from gateway.wire.channel import Channel
from gateway.wire.revisions import Era

_log: Final = logging.getLogger(__name__)

PREPARE_TIMEOUT_S: Final = 1800.0
"""Pulling or building an image, or installing a package."""
CLOSE_TIMEOUT_S: Final = 20.0
MAX_BACKOFF_S: Final = 30.0
STABLE_AFTER_S: Final = 10.0
"""A server that lived this long did not crash at start: the next start is not delayed."""
RELIST_PAUSE_S: Final = 0.05
"""Announced changes within this time are answered with one new listing."""
LIST_CHANGED: Final = {f"notifications/{name}/list_changed": name for name in ("tools", "prompts", "resources")}

SHARED: Final = "shared"
SPARE: Final = "spare"
"""A connection of an interactive server kept ready for the next caller that needs one of its own."""
MAX_LEASED: Final = 16
"""Connections of one server to callers that it may ask questions; each is a container or process of its own."""
RELISTEN_PAUSE_S: Final = 1.0
DRAIN_S: Final = 30.0
"""How long calls on a server whose catalog entry was replaced may take to finish."""
DRAIN_POLL_S: Final = 0.1

ALL_CAPABILITIES: Final = Raw(b'{"elicitation":{"form":{},"url":{}},"sampling":{},"roots":{}}')
"""What a connection declares that serves one modern caller after another; each is asked only what it can answer."""

State = Literal["idle", "preparing", "starting", "running", "failed"]


class Events(Protocol):
    """Who hears what servers do."""

    def listing_changed(self, server: str, lists: Collection[str]) -> None:
        """The server offers something else than before, or says so; `lists` names tools, prompts or resources."""

    def server_started(self, server: str, upstream: Upstream) -> None:
        """A connection is open: what was subscribed on an earlier one must be again."""

    def server_notified(self, upstream: Upstream, method: str, params: bytes) -> None:
        """A notification that belongs to no call."""


class Lease(NamedTuple):
    """A connection of one's own. `owner` ends all its connections at once; `exclusive` ones serve one call at a
    time."""

    owner: Hashable
    capabilities: Raw
    exclusive: bool


class Connection:
    """One connection to a server, from the wish for it to its end. Mutated only by the pool."""

    def __init__(self, key: Hashable, capabilities: Raw | None) -> None:
        self.key = key
        self.capabilities = capabilities
        self.upstream: Upstream | None = None
        self.starting: asyncio.Future[Upstream] | None = None
        self.taken = False
        """An exclusive lease holds it."""
        self.stop = asyncio.Event()


class Server:
    """One catalogue entry as it runs here. Mutated only by the pool."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.log = ServerLog()
        self.state: State = "idle"
        self.runtime = ""
        self.error = ""
        self.listing: Listing | None = None
        self.connections: dict[Hashable, Connection] = {}
        self.failures = 0
        self.retry_at = 0.0
        self.relisting = False
        self.announced: set[str] = set()
        """Lists the server says have changed since the last listing."""

    @property
    def asks(self) -> bool:
        """Whether it may put questions to clients over connections of their own."""
        return self.entry.interactive and self.listing is not None and self.listing.era == "legacy"

    @property
    def upstream(self) -> Upstream | None:
        """The shared connection if there is one, else any."""
        live = [c.upstream for c in self.connections.values() if c.upstream is not None]
        return next((u for u in live if not u.may_ask), live[0] if live else None)


class Pool:
    """All servers. `connection` is the only way to one; each connection lives in its own task of `tasks`."""

    def __init__(
        self,
        entries: Iterable[Entry],
        runtime_for: Callable[[Entry], Runtime],
        listings: ListingStore,
        tasks: TaskGroup,
        events: Events,
    ) -> None:
        self._servers = {entry.id: Server(entry) for entry in entries}
        self._runtime_for = runtime_for
        self._listings = listings
        self._tasks = tasks
        self._events = events
        self._log_level = ""
        self.generation = 0
        """Changes whenever any listing does: part of every cache key."""
        for server in self._servers.values():
            server.listing = listings.load(server.entry)

    @property
    def servers(self) -> Mapping[str, Server]:
        return self._servers

    def listing(self, id: str) -> Listing | None:
        """What the server is known to offer; starts nothing."""
        server = self._servers.get(id)
        return server.listing if server is not None else None

    def _find(self, id: str) -> Server:
        if id not in self._servers:
            raise errors.UpstreamUnavailable(f"server {id} is no longer in the catalog")
        return self._servers[id]

    async def learn(self, id: str) -> Listing:
        """What the server offers, starting it if that is not known yet.

        Raises:
            UpstreamError: it cannot be started or asked.
        """
        server = self._find(id)
        if server.listing is None:
            await self.connection(id)
        if server.listing is None:
            raise errors.UpstreamUnavailable(f"server {id} did not say what it offers")
        return server.listing

    async def connection(self, id: str, lease: Lease | None = None) -> Upstream:
        """The live connection all callers share, or one's own under a lease; started if need be, with concurrent
        callers sharing one start. An exclusive one must be given back with `free`.

        Raises:
            UpstreamUnavailable: it cannot be started; says why, and when the next attempt is allowed.
        """
        server = self._find(id)
        wanted = self._wanted(server, lease)
        settled = wanted.starting is None and not wanted.stop.is_set()
        if wanted.upstream is not None and settled and not wanted.upstream.ended.is_set():
            return wanted.upstream
        try:
            return await asyncio.shield(self._start_soon(server, wanted))
        except BaseException:
            wanted.taken = False
            if wanted.starting is None and wanted.upstream is None:
                server.connections.pop(wanted.key, None)  # it may not even be tried yet
            raise

    def live(self, id: str, lease: Lease | None) -> Upstream | None:
        """The connection that `connection` would give if it is open already; an exclusive lease has none to give."""
        if lease is not None and lease.exclusive:
            return None
        server = self._servers.get(id)
        connection = server.connections.get(SHARED if lease is None else (lease.owner, 0)) if server else None
        if connection is None or connection.upstream is None or connection.upstream.ended.is_set():
            return None
        return connection.upstream

    def _wanted(self, server: Server, lease: Lease | None) -> Connection:
        """The connection to use: synchronous, so that two callers cannot both take the last free one."""
        if lease is None:
            shared = server.connections.get(SHARED)
            if shared is None:
                shared = server.connections[SHARED] = Connection(SHARED, None)
            return shared
        for number in range(MAX_LEASED if lease.exclusive else 1):
            key = (lease.owner, number)
            connection = server.connections.get(key)
            if connection is None and lease.exclusive:
                connection = self._take_spare(server, key)
            if connection is None:
                if len(server.connections) > MAX_LEASED:
                    break
                connection = server.connections[key] = Connection(key, lease.capabilities)
            if not lease.exclusive:
                return connection
            if not connection.taken:
                connection.taken = True
                return connection
        raise errors.UpstreamUnavailable(
            f"server {server.entry.id} already serves {MAX_LEASED} callers that it may ask questions; try again later"
        )

    @staticmethod
    def _take_spare(server: Server, key: Hashable) -> Connection | None:
        spare = server.connections.get(SPARE)
        if spare is None or spare.upstream is None or spare.upstream.ended.is_set() or spare.stop.is_set():
            return None
        if spare.taken:  # for a listing
            return None
        del server.connections[SPARE]
        spare.key = key
        server.connections[key] = spare
        return spare

    def _keep_spare(self, server: Server) -> None:
        """Interactive servers of the session era cannot be shared: have one ready before somebody waits for it."""
        if server.asks and set(server.connections) == {SHARED}:
            self._start_spare(server)

    def _start_spare(self, server: Server) -> None:
        spare = server.connections[SPARE] = Connection(SPARE, ALL_CAPABILITIES)
        self._start_soon(server, spare)

    def free(self, upstream: Upstream) -> None:
        """Give back an exclusive connection for the owner's next call."""
        server = self._servers.get(upstream.server)
        for connection in server.connections.values() if server is not None else ():
            if connection.upstream is upstream:
                connection.taken = False

    def release(self, owner: Hashable) -> None:
        """End every connection this owner leased."""
        for server in self._servers.values():
            for key, connection in server.connections.items():
                if isinstance(key, tuple) and key[0] == owner:
                    connection.stop.set()

    def leased(self, owner: Hashable) -> list[Upstream]:
        return [
            connection.upstream
            for server in self._servers.values()
            for key, connection in server.connections.items()
            if isinstance(key, tuple) and key[0] == owner and connection.upstream is not None
        ]

    def start_soon(self, id: str) -> asyncio.Future[Upstream]:
        """Begin a start of the shared connection unless one is under way; the future may be ignored.

        Raises:
            UpstreamUnavailable: it failed a moment ago and must not be tried again yet.
        """
        server = self._find(id)
        return self._start_soon(server, self._wanted(server, None))

    def _start_soon(self, server: Server, connection: Connection) -> asyncio.Future[Upstream]:
        if connection.starting is None:
            wait_s = server.retry_at - asyncio.get_running_loop().time()
            if wait_s > 0:
                raise errors.UpstreamUnavailable(f"{server.error} (next attempt in {wait_s:.0f} s)")
            connection.starting = asyncio.get_running_loop().create_future()
            # A new event for the new start: whoever stops it from now on is heard, the old owner keeps its own.
            connection.stop = asyncio.Event()
            name = f"server {server.entry.id}"
            self._tasks.start_soon(self._own, server, connection, connection.starting, name=name)
        return connection.starting

    async def _own(self, server: Server, connection: Connection, started: asyncio.Future[Upstream]) -> None:
        """The whole life of one connection: prepare, start, serve until it ends or idles, clean up."""
        previous = connection.upstream
        if previous is not None and not previous.ended.is_set():
            await previous.ended.wait()
        opened: tuple[Upstream, Channel] | None = None
        try:
            opened = await self._start(server, connection)
            upstream = opened[0]
            self._settle(server, connection, started, upstream)
            await self._serve(server, connection, upstream)
        except errors.UpstreamError as exc:
            self._fail(server, started, exc)
        except Exception as exc:  # noqa: BLE001  # outermost border: one server must not take the gateway with it
            _log.exception("server %s: internal error", server.entry.id)
            self._fail(server, started, errors.UpstreamUnavailable(f"internal error: {type(exc).__name__}"))
        finally:
            with anyio.CancelScope(shield=True):
                if opened is not None:
                    await self._close(server, *opened)
            self._forget(server, connection, started, opened[0] if opened else None)

    @staticmethod
    def _forget(
        server: Server, connection: Connection, started: asyncio.Future[Upstream], upstream: Upstream | None
    ) -> None:
        if connection.starting is started:
            connection.starting = None
        if connection.upstream is upstream:
            connection.upstream = None
        if connection.starting is None and connection.upstream is None:
            server.connections.pop(connection.key, None)
        if not server.connections:
            server.state = "failed" if server.error else "idle"
        if not started.done():
            started.cancel()

    async def _start(self, server: Server, connection: Connection) -> tuple[Upstream, Channel]:
        entry = server.entry
        runtime = self._runtime_for(entry)
        server.runtime, server.log.noise = runtime.name, 0
        if server.state != "running":
            server.state = "preparing"
        try:
            async with asyncio.timeout(PREPARE_TIMEOUT_S):
                await runtime.prepare(entry, server.log)
        except TimeoutError as exc:
            raise errors.UpstreamUnavailable(f"server {entry.id} was not ready to start in time") from exc
        if server.state != "running":
            server.state = "starting"
        old_transport = entry.transport == "sse" or (entry.remote is not None and entry.remote.transport == "sse")
        known: Era | None = "legacy" if old_transport else server.listing.era if server.listing is not None else None
        try:
            return await self._open(server, connection, runtime, known)
        except errors.UpstreamLost as exc:
            if known is not None:
                raise errors.UpstreamUnavailable(self._start_failure(server, str(exc))) from exc
            # Some servers exit when they are asked something before `initialize`: ask nothing then.
            server.log.write("gateway", "it ended at server/discover; starting again with initialize")
        try:
            return await self._open(server, connection, runtime, "legacy")
        except errors.UpstreamLost as exc:
            raise errors.UpstreamUnavailable(self._start_failure(server, str(exc))) from exc

    async def _open(
        self, server: Server, connection: Connection, runtime: Runtime, known: Era | None
    ) -> tuple[Upstream, Channel]:
        """Start and shake hands; on failure nothing is left."""
        entry = server.entry
        limit_s = entry.limits.start_timeout_s
        upstream = Upstream(
            entry.id,
            server.log,
            call_timeout_s=entry.limits.call_timeout_s,
            on_notification=self._notified,
            capabilities=connection.capabilities,
        )
        channel: Channel | None = None
        try:
            async with asyncio.timeout(limit_s):
                channel = await runtime.start(entry, upstream, server.log)
                await upstream.open(channel, known)
                if server.listing is None or connection.key == SPARE:
                    await self._adopt(server, await learn(upstream, entry))
                elif connection.key == SHARED:
                    self._relist_soon(server)
                upstream.mirrored = server.listing.mirrored if server.listing is not None else {}
        except BaseException as exc:
            if channel is not None:
                with anyio.CancelScope(shield=True):
                    await self._close(server, upstream, channel)
            if isinstance(exc, TimeoutError):
                reason = f"it did not finish its handshake within {limit_s:g} s"
                raise errors.UpstreamUnavailable(self._start_failure(server, reason)) from exc
            if isinstance(exc, errors.UpstreamError) and not isinstance(exc, errors.UpstreamLost):
                raise errors.UpstreamUnavailable(self._start_failure(server, str(exc))) from exc
            raise
        return upstream, channel

    @staticmethod
    def _start_failure(server: Server, reason: str) -> str:
        text = f"server {server.entry.id} failed to start: {reason}"
        if server.log.noise:
            text += f"; it wrote {server.log.noise} line(s) on stdout that are not MCP"
        return f"{text}. See: lockgate server logs {server.entry.id}"

    @staticmethod
    def _settle(server: Server, connection: Connection, started: asyncio.Future[Upstream], upstream: Upstream) -> None:
        connection.upstream, connection.starting = upstream, None
        server.state, server.error = "running", ""
        if not started.done():
            started.set_result(upstream)

    async def _serve(self, server: Server, connection: Connection, upstream: Upstream) -> None:
        entry, loop, stop = server.entry, asyncio.get_running_loop(), connection.stop
        born = loop.time()
        if self._log_level:
            self._tasks.start_soon(self._send_log_level, upstream)
        self._events.server_started(entry.id, upstream)
        self._keep_spare(server)
        async with anyio.create_task_group() as helpers:
            if connection.key == SHARED and upstream.facts is not None and upstream.facts.era == "modern":
                helpers.start_soon(self._listen, upstream)
            while not upstream.ended.is_set() and not stop.is_set():
                left_s = upstream.last_used + entry.limits.idle_s - loop.time()
                if left_s <= 0 and not upstream.busy:
                    server.log.write("gateway", f"stopped after {entry.limits.idle_s:g} s without a call")
                    helpers.cancel_scope.cancel()
                    return
                with anyio.move_on_after(max(left_s, 1.0)):
                    await _either(upstream.ended, stop)
            helpers.cancel_scope.cancel()
        lived_s = loop.time() - born
        if stop.is_set() or lived_s >= STABLE_AFTER_S:
            server.failures = 0
        else:
            raise errors.UpstreamUnavailable(
                f"server {entry.id} ended {lived_s:.1f} s after its start: {upstream.end_reason}"
            )

    async def _listen(self, upstream: Upstream) -> None:
        """Hold one `subscriptions/listen` stream open to a modern server; reopen it when its filter changes."""
        refused = False
        while not upstream.ended.is_set() and not refused:
            upstream.filter_changed.clear()
            try:
                async with anyio.create_task_group() as group:
                    group.start_soon(_cancel_when, upstream.filter_changed, group.cancel_scope)
                    await self._hear(upstream)
                    await anyio.sleep(RELISTEN_PAUSE_S)
                    group.cancel_scope.cancel()
            except* errors.UpstreamError as refusals:
                upstream.log.write("gateway", f"subscriptions/listen: {refusals.exceptions[0]}")
                refused = True

    @staticmethod
    async def _hear(upstream: Upstream) -> None:
        members = {"notifications": envelope.raw(upstream.listen_filter())}
        call = await upstream.start("subscriptions/listen", members, endless=True)
        upstream.listening = call.id
        try:
            while not isinstance(item := await call.next(), Reply):
                pass
        finally:
            upstream.cancel(call, "listening anew")
        if item.result is None:
            raise errors.UpstreamInvalid(f"refused: {bytes(item.error or b'').decode(errors='replace')[:200]}")

    def _fail(self, server: Server, started: asyncio.Future[Upstream], exc: errors.UpstreamError) -> None:
        server.failures += 1
        pause_s = min(2.0 ** (server.failures - 1), MAX_BACKOFF_S)
        server.retry_at = asyncio.get_running_loop().time() + pause_s
        server.error = str(exc)
        server.log.write("gateway", server.error)
        if not started.done():
            started.set_exception(exc)
            started.exception()  # nobody may be waiting any more; that is not an accident to report

    async def _close(self, server: Server, upstream: Upstream, channel: Channel | None) -> None:
        """Bounded; afterwards nothing waits on this connection any more."""
        if channel is not None:
            with anyio.move_on_after(CLOSE_TIMEOUT_S) as scope:
                await channel.close()
            if scope.cancelled_caught:
                server.log.write("gateway", f"closing did not finish within {CLOSE_TIMEOUT_S:g} s")
        upstream.lost("the gateway stopped it")

    def stop(self, id: str) -> None:
        """Ask a running server to end; in-flight calls are told."""
        for connection in self._servers[id].connections.values():
            connection.stop.set()

    def replace(self, entries: Iterable[Entry]) -> None:
        """From now on these are the entries. What did not change runs on; calls under way on servers whose entry
        changed or went may finish within `DRAIN_S`, while new calls meet the new entry."""
        before, self._servers = self._servers, {}
        for entry in entries:
            old = before.pop(entry.id, None)
            if old is not None and old.entry == entry:
                self._servers[entry.id] = old
                continue
            self._servers[entry.id] = new = Server(entry)
            new.listing = self._listings.load(entry)
            if old is not None:
                new.log = old.log
                before[entry.id] = old
        for old in before.values():
            self._tasks.start_soon(self._drain, old)
        self.generation += 1

    @staticmethod
    async def _drain(server: Server) -> None:
        """End a server that no call can reach any more."""
        with anyio.move_on_after(DRAIN_S):
            while any(  # noqa: ASYNC110  # a call ends by no event of its own
                connection.starting is not None or (connection.upstream is not None and connection.upstream.in_flight)
                for connection in server.connections.values()
            ):
                await anyio.sleep(DRAIN_POLL_S)
        for connection in server.connections.values():
            connection.stop.set()

    # -- listings ----------------------------------------------------------------------------

    async def _adopt(self, server: Server, listing: Listing) -> None:
        """Make a listing the current one, record it, and tell what differs or was announced.

        An announcement is passed on even if nothing differs: what changed may be in what a list does not show.
        """
        if self._servers.get(server.entry.id) is not server:
            return  # its entry was replaced
        before, server.listing = server.listing, listing
        changed, server.announced = server.announced, set()
        if before != listing:
            changed |= listing.differs(before)
            self.generation += 1
            try:
                await to_thread.run_sync(self._listings.save, server.entry, listing)
            except OSError as exc:
                # It is only a memory for the next start.
                server.log.write("gateway", f"the listing could not be saved: {exc}")
        if changed:
            self._events.listing_changed(server.entry.id, changed)

    def _relist_soon(self, server: Server) -> None:
        if not server.relisting:
            server.relisting = True
            self._tasks.start_soon(self._relist, server)

    async def _relist(self, server: Server) -> None:
        await anyio.sleep(RELIST_PAUSE_S)
        server.relisting = False
        upstream, spare = server.upstream, None
        if upstream is None:
            return
        if server.asks:
            # It may offer more to a client that can be asked than it does on the shared connection.
            spare = server.connections.get(SPARE)
            if spare is None:
                self._start_spare(server)
            if spare is None or spare.upstream is None:
                return  # it lists as soon as it is there
            upstream, spare.taken = spare.upstream, True
        try:
            await self._adopt(server, await learn(upstream, server.entry))
        except errors.UpstreamError as exc:
            server.log.write("gateway", f"could not list again, keeping the last listing: {exc}")
            return
        except Exception as exc:  # noqa: BLE001  # outermost border of a task: one server must not take all with it
            _log.exception("server %s: internal error while listing again", server.entry.id)
            server.log.write("gateway", f"could not list again: internal error: {type(exc).__name__}")
        finally:
            if spare is not None:
                spare.taken = False

    # -- subscriptions -----------------------------------------------------------------------

    def resubscribe_soon(self, upstream: Upstream, uris: Collection[str]) -> None:
        for uri in uris:
            self._tasks.start_soon(self._logged, upstream, upstream.subscribe(uri))

    def unsubscribe_soon(self, id: str, uri: str) -> None:
        server = self._servers.get(id)
        for connection in server.connections.values() if server is not None else ():
            if connection.upstream is not None and uri in connection.upstream.subscribed:
                upstream = connection.upstream
                self._tasks.start_soon(self._logged, upstream, upstream.unsubscribe(uri))

    @staticmethod
    async def _logged(upstream: Upstream, work: Coroutine[None, None, None]) -> None:
        try:
            await work
        except errors.UpstreamError as exc:
            upstream.log.write("gateway", f"subscription: {exc}")

    def _notified(self, upstream: Upstream, method: str, params: bytes) -> None:
        if (changed := LIST_CHANGED.get(method)) is not None:
            server = self._servers.get(upstream.server)
            if server is not None and any(c.upstream is upstream for c in server.connections.values()):
                server.announced.add(changed)
                self._relist_soon(server)
        else:
            self._events.server_notified(upstream, method, params)

    # -- logging -----------------------------------------------------------------------------

    def set_log_level(self, level: str) -> None:
        """Tell every running server, and every one started later, how much to log."""
        self._log_level = level
        for server in self._servers.values():
            for connection in server.connections.values():
                if connection.upstream is not None:
                    self._tasks.start_soon(self._send_log_level, connection.upstream)

    async def _send_log_level(self, upstream: Upstream) -> None:
        if upstream.facts is None or upstream.facts.era == "modern" or not upstream.facts.offers("logging"):
            return
        try:
            await upstream.request("logging/setLevel", {"level": envelope.raw(self._log_level)})
        except errors.UpstreamError as exc:
            upstream.log.write("gateway", f"logging/setLevel: {exc}")


async def _cancel_when(event: asyncio.Event, scope: anyio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


async def _either(*events: asyncio.Event) -> None:
    """Return as soon as one of the events is set."""
    async with anyio.create_task_group() as group:
        for event in events:
            group.start_soon(_cancel_when, event, group.cancel_scope)
