"""Whoever makes calls, as the door sees it.

Knows no transport, and not what a caller may do."""

from __future__ import annotations

from collections.abc import Hashable
from contextvars import ContextVar
from typing import Final

from msgspec import Raw

from catalog import Entry, Profile
from gateway import sampling
from gateway.pool import Lease
from gateway.upstream import CallerFacts
from gateway.wire import envelope
from gateway.wire.envelope import Fields, WireError
from gateway.wire.meta import LOG_LEVELS
from policies import Principal

SOURCE: Final = ContextVar("source", default="")
"""The address the request under way comes from; empty if it came by no network."""


class Caller:
    """Whoever is on the other side: one session or request of one principal in one profile."""

    def __init__(self, principal: Principal, profile: Profile, client: str = "") -> None:
        self.principal = principal
        self.profile = profile
        self.client = client
        self.capabilities: Fields = {}
        """What this client declared it can answer."""
        self.log_level = ""
        self.takes_tasks = False
        """Whether a task may be given to this client in place of a result."""
        self.waits = True
        """Whether it may be kept waiting for a person who approves a call."""
        self.follows_default = False
        """Whether it came to /mcp, where another profile may be served from some moment on."""
        self.owns: Hashable = None
        """Whose connections to servers end with it."""
        self.server = ""
        """The entry of the server that asked for a model, where this caller uses one for it."""
        self.servers: set[str] = set()
        """Servers this caller has called: whose log messages it may see."""

    def deliver(self, method: str, params: bytes) -> None:
        """A notification that belongs to no call of this caller; a caller without a place for it drops it."""

    def lease(self, entry: Entry) -> Lease | None:
        """The connections of its own this caller needs to a server that may ask questions; None if nobody answers any
        for it."""
        everything = sampling.asked(entry, sampling.EVERYTHING)
        if everything is None or sampling.asked(entry, self.capabilities) is None:
            return None
        return Lease(("call", self.principal.id, self.profile.name), everything, exclusive=True)

    def facts(self) -> CallerFacts:
        return CallerFacts(envelope.raw(self.capabilities), self.log_level)


def wants_log(caller: Caller, params: bytes) -> bool:
    """Whether a log message is severe enough for what the caller asked to hear; nothing asked is nothing heard."""
    try:
        level = envelope.text(envelope.fields(params).get("level", Raw(b'"info"')), "level")
    except WireError:
        return False
    return bool(caller.log_level) and severity(level) >= severity(caller.log_level)


def severity(level: str) -> int:
    """The place of a log level in `LOG_LEVELS`."""
    return LOG_LEVELS.index(level) if level in LOG_LEVELS else 0
