"""What a policy with `@effect("ask")` wants of the person who decides: who that may be, for how long it is waited, and
how long the answer is good.

Knows annotations; not who is asked or how.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

SELF: Final = "self"
ADMINISTRATORS: Final = "administrators"
GROUP: Final = "group:"
ANNOTATIONS: Final = frozenset({"effect", "approver", "wait", "remember"})
DEFAULT_WAIT_S: Final = 300
MAX_WAIT_S: Final = 3600
MAX_REMEMBER_S: Final = 86_400
_SPAN: Final = re.compile(r"([1-9][0-9]{0,4})([smh])")
_SECONDS: Final[Mapping[str, int]] = {"s": 1, "m": 60, "h": 3600}
_GROUP_NAME: Final = re.compile(r"[^\s,]{1,128}")


@dataclass(frozen=True, slots=True)
class Ask:
    """A call that a person decides. `approvers` may do so besides administrators: `self` is whoever calls."""

    approvers: frozenset[str] = frozenset()
    wait_s: int = DEFAULT_WAIT_S
    remember_s: int = 0
    """How long a yes is good for the very same call; 0 for once."""
    reasons: tuple[str, ...] = ()


def read(annotations: Mapping[str, str], effect: str) -> Ask | None:
    """What the annotations of one policy say; None if it does not ask.

    Raises:
        ValueError: they contradict each other or mean nothing.
    """
    said = {name: value or "" for name, value in annotations.items() if name in ANNOTATIONS}
    if "effect" not in said:
        if said:
            raise ValueError(f'has @{min(said)} without @effect("ask"), which it belongs to')
        return None
    if said["effect"] != "ask":
        raise ValueError('has an @effect that means nothing here; there is @effect("ask")')
    if effect != "permit":
        raise ValueError('has @effect("ask") on a forbid, and a person cannot allow what is forbidden; write a permit')
    return Ask(
        _approvers(said.get("approver", ADMINISTRATORS)),
        _seconds("wait", said.get("wait", f"{DEFAULT_WAIT_S}s"), MAX_WAIT_S),
        _seconds("remember", said["remember"], MAX_REMEMBER_S) if "remember" in said else 0,
        tuple(reason for reason in [annotations.get("reason") or ""] if reason),
    )


def joined(asks: Iterable[Ask]) -> Ask:
    """One for all policies that ask of one call: who decides must be good for each, in the shortest of their times."""
    several = list(asks)
    approvers = several[0].approvers
    for one in several[1:]:
        approvers &= one.approvers
    return Ask(
        approvers,
        min(one.wait_s for one in several),
        min(one.remember_s for one in several),
        tuple(reason for one in several for reason in one.reasons),
    )


def _approvers(text: str) -> frozenset[str]:
    found = set()
    for word in (part.strip() for part in text.split(",")):
        if word == SELF or (word.startswith(GROUP) and _GROUP_NAME.fullmatch(word.removeprefix(GROUP))):
            found.add(word)
        elif word != ADMINISTRATORS:
            raise ValueError(
                f"has @approver({text[:80]!r}); write self, administrators or group:NAME, several with commas"
            )
    return frozenset(found)


def _seconds(name: str, text: str, at_most: int) -> int:
    match = _SPAN.fullmatch(text)
    seconds = int(match[1]) * _SECONDS[match[2]] if match else 0
    if not 0 < seconds <= at_most:
        raise ValueError(f'has @{name}("{text[:20]}"); write a time such as 30s, 10m or 1h, up to {at_most // 60}m')
    return seconds
