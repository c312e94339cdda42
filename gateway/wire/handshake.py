"""Opening a connection to a server: which protocol era it speaks, and what it says of itself.

Knows only how to ask; the connection is the caller's."""

from __future__ import annotations

from typing import Final, Protocol

import msgspec
from msgspec import Raw

from gateway import __version__, errors
from gateway.wire import envelope, revisions
from gateway.wire.envelope import Fields
from gateway.wire.revisions import Era

OUR_NAME: Final = "lockgate"
CLIENT_INFO: Final = envelope.raw({"name": OUR_NAME, "version": __version__})
APPS: Final = "io.modelcontextprotocol/ui"
APPS_SETTINGS: Final = {"mimeTypes": ["text/html;profile=mcp-app"]}
OWN_CAPABILITIES: Final = envelope.raw({"extensions": {APPS: APPS_SETTINGS}})
"""What the gateway declares for itself: views of MCP Apps are relayed, so servers may offer them. Clients that show
none have a tool's ordinary content."""
PROBE_TIMEOUT_S: Final = 5.0
"""How long a server that was never met may stay silent on `server/discover`; what it speaks is then remembered."""


MODERN_ERRORS: Final = frozenset(
    {envelope.HEADER_MISMATCH, envelope.MISSING_CAPABILITY, envelope.UNSUPPORTED_PROTOCOL_VERSION}
)
"""Codes that revision 2026-07-28 introduced."""


class Requester(Protocol):
    """What a handshake needs of a connection."""

    @property
    def server(self) -> str: ...

    def speaks(self, era: Era, revision: str) -> None:
        """From here on requests are made in this era."""

    async def request(self, method: str, members: Fields | None = None, *, timeout_s: float | None = None) -> bytes: ...


class ServerFacts(msgspec.Struct, frozen=True):
    """What a server declared. `capabilities` and `server_info` are its own JSON, unread members included."""

    era: Era
    revision: str
    capabilities: dict[str, Raw]
    server_info: Raw
    instructions: str = ""

    def offers(self, capability: str) -> bool:
        return bytes(self.capabilities.get(capability, Raw(b"null"))) != b"null"


class _InitializeResult(msgspec.Struct):
    protocolVersion: str
    capabilities: dict[str, Raw] = {}
    serverInfo: Raw = Raw(b"{}")
    instructions: str | None = None


class _DiscoverResult(msgspec.Struct):
    supportedVersions: list[str]
    capabilities: dict[str, Raw] = {}
    instructions: str | None = None
    meta: dict[str, Raw] = msgspec.field(name="_meta", default_factory=dict)


_initialize_result: Final = msgspec.json.Decoder(_InitializeResult)
_discover_result: Final = msgspec.json.Decoder(_DiscoverResult)


async def shake_hands(connection: Requester, known: Era | None, capabilities: Raw) -> ServerFacts:
    """Agree on an era: the one this server is known to speak, else the modern one if it answers `server/discover`.

    `capabilities` are declared to a legacy server for the whole connection; a modern one hears them with each request.

    Raises:
        UpstreamError: no answer, or one that is not MCP, or no revision in common.
    """
    if known != "legacy":
        facts = await _discover(connection, certain=known == "modern")
        if facts is not None:
            return facts
    try:
        return await _initialize(connection, capabilities)
    except errors.UpstreamRefused as exc:
        # A modern server that was slow to start heard the probe after all, and wants nothing else now.
        if exc.code != envelope.UNSUPPORTED_PROTOCOL_VERSION or known == "legacy":
            raise
        facts = await _discover(connection, certain=True)
        if facts is None:
            raise
        return facts


async def _discover(connection: Requester, *, certain: bool) -> ServerFacts | None:
    """The facts of a modern server; None for one that is not.

    No single error code means "legacy": deployed servers answer whatever their library does with an unknown method.
    """
    connection.speaks("modern", revisions.MODERN[0])
    timeout_s = None if certain else PROBE_TIMEOUT_S
    try:
        try:
            answer = await connection.request("server/discover", {}, timeout_s=timeout_s)
        except errors.UpstreamRefused as exc:
            if exc.code not in MODERN_ERRORS or not _names_common_revision(exc.data):
                raise
            answer = await connection.request("server/discover", {}, timeout_s=timeout_s)
        result = _discover_result.decode(answer)
    except errors.UpstreamRefused as exc:
        if exc.code in MODERN_ERRORS and not _names_legacy_revision(exc.data):
            # Only a modern server knows these codes: `initialize` would get no further.
            raise
        return None
    except (errors.UpstreamInvalid, errors.UpstreamTimeout, msgspec.DecodeError):
        return None
    common = [revision for revision in revisions.MODERN if revision in result.supportedVersions]
    if not common:
        return None
    connection.speaks("modern", common[0])
    info = result.meta.get(revisions.SERVER_INFO, Raw(b"{}"))
    return ServerFacts("modern", common[0], result.capabilities, info, result.instructions or "")


def _names_common_revision(data: bytes) -> bool:
    return any(envelope.encode(revision) in data for revision in revisions.MODERN)


def _names_legacy_revision(data: bytes) -> bool:
    return any(envelope.encode(revision) in data for revision in revisions.LEGACY)


async def _initialize(connection: Requester, capabilities: Raw) -> ServerFacts:
    """`initialize` in the newest legacy revision, accepting any older one the server counters with."""
    connection.speaks("legacy", "")
    members = {
        "protocolVersion": envelope.raw(revisions.LEGACY[0]),
        "capabilities": envelope.raw(envelope.fields(capabilities) | envelope.fields(OWN_CAPABILITIES)),
        "clientInfo": CLIENT_INFO,
    }
    answer = await connection.request("initialize", members)
    try:
        result = _initialize_result.decode(answer)
    except msgspec.DecodeError as exc:
        raise errors.UpstreamInvalid(f"server {connection.server} answered initialize badly: {exc}") from exc
    if result.protocolVersion not in revisions.LEGACY:
        raise errors.UpstreamInvalid(
            f"server {connection.server} speaks MCP revision {result.protocolVersion!r}; this gateway speaks "
            f"{', '.join(revisions.MODERN + revisions.LEGACY)}"
        )
    connection.speaks("legacy", result.protocolVersion)
    return ServerFacts(
        "legacy", result.protocolVersion, result.capabilities, result.serverInfo, result.instructions or ""
    )


def modern_meta(meta: Fields, revision: str, capabilities: Raw, log_level: str) -> Fields:
    """`_meta` of a modern request to the next hop: ours in place of what the last hop sent to us."""
    out = {key: value for key, value in meta.items() if key not in revisions.REQUEST_KEYS}
    out[revisions.PROTOCOL_VERSION] = envelope.raw(revision)
    out[revisions.CLIENT_CAPABILITIES] = capabilities
    out[revisions.CLIENT_INFO] = CLIENT_INFO
    if log_level:
        out[revisions.LOG_LEVEL] = envelope.raw(log_level)
    return out


def legacy_meta(meta: Fields) -> Fields:
    """`_meta` of a legacy request: without what only a modern hop reads."""
    return {key: value for key, value in meta.items() if key not in revisions.REQUEST_KEYS}
