"""The seam between a transport and whoever reads its messages, and line framing for byte streams.

Knows no method: a channel moves whole JSON-RPC messages and says when it is gone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple, Protocol

from gateway.errors import UpstreamError
from gateway.wire.revisions import Era

MAX_MESSAGE_BYTES: Final = 32 * 1024 * 1024
"""Largest single message accepted from a server; base64 images of several megabytes are common."""


class Routing(NamedTuple):
    """What HTTP headers repeat of a modern request: its method, the name or URI it is about, mirrored arguments."""

    method: str
    name: str | None
    params: Mapping[str, str]


class Receiver(Protocol):
    """Who reads a channel. All are called on the event loop and must not block."""

    def received(self, message: bytes, id: int | None = None) -> bool:
        """One whole message, without its line break. `id` is the request on whose stream it came, if that is known.
        Returns whether it answers a request that was open; how much else a server says is bounded."""

    def failed(self, id: int, error: UpstreamError) -> None:
        """The request with this id will get no answer; the channel itself still works."""

    def waits_for(self, id: int) -> bool:
        """Whether a request still lacks its answer."""

    def lost(self, reason: str) -> None:
        """The channel is gone; called once, nothing follows."""


class Channel(Protocol):
    """One live connection to a server, owned by the task that opened it."""

    @property
    def detail(self) -> Mapping[str, str]:
        """What an operator would want to know: container id, process id, URL."""

    def send(self, message: bytes, id: int | None = None, routing: Routing | None = None) -> None:
        """Queue one single-line message; `id` is the request id if an answer is expected. `routing` is what a modern
        request repeats in HTTP headers; other transports ignore it."""

    def abort(self, id: int) -> bool:
        """Withdraw a request by closing its stream, if the transport and era have that; False if they do not."""

    @property
    def is_full(self) -> bool:
        """Whether `drain` would wait."""

    async def drain(self) -> None:
        """Wait until the transport's write buffer has room."""

    def negotiated(self, era: Era, revision: str) -> None:
        """From here on messages belong to this revision; empty while a legacy handshake is still to come."""

    async def settled(self) -> None:
        """Wait, briefly, until the server can also send what belongs to no request."""

    async def close(self) -> None:
        """Release everything; bounded, and safe to call twice."""


class LineTooLong(Exception):
    """A server wrote more than `MAX_MESSAGE_BYTES` without a line break."""


class LineSplitter:
    """Cuts a byte stream into lines; keeps the unfinished tail."""

    def __init__(self, limit: int = MAX_MESSAGE_BYTES) -> None:
        self._limit = limit
        self._tail: list[bytes] = []
        self._tail_bytes = 0

    def only_line(self, data: bytes) -> bytes | None:
        """The data without its line break if it is exactly one line, as nearly every answer comes; else None, and it is
        for `feed`."""
        if self._tail or len(data) > self._limit or data.find(b"\n") != len(data) - 1:
            return None
        return data.strip() or None

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield each finished line, without line break, skipping empty ones.

        Raises:
            LineTooLong: a line passed the limit; those before it were yielded.
        """
        head, *rest = data.split(b"\n")
        self._tail.append(head)
        self._tail_bytes += len(head)
        if self._tail_bytes > self._limit:
            raise LineTooLong
        if not rest:
            return
        rest.insert(0, b"".join(self._tail) if len(self._tail) > 1 else head)
        tail = rest.pop()
        self._tail = [tail] if tail else []
        self._tail_bytes = len(tail)
        for line in rest:
            if len(line) > self._limit:
                raise LineTooLong
            stripped = line.strip()
            if stripped:
                yield stripped

    def rest(self) -> bytes:
        """What is left without a line break, for a diagnosis at the end of the stream."""
        return b"".join(self._tail).strip()
