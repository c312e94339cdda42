"""A small reader of GBNF that can write random texts of a grammar: an oracle beside llama.cpp's own.

Knows only what `engine.grammar` emits: literals, character classes, groups, alternatives, ? * + {m,n}."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Node = tuple[Any, ...]
MAX_REPEATS = 4
SAMPLE_CHARS = 'ab Zé漢"\\/09-_.'


@dataclass
class Grammar:
    rules: dict[str, Node]

    def write(self, choose: Callable[[int], int], name: str = "root") -> str:
        """A text of the grammar; `choose(n)` picks one of n ways. Deep recursion takes the shortest way."""
        return self._write(self.rules[name], choose, 0)

    def _write(self, node: Node, choose: Callable[[int], int], depth: int) -> str:
        match node:
            case ("text", text):
                return str(text)
            case ("class", allowed):
                found = [char for char in SAMPLE_CHARS + "0123456789abcdefABCDEFeE+" if allowed(char)]
                return found[choose(len(found))]
            case ("rule", name):
                return self._write(self.rules[name], choose, depth + 1)
            case ("row", items):
                return "".join(self._write(item, choose, depth) for item in items)
            case ("any", options):
                # Among the ways, the simpler ones come last in recursive rules of values: string, number, null.
                return self._write(options[-1 if depth > 12 else choose(len(options))], choose, depth)
            case ("times", item, least, most):
                extra = 0 if depth > 12 else choose(1 + min(most - least if most is not None else 3, MAX_REPEATS))
                return "".join(self._write(item, choose, depth) for _ in range(least + extra))
        raise AssertionError(node)


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def space(self) -> None:
        while self.peek() == " ":
            self.at += 1

    def alternatives(self) -> Node:
        options = [self.sequence()]
        while self.peek() == "|":
            self.at += 1
            self.space()
            options.append(self.sequence())
        return options[0] if len(options) == 1 else ("any", options)

    def sequence(self) -> Node:
        items: list[Node] = []
        while (char := self.peek()) and char not in "|)":
            if char in "?*+{":
                items[-1] = ("times", items[-1], *self.repetition())
            else:
                items.append(self.item())
            self.space()
        return ("row", items)

    def repetition(self) -> tuple[int, int | None]:
        char = self.peek()
        self.at += 1
        if char != "{":
            return {"?": (0, 1), "*": (0, None), "+": (1, None)}[char]
        end = self.text.index("}", self.at)
        least, comma, most = self.text[self.at : end].partition(",")
        self.at = end + 1
        return int(least), (int(most) if most else None) if comma else int(least)

    def item(self) -> Node:
        char = self.peek()
        if char == '"':
            return ("text", self.quoted())
        if char == "[":
            return ("class", self.char_class())
        if char == "(":
            self.at += 1
            self.space()
            node = self.alternatives()
            assert self.peek() == ")"
            self.at += 1
            return node
        start = self.at
        while self.peek().isalnum() or self.peek() == "-":
            self.at += 1
        assert self.at > start, self.text[self.at :]
        return ("rule", self.text[start : self.at])

    def char(self) -> str:
        char = self.peek()
        self.at += 1
        if char != "\\":
            return char
        escape = self.peek()
        self.at += 1
        if escape == "x":
            self.at += 2
            return chr(int(self.text[self.at - 2 : self.at], 16))
        return {"n": "\n", "r": "\r", "t": "\t"}.get(escape, escape)

    def quoted(self) -> str:
        self.at += 1
        chars = []
        while self.peek() != '"':
            chars.append(self.char())
        self.at += 1
        return "".join(chars)

    def char_class(self) -> Callable[[str], bool]:
        self.at += 1
        is_negated = self.peek() == "^"
        self.at += is_negated
        ranges: list[tuple[str, str]] = []
        while self.peek() != "]":
            low = high = self.char()
            if self.peek() == "-" and self.text[self.at + 1] != "]":
                self.at += 1
                high = self.char()
            ranges.append((low, high))
        self.at += 1
        return lambda char: any(low <= char <= high for low, high in ranges) != is_negated


def parse(text: str) -> Grammar:
    rules = {}
    for line in text.splitlines():
        name, _, body = line.partition(" ::= ")
        parser = _Parser(body)
        rules[name] = parser.alternatives()
        assert parser.at == len(body), body[parser.at :]
    return Grammar(rules)
