"""JSON Schemas as grammars (GBNF) for llama.cpp, with limits on size and depth.

Knows nothing of chats. Keywords it cannot express (pattern, format, not, ranges beyond the sign) are left to whoever
checks the finished value; a schema it cannot express at all becomes "any JSON value"."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from engine.errors import BadRequest

MAX_DEPTH: Final = 24  # nested schemas; what lies deeper is any JSON value
MAX_RULES: Final = 1_500  # rules of one schema; a schema with more is any JSON value
MAX_GRAMMAR_CHARS: Final = 512 * 1024
MAX_LITERAL_CHARS: Final = 4_096  # one enum or const value
MAX_CHOICES: Final = 512  # values of one enum
MAX_LENGTH: Final = 256  # repetition counts; longer limits are left open
MAX_TEXT_NESTING: Final = 32  # groups inside groups in grammar text: llama.cpp reads them recursively

_PRIMITIVES: Final = r"""
value ::= object | array | string | number | boolean | null
object ::= "{" (string ": " value (", " string ": " value)*)? "}"
array ::= "[" (value (", " value)*)? "]"
string ::= "\"" char* "\""
char ::= [^"\\\x00-\x1F\x7F] | "\\" (["\\/bfnrt] | "u" ([0-9a-cA-CeEfF] hex hex hex | [dD] [0-7] hex hex))
hex ::= [0-9a-fA-F]
integer ::= "-"? natural
natural ::= "0" | [1-9] [0-9]{0,15}
number ::= "-"? positive
positive ::= natural ("." [0-9]{1,16})? ([eE] [-+]? [0-9]{1,2})?
boolean ::= "true" | "false"
null ::= "null"
""".strip()
_ANY: Final = "value"


class _TooComplex(Exception):
    """The schema passes a limit."""


class GrammarBuilder:
    """Collects the rules of one grammar."""

    def __init__(self) -> None:
        self._rules: dict[str, str] = {}

    def text(self, root: str) -> str:
        """The whole grammar, starting at the expression `root`."""
        rules = "\n".join(f"{name} ::= {body}" for name, body in self._rules.items())
        return f"root ::= {root}\n{rules}\n{_PRIMITIVES}\n"

    def add_schema(self, schema: object, prefix: str) -> str:
        """Add the rules for `schema`, named `prefix` and a number; returns the name to refer to."""
        conversion = _Conversion(schema, prefix)
        try:
            name = conversion.convert(schema, 0, ())
            conversion.refuse_left_recursion()
        except _TooComplex:
            return "object" if isinstance(schema, dict) and schema.get("type") == "object" else _ANY
        self._rules.update(conversion.rules)
        return name

    def add_rule(self, name: str, body: str) -> str:
        self._rules[name] = body
        return name


class _Conversion:
    """One schema on its way to rules; `chain` holds the references followed since the last character."""

    def __init__(self, root: object, prefix: str) -> None:
        self._root = root
        self._prefix = prefix
        self._named: dict[str, str] = {}
        self.rules: dict[str, str] = {}

    def convert(self, schema: object, depth: int, chain: tuple[str, ...]) -> str:
        if not isinstance(schema, dict) or depth > MAX_DEPTH:
            return _ANY
        if "const" in schema:
            return self._literals([schema["const"]])
        if isinstance(schema.get("enum"), list):
            return self._literals(schema["enum"])
        if isinstance(schema.get("$ref"), str):
            return self._reference(schema["$ref"], depth, chain)
        for keyword in ("anyOf", "oneOf"):
            if isinstance(schema.get(keyword), list) and schema[keyword]:
                return self._alternatives(schema, schema[keyword], depth, chain)
        if isinstance(schema.get("allOf"), list) and schema["allOf"]:
            return self.convert(self._merged(schema), depth + 1, chain)
        return self._typed(schema, depth, chain)

    def refuse_left_recursion(self) -> None:
        """Rules of bare alternatives must not lead back to themselves. Raises: _TooComplex."""
        leads = {name: set(body.split(" | ")) for name, body in self.rules.items() if '"' not in body}
        while leads:
            free = {name for name, following in leads.items() if not following & leads.keys()}
            if not free:
                raise _TooComplex
            leads = {name: following for name, following in leads.items() if name not in free}

    def _typed(self, schema: Mapping[str, Any], depth: int, chain: tuple[str, ...]) -> str:
        kind = schema.get("type")
        if isinstance(kind, list):
            names = [self._typed({**schema, "type": one}, depth + 1, chain) for one in kind[:8]]
            return self._rule(" | ".join(dict.fromkeys(names))) if names else _ANY
        match kind:
            case "object":
                return self._object(schema, depth)
            case "array":
                return self._array(schema, depth)
            case "string":
                return self._string(schema)
            case "integer" | "number":
                is_positive = isinstance(schema.get("minimum"), (int, float)) and schema["minimum"] >= 0
                if is_positive:
                    return "natural" if kind == "integer" else "positive"
                return str(kind)
            case "boolean" | "null":
                return str(kind)
            case None if "properties" in schema:
                return self._object(schema, depth)
            case None if "items" in schema:
                return self._array(schema, depth)
            case _:
                return _ANY

    def _rule(self, body: str) -> str:
        if len(self.rules) >= MAX_RULES:
            raise _TooComplex
        name = f"{self._prefix}-{len(self.rules)}"
        self.rules[name] = body
        return name

    def _literals(self, values: Sequence[Any]) -> str:
        if not values or len(values) > MAX_CHOICES:
            return _ANY
        texts = [_json(value) for value in values]
        if any(len(text) > MAX_LITERAL_CHARS for text in texts):
            return _ANY
        return self._rule(" | ".join(literal(text) for text in dict.fromkeys(texts)))

    def _reference(self, pointer: str, depth: int, chain: tuple[str, ...]) -> str:
        if pointer in chain:
            return _ANY  # the reference leads to itself without a character between
        if pointer in self._named:
            return self._named[pointer]
        target = self._root
        if pointer != "#" and not pointer.startswith("#/"):
            return _ANY  # never fetched from elsewhere
        for step in pointer.split("/")[1:]:
            key = step.replace("~1", "/").replace("~0", "~")
            if not isinstance(target, dict) or key not in target:
                return _ANY
            target = target[key]
        name = self._named[pointer] = self._rule("")
        body = self.convert(target, depth + 1, (*chain, pointer))
        self.rules[name] = body
        return name

    def _alternatives(
        self, schema: Mapping[str, Any], options: Sequence[Any], depth: int, chain: tuple[str, ...]
    ) -> str:
        if len(options) > MAX_CHOICES:
            return _ANY
        beside = {key: value for key, value in schema.items() if key in ("type", "properties", "required")}
        names = []
        for option in options:
            if not isinstance(option, dict):
                return _ANY
            both = self._merged({**beside, "allOf": [option]}) if beside else option
            names.append(self.convert(both, depth + 1, chain))
        if _ANY in names:
            return _ANY
        return self._rule(" | ".join(dict.fromkeys(names)))

    def _merged(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        """One schema for an `allOf`: properties and required united, other keywords from the last that has them."""
        merged: dict[str, Any] = {key: value for key, value in schema.items() if key != "allOf"}
        for part in schema["allOf"][:MAX_CHOICES]:
            if not isinstance(part, dict):
                continue
            for key, value in part.items():
                old = merged.get(key)
                if isinstance(old, dict) and isinstance(value, dict):
                    merged[key] = {**old, **value}
                elif key == "required" and isinstance(old, list) and isinstance(value, list):
                    merged[key] = [*old, *value]
                else:
                    merged[key] = value
        return merged

    def _object(self, schema: Mapping[str, Any], depth: int) -> str:
        properties = schema.get("properties")
        required = schema.get("required")
        required = {name for name in required if isinstance(name, str)} if isinstance(required, list) else set()
        members = list(properties.items()) if isinstance(properties, dict) else []
        extra = schema.get("additionalProperties", not members)
        undeclared = sorted(required - {name for name, _ in members})
        if undeclared:
            members += [(name, extra if isinstance(extra, dict) else {}) for name in undeclared]
        if not members:
            if extra is False:
                return self._rule(literal("{}"))
            value = self.convert(extra, depth + 1, ()) if isinstance(extra, dict) else _ANY
            return self._rule(f'"{{" (string ": " {value} (", " string ": " {value})*)? "}}"')
        # Required members come first, then optional ones, each group in its own order. `first` is the rest of the
        # object while nothing has been written, `more` while something has.
        members.sort(key=lambda member: member[0] not in required)
        pairs = [
            (f"{literal(_json(name) + ': ')} {self.convert(value, depth + 1, ())}", name in required)
            for name, value in members
        ]
        first, more = '""', '""'
        for index, (pair, is_required) in reversed(list(enumerate(pairs))):
            with_pair, skipped, more_skipped = f"{pair} {more}", first, more
            first = self._rule(with_pair if is_required else f"{with_pair} | {skipped}")
            if index:
                more = self._rule(f'", " {with_pair}' if is_required else f'", " {with_pair} | {more_skipped}')
        return self._rule(f'"{{" {first} "}}"')

    def _array(self, schema: Mapping[str, Any], depth: int) -> str:
        item = self.convert(schema.get("items"), depth + 1, ())
        least, most = _limits(schema, "minItems", "maxItems")
        if most == 0:
            return self._rule(literal("[]"))
        more = f'(", " {item})'
        tail = f"{more}{{{max(least - 1, 0)},{'' if most is None else most - 1}}}"
        body = f"{item} {tail}"
        return self._rule(f'"[" {body} "]"' if least else f'"[" ({body})? "]"')

    def _string(self, schema: Mapping[str, Any]) -> str:
        least, most = _limits(schema, "minLength", "maxLength")
        if not least and most is None:
            return "string"
        return self._rule(f'"\\"" char{{{least},{"" if most is None else most}}} "\\""')


def _limits(schema: Mapping[str, Any], low: str, high: str) -> tuple[int, int | None]:
    """Both limits as counts; those we do not enforce are 0 and None."""
    least, most = schema.get(low), schema.get(high)
    least = least if isinstance(least, int) and 0 <= least <= MAX_LENGTH else 0
    most = most if isinstance(most, int) and least <= most <= MAX_LENGTH else None
    return int(least), most


def _json(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if text.isprintable() else json.dumps(value)


def literal(text: str) -> str:
    """`text` as a GBNF literal."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{escaped}"'


def check_grammar_text(text: str) -> None:
    """Refuse a grammar llama.cpp might not survive. Raises: BadRequest naming the limit."""
    if len(text) > MAX_GRAMMAR_CHARS:
        raise BadRequest(f"the grammar has {len(text)} characters; at most {MAX_GRAMMAR_CHARS} are accepted")
    if "\0" in text:
        raise BadRequest("the grammar contains a zero byte")
    depth = 0
    for match in _TOKENS.finditer(text):
        symbol = match.group()
        if symbol == "(":
            depth += 1
            if depth > MAX_TEXT_NESTING:
                raise BadRequest(f"the grammar nests more than {MAX_TEXT_NESTING} groups")
        elif symbol == ")":
            depth -= 1
        elif symbol[0] == "{" and any(int(count) > MAX_LENGTH for count in re.findall(r"[0-9]+", symbol)):
            raise BadRequest(f"the grammar repeats something more than {MAX_LENGTH} times")


_TOKENS: Final = re.compile(r'"(?:[^"\\]|\\.)*"|\[(?:[^\]\\]|\\.)*\]|[()]|\{[0-9, ]*\}', re.DOTALL)
