"""JSON with comments and trailing commas, changed in place: every byte that is not part of the change stays.

Knows text and positions; not what the members mean."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NoReturn

MAX_DEPTH: Final = 200
_SPACE: Final = re.compile(r"(?:[ \t\r\n]+|//[^\n]*|/\*.*?\*/)*", re.DOTALL)
_STRING: Final = re.compile(r'"(?:[^"\\\x00-\x1f]|\\.)*"')
_SCALAR: Final = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null")
_REST_OF_LINE: Final = re.compile(r"[ \t]*(?:/\*[^\n]*?\*/[ \t]*)*(?://[^\n]*)?")
_END_OF_LINE: Final = re.compile(r"[ \t]*\r?\n")
_BOM: Final = "\ufeff"
ABSENT: Final = object()


class DocumentError(Exception):
    """A configuration file cannot be read or changed as it is; its owner has to mend it."""


@dataclass
class _Node:
    """One value and where it stands: text[start:end]."""

    kind: Literal["object", "array", "scalar"]
    start: int
    end: int = 0
    members: dict[str, _Member] = field(default_factory=dict)
    items: list[_Node] = field(default_factory=list)
    value: Any = None


@dataclass
class _Member:
    """One member: text[start:end] from its key's quote to its value's end; `comma` is where one follows, else -1."""

    start: int
    node: _Node
    comma: int = -1


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = len(_BOM) if text.startswith(_BOM) else 0

    def document(self) -> _Node | None:
        """The document's value; None for an empty one."""
        self._skip()
        if self._at == len(self._text):
            return None
        node = self._value(0)
        self._skip()
        if self._at != len(self._text):
            self._fail("text after the end of the document")
        return node

    def _skip(self) -> None:
        match = _SPACE.match(self._text, self._at)
        self._at = match.end() if match else self._at

    def _next(self) -> str:
        return self._text[self._at : self._at + 1]

    def _value(self, depth: int) -> _Node:
        if depth > MAX_DEPTH:
            self._fail(f"nested deeper than {MAX_DEPTH} levels")
        match self._next():
            case "{":
                return self._object(depth)
            case "[":
                return self._array(depth)
        start = self._at
        value = self._string() if self._next() == '"' else self._scalar()
        return _Node("scalar", start, self._at, value=value)

    def _object(self, depth: int) -> _Node:
        node = _Node("object", self._at)
        self._at += 1
        self._skip()
        while self._next() != "}":
            start = self._at
            if self._next() != '"':
                self._fail("expected a member name in double quotes, or }")
            name = self._string()
            if name in node.members:
                self._fail(f"member {name!r} stands twice", start)
            self._skip()
            if self._next() != ":":
                self._fail("expected : after a member name")
            self._at += 1
            self._skip()
            member = node.members[name] = _Member(start, self._value(depth + 1))
            member.comma = self._comma("}")
        self._at += 1
        node.end = self._at
        return node

    def _array(self, depth: int) -> _Node:
        node = _Node("array", self._at)
        self._at += 1
        self._skip()
        while self._next() != "]":
            node.items.append(self._value(depth + 1))
            self._comma("]")
        self._at += 1
        node.end = self._at
        return node

    def _comma(self, closing: str) -> int:
        """Where the comma after a value stands; -1 if the closing bracket comes instead."""
        self._skip()
        if self._next() == ",":
            at = self._at
            self._at += 1
            self._skip()
            return at
        if self._next() != closing:
            self._fail(f"expected a comma or {closing}")
        return -1

    def _string(self) -> str:
        match = _STRING.match(self._text, self._at)
        if match is None:
            self._fail("a string does not end on its line")
        try:
            value: str = json.loads(match.group())
        except ValueError:
            self._fail("not a JSON string")
        self._at = match.end()
        return value

    def _scalar(self) -> Any:
        match = _SCALAR.match(self._text, self._at)
        if match is None:
            self._fail("expected a JSON value")
        self._at = match.end()
        return json.loads(match.group())

    def _fail(self, what: str, at: int | None = None) -> NoReturn:
        before = self._text[: self._at if at is None else at]
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        raise DocumentError(f"line {line}, column {column}: {what}")


def _plain(node: _Node) -> Any:
    match node.kind:
        case "object":
            return {name: _plain(member.node) for name, member in node.members.items()}
        case "array":
            return [_plain(item) for item in node.items]
        case _:
            return node.value


def get(text: str, path: Sequence[str]) -> Any:
    """The value at a path of member names; `ABSENT` if there is none.

    Raises:
        DocumentError: not JSON with comments, with line and column.
    """
    node = _Reader(text).document()
    for name in path:
        member = node.members.get(name) if node is not None else None
        if member is None:
            return ABSENT
        node = member.node
    return ABSENT if node is None else _plain(node)


