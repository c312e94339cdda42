"""Server-sent events (HTML Living Standard, section 9.2): reading a stream and writing one event.

Knows no JSON-RPC; an event's data is bytes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

MAX_EVENT_BYTES: Final = 32 * 1024 * 1024


class Event(NamedTuple):
    """One dispatched event; `id` and `retry_ms` are what this event itself carried."""

    data: bytes
    name: bytes
    id: bytes | None
    retry_ms: int | None


class EventTooLarge(Exception):
    """A peer sent an event over the limit."""


class EventReader:
    """Incremental parser; feed it bytes cut anywhere."""

    def __init__(self, limit: int = MAX_EVENT_BYTES) -> None:
        self._limit = limit
        self._buffer = b""
        self._data: list[bytes] = []
        self._size = 0
        self._name = b""
        self._id: bytes | None = None
        self._retry_ms: int | None = None

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """Yield finished events, also those with empty data if they carry an id.

        Raises:
            EventTooLarge: unfinished event or line over the limit.
        """
        buffer = self._buffer + chunk
        # A CR at the very end may be half of a CRLF: keep it for the next chunk.
        held = b"\r" if buffer.endswith(b"\r") else b""
        if held:
            buffer = buffer[:-1]
        if b"\r" in buffer:
            buffer = buffer.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = buffer.split(b"\n")
        self._buffer = rest + held
        if len(rest) + self._size > self._limit:
            raise EventTooLarge
        for line in lines:
            if line:
                self._line(line)
                if self._size > self._limit:
                    raise EventTooLarge
            elif self._data or self._id is not None:
                yield Event(b"\n".join(self._data), self._name, self._id, self._retry_ms)
                self._data, self._size, self._name, self._id, self._retry_ms = [], 0, b"", None, None

    def _line(self, line: bytes) -> None:
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        match field:
            case b"data":
                self._data.append(value)
                self._size += len(value)
            case b"event":
                self._name = value
            case b"id" if b"\0" not in value:
                self._id = value
            case b"retry" if value.isdigit():
                self._retry_ms = int(value)
            case _:
                pass


def event(data: bytes, id: bytes | None = None) -> bytes:
    """One `message` event; data must be free of line breaks."""
    if id is None:
        return b"event: message\ndata: %b\n\n" % data
    return b"event: message\nid: %b\ndata: %b\n\n" % (id, data)
