"""Parsed text that still knows its lines: scalars, sequences and mappings, each with where it began.

Does not know YAML, nor what a catalog is.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias


@dataclass(frozen=True, slots=True)
class Unclear:
    """A value that programs would read in different ways, or that is no value; no field accepts it."""

    reading: Literal["nothing", "number", "date", "truth value", "special value"]


@dataclass(slots=True)
class Scalar:
    """One piece of text and the value it stands for."""

    line: int
    text: str
    value: "str | int | float | bool | Unclear"


@dataclass(slots=True)
class Sequence:
    """A list; its owner is the parser until it is complete."""

    line: int
    items: "list[Node]"


@dataclass(slots=True)
class Mapping:
    """Keys with the line of the key and the value; its owner is the parser until it is complete."""

    line: int
    members: "dict[str, tuple[int, Node]]"


Node: TypeAlias = Scalar | Sequence | Mapping


def plain(node: Node) -> object:
    """Return the node's value without lines: dict, tuple, str, int, float, bool or Unclear."""
    match node:
        case Scalar():
            return node.value
        case Sequence():
            return tuple(plain(item) for item in node.items)
        case Mapping():
            return {key: plain(value) for key, (_, value) in node.members.items()}


def find(node: Node, path: tuple[int | str, ...]) -> tuple[int, Node]:
    """Follow keys and indexes as far as they lead; return the line to point at and the node reached."""
    line = node.line
    for step in path:
        match node:
            case Mapping() if isinstance(step, str) and step in node.members:
                line, node = node.members[step]
            case Sequence() if isinstance(step, int) and step < len(node.items):
                node = node.items[step]
                line = node.line
            case _:
                break
    return line, node
