"""What a gateway emitted, found in recorded traffic: each message with its revision, what it answers, and when.

Knows where MCP puts messages in HTTP and on lines; nothing of what makes a message valid.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from tests.conformance.relay import Exchange

KNOWN: Final = ("2025-06-18", "2025-11-25", "2026-07-28")
NEWEST_LEGACY: Final = "2025-11-25"


@dataclass(frozen=True)
class Emitted:
    """One message that the gateway wrote."""

    at: float
    toward: str
    """"client" or "server"."""
    revision: str
    answers: str | None
    """The method of the request that it answers, if it is an answer and that is known."""
    message: Any


def to_clients(exchanges: Iterable[Exchange], revision: str) -> Iterator[Emitted]:
    """What the gateway answered; `revision` is that of the clients, for exchanges that do not say."""
    asked: dict[tuple[str, Any], str] = {}
    for exchange in exchanges:
        body = _read(exchange.body)
        mine = {body["id"]: body["method"]} if _is_request(body) else {}
        spoken = exchange.asked.get("mcp-protocol-version", revision)
        answers = list(_messages(exchange))
        session = exchange.asked.get("mcp-session-id") or exchange.answered.get("mcp-session-id", "")
        asked |= {(session, id): method for id, method in mine.items()}
        for message in answers:
            id = _answered(message)
            method = mine.get(id) or asked.get((session, id))
            if method == "initialize":
                spoken = message.get("result", {}).get("protocolVersion", spoken)
            yield Emitted(exchange.at, "client", spoken if spoken in KNOWN else revision, method, message)


def to_http_servers(exchanges: Iterable[Exchange]) -> Iterator[Emitted]:
    """What the gateway asked a server behind a URL, and what it answered to the server's questions."""
    exchanges = list(exchanges)
    asked: dict[tuple[str, Any], str] = {}
    for exchange in exchanges:
        session = exchange.asked.get("mcp-session-id") or exchange.answered.get("mcp-session-id", "")
        asked |= {(session, m["id"]): m["method"] for m in _messages(exchange) if _is_request(m)}
    for exchange in exchanges:
        if not exchange.body:
            continue
        message = _read(exchange.body)
        spoken = exchange.asked.get("mcp-protocol-version")
        if spoken not in KNOWN:  # only a handshake has none
            spoken = NEWEST_LEGACY
        session = exchange.asked.get("mcp-session-id", "")
        method = (
            None if _is_request(message) or not isinstance(message, dict) else asked.get((session, message.get("id")))
        )
        yield Emitted(exchange.at, "server", spoken, method, message)


def to_stdio_server(record: Path, revision: str) -> Iterator[Emitted]:
    """The same for one process that kept a record of its lines."""
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    written = [_read(line["line"].encode()) for line in lines if line["way"] == "out"]
    asked = {message["id"]: message["method"] for message in written if _is_request(message)}
    for line in lines:
        if line["way"] == "in":
            message = _read(line["line"].encode())
            yield Emitted(line["at"], "server", revision, asked.get(_answered(message)), message)


def write(path: Path, messages: Iterable[Emitted]) -> None:
    path.write_text("".join(json.dumps(asdict(message)) + "\n" for message in messages))


def read(path: Path) -> list[Emitted]:
    return [Emitted(**json.loads(line)) for line in path.read_text().splitlines()]


def _messages(exchange: Exchange) -> Iterator[Any]:
    """The messages in an answer. A stream that was cut off ends in the middle of one; that part is none."""
    kind = exchange.answered.get("content-type", "").partition(";")[0].strip()
    if kind == "application/json" and exchange.answer:
        yield _read(exchange.answer)
    elif kind == "text/event-stream":
        whole = exchange.answer.replace(b"\r\n", b"\n").rpartition(b"\n\n")[0]
        for event in whole.split(b"\n\n"):
            data = [line.partition(b":")[2].removeprefix(b" ") for line in event.split(b"\n") if line[:5] == b"data:"]
            if any(data):
                yield _read(b"\n".join(data))


def _is_request(message: Any) -> bool:
    return isinstance(message, Mapping) and "method" in message and isinstance(message.get("id"), str | int | float)


def _answered(message: Any) -> Any:
    """The id of the request that a message answers."""
    return message.get("id") if isinstance(message, Mapping) and "method" not in message else None


def _read(data: bytes) -> Any:
    """Not JSON is a message too, and an invalid one."""
    try:
        return json.loads(data)
    except ValueError:
        return data.decode(errors="replace")
