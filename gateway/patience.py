"""How long a connection may keep us waiting: for its request's head, for its body, for it to read what we wrote.

Knows connections only; uvicorn itself limits nothing but the pause between two requests."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Final

from gateway.onewrite import OneWriteProtocol

HEAD_S: Final = 10.0
"""From the first byte of a request, or from the opening of the connection, to the end of the head."""
BODY_IDLE_S: Final = 15.0
"""Between two pieces of a body."""
BODY_S: Final = 120.0
"""For a whole body, however steadily it drips."""
WRITE_STALL_S: Final = 30.0
"""Without a byte being taken of what waits to be read."""
SWEEP_S: Final = 1.0
MAX_CONNECTIONS: Final = 4096

_TIMEOUT: Final = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class PatientProtocol(OneWriteProtocol):
    """uvicorn's HTTP/1.1 protocol, which notes when it heard something; `sweep` draws the consequences.

    A timer for each request would cost more than all of this.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._heard_at = self._head_since = self.loop.time()
        """`_head_since` is 0 while no head is awaited."""
        self._body_since = 0.0
        self._unsent = 0
        self._taken_at = 0.0

    def data_received(self, data: bytes) -> None:
        self._heard_at = self.loop.time()
        if not self._head_since and (self.cycle is None or self.cycle.response_complete):
            self._head_since = self._heard_at
        super().data_received(data)

    def on_headers_complete(self) -> None:
        if self.url[:1] != b"/":
            # An absolute target names a host of its own, which nobody here would look at.
            raise ValueError("the target of a request is a path")
        self._head_since, self._body_since = 0.0, self._heard_at
        super().on_headers_complete()

    def look(self, now: float) -> None:
        """Close the connection if it has kept us waiting for too long."""
        unsent = self.transport.get_write_buffer_size()
        if not unsent or unsent < self._unsent or not self._unsent:
            self._taken_at = now
        self._unsent = unsent
        if unsent and now - self._taken_at > WRITE_STALL_S:
            self.transport.abort()  # also if it is closing: it would wait for its last bytes to be taken
        elif not self.transport.is_closing() and self._is_slow(now):
            if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
                self.transport.write(_TIMEOUT)
            self.transport.close()

    def _is_slow(self, now: float) -> bool:
        if self._head_since:
            return now - self._head_since > HEAD_S
        if self.cycle is None or self.cycle.response_complete or not self.cycle.more_body or self.flow.read_paused:
            return False
        return now - self._heard_at > BODY_IDLE_S or now - self._body_since > BODY_S


async def sweep(connections: Iterable[Any]) -> None:
    """Look at every connection from time to time, until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(SWEEP_S)
        for connection in list(connections):
            if isinstance(connection, PatientProtocol):
                connection.look(loop.time())
