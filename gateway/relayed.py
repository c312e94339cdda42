"""Tasks that servers made: handed on under ids of the gateway's own, or followed for clients that take none.

Knows the extension as its client; names, policy and audit are the door's."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from msgspec import Raw

from gateway import errors, surface, tasks
from gateway.bridge import Followed, InputRequired, Ticket
from gateway.tasks import Task, Tasks
from gateway.upstream import PROGRESS, CallerFacts, Notice, Reply, Upstream
from gateway.wire import envelope
from gateway.wire.envelope import Fields, WireError

if TYPE_CHECKING:
    from gateway.caller import Caller
    from gateway.surface import Surface, Target

_log: Final = logging.getLogger(__name__)

MAX_TTL_S: Final = 86_400.0
"""What a server may promise for longer, or for ever, is kept this long."""
MIN_POLL_S: Final = 0.25
MAX_POLL_S: Final = 5.0
POLL_S: Final = 1.0
"""Where the server names no interval."""
FOLLOW_FACTOR: Final = 10
"""A followed task may take this many times the server's time limit for a call."""
CANCEL_TIMEOUT_S: Final = 10.0

Notify = Callable[[Notice], Awaitable[None]]


class RelayedTask(Task):
    """A task of a server's, in the hands of a client. Keeps the server running while it is open."""

    def __init__(self, caller: Caller, target: Target, upstream: Upstream, id: str, ttl_s: float) -> None:
        super().__init__(caller, target)
        self.upstream_id = id
        self.poll_s = POLL_S
        self._pinned: Upstream | None = None
        self._born = asyncio.get_running_loop().time()
        self._ttl_s = ttl_s
        self.pin(upstream)

    def pin(self, upstream: Upstream) -> None:
        """Its server must not be stopped for idleness while it is open; after a restart the new connection counts."""
        if self.open and self._pinned is not upstream:
            self._unpin()
            self._pinned = upstream
            upstream.pins += 1

    def _unpin(self) -> None:
        if self._pinned is not None:
            self._pinned.pins -= 1
            self._pinned = None

    def seen(self, members: Fields) -> None:
        """Learn from the task's state as the server gave it."""
        self._ttl_s = _ttl_s(members, asyncio.get_running_loop().time() - self._born)
        self.poll_s = poll_s(members)
        if _status(members) in tasks.TERMINAL:
            self.open = False
            self._unpin()

    def wrap(self, members: Fields) -> None:
        """Put our id and time into the task's state."""
        members["taskId"] = envelope.raw(self.id)
        members["ttlMs"] = envelope.raw(int(self._ttl_s * 1000))

    @property
    def expires_at(self) -> float:
        return self._born + self._ttl_s

    def over(self) -> bool:
        return True

    def forget(self, reason: str) -> None:
        self.open = False
        self._unpin()


def adopt(table: Tasks, caller: Caller, target: Target, upstream: Upstream, result: bytes) -> tuple[Task, Reply] | None:
    """Take a server's new task into the table; None if it is full.

    Raises:
        UpstreamInvalid: it is no task.
    """
    members = envelope.fields(result)
    task = RelayedTask(caller, target, upstream, task_id(target.server, members), _ttl_s(members, 0.0))
    if not table.enter(task):
        task.forget("there are too many")
        return None
    task.seen(members)
    task.wrap(members)
    return task, Reply(envelope.encode(members), None)


async def ask(upstream: Upstream, task: RelayedTask, method: str, members: Fields, facts: CallerFacts) -> Reply:
    """One of the extension's methods, as the client sent it, with the server's own id for the task."""
    members["taskId"] = envelope.raw(task.upstream_id)
    return await _reply(upstream, method, members, facts)


