"""A call that takes long and becomes a task of the gateway's own: its state, its questions, its end.

Knows one call; how many there may be is its owner's business (slowcalls.py), who may make it the door's."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from msgspec import Raw

from gateway import bridge, errors, tasks
from gateway.audit import AuditUnwritable
from gateway.bridge import InputRequired, Resume
from gateway.tasks import Hear, Status, Task
from gateway.upstream import PROGRESS, Notice, Reply
from gateway.wire import envelope
from gateway.wire.envelope import Fields, WireError

if TYPE_CHECKING:
    from gateway.caller import Caller
    from gateway.door import Door
    from gateway.slowcalls import SlowCalls
    from gateway.surface import Target

_log: Final = logging.getLogger(__name__)

TTL_S: Final = 900.0
"""How long a task can be asked for at least; one that still runs is given as much again."""
MAX_RUN_S: Final = 86_400.0
POLL_MS: Final = 1000
MAX_STATUS_CHARS: Final = 500
COALESCE_S: Final = 0.2
"""Progress this close together is told to listeners as one event."""
OWN_TOKEN: Final = Raw(b'"lockgate-task"')
"""The progress token where the client gave none: what a server reports becomes the task's status message."""

Notify = Callable[[Notice], Awaitable[None]]


class SlowCall(Task):
    """One tools/call that may outlive the request it came with. `work` carries it; everything else looks or asks."""

    def __init__(self, caller: Caller, target: Target, params: bytes, notify: Notify, owner: SlowCalls) -> None:
        super().__init__(caller, target)
        self.status: Status = "working"
        self.status_message = ""
        self.work: asyncio.Task[Reply | InputRequired] | None = None
        self.handed_out = False
        """The client has the task in place of the result."""
        self.result: bytes | None = None
        self.error: bytes | None = None
        self.created = self.updated = time.time()
        self._born = asyncio.get_running_loop().time()
        self._ttl_s = TTL_S
        self.caller = caller
        self._notify_client = notify
        self._owner = owner
        self._sending = asyncio.Lock()
        members = envelope.fields(params)
        self._params, self._has_token = params, True
        meta = envelope.fields(members.get("_meta", envelope.ABSENT))
        if "progressToken" not in meta:
            self._has_token = False
            members["_meta"] = envelope.raw({**meta, "progressToken": OWN_TOKEN})
            self._params = envelope.encode(members)
        self._questions: dict[str, tuple[str, Raw]] = {}
        """Under the key the client sees: the key of the call, and the question."""
        self._answers: dict[str, Raw] = {}
        self._used_keys: set[str] = set()
        self._answered: asyncio.Future[None] | None = None
        self._listeners: set[Hear] = set()
        self._telling: asyncio.TimerHandle | None = None

    # -- its course --------------------------------------------------------------------------

    async def run(self, door: Door) -> Reply | InputRequired:
        """The call to its end. Until it is handed out, whatever comes of it belongs to the client's own request."""
        try:
            outcome = await door.call(self.caller, "tools/call", self._params, self._notify)
            for _ in range(bridge.MAX_ROUNDS):
                if isinstance(outcome, Reply) or not self.handed_out:
                    break
                resume = await self._ask(door, outcome)
                self.caller.profile = door.current(self.caller.profile)
                outcome = await door.call(self.caller, "tools/call", self._later_params(), self._notify, resume)
            if self.handed_out and isinstance(outcome, InputRequired):
                door.give_up(outcome)
                raise errors.UpstreamInvalid(f"the server asked more than {bridge.MAX_ROUNDS} times in one call")
        except Exception as exc:
            if not self.handed_out:
                raise
            outcome = _failure(exc)
        if self.handed_out and isinstance(outcome, Reply):
            self._settle(outcome)
        return outcome

    def _later_params(self) -> bytes:
        """The request without what continued an earlier round of it."""
        members = envelope.fields(self._params)
        members.pop("inputResponses", None)
        members.pop("requestState", None)
        return envelope.encode(members)

    async def _notify(self, notice: Notice) -> None:
        async with self._sending:
            if not self.handed_out:
                if self._has_token or notice.method != PROGRESS:
                    await self._notify_client(notice)
                return
        if notice.method == PROGRESS and self.open:
            self.status_message = _progress_text(notice.params)
            self._change()

    async def _ask(self, door: Door, required: InputRequired) -> Resume:
        """Show the call's questions in the task and wait for the answers, in whatever portions they come.

        Raises:
            UpstreamTimeout: they did not come.
        """
        self._answers = {}
        for key, raw in required.requests.items():
            self._questions[self._unused(key)] = (key, raw)
        try:
            if self._questions:
                self._answered = asyncio.get_running_loop().create_future()
                self._change("input_required")
                waiting = {self._answered}
                if (elsewhere := door.holding.ended(required)) is not None:
                    waiting.add(elsewhere)
                async with asyncio.timeout(bridge.PARK_S):
                    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        except BaseException as exc:
            door.give_up(required)
            if isinstance(exc, TimeoutError):
                raise errors.UpstreamTimeout("nobody answered the server's question in time") from exc
            raise
        finally:
            self._questions, self._answered = {}, None
        self._change("working")
        return Resume(required.continuation, self._answers, required.ticket.approved, required.ticket.here)

    def _unused(self, key: str) -> str:
        """No key stands for two questions in the life of a task."""
        unused, number = key, 2
        while unused in self._used_keys:
            unused, number = f"{key}-{number}", number + 1
        self._used_keys.add(unused)
        return unused

    def _settle(self, reply: Reply) -> None:
        if not self.open:
            return
        self.result, self.error = _complete(reply)
        if not self._owner.has_room(self, len(self.result or self.error or b"")):
            self.result = None
            self.error = _error(envelope.INTERNAL_ERROR, "the result finds no room beside others not yet fetched")
        self._end("completed" if self.result is not None else "failed")

    def _end(self, status: Status) -> None:
        self.open = False
        self._params = b""
        self._ttl_s = max(self._ttl_s, asyncio.get_running_loop().time() - self._born + TTL_S)
        self._owner.table.reschedule(self)
        self._change(status)

    # -- what its holder may do --------------------------------------------------------------

    def reply(self, method: str, members: Fields) -> Reply:
        """The answer to one of the extension's methods.

        Raises:
            WireError: the answers in it are malformed.
        """
        if method == tasks.GET:
            return Reply(self.described(), None)
        if method == tasks.UPDATE:
            self._update(tasks.answers_in(members))
        elif self.open:
            self.cancel()
        return Reply(b"{}", None)

    def _update(self, answers: Fields) -> None:
        for key, raw in answers.items():
            if key in self._questions:
                self._answers[self._questions.pop(key)[0]] = raw
        if self._answered is not None and not self._answered.done():
            if not self._questions:
                self._answered.set_result(None)
            else:
                self._change()

    def cancel(self) -> None:
        self._end("cancelled")
        if self.work is not None:
            self.work.cancel()

    def hand_out(self) -> Reply:
        """The task, in place of the result."""
        self.handed_out = True
        self._notify_client = _ignore  # its request is over, and nothing of it is kept
        return Reply(envelope.encode({"resultType": "task", **self._state()}), None)

    @property
    def sending(self) -> asyncio.Lock:
        """Held while something is being sent to the client's own request."""
        return self._sending

    def _state(self) -> dict[str, object]:
        state: dict[str, object] = {"taskId": self.id, "status": self.status}
        if self.status_message:
            state["statusMessage"] = self.status_message
        return state | {
            "createdAt": tasks.timestamp(self.created),
            "lastUpdatedAt": tasks.timestamp(self.updated),
            "ttlMs": int(self._ttl_s * 1000),
            "pollIntervalMs": POLL_MS,
        }

    def described(self) -> bytes:
        state = self._state()
        if self._questions:
            state["inputRequests"] = {key: raw for key, (_, raw) in self._questions.items()}
        if self.result is not None:
            state["result"] = Raw(self.result)
        if self.error is not None:
            state["error"] = Raw(self.error)
        return envelope.encode(state)

    # -- who hears of it ---------------------------------------------------------------------

    def listen(self, hear: Hear) -> None:
        self._listeners.add(hear)

    def unlisten(self, hear: Hear) -> None:
        self._listeners.discard(hear)

    def _change(self, status: Status | None = None) -> None:
        if self.status in tasks.TERMINAL:
            return
        self.updated = time.time()
        if status is not None and status != self.status:
            self.status = status
            self._tell()
        elif self._listeners and self._telling is None:
            self._telling = asyncio.get_running_loop().call_later(COALESCE_S, self._tell)

    def _tell(self) -> None:
        if self._telling is not None:
            self._telling.cancel()
            self._telling = None
        if self._listeners:
            state = self.described()
            for hear in list(self._listeners):
                hear(state)

    # -- its time (Task) ---------------------------------------------------------------------

    @property
    def expires_at(self) -> float:
        return self._born + self._ttl_s

    def over(self) -> bool:
        if self.open and self._ttl_s < MAX_RUN_S:
            self._ttl_s += TTL_S
            return False
        return True

    def forget(self, reason: str) -> None:
        if self.open:
            self.status_message = reason
            self.error = _error(envelope.INTERNAL_ERROR, f"the task ended: {reason}")
            self.open = False
            self._change("failed")
        if self._telling is not None:
            self._telling.cancel()
        self._listeners.clear()
        self._owner.released(self)
        if self.work is not None:
            self.work.cancel()


