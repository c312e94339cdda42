"""The requests the benchmark makes, and the check that an answer is the answer to its request.

Knows two tools, echo and get_current_time; no transport."""

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
TIME_TOOL: Final = "get_current_time"
TIME_ANSWER: Final = '{\n  "timezone": "Asia/Tokyo",'
"""How the time server's answer begins; the rest is the time."""
HELLO: Final = "hello"
"""What the smallest server answers, always."""
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
_decode_result = msgspec.json.Decoder(_Result).decode


def call(tool: bytes, id: int, era: Era = "legacy") -> bytes:
    """A tools/call; an echo's argument no other call of its caller has."""
    return b'{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":%b}' % (id, params(tool, id, era))


def params(tool: bytes, id: int, era: Era = "legacy") -> bytes:
    """What `call` asks."""
    meta = b',"_meta":' + MODERN_META if era == "modern" else b""
    arguments = b'"timezone":"Asia/Tokyo"' if tool.endswith(TIME_TOOL.encode()) else b'"message":"call %d"' % id
    return b'{"name":"%b","arguments":{%b}%b}' % (tool, arguments, meta)


def check(message: bytes, reply_prefix: str) -> int:
    """The id that the message answers. `reply_prefix` comes before an echoed text, or is `TIME_ANSWER` or `HELLO`.

    Raises:
        WrongAnswer: it is no answer to that call.
    """
    try:
        answer = _decode(message)
    except msgspec.DecodeError as exc:
        raise WrongAnswer(f"{exc}: {message[:300]!r}") from exc
    _check(answer.result, answer.id, reply_prefix)
    return answer.id


def check_result(result: bytes, id: int, reply_prefix: str) -> None:
    """The same for a result without its envelope.

    Raises:
        WrongAnswer: it is no answer to that call.
    """
    try:
        _check(_decode_result(result), id, reply_prefix)
    except msgspec.DecodeError as exc:
        raise WrongAnswer(f"{exc}: {result[:300]!r}") from exc


def _check(result: _Result, id: int, reply_prefix: str) -> None:
    text = result.content[0].text
    is_fixed = reply_prefix in (TIME_ANSWER, HELLO)
    right = text.startswith(reply_prefix) if is_fixed else text == f"{reply_prefix}call {id}"
    if result.isError or not right:
        raise WrongAnswer(f"{text[:300]!r} to call {id}")
