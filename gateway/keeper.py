"""The life of one connection to a server: prepared, started, served until it ends or idles, cleaned up.

Knows runtimes and handshakes; not who uses the connection, nor which others there are."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import Final, Protocol

import anyio

from catalog import Entry
from gateway import errors
from gateway.admission import Places
from gateway.breaker import MAX_PAUSE_S
from gateway.connections import SHARED, SPARE, Connection, Server
from gateway.listening import either, listen
from gateway.listings import learn
from gateway.relisting import Relisting
from gateway.runtimes import Runtime
from gateway.upstream import Upstream
from gateway.wire.channel import Channel
from gateway.wire.revisions import Era

_log: Final = logging.getLogger(__name__)

PREPARE_TIMEOUT_S: Final = 1800.0
"""Pulling or building an image, or installing a package."""
CLOSE_TIMEOUT_S: Final = 20.0
STABLE_AFTER_S: Final = 10.0
"""A server that lived this long did not crash at start: the next start is not delayed."""
RUNTIME_DOWN_PAUSE_S: Final = 4.0
"""The longest rest after a failure that was the engine's: it may be back at any time."""


Ready = Callable[[Entry, str], Awaitable[None]]
"""Raises UpstreamUnavailable if the entry cannot start with the secrets of this owner."""


async def always(entry: Entry, owner: str) -> None:
    """Nothing is lacking."""


class Watcher(Protocol):
    """Who is told what a connection does."""

    def started(self, server: Server, upstream: Upstream) -> None:
        """It is open and serves."""

    def notified(self, server: Server, upstream: Upstream, method: str, params: bytes) -> None:
        """A notification that belongs to no call."""


