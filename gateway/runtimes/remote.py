"""Servers that run elsewhere: MCP Streamable HTTP, client side (MCP 2025-11-25, basic/transports).

Knows how a server's address and credentials become a channel; what passes through that is the channel's business."""

from __future__ import annotations

from catalog import Entry
from gateway import errors
from gateway.oauth.signins import Signins, signs_in
from gateway.runtimes import address
from gateway.runtimes.http_channel import HttpChannel
from gateway.runtimes.old_sse import SseChannel
from gateway.secrets import Secrets
from gateway.serverlog import ServerLog
from gateway.wire.channel import Channel, Receiver


class RemoteRuntime:
    """Opens channels to URLs; nothing is started."""

    name = "remote"

    def __init__(self, secrets: Secrets | None = None, signins: Signins | None = None) -> None:
        self._secrets = secrets or Secrets()
        self._signins = signins

    async def prepare(self, entry: Entry, log: ServerLog) -> None:
        """There is nothing to fetch."""

    async def start(self, entry: Entry, receiver: Receiver, log: ServerLog, owner: str = "") -> Channel:
        if entry.remote is None:
            raise errors.UpstreamUnavailable(f"entry {entry.id} names no remote URL")
        token = self._signins.token(owner, entry) if self._signins is not None and signs_in(entry) else None
        fixed, redactor = await address.fixed_headers(entry, self._secrets, owner, token)
        log.hide(redactor)
        if entry.remote.transport == "sse":
            channel = SseChannel(entry.remote.url, fixed, receiver, log)
            await channel.connect()
            return channel
        return HttpChannel(entry.remote.url, fixed, receiver, log)

    async def aclose(self) -> None:
        """Nothing outlives a channel."""
