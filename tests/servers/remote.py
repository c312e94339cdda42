"""A small MCP server over Streamable HTTP, in this process but on a real socket.

What it does is behaviour.py's; how it breaks the transport's rules is told by its options.

Knows nothing of the gateway."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

from tests.servers.behaviour import Behaviour

SSE = "text/event-stream"


class Request(NamedTuple):
    """What came in."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def rpc(self) -> str:
        """The JSON-RPC method, if any."""
        return str(json.loads(self.body).get("method", "")) if self.body else ""


class RemoteServer:
    """Options beside behaviour.py's: `stream` answers everything as an event stream, `listen` allows GET, `sessions`
    gives out session ids, `kind` is another class than behaviour.py's, `old` speaks HTTP+SSE of revision 2024-11-05
    (`endpoint` is the address it names), `pad` is put before each JSON answer, `raw` maps a JSON-RPC method to the
    bytes of a whole HTTP answer, after which the connection is closed."""

    def __init__(self, **options: Any) -> None:
        self.options: dict[str, Any] = {"listen": True, "sessions": True} | options
        self.url = ""
        self.requests: list[Request] = []
        self.sessions: set[str] = set()
        self._count = 0
        self.listeners: list[asyncio.StreamWriter] = []
        self.behaviour = self._behaviour(self.say)
        self.n_opened = 0
        self.old: dict[str, tuple[Any, Callable[[str], None]]] = {}
        """By the address to post to: the behaviour of that session, and the way to its stream."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._readers: set[asyncio.StreamReader] = set()

    def _behaviour(self, unasked: Callable[[str], None]) -> Any:
        kind = self.options.get("kind", Behaviour)
        return kind(self.options, unasked, lambda s, work: asyncio.get_running_loop().call_later(s, work))

    @property
    def n_connections(self) -> int:
        """How many the other side has open."""
        return sum(not reader.at_eof() for reader in self._readers)

    def rpc(self, method: str) -> list[Request]:
        """The requests with this JSON-RPC method."""
        return [request for request in self.requests if request.method == "POST" and request.rpc == method]

    def say(self, message: str) -> None:
        """Send a message to everybody who listens."""
        for writer in self.listeners:
            _event(writer, f"event: message\ndata: {message}\n\n")

    def hang_up(self) -> None:
        """Break every connection at once."""
        for task in list(self._tasks):
            task.cancel()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._readers.add(reader)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while await self._serve_one(reader, writer):
                    await writer.drain()
                await writer.drain()
        finally:
            self._tasks.discard(task)
            self._readers.discard(reader)
            if writer in self.listeners:
                self.listeners.remove(writer)
            if task.cancelling():
                writer.transport.abort()
            writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = head[0].split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        request = Request(method, target, headers, body)
        self.requests.append(request)
        match method:
            case "POST":
                return await self._post(request, writer)
            case "GET" if self.options["listen"]:
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
                )
                self.listeners.append(writer)
                if self.options.get("old"):
                    self._open_old(writer)
                await reader.read()
                return False
            case "DELETE":
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            case _:
                writer.write(b"HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n")
        return True

    def _open_old(self, writer: asyncio.StreamWriter) -> None:
        self.n_opened += 1
        address = f"/messages?session={self.n_opened}"

        def say(message: str) -> None:
            _event(writer, f"event: message\ndata: {message}\n\n")

        self.old[address] = (self._behaviour(say), say)
        _event(writer, f"event: endpoint\ndata: {self.options.get('endpoint', address)}\n\n")

    async def _post(self, request: Request, writer: asyncio.StreamWriter) -> bool:
        if (raw := self.options.get("raw", {}).get(request.rpc)) is not None:
            writer.write(raw)
            return False
        if self.options.get("old"):
            if request.target not in self.old:
                writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                return True
            writer.write(b"HTTP/1.1 202 Accepted\r\nContent-Length: 8\r\n\r\nAccepted")
            if request.target not in self.old:
                writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                return None
            behaviour, say = self.old[request.target]
            behaviour.handle(request.body.decode(), say)
            return True
        extra = ""
        if self.options["sessions"]:
            if request.rpc == "initialize":
                self._count += 1
                self.sessions.add(f"session-{self._count}")
                extra = f"Mcp-Session-Id: session-{self._count}\r\n"
            elif request.rpc != "server/discover" and request.headers.get("mcp-session-id") not in self.sessions:
                writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                return True
        messages: asyncio.Queue[str] = asyncio.Queue()
        self.behaviour.handle(request.body.decode(), messages.put_nowait)
        if "id" not in json.loads(request.body):
            writer.write(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n")
            return True
        await _answer(messages, writer, extra, self.options)
        return True


def _event(writer: asyncio.StreamWriter, event: str) -> None:
    """One event as a chunk of its own; nothing if the other side has hung up."""
    if not writer.is_closing():
        data = event.encode()
        writer.write(b"%x\r\n%b\r\n" % (len(data), data))


async def _answer(messages: asyncio.Queue[str], writer: asyncio.StreamWriter, extra: str, options: Any) -> None:
    """JSON if nothing comes before the answer, else (or if the options say so) an event stream."""
    streaming = False
    while True:
        message = await messages.get()
        last = "method" not in json.loads(message)
        if last and not streaming and not options.get("stream"):
            body = options.get("pad", "").encode() + message.encode()
            head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{extra}Content-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            return
        if not streaming:
            streaming = True
            head = f"HTTP/1.1 200 OK\r\nContent-Type: {SSE}\r\n{extra}Transfer-Encoding: chunked\r\n\r\n"
            writer.write(head.encode())
        _event(writer, f": hello\r\nid: 1\r\nevent: message\r\ndata: {message}\r\n\r\n")
        if last:
            writer.write(b"0\r\n\r\n")
            return


@asynccontextmanager
async def remote(**options: Any) -> AsyncIterator[RemoteServer]:
    """A server on a free port of this machine; `port` asks for a certain one."""
    server = RemoteServer(**options)
    listener = await asyncio.start_server(server.connected, "127.0.0.1", options.get("port", 0))
    server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/mcp"
    try:
        yield server
    finally:
        listener.close()
        server.hang_up()
        while server._tasks:
            await asyncio.sleep(0)
