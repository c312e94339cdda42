"""Who may do what: requests, decisions and the engines that decide.

Pure: no input, no output, no clock. Same request, same answer."""

from policies.allowlist import AllowList
from policies.cedar import CedarEngine
from policies.compare import Change, Thing, compare
from policies.decision import (
    NO_PROFILE,
    Action,
    Circumstances,
    Decision,
    Facts,
    PolicyEngine,
    Principal,
    Request,
)
from policies.replay import Met, Replay, Verdict, Word
from policies.rule import PolicyError
from policies.ruleset import EVERYWHERE, RuleSet, RuleSets, read_sets
from policies.vocabulary import AREAS, Known

__all__ = [
    "AREAS",
    "EVERYWHERE",
    "NO_PROFILE",
    "Action",
    "AllowList",
    "CedarEngine",
    "Change",
    "Circumstances",
    "Decision",
    "Facts",
    "Known",
    "Met",
    "PolicyEngine",
    "PolicyError",
    "Principal",
    "Replay",
    "Request",
    "RuleSet",
    "RuleSets",
    "Thing",
    "Verdict",
    "Word",
    "compare",
    "read_sets",
]
