"""Clients of the HTTP endpoint, byte by byte: one connection for each request, nothing hidden.

Knows HTTP/1.1 and JSON-RPC just enough to look at what the gateway sends; uses nothing of the gateway."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

import anyio

DEADLINE_S = 20.0
JSON = ("Content-Type", "application/json")
ACCEPT = ("Accept", "application/json, text/event-stream")
Headers = Iterable[tuple[str, str]]


class Response(NamedTuple):
    """A whole answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def is_stream(self) -> bool:
        return self.headers.get("content-type", "").startswith("text/event-stream")

    def messages(self) -> list[Any]:
        """The JSON-RPC messages in it, from JSON or from an event stream."""
        if not self.is_stream:
            return [json.loads(self.body)] if self.body else []
        return [json.loads(data) for data in _data(self.body)]


def _data(events: bytes) -> list[bytes]:
    return [
        line.removeprefix(b"data: ")
        for block in events.split(b"\n\n")
        for line in block.split(b"\n")
        if line.startswith(b"data: ") and line != b"data: "
    ]


class Stream:
    """An open answer, read event by event."""

    def __init__(self, reader: asyncio.StreamReader, status: int, headers: dict[str, str]) -> None:
        self.status = status
        self.headers = headers
        self._reader = reader
        self._rest = b""

    async def chunk(self) -> bytes:
        """The next piece of a chunked body; empty at its end."""
        size = int((await self._reader.readline()).split(b";")[0], 16)
        data = await self._reader.readexactly(size)
        await self._reader.readexactly(2)
        return data

    async def message(self) -> Any:
        """The next JSON-RPC message; None at the end of the stream."""
        with anyio.fail_after(DEADLINE_S):
            while True:
                block, end, rest = self._rest.partition(b"\n\n")
                if end:
                    self._rest = rest
                    if found := _data(block + b"\n\n"):
                        return json.loads(found[0])
                    continue
                data = await self.chunk()
                if not data:
                    return None
                self._rest += data

    async def until(self, method: str) -> Any:
        """The next message with this method."""
        while (message := await self.message()) is not None:
            if message.get("method") == method:
                return message
        raise AssertionError(f"the stream ended before {method}")


