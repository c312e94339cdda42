"""The one request the benchmark makes, and the check that an answer is its answer.

Knows MCP's echo tool; no transport."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

Era = Literal["legacy", "modern"]
LEGACY: Final = "2025-11-25"
MODERN: Final = "2026-07-28"
_INFO: Final = {"name": "lockgate-benchmark", "version": "1"}
INITIALIZE: Final = msgspec.json.encode(
    {
        "jsonrpc": "2.0",
        "id": 0,
        "method": "initialize",
        "params": {
            "protocolVersion": LEGACY,
            "capabilities": {},
            "clientInfo": _INFO,
        },
    }
)
MODERN_META: Final = msgspec.json.encode(
    {
        f"io.modelcontextprotocol/{key}": value
        for key, value in {"protocolVersion": MODERN, "clientInfo": _INFO, "clientCapabilities": {}}.items()
    }
)
INITIALIZED: Final = b'{"jsonrpc":"2.0","method":"notifications/initialized"}'


class WrongAnswer(Exception):
    """A server or the gateway answered something else than the echo of this very call."""


class _Block(msgspec.Struct):
    text: str


class _Result(msgspec.Struct):
    content: list[_Block]
    isError: bool = False


class _Answer(msgspec.Struct):
    id: int
    result: _Result


_decode = msgspec.json.Decoder(_Answer).decode


def call(tool: bytes, id: int, era: Era = "legacy") -> bytes:
    """A tools/call whose argument no other call of its caller has."""
    meta = b',"_meta":' + MODERN_META if era == "modern" else b""
    return (
        b'{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":"%b","arguments":{"message":"call %d"}%b}}'
        % (id, tool, id, meta)
    )


def check(message: bytes, reply_prefix: str) -> int:
    """The id that the message answers.

    Raises:
        WrongAnswer: it is no echo of that call.
    """
    try:
        answer = _decode(message)
    except msgspec.DecodeError as exc:
        raise WrongAnswer(f"{exc}: {message[:300]!r}") from exc
    if answer.result.isError or answer.result.content[0].text != f"{reply_prefix}call {answer.id}":
        raise WrongAnswer(repr(message[:300]))
    return answer.id
