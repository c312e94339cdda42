"""What changes from one set of policies to another: both asked about every class of principals, every item, and
arguments on each side of everything the policies compare with.

Knows engines and rules. The classes and arguments are taken from the policies themselves: two requests that no policy
tells apart are asked about once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from policies.cedar import CedarEngine
from policies.decision import Action, Circumstances, Facts, Principal, Request, place_of
from policies.rule import Rule, chain, entities, operators

MAX_COMBINATIONS: Final = 512
"""Of arguments of one tool; beyond it each argument varies alone."""
ORDER: Final = ("deny", "ask", "allow")
"""What is allowed by a person only is less than what is allowed, and more than nothing."""
OTHER: Final = "something else"
_ABSENT: Final = object()
_TIMES: Final = (1_795_600_800.0, 1_795_644_000.0, 1_795_860_000.0)
"""A Wednesday at 10 and at 22, a Saturday at 10."""


@dataclass(frozen=True, slots=True)
class Thing:
    """Something that can be asked for."""

    action: Action
    server: str
    item: str
    facts: Facts


@dataclass(frozen=True, slots=True)
class Change:
    """A request that is answered otherwise now."""

    principal: str
    action: Action
    item: str
    arguments: Mapping[str, Any]
    circumstances: Circumstances
    widens: bool
    policies: tuple[str, ...]
    """What decides it now."""
    now: Literal["allow", "ask", "deny"]


def compare(
    old: CedarEngine, new: CedarEngine, rules: Sequence[Rule], profile: str, things: Iterable[Thing]
) -> list[Change]:
    """Every difference, those that allow more first. `rules` are those of both sides."""
    classes = list(people(rules))
    circumstances = list(_circumstances(rules))
    changes = []
    for thing in things:
        for (words, who), arguments, around in itertools.product(
            classes, arguments_beside(rules, thing), circumstances
        ):
            asked = Request(who, thing.action, profile, thing.server, thing.item, arguments, thing.facts, around)
            before, after = old.decide(asked), new.decide(asked)
            if before.word != after.word:
                place = place_of(thing.server, thing.item)
                widens = ORDER.index(after.word) > ORDER.index(before.word)
                changes.append(
                    Change(words, thing.action, place, arguments, around, widens, after.policy_ids, after.word)
                )
    return sorted(changes, key=lambda change: not change.widens)


# -- who asks ----------------------------------------------------------------------------------


def people(rules: Sequence[Rule]) -> Iterator[tuple[str, Principal]]:
    """Somebody nobody names, every named user, a member of each named group and one of all; each as strongly
    authenticated, of each kind and with each scope as the policies ask for."""
    named = [entity for rule in rules for entity in entities(rule.tree)]
    users = sorted({entity["id"] for entity in named if entity["type"] == "User"})
    groups = sorted({entity["id"] for entity in named if entity["type"] == "Group"})
    some = [("somebody", Principal("somebody", "user"))]
    some += [(f"user {id}", Principal(id, "user")) for id in users]
    some += [(f"a member of {id}", Principal("somebody", "user", frozenset({id}))) for id in groups]
    if len(groups) > 1:
        some.append(("a member of all groups", Principal("somebody", "user", frozenset(groups))))
    literals = _literals(rules)
    for words, who in some:
        for more in itertools.product(*(_variants(rules, literals, member) for member in _VARIED)):
            said = [f"{member} {value}" for member, value in zip(_VARIED, more, strict=True) if value is not _ABSENT]
            changed = {member: value for member, value in zip(_VARIED, more, strict=True) if value is not _ABSENT}
            if "scopes" in changed:
                changed["scopes"] = frozenset({changed["scopes"]}) if changed["scopes"] else frozenset()
            yield ", ".join([words, *said]), replace(who, **changed)


_VARIED: Final = ("strength", "kind", "client", "scopes")


def _variants(rules: Sequence[Rule], literals: Mapping[tuple[str, ...], list[Any]], member: str) -> Sequence[Any]:
    if not any(member in rule.asks_of_principal for rule in rules):
        return [_ABSENT]
    match member:
        case "strength" | "kind":
            return _CHOICES[member]
        case "scopes":
            return [_ABSENT, "", *_texts(literals.get(("principal", member), []))]
    return ["", *_texts(literals.get(("principal", member), []))]


_CHOICES: Final[Mapping[str, Sequence[str]]] = {
    "strength": ("none", "key", "password", "multi"),
    "kind": ("loopback", "stdio", "key", "user", "client"),
}


def _texts(values: Iterable[Any]) -> list[str]:
    return sorted({value for value in values if isinstance(value, str)})


def _circumstances(rules: Sequence[Rule]) -> Iterator[Circumstances]:
    read = {place[0] for rule in rules for place in rule.reads if len(place) == 1}
    times = _TIMES if read & {"now", "hour", "weekday"} else _TIMES[:1]
    for at, source in itertools.product(times, sources(rules)):
        yield Circumstances(at, source)


def sources(rules: Sequence[Rule]) -> list[str]:
    """No address, and where a policy reads it one of nobody's and each that it names."""
    if not any(place == ("source",) for rule in rules for place in rule.reads):
        return [""]
    return ["", "192.0.2.1", *_texts(_literals(rules).get(("context", "source"), []))]


