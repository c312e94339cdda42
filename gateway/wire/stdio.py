"""The stdio transport, server side: newline-delimited messages on stdin and stdout, or on the gateway's own socket.

Knows framing and how a connection finds its era; methods are the era's."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from catalog import CatalogError, Profile
from gateway.door import Door
from gateway.wire import envelope, revisions
from gateway.wire.channel import LineSplitter, LineTooLong
from gateway.wire.envelope import Envelope, WireError
from gateway.wire.legacy import MAX_IN_FLIGHT, LegacySession
from gateway.wire.modern import ModernEra
from gateway.wire.revisions import Era
from policies import Principal

MAX_UNSENT_BYTES: Final = 64 * 1024 * 1024
"""Output a client may leave unread before it is taken for dead."""
READ_BYTES: Final = 65536
STDIN, STDOUT, STDERR = 0, 1, 2
FLUSH_TIMEOUT_S: Final = 5.0
"""For a client that reads its last answers after it closed our input."""


class Ends(NamedTuple):
    """Both ends of a byte stream; `drain` waits until the output has room."""

    reader: asyncio.StreamReader
    output: asyncio.WriteTransport
    drain: Callable[[], Awaitable[None]]


class LineStreams:
    """Both directions of a byte stream as messages."""

    def __init__(self, ends: Ends) -> None:
        self._reader, self._output, self._drain = ends

    def write(self, message: bytes) -> None:
        if self._output.get_write_buffer_size() > MAX_UNSENT_BYTES:
            self._output.abort()
        if not self._output.is_closing():
            self._output.write(envelope.one_line(message) + b"\n")

    async def send(self, message: bytes) -> None:
        """The same for what may come in any number: waits for a client that does not read."""
        self.write(message)
        await self._drain()

    async def messages(self) -> AsyncIterator[bytes]:
        """Each message until the input ends; an endless one ends the stream with an error to the client. A client that
        does not read its answers is not listened to."""
        splitter = LineSplitter()
        try:
            while data := await self._reader.read(READ_BYTES):
                for line in splitter.feed(data):
                    yield line
                    await self._drain()
        except LineTooLong:
            self.write(envelope.error(b"null", envelope.PARSE_ERROR, "a message is over the size limit"))


class _Output(asyncio.Protocol):
    """Knows when there is room, and when everything is written and the pipe closed."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    def pause_writing(self) -> None:
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()
        self._room.set()

    async def drain(self) -> None:
        await self._room.wait()


@asynccontextmanager
async def stdio_ends() -> AsyncIterator[Ends]:
    """Take over stdin and stdout: what anybody else prints goes to stderr, and both end with the body."""
    loop = asyncio.get_running_loop()
    stdin, stdout = (os.fdopen(os.dup(fd), mode, buffering=0) for fd, mode in ((STDIN, "rb"), (STDOUT, "wb")))
    nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(nothing, STDIN)
    os.close(nothing)
    os.dup2(STDERR, STDOUT)
    output, written = await loop.connect_write_pipe(_Output, stdout)
    reader = asyncio.StreamReader()
    source, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), stdin)
    try:
        yield Ends(reader, output, written.drain)
    finally:
        source.close()
        output.close()
        # What was answered before the input ended is still the client's to read.
        with suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_TIMEOUT_S):
                await written.closed.wait()


async def serve_lines(
    streams: LineStreams, door: Door, modern: ModernEra, profile: Profile, *, follows_default: bool = False
) -> None:
    """Serve one client until its input ends; open requests are then withdrawn.

    The first request decides the era of the connection: one with the modern `_meta` keys, or anything else.
    """
    principal = Principal("local", "stdio")
    session = LegacySession(door, principal, profile, streams.write)
    session.follows_default = follows_default
    tasks: dict[bytes, asyncio.Task[None]] = {}
    era: Era | None = None

    async def answer_legacy(incoming: Envelope) -> None:
        reply = await session.message(incoming, streams.send)
        if reply is not None:
            streams.write(reply)

    async def answer_modern(incoming: Envelope) -> None:
        now = door.current(profile, follows_default=follows_default)
        answer = await modern.request(incoming, principal, now, None, streams.send, follows_default=follows_default)
        streams.write(answer.message)

    def start(key: bytes, work: Coroutine[None, None, None]) -> None:
        task = tasks[key] = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(lambda _: tasks.pop(key, None))

    count = 0
    try:
        async for line in streams.messages():
            count += 1
            try:
                incoming = envelope.decode_from_client(line)
            except WireError as exc:
                streams.write(envelope.error(exc.id, exc.code, exc.message))
                continue
            if era is None and incoming.kind == "request":
                era = "modern" if _is_modern(incoming) else "legacy"
            if era != "modern":
                start(b"#%d" % count, answer_legacy(incoming))
            elif incoming.kind == "request":
                id = bytes(incoming.id)
                if id in tasks:
                    text = "a request with this id is still open"
                    streams.write(envelope.error(id, envelope.INVALID_REQUEST, text))
                elif len(tasks) >= MAX_IN_FLIGHT:
                    text = f"{MAX_IN_FLIGHT} requests are already open"
                    streams.write(envelope.error(id, envelope.INTERNAL_ERROR, text))
                else:
                    start(id, answer_modern(incoming))
            elif incoming.method == "notifications/cancelled":
                # A cancelled modern request gets no answer (MCP 2026-07-28, basic/utilities/cancellation).
                task = tasks.get(bytes(envelope.fields(incoming.params).get("requestId", envelope.ABSENT)))
                if task is not None:
                    task.cancel()
    finally:
        session.close()
        for task in list(tasks.values()):
            task.cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)


def _is_modern(incoming: Envelope) -> bool:
    try:
        meta = envelope.fields(incoming.params).get("_meta")
        return meta is not None and revisions.PROTOCOL_VERSION in envelope.fields(meta)
    except WireError:
        return False


async def serve_socket(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    door: Door,
    modern: ModernEra,
    profile_named: Callable[[str], Profile],
) -> None:
    """One connection to the gateway's own socket: its first line names a profile, the rest is stdio."""
    try:
        try:
            name = (await reader.readline()).decode("utf-8", "replace").strip()
            profile = profile_named(name)
        except (CatalogError, ValueError) as exc:  # no such profile, or a first line without end
            writer.write(envelope.error(b"null", envelope.INVALID_PARAMS, str(exc)) + b"\n")
            return
        streams = LineStreams(Ends(reader, writer.transport, writer.drain))
        await serve_lines(streams, door, modern, profile, follows_default=not name)
    finally:
        writer.close()


async def pipe_stdio(socket: Path, profile: str) -> None:
    """Join this process's stdio to the socket of a running gateway, byte for byte, until either ends.

    Raises:
        OSError: no gateway answers there; nothing was read.
    """
    reader, writer = await asyncio.open_unix_connection(str(socket))
    try:
        async with stdio_ends() as (stdin, stdout, drain):
            writer.write(profile.encode() + b"\n")
            upward = asyncio.get_running_loop().create_task(_pump(stdin, writer))
            while data := await reader.read(READ_BYTES):
                stdout.write(data)
                await drain()
            upward.cancel()
            await asyncio.gather(upward, return_exceptions=True)
    finally:
        writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(READ_BYTES):
        writer.write(data)
        await writer.drain()
    writer.write_eof()
