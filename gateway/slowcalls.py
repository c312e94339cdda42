"""The calls that become tasks of the gateway's own, for servers that make none: when, and how many.

Knows who waits for which call; what becomes of one is told in slowcall.py."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from gateway.audit import AuditUnwritable
from gateway.bridge import InputRequired
from gateway.slowcall import Notify, SlowCall
from gateway.tasks import Tasks
from gateway.upstream import Reply

if TYPE_CHECKING:
    from gateway.caller import Caller
    from gateway.door import Door
    from gateway.surface import Target

MAX_KEPT_BYTES: Final = 256 * 1024 * 1024
MAX_KEPT_BYTES_PER_PRINCIPAL: Final = 64 * 1024 * 1024
"""Results that wait to be fetched; a task whose result finds no room fails."""


class SlowCalls:
    """Makes tasks of calls. Owns the work that goes on without a client."""

    def __init__(self, door: Door, table: Tasks) -> None:
        self.table = table
        self._door = door
        self._at_work: set[asyncio.Task[Reply | InputRequired]] = set()
        self._kept: dict[SlowCall, int] = {}

    async def call(
        self, caller: Caller, target: Target, params: bytes, notify: Notify, after_s: float
    ) -> Reply | InputRequired:
        """What `Door.call` gives, or the task that will have it if that takes longer than `after_s`; for 0 always the
        task.

        Raises: what `Door.call` raises.
        """
        slow = SlowCall(caller, target, params, notify, self)
        work = asyncio.get_running_loop().create_task(slow.run(self._door), name=f"task {slow.id[:8]}")
        slow.work = work
        self._at_work.add(work)
        work.add_done_callback(self._done)
        try:
            if after_s > 0:
                await asyncio.wait({work}, timeout=after_s)
            if not work.done():
                async with slow.sending:
                    if not work.done() and self.table.enter(slow):
                        return self._handed_out(slow)
                await asyncio.wait({work})
        except BaseException:
            if not slow.handed_out:
                self._abandon(work)
            raise
        return work.result()

    def _abandon(self, work: asyncio.Task[Reply | InputRequired]) -> None:
        """The client is gone, perhaps in the very moment in which its call came to a question."""
        if not work.done():
            work.cancel()
        elif not work.cancelled() and work.exception() is None and isinstance(outcome := work.result(), InputRequired):
            self._door.give_up(outcome)

    def _handed_out(self, slow: SlowCall) -> Reply:
        reply = slow.hand_out()
        try:
            self._door.record_task(slow.caller, slow)
        except AuditUnwritable:
            self.table.leave(slow, "it could not be recorded")
            raise
        return reply

    def _done(self, work: asyncio.Task[Reply | InputRequired]) -> None:
        self._at_work.discard(work)
        if not work.cancelled():
            work.exception()  # whoever waited has seen it

    def has_room(self, slow: SlowCall, size: int) -> bool:
        """Count a result or an error that is kept from now on; False if it is too much."""
        own = sum(kept for task, kept in self._kept.items() if task.principal == slow.principal)
        if own + size > MAX_KEPT_BYTES_PER_PRINCIPAL or sum(self._kept.values()) + size > MAX_KEPT_BYTES:
            return False
        self._kept[slow] = size
        return True

    def released(self, slow: SlowCall) -> None:
        self._kept.pop(slow, None)

    async def aclose(self) -> None:
        """End what is still running; the table has been closed before."""
        work = list(self._at_work)
        for one in work:
            one.cancel()
        await asyncio.gather(*work, return_exceptions=True)
