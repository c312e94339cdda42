"""Agents defined in files: what one is told, which model and tools it has, and what it may spend.

Knows the file's form; who may run it and with whose rights is the gateway's."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from engine.agent import INSTRUCTIONS, Budget
from engine.errors import BadDefinition

SUFFIX: Final = ".yaml"
MAX_FILE_BYTES: Final = 256 * 1024
NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_Count = Annotated[int, Meta(ge=1)]
_ANY: Final = Budget()


class Spending(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits of a run; what is left out is as for any run."""

    steps: _Count = _ANY.steps
    tokens: _Count = _ANY.tokens
    seconds: Annotated[float, Meta(gt=0)] = _ANY.seconds
    calls: _Count = _ANY.calls

    def budget(self) -> Budget:
        return Budget(self.steps, self.tokens, self.seconds, self.calls)


class AgentDefinition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One agent; its name is the file's."""

    description: Annotated[str, Meta(max_length=1_000)] = ""
    prompt: Annotated[str, Meta(min_length=1, max_length=100_000)] = INSTRUCTIONS
    """What the model is told before the task."""
    model: str | None = None
    profile: str | None = None
    tools: list[str] = []
    """Names or patterns such as `git__*`; all tools of the profile if empty."""
    budget: Spending = Spending()
    output: dict[str, Any] | None = None
    """A JSON Schema for the answer."""

    def selects(self, tool: str) -> bool:
        return selects(self.tools, tool)


def selects(patterns: Iterable[str], tool: str) -> bool:
    """Whether one of the patterns names the tool; without patterns, all are."""
    patterns = list(patterns)
    return not patterns or any(fnmatch.fnmatchcase(tool, pattern) for pattern in patterns)


def load_definition(path: Path) -> AgentDefinition:
    """
    Raises:
        BadDefinition: it cannot be read or breaks a rule; says where.
    """
    name = path.stem
    if not NAME.fullmatch(name) or path.suffix != SUFFIX:
        raise BadDefinition(f"{path}: an agent's file is named NAME{SUFFIX}, of small letters, digits and hyphens")
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise BadDefinition(f"agent {name} cannot be read: {exc}") from exc
    if len(data) > MAX_FILE_BYTES:
        raise BadDefinition(f"{path}: more than {MAX_FILE_BYTES} bytes")
    try:
        return msgspec.yaml.decode(data, type=AgentDefinition)
    except (msgspec.DecodeError, msgspec.ValidationError, RecursionError) as exc:
        allowed = ", ".join(AgentDefinition.__struct_fields__)
        raise BadDefinition(f"{path}: {exc}; members are {allowed}") from exc


def find_definition(folder: Path, name: str) -> AgentDefinition:
    """An agent of a folder by its name.

    Raises:
        BadDefinition: there is none, or it breaks a rule.
    """
    path = folder / f"{name}{SUFFIX}"
    if not NAME.fullmatch(name) or not path.is_file():
        known = ", ".join(sorted(name for name, _ in definitions(folder)))
        raise BadDefinition(f"there is no agent {name!r} in {folder}" + (f"; there are {known}" if known else ""))
    return load_definition(path)


def definitions(folder: Path) -> Iterator[tuple[str, AgentDefinition | BadDefinition]]:
    """Every agent of a folder by name; what is wrong with one costs that one."""
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            yield path.stem, load_definition(path)
        except BadDefinition as exc:
            yield path.stem, exc