class Http:
    """One origin, such as `http://127.0.0.1:8811`."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.host, self.port = parts.hostname or "", parts.port or 80

    @asynccontextmanager
    async def open(self, data: bytes) -> AsyncIterator[Stream]:
        """Send these bytes, and read the head of the answer."""
        with anyio.fail_after(DEADLINE_S):
            reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            writer.write(data)
            with anyio.fail_after(DEADLINE_S):
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers: dict[str, str] = {}
            for name, _, value in (line.partition(":") for line in head[1:] if line):
                earlier = headers.get("set-cookie", "") if name.lower() == "set-cookie" else ""
                headers[name.lower()] = f"{earlier}\n{value.strip()}".strip()
            yield Stream(reader, int(head[0].split(" ")[1]), headers)
        finally:
            writer.close()

    def head(self, method: str, target: str, headers: Headers, length: int) -> bytes:
        given = list(headers)
        if not any(name.lower() == "host" for name, _ in given):
            host = f"[{self.host}]" if ":" in self.host else self.host
            given.insert(0, ("Host", f"{host}:{self.port}"))
        lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in given)]
        return "\r\n".join([*lines, "Connection: close", f"Content-Length: {length}"]).encode("latin-1") + b"\r\n\r\n"

    async def raw(self, data: bytes) -> Response:
        """The answer to these very bytes."""
        async with self.open(data) as stream:
            return await _whole(stream)

    async def request(self, method: str, target: str, body: bytes = b"", headers: Headers = ()) -> Response:
        return await self.raw(self.head(method, target, headers, len(body)) + body)

    @asynccontextmanager
    async def stream(self, method: str, target: str, body: bytes = b"", headers: Headers = ()) -> AsyncIterator[Stream]:
        async with self.open(self.head(method, target, headers, len(body)) + body) as stream:
            yield stream


async def _whole(stream: Stream) -> Response:
    with anyio.fail_after(DEADLINE_S):
        if stream.headers.get("transfer-encoding") == "chunked":
            parts = []
            while data := await stream.chunk():
                parts.append(data)
            body = b"".join(parts)
        else:
            body = await stream._reader.readexactly(int(stream.headers.get("content-length", "0")))
    return Response(stream.status, stream.headers, body)


def message(method: str, params: Any = None, id: Any = None) -> bytes:
    body: dict[str, Any] = {"jsonrpc": "2.0", "method": method}
    if id is not None:
        body["id"] = id
    if params is not None:
        body["params"] = params
    return json.dumps(body).encode()


class Session:
    """One legacy session over HTTP. Requests are numbered from 1."""

    def __init__(self, http: Http, path: str, revision: str) -> None:
        self.http = http
        self.path = path
        self.revision = revision
        self.id = ""
        self.hello: dict[str, Any] = {}
        self.always: list[tuple[str, str]] = []
        self._count = 0

    @classmethod
    async def open(
        cls,
        url: str,
        path: str = "/mcp",
        revision: str = "2025-11-25",
        capabilities: Any = None,
        name: str = "tester",
        always: Headers = (),
    ) -> Self:
        """`always` are headers of every request."""
        self = cls(Http(url), path, revision)
        self.always = list(always)
        params = {"protocolVersion": revision, "capabilities": capabilities or {}}
        answer = await self.post(message("initialize", {**params, "clientInfo": {"name": name, "version": "1"}}, 0))
        assert answer.status == 200, answer
        self.hello = answer.messages()[0]["result"]
        self.id = answer.headers["mcp-session-id"]
        self.revision = self.hello["protocolVersion"]
        assert (await self.post(message("notifications/initialized"))).status == 202
        return self

    def headers(self, *more: tuple[str, str]) -> list[tuple[str, str]]:
        own = [("Mcp-Session-Id", self.id), ("MCP-Protocol-Version", self.revision)] if self.id else []
        return [*own, *self.always, *more]

    async def post(self, body: bytes, *headers: tuple[str, str]) -> Response:
        return await self.http.request("POST", self.path, body, self.headers(JSON, ACCEPT, *headers))

    def next_id(self) -> int:
        self._count += 1
        return self._count

    async def ask(self, method: str, params: Any = None) -> Any:
        """The answering message to one request, whatever preceded it."""
        id = self.next_id()
        answer = (await self.post(message(method, params, id))).messages()[-1]
        assert answer["id"] == id, answer
        return answer

    async def result(self, method: str, params: Any = None) -> Any:
        answer = await self.ask(method, params)
        assert "result" in answer, answer
        return answer["result"]

    async def error(self, method: str, params: Any = None) -> Any:
        answer = await self.ask(method, params)
        assert "error" in answer, answer
        return answer["error"]

    async def call(self, name: str, arguments: Any = None) -> str:
        """The text of a tool's result, which must not be an error."""
        result = await self.result("tools/call", {"name": name, "arguments": arguments or {}})
        assert not result.get("isError"), result
        return str(result["content"][0]["text"])

    async def failure(self, name: str, arguments: Any = None) -> str:
        """The text of a tool's result, which must be an error."""
        result = await self.result("tools/call", {"name": name, "arguments": arguments or {}})
        assert result.get("isError"), result
        return str(result["content"][0]["text"])

    async def tools(self) -> list[str]:
        return [tool["name"] for tool in (await self.result("tools/list"))["tools"]]

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Stream]:
        """The session's own stream for what the gateway sends unasked."""
        async with self.http.stream("GET", self.path, headers=self.headers(("Accept", "text/event-stream"))) as stream:
            assert stream.status == 200, stream.status
            yield stream

    @asynccontextmanager
    async def calling(
        self, name: str, arguments: Any = None, id: Any = None, token: Any = "t"
    ) -> AsyncIterator[Stream]:
        """A tool call whose answer is read event by event."""
        params = {"name": name, "arguments": arguments or {}, "_meta": {"progressToken": token}}
        body = message("tools/call", params, self.next_id() if id is None else id)
        async with self.http.stream("POST", self.path, body, self.headers(JSON, ACCEPT)) as stream:
            yield stream

    async def close(self) -> Response:
        return await self.http.request("DELETE", self.path, headers=self.headers())
