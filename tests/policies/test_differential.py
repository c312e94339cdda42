"""The engine against a tiny evaluator: random policies, random requests, not one different answer."""

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import cedarpy
import pytest

from policies import Action, AllowList, CedarEngine, Facts, Known, PolicyError, Principal, Request, read_sets
from tests.policies import reference
from tests.policies.reference import Entity, Failure, World

N_SETS = 200
N_REQUESTS = 500
"""Of each set: 100,000 in all."""

PROFILES: Mapping[str, Mapping[str, frozenset[str] | None]] = {
    "work": {"files": None, "net": None},
    "home": {"files": frozenset({"read", "write"}), "net": None},
}
ARGUMENTS = {"path": "string", "mode": "string", "count": "integer", "force": "boolean", "labels": "array"}
SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        name: {"type": kind, **({"items": {"type": "string"}} if kind == "array" else {})}
        for name, kind in ARGUMENTS.items()
    },
}
TOOLS = ("read", "write", "remove", "a/../b")
KNOWN = Known(list(PROFILES), ["files", "net"], {s: dict.fromkeys(TOOLS, SCHEMA) for s in ("files", "net")})
PEOPLE = (
    Principal("ann", "user", frozenset({"staff", "admins"}), "cli", None, "multi"),
    Principal("bob", "user", frozenset({"staff"}), "app", frozenset({"tools"}), "password"),
    Principal('e"ve\n', "key", frozenset(), "", frozenset(), "key"),
)
ACTIONS: tuple[Action, ...] = ("call", "prompt", "read", "extension", "complete", "run", "administer")
KINDS = {"call": "Tool", "prompt": "Prompt", "complete": "Prompt", "read": "Resource", "extension": "Method"}
KINDS |= {"run": "Agent", "administer": "Area"}


# -- random policies ---------------------------------------------------------------------------


def a_policy(dice: random.Random) -> str:
    principal = dice.choice(
        ["principal", 'principal == User::"ann"', 'principal in Group::"staff"', "principal is User"]
    )
    action = dice.choice(
        [
            "action",
            'action == Action::"call"',
            'action in [Action::"call", Action::"read"]',
            'action == Action::"prompt"',
            'action in [Action::"run", Action::"administer"]',
        ]
    )
    resource = dice.choice(
        [
            "resource",
            "resource",
            'resource in Server::"files"',
            'resource in Profile::"work"',
            'resource == Tool::"files/write"',
            'resource == Tool::"files/a/../b"',
            "resource is Tool",
            'resource is Tool in Server::"net"',
            "resource is Resource",
            "resource is Agent",
            'resource == Agent::"write"',
            'resource == Area::"catalog"',
        ]
    )
    effect = dice.choice(["permit", "permit", "permit", "forbid", "ask"])
    conditions = "".join(
        f" {dice.choice(['when', 'when', 'unless'])} {{ {an_expression(dice, 2, effect)} }}"
        for _ in range(dice.choice([0, 1, 1, 2]))
    )
    head = '@effect("ask") permit' if effect == "ask" else effect
    return f"{head} ({principal}, {action}, {resource}){conditions};"


def an_expression(dice: random.Random, depth: int, effect: str) -> str:
    if depth and dice.random() < 0.6:
        left, right = (an_expression(dice, depth - 1, effect) for _ in "lr")
        return dice.choice(
            [f"({left}) && ({right})", f"({left}) || ({right})", f"!({left})", f"if ({left}) then ({right}) else false"]
        )
    number = dice.choice(["0", "3", "-1", "9223372036854775807"])
    tests = [
        f"(context.args has count && context.args.count {dice.choice(['<', '<=', '>', '>=', '==', '!='])} {number})",
        '(context.args has mode && ["r", "rw"].contains(context.args.mode))',
        '(context.args has mode && context.args.mode like "r*")',
        "(context.args has force && context.args.force)",
        '(context.args has labels && context.args.labels.containsAny(["x", "y"]))',
        '(context.args has labels && context.args.labels.containsAll(["x", "y"]))',
        '(context.path has path && context.path.path like "/data/*")',
        '(context.path has path && context.path.path == "/data/x")',
        'principal.strength == "multi"',
        'principal in [Group::"admins", Group::"nobody"]',
        '(principal has scopes && principal.scopes.contains("tools"))',
        '(resource is Agent && resource.model == "small")',
        "(resource is Area && resource.changes)",
        'resource.server == "files"',
        'resource.categories.contains("storage")',
        'principal.client like "c*i"',
    ]
    if effect != "permit":
        tests += ["(resource is Tool && resource.readOnly)", "(resource is Tool && resource.destructive)"]
    return dice.choice(tests)


