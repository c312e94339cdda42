"""The data path of a container: the attach socket of the Docker Engine API, read as multiplexed frames.

Knows the frame format (Engine API v1.41, ContainerAttach) and nothing of creating containers."""

from __future__ import annotations

import asyncio
from typing import Final, Protocol, cast

from gateway.serverlog import ServerLog
from gateway.wire.lines import LineTooLong, WriteEnd

MAX_HEAD_BYTES: Final = 64 * 1024
FRAME_HEADER_BYTES: Final = 8
STDERR: Final = 2


class Stream(Protocol):
    """Who gets what the engine carries; a `LineChannel` is one."""

    @property
    def log(self) -> ServerLog: ...

    def writes_to(self, write_end: WriteEnd) -> None: ...

    def feed(self, data: bytes) -> None: ...

    def end(self, reason: str) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class AttachProtocol(asyncio.Protocol):
    """Speaks the HTTP upgrade, then hands stdout to the channel and stderr to its log."""

    def __init__(self, path: str, channel: Stream, body: bytes = b"") -> None:
        """`body` is the JSON that goes with the request, where it has some."""
        self.upgraded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._path = path
        self._body = body
        self._channel = channel
        self._buffer = bytearray()
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
        self._buffer += data
        if not self.upgraded.done() and not self._read_head():
            return
        try:
            self._read_frames()
        except LineTooLong:
            self._channel.end("it wrote an endless line on stdout")
            if self._transport is not None:
                self._transport.abort()

    def _read_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > MAX_HEAD_BYTES:
                self._refuse("the engine's answer to attach is too long")
            return False
        status = bytes(self._buffer[: self._buffer.find(b"\r\n")])
        if b" 101 " not in status + b" " and b" 200 " not in status + b" ":
            self._refuse(f"the engine refused to attach: {bytes(self._buffer[:500]).decode(errors='replace')}")
            return False
        del self._buffer[: end + 4]
        self.upgraded.set_result(None)
        return True

    def _fail(self, reason: str) -> None:
        """Tell whoever waits for the upgrade; that a cancelled start waits no more is not an accident to report."""
        self.upgraded.set_exception(ConnectionError(reason))
        self.upgraded.exception()

    def _refuse(self, reason: str) -> None:
        self._fail(reason)
        if self._transport is not None:
            self._transport.abort()

    def _read_frames(self) -> None:
        buffer = self._buffer
        start = 0
        while len(buffer) - start >= FRAME_HEADER_BYTES:
            end = start + FRAME_HEADER_BYTES + int.from_bytes(buffer[start + 4 : start + 8], "big")
            if len(buffer) < end:
                break
            payload = bytes(buffer[start + FRAME_HEADER_BYTES : end])
            if buffer[start] == STDERR:
                self._channel.log.stderr(payload)
            else:
                self._channel.feed(payload)
            start = end
        if start:
            del buffer[:start]

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

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
