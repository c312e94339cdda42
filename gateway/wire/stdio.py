"""The stdio transport, server side: newline-delimited messages on this process's own stdin and stdout.

Knows framing only. Either an era behind it answers, or a running gateway to which the messages are relayed."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from msgspec import Raw

from catalog import Profile
from gateway import errors
from gateway.door import Door
from gateway.wire import envelope
from gateway.wire.channel import Channel, LineSplitter, LineTooLong
from gateway.wire.envelope import WireError
from gateway.wire.legacy import LegacySession
from policies import Principal

MAX_UNSENT_BYTES: Final = 64 * 1024 * 1024
"""Output a client may leave unread before it is taken for dead."""
READ_BYTES: Final = 65536


class StdioStreams:
    """Both directions of this process's stdio as messages."""

    def __init__(self, reader: asyncio.StreamReader, output: asyncio.WriteTransport) -> None:
        self._reader = reader
        self._output = output

    def write(self, message: bytes) -> None:
        if self._output.get_write_buffer_size() > MAX_UNSENT_BYTES:
            self._output.abort()
        if not self._output.is_closing():
            self._output.write(envelope.one_line(message) + b"\n")

    async def messages(self) -> AsyncIterator[bytes]:
        """Each message until stdin ends; an endless one ends the stream with an error to the client."""
        splitter = LineSplitter()
        try:
            while data := await self._reader.read(READ_BYTES):
                for line in splitter.feed(data):
                    yield line
        except LineTooLong:
            self.write(envelope.error(b"null", envelope.PARSE_ERROR, "a message is over the size limit"))


@asynccontextmanager
async def stdio_streams() -> AsyncIterator[StdioStreams]:
    """Take over stdin and stdout."""
    loop = asyncio.get_running_loop()
    output, _ = await loop.connect_write_pipe(asyncio.Protocol, sys.stdout.buffer)
    reader = asyncio.StreamReader()
    source, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer)
    try:
        yield StdioStreams(reader, output)
    finally:
        source.close()
        output.close()


async def serve_stdio(door: Door, profile: Profile) -> None:
    """Serve one client until stdin ends; open requests are then withdrawn."""
    async with stdio_streams() as streams:
        session = LegacySession(door, Principal("local", "stdio"), profile, streams.write)
        tasks: set[asyncio.Task[None]] = set()

        async def send(message: bytes) -> None:
            streams.write(message)

        async def answer(line: bytes) -> None:
            reply = await session.message(line, send)
            if reply is not None:
                streams.write(reply)

        try:
            async for line in streams.messages():
                task = asyncio.get_running_loop().create_task(answer(line))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
        finally:
            session.close()
            await asyncio.gather(*tasks, return_exceptions=True)


class StdioRelay:
    """Carries messages between stdio and a channel to a running gateway, ids unchanged (a `Receiver`)."""

    def __init__(self) -> None:
        self._streams: StdioStreams | None = None
        self._channel: Channel | None = None
        self._open: dict[int, Raw] = {}
        """Requests without an answer yet: our count of them, and their own ids."""
        self._count = 0
        self._opening: bytes | None = None
        """The id of the initialize request, until its answer names the revision."""

    async def run(self, channel: Channel) -> None:
        """Relay until stdin ends."""
        self._channel = channel
        async with stdio_streams() as self._streams:
            try:
                async for line in self._streams.messages():
                    self._forward(line)
            finally:
                await channel.close()

    def _forward(self, line: bytes) -> None:
        if self._channel is None or self._streams is None:
            return
        try:
            incoming = envelope.decode(line)
        except WireError as exc:
            self._streams.write(envelope.error(exc.id, exc.code, exc.message))
            return
        if incoming.kind != "request":
            self._channel.send(line)
            return
        self._count += 1
        self._open[self._count] = incoming.id
        if incoming.method == "initialize":
            self._opening = bytes(incoming.id)
        self._channel.send(line, self._count)

    def received(self, message: bytes) -> None:
        if self._streams is None:
            return
        try:
            incoming = envelope.decode(message)
        except WireError:
            return
        if incoming.kind == "response":
            id = bytes(incoming.id)
            self._open = {count: raw for count, raw in self._open.items() if bytes(raw) != id}
            if id == self._opening and self._channel is not None:
                self._opening = None
                revision = envelope.fields(incoming.result).get("protocolVersion") if bytes(incoming.result) else None
                if revision is not None:
                    self._channel.negotiated(envelope.text(revision, "protocolVersion"))
        self._streams.write(message)

    def failed(self, id: int, error: errors.UpstreamError) -> None:
        own = self._open.pop(id, None)
        if own is not None and self._streams is not None:
            self._streams.write(envelope.error(bytes(own), envelope.INTERNAL_ERROR, f"{error}. {error.retry}"))

    def lost(self, reason: str) -> None:
        for count in list(self._open):
            self.failed(count, errors.UpstreamLost(reason))