def a_set(dice: random.Random) -> str:
    """Policies that the schema takes, so that what is compared is what a person could have loaded."""
    found: list[str] = []
    while len(found) < dice.randint(1, 7):
        text = a_policy(dice)
        try:
            read_sets({"x": [("x.cedar", text)]}, KNOWN)
        except PolicyError:
            continue
        found.append(text)
    return "\n".join(found)


# -- random requests ---------------------------------------------------------------------------

VALUES: tuple[Any, ...] = (
    "/data/x",
    "/data/../etc/x",
    "/data//./y",
    "/etc/x",
    "/",
    "r",
    "rw",
    "",
    0,
    3,
    3.0,
    2.5,
    -1,
    2**63 - 1,
    2**63,
    True,
    False,
    None,
    ["x"],
    ["x", "y", "x"],
    [],
    [1],
    ["x", 1],
    {"a": "x"},
    {"__entity": {"type": "Group", "id": "admins"}},
    {"__extn": {"fn": "decimal", "arg": "1.0"}},
)
FITTING = {
    "path": VALUES[:5],
    "mode": VALUES[5:8],
    "count": VALUES[8:11],
    "force": (True, False),
    "labels": (["x"], ["x", "y", "x"], []),
}
FACTS = tuple(
    Facts(categories=categories, read_only=read_only, destructive=destructive, parameters=SCHEMA)
    for categories in ((), ("storage",), ("network", "storage"))
    for read_only in (True, False)
    for destructive in (True, False)
)


def a_request(dice: random.Random) -> Request:
    names = [name for name in ARGUMENTS if dice.random() < 0.6]
    given = {name: dice.choice(FITTING[name] if dice.random() < 0.8 else VALUES) for name in names}
    profile, server = dice.choice(["work", "work", "home", "none"]), dice.choice(["files", "net", "other"])
    action = dice.choice(["call"] * 6 + [*ACTIONS])
    item = f"note:///{dice.randint(0, 3)}" if action == "read" else dice.choice(TOOLS)
    if action == "run":
        facts = Facts(about={"model": dice.choice(["small", "large"])})
        return Request(dice.choice(PEOPLE), action, profile, dice.choice(["", "", "files"]), item, {}, facts)
    if action == "administer":
        facts = Facts(about={"verb": "show", "changes": dice.random() < 0.5})
        where = dice.choice(["", "", "", "work"])
        return Request(dice.choice(PEOPLE), action, where, "", dice.choice(["catalog", "secrets"]), {}, facts)
    return Request(dice.choice(PEOPLE), action, profile, server, item, given, dice.choice(FACTS))


# -- the other opinion -------------------------------------------------------------------------


def expected(policies: list[Mapping[str, Any]], request: Request) -> str:
    if request.action in ("run", "administer"):
        if request.server or (request.profile in PROFILES) != (request.action == "run"):
            return "deny"
        try:
            return reference.word(policies, world(policies, request))
        except Failure:
            return "deny"
    tools = PROFILES.get(request.profile, {}).get(request.server, frozenset[str]())
    if tools is not None and (
        request.server not in PROFILES.get(request.profile, {})
        or (request.action == "call" and request.item not in tools)
        or request.action == "extension"
    ):
        return "deny"
    try:
        return reference.word(policies, world(policies, request))
    except Failure:
        return "deny"


