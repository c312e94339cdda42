"""Tasks: calls that go on after their first answer (extension io.modelcontextprotocol/tasks), by id and by holder.

Knows who holds which task and for how long; not how one is worked on (slowcall.py) or relayed (relayed.py)."""

from __future__ import annotations

import asyncio
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Literal

from msgspec import Raw

from gateway import errors
from gateway.wire import envelope
from gateway.wire.envelope import Fields, WireError

if TYPE_CHECKING:
    from gateway.caller import Caller
    from gateway.surface import Target

EXTENSION: Final = "io.modelcontextprotocol/tasks"
GET: Final = "tasks/get"
UPDATE: Final = "tasks/update"
CANCEL: Final = "tasks/cancel"
METHODS: Final = (GET, UPDATE, CANCEL)
CHANGED: Final = "notifications/tasks"
TERMINAL: Final = ("completed", "failed", "cancelled")
NOT_FOUND: Final = "Task not found: it never was, is over for longer than its ttlMs, or ended with the gateway"

MAX_OPEN: Final = 512
MAX_OPEN_PER_PRINCIPAL: Final = 64
MAX_KEPT: Final = 4096
MAX_KEPT_PER_PRINCIPAL: Final = 512
"""Tasks that are over but whose result can still be fetched count here, with those that are open."""

Status = Literal["working", "input_required", "completed", "failed", "cancelled"]
Hear = Callable[[bytes], None]
"""Takes a task's state as `tasks/get` would give it."""


def declared(capabilities: Fields) -> bool:
    """Whether a client with these capabilities takes a task for a result."""
    raw = capabilities.get("extensions", envelope.ABSENT)
    return bytes(raw)[:1] == b"{" and EXTENSION in envelope.fields(raw)


def with_extension(capabilities: Fields) -> Fields:
    """The capabilities of a client for which the gateway itself follows tasks."""
    raw = capabilities.get("extensions", envelope.ABSENT)
    extensions = envelope.fields(raw) if bytes(raw)[:1] == b"{" else {}
    return {**capabilities, "extensions": envelope.raw({**extensions, EXTENSION: {}})}


MISSING: Final[dict[str, object]] = {"requiredCapabilities": {"extensions": {EXTENSION: {}}}}
"""The data of the error for a client that did not declare the extension."""


def is_task(result: bytes) -> bool:
    """Whether a result of `tools/call` is a task in place of the result."""
    if b'"task"' not in result or result[:1] != b"{":
        return False
    return bytes(envelope.fields(result).get("resultType", b"")) == b'"task"'


def answers_in(members: Fields) -> Fields:
    """The `inputResponses` of a `tasks/update`.

    Raises:
        WireError: they are no object of objects.
    """
    answers = envelope.fields(members.get("inputResponses", Raw(b"{}")))
    for key, raw in answers.items():
        if bytes(raw)[:1] != b"{":
            raise WireError(envelope.INVALID_PARAMS, f"inputResponses.{key[:64]} must be an object")
    return answers


def timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Task(ABC):
    """One task of one principal in one profile. `id` is what its holder knows it by."""

    def __init__(self, caller: Caller, target: Target) -> None:
        self.id = secrets.token_urlsafe(24)
        self.principal = caller.principal
        self.profile = caller.profile.name
        self.target = target
        self.open = True
        """Not over yet, as far as the gateway knows."""

    @property
    @abstractmethod
    def expires_at(self) -> float:
        """Event-loop time from which it may be forgotten."""

    @abstractmethod
    def over(self) -> bool:
        """Its time has come: whether to forget it now. If not, `expires_at` lies in the future again."""

    @abstractmethod
    def forget(self, reason: str) -> None:
        """It leaves the table: what it holds is let go, what is running ends."""


class Tasks:
    """Every task that clients hold. Each enters once and leaves by its time or with the gateway."""

    def __init__(self) -> None:
        self._tasks: dict[str, Task] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def enter(self, task: Task) -> bool:
        """Keep a task from now on; False if there are too many, of this principal or in all."""
        own = [other for other in self._tasks.values() if other.principal == task.principal]
        if len(own) >= MAX_KEPT_PER_PRINCIPAL or len(self._tasks) >= MAX_KEPT:
            return False
        if sum(other.open for other in own) >= MAX_OPEN_PER_PRINCIPAL:
            return False
        if sum(other.open for other in self._tasks.values()) >= MAX_OPEN:
            return False
        self._tasks[task.id] = task
        self.reschedule(task)
        return True

    def find(self, caller: Caller, id: str) -> Task:
        """The task of this very principal and profile.

        Raises:
            UnknownName: there is none; another's looks the same.
        """
        task = self._tasks.get(id)
        if task is None or task.principal != caller.principal or task.profile != caller.profile.name:
            raise errors.UnknownName(NOT_FOUND)
        return task

    def reschedule(self, task: Task) -> None:
        """The task's time has changed."""
        if (timer := self._timers.pop(task.id, None)) is not None:
            timer.cancel()
        if task.id in self._tasks:
            self._timers[task.id] = asyncio.get_running_loop().call_at(task.expires_at, self._expire, task)

    def _expire(self, task: Task) -> None:
        if task.over():
            self.leave(task, "its time is over")
        else:
            self.reschedule(task)

    def leave(self, task: Task, reason: str) -> None:
        if self._tasks.pop(task.id, None) is not None:
            if (timer := self._timers.pop(task.id, None)) is not None:
                timer.cancel()
            task.forget(reason)

    def close(self) -> None:
        """The gateway ends, and every task with it."""
        for task in list(self._tasks.values()):
            self.leave(task, "the gateway stopped")
