"""The cheapest MCP server that still is one: raw ASGI and msgspec under uvicorn, so that a relay has nowhere to hide.

Knows just enough of the protocol for one session after the other; answers in JSON and offers no event stream."""

from __future__ import annotations

import sys
from typing import Any

import msgspec
import uvicorn

KEEP_ALIVE_S = 600
TOOL = {"name": "echo", "inputSchema": {"type": "object", "properties": {"message": {"type": "string"}}}}
JSON = (b"content-type", b"application/json")


class Params(msgspec.Struct):
    """The parameters that are read; whatever else comes is skipped."""

    arguments: dict[str, str] = {}
    protocolVersion: str = ""


class Message(msgspec.Struct):
    """Any message from a client."""

    method: str
    id: msgspec.Raw = msgspec.Raw(b"")
    params: Params = msgspec.field(default_factory=Params)


_decoder = msgspec.json.Decoder(Message)
_encode = msgspec.json.Encoder().encode


def answer(message: Message) -> bytes:
    """The answer to one request, without its id."""
    match message.method:
        case "tools/call":
            return b'"result":' + _encode({"content": [{"type": "text", "text": message.params.arguments["message"]}]})
        case "tools/list":
            return b'"result":' + _encode({"tools": [TOOL]})
        case "initialize":
            version = message.params.protocolVersion
            info = {"name": "lean", "version": "1"}
            return b'"result":' + _encode(
                {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": info}
            )
        case _:
            return b'"error":{"code":-32601,"message":"Method not found"}'


async def body_of(receive: Any) -> bytes:
    """The whole body of a request."""
    parts, more = [], True
    while more:
        event = await receive()
        parts.append(event["body"])
        more = event["more_body"]
    return b"".join(parts)


async def app(scope: Any, receive: Any, send: Any) -> None:
    """The ASGI application."""
    status, body = 405, b""
    if scope["method"] == "POST":
        message = _decoder.decode(await body_of(receive))
        status = 202
        if bytes(message.id):
            status, body = 200, b'{"jsonrpc":"2.0","id":%b,%b}' % (bytes(message.id), answer(message))
    elif scope["method"] == "DELETE":
        status = 200
    headers = [JSON, (b"content-length", b"%d" % len(body)), (b"mcp-session-id", b"lean")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


if __name__ == "__main__":
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        http="httptools",
        loop="uvloop",
        lifespan="off",
        log_level="warning",
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE_S,
    )
