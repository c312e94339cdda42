"""One Cedar policy as it stands in a file: its place, what it applies to, and which facts it reads.

Knows the language's JSON form; nothing of profiles, catalogues or decisions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal, get_args

import cedarpy

from policies import asking
from policies.asking import Ask
from policies.decision import Action, place_of

ANNOTATIONS: Final = frozenset({"id", "reason"}) | asking.ANNOTATIONS
MAX_DEPTH: Final = 60
MAX_SOURCE_CHARS: Final = 1_000_000

Expression = Mapping[str, Any]
View = Literal["args", "path", "host", "ip"]
VIEWS: Final = get_args(View)
CIRCUMSTANCES: Final = ("now", "hour", "weekday", "source")
OF_NO_SERVER: Final = frozenset({"Model", "Agent", "Area"})
HINTS: Final = frozenset({"readOnly", "destructive", "idempotent", "openWorld"})


class PolicyError(ValueError):
    """Policies that cannot be used; each line says the file, the line, what is wrong and what to do."""


@dataclass(frozen=True)
class Rule:
    """A policy. `reads` are the members of `context` it looks at, as `("path", "file")` or `("now",)`."""

    id: str
    file: str
    line: int
    text: str
    tree: Expression
    permits: bool
    reason: str
    reads: frozenset[tuple[str, ...]]
    members: frozenset[str]
    """The members of `resource` it looks at; the empty name if it looks at it as a whole."""
    mentions: frozenset[str]
    """The items it names, as `server/item`, and the models, agents and areas."""
    ask: Ask | None = None
    """Who decides, where it does not permit by itself but asks a person."""

    @property
    def narrows(self) -> bool:
        """Whether it takes away from what others permit: it forbids, or it has a person asked."""
        return not self.permits or self.ask is not None

    @property
    def asks_of_principal(self) -> set[str]:
        """The members of `principal` it looks at."""
        return set().union(*(_members(condition["body"], "principal") for condition in self.tree["conditions"]))

    @property
    def names(self) -> bool:
        """Whether it may tell two items of one server apart that it does not mention."""
        return bool(self.members & {"name", "uri", "path", "host", ""})

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}"

    def concerns_action(self, action: str) -> bool:
        scope = self.tree["action"]
        if scope["op"] == "All":
            return True
        named = scope["entities"] if "entities" in scope else [scope["entity"]]
        return any(entity["type"] == "Action" and entity["id"] == action for entity in named)

    @property
    def only(self) -> str:
        """The one item its head is about, as `server/item`, or the one thing of no server; empty if it may be about
        several."""
        scope = self.tree["resource"]
        entity = scope.get("entity") or (scope.get("in") or {}).get("entity")
        # Nothing is in an item but the item itself.
        return entity["id"] if entity is not None and entity["type"] not in ("Server", "Profile") else ""

    def concerns(self, profile: str, server: str, item: str, type: str, action: str) -> bool:
        """Whether its head matches things of that type in that server of that profile: the item, if one is given, else
        those that no head is about alone."""
        scope = self.tree["resource"]
        if not self.concerns_action(action):
            return False
        if scope["op"] == "is":
            if scope["entity_type"] != type:
                return False
            inside = scope.get("in")
            return inside is None or _holds(inside["entity"], profile, server, item, type)
        return scope["op"] == "All" or _holds(scope["entity"], profile, server, item, type)

    def scope(self) -> tuple[str, str]:
        """The server and item its head names, each empty if it names none."""
        scope = self.tree["resource"]
        inside = scope.get("in") or {}
        entity = scope.get("entity") or inside.get("entity") or {"type": "", "id": ""}
        if entity["type"] == "Server":
            return entity["id"], ""
        if entity["type"] in OF_NO_SERVER:
            return "", ""
        server, slash, item = entity["id"].partition("/")
        return (server, item) if slash else ("", "")

    def actions(self) -> list[Action]:
        return [action for action in get_args(Action) if self.concerns_action(action)]

    def possibly(self) -> Expression | None:
        """The policy as it is where nothing of `context` is known: what reads it is taken to permit, and not to forbid.
        None if nothing of it is left."""
        if self.reads and not self.permits:
            return None
        conditions = [
            {"kind": "when", "body": part} if condition["kind"] == "when" else condition
            for condition in self.tree["conditions"]
            for part in (_conjuncts(condition["body"]) if condition["kind"] == "when" else [condition["body"]])
            if not any(True for _ in _reads(part))
        ]
        return {**self.tree, "conditions": conditions}


def _holds(entity: Mapping[str, str], profile: str, server: str, item: str, type: str) -> bool:
    if entity["type"] == "Profile":
        return entity["id"] == profile
    if entity["type"] == "Server":
        return entity["id"] == server
    return entity["type"] == type and entity["id"] == place_of(server, item)


def read_rules(file: str, text: str) -> list[Rule]:
    """The policies of one file.

    Raises:
        PolicyError: with every problem found, one a line.
    """
    if len(text) > MAX_SOURCE_CHARS:
        raise PolicyError(f"{file}: holds more than {MAX_SOURCE_CHARS} characters; split it")
    rules: list[Rule] = []
    problems = []
    for line, source in _pieces(text):
        nth = sum(rule.line == line for rule in rules) + 1
        try:
            rules.append(_rule(file, line, nth, source))
        except ValueError as exc:
            problems.append(f"{file}:{line}: {exc}")
    if problems:
        raise PolicyError("\n".join(problems))
    return rules


def mistakes(text: str, schema: str) -> list[str]:
    """What is wrong with a policy by a Cedar schema in JSON."""
    return [str(error.error) for error in cedarpy.validate_policies(text, _schema(schema)).errors]


@lru_cache(maxsize=512)
def _schema(text: str) -> cedarpy.Schema:
    return cedarpy.Schema.from_json_str(text)


def _pieces(text: str) -> Iterator[tuple[int, str]]:
    """Each policy with the line it begins in: up to a semicolon outside of texts and comments."""
    start, at, line, first = 0, 0, 1, 0
    while at < len(text):
        char = text[at]
        if text.startswith("//", at):
            end = text.find("\n", at)
            at = len(text) if end < 0 else end
            continue
        if char == '"':
            first = first or line
            at += 1
            while at < len(text) and text[at] != '"':
                line += text[at] == "\n"
                at += 2 if text[at] == "\\" else 1
        elif char == ";":
            yield first or line, text[start : at + 1]
            start, first = at + 1, 0
        elif not char.isspace():
            first = first or line
        line += char == "\n"
        at += 1
    if first:
        yield first, text[start:]


def _rule(file: str, line: int, nth: int, source: str) -> Rule:
    try:
        parsed = json.loads(cedarpy.policies_to_json_str(source))
    except ValueError as exc:
        raise ValueError(f"is no policy: {exc}; see docs/policy.md for examples") from exc
    if parsed["templates"]:
        raise ValueError("has a ?placeholder; name the principal or resource itself")
    (tree,) = parsed["staticPolicies"].values()
    annotations = tree.get("annotations") or {}
    if strange := sorted(set(annotations) - ANNOTATIONS):
        raise ValueError(f"has the annotation @{strange[0]}, which means nothing here; see docs/policy.md")
    if _depth(tree) > 4 * MAX_DEPTH:
        raise ValueError("is nested too deeply; write several policies")
    reads: set[tuple[str, ...]] = set()
    members: set[str] = set()
    for condition in tree["conditions"]:
        reads |= set(_reads(condition["body"]))
        members |= _members(condition["body"], "resource")
    ask = asking.read(annotations, tree["effect"])
    _check(tree, asks=ask is not None)
    return Rule(
        id=annotations.get("id") or f"{file.rpartition('/')[2]}:{line}{f'.{nth}' if nth > 1 else ''}",
        file=file,
        line=line,
        text=source.strip(),
        tree=tree,
        permits=tree["effect"] == "permit",
        reason=annotations.get("reason") or "",
        reads=frozenset(reads),
        members=frozenset(members),
        mentions=frozenset(each["id"] for each in entities(tree) if "/" in each["id"] or each["type"] in OF_NO_SERVER),
        ask=ask,
    )


def _check(tree: Expression, *, asks: bool) -> None:
    """The traps: what validates in Cedar and yet means something else than it seems to."""
    for condition in tree["conditions"]:
        body = condition["body"]
        if tree["effect"] == "permit" and not asks and (hints := HINTS & _members(body, "resource")):
            raise ValueError(
                f"permits by resource.{min(hints)}, which the server says of itself; "
                "permit more widely and forbid what does not say so"
            )
        for node in _walk(body):
            like = _operator(node, "like", "left", "pattern")
            if like is None:
                continue
            names = chain(like["left"])
            literals = "".join(part["Literal"] for part in like["pattern"] if isinstance(part, Mapping))
            separators = "/" in literals or "\\" in literals
            if separators and names[:2] == ["context", "args"]:
                raise ValueError(
                    f"compares the raw text context.args.{'.'.join(names[2:])} with a pattern of a path or URL, which "
                    "`..` and encodings get around; use context.path or context.host"
                )
            if separators and names == ["resource", "uri"]:
                raise ValueError(
                    "compares the raw text resource.uri with a pattern of a path or URL, which `..` and encodings get "
                    "around; use resource.path or resource.host"
                )


def _depth(node: object) -> int:
    deepest, stack = 0, [(node, 1)]
    while stack:
        one, depth = stack.pop()
        deepest = max(deepest, depth)
        inner = one.values() if isinstance(one, Mapping) else one if isinstance(one, list) else ()
        stack += [(child, depth + 1) for child in inner]
    return deepest


def _walk(node: object) -> Iterator[Any]:
    stack = [node]
    while stack:
        one = stack.pop()
        yield one
        stack += one.values() if isinstance(one, Mapping) else one if isinstance(one, list) else ()


def _operator(node: object, name: str, *members: str) -> Mapping[str, Any] | None:
    """The operands of an operator; a record literal with a member of that name is none."""
    inner = node.get(name) if isinstance(node, Mapping) and len(node) == 1 else None
    return inner if isinstance(inner, Mapping) and set(inner) == set(members) else None


def entities(tree: object) -> Iterator[Mapping[str, str]]:
    """Everything the policy names."""
    for node in _walk(tree):
        if isinstance(node, Mapping) and set(node) == {"type", "id"} and isinstance(node["id"], str):
            yield node


def operators(node: object) -> Iterator[tuple[str, Any]]:
    """Every operator in an expression with its operands."""
    for one in _walk(node):
        if isinstance(one, Mapping) and len(one) == 1:
            ((name, operands),) = one.items()
            if isinstance(operands, Mapping | list):
                yield name, operands


def chain(node: object) -> list[str]:
    """`context.args.x` as its names; empty for anything else."""
    names: list[str] = []
    while (step := _operator(node, ".", "left", "attr")) is not None:
        names.append(step["attr"])
        node = step["left"]
    if isinstance(node, Mapping) and "Var" in node:
        return [node["Var"], *reversed(names)]
    return []


def _members(body: object, variable: str) -> set[str]:
    """The first members of a variable that an expression reads; the empty name if it is used as a whole."""
    found, stack = set(), [body]
    while stack:
        node = stack.pop()
        if isinstance(node, Mapping):
            names = chain(node)
            if names and names[0] == variable:
                found.add(names[1] if len(names) > 1 else "")
                continue
            has = _operator(node, "has", "left", "attr")
            if has is not None and chain(has["left"]) == [variable]:
                found.add(has["attr"])
                continue
            kind = node.get("is") or node.get("in") or node.get("==")
            if isinstance(kind, Mapping) and chain(kind.get("left")) == [variable]:
                stack.append(kind.get("right"))  # asks what it is, not for anything in it
                continue
            stack += node.values()
        elif isinstance(node, list):
            stack += node
    return found


def _reads(body: object) -> Iterator[tuple[str, ...]]:
    """The members of `context` an expression looks at.

    Raises:
        ValueError: it uses `context` or one of its views as a whole, or a member there is not.
    """
    stack = [body]
    while stack:
        node = stack.pop()
        if isinstance(node, list):
            stack += node
            continue
        if not isinstance(node, Mapping):
            continue
        has = _operator(node, "has", "left", "attr")
        names = [*inner, has["attr"]] if has and (inner := chain(has["left"])) else chain(node)
        if not names or names[0] != "context":
            if not names:
                stack += node.values()
            continue
        _, *names = names
        if names and names[0] in CIRCUMSTANCES:
            yield (names[0],)
        elif names and names[0] in VIEWS and len(names) > 1:
            yield (names[0], names[1])
        elif not (has and names and names[0] in VIEWS):
            what = ".".join(["context", *names])
            raise ValueError(
                f"uses {what}; there are context.args.NAME, context.path.NAME, context.host.NAME, context.ip.NAME, "
                f"context.{', context.'.join(CIRCUMSTANCES)}"
            )


def _conjuncts(body: Expression) -> Iterator[Expression]:
    both = _operator(body, "&&", "left", "right")
    if both is None:
        yield body
    else:
        yield from _conjuncts(both["left"])
        yield from _conjuncts(both["right"])
