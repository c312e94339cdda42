"""Policies that ask a person: what their annotations mean, and what they are worth beside others."""

import pytest

from policies import AllowList, CedarEngine, Decision, Facts, Known, PolicyError, Principal, Request, read_sets
from policies.asking import Ask

KNOWN = Known(["all"], ["a"], {"a": {"read": {"type": "object", "properties": {"path": {"type": "string"}}}}})
ALL = "permit (principal, action, resource);"
ASK = '@effect("ask") permit (principal, action == Action::"call", resource);'


def engine(text: str) -> CedarEngine:
    return CedarEngine(AllowList({"all": {"a": None}}), read_sets({"x": [("x", text)]}, KNOWN).sets, {"all": "x"})


def decide(text: str, item: str = "read", *, read_only: bool = False, **arguments: object) -> Decision:
    facts = Facts(read_only=read_only, parameters=KNOWN.tools["a"]["read"])
    return engine(text).decide(Request(Principal("ann"), "call", "all", "a", item, arguments, facts))


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (ASK, "ask"),
        (ALL + ASK, "ask"),
        (ASK + ALL, "ask"),
        (ASK + "forbid (principal, action, resource);", "deny"),
        (ALL + ASK + 'forbid (principal, action, resource) when { resource.server == "a" };', "deny"),
        (ALL + '@effect("ask") permit (principal, action == Action::"read", resource);', "allow"),
        (ALL + '@effect("ask") permit (principal == User::"bob", action, resource);', "allow"),
        (ALL + '@effect("ask") permit (principal, action, resource) when { context.hour > 30 };', "allow"),
    ],
)
def test_any_policy_that_asks_holds_the_call_and_any_forbid_denies_it(text: str, word: str) -> None:
    decision = decide(text)
    assert decision.word == word
    assert (decision.ask is not None) is (word == "ask")
    assert not (decision.allowed and decision.ask), "whoever looks only at `allowed` denies"


@pytest.mark.sec("SEC-085")
def test_what_a_tool_says_of_itself_never_permits_but_may_spare_a_question() -> None:
    text = (
        ALL
        + '@effect("ask") permit (principal, action == Action::"call", resource is Tool) unless {resource.readOnly};'
    )
    assert decide(text).word == "ask"
    assert decide(text, read_only=True).word == "allow"
    with pytest.raises(PolicyError, match=r"permits by resource\.readOnly"):
        engine('permit (principal, action == Action::"call", resource is Tool) when { resource.readOnly };')


def test_a_path_that_could_evade_the_question_denies() -> None:
    text = ALL + (
        '@effect("ask") permit (principal, action == Action::"call", resource == Tool::"a/read") '
        'when { context.path has path && context.path.path like "/etc/*" };'
    )
    assert decide(text, path="/etc/x").word == "ask"
    assert decide(text, path="/tmp/../etc/x").word == "ask"
    assert decide(text, path="/tmp/x").word == "allow"
    assert decide(text, path="../etc/x").word == "deny"
    assert decide(text, path=["/etc/x"]).word == "deny"


def test_annotations_say_who_for_how_long_and_how_often() -> None:
    text = (
        '@effect("ask") @approver("self, group:ops") @wait("90s") @remember("10m") @reason("it writes") '
        "permit (principal, action, resource);"
    )
    assert decide(text).ask == Ask(frozenset({"self", "group:ops"}), 90, 600, ("it writes",))
    assert decide(ASK).ask == Ask()
    both = text + '@effect("ask") @approver("group:ops") @wait("1h") permit (principal, action, resource);'
    assert decide(both).ask == Ask(frozenset({"group:ops"}), 90, 0, ("it writes",)), "good for both, or for nobody"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('@effect("ask") forbid (principal, action, resource);', "cannot allow what is forbidden"),
        ('@effect("permit") permit (principal, action, resource);', "means nothing"),
        ('@approver("self") permit (principal, action, resource);', 'without @effect\\("ask"\\)'),
        ('@effect("ask") @approver("anybody") permit (principal, action, resource);', "write self, administrators"),
        ('@effect("ask") @wait("2h") permit (principal, action, resource);', "up to 60m"),
        ('@effect("ask") @wait("0s") permit (principal, action, resource);', "write a time"),
        ('@effect("ask") @remember permit (principal, action, resource);', "write a time"),
        ('@effect("ask") @remember("2d") permit (principal, action, resource);', "write a time"),
    ],
)
def test_annotations_that_mean_nothing_are_refused(text: str, problem: str) -> None:
    with pytest.raises(PolicyError, match=problem):
        engine(text)


def test_a_tool_that_is_asked_about_is_listed() -> None:
    one = engine(ASK)
    assert one.visible([Request(Principal("ann"), "list", "all", "a", "read")]) == [True]
    assert not one.reads_context(Request(Principal("ann"), "call", "all", "a", "read"))
