"""The one request the benchmark makes, and the check that an answer is its answer.

Knows MCP's echo tool; no transport."""

from __future__ import annotations

from typing import Final

import msgspec

REVISION: Final = "2025-11-25"
INITIALIZE: Final = msgspec.json.encode(
    {
        "jsonrpc": "2.0",
        "id": 0,
        "method": "initialize",
        "params": {
            "protocolVersion": REVISION,
            "capabilities": {},
            "clientInfo": {"name": "lockgate-benchmark", "version": "1"},
        },
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


def call(tool: bytes, id: int) -> bytes:
    """A tools/call whose argument no other call has."""
    return (
        b'{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":"%b","arguments":{"message":"call %d"}}}'
        % (id, tool, id)
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
