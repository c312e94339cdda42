"""The vocabulary of policy: who asks, for what, and the answer.

Knows no engine and no tool."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Action = Literal["call", "list", "read", "prompt", "complete", "extension"]
"""`extension` is any other method of a server: a request or notification that only it and its clients understand."""


@dataclass(frozen=True, slots=True)
class Principal:
    """The authenticated caller. `kind` says how it was authenticated."""

    id: str
    kind: Literal["loopback", "stdio", "key", "user", "client"] = "loopback"
    """Reached a loopback listener, started us over stdio, holds an API key, signed in, or is an OAuth client on its own
    behalf."""
    groups: frozenset[str] = frozenset()
    client: str = ""
    """The OAuth client or API key that the caller acts through."""
    scopes: frozenset[str] | None = None
    """What the token was issued for; None where nothing limits it."""
    strength: Literal["none", "key", "password", "multi"] = "none"
    """How well the caller was authenticated: not at all, by a key, by a password, by more than one factor."""


@dataclass(frozen=True, slots=True)
class Request:
    """One thing somebody wants to do. `item` is a tool or prompt name, a resource URI, or an extension's method, as its
    server knows it."""

    principal: Principal
    action: Action
    profile: str
    server: str
    item: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer, with the ids of the rules that made it."""

    allowed: bool
    policy_ids: tuple[str, ...]
    reason: str


class PolicyEngine(Protocol):
    """Decides requests. Deterministic and without side effects; denies unless something explicitly allows."""

    @property
    def generation(self) -> str:
        """Changes whenever any answer may change: part of every cache key."""

    @property
    def reads_arguments(self) -> bool:
        """Whether any rule looks at arguments; if not, callers may cache decisions per item."""

    def decide(self, request: Request) -> Decision: ...
