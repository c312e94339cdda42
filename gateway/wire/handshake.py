"""Opening a connection to a server: which protocol era it speaks, and what it says of itself.

Knows only how to ask; the connection is the caller's. Today: the legacy era (initialize)."""

from __future__ import annotations

from typing import Final, Protocol

import msgspec
from msgspec import Raw

from gateway import __version__, errors
from gateway.wire import envelope
from gateway.wire.envelope import Fields

LEGACY_REVISIONS: Final = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")
"""Revisions with a handshake that a server may counter-offer, newest first."""
OUR_NAME: Final = "lockgate"


class Requester(Protocol):
    """What a handshake needs of a connection."""

    @property
    def server(self) -> str: ...

    async def request(self, method: str, members: Fields | None = None, *, timeout_s: float | None = None) -> bytes: ...


class ServerFacts(msgspec.Struct, frozen=True):
    """What a server declared. `capabilities` and `server_info` are its own JSON, unread members included."""

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


_initialize_result: Final = msgspec.json.Decoder(_InitializeResult)


async def legacy_handshake(connection: Requester) -> ServerFacts:
    """`initialize` in the newest legacy revision, accepting any older one the server counters with.

    No client capability is declared: the connection may serve several callers, and a server's question over it
    could not be tied to the one whose call caused it.

    Raises:
        UpstreamError: no answer, or one that is not MCP, or a revision this gateway does not speak.
    """
    members = {
        "protocolVersion": envelope.raw(LEGACY_REVISIONS[0]),
        "capabilities": Raw(b"{}"),
        "clientInfo": envelope.raw({"name": OUR_NAME, "version": __version__}),
    }
    answer = await connection.request("initialize", members)
    try:
        result = _initialize_result.decode(answer)
    except msgspec.DecodeError as exc:
        raise errors.UpstreamInvalid(f"server {connection.server} answered initialize badly: {exc}") from exc
    if result.protocolVersion not in LEGACY_REVISIONS:
        raise errors.UpstreamInvalid(
            f"server {connection.server} speaks MCP revision {result.protocolVersion!r}; "
            f"this gateway speaks {', '.join(LEGACY_REVISIONS)}"
        )
    return ServerFacts(result.protocolVersion, result.capabilities, result.serverInfo, result.instructions or "")
