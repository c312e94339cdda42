"""Recorded calls held against other policies: what would have been allowed, asked about or denied.

Knows audit records and listings; what a policy means is for the policies room.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from gateway.agentuse import METHOD as RUN
from gateway.hearing import SUBSCRIBE
from gateway.listings import Listing
from gateway.modeluse import METHOD as USE
from gateway.routes import ROUTES
from policies import Action, Circumstances, Facts, Principal, Replay, Request, Verdict, Word

ACTIONS: Final[Mapping[str, Action]] = {
    **{method: route.action for method, route in ROUTES.items()},
    SUBSCRIBE: "read",
    USE: "use",
    RUN: "run",
}
MAX_EXAMPLES: Final = 3


@dataclass
class Group:
    """The calls of one principal to one thing."""

    principal: str
    action: str
    item: str
    counts: dict[Verdict, int] = field(default_factory=lambda: {"same": 0, "wider": 0, "narrower": 0, "unclear": 0})
    examples: dict[Verdict, list[str]] = field(default_factory=dict)
    """Ids of calls that changed."""
    now: list[Word] = field(default_factory=list)
    """Every answer that a call which is not the same may meet now."""
    policies: list[str] = field(default_factory=list)
    """What decides those now."""
    depends: list[str] = field(default_factory=list)
    """What was not recorded, and the unclear ones depend on."""


@dataclass
class Outcome:
    """What came of a replay."""

    groups: list[Group]
    calls: int
    passed_over: int
    """Calls of the time that say nothing here: of names that nobody knew, of extensions and of tasks."""
    redefined: int
    """Calls of tools that are not listed as they were then: what they say of themselves now was taken."""

    def count(self, verdict: Verdict) -> int:
        return sum(group.counts[verdict] for group in self.groups)


def replay(
    records: Iterable[Mapping[str, Any]],
    asked: Replay,
    profile: str,
    listings: Mapping[str, Listing],
    categories: Mapping[str, tuple[str, ...]],
    models: Mapping[str, Facts],
) -> Outcome:
    """Every call of the profile among these records, asked about anew."""
    several = list(records)
    approvals = {record["call"] for record in several if record.get("event") == "approval"}
    groups: dict[tuple[str, str, str], Group] = {}
    outcome = Outcome([], 0, 0, 0)
    for record in several:
        if "event" in record or record["profile"] != profile:
            continue
        action = ACTIONS.get(record["method"])
        if action is None or (not record["server"] and action not in ("use", "run")) or not record.get("policy"):
            outcome.passed_over += 1
            continue
        outcome.calls += 1
        server, item = record["server"], record["item"]
        listing = listings.get(server)
        own = categories.get(server, ())
        is_tool = action == "call"
        if (
            is_tool
            and record.get("tool_digest")
            and (listing is None or listing.tool_digest(item) != record["tool_digest"])
        ):
            outcome.redefined += 1
        facts = listing.facts(item, own) if listing is not None and is_tool else Facts(own)
        if action == "use":
            facts = models.get(item, facts)
        elif action == "run":
            facts = Facts(about={"model": record["name"]})
        who = record.get("who")
        principal = msgspec.convert(who, Principal) if who is not None else Principal(record["principal"], "user")
        around = Circumstances(record["at"], record.get("source", ""))
        request = Request(principal, action, profile, server, item, {}, facts, around)
        met = asked.meet(request, principal_known=who is not None)
        place = request.place
        verdict = met.against(_then(record, approvals))
        group = groups.setdefault((record["principal"], action, place), Group(record["principal"], action, place))
        group.counts[verdict] += 1
        if verdict != "same":
            examples = group.examples.setdefault(verdict, [])
            if len(examples) < MAX_EXAMPLES:
                examples.append(record["call"])
            group.now = sorted({*group.now, *met.words})
            group.policies = list(dict.fromkeys([*group.policies, *met.policies]))
            group.depends = sorted({*group.depends, *met.depends})
    outcome.groups = sorted(groups.values(), key=lambda one: (one.principal, one.item, one.action))
    return outcome


def _then(record: Mapping[str, Any], approvals: set[str]) -> Word:
    """How policy answered the call. Of one that a person was asked about, the answer is that they were asked; one
    over a limit was allowed before that was looked at."""
    if record["call"] in approvals:
        return "ask"
    return "deny" if record["outcome"] in ("denied", "unknown") else "allow"
