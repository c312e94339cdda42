"""What is done to the gateway itself: policy decides each act, and the audit file has its begin and its end.

Knows principals, areas and records; what an act does is its own module's."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from gateway import audit, errors
from gateway.audit import Audit, Record
from gateway.door import Door
from gateway.policyfiles import ADMINISTRATION
from gateway.recording import note_decision, recorded
from policies import NO_PROFILE, Circumstances, Decision, Facts, Principal, Request

METHOD: Final = "administer"
"""What records call it."""
MAX_CHARS: Final = 256


class AdministrationDenied(errors.Denied):
    """Policy does not let this principal do it; the message says why, and what would allow it."""


@dataclass(frozen=True, slots=True)
class Act:
    """Something that is done to the gateway. `server`, `owner` and `item` say to whose part of it, where it is one:
    the entry's id, the principal whose secret or sign-in it is, and the name of the thing."""

    area: str
    verb: str
    changes: bool = True
    server: str = ""
    owner: str = ""
    item: str = ""

    def facts(self) -> Facts:
        about: dict[str, str | bool] = {"verb": self.verb, "changes": self.changes}
        about |= {name: value for name in ("server", "owner", "item") if (value := getattr(self, name))}
        return Facts(about=about)


class Administration:
    """Decides and records, with the door's policy."""

    def __init__(self, door: Door, audit_file: Audit) -> None:
        self._door = door
        self._audit = audit_file

    def allows(self, principal: Principal, act: Act, source: str = "") -> bool:
        """Whether policy lets it be done, without a word of it in the audit file."""
        return self._decide(principal, act, source).allowed

    @contextmanager
    def act(self, principal: Principal, act: Act, source: str = "", client: str = "") -> Iterator[Record]:
        """One act, for the length of the body, which may note in the record what came of it. What only looks leaves a
        record if it is denied.

        Raises:
            AdministrationDenied: policy says no.
            AuditUnwritable: then nothing has happened, or what happened must not be told.
        """
        record = self._record(principal, act, source, client)
        decision = self._decide(principal, act, source)
        note_decision(record, self._door.policy.generation, decision)
        if not decision.allowed:
            self._audit.write(record)
            raise AdministrationDenied(_refusal(act, decision))
        if not act.changes:
            yield record
            return
        with recorded(self._audit, record):
            yield record

    def note(self, act: Act, outcome: audit.Outcome, detail: str, generation: str) -> None:
        """Write down what happens without being asked for here, as when a file has changed; `generation` is of the
        policies from then on.

        Raises:
            AuditUnwritable: it cannot be written down.
        """
        record = self._record(None, act, "", "")
        record.policy, record.outcome, record.detail = generation, outcome, detail
        self._audit.write(record)

    def _decide(self, principal: Principal, act: Act, source: str) -> Decision:
        around = Circumstances(time.time(), source)
        asked = Request(principal, "administer", NO_PROFILE, "", act.area, {}, act.facts(), around)
        return self._door.policy.decide(asked)

    @staticmethod
    def _record(principal: Principal | None, act: Act, source: str, client: str) -> Record:
        of = f" of {act.owner}" if act.owner else ""
        return Record(
            audit.call_id(),
            audit.now(),
            principal.id if principal is not None else "",
            client,
            NO_PROFILE,
            METHOD,
            f"{act.item}{of}".strip()[:MAX_CHARS],
            server=act.server,
            item=f"{act.area}/{act.verb}"[:MAX_CHARS],
            who=principal,
            source=source,
        )


def _refusal(act: Act, decision: Decision) -> str:
    why = f"you may not {act.verb} in the area {act.area} of this gateway: {decision.reason}"
    if decision.ask is not None:
        return f"{why}, and nobody is asked about administration; let the policy permit or forbid it"
    rule = f'permit (principal, action == Action::"administer", resource == Area::{json.dumps(act.area)});'
    return f"{why}. To allow it, add to the policy {ADMINISTRATION}: {rule}"
