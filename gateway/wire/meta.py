"""What `_meta` of a modern request says of its client, and what the next hop is told in its place.

Pure. A client sends the same bytes with nearly every request, so what was made of them is remembered."""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NamedTuple

from msgspec import Raw

from gateway.wire import envelope, revisions
from gateway.wire.envelope import Fields, WireError
from gateway.wire.handshake import modern_meta

LOG_LEVELS: Final = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")
"""RFC 5424 severities, least severe first."""
MAX_REMEMBERED: Final = 256
MAX_REMEMBERED_BYTES: Final = 2048
"""Longer ones are read each time: what strangers send must not fill memory."""
_PROGRESS: Final = "progressToken"


class Problem(NamedTuple):
    """What is wrong with a `_meta`, as the error to answer with."""

    code: int
    message: str
    data: object = None


class ClientFacts(NamedTuple):
    """The client behind one request. `problem` is reported only once the headers are known to repeat the request."""

    version: str
    capabilities: Fields
    client: str
    log_level: str
    problem: Problem | None


def read(meta: bytes) -> ClientFacts | Problem:
    """The facts in a `_meta`, or why it cannot be one."""
    return _remembered(meta) if len(meta) <= MAX_REMEMBERED_BYTES else _read(meta)


def _read(meta: bytes) -> ClientFacts | Problem:
    if meta[:1] != b"{":
        return Problem(envelope.INVALID_PARAMS, "params._meta must be an object with the required request keys")
    try:
        members = envelope.fields(meta)
        for key in (revisions.PROTOCOL_VERSION, revisions.CLIENT_CAPABILITIES):
            if key not in members:
                return Problem(envelope.INVALID_PARAMS, f"params._meta lacks {key}")
        version = envelope.text(members[revisions.PROTOCOL_VERSION], revisions.PROTOCOL_VERSION)
    except WireError as exc:
        return Problem(exc.code, exc.message)
    try:
        return _read_client(version, members)
    except WireError as exc:
        return ClientFacts(version, {}, "", "", Problem(exc.code, exc.message))


def _read_client(version: str, members: Fields) -> ClientFacts:
    problem: Problem | None = None
    capabilities: Fields = {}
    client = log_level = ""
    if version not in revisions.MODERN:
        data = {"supported": list(revisions.MODERN), "requested": version[:32]}
        problem = Problem(envelope.UNSUPPORTED_PROTOCOL_VERSION, "Unsupported protocol version", data)
    elif bytes(members[revisions.CLIENT_CAPABILITIES])[:1] != b"{":
        problem = Problem(envelope.INVALID_PARAMS, f"{revisions.CLIENT_CAPABILITIES} must be an object")
    else:
        capabilities = envelope.fields(members[revisions.CLIENT_CAPABILITIES])
        info = members.get(revisions.CLIENT_INFO)
        if info is not None and bytes(info)[:1] == b"{":
            name = envelope.fields(info).get("name")
            client = envelope.text(name, "clientInfo.name")[:128] if name is not None else ""
        level = members.get(revisions.LOG_LEVEL)
        if level is not None:
            log_level = envelope.text(level, revisions.LOG_LEVEL)
            if log_level not in LOG_LEVELS:
                text = f"{revisions.LOG_LEVEL} must be one of {', '.join(LOG_LEVELS)}"
                problem = Problem(envelope.INVALID_PARAMS, text)
    return ClientFacts(version, capabilities, client, log_level, problem)


_remembered: Final = lru_cache(MAX_REMEMBERED)(_read)


def onward(meta: bytes, revision: str, capabilities: bytes, log_level: str) -> Raw | None:
    """`_meta` of the same request to a modern server; None if there is something in it that only this request has.

    Raises:
        WireError: not an object.
    """
    if len(meta) + len(capabilities) > MAX_REMEMBERED_BYTES or _PROGRESS.encode() in meta:
        return None
    return _onward(meta, revision, capabilities, log_level)


@lru_cache(MAX_REMEMBERED)
def _onward(meta: bytes, revision: str, capabilities: bytes, log_level: str) -> Raw | None:
    members = envelope.fields(meta)
    if _PROGRESS in members:  # however it was spelled
        return None
    return envelope.raw(modern_meta(members, revision, Raw(capabilities), log_level))