# -- with which arguments ----------------------------------------------------------------------


def arguments_beside(rules: Sequence[Rule], thing: Thing) -> list[dict[str, Any]]:
    """None, and values on each side of what the policies compare with."""
    literals = _literals(rules)
    values: dict[str, list[Any]] = {}
    for rule in rules:
        for place in rule.reads:
            if len(place) == 2 and (rule.only in ("", place_of(thing.server, thing.item))):
                found = values.setdefault(place[1], [_ABSENT, OTHER])
                found += [one for one in literals.get(("context", *place), []) if one not in found]
    names = sorted(values)
    size = 1
    for name in names:
        size *= len(values[name])
    if size <= MAX_COMBINATIONS:
        several: Iterable[tuple[Any, ...]] = itertools.product(*(values[name] for name in names))
    else:
        several = [
            tuple(one if name == varied else _ABSENT for name in names) for varied in names for one in values[varied]
        ]
    return [{n: v for n, v in zip(names, one, strict=True) if v is not _ABSENT} for one in several]


def _literals(rules: Sequence[Rule]) -> dict[tuple[str, ...], list[Any]]:
    """What each member of principal and context is compared with, and values just beside it."""
    found: dict[tuple[str, ...], list[Any]] = {}
    for rule in rules:
        for operator, operands in operators(rule.tree["conditions"]):
            for names, values in _compared(operator, operands):
                found.setdefault(names, []).extend(values)
    return found


def _compared(operator: str, operands: Any) -> Iterator[tuple[tuple[str, ...], list[Any]]]:
    if isinstance(operands, list):  # a method of a decimal or an address
        if len(operands) == 2 and (names := chain(operands[0])):
            yield tuple(names), list(_beside(_extension(operands[1])))
        return
    left, right = operands.get("left"), operands.get("right")
    if operator == "like" and (names := chain(left)):
        text = "".join("x" if part == "Wildcard" else part["Literal"] for part in operands["pattern"])
        yield tuple(names), [text]
        return
    for one, other in ((left, right), (right, left)):
        if names := chain(one):
            given = _plain(other)
            wanted = operator in ("contains", "containsAll", "containsAny") and one is left
            several = given if isinstance(given, list) else [given]
            if wanted and names[0] == "context":
                yield tuple(names), [several, *([value] for value in several)]
            else:
                yield tuple(names), [near for value in several for near in _beside(value)]


def _plain(node: Any) -> Any:
    if isinstance(node, Mapping) and "Value" in node and not isinstance(node["Value"], Mapping):
        return node["Value"]
    if isinstance(node, Mapping) and isinstance(node.get("Set"), list):
        return [value for one in node["Set"] if (value := _plain(one)) is not None]
    return None


def _extension(node: Any) -> Any:
    """The value in `decimal("1.5")` or `ip("10.0.0.0/8")`, as an argument would say it."""
    if not isinstance(node, Mapping):
        return None
    for name in ("decimal", "ip"):
        inner = node.get(name)
        text = _plain(inner[0]) if isinstance(inner, list) and inner else None
        if isinstance(text, str):
            return float(text) if name == "decimal" else text.partition("/")[0]
    return None


def _beside(value: Any) -> Iterator[Any]:
    match value:
        case bool():
            yield from (True, False)
        case int() | float():
            yield from (value - 1, value, value + 1)
        case str():
            yield value