def answered(view: Surface, table: Tasks, task: RelayedTask, method: str, reply: Reply) -> Reply:
    """The server's answer as the client must see it.

    Raises:
        UnknownName: the server knows the task no more.
        UpstreamInvalid: it answered something else.
    """
    server = task.target.server
    if reply.result is None:
        if _code(reply.error) == envelope.INVALID_PARAMS and method == tasks.GET:
            table.leave(task, "the server knows it no more")
            raise errors.UnknownName(tasks.NOT_FOUND)
        return reply
    if method != tasks.GET:
        return reply
    members = _state(server, reply.result)
    if "result" in members:
        members["result"] = Raw(surface.rewrite_uris(view, server, "tools/call", bytes(members["result"])))
    task.seen(members)
    table.reschedule(task)
    task.wrap(members)
    return Reply(envelope.encode(members), None)


class Follower:
    """Waits for tasks in place of clients that take none. Owns the requests that withdraw them."""

    def __init__(self, told: Callable[[Caller, str], Fields]) -> None:
        """`told` are the capabilities of a caller that a server may know of."""
        self._told = told
        self._withdrawals: set[asyncio.Task[None]] = set()

    async def follow(
        self, upstream: Upstream, followed: Followed, caller: Caller, token: Raw | None, notify: Notify, ticket: Ticket
    ) -> Reply | InputRequired:
        """The result of a task, or the questions it waits for. Cancelling withdraws it.

        Raises:
            UpstreamError: the server lost the task or does not end it in time.
        """
        told, steps = "", 0
        limit_s = upstream.call_timeout_s * FOLLOW_FACTOR
        upstream.pins += 1
        try:
            async with asyncio.timeout(limit_s):
                while True:
                    state = await self._state(upstream, followed.task, self._facts(caller, upstream))
                    outcome = _outcome(state, followed, ticket)
                    if outcome is not None:
                        return outcome
                    text = _status_message(state)
                    if token is not None and text != told:
                        told, steps = text, steps + 1
                        progress = {"progressToken": token, "progress": steps, "message": text}
                        await notify(Notice(PROGRESS, envelope.encode(progress)))
                    await asyncio.sleep(poll_s(state))
        except TimeoutError as exc:
            self.withdraw(upstream, followed.task)
            raise errors.UpstreamTimeout(f"the server did not end its task within {limit_s:g} s") from exc
        except asyncio.CancelledError:
            self.withdraw(upstream, followed.task)
            raise
        finally:
            upstream.pins -= 1

    async def resume(
        self,
        upstream: Upstream,
        followed: Followed,
        answers: Fields,
        caller: Caller,
        members: Fields,
        notify: Notify,
        ticket: Ticket,
    ) -> Reply | InputRequired:
        """Pass on the answers to a task's questions, and follow it further.

        Raises:
            UpstreamError: the server does not take them, or as for `follow`.
        """
        update: Fields = {"taskId": envelope.raw(followed.task), "inputResponses": envelope.raw(answers)}
        reply = await _reply(upstream, tasks.UPDATE, update, self._facts(caller, upstream))
        if reply.result is None:
            raise errors.UpstreamRefused(f"server {upstream.server} refused the answers", _code(reply.error))
        token = envelope.fields(members.get("_meta", envelope.ABSENT)).get("progressToken")
        return await self.follow(upstream, followed, caller, token, notify, ticket)

    def _facts(self, caller: Caller, upstream: Upstream) -> CallerFacts:
        """What a server is told of a client whose tasks the gateway follows."""
        return CallerFacts(envelope.raw(tasks.with_extension(self._told(caller, upstream.server))), caller.log_level)

    @staticmethod
    async def _state(upstream: Upstream, id: str, facts: CallerFacts) -> Fields:
        reply = await _reply(upstream, tasks.GET, {"taskId": envelope.raw(id)}, facts)
        if reply.result is None:
            raise errors.UpstreamRefused(f"server {upstream.server} lost its task", _code(reply.error))
        return _state(upstream.server, reply.result)

    def withdraw(self, upstream: Upstream, id: str) -> None:
        """Tell the server that nobody waits for a task any more; nobody waits for its answer either."""
        work = asyncio.get_running_loop().create_task(_withdraw(upstream, id))
        self._withdrawals.add(work)
        work.add_done_callback(self._withdrawals.discard)

    async def aclose(self) -> None:
        work = list(self._withdrawals)
        for one in work:
            one.cancel()
        await asyncio.gather(*work, return_exceptions=True)


