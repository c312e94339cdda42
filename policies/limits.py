"""Limits on calls and on the tokens of models: what a file of them says, and which of them a call or a request meets.

Knows text and names; counts nothing.

    version: 1
    limits:
      - {name: everything, rate: 60 per minute}
      - {name: mail, server: mail, tool: send, group: staff, calls: 10 per day}
      - {name: search, server: search, calls: 1000 per month, together: true}
      - {name: chat, model: "qwen3:4b", tokens: 100000 per day}
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec

from policies.decision import Principal

MAX_LIMITS: Final = 500
MAX_COUNT: Final = 1_000_000_000
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_AMOUNT: Final = re.compile(r"([1-9][0-9]{0,9}) per (second|minute|hour|day|month)")
_RATES: Final[Mapping[str, float]] = {"second": 1.0, "minute": 60.0, "hour": 3600.0}
Window = Literal["day", "month"]


class LimitsInvalid(ValueError):
    """A file of limits that cannot be used; each line says the entry, what is wrong and what to do."""


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `n` calls in `period_s` seconds, as a rate; or in a calendar `window` in UTC, as a quota."""

    name: str
    n: int
    period_s: float = 0.0
    window: Window | None = None
    server: str = ""
    tool: str = ""
    principal: str = ""
    group: str = ""
    together: bool = False
    """One count for everybody, not one for each principal."""
    tokens: bool = False
    """It counts the tokens of models, not calls; `model` is one of them, or empty for all."""
    model: str = ""

    def meets(self, who: Principal, server: str, tool: str) -> bool:
        return (
            not self.tokens
            and (not self.server or self.server == server)
            and (not self.tool or self.tool == tool)
            and self._is_for(who)
        )

    def meets_model(self, who: Principal, model: str) -> bool:
        return self.tokens and (not self.model or self.model == model) and self._is_for(who)

    def _is_for(self, who: Principal) -> bool:
        return (not self.principal or self.principal == who.id) and (not self.group or self.group in who.groups)

    def key(self, who: Principal) -> str:
        """Whose count it is; ids of principals are not empty."""
        return "" if self.together else who.id


class _Entry(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    name: str
    rate: str = ""
    calls: str = ""
    tokens: str = ""
    server: str = ""
    tool: str = ""
    model: str = ""
    principal: str = ""
    group: str = ""
    together: bool = False


class _File(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    version: Literal[1]
    limits: list[_Entry]


def read_limits(place: str, document: Any, servers: Mapping[str, Any]) -> tuple[Limit, ...]:
    """The limits of a file that was parsed already; `servers` are the catalogue's.

    Raises:
        LimitsInvalid: with every problem, one a line.
    """
    try:
        entries = msgspec.convert(document, _File).limits
    except msgspec.ValidationError as exc:
        raise LimitsInvalid(f"{place}: {exc}; see docs/limits.md") from exc
    problems: list[str] = []
    if len(entries) > MAX_LIMITS:
        problems.append(f"{place}: holds {len(entries)} limits; {MAX_LIMITS} are possible")
    found: dict[str, Limit] = {}
    for entry in entries[:MAX_LIMITS]:
        for problem in _problems(entry, found, servers):
            problems.append(f"{place}: limit {entry.name[:64]!r}: {problem}")
        amount = _AMOUNT.fullmatch(_text(entry))
        if amount is not None and not problems:
            n, unit = int(amount[1]), amount[2]
            more = {"period_s": _RATES[unit]} if entry.rate else {"window": unit}
            found[entry.name] = Limit(
                entry.name, n, server=entry.server, tool=entry.tool, principal=entry.principal, group=entry.group,
                together=entry.together, tokens=bool(entry.tokens), model=entry.model, **more,
            )  # fmt: skip
    if problems:
        raise LimitsInvalid("\n".join(problems))
    return tuple(found.values())


def _problems(entry: _Entry, found: Mapping[str, Limit], servers: Mapping[str, Any]) -> list[str]:
    problems = []
    if not _NAME.fullmatch(entry.name):
        problems.append("is no name; use letters, digits, dots, - and _")
    if entry.name in found:
        problems.append("is there twice; give each its own name")
    if [bool(entry.rate), bool(entry.calls), bool(entry.tokens)].count(True) != 1:
        problems.append("has rate, calls or tokens, one of them")
    amount = _AMOUNT.fullmatch(_text(entry))
    if amount is None or int(amount[1]) > MAX_COUNT:
        problems.append('write "60 per minute" or "1000 per day"')
    elif (amount[2] in _RATES) is not bool(entry.rate):
        problems.append("a rate is per second, minute or hour; calls and tokens are per day or month")
    if entry.server and entry.server not in servers:
        problems.append(f"server {entry.server[:64]!r} is not in the catalogue")
    if entry.tool and not entry.server:
        problems.append("has a tool and no server; name it")
    if entry.tokens and (entry.server or entry.tool):
        problems.append("counts tokens of models, which no server or tool has; leave server and tool out")
    if entry.model and not entry.tokens:
        problems.append("has a model and no tokens; calls of models are not counted")
    return problems


def _text(entry: _Entry) -> str:
    return entry.rate or entry.calls or entry.tokens
