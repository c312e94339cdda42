"""The course of a call that a person must approve: put to the caller's client, or waited for while others decide.

Knows the door and the approvals; whether a call must be approved is what policy says."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from msgspec import Raw

from gateway import errors
from gateway.approvals import Approval, Approvals, Approver, Asked, NotAsked, summary
from gateway.bridge import Held, InputRequired, Resume, Retry, Ticket
from gateway.caller import Caller
from gateway.upstream import PROGRESS, Notice
from gateway.wire import envelope
from gateway.wire.envelope import Fields, WireError
from policies import Decision
from policies.asking import SELF, Ask

if TYPE_CHECKING:
    from gateway.audit import Record
    from gateway.door import Door
    from gateway.routes import Route
    from gateway.surface import Target

PROGRESS_S: Final = 10.0
"""A client that gave a progress token hears this often that its call still waits."""
MAX_ROUNDS_KEPT: Final = 1024
"""Approved calls in whose course a server asked something, and whose clients have yet to answer."""
QUESTION: Final = "lockgate-approval"
"""The key of our question among those of servers."""
NOBODY: Final = (
    "a person must approve this call, and this run cannot wait for one; it was not made. Go on without it, or say that "
    "a person must make it"
)
CHANGED: Final = "a person must approve this call, and what it would do changed meanwhile; make it again"
Notify = Callable[[Notice], Awaitable[None]]


class Passed(NamedTuple):
    """What comes of asking: the decision now, what the call goes on with, and the key of what was approved."""

    decision: Decision
    resume: Resume | None
    key: str


class Holding:
    """Holds calls for the door."""

    def __init__(self, door: Door, approvals: Approvals) -> None:
        self._door = door
        self._approvals = approvals
        self._rounds: OrderedDict[str, str] = OrderedDict()

    async def settle(
        self,
        caller: Caller,
        route: Route,
        target: Target,
        members: Fields,
        record: Record,
        decision: Decision,
        ticket: Ticket,
        notify: Notify,
        resume: Resume | None,
    ) -> InputRequired | Passed:
        """Have a person decide; the question itself where the caller's client is to put it.

        Raises:
            WireError: what the client sent to continue a call is not valid.
            AuditUnwritable: a step could not be recorded.
        """
        ask = decision.ask
        if ask is None or route.action == "complete":
            return Passed(decision, resume, "")
        arguments = bytes(members.get("arguments", envelope.ABSENT))
        if resume is None and ("inputResponses" in members or "requestState" in members):
            resume = self._door.unsealed(members, ticket)
        key = self._key(caller, route, target, arguments)
        asked = Asked(
            key, record.call, caller.principal.id, caller.client, caller.profile.name, record.method, record.name,
            record.server, record.item, arguments, record.arguments, decision.policy_ids, ask,
        )  # fmt: skip
        if resume is not None and resume.approved == key:
            return Passed(_allowed(decision), resume, key)
        if resume is not None and isinstance(resume.continuation, Held):
            approval = self._approvals.find(resume.continuation.approval)
            if approval is None or approval.asked.key != key:
                return Passed(_refused(decision, CHANGED), None, "")
            self._answer(approval, resume.answers, caller)
            if approval.state == "pending":
                return InputRequired(self._question(approval), Held(approval.id), ticket)
            return self._passed(approval, key, record, decision, None)
        if resume is not None and resume.continuation != Retry(None):
            return Passed(_refused(decision, CHANGED), resume, "")
        if self._approvals.remembered(key, record.call):
            return Passed(_allowed(decision), resume, key)
        if not caller.waits:
            return Passed(_refused(decision, NOBODY), resume, "")
        try:
            approval = self._approvals.hold(asked)
        except NotAsked as exc:
            return Passed(_refused(decision, f"a person must approve this call: {exc}"), resume, "")
        if _can_be_asked(caller, ask):
            return InputRequired(self._question(approval), Held(approval.id), ticket)
        await self._wait(approval, notify, members)
        # Much can have changed while the person thought: what is done must be what was approved, and still be allowed.
        decision = self._door.decide_again(caller, route.action, target, arguments)
        if decision.ask is None or self._key(caller, route, target, arguments) != key:
            self._approvals.withdraw(approval.id)
            return Passed(decision if decision.ask is None else _refused(decision, CHANGED), resume, "")
        return self._passed(approval, key, record, decision, resume)

    def _passed(
        self, approval: Approval, key: str, record: Record, decision: Decision, resume: Resume | None
    ) -> Passed:
        if self._approvals.use(approval, record.call):
            return Passed(_allowed(decision), resume, key)
        return Passed(_refused(decision, f"a person must approve this call: {approval.why()}"), resume, "")

    def kept(self, key: str) -> str:
        """What stands for an approval in a state that a client keeps: good for one more request of the same call."""
        if not key:
            return ""
        id = secrets.token_hex(16)
        self._rounds[id] = key
        if len(self._rounds) > MAX_ROUNDS_KEPT:
            self._rounds.popitem(last=False)
        return id

    def redeemed(self, id: str) -> str:
        """The key of the approval that this stands for, once; empty if there is none."""
        return self._rounds.pop(id, "")

    def ended(self, required: InputRequired) -> asyncio.Future[None] | None:
        """Done when somebody else has decided what the client was asked; None if only the client can answer."""
        if not isinstance(required.continuation, Held):
            return None
        approval = self._approvals.find(required.continuation.approval)
        return approval.ended if approval is not None else None

    def expires_at(self, held: Held) -> float:
        approval = self._approvals.find(held.approval)
        return approval.expires_at if approval is not None else 0.0

    def withdraw(self, held: Held) -> None:
        self._approvals.withdraw(held.approval)

    async def _wait(self, approval: Approval, notify: Notify, members: Fields) -> None:
        """Until somebody has decided, or the time is over. Whoever waits no more withdraws the request."""
        meta = envelope.fields(members.get("_meta", envelope.ABSENT))
        token, told = meta.get("progressToken"), 0
        try:
            while not approval.ended.done():
                if token is not None:
                    told += 1
                    await notify(Notice(PROGRESS, _progress(token, told, approval)))
                await asyncio.wait({approval.ended}, timeout=PROGRESS_S)
        except BaseException:
            self._approvals.withdraw(approval.id)
            raise

    def _question(self, approval: Approval) -> dict[str, Raw]:
        shown = self._approvals.describe(approval)
        params = {
            "message": summary(shown),
            "requestedSchema": {
                "type": "object",
                "properties": {"approve": {"type": "boolean", "title": "Make this call"}},
                "required": ["approve"],
            },
        }
        return {QUESTION: envelope.raw({"method": "elicitation/create", "params": params})}

    def _answer(self, approval: Approval, answers: Fields, caller: Caller) -> None:
        """The client's word, if it has one; anything but a plain yes is a no.

        Raises:
            WireError: the answer is not an object.
        """
        raw = answers.get(QUESTION)
        if raw is None or approval.state != "pending":
            return
        given = envelope.fields(raw)
        content = envelope.fields(given.get("content", envelope.ABSENT)) if "content" in given else {}
        yes = bytes(given.get("action", b"")) == b'"accept"' and bytes(content.get("approve", b"")) == b"true"
        try:
            self._approvals.decide(approval.id, yes, Approver(caller.principal.id, "client"))
        except errors.DoorError as exc:
            raise WireError(envelope.INVALID_PARAMS, str(exc)) from exc

    def _key(self, caller: Caller, route: Route, target: Target, arguments: bytes) -> str:
        """A digest of everything an approval is bound to."""
        who, listing = caller.principal, self._door.pool.listing(target.server)
        entry = listing.digest if listing is not None else ""
        definition = bytes(listing.definition(target.item) or b"") if listing is not None else b""
        parts = (
            self._door.policy.generation, who.id, who.kind, who.client, caller.profile.name, route.action,
            target.server, entry, target.item,
        )  # fmt: skip
        digest = hashlib.sha256()
        for part in (*(text.encode("utf-8", "surrogatepass") for text in parts), definition, arguments):
            digest.update(len(part).to_bytes(8) + part)
        return digest.hexdigest()


def _can_be_asked(caller: Caller, ask: Ask) -> bool:
    """Whether the policies let the caller's own client put the question, and it can."""
    if SELF not in ask.approvers or "elicitation" not in caller.capabilities:
        return False
    modes = envelope.fields(caller.capabilities["elicitation"])
    return not modes or "form" in modes  # an empty one means forms (MCP 2025-11-25, client/elicitation)


def _allowed(decision: Decision) -> Decision:
    return Decision(True, decision.policy_ids, "approved by a person")


def _refused(decision: Decision, why: str) -> Decision:
    return Decision(False, decision.policy_ids, why)


def _progress(token: Raw, told: int, approval: Approval) -> bytes:
    # Progress must grow, also with what the server will report after it: it begins with small steps.
    text = f"waits for approval {approval.id}; see: lockgate approvals show {approval.id}"
    return envelope.encode({"progressToken": token, "progress": told / 1_000_000, "message": text})
