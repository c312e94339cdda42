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
    """Incremental parser; feed it bytes cut anywhere. Its work is linear in the bytes, whatever the cuts."""

    def __init__(self, limit: int = MAX_EVENT_BYTES) -> None:
        self._limit = limit
        self._tail: list[bytes] = []
        """The unfinished line."""
        self._tail_bytes = 0
        self._after_cr = False
        self._at_start = True
        self._data: list[bytes] = []
        self._size = 0
        self._name = b""
        self._id: bytes | None = None
        self._retry_ms: int | None = None

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """Yield finished events, also those with empty data if they carry an id or a reconnection time.

        Raises:
            EventTooLarge: unfinished event or line over the limit.
        """
        if self._after_cr and chunk[:1] == b"\n":
            chunk = chunk[1:]  # the other half of a CRLF
            self._after_cr = False
        if not chunk:
            return
        self._after_cr = chunk.endswith(b"\r")
        if b"\r" in chunk:
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        head, *lines = chunk.split(b"\n")
        self._tail.append(head)
        self._tail_bytes += len(head)
        if lines:
            lines.insert(0, b"".join(self._tail))
            rest = lines.pop()
            self._tail, self._tail_bytes = [rest], len(rest)
        for line in lines:
            if self._size + len(line) > self._limit:
                raise EventTooLarge
            if line:
                self._line(line)
                continue
            if self._data or self._id is not None or self._retry_ms is not None:
                yield Event(b"\n".join(self._data), self._name, self._id, self._retry_ms)
            self._data, self._size, self._name, self._id, self._retry_ms = [], 0, b"", None, None
        if self._size + self._tail_bytes > self._limit:
            raise EventTooLarge

    def _line(self, line: bytes) -> None:
        if self._at_start:
            self._at_start = False
            line = line.removeprefix(b"\xef\xbb\xbf")
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        match field:
            case b"data":
                self._data.append(value)
                self._size += len(value) + 1
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
