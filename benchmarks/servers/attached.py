"""The least HTTP there can be in front of a container's attach stream: what the hop costs without a gateway in it.

Knows ids and lines; no session, no policy, no audit. Runs under uvicorn, uvloop and httptools, like lean.py."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import msgspec
import uvicorn
import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from benchmarks.line_callers import AttachedCallers
from benchmarks.servers.lean import JSON, KEEP_ALIVE_S, body_of


class Request(msgspec.Struct):
    """What is read of a client's message."""

    method: str
    id: msgspec.Raw = msgspec.Raw(b"")
    params: msgspec.Raw = msgspec.Raw(b"{}")


class Response(msgspec.Struct):
    """What is read of the server's."""

    id: int
    result: msgspec.Raw


_request = msgspec.json.Decoder(Request).decode
_response = msgspec.json.Decoder(Response).decode
_INITIALIZED = b'{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},"serverInfo":{"name":"a","version":"1"}}'


class Relay(AttachedCallers):
    """Matches answers with requests by ids of its own."""

    def __init__(self, socket: str, container: str) -> None:
        super().__init__(socket, container, "", "", 0)
        self._waiting: dict[int, asyncio.Future[bytes]] = {}

    async def ask(self, method: str, params: bytes) -> bytes:
        self._id += 1
        waiter = self._waiting[self._id] = asyncio.get_running_loop().create_future()
        self._write(b'{"jsonrpc":"2.0","id":%d,"method":"%b","params":%b}' % (self._id, method.encode(), params))
        return await waiter

    def feed(self, data: bytes) -> None:
        if not self._initialized.done():
            super().feed(data)
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if b'"result":' in line:
                answer = _response(line)
                self._waiting.pop(answer.id).set_result(bytes(answer.result))


def app_of(relay: Relay) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        status, body = 200, b""
        if scope["method"] == "POST":
            request = _request(await body_of(receive))
            id = bytes(request.id)
            if not id:
                status = 202
            elif request.method == "initialize":
                body = b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (id, _INITIALIZED)
            else:
                result = await relay.ask(request.method, bytes(request.params))
                body = b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (id, result)
        headers = [JSON, (b"content-length", b"%d" % len(body)), (b"mcp-session-id", b"attached")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app


async def main(port: int, socket: str, container: str) -> None:
    relay = Relay(socket, container)
    await relay.open()
    config = uvicorn.Config(
        app_of(relay),
        host="127.0.0.1",
        port=port,
        http="httptools",
        lifespan="off",
        log_level="warning",
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE_S,
    )
    await uvicorn.Server(config).serve()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(int(sys.argv[1]), *sys.argv[2:4]))