def world(policies: list[Mapping[str, Any]], request: Request) -> World:
    who = Entity("User", request.principal.id)
    of_a_server = request.action not in ("run", "administer")
    what = Entity(KINDS[request.action], f"{request.server}/{request.item}" if of_a_server else request.item)
    server, profile = Entity("Server", request.server), Entity("Profile", request.profile)
    person: dict[str, Any] = {"strength": request.principal.strength, "client": request.principal.client}
    if request.principal.scopes is not None:
        person["scopes"] = request.principal.scopes
    facts = request.facts
    thing = {
        "server": request.server,
        "categories": facts.categories,
        "readOnly": facts.read_only,
        "destructive": facts.destructive and not facts.read_only,
    }
    around = {server, profile}
    if not of_a_server:
        thing = {"server": request.server, "categories": facts.categories, **facts.about}
        around = {profile} if request.action == "run" else set()
    bare = World(
        who,
        Entity("Action", request.action),
        what,
        {who: person, what: thing},
        {
            who: frozenset(Entity("Group", group) for group in request.principal.groups),
            what: frozenset(around),
        },
        {},
    )
    context: dict[str, dict[str, Any]] = {"args": {}, "path": {}, "host": {}, "ip": {}}
    for policy in policies:
        if all(
            reference.matches(policy[part], entity, bare)
            for part, entity in (("action", bare.action), ("resource", what))
        ):
            for view, name in reads(policy["conditions"]):
                if (value := request.arguments.get(name)) is not None:
                    context[view][name] = reference.typed(value, ARGUMENTS[name])
                    if view == "path":
                        context[view][name] = reference.resolved(value)
                        narrows = policy["effect"] == "forbid" or reference.asks(policy)
                        if narrows and not context[view][name].startswith("/"):
                            raise Failure
    return replace(bare, context=context)


def reads(node: Any) -> Iterator[tuple[str, str]]:
    if isinstance(node, list):
        for one in node:
            yield from reads(one)
    elif isinstance(node, dict):
        match node:
            case {".": {"left": {".": {"left": {"Var": "context"}, "attr": view}}, "attr": name}} | {
                "has": {"left": {".": {"left": {"Var": "context"}, "attr": view}}, "attr": name}
            }:
                yield view, name
            case _:
                yield from reads(list(node.values()))


@pytest.mark.sec("SEC-105")
def test_a_hundred_thousand_random_requests_are_decided_as_the_tiny_evaluator_decides_them() -> None:
    dice = random.Random(20261125)
    n_allowed = n_asked = n_reading = 0
    for _ in range(N_SETS):
        text = a_set(dice)
        sets = read_sets({"mine": [("mine.cedar", text)]}, KNOWN).sets
        engine = CedarEngine(AllowList(PROFILES), sets, dict.fromkeys([*PROFILES, ""], "mine"))
        policies = list(json.loads(cedarpy.policies_to_json_str(text))["staticPolicies"].values())
        for _ in range(N_REQUESTS):
            request = a_request(dice)
            decision = engine.decide(request)
            allowed = decision.allowed
            assert decision.word == expected(policies, request), (text, request)
            assert not (allowed and decision.ask)
            n_allowed += allowed
            n_asked += decision.ask is not None
            n_reading += engine.reads_context(request)
            if decision.word != "deny" and dice.random() < 0.2:
                # What may be called, if only with a person's approval, is listed, and a decision that may be kept is
                # the same without arguments.
                shown = replace(request, action="list") if request.action == "call" else request
                assert engine.visible([shown]) == [True], (text, request)
    total = N_SETS * N_REQUESTS
    assert 0.05 * total < n_allowed < 0.6 * total, n_allowed
    assert n_asked > 0.02 * total, n_asked
    assert n_reading > 0.1 * total


def test_what_no_policy_reads_does_not_change_a_decision() -> None:
    dice = random.Random(7)
    for _ in range(20):
        sets = read_sets({"mine": [("mine.cedar", a_set(dice))]}, KNOWN).sets
        engine = CedarEngine(AllowList(PROFILES), sets, dict.fromkeys(PROFILES, "mine"))
        for _ in range(50):
            request = a_request(dice)
            if not engine.reads_context(request):
                assert engine.decide(request) == engine.decide(replace(request, arguments={}))
