"""Runs of agents: policy decides each one, and the audit file has its begin and its end.

Knows callers, policy and records; not what an agent does. Whoever lets one run here asks `AgentUses.run` first."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePath
from typing import Final

from engine.transcript import Header
from gateway import audit, errors
from gateway.audit import Audit, AuditUnwritable, RunRecord
from gateway.caller import SOURCE, Caller
from gateway.door import Door
from gateway.recording import note_decision, record_of
from gateway.tally import Tally
from policies import Circumstances, Decision, Facts, Request

METHOD: Final = "agents/run"
"""What records call it."""
UNNAMED: Final = "unnamed"
"""The agent of a run that no definition describes."""
MAX_OPEN: Final = 256
"""Runs of clients that were announced and have not ended."""
MAX_CHARS: Final = 256


class AgentDenied(errors.Denied):
    """Policy does not let this caller run the agent; the message says why, and what would allow it."""


class RunUnrecorded(errors.GatewayError):
    """The audit file cannot be written, so the agent does not run, or its answer is not given."""


class AgentUses:
    """Decides and records, with the door's policy."""

    def __init__(self, door: Door, audit_file: Audit) -> None:
        self._door = door
        self._audit = audit_file
        self._open: dict[str, tuple[RunRecord, float]] = {}

    @contextmanager
    def run(self, caller: Caller, header: Header) -> Iterator[Tally]:
        """One run, for the length of the body, which tells the tally each event.

        Raises:
            AgentDenied: policy says no.
            RunUnrecorded: then nothing has happened, or what happened must not be told.
        """
        record, began, tally, failed = self._begin(caller, header), time.perf_counter(), Tally(), True
        try:
            yield tally
            failed = False
        finally:
            try:
                self._end(record, began, tally, failed=failed)
            except RunUnrecorded:
                if not failed:
                    raise

    # -- runs of clients that say so -------------------------------------------------------------

    def announce(self, caller: Caller, header: Header) -> None:
        """A run begins in a client of this gateway.

        Raises: as `run`.
            GatewayError: too many are open.
        """
        self.ended(header.run, Tally())  # of a client that was killed, and resumes it now
        if len(self._open) >= MAX_OPEN:
            raise errors.GatewayError("too many agents run already; end one first")
        self._open[header.run] = self._begin(caller, header), time.perf_counter()

    def ended(self, run: str, tally: Tally) -> None:
        """It has ended; what is not known is no error, as the gateway may have been started anew.

        Raises:
            RunUnrecorded: it cannot be recorded.
        """
        if (found := self._open.pop(run, None)) is not None:
            self._end(*found, tally)

    def close(self) -> None:
        """The gateway stops: no run goes on without it."""
        for run in list(self._open):
            self.ended(run, Tally())

    # -- one run ---------------------------------------------------------------------------------

    def _begin(self, caller: Caller, header: Header) -> RunRecord:
        caller.profile = self._door.current(caller.profile)
        record = record_of(caller, METHOD, RunRecord)
        agent = agent_name(header.agent)
        record.run, record.item, record.name = header.run[:MAX_CHARS], agent, header.model[:MAX_CHARS]
        record.arguments = audit.digest(header.task.encode("utf-8", "surrogatepass"))
        decision = self._decide(caller, agent, header.model)
        note_decision(record, self._door.policy.generation, decision)
        if not decision.allowed:
            self._write(record)
            raise AgentDenied(_refusal(agent, caller, decision))
        self._write(record, begins=True)
        return record

    def _end(self, record: RunRecord, began: float, tally: Tally, *, failed: bool = False) -> None:
        record.steps, record.calls, record.tokens = tally.steps, tally.calls, tally.tokens
        match tally.stopped:
            case "answered":
                record.outcome = "ok"
            case "steps" | "tokens" | "seconds" | "calls":
                record.outcome, record.detail = "limited", tally.stopped
            case "cancelled":
                record.outcome = "error" if failed else "cancelled"
            case other:
                record.outcome, record.detail = "error", other
        record.ms = round((time.perf_counter() - began) * 1e3, 3)
        self._write(record)

    def _decide(self, caller: Caller, agent: str, model: str) -> Decision:
        profile = caller.profile
        if not self._door.admits(caller):
            return Decision(False, (), f"profile {profile.name} is not for this caller")
        around = Circumstances(time.time(), SOURCE.get())
        facts = Facts(about={"model": model})
        return self._door.policy.decide(Request(caller.principal, "run", profile.name, "", agent, {}, facts, around))

    def _write(self, record: RunRecord, *, begins: bool = False) -> None:
        try:
            self._audit.write(record.start() if begins else record)
        except AuditUnwritable as exc:
            raise RunUnrecorded(f"runs of agents cannot be recorded, so none goes on: {exc}") from exc


def agent_name(agent: str) -> str:
    """What policies call an agent that a run names by its name or its file."""
    return (PurePath(agent).stem if agent.endswith(".yaml") else agent)[:MAX_CHARS] or UNNAMED


def _refusal(agent: str, caller: Caller, decision: Decision) -> str:
    profile = caller.profile
    why = f"you may not run the agent {agent} in the profile {profile.name}: {decision.reason}"
    if decision.ask is not None:
        return f"{why}, and nobody can be asked about agents; let its policy permit or forbid it"
    rule = f'permit (principal, action == Action::"run", resource == Agent::{json.dumps(agent)});'
    return f"{why}. An administrator can add to the policy {profile.policy}: {rule}"