def put(text: str, path: Sequence[str], value: object) -> str:
    """The document with `value` at a path; objects on the way are made, an old value is replaced.

    Raises:
        DocumentError: not JSON with comments, or something on the way is no object.
    """
    node = _Reader(text).document()
    style = _Style(text)
    if node is None:
        for name in reversed(path):
            value = {name: value}
        # A comment to the end of the file would take in what is written after it.
        between = "" if text in ("", _BOM) or text.endswith("\n") else style.newline
        return text + between + style.written(value, 0) + style.newline
    for depth, name in enumerate(path):
        if node.kind != "object":
            raise DocumentError(f"{'.'.join(path[:depth]) or 'the document'} is not an object")
        member = node.members.get(name)
        if member is None:
            for inner in reversed(path[depth + 1 :]):
                value = {inner: value}
            return _inserted(text, style, node, name, value)
        node = member.node
    old = text[node.start : node.end]
    on_one_line = "\n" not in old and len(old) > len("{}")
    new = json.dumps(value, ensure_ascii=False) if on_one_line else style.written(value, style.level(text, node.start))
    return text[: node.start] + new + text[node.end :]


def remove(text: str, path: Sequence[str]) -> str:
    """The document without the member at a path; unchanged if there is none. Comments around it stay.

    Raises:
        DocumentError: not JSON with comments.
    """
    parent = _Reader(text).document()
    for name in path[:-1]:
        member = parent.members.get(name) if parent is not None else None
        parent = member.node if member is not None else None
    if parent is None or path[-1] not in parent.members:
        return text
    member = parent.members[path[-1]]
    siblings = list(parent.members.values())
    before = siblings[siblings.index(member) - 1] if member is not siblings[0] else None
    around = text[parent.start + 1 : member.start] + text[member.node.end : parent.end - 1]
    if before is None and member.comma < 0 and not around.strip():
        return text[: parent.start] + "{}" + text[parent.end :]
    start, end = member.start, member.node.end if member.comma < 0 else member.comma + 1
    line_start = text.rfind("\n", 0, start) + 1
    rest = _END_OF_LINE.match(text, end)
    if rest is not None and _is_blank(text, line_start, start):
        start, end = line_start, rest.end()
    elif member.comma >= 0:
        end = len(text) - len(text[end:].lstrip(" \t"))
    if before is None or member.comma >= 0:
        return text[:start] + text[end:]
    # The one before is the last now, and a comma after a last member is not valid in plain JSON.
    between = text[before.comma + 1 : start]
    return text[: before.comma] + ("" if not between.strip() and "\n" not in between else between) + text[end:]


def _is_blank(text: str, start: int, end: int) -> bool:
    return not text[start:end].strip()


def _inserted(text: str, style: _Style, node: _Node, name: str, value: object) -> str:
    """The text with one more member at the end of an object."""
    key = json.dumps(name, ensure_ascii=False)
    level = style.level(text, node.start)
    if not node.members:
        inside = text[node.start + 1 : node.end - 1].rstrip()
        member = f"{style.newline}{style.indent(level + 1)}{key}: {style.written(value, level + 1)}"
        close = f"{style.newline}{style.indent(level)}" + "}"
        return text[: node.start + 1] + inside + member + close + text[node.end :]
    last = list(node.members.values())[-1]
    if "\n" not in text[node.start : node.end]:
        member = f"{key}: {json.dumps(value, ensure_ascii=False)}"
        return text[: last.node.end] + f", {member}" + text[last.node.end :]
    # A comment on the last member's line belongs to it: the comma goes before, the new line after it.
    after = last.comma + 1 if last.comma >= 0 else last.node.end
    rest = _REST_OF_LINE.match(text, after)
    end = rest.end() if rest else after
    if text[end : end + 1] == "}" or "\n" not in text[end : node.end]:
        end = after
    while text[end - 1] == "\r":
        end -= 1
    level = style.level(text, last.start)
    member = f"{style.newline}{style.indent(level)}{key}: {style.written(value, level)}"
    if last.comma >= 0:
        return text[:end] + member + "," + text[end:]
    return text[: last.node.end] + "," + text[last.node.end : end] + member + text[end:]


class _Style:
    """How a document breaks and indents its lines."""

    def __init__(self, text: str) -> None:
        self.newline = "\r\n" if "\r\n" in text else "\n"
        first = re.search(r"\n([ \t]+)\S", text)
        self._unit = first.group(1) if first else "  "
        if len(self._unit.strip("\t")) == 0 and self._unit:
            self._unit = "\t"

    def indent(self, level: int) -> str:
        return self._unit * level

    def level(self, text: str, at: int) -> int:
        """How many units the line of a position is indented."""
        line = text[text.rfind("\n", 0, at) + 1 : at]
        blank = len(line) - len(line.lstrip(" \t"))
        return blank // max(len(self._unit), 1)

    def written(self, value: object, level: int) -> str:
        lines = json.dumps(value, indent=self._unit, ensure_ascii=False).split("\n")
        return f"{self.newline}{self.indent(level)}".join(lines)
