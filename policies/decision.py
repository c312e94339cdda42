"""The vocabulary of policy: who asks, for what, and the answer.

Knows no engine and no tool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

from policies.asking import Ask

Action = Literal["call", "list", "read", "prompt", "complete", "extension", "use", "run", "administer"]
"""`extension` is any other method of a server: a request or notification that only it and its clients understand. `use`
is of a language model and `run` of an agent, which belong to no server; `administer` is of the gateway itself, and in
no profile."""
NO_PROFILE: Final = ""
"""Where what belongs to no profile is decided: by the set of policies that is chosen for this name."""


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
class Facts:
    """What is known of an item besides its name: the categories of its server, what a tool says of itself (the defaults
    are those of the protocol for a tool that says nothing), and the JSON schema of its arguments; the licence and size
    of a model."""

    categories: tuple[str, ...] = ()
    read_only: bool = False
    destructive: bool = True
    idempotent: bool = False
    open_world: bool = True
    parameters: Mapping[str, Any] = field(default_factory=dict, hash=False)
    license: str = ""
    size_bytes: int = 0
    about: Mapping[str, str | bool] = field(default_factory=dict, hash=False)
    """What is said of an agent's run or of an act of administration: members of the resource, by their names."""


@dataclass(frozen=True, slots=True)
class Circumstances:
    """When and from where a request comes. `at` is seconds since the epoch, `source` the caller's address, if any."""

    at: float = 0.0
    source: str = ""


NO_FACTS: Final = Facts()
ANY_TIME: Final = Circumstances()


@dataclass(frozen=True, slots=True)
class Request:
    """One thing somebody wants to do. `item` is a tool or prompt name, a resource URI, or an extension's method, as its
    server knows it; or the name of a model, an agent or an area of administration, which have no server."""

    principal: Principal
    action: Action
    profile: str
    server: str
    item: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    facts: Facts = NO_FACTS
    circumstances: Circumstances = ANY_TIME

    @property
    def place(self) -> str:
        """What policies call it."""
        return place_of(self.server, self.item)


def place_of(server: str, item: str) -> str:
    """What policies call an item of a server, or what has none."""
    return f"{server}/{item}" if server else item


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer, with the ids of the rules that made it."""

    allowed: bool
    policy_ids: tuple[str, ...]
    reason: str
    ask: Ask | None = None
    """Set where a person may still allow it. It is not allowed until then: whoever cannot ask denies."""

    @property
    def word(self) -> Literal["allow", "ask", "deny"]:
        return "allow" if self.allowed else "deny" if self.ask is None else "ask"


class PolicyEngine(Protocol):
    """Decides requests. Deterministic and without side effects; denies unless something explicitly allows."""

    @property
    def generation(self) -> str:
        """Changes whenever any answer may change: part of every cache key."""

    def reads_context(self, request: Request) -> bool:
        """Whether the decision may differ with arguments, time or address; if not, callers may cache it for
        the item and its facts."""

    def decide(self, request: Request) -> Decision:
        """The answer. `list` means: could a call be allowed, whatever its arguments and circumstances?"""

    def visible(self, requests: Sequence[Request]) -> list[bool]:
        """Whether each could be allowed, whatever its arguments and circumstances."""
