"""What servers say unasked, and who hears it: changed lists, updated resources, log messages, news of extensions.

Knows who subscribed to what; asks the door what a caller may see."""

from __future__ import annotations

import weakref
from collections.abc import Collection
from typing import TYPE_CHECKING, Final

from gateway import errors, extensions, names
from gateway.audit import Audit, AuditUnwritable, Record
from gateway.caller import Caller, severity, wants_log
from gateway.recording import note_server, record_of
from gateway.surface import Target
from gateway.upstream import LOG, Notice, Upstream
from gateway.wire import envelope, methods
from gateway.wire.envelope import WireError

if TYPE_CHECKING:
    from gateway.door import Door

SUBSCRIBE: Final = "resources/subscribe"
UPDATED: Final = "notifications/resources/updated"


class Hearing:
    """Everybody who can be told something. The events of the pool arrive here."""

    def __init__(self, door: Door, audit_file: Audit) -> None:
        self._door = door
        self._audit = audit_file
        self._callers: weakref.WeakSet[Caller] = weakref.WeakSet()
        self._subscribers: dict[tuple[str, str], set[Caller]] = {}

    def enter(self, caller: Caller) -> None:
        """From now on the caller hears of changes. Forgotten when the caller is garbage."""
        caller.profile = self._door.current(caller.profile, follows_default=caller.follows_default)
        self._callers.add(caller)

    def profiles_changed(self, *, policy: bool = False) -> None:
        """Callers whose profile is another now are told to list anew; all of them, if the policy is another. Whom a
        profile does not admit finds nothing in it."""
        for caller in list(self._callers):
            before = caller.profile
            caller.profile = self._door.current(before, follows_default=caller.follows_default)
            if policy or caller.profile != before:
                for name in ("prompts", "resources", "tools"):
                    caller.deliver(f"notifications/{name}/list_changed", b"")

    def leave(self, caller: Caller) -> None:
        """The caller is gone: its subscriptions and its own connections end."""
        self._callers.discard(caller)
        for key in [key for key, callers in self._subscribers.items() if caller in callers]:
            self._unsubscribe_soon(caller, key)
        if caller.owns is not None:
            self._door.pool.release(caller.owns)

    # -- subscriptions -----------------------------------------------------------------------

    async def subscribe(self, caller: Caller, uri: str) -> None:
        """Let the caller hear of changes of one resource; the server is asked once, however many callers want it.

        Raises:
            UnknownName: no such resource for this caller.
            UpstreamError: the server cannot be asked, or refuses.
            AuditUnwritable: it could not be recorded, so there is no subscription.
        """
        record = record_of(caller, SUBSCRIBE)
        record.name = uri[:256]
        key: tuple[str, str] | None = None
        try:
            key = await self._subscribe(caller, uri, record)
            record.outcome = "ok"
        except errors.UnknownName:
            record.outcome = "unknown"
            raise
        except errors.UpstreamError as exc:
            record.outcome, record.detail = "upstream", type(exc).__name__
            raise
        finally:
            try:
                self._audit.write(record)
            except AuditUnwritable:
                if key is not None:
                    self._unsubscribe_soon(caller, key)
                raise

    async def _subscribe(self, caller: Caller, uri: str, record: Record) -> tuple[str, str]:
        target = self._readable(caller, uri, record)
        key = (target.server, target.item)
        callers = self._subscribers.setdefault(key, set())
        callers.add(caller)
        try:
            upstream = await self._door.connect(caller, target.server)
            if target.item not in upstream.subscribed:
                self._audit.write(record.start())
                await upstream.subscribe(target.item)
        except BaseException:
            callers.discard(caller)
            if not callers and self._subscribers.get(key) is callers:
                del self._subscribers[key]
                self._door.pool.unsubscribe_soon(*key)  # it may have been asked, and the caller gone before it answered
            raise
        return key

    async def unsubscribe(self, caller: Caller, uri: str) -> None:
        """The reverse of `subscribe`; unknown subscriptions are no error."""
        target = self._readable(caller, uri, record_of(caller, SUBSCRIBE))
        self._unsubscribe_soon(caller, (target.server, target.item))

    def _readable(self, caller: Caller, uri: str, record: Record) -> Target:
        target = self._door.surface(caller).resource(uri)
        note_server(record, caller, target.server, target.item)
        decision = self._door.decide(caller, "read", target.server, target.item)
        record.policy, record.policies = self._door.policy.generation, decision.policy_ids
        if not decision.allowed:
            raise errors.UnknownName(f"Resource not found: {uri[:256]}")
        return target

    def _may_read(self, caller: Caller, server: str, uri: str) -> bool:
        return server in caller.profile.names and self._door.decide(caller, "read", server, uri).allowed

    def _unsubscribe_soon(self, caller: Caller, key: tuple[str, str]) -> None:
        callers = self._subscribers.get(key)
        if callers is None:
            return
        callers.discard(caller)
        if not callers:
            del self._subscribers[key]
            self._door.pool.unsubscribe_soon(*key)

    # -- what servers say unasked (Events of the pool) ---------------------------------------

    def listing_changed(self, server: str, lists: Collection[str]) -> None:
        for caller in list(self._callers):
            if server in caller.profile.names:
                for name in sorted(lists):
                    caller.deliver(f"notifications/{name}/list_changed", b"")

    def server_started(self, server: str, upstream: Upstream) -> None:
        if not upstream.may_ask:
            wanted = [
                uri
                for (id, uri), callers in self._subscribers.items()
                if id == server and any(_is_theirs(upstream, caller) for caller in callers)
            ]
            self._door.pool.resubscribe_soon(upstream, wanted)

    def server_notified(self, upstream: Upstream, method: str, params: bytes) -> None:
        if method == LOG:
            self._log_message(upstream, params)
        elif method == UPDATED:
            self._resource_updated(upstream, params)
        elif methods.is_foreign_notification(method):
            self._foreign_notification(upstream, method, params)

    def _resource_updated(self, upstream: Upstream, params: bytes) -> None:
        server = upstream.server
        try:
            members = envelope.fields(params)
            uri = envelope.text(members.get("uri", envelope.ABSENT), "uri")
        except WireError:
            return
        members.pop("_meta", None)
        for caller in list(self._subscribers.get((server, uri), ())):
            # Rules and profiles may have changed since it subscribed.
            if not _is_theirs(upstream, caller) or not self._may_read(caller, server, uri):
                continue
            view = self._door.surface(caller)
            named = names.wrap_uri(view.names.get(server, server), uri)
            members["uri"] = envelope.raw(uri if view.single is not None else named)
            caller.deliver(UPDATED, envelope.encode(members))

    def _log_message(self, upstream: Upstream, params: bytes) -> None:
        told = self._door.guards.notice(upstream.server, Notice(LOG, params))
        if told is None:
            return
        for caller in self._hearers(upstream):
            if wants_log(caller, params):
                caller.deliver(LOG, told.params)

    def _foreign_notification(self, upstream: Upstream, method: str, params: bytes) -> None:
        """To those who could send one like it to this very server."""
        server = upstream.server
        for caller in self._hearers(upstream):
            if extensions.owner(method, list(caller.profile.names), self._door.listings(caller)) == server:
                caller.deliver(method, params)

    def _hearers(self, upstream: Upstream) -> Collection[Caller]:
        """Those who called the server, unless callers of several principals did: what a server says unasked cannot be
        tied to the call that caused it, and must not show one principal what another does."""
        hearers = [
            caller
            for caller in self._callers
            if upstream.server in caller.servers and self._door.admits(caller) and _is_theirs(upstream, caller)
        ]
        return hearers if len({caller.principal for caller in hearers}) == 1 else []

    def set_log_level(self, caller: Caller, level: str) -> None:
        """Set what one caller wants to hear; servers are told the most talkative level anybody asked for."""
        caller.log_level = level
        wanted = [other.log_level for other in self._callers if other.log_level]
        self._door.pool.set_log_level(min(wanted, key=severity, default=level))


def _is_theirs(upstream: Upstream, caller: Caller) -> bool:
    """Whether a connection may speak to this caller: one with a credential of one principal's speaks to that one."""
    return not upstream.owner or upstream.owner == caller.principal.id
