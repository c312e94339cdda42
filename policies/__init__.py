"""Who may do what: requests, decisions and the engines that decide.

Pure: no input, no output, no clock. Same request, same answer."""

from policies.allowlist import AllowList
from policies.decision import Action, Decision, PolicyEngine, Principal, Request

__all__ = ["Action", "AllowList", "Decision", "PolicyEngine", "Principal", "Request"]
