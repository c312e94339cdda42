"""Status events of tasks for one listening client.

Knows how to learn of a change; what a task looks like to its holder comes from the door."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from msgspec import Raw

from gateway import errors, tasks
from gateway.audit import AuditUnwritable
from gateway.slowcall import SlowCall
from gateway.upstream import Notice, Reply
from gateway.wire import envelope
from gateway.wire.envelope import WireError

if TYPE_CHECKING:
    from gateway.caller import Caller
    from gateway.door import Door

_log: Final = logging.getLogger(__name__)

MIN_POLL_S: Final = 1.0
"""Between two questions after a server's task, whatever the server allows: each is a call with its own audit line."""


class TaskWatch:
    """The tasks that one listener wants to hear of. Tasks of the gateway's own tell; for a server's the listener asks
    as its client would, since servers need not tell."""

    def __init__(self, door: Door, listener: Caller) -> None:
        self._door = door
        self._listener = listener
        self._told: list[SlowCall] = []
        self._asking: list[asyncio.Task[None]] = []

    def add(self, id: str) -> bool:
        """Hear of this task from now on, its present state first; False if the listener has no such task."""
        try:
            how = self._door.poll_of(self._listener, id)
        except errors.UnknownName:
            return False
        if isinstance(how, SlowCall):
            how.listen(self._hear)
            self._told.append(how)
            self._hear(how.described())
        else:
            self._asking.append(asyncio.get_running_loop().create_task(self._ask(id)))
        return True

    def _hear(self, state: bytes) -> None:
        members = envelope.fields(state)
        members.pop("resultType", None)
        members.pop("_meta", None)
        self._listener.deliver(tasks.CHANGED, envelope.encode(members))

    async def _ask(self, id: str) -> None:
        """Ask for a task again and again until it is over or gone; each answer that differs is an event."""
        params, last = envelope.encode({"taskId": id}), b""
        try:
            while True:
                reply = await self._door.call(self._listener, tasks.GET, params, _ignore)
                if not isinstance(reply, Reply) or reply.result is None:
                    return
                if reply.result != last:
                    last = reply.result
                    self._hear(last)
                if bytes(envelope.fields(last).get("status", Raw(b'""'))).strip(b'"').decode() in tasks.TERMINAL:
                    return
                how = self._door.poll_of(self._listener, id)
                await asyncio.sleep(max(how, MIN_POLL_S) if isinstance(how, float) else MIN_POLL_S)
        except (errors.GatewayError, WireError, AuditUnwritable) as exc:
            _log.info("no longer watching a task: %s", exc)

    async def aclose(self) -> None:
        for slow in self._told:
            slow.unlisten(self._hear)
        for one in self._asking:
            one.cancel()
        await asyncio.gather(*self._asking, return_exceptions=True)


async def _ignore(notice: Notice) -> None:
    """tasks/get makes no progress."""