class Keeper:
    """Keeps connections: `own` is the task of one."""

    def __init__(
        self,
        runtime_for: Callable[[Entry], Runtime],
        ready: Ready,
        places: Places,
        listings: Relisting,
        watcher: Watcher,
        health_s: float,
    ) -> None:
        """`ready` refuses what lacks a secret. `health_s` bounds the wait for a sign of life of a server that left a
        call unanswered."""
        self._runtime_for = runtime_for
        self._ready = ready
        self._places = places
        self._listings = listings
        self._watcher = watcher
        self._health_s = health_s

    async def own(self, server: Server, connection: Connection, started: asyncio.Future[Upstream]) -> None:
        """The whole life of one connection: prepare, start, serve until it ends or idles, clean up."""
        opened: tuple[Upstream, Channel] | None = None
        try:
            if connection.upstream is not None:
                await connection.upstream.ended.wait()
            runtime = await self._prepared(server, connection.key.credential.owner)
            connection.counts = runtime.name not in ("remote", "built in")
            async with self._places.place(server.entry.id) if connection.counts else nullcontext():
                opened = await self._start(server, connection, runtime)
                try:
                    self._settle(server, connection, started, opened[0])
                    await self._serve(server, connection, opened[0])
                except errors.UpstreamError as exc:
                    self._fail(server, connection, started, exc)  # before it is closed: the next start must know
                finally:
                    with anyio.CancelScope(shield=True):
                        await self._close(server, *opened, connection.why)
        except errors.UpstreamError as exc:
            self._fail(server, connection, started, exc)
        except Exception as exc:  # noqa: BLE001  # outermost border: one server must not take the gateway with it
            _log.exception("server %s: internal error", server.entry.id)
            self._fail(server, connection, started, errors.UpstreamUnavailable(f"internal error: {type(exc).__name__}"))
        finally:
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
        server.made_room()

    async def _prepared(self, server: Server, owner: str) -> Runtime:
        entry = server.entry
        runtime = self._runtime_for(entry)
        await self._ready(entry, owner)
        server.runtime, server.log.noise = runtime.name, 0
        if server.state != "running":
            server.state = "preparing"
        try:
            async with asyncio.timeout(PREPARE_TIMEOUT_S):
                await runtime.prepare(entry, server.log)
        except TimeoutError as exc:
            raise errors.UpstreamUnavailable(f"server {entry.id} was not ready to start in time") from exc
        return runtime

    async def _start(self, server: Server, connection: Connection, runtime: Runtime) -> tuple[Upstream, Channel]:
        entry = server.entry
        if server.state != "running":
            server.state = "starting"
        old_transport = (
            bool(entry.per_call or entry.built_in)
            or entry.transport == "sse"
            or (entry.remote is not None and entry.remote.transport == "sse")
        )
        known: Era | None = "legacy" if old_transport else server.listing.era if server.listing is not None else None
        try:
            return await self._open(server, connection, runtime, known)
        except errors.UpstreamLost as exc:
            if known is not None:
                raise errors.UpstreamUnavailable(_start_failure(server, str(exc))) from exc
            # Some servers exit when they are asked something before `initialize`: ask nothing then.
            server.log.write("gateway", "it ended at server/discover; starting again with initialize")
        try:
            return await self._open(server, connection, runtime, "legacy")
        except errors.UpstreamLost as exc:
            raise errors.UpstreamUnavailable(_start_failure(server, str(exc))) from exc

    async def _open(
        self, server: Server, connection: Connection, runtime: Runtime, known: Era | None
    ) -> tuple[Upstream, Channel]:
        """Start and shake hands; on failure nothing is left."""
        entry = server.entry
        limit_s = entry.limits.start_timeout_s
        owner = connection.key.credential.owner
        log = server.log.branch() if owner else server.log
        upstream = Upstream(
            entry.id,
            log,
            call_timeout_s=entry.limits.call_timeout_s,
            on_notification=lambda upstream, method, params: self._watcher.notified(server, upstream, method, params),
            capabilities=connection.capabilities,
            owner=owner,
        )
        channel: Channel | None = None
        try:
            async with asyncio.timeout(limit_s):
                channel = await runtime.start(entry, upstream, log, owner)
                await upstream.open(channel, known)
                if server.listing is None or connection.key.owner == SPARE:
                    await self._listings.adopt(server, await learn(upstream, entry))
                elif connection.key.owner == SHARED:
                    self._listings.again_soon(server)
                upstream.mirrored = server.listing.mirrored if server.listing is not None else {}
        except BaseException as exc:
            if channel is not None:
                with anyio.CancelScope(shield=True):
                    await self._close(server, upstream, channel, "")
            if isinstance(exc, TimeoutError):
                reason = f"it did not finish its handshake within {limit_s:g} s"
                raise errors.UpstreamUnavailable(_start_failure(server, reason)) from exc
            if isinstance(exc, errors.RuntimeDown | errors.CredentialMissing):
                raise
            if isinstance(exc, errors.UpstreamError) and not isinstance(exc, errors.UpstreamLost):
                raise errors.UpstreamUnavailable(_start_failure(server, str(exc))) from exc
            raise
        return upstream, channel

    @staticmethod
    def _settle(server: Server, connection: Connection, started: asyncio.Future[Upstream], upstream: Upstream) -> None:
        connection.upstream, connection.starting = upstream, None
        connection.hand_out(asyncio.get_running_loop().time())
        server.state, server.error = "running", ""
        server.breaker_of(connection.key.credential).started()
        if not started.done():
            started.set_result(upstream)

    # -- serving -----------------------------------------------------------------------------

    async def _serve(self, server: Server, connection: Connection, upstream: Upstream) -> None:
        entry, loop, stop = server.entry, asyncio.get_running_loop(), connection.stop
        born = loop.time()
        self._watcher.started(server, upstream)
        async with anyio.create_task_group() as helpers:
            if connection.key.owner == SHARED and upstream.facts is not None and upstream.facts.era == "modern":
                helpers.start_soon(listen, upstream)
            helpers.start_soon(self._watch_health, connection, upstream)
            while not upstream.ended.is_set() and not stop.is_set():
                left_s = connection.last_used + entry.limits.idle_s - loop.time()
                if left_s <= 0 and not upstream.busy:
                    server.log.write("gateway", f"stopped after {entry.limits.idle_s:g} s without a call")
                    helpers.cancel_scope.cancel()
                    return
                with anyio.move_on_after(max(left_s, 1.0)):
                    await either(upstream.ended, stop)
            helpers.cancel_scope.cancel()
        lived_s = loop.time() - born
        if connection.is_sick:
            raise errors.UpstreamUnavailable(f"server {entry.id} was stopped: {connection.why}")
        if stop.is_set() or lived_s >= STABLE_AFTER_S:
            server.breaker_of(connection.key.credential).prove()
        else:
            raise errors.UpstreamUnavailable(
                f"server {entry.id} ended {lived_s:.1f} s after its start: {upstream.end_reason}"
            )

    async def _watch_health(self, connection: Connection, upstream: Upstream) -> None:
        """A server that left a call unanswered is asked for a sign of life, and is stopped if it gives none."""
        while True:
            await upstream.suspect.wait()
            upstream.suspect.clear()
            try:
                await upstream.request("ping", timeout_s=self._health_s)
            except errors.UpstreamTimeout:
                connection.is_sick = True
                connection.end(f"it answered neither a call nor, within {self._health_s:g} s, a ping")
                return
            except errors.UpstreamInvalid:
                continue  # a refusal is an answer
            except errors.UpstreamError:
                return

    def _fail(
        self, server: Server, connection: Connection, started: asyncio.Future[Upstream], exc: errors.UpstreamError
    ) -> None:
        if not isinstance(exc, errors.AtCapacity):  # which says nothing about the server
            server.error = str(exc)
            if not isinstance(exc, errors.CredentialMissing):  # it may be there at the next attempt
                longest_s = RUNTIME_DOWN_PAUSE_S if isinstance(exc, errors.RuntimeDown) else MAX_PAUSE_S
                breaker = server.breaker_of(connection.key.credential)
                breaker.fail(asyncio.get_running_loop().time(), longest_s)
                breaker.why = server.error
        server.log.write("gateway", str(exc))
        if not started.done():
            started.set_exception(exc)
            started.exception()  # nobody may be waiting any more; that is not an accident to report

    @staticmethod
    async def _close(server: Server, upstream: Upstream, channel: Channel | None, why: str) -> None:
        """Bounded; afterwards nothing waits on this connection any more."""
        upstream.stopped_because = why
        if channel is not None:
            with anyio.move_on_after(CLOSE_TIMEOUT_S) as scope:
                await channel.close()
            if scope.cancelled_caught:
                server.log.write("gateway", f"closing did not finish within {CLOSE_TIMEOUT_S:g} s")
        upstream.lost("the gateway stopped it")


def _start_failure(server: Server, reason: str) -> str:
    text = f"server {server.entry.id} failed to start: {reason}"
    if server.log.noise:
        text += f"; it wrote {server.log.noise} line(s) on stdout that are not MCP"
    return f"{text}. See: lockgate server logs {server.entry.id}"
