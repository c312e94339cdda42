"""Keeping listings true: what a server offers is recorded, asked for again when it says so, and told to listeners.

Knows servers and listings; not how a server is started."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import Final, Protocol, TypeAlias

import anyio
import msgspec
from anyio import to_thread

from catalog import CatalogError, Entry
from gateway import errors
from gateway.background import Background
from gateway.connections import SPARE, Key, Server
from gateway.listings import Listing, ListingStore, learn

_log: Final = logging.getLogger(__name__)

RELIST_PAUSE_S: Final = 0.05
"""Announced changes within this time are answered with one new listing."""


class Hears(Protocol):
    """Who is told of changed listings."""

    def listing_changed(self, server: str, lists: Collection[str]) -> None:
        """The server offers something else than before, or says so; `lists` names tools, prompts or resources."""


Admit: TypeAlias = Callable[[Entry, Listing], Listing]
"""What of a server's listing may be offered; blocks on files."""


def everything(entry: Entry, listing: Listing) -> Listing:
    """Nothing is reviewed."""
    return listing


class Relisting:
    """The listings of all servers of a pool."""

    def __init__(
        self,
        store: ListingStore,
        tasks: Background,
        hears: Hears,
        start_spare: Callable[[Server], bool],
        admit: Admit = everything,
    ) -> None:
        """`start_spare` starts a connection that may be asked, if there is room; it lists once it is there. `admit`
        says which of a server's tools may be offered."""
        self._admit = admit
        self._start_spare = start_spare
        self._store = store
        self._tasks = tasks
        self._hears = hears
        self.generation = 0
        """Changes whenever any listing does: part of every cache key."""

    def load(self, server: Server) -> None:
        server.heard = self._store.load(server.entry)
        server.listing = self._admitted(server, server.heard) if server.heard is not None else None

    async def adopt(self, server: Server, listing: Listing) -> None:
        """Make a listing the current one, record it, and tell what differs or was announced.

        An announcement is passed on even if nothing differs: what changed may be in what a list does not show.
        """
        if server.is_retired:
            return
        heard_before, server.heard = server.heard, listing
        await self._offer(server, listing)
        if heard_before != listing:
            try:
                await to_thread.run_sync(self._store.save, server.entry, listing)
            except OSError as exc:
                # It is only a memory for the next start.
                server.log.write("gateway", f"the listing could not be saved: {exc}")

    async def review_again(self, server: Server) -> None:
        """Somebody approved or rejected a tool: offer what may be offered now."""
        if server.heard is not None:
            await self._offer(server, server.heard)

    async def _offer(self, server: Server, heard: Listing) -> None:
        listing = await to_thread.run_sync(self._admitted, server, heard)
        if server.heard is not heard and server.listing is not None:
            return  # a newer one came meanwhile
        before, server.listing = server.listing, listing
        changed, server.announced = server.announced, set()
        if before != listing:
            changed |= listing.differs(before)
            self.generation += 1
        if changed:
            self._hears.listing_changed(server.entry.id, changed)

    def _admitted(self, server: Server, heard: Listing) -> Listing:
        try:
            return self._admit(server.entry, heard)
        except (CatalogError, OSError) as exc:
            # What cannot be compared with what was approved is not offered.
            _log.error("server %s: its tools cannot be reviewed, so none is offered: %s", server.entry.id, exc)
            server.log.write("gateway", f"none of its tools is offered, as they cannot be reviewed: {exc}")
            return msgspec.structs.replace(heard, tools=())

    def announced(self, server: Server, what: str) -> None:
        """The server says that one of its lists has changed."""
        server.announced.add(what)
        self.again_soon(server)

    def again_soon(self, server: Server) -> None:
        if not server.relisting:
            server.relisting = True
            self._tasks.start_soon(self._again, server)

    async def _again(self, server: Server) -> None:
        await anyio.sleep(RELIST_PAUSE_S)
        server.relisting = False
        upstream, spare = server.upstream, None
        if upstream is None:
            return
        if server.asks:
            # It may offer more to a client that can be asked than it does on the shared connection.
            spare = server.connections.get(Key(SPARE))
            if spare is None and self._start_spare(server):
                return
            if spare is not None and spare.upstream is None:
                return  # it lists as soon as it is there
            if spare is not None and spare.upstream is not None:
                upstream, spare.taken = spare.upstream, True
        try:
            await self.adopt(server, await learn(upstream, server.entry))
        except errors.UpstreamError as exc:
            server.log.write("gateway", f"could not list again, keeping the last listing: {exc}")
        except Exception as exc:  # noqa: BLE001  # outermost border of a task: one server must not take all with it
            _log.exception("server %s: internal error while listing again", server.entry.id)
            server.log.write("gateway", f"could not list again: internal error: {type(exc).__name__}")
        finally:
            if spare is not None:
                spare.taken = False
