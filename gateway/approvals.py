"""Calls that wait for a person: which there are, who decided them, and what was decided before.

Knows no client and no page; what a held call does meanwhile is told in holding.py. Everything here ends with the
gateway: what was pending then is not approved."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from gateway import errors
from gateway.approvaltext import shown_arguments
from gateway.audit import Audit, AuditUnwritable, Step, StepName, now
from policies.asking import ADMINISTRATORS, GROUP, SELF, Ask

_log: Final = logging.getLogger(__name__)

MAX_PENDING: Final = 128
MAX_PENDING_PER_PRINCIPAL: Final = 8
"""Calls that wait at once. More would only teach people to approve without looking."""
MAX_ENDED: Final = 256
"""Decided ones that can still be looked at."""
MAX_REMEMBERED: Final = 4096
REFUSED_S: Final = 300.0
"""After a no the very same call is refused for so long without asking again."""
MAX_REFUSALS: Final = 3
REFUSALS_S: Final = 600.0
"""After so many refusals of one tool to one principal within that time nobody is asked about it until it is over."""
ID_BYTES: Final = 8

State = Literal["pending", "approved", "denied", "expired", "withdrawn", "used"]


@dataclass(frozen=True, slots=True)
class Approver:
    """Somebody who decides. `via` says how they came: `command line`, `admin API`, `page` or `client`."""

    id: str
    via: Literal["command line", "admin API", "page", "client"]
    is_admin: bool = False
    groups: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Asked:
    """A call as the one who approves it must know it. `key` is a digest of all that the answer is bound to."""

    key: str
    call: str
    principal: str
    client: str
    profile: str
    method: str
    name: str
    server: str
    item: str
    arguments: bytes
    digest: str
    policies: tuple[str, ...]
    ask: Ask


@dataclass(eq=False)
class Approval:
    """One call that waits, or waited."""

    id: str
    asked: Asked
    at: float
    ended: asyncio.Future[None]
    timer: asyncio.TimerHandle
    state: State = "pending"
    by: str = ""
    decided_at: float = field(default=0.0)

    @property
    def expires_at(self) -> float:
        return self.at + self.asked.ask.wait_s

    def why(self) -> str:
        """What the caller is told of a call that was not approved."""
        match self.state:
            case "denied":
                return f"{self.by or 'a person'} did not approve it; do not try it again"
            case "expired":
                return f"nobody approved it within {self.asked.ask.wait_s} seconds"
            case "used":
                return "its approval was used already; make the call again to ask once more"
        return "the request for approval was withdrawn"


class NotAsked(Exception):
    """Nobody can be asked about a call now; the message says why."""


class Approvals:
    """The calls that wait. Lives in the event loop."""

    def __init__(self, audit: Audit) -> None:
        self._audit = audit
        self._pending: dict[str, Approval] = {}
        self._ended: OrderedDict[str, Approval] = OrderedDict()
        self._own: Counter[str] = Counter()
        self._yes: OrderedDict[str, tuple[float, Approval]] = OrderedDict()
        self._no: OrderedDict[str, float] = OrderedDict()
        self._refusals: OrderedDict[tuple[str, str, str], deque[float]] = OrderedDict()

    # -- the call's side -------------------------------------------------------------------------

    def hold(self, asked: Asked) -> Approval:
        """Let a call wait.

        Raises:
            NotAsked: too many wait, or it was refused a moment ago.
            AuditUnwritable: then nobody is asked.
        """
        self._check(asked)
        loop = asyncio.get_running_loop()
        id = secrets.token_hex(ID_BYTES)
        timer = loop.call_later(asked.ask.wait_s, self._end, id, "expired")
        approval = Approval(id, asked, now(), loop.create_future(), timer)
        try:
            self._record(approval, "held", asked.call)
        except AuditUnwritable:
            timer.cancel()
            raise
        self._pending[id] = approval
        self._own[asked.principal] += 1
        return approval

    def _check(self, asked: Asked) -> None:
        now_s, who = time.monotonic(), asked.principal
        if self._no.get(asked.key, 0.0) > now_s:
            raise NotAsked("this very call was refused a moment ago; do not try it again")
        refusals = self._refusals.get((who, asked.server, asked.item), ())
        if sum(at > now_s - REFUSALS_S for at in refusals) >= MAX_REFUSALS:
            raise NotAsked(
                f"this tool was refused {MAX_REFUSALS} times; nobody is asked about it for some minutes, so go on "
                "without it"
            )
        if self._own[who] >= MAX_PENDING_PER_PRINCIPAL:
            raise NotAsked(f"{MAX_PENDING_PER_PRINCIPAL} calls of yours wait for approval already; wait for those")
        if len(self._pending) >= MAX_PENDING:
            raise NotAsked("too many calls wait for approval already; try again later")

    def find(self, id: str) -> Approval | None:
        """One that waits or waited; None if it is not known any more."""
        return self._pending.get(id) or self._ended.get(id)

    def withdraw(self, id: str) -> None:
        """The caller waits no more: what was pending, or approved and not used, is worth nothing now."""
        self._end(id, "withdrawn")

    def remembered(self, key: str, call: str) -> bool:
        """Whether this very call was approved a while ago for longer than once; written down if so.

        Raises:
            AuditUnwritable: then it was not.
        """
        until, approval = self._yes.get(key, (0.0, None))
        if approval is None or until <= time.monotonic():
            self._yes.pop(key, None)
            return False
        self._record(approval, "used", call)
        return True

    def use(self, approval: Approval, call: str) -> bool:
        """Take a yes, once; False if there is none.

        Raises:
            AuditUnwritable: then there is none.
        """
        if approval.state != "approved":
            return False
        self._record(approval, "used", call)
        approval.state = "used"
        approval.timer.cancel()
        if seconds := approval.asked.ask.remember_s:
            _keep(self._yes, approval.asked.key, (time.monotonic() + seconds, approval))
        return True

    # -- the person's side -----------------------------------------------------------------------

    def may_decide(self, approval: Approval, who: Approver) -> bool:
        """Whether the policies let them. Whoever made the call decides it themselves only where a policy names `self`,
        or as an administrator in a browser or at the command line, which no client of theirs is."""
        asked = approval.asked
        own = asked.principal == who.id
        if own and SELF in asked.ask.approvers:
            return who.via != "admin API"
        if who.via == "client" or (own and who.via == "admin API"):
            return False
        return who.is_admin or any(f"{GROUP}{group}" in asked.ask.approvers for group in who.groups)

    def waiting(self, who: Approver) -> list[Approval]:
        """The pending ones they may decide, oldest first."""
        return [approval for approval in self._pending.values() if self.may_decide(approval, who)]

    def seen_by(self, id: str, who: Approver) -> Approval:
        """One they may decide or could have decided.

        Raises:
            UnknownName: there is none of that id for them.
        """
        approval = self.find(id)
        if approval is None or not self.may_decide(approval, who):
            raise errors.UnknownName(f"no call with the id {id[:64]} waits for your approval; see: approvals list")
        return approval

    def decide(self, id: str, yes: bool, who: Approver) -> Approval:
        """Their answer; the first one counts.

        Raises:
            UnknownName: there is none of that id for them.
            AlreadyDecided: somebody else was faster, or it is too late.
            AuditUnwritable: then nothing is decided.
        """
        approval = self.seen_by(id, who)
        if approval.state != "pending":
            raise errors.AlreadyDecided(f"{id}: is {approval.state} already{_by(approval)}")
        asked = approval.asked
        by = f"{who.id} ({who.via})"
        self._record(approval, "approved" if yes else "denied", asked.call, by)
        approval.by, approval.decided_at = by, now()
        if not yes:
            _keep(self._no, asked.key, time.monotonic() + REFUSED_S)
            tool = (asked.principal, asked.server, asked.item)
            refusals = self._refusals.get(tool) or deque(maxlen=MAX_REFUSALS)
            refusals.append(time.monotonic())
            _keep(self._refusals, tool, refusals)
        self._settle(approval, "approved" if yes else "denied")
        return approval

    def close(self) -> None:
        """The gateway stops: nothing that waits is approved."""
        for id in list(self._pending):
            self._end(id, "withdrawn")

    def describe(self, approval: Approval, *, full: bool = False) -> dict[str, Any]:
        """What a person needs to decide. Known secrets and what could deceive the eye are made visible or hidden."""
        asked = approval.asked
        text, left_out = shown_arguments(asked.arguments, self._audit.clean, None if full else SHORT_CHARS)
        return {
            "id": approval.id,
            "state": approval.state,
            "principal": asked.principal,
            "client": asked.client,
            "profile": asked.profile,
            "method": asked.method,
            "tool": asked.name,
            "server": asked.server,
            "item": asked.item,
            "arguments": text,
            "left_out": left_out,
            "digest": asked.digest,
            "call": asked.call,
            "policies": list(asked.policies),
            "reasons": list(asked.ask.reasons),
            "approvers": sorted(asked.ask.approvers | {ADMINISTRATORS}),
            "remember_s": asked.ask.remember_s,
            "at": approval.at,
            "expires_at": approval.expires_at,
            "by": approval.by,
        }

    # -- inside ----------------------------------------------------------------------------------

    def _end(self, id: str, state: Literal["expired", "withdrawn"]) -> None:
        approval = self.find(id)
        if approval is None or approval.state not in ("pending", "approved"):
            return
        try:
            self._record(approval, state, approval.asked.call)
        except AuditUnwritable as exc:
            _log.error("that approval %s is %s could not be recorded: %s", id, state, exc)
        self._settle(approval, state)

    def _settle(self, approval: Approval, state: State) -> None:
        approval.state = state
        if state != "approved":
            approval.timer.cancel()
        if self._pending.pop(approval.id, None) is not None:
            self._own[approval.asked.principal] -= 1
            if not self._own[approval.asked.principal]:
                del self._own[approval.asked.principal]
            _keep(self._ended, approval.id, approval, MAX_ENDED)
        if not approval.ended.done():
            approval.ended.set_result(None)

    def _record(self, approval: Approval, step: StepName, call: str, by: str = "") -> None:
        asked = approval.asked
        self._audit.write(
            Step(
                call, now(), approval.id, step, by or approval.by, asked.principal, asked.profile, asked.server,
                asked.item, asked.digest, asked.policies,
            )
        )  # fmt: skip


SHORT_CHARS: Final = 2000
"""Of the arguments that are shown unless somebody asks for all."""


def _by(approval: Approval) -> str:
    return f", by {approval.by}" if approval.by else ""


def _keep(table: OrderedDict[Any, Any], key: Any, value: Any, at_most: int = MAX_REMEMBERED) -> None:
    table[key] = value
    table.move_to_end(key)
    while len(table) > at_most:
        table.popitem(last=False)


def summary(shown: Mapping[str, Any]) -> str:
    """One call in words, for a client or a terminal."""
    lines = [
        f"{shown['principal']} ({shown['client'] or 'no client name'}) wants to call {shown['tool']} of the server "
        f"{shown['server']} in the profile {shown['profile']}.",
        *(f"Why you are asked: {reason}." for reason in shown["reasons"]),
        f"Arguments: {shown['arguments']}",
    ]
    if shown["left_out"]:
        lines.append(f"({shown['left_out']} more characters; see all: lockgate approvals show {shown['id']} --full)")
    return "\n".join(lines)
