"""The data path of a container: the attach socket of the Docker Engine API, read as multiplexed frames.

Knows the frame format (Engine API v1.41, ContainerAttach) and nothing of creating containers."""

from __future__ import annotations

import asyncio
import struct
from typing import Final, Protocol, cast

from gateway.wire.lines import WriteEnd

MAX_HEAD_BYTES: Final = 64 * 1024
STDERR: Final = 2
_header: Final = struct.Struct(">B3xI")
"""Before each frame: the stream it is of, and how many bytes follow."""
FRAME_HEADER_BYTES: Final = _header.size


class Stream(Protocol):
    """Who gets what the engine carries; a `LineChannel` is one."""

    def writes_to(self, write_end: WriteEnd) -> None: ...

    def feed(self, data: bytes) -> None:
        """What the container says on stdout."""

    def complain(self, data: bytes) -> None:
        """The same on stderr."""

    def end(self, reason: str) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class AttachProtocol(asyncio.Protocol):
    """Speaks the HTTP upgrade, then hands stdout to the channel and stderr to its log."""

    def __init__(self, path: str, channel: Stream, body: bytes = b"") -> None:
        """`body` is the JSON that goes with the request, where it has some."""
        self.upgraded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._is_upgraded = False
        self._path = path
        self._body = body
        self._channel = channel
        self._head = b""
        """What was read of the engine's answer to the upgrade."""
        self._buffer = bytearray()
        """The beginning of a frame whose rest is still to come."""
        self._missing = 0
        """How many bytes that frame lacks at least."""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._channel.writes_to(self._transport)
        self._transport.write(
            b"POST %b HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (self._path.encode(), len(self._body), self._body)
        )

    def data_received(self, data: bytes) -> None:
        if not self._is_upgraded:
            if self.upgraded.done():
                return  # refused, or nobody waits any more
            data = self._read_head(data)
        if self._missing:
            self._buffer += data
            if len(data) < self._missing:
                self._missing -= len(data)
                return
            data, self._missing = bytes(self._buffer), 0
            self._buffer.clear()
        self._read_frames(data)

    def _read_head(self, data: bytes) -> bytes:
        """Read the engine's answer to the upgrade; what follows it."""
        self._head += data
        head, end, rest = self._head.partition(b"\r\n\r\n")
        if not end:
            if len(head) > MAX_HEAD_BYTES:
                self._refuse("the engine's answer to attach is too long")
            return b""
        status = head.partition(b"\r\n")[0] + b" "
        if b" 101 " not in status and b" 200 " not in status:
            self._refuse(f"the engine refused to attach: {self._head[:500].decode(errors='replace')}")
            return b""
        self._head, self._is_upgraded = b"", True
        self.upgraded.set_result(None)
        return rest

    def _fail(self, reason: str) -> None:
        """Tell whoever waits for the upgrade; that a cancelled start waits no more is not an accident to report."""
        self.upgraded.set_exception(ConnectionError(reason))
        self.upgraded.exception()

    def _refuse(self, reason: str) -> None:
        self._fail(reason)
        if self._transport is not None:
            self._transport.abort()

    def _read_frames(self, data: bytes) -> None:
        start, size = 0, len(data)
        while start < size:
            if size - start < FRAME_HEADER_BYTES:
                self._missing = FRAME_HEADER_BYTES - (size - start)
                break
            stream, length = _header.unpack_from(data, start)
            end = start + FRAME_HEADER_BYTES + length
            if size < end:
                self._missing = end - size
                break
            payload = data[start + FRAME_HEADER_BYTES : end]
            if stream == STDERR:
                self._channel.complain(payload)
            else:
                self._channel.feed(payload)
            start = end
        if start < size:
            self._buffer += data[start:]

    def pause_writing(self) -> None:
        self._channel.pause()

    def resume_writing(self) -> None:
        self._channel.resume()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.upgraded.done():
            self._fail("the engine closed the connection during attach")
        self._channel.end("its container ended" if exc is None else f"the attach connection failed: {exc}")

    def close_stdin(self) -> None:
        """Half-close, which a server takes as the request to exit (MCP basic/lifecycle, "Shutdown")."""
        if self._transport is not None and not self._transport.is_closing():
            if self._transport.can_write_eof():
                self._transport.write_eof()
            else:
                # TLS has no half-close here: the engine closes the server's stdin when the whole connection goes.
                self._transport.close()

    def pause_reading(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
