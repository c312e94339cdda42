"""Extensions of the protocol that servers declare: which can be offered, and whose a method is.

Pure. Knows listings; not callers, policies or connections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Raw

from gateway import tasks
from gateway.listings import Listing
from gateway.wire import envelope, methods
from gateway.wire.envelope import Fields
from gateway.wire.handshake import APPS


def _declared(listings: Mapping[str, Listing]) -> dict[str, dict[str, Raw]]:
    """By extension: the servers that declare it, each with its settings."""
    found: dict[str, dict[str, Raw]] = {}
    for server, listing in listings.items():
        raw = listing.capabilities.get("extensions", envelope.ABSENT)
        if bytes(raw)[:1] == b"{":
            for name, settings in envelope.fields(raw).items():
                found.setdefault(name, {})[server] = settings
    return found


def offered(listings: Mapping[str, Listing]) -> Fields:
    """Extensions that clients are told of: those that exactly one server declares, and MCP Apps, which is only a matter
    of names. Tasks are offered by the gateway itself."""
    return {
        name: next(iter(servers.values()))
        for name, servers in _declared(listings).items()
        if name != tasks.EXTENSION and (len(servers) == 1 or name == APPS)
    }


def owner(method: str, servers: Sequence[str], listings: Mapping[str, Listing]) -> str | None:
    """The only server that a method of an extension or vendor can be meant for: the only one there is, or the only one
    that declares its extension; None if there is none or more than one."""
    if len(servers) == 1:
        return servers[0]
    meant = {
        server
        for extension, declaring in _declared(listings).items()
        if methods.belongs_to(method, extension)
        for server in declaring
    }
    return meant.pop() if len(meant) == 1 else None
