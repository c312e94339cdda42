"""Work that runs beside its owner, begun from anywhere: also from a transport's callback, where no task runs.

Knows nothing of the work; the task group it is given owns it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from anyio.abc import TaskGroup


class Background:
    """A task group, for callbacks too. anyio asks which library runs, and beside sniffio only a task can tell."""

    def __init__(self, group: TaskGroup) -> None:
        self._group = group
        self._starters: set[asyncio.Task[None]] = set()

    def start_soon(self, work: Callable[..., Coroutine[Any, Any, Any]], *args: object, name: object = None) -> None:
        """Begin `work(*args)`. From a callback it begins one turn of the event loop later, or never if the owner ends
        meanwhile."""
        if asyncio.current_task() is not None:
            self._group.start_soon(work, *args, name=name)
            return
        starter = asyncio.get_running_loop().create_task(self._start(work, args, name))
        self._starters.add(starter)
        starter.add_done_callback(self._starters.discard)

    async def _start(
        self, work: Callable[..., Coroutine[Any, Any, Any]], args: tuple[object, ...], name: object
    ) -> None:
        with suppress(RuntimeError):  # the group has ended
            self._group.start_soon(work, *args, name=name)
