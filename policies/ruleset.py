"""Named sets of policies, put together from their files and checked as a whole.

Knows texts and names; who reads the files and which profile has which set is not its business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from policies.rule import PolicyError, Rule, read_rules
from policies.vocabulary import Known, check

EVERYWHERE: Final = "everywhere"
"""The set whose policies hold in every profile, besides its own."""
MAX_RULES: Final = 5000

Texts = Mapping[str, Sequence[tuple[str, str]]]
"""Name of a set to its files: what to call each in messages, and its text."""


@dataclass(frozen=True)
class RuleSet:
    """A named set of policies, with those that hold in every profile."""

    name: str
    rules: tuple[Rule, ...]


@dataclass(frozen=True)
class RuleSets:
    """All sets, and the places of rules whose arguments could not be checked yet."""

    sets: Mapping[str, RuleSet]
    unchecked: tuple[str, ...] = ()


def read_sets(texts: Texts, known: Known) -> RuleSets:
    """Every set with what holds everywhere.

    Raises:
        PolicyError: with every problem of every set, one a line.
    """
    problems: list[str] = []
    unchecked: list[str] = []
    own: dict[str, list[Rule]] = {}
    for name, files in sorted(texts.items()):
        own[name] = rules = []
        for file, text in files:
            try:
                found = read_rules(file, text)
                unchecked += check(found, known)
                rules += found
            except PolicyError as exc:
                problems.append(str(exc))
    common = own.pop(EVERYWHERE, [])
    sets = {name: RuleSet(name, (*rules, *common)) for name, rules in own.items()}
    for one in sets.values():
        if len(one.rules) > MAX_RULES:
            problems.append(f"the policy {one.name} has more than {MAX_RULES} rules; split it")
        seen: dict[str, Rule] = {}
        for rule in one.rules:
            if (other := seen.setdefault(rule.id, rule)) is not rule:
                problems.append(f"{rule.place}: has the id {rule.id} of {other.place}; give it one of its own")
    if problems:
        raise PolicyError("\n".join(dict.fromkeys(problems)))
    return RuleSets(sets, tuple(unchecked))