async def _withdraw(upstream: Upstream, id: str) -> None:
    facts = CallerFacts(envelope.raw(tasks.with_extension({})))
    try:
        async with asyncio.timeout(CANCEL_TIMEOUT_S):
            await _reply(upstream, tasks.CANCEL, {"taskId": envelope.raw(id)}, facts)
    except (errors.UpstreamError, TimeoutError) as exc:
        upstream.log.write("gateway", f"a task could not be cancelled: {exc}")


async def _reply(upstream: Upstream, method: str, members: Fields, facts: CallerFacts) -> Reply:
    call = await upstream.start(method, members, caller=lambda: facts)
    try:
        while not isinstance(item := await call.next(), Reply):
            pass
    finally:
        upstream.cancel(call, "the caller withdrew the request")
    return item


def _state(server: str, result: bytes) -> Fields:
    """A task's state as the server gives it.

    Raises:
        UpstreamInvalid: it is none.
    """
    try:
        members = envelope.fields(result)
        envelope.fields(members.get("inputRequests", envelope.ABSENT))
    except WireError as exc:
        raise errors.UpstreamInvalid(f"server {server} gave no valid state of its task") from exc
    return members


def _outcome(state: Fields, followed: Followed, ticket: Ticket) -> Reply | InputRequired | None:
    """What a followed task has come to; None while there is nothing to do but wait."""
    match _status(state):
        case "completed":
            return Reply(bytes(state.get("result", Raw(b"{}"))), None)
        case "failed":
            error = {"code": envelope.INTERNAL_ERROR, "message": "the server's task failed"}
            return Reply(None, bytes(state.get("error", envelope.raw(error))))
        case "cancelled":
            raise errors.UpstreamInvalid("the server cancelled its task")
        case "input_required":
            asked = envelope.fields(state.get("inputRequests", Raw(b"{}")))
            open_questions = {key: raw for key, raw in asked.items() if key not in followed.answered}
            if open_questions:
                answered_then = (*followed.answered, *open_questions)
                return InputRequired(open_questions, Followed(followed.task, answered_then), ticket)
    return None


def task_id(server: str, members: Fields) -> str:
    try:
        id = envelope.text(members.get("taskId", envelope.ABSENT), "taskId")
    except WireError as exc:
        raise errors.UpstreamInvalid(f"server {server} made a task without an id") from exc
    return id


def _status(members: Fields) -> str:
    raw = bytes(members.get("status", b""))
    return raw.strip(b'"').decode("ascii", "replace")


def _status_message(members: Fields) -> str:
    try:
        return envelope.text(members.get("statusMessage", Raw(b'""')), "statusMessage")
    except WireError:
        return ""


def _milliseconds(members: Fields, name: str) -> float | None:
    raw = bytes(members.get(name, b""))
    return int(raw) / 1000 if raw.isdigit() and len(raw) <= envelope.MAX_OWN_DIGITS else None


def _ttl_s(members: Fields, age_s: float) -> float:
    """How long a task lives in all; what is no sensible number counts as for ever, which is `MAX_TTL_S`."""
    ttl_s = _milliseconds(members, "ttlMs")
    return MAX_TTL_S if ttl_s is None else min(max(ttl_s, age_s), MAX_TTL_S)


def poll_s(members: Fields) -> float:
    interval_s = _milliseconds(members, "pollIntervalMs")
    return POLL_S if interval_s is None else min(max(interval_s, MIN_POLL_S), MAX_POLL_S)


def _code(error: bytes | None) -> int:
    try:
        return int(envelope.value(envelope.fields(error or b"{}")["code"]))
    except (WireError, KeyError, TypeError, ValueError):
        return 0
