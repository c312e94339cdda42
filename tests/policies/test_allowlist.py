"""The allow-list: what a profile names is allowed, everything else denied, the same way every time."""

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies import Action, AllowList, PolicyEngine, Principal, Request

RULES = {"work": {"files": None, "git": frozenset({"log", "diff"}), "none": frozenset[str]()}, "empty": {}}
ACTIONS: tuple[Action, ...] = get_args(Action)

words = st.sampled_from(["work", "empty", "files", "git", "none", "log", "diff", "", "*", "WORK", "work ", "push"])


def ask(profile: str, server: str, item: str, action: Action = "call", who: str = "local") -> bool:
    return AllowList(RULES).decide(Request(Principal(who), action, profile, server, item)).allowed


@pytest.mark.parametrize(
    ("profile", "server", "item", "allowed"),
    [
        ("work", "files", "anything", True),
        ("work", "git", "log", True),
        ("work", "git", "push", False),
        ("work", "git", "LOG", False),
        ("work", "git", "log ", False),
        ("work", "none", "log", False),
        ("work", "other", "log", False),
        ("work", "", "log", False),
        ("empty", "files", "x", False),
        ("absent", "files", "x", False),
        ("", "", "", False),
    ],
)
def test_only_what_the_profile_names_may_be_called_and_seen(
    profile: str, server: str, item: str, allowed: bool
) -> None:
    assert ask(profile, server, item, "call") is allowed
    assert ask(profile, server, item, "list") is allowed


@pytest.mark.parametrize("action", ["read", "prompt", "complete"])
def test_prompts_and_resources_follow_their_server(action: Action) -> None:
    assert ask("work", "git", "anything", action)
    assert not ask("work", "other", "anything", action)


def reference(request: Request) -> bool:
    """The rule in one sentence, written once more."""
    if request.action == "use":
        return request.profile in RULES and not request.server
    tools = RULES.get(request.profile, {}).get(request.server, frozenset())
    if request.server not in RULES.get(request.profile, {}):
        return False
    if tools is not None and request.action == "extension":
        return False
    return tools is None or request.action not in ("call", "list") or request.item in tools


@given(words, words, words, st.sampled_from(ACTIONS), st.text(max_size=3), st.dictionaries(words, words))
def test_it_decides_as_a_tiny_reference_does_whoever_asks_with_whatever_arguments(
    profile: str, server: str, item: str, action: Action, who: str, arguments: dict[str, str]
) -> None:
    request = Request(Principal(who), action, profile, server, item, arguments)
    engine: PolicyEngine = AllowList(RULES)
    decision = engine.decide(request)
    assert decision.allowed is reference(request)
    assert decision == engine.decide(request)
    assert decision.reason
    assert bool(decision.policy_ids) is decision.allowed


def test_what_is_listed_is_exactly_what_may_be_called() -> None:
    for profile in ("work", "empty", "absent"):
        for server in ("files", "git", "none", "other"):
            for item in ("log", "push", ""):
                assert ask(profile, server, item, "list") is ask(profile, server, item, "call")


def test_the_generation_changes_exactly_when_the_rules_do() -> None:
    same = {"empty": {}, "work": {"none": frozenset[str](), "git": frozenset({"diff", "log"}), "files": None}}
    assert AllowList(RULES).generation == AllowList(same).generation
    changes = [
        {},
        {**RULES, "work": {**RULES["work"], "git": None}},
        {**RULES, "work": {**RULES["work"], "git": frozenset({"log"})}},
        {**RULES, "work": {**RULES["work"], "none": None}},
        {**RULES, "empty": {"files": None}},
    ]
    generations = {AllowList(rules).generation for rules in changes}
    assert len(generations) == len(changes)
    assert AllowList(RULES).generation not in generations


def test_later_changes_to_the_given_rules_change_nothing() -> None:
    rules: dict[str, dict[str, frozenset[str] | None]] = {"work": {"files": None}}
    engine = AllowList(rules)
    rules["work"]["git"] = None
    assert not engine.decide(Request(Principal("x"), "call", "work", "git", "log")).allowed
