"""How many containers and processes may run at once: a place for each, a short queue when all are taken.

Knows places and who waits; what to stop to make room is decided elsewhere."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from gateway import errors

QUEUE_S: Final = 5.0
"""How long a start waits for a place. An idle server is gone within this time, unless it will not exit by itself."""
LOOK_AGAIN_S: Final = 0.2
MAX_WAITING: Final = 256


class Places:
    """A fixed number of places, given in the order they were asked for. Decisions are synchronous."""

    def __init__(self, total: int, queue_s: float, make_room: Callable[[str], None]) -> None:
        """`make_room` is asked, with the id of the server that waits, to stop something that is idle."""
        self._total = total
        self._queue_s = queue_s
        self._make_room = make_room
        self._taken = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def is_full(self) -> bool:
        return self._taken >= self._total

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @asynccontextmanager
    async def place(self, server: str) -> AsyncIterator[None]:
        """Hold a place for the body.

        Raises:
            AtCapacity: none became free in time, or too many wait already.
        """
        await self._take(server)
        try:
            yield
        finally:
            self._give()

    async def _take(self, server: str) -> None:
        if self._taken < self._total:
            self._taken += 1
            return
        reason = (
            f"server {server} cannot start: {self._total} servers run, as many as may at once (LOCKGATE_MAX_SERVERS)"
        )
        if len(self._waiting) >= MAX_WAITING:
            raise errors.AtCapacity(f"{reason}, and {MAX_WAITING} more wait; try again later")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(self._queue_s):
                while not turn.done():
                    self._make_room(server)  # again: what was in use may be idle by now
                    await asyncio.wait([turn], timeout=LOOK_AGAIN_S)
        except BaseException as exc:
            if turn.done() and not turn.cancelled():
                self._give()  # its turn came in the same moment: it goes to the next one
            else:
                self._waiting.remove(turn)
            if isinstance(exc, TimeoutError):
                text = f"{reason}, and none became free within {self._queue_s:g} s; try again later"
                raise errors.AtCapacity(text) from exc
            raise

    def _give(self) -> None:
        if self._waiting:
            self._waiting.popleft().set_result(None)  # the place changes hands
        else:
            self._taken -= 1
