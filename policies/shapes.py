"""The types of a tool's arguments, read from its input schema: what policies may compare them with.

Knows JSON schemas and nothing of values. What has no single type there has no shape, and no rule can read it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

MAX_DEPTH: Final = 4
"""Objects in objects; what lies deeper has no shape."""
MAX_MEMBERS: Final = 200

Kind = Literal["text", "whole", "number", "truth", "set", "record"]
_SCALARS: Final[Mapping[str, Kind]] = {"string": "text", "integer": "whole", "number": "number", "boolean": "truth"}
_CEDAR: Final[Mapping[Kind, Mapping[str, Any]]] = {
    "text": {"type": "String"},
    "whole": {"type": "Long"},
    "number": {"type": "Extension", "name": "decimal"},
    "truth": {"type": "Boolean"},
}


@dataclass(frozen=True, slots=True)
class Shape:
    """A type: of one value, of the members of a set, or of a record with its members."""

    kind: Kind
    of: Shape | None = None
    members: Mapping[str, Shape] = field(default_factory=dict, hash=False)

    def cedar(self) -> dict[str, Any]:
        """The type in Cedar's JSON schema format. Every member may be absent."""
        if self.kind == "record":
            members = {name: {**shape.cedar(), "required": False} for name, shape in self.members.items()}
            return {"type": "Record", "attributes": members}
        if self.kind == "set":
            return {"type": "Set", "element": self.of.cedar() if self.of else dict(_CEDAR["text"])}
        return dict(_CEDAR[self.kind])


TEXT: Final = Shape("text")


def shapes(parameters: Mapping[str, Any]) -> dict[str, Shape]:
    """The shape of each argument of a tool, as far as it has one."""
    return _members(parameters, parameters, 0)


def merge(each: Iterable[Mapping[str, Shape]]) -> tuple[dict[str, Shape], set[str]]:
    """The arguments of several tools as one, and the names that mean different types in them."""
    found: dict[str, Shape] = {}
    clashing: set[str] = set()
    for members in each:
        for name, shape in members.items():
            if found.setdefault(name, shape) != shape:
                clashing.add(name)
    return {name: shape for name, shape in found.items() if name not in clashing}, clashing


def _members(schema: Mapping[str, Any], root: Mapping[str, Any], depth: int) -> dict[str, Shape]:
    properties = schema.get("properties")
    if not isinstance(properties, Mapping) or depth > MAX_DEPTH or len(properties) > MAX_MEMBERS:
        return {}
    named = ((name, _shape(inner, root, depth)) for name, inner in properties.items() if usable(name))
    return {name: shape for name, shape in named if shape is not None}


def usable(name: str) -> bool:
    """Names with two underscores in front mean something else in Cedar's JSON."""
    return not name.startswith("__")


def _shape(schema: object, root: Mapping[str, Any], depth: int) -> Shape | None:
    if not isinstance(schema, Mapping):
        return None
    found = {_one(inner, root, depth) for inner in _alternatives(schema, root, 0)}
    return found.pop() if len(found) == 1 else None


def _alternatives(schema: Mapping[str, Any], root: Mapping[str, Any], hops: int) -> Iterator[Mapping[str, Any]]:
    """What a schema allows besides null, with references into the same document followed."""
    if hops > MAX_DEPTH:
        yield {}
        return
    reference = schema.get("$ref")
    if isinstance(reference, str):
        target: object = root
        for step in reference.removeprefix("#/").split("/") if reference.startswith("#/") else ["?"]:
            target = target.get(step) if isinstance(target, Mapping) else None
        yield from _alternatives(target if isinstance(target, Mapping) else {}, root, hops + 1)
        return
    several = schema.get("anyOf", schema.get("oneOf"))
    if isinstance(several, list) and "type" not in schema:
        for inner in several:
            if isinstance(inner, Mapping) and inner.get("type") != "null":
                yield from _alternatives(inner, root, hops + 1)
        return
    types = schema.get("type")
    if isinstance(types, list):
        for one in types:
            if one != "null":
                yield {**schema, "type": one}
        return
    yield schema


def _one(schema: Mapping[str, Any], root: Mapping[str, Any], depth: int) -> Shape | None:
    kind = schema.get("type")
    if kind is None and isinstance(values := schema.get("enum", [schema.get("const")]), list):
        kind = "string" if values and all(isinstance(value, str) for value in values) else None
    if kind in _SCALARS:
        return Shape(_SCALARS[str(kind)])
    if kind == "array":
        of = _shape(schema.get("items"), root, depth + 1)
        return Shape("set", of) if of is not None and of.kind in _CEDAR else None
    if kind == "object" and (members := _members(schema, root, depth + 1)):
        return Shape("record", members=members)
    return None
