"""A local script's stdin and stdout carried over HTTP, byte for byte, so that it can misbehave on those transports too.

Knows Streamable HTTP and the older HTTP+SSE just enough to break them; takes of the gateway only how to start a child
without copies of its pipes."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from gateway.descriptors import keep_only

HERE = Path(__file__).parent
SSE_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n%b\r\n"
PIECE_BYTES = 65536


class Carrier:
    """One script behind one URL. Each session is a process of its own; when it ends, its streams are cut."""

    def __init__(self, command: tuple[str, ...], *, old: bool) -> None:
        self.url = ""
        self.starts = 0
        self.n_lines = 0
        """Passed on so far."""
        self._command = command
        self._old = old
        self._process: asyncio.subprocess.Process | None = None
        self._streams: dict[Any, asyncio.StreamWriter] = {}
        """By the id of the request each answers; the last one also carries what answers nothing."""
        self._tasks: set[asyncio.Task[None]] = set()

    def _alive(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def _start(self) -> None:
        self.starts += 1
        script, *arguments = self._command
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-S",
            str(HERE / f"{script}.py"),
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"},
            start_new_session=True,
            preexec_fn=keep_only(),
        )
        self._spawn(self._relay(self._process))
        self._spawn(self._bury(self._process))

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _relay(self, process: asyncio.subprocess.Process) -> None:
        """Each line becomes an event; what has no end becomes the beginning of one."""
        assert process.stdout is not None
        tail, begun = b"", False
        while data := await process.stdout.read(PIECE_BYTES):
            *lines, tail = (tail + data).split(b"\n")
            for line in lines:
                self._write(line, (b"" if begun else b"data: ") + line + b"\n\n")
                begun = False
            if len(tail) > PIECE_BYTES:
                self._write(b"", (b"" if begun else b"data: ") + tail)
                tail, begun = b"", True
            self.n_lines += len(lines)
            with suppress(ConnectionError):
                for writer in list(self._streams.values()):
                    if not writer.is_closing():
                        await writer.drain()
        if tail:
            self._write(b"", (b"" if begun else b"data: ") + tail)
        for writer in self._streams.values():
            if not writer.is_closing():
                writer.transport.abort()
        self._streams.clear()
        _kill(process)

    @staticmethod
    async def _bury(process: asyncio.subprocess.Process) -> None:
        """Children it left behind hold its pipes open."""
        await process.wait()
        _kill(process)

    def _write(self, line: bytes, event: bytes) -> None:
        if not self._streams:
            return
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        answered = message.get("id") if isinstance(message, dict) and "method" not in message else None
        known = isinstance(answered, int | str) and answered in self._streams and not self._old
        key = answered if known else next(reversed(self._streams))
        writer = self._streams[key]
        if writer.is_closing():
            return  # its client has hung up
        writer.write(b"%x\r\n%b\r\n" % (len(event), event))
        if known:
            writer.write(b"0\r\n\r\n")
            del self._streams[key]

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while True:
                    await self._serve_one(reader, writer)
        finally:
            self._tasks.discard(task)
            for key in [key for key, one in self._streams.items() if one is writer]:
                del self._streams[key]
            writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        method, target, _ = head[0].split(" ")
        if method == "GET" and self._old:
            await self._start()
            writer.write(SSE_HEAD % b"")
            event = b"event: endpoint\ndata: /post?%d\n\n" % self.starts
            writer.write(b"%x\r\n%b\r\n" % (len(event), event))
            self._streams = {"": writer}
        elif method == "POST":
            await self._post(headers, target, body, writer)
        elif method == "DELETE":
            self.stop()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        else:
            writer.write(b"HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()

    async def _post(self, headers: dict[str, str], target: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        message = json.loads(body)
        session = headers.get("mcp-session-id", "") if not self._old else target.partition("?")[2]
        if session:
            if not self._alive() or session != str(self.starts):
                writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                return
        elif message.get("method") == "initialize" or not self._alive():
            self.stop()
            await self._start()
        if "id" in message and "method" in message and not self._old:
            writer.write(SSE_HEAD % (b"Mcp-Session-Id: %d\r\n" % self.starts))
            self._streams[message["id"]] = writer
        else:
            writer.write(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n")
        assert self._process is not None
        assert self._process.stdin is not None
        if not self._process.stdin.is_closing():
            self._process.stdin.write(body + b"\n")

    def stop(self) -> None:
        if self._process is not None:
            _kill(self._process)

    async def aclose(self) -> None:
        self.stop()
        if self._process is not None:
            await self._process.wait()
            self._process._transport.close()  # type: ignore[attr-defined]
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _kill(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


@asynccontextmanager
async def carried(*command: str, old: bool = False) -> AsyncIterator[Carrier]:
    """The script at a URL of this machine; `old` is HTTP+SSE."""
    carrier = Carrier(command, old=old)
    listener = await asyncio.start_server(carrier.connected, "127.0.0.1", 0)
    carrier.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/" + ("sse" if old else "mcp")
    try:
        yield carrier
    finally:
        listener.close()
        await carrier.aclose()
