"""A minimal policy engine: what a profile names is allowed, everything else is denied.

Knows no arguments and no groups; a richer engine takes its place behind the same protocol."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from policies.decision import NO_PROFILE, Decision, Request


class AllowList:
    """Allows the items of the servers a profile names.

    `rules` maps profile name -> server id -> allowed tool names, None meaning all tools of that server. Prompts,
    resources and completions follow the server; tools also the list. Methods of extensions could do anything, so they
    are allowed only where all tools are. Models and agents are of no server: a profile has no say in them.
    """

    def __init__(self, rules: Mapping[str, Mapping[str, frozenset[str] | None]]) -> None:
        self._rules = {profile: dict(servers) for profile, servers in rules.items()}
        canonical = sorted(
            (profile, server, sorted(tools) if tools is not None else None)
            for profile, servers in self._rules.items()
            for server, tools in servers.items()
        )
        self.generation = hashlib.sha256(repr(canonical).encode()).hexdigest()[:16]

    def reads_context(self, request: Request) -> bool:
        return False

    def visible(self, requests: Sequence[Request]) -> list[bool]:
        return [self.decide(request).allowed for request in requests]

    def decide(self, request: Request) -> Decision:
        servers = self._rules.get(request.profile)
        if request.action == "administer":
            is_meant = request.profile == NO_PROFILE and not request.server
            return Decision(is_meant, (), "of no profile" if is_meant else "administration is of no profile or server")
        if request.action in ("use", "run"):
            if servers is None or request.server:
                return Decision(False, (), f"there is no profile {request.profile}, or it is named with a server")
            return Decision(True, (f"profile:{request.profile}",), "profiles select no models and no agents")
        if servers is None or request.server not in servers:
            return Decision(False, (), f"no rule allows server {request.server} in profile {request.profile}")
        tools = servers[request.server]
        rule = f"profile:{request.profile}:{request.server}"
        if tools is not None and request.action in ("call", "list") and request.item not in tools:
            return Decision(False, (), f"profile {request.profile} does not select this tool of {request.server}")
        if tools is not None and request.action == "extension":
            return Decision(False, (), f"profile {request.profile} selects tools of {request.server}")
        return Decision(True, (rule,), "allowed by profile")
