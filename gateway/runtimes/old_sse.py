"""The HTTP+SSE transport of revision 2024-11-05, client side: one GET that streams, POSTs to the address it names.

Knows that transport only; newer servers use Streamable HTTP (http_channel.py)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final
from urllib.parse import urljoin, urlsplit

from gateway import errors
from gateway.runtimes import address
from gateway.serverlog import ServerLog
from gateway.wire.channel import Receiver, Routing
from gateway.wire.http_client import Exchange, HttpFailure, HttpOrigin
from gateway.wire.revisions import Era
from gateway.wire.sse import EventReader, EventTooLarge

ENDPOINT_TIMEOUT_S: Final = 10.0


class SseChannel:
    """The stream and the address of one session; also the sink of its stream."""

    def __init__(
        self,
        url: str,
        fixed: Mapping[str, str],
        receiver: Receiver,
        log: ServerLog,
        origin: HttpOrigin | None = None,
    ) -> None:
        """`origin` is how the URL's host is reached, where that is not by its name. The channel closes it."""
        self.detail: Mapping[str, str] = {"url": address.shown(url), "transport": "sse"}
        self._url = url
        self._receiver = receiver
        self.log = log
        self._fixed = address.head(fixed)
        self._origin = origin or HttpOrigin(url)
        self._stream: Exchange | None = None
        self._events = EventReader()
        self._status = 0
        self._address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._lost = False

    async def connect(self) -> None:
        """Open the stream and wait for the address to post to.

        Raises:
            UpstreamUnavailable: no stream, or no address of the same origin on it.
        """
        head = self._fixed + b"Accept: text/event-stream\r\n"
        self._stream = self._origin.request("GET", address.target(self._url), head, b"", self)
        try:
            async with asyncio.timeout(ENDPOINT_TIMEOUT_S):
                await self._address
        except TimeoutError as exc:
            await self.close()
            raise errors.UpstreamUnavailable("the remote server named no address to post to") from exc
        except BaseException:
            await self.close()
            raise

    # -- the stream (Sink) -------------------------------------------------------------------

    def head(self, status: int, headers: dict[str, str]) -> None:
        self._status = status
        if status != 200:
            self._end(f"the remote server answered HTTP {status}")

    def body(self, data: bytes) -> None:
        if self._status != 200:
            return
        try:
            for event in self._events.feed(data):
                if event.name == b"endpoint":
                    self._found(event.data.decode("utf-8", "replace"))
                elif event.data:
                    self._receiver.received(event.data)
        except EventTooLarge:
            self._end("the remote server sent an event over the size limit")

    def done(self) -> None:
        self._end("the remote server ended the stream")

    def failed(self, failure: HttpFailure) -> None:
        self._end(str(failure))

    def _found(self, named: str) -> None:
        whole, own = urlsplit(urljoin(self._url, named)), urlsplit(self._url)
        if (whole.scheme, whole.netloc) != (own.scheme, own.netloc):
            # Whoever could name another origin here would get every message, credentials included.
            self._end("the remote server named an address of another origin")
        elif not self._address.done():
            self._address.set_result(whole.path + (f"?{whole.query}" if whole.query else ""))

    def _end(self, reason: str) -> None:
        if not self._address.done():
            self._address.set_exception(errors.UpstreamUnavailable(reason))
        if not self._lost:
            self._lost = True
            self._receiver.lost(reason)

    # -- Channel -----------------------------------------------------------------------------

    def send(self, message: bytes, id: int | None = None, routing: Routing | None = None) -> None:
        if not self._address.done() or self._address.exception() is not None:
            return
        head = self._fixed + b"Content-Type: application/json\r\n"
        self._origin.request("POST", self._address.result(), head, message, _PostSink(self, id))

    def refused(self, id: int | None, error: errors.UpstreamError, *, is_gone: bool) -> None:
        """A message was not taken. A session that the server no longer knows is over, whatever its stream says."""
        if id is not None:
            self._receiver.failed(id, error)
        if is_gone:
            self._end("the remote server no longer knows this session")

    def abort(self, id: int) -> bool:
        return False

    @property
    def is_full(self) -> bool:
        return False

    async def drain(self) -> None:
        """As with Streamable HTTP, the connection's own buffer is enough."""

    async def settled(self) -> None:
        """The stream has been open since `connect`."""

    def negotiated(self, era: Era, revision: str) -> None:
        """This transport does not repeat the revision."""

    async def close(self) -> None:
        self._lost = True
        if self._stream is not None:
            self._stream.abort()
        await self._origin.aclose()


class _PostSink:
    """The bare acknowledgement of one POST; the answer comes on the stream."""

    def __init__(self, channel: SseChannel, id: int | None) -> None:
        self._channel = channel
        self._id = id
        self._status = 0

    def head(self, status: int, headers: dict[str, str]) -> None:
        self._status = status

    def body(self, data: bytes) -> None:
        """Nothing in it is of use."""

    def done(self) -> None:
        if self._status >= 300:
            error = errors.UpstreamInvalid(f"the remote server answered HTTP {self._status}")
            self._channel.refused(self._id, error, is_gone=self._status in (404, 410))

    def failed(self, failure: HttpFailure) -> None:
        kind = errors.UpstreamLost if failure.sent else errors.UpstreamUnavailable
        self._channel.refused(self._id, kind(str(failure)), is_gone=False)