def _complete(reply: Reply) -> tuple[bytes | None, bytes | None]:
    """The result, as this revision wants it, or the error of a call that is over."""
    if reply.result is None:
        return None, reply.error
    try:
        members = envelope.fields(reply.result)
    except WireError:
        return None, _error(envelope.INTERNAL_ERROR, "the server's result is not an object")
    members.setdefault("resultType", Raw(b'"complete"'))
    return envelope.encode(members), None


async def _ignore(notice: Notice) -> None:
    """Nobody is there to hear it."""


def _progress_text(params: bytes) -> str:
    """One line on how far a call is, from its progress."""
    members = envelope.fields(params)
    message = members.get("message")
    if message is not None:
        try:
            return envelope.text(message, "message")[:MAX_STATUS_CHARS]
        except WireError:
            pass
    parts = [bytes(members[name]).decode("ascii", "replace")[:40] for name in ("progress", "total") if name in members]
    return " of ".join(parts)


def _error(code: int, text: str) -> bytes:
    return envelope.encode({"code": code, "message": text})


def _failure(exc: Exception) -> Reply:
    """What became of a call, for a client that has only the task."""
    match exc:
        case errors.UpstreamError():
            result = {"content": [{"type": "text", "text": f"{exc}. {exc.retry}"}], "isError": True}
            return Reply(envelope.encode(result), None)
        case errors.UnknownName():
            return Reply(None, _error(envelope.INVALID_PARAMS, str(exc)))
        case WireError():
            return Reply(None, _error(exc.code, exc.message))
        case AuditUnwritable():
            _log.error("refusing calls: %s", exc)
            return Reply(None, _error(envelope.INTERNAL_ERROR, "the audit log cannot be written; no call is answered"))
        case _:
            incident = secrets.token_hex(4)
            _log.error("incident %s in a task", incident, exc_info=exc)
            return Reply(None, _error(envelope.INTERNAL_ERROR, f"internal error, incident {incident}"))
