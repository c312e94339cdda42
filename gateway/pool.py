"""The servers behind this gateway: started on first use, kept warm, stopped when idle, each owned by one task.

Knows entries, runtimes and listings; not callers, profiles or policies."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final, Literal, Protocol

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup

from catalog import Entry
from gateway import errors
from gateway.listings import Listing, ListingStore, learn
from gateway.runtimes import Runtime
from gateway.serverlog import ServerLog
from gateway.upstream import Upstream
from gateway.wire import envelope
from gateway.wire.channel import Channel

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

State = Literal["idle", "preparing", "starting", "running", "failed"]


class Events(Protocol):
    """Who hears what servers do."""

    def listing_changed(self, server: str, lists: Collection[str]) -> None:
        """The server offers something else than before, or says so; `lists` names tools, prompts or resources."""

    def server_notified(self, server: str, method: str, params: bytes) -> None:
        """A notification that belongs to no call."""


class Server:
    """One catalogue entry as it runs here. Mutated only by the pool."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.log = ServerLog()
        self.state: State = "idle"
        self.runtime = ""
        self.error = ""
        self.listing: Listing | None = None
        self.upstream: Upstream | None = None
        self.starting: asyncio.Future[Upstream] | None = None
        self.failures = 0
        self.retry_at = 0.0
        self.relisting = False
        self.announced: set[str] = set()
        """Lists the server says have changed since the last listing."""
        self.stop = asyncio.Event()


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
        return self._servers[id].listing

    async def learn(self, id: str) -> Listing:
        """What the server offers, starting it if that is not known yet.

        Raises:
            UpstreamError: it cannot be started or asked.
        """
        server = self._servers[id]
        if server.listing is None:
            await self.connection(id)
        if server.listing is None:
            raise errors.UpstreamUnavailable(f"server {id} did not say what it offers")
        return server.listing

    async def connection(self, id: str) -> Upstream:
        """The live connection, or a new one; concurrent callers share one start.

        Raises:
            UpstreamUnavailable: it cannot be started; says why, and when the next attempt is allowed.
        """
        server = self._servers[id]
        if server.upstream is not None and not server.upstream.ended.is_set() and not server.stop.is_set():
            return server.upstream
        return await asyncio.shield(self.start_soon(id))

    def start_soon(self, id: str) -> asyncio.Future[Upstream]:
        """Begin a start unless one is under way; the future may be ignored.

        Raises:
            UpstreamUnavailable: it failed a moment ago and must not be tried again yet.
        """
        server = self._servers[id]
        if server.starting is None:
            wait_s = server.retry_at - asyncio.get_running_loop().time()
            if wait_s > 0:
                raise errors.UpstreamUnavailable(f"{server.error} (next attempt in {wait_s:.0f} s)")
            server.starting = asyncio.get_running_loop().create_future()
            self._tasks.start_soon(self._own, server, server.starting, name=f"server {id}")
        return server.starting

    async def _own(self, server: Server, started: asyncio.Future[Upstream]) -> None:
        """The whole life of one connection: prepare, start, serve until it ends or idles, clean up."""
        previous = server.upstream
        if previous is not None and not previous.ended.is_set():
            await previous.ended.wait()
        server.stop = asyncio.Event()
        upstream = Upstream(
            server.entry.id,
            server.log,
            call_timeout_s=server.entry.limits.call_timeout_s,
            on_notification=self._notified,
        )
        channel: Channel | None = None
        try:
            channel = await self._start(server, upstream)
            self._settle(server, started, upstream)
            await self._serve(server, upstream)
        except errors.UpstreamError as exc:
            self._fail(server, started, exc)
        except Exception as exc:  # noqa: BLE001  # outermost border: one server must not take the gateway with it
            _log.exception("server %s: internal error", server.entry.id)
            self._fail(server, started, errors.UpstreamUnavailable(f"internal error: {type(exc).__name__}"))
        finally:
            with anyio.CancelScope(shield=True):
                await self._close(server, upstream, channel)
            if server.upstream is upstream:
                server.upstream = None
            if server.starting is started:
                server.starting = None
            if server.starting is None:
                server.state = "failed" if server.error else "idle"
            if not started.done():
                started.cancel()

    async def _start(self, server: Server, upstream: Upstream) -> Channel:
        entry = server.entry
        runtime = self._runtime_for(entry)
        server.runtime, server.state, server.log.noise = runtime.name, "preparing", 0
        try:
            async with asyncio.timeout(PREPARE_TIMEOUT_S):
                await runtime.prepare(entry, server.log)
        except TimeoutError as exc:
            raise errors.UpstreamUnavailable(f"server {entry.id} was not ready to start in time") from exc
        server.state = "starting"
        limit_s = entry.limits.start_timeout_s
        channel: Channel | None = None
        try:
            async with asyncio.timeout(limit_s):
                channel = await runtime.start(entry, upstream, server.log)
                await upstream.open(channel)
                if server.listing is None:
                    await self._adopt(server, await learn(upstream, entry))
                else:
                    self._relist_soon(server)
        except (TimeoutError, errors.UpstreamError) as exc:
            if channel is not None:
                await self._close(server, upstream, channel)
            reason = (
                f"it did not finish its handshake within {limit_s:g} s" if isinstance(exc, TimeoutError) else str(exc)
            )
            raise errors.UpstreamUnavailable(self._start_failure(server, reason)) from exc
        except BaseException:
            if channel is not None:
                with anyio.CancelScope(shield=True):
                    await self._close(server, upstream, channel)
            raise
        return channel

    @staticmethod
    def _start_failure(server: Server, reason: str) -> str:
        text = f"server {server.entry.id} failed to start: {reason}"
        if server.log.noise:
            text += f"; it wrote {server.log.noise} line(s) on stdout that are not MCP"
        return f"{text}. See: lockgate server logs {server.entry.id}"

    def _settle(self, server: Server, started: asyncio.Future[Upstream], upstream: Upstream) -> None:
        server.upstream, server.state, server.error, server.starting = upstream, "running", "", None
        if not started.done():
            started.set_result(upstream)

    async def _serve(self, server: Server, upstream: Upstream) -> None:
        entry, loop = server.entry, asyncio.get_running_loop()
        born = loop.time()
        if self._log_level:
            self._tasks.start_soon(self._send_log_level, upstream)
        while not upstream.ended.is_set() and not server.stop.is_set():
            left_s = upstream.last_used + entry.limits.idle_s - loop.time()
            if left_s <= 0 and not upstream.in_flight:
                server.log.write("gateway", f"stopped after {entry.limits.idle_s:g} s without a call")
                return
            with anyio.move_on_after(max(left_s, 1.0)):
                await _either(upstream.ended, server.stop)
        lived_s = loop.time() - born
        if server.stop.is_set() or lived_s >= STABLE_AFTER_S:
            server.failures = 0
        else:
            raise errors.UpstreamUnavailable(
                f"server {entry.id} ended {lived_s:.1f} s after its start: {upstream.end_reason}"
            )

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
        self._servers[id].stop.set()

    # -- listings ----------------------------------------------------------------------------

    async def _adopt(self, server: Server, listing: Listing) -> None:
        """Make a listing the current one, record it, and tell what differs or was announced.

        An announcement is passed on even if nothing differs: what changed may be in what a list does not show.
        """
        before, server.listing = server.listing, listing
        changed, server.announced = server.announced, set()
        if before != listing:
            changed |= listing.differs(before)
            self.generation += 1
            await to_thread.run_sync(self._listings.save, server.entry, listing)
        if changed:
            self._events.listing_changed(server.entry.id, changed)

    def _relist_soon(self, server: Server) -> None:
        if not server.relisting:
            server.relisting = True
            self._tasks.start_soon(self._relist, server)

    async def _relist(self, server: Server) -> None:
        await anyio.sleep(RELIST_PAUSE_S)
        server.relisting = False
        upstream = server.upstream
        if upstream is None:
            return
        try:
            listing = await learn(upstream, server.entry)
        except errors.UpstreamError as exc:
            server.log.write("gateway", f"could not list again, keeping the last listing: {exc}")
            return
        await self._adopt(server, listing)

    def _notified(self, upstream: Upstream, method: str, params: bytes) -> None:
        if (changed := LIST_CHANGED.get(method)) is not None:
            self._servers[upstream.server].announced.add(changed)
            self._relist_soon(self._servers[upstream.server])
        else:
            self._events.server_notified(upstream.server, method, params)

    # -- logging -----------------------------------------------------------------------------

    def set_log_level(self, level: str) -> None:
        """Tell every running server, and every one started later, how much to log."""
        self._log_level = level
        for server in self._servers.values():
            if server.upstream is not None:
                self._tasks.start_soon(self._send_log_level, server.upstream)

    async def _send_log_level(self, upstream: Upstream) -> None:
        if upstream.facts is None or not upstream.facts.offers("logging"):
            return
        try:
            await upstream.request("logging/setLevel", {"level": envelope.raw(self._log_level)})
        except errors.UpstreamError as exc:
            upstream.log.write("gateway", f"logging/setLevel: {exc}")


async def _either(*events: asyncio.Event) -> None:
    """Return as soon as one of the events is set."""
    async with anyio.create_task_group() as group:

        async def watch(event: asyncio.Event) -> None:
            await event.wait()
            group.cancel_scope.cancel()

        for event in events:
            group.start_soon(watch, event)
