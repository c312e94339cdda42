"""Tables of expected decisions: YAML files that say what a policy must allow and deny, held against the policy.

    profile: research
    cases:
      - {tool: files/read, arguments: {path: /data/x}, expect: allow, by: own-folder}
      - {tool: files/read, principal: {id: ann, groups: [staff]}, arguments: {path: /etc/x}, expect: deny}

Knows files and requests; decides nothing itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from catalog.yamltext import parse_plain
from gateway.errors import SettingsError
from gateway.listings import Listing
from policies import NO_PROFILE, Action, CedarEngine, Circumstances, Decision, Facts, Principal, Request

MAX_CASES: Final = 10_000


class Who(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    id: str = "somebody"
    kind: Literal["loopback", "stdio", "key", "user", "client"] = "user"
    groups: frozenset[str] = frozenset()
    client: str = ""
    scopes: frozenset[str] | None = None
    strength: Literal["none", "key", "password", "multi"] = "none"


class Hints(msgspec.Struct, forbid_unknown_fields=True, frozen=True, rename="camel"):
    """In place of what the server says of its tool."""

    read_only: bool = False
    destructive: bool = True
    idempotent: bool = False
    open_world: bool = True


class Case(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One expectation. Exactly one of `tool`, `prompt`, `resource`, `method`, `model`, `agent` and `area` says
    what is asked for."""

    expect: Literal["allow", "ask", "deny", "hidden", "listed"]
    tool: str = ""
    prompt: str = ""
    resource: str = ""
    method: str = ""
    model: str = ""
    agent: str = ""
    area: str = ""
    verb: str = "reload"
    """What is done in the area."""
    principal: Who = Who()
    arguments: dict[str, Any] = {}
    at: datetime | None = None
    source: str = ""
    hints: Hints | None = None
    by: str = ""
    """The id of a policy that must have decided."""


class Table(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    cases: list[Case]
    profile: str = ""


class Verdict(msgspec.Struct, frozen=True):
    """How one case went; `problem` is empty if as expected."""

    case: Case
    decision: Decision
    problem: str


def read_table(path: Path) -> Table:
    """
    Raises:
        SettingsError: the file cannot be read, or is no such table.
    """
    try:
        table = msgspec.convert(parse_plain(path.read_text("utf-8")), Table)
    except OSError as exc:
        raise SettingsError(f"{path}: cannot be read: {exc.strerror}") from exc
    except (ValueError, msgspec.ValidationError) as exc:
        raise SettingsError(f"{path}: is no table of cases: {exc}; see docs/policy.md") from exc
    if not 0 < len(table.cases) <= MAX_CASES:
        raise SettingsError(f"{path}: holds {len(table.cases)} cases; 1 to {MAX_CASES} can be checked")
    for number, case in enumerate(table.cases, 1):
        bare = [text for text in (case.model, case.agent, case.area) if text]
        asked = [text for text in (case.tool, case.prompt, case.resource, case.method, *bare) if text]
        if len(asked) != 1 or ("/" not in asked[0] and not bare):
            raise SettingsError(
                f"{path}: case {number}: name one tool, prompt, resource or method, as server/name, or one model, "
                "agent or area"
            )
    return table


def check(
    table: Table,
    engine: CedarEngine,
    profile: str,
    listings: Mapping[str, Listing],
    categories: Mapping[str, tuple[str, ...]],
    models: Mapping[str, Facts],
) -> list[Verdict]:
    """Every case held against the engine."""
    return [_verdict(case, engine, _request(case, profile, listings, categories, models)) for case in table.cases]


def _request(
    case: Case,
    profile: str,
    listings: Mapping[str, Listing],
    categories: Mapping[str, tuple[str, ...]],
    models: Mapping[str, Facts],
) -> Request:
    who = Principal(**msgspec.structs.asdict(case.principal))
    around = Circumstances(case.at.timestamp() if case.at is not None else 0.0, case.source)
    if case.model:
        return Request(who, "use", profile, "", case.model, {}, models.get(case.model, Facts()), around)
    if case.agent:
        return Request(who, "run", profile, "", case.agent, {}, Facts(about={"model": ""}), around)
    if case.area:
        about: dict[str, str | bool] = {"verb": case.verb, "changes": case.verb not in ("list", "show")}
        return Request(who, "administer", NO_PROFILE, "", case.area, {}, Facts(about=about), around)
    action: Action = "call" if case.tool else "prompt" if case.prompt else "read" if case.resource else "extension"
    server, _, item = (case.tool or case.prompt or case.resource or case.method).partition("/")
    own = categories.get(server, ())
    listing = listings.get(server)
    facts = listing.facts(item, own) if listing is not None and case.tool else Facts(own)
    if case.hints is not None:
        facts = Facts(own, **msgspec.structs.asdict(case.hints), parameters=facts.parameters)
    return Request(who, action, profile, server, item, case.arguments, facts, around)


def _verdict(case: Case, engine: CedarEngine, request: Request) -> Verdict:
    if case.expect in ("hidden", "listed"):
        asked = Request(
            request.principal,
            "list" if request.action == "call" else request.action,
            request.profile,
            request.server,
            request.item,
            facts=request.facts,
        )
        (seen,) = engine.visible([asked])
        decision = Decision(seen, (), "")
        return Verdict(
            case, decision, "" if seen == (case.expect == "listed") else f"is {'listed' if seen else 'hidden'}"
        )
    decision = engine.decide(request)
    if decision.word != case.expect:
        said = {"allow": "is allowed", "ask": "is asked about", "deny": f"is denied: {decision.reason}"}
        return Verdict(case, decision, said[decision.word])
    if case.by and not any(id.partition(":")[2] == case.by for id in decision.policy_ids):
        return Verdict(case, decision, f"is decided by {', '.join(decision.policy_ids) or 'no policy'}")
    return Verdict(case, decision, "")
