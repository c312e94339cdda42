"""A tiny evaluator of Cedar policies, written from the language's rules: what the engine is compared with.

Takes the JSON form of a policy and plain Python facts. Knows no slices, no caches and no schema: every policy of a set
is looked at for every request. Of the engine's own rules it has two: an error anywhere denies, and so does an argument
that a policy about this request reads and that is not of its declared type.
"""

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LONG = 2**63


class Failure(Exception):
    """An expression that has no value."""


@dataclass(frozen=True)
class Entity:
    type: str
    id: str


@dataclass(frozen=True)
class World:
    """A request: who, what, on what; attributes of entities and everything each is in; the context."""

    principal: Entity
    action: Entity
    resource: Entity
    attributes: Mapping[Entity, Mapping[str, Any]]
    within: Mapping[Entity, frozenset[Entity]]
    context: Mapping[str, Any]


def asks(policy: Mapping[str, Any]) -> bool:
    return bool((policy.get("annotations") or {}).get("effect") == "ask")


def word(policies: Sequence[Mapping[str, Any]], world: World) -> str:
    """`deny` if anything forbids or nothing permits or anything fails; else `ask` if any policy that applies asks."""
    permits = forbids = asked = False
    for policy in policies:
        try:
            applies = _scope(policy, world) and all(
                _truth(_value(condition["body"], world)) == (condition["kind"] == "when")
                for condition in policy["conditions"]
            )
        except Failure:
            return "deny"
        permits |= applies and policy["effect"] == "permit"
        forbids |= applies and policy["effect"] == "forbid"
        asked |= applies and asks(policy)
    if forbids or not permits:
        return "deny"
    return "ask" if asked else "allow"


def _scope(policy: Mapping[str, Any], world: World) -> bool:
    return all(
        matches(policy[variable], getattr(world, variable), world) for variable in ("principal", "action", "resource")
    )


def matches(scope: Mapping[str, Any], entity: Entity, world: World) -> bool:
    match scope["op"]:
        case "All":
            return True
        case "==":
            return entity == Entity(**scope["entity"])
        case "in":
            several = scope["entities"] if "entities" in scope else [scope["entity"]]
            return any(_inside(entity, Entity(**one), world) for one in several)
        case "is":
            inner = scope.get("in")
            return entity.type == scope["entity_type"] and (
                inner is None or _inside(entity, Entity(**inner["entity"]), world)
            )
    raise AssertionError(scope)


def _inside(entity: Entity, of: Entity, world: World) -> bool:
    return entity == of or of in world.within.get(entity, frozenset())


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise Failure
    return value


def _long(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not -LONG <= value < LONG:
        raise Failure
    return value


def _value(node: Mapping[str, Any], world: World) -> Any:
    ((operator, operands),) = node.items()
    match operator:
        case "Value":
            if isinstance(operands, Mapping) and "__entity" in operands:
                return Entity(**operands["__entity"])
            return operands
        case "Var":
            return world.context if operands == "context" else getattr(world, operands)
        case "Set":
            return {_frozen(_value(one, world)) for one in operands}
        case "&&":
            return _truth(_value(operands["left"], world)) and _truth(_value(operands["right"], world))
        case "||":
            return _truth(_value(operands["left"], world)) or _truth(_value(operands["right"], world))
        case "!":
            return not _truth(_value(operands["arg"], world))
        case "if-then-else":
            chosen = "then" if _truth(_value(operands["if"], world)) else "else"
            return _value(operands[chosen], world)
        case ".":
            members = _members(_value(operands["left"], world), world)
            if operands["attr"] not in members:
                raise Failure
            return members[operands["attr"]]
        case "has":
            return operands["attr"] in _members(_value(operands["left"], world), world)
        case "like":
            return _like(_value(operands["left"], world), operands["pattern"])
        case "is":
            value = _value(operands["left"], world)
            return value.type == operands["entity_type"]
    left, right = _value(operands["left"], world), _value(operands["right"], world)
    match operator:
        case "==":
            return _frozen(left) == _frozen(right)
        case "!=":
            return _frozen(left) != _frozen(right)
        case "<":
            return _long(left) < _long(right)
        case "<=":
            return _long(left) <= _long(right)
        case ">":
            return _long(left) > _long(right)
        case ">=":
            return _long(left) >= _long(right)
        case "contains":
            return _frozen(right) in {_frozen(one) for one in left}
        case "containsAny":
            return bool({_frozen(one) for one in left} & {_frozen(one) for one in right})
        case "containsAll":
            return {_frozen(one) for one in left} >= {_frozen(one) for one in right}
        case "in":
            several = right if isinstance(right, set) else {right}
            return any(_inside(left, one, world) for one in several)
    raise AssertionError(operator)


def _members(value: Any, world: World) -> Mapping[str, Any]:
    if isinstance(value, Entity):
        return world.attributes.get(value, {})
    if not isinstance(value, Mapping):
        raise Failure
    return value


def _frozen(value: Any) -> Any:
    """Values that Python takes for equal and Cedar does not, apart: true and 1."""
    if isinstance(value, bool):
        return ("truth", value)
    if isinstance(value, list | set | frozenset):
        return frozenset(_frozen(one) for one in value)
    return value


def _like(text: Any, pattern: Sequence[Any]) -> bool:
    if not isinstance(text, str):
        raise Failure
    places = {0}
    for part in pattern:
        if part == "Wildcard":
            places = set(range(min(places), len(text) + 1)) if places else places
        else:
            literal = part["Literal"]
            places = {at + len(literal) for at in places if text.startswith(literal, at)}
    return len(text) in places


# -- the facts a request has -------------------------------------------------------------------


def typed(value: Any, kind: str) -> Any:
    """An argument as its declared type.

    Raises:
        Failure: it is of another.
    """
    match kind:
        case "string" if isinstance(value, str):
            return value
        case "boolean" if isinstance(value, bool):
            return value
        case "integer" if isinstance(value, int | float) and not isinstance(value, bool) and int(value) == value:
            return _long(int(value))
        case "array" if isinstance(value, list) and all(isinstance(one, str) for one in value):
            return frozenset(value)
    raise Failure


def resolved(value: Any) -> str:
    """A path of plain parts, without `.` and `..`."""
    if not isinstance(value, str):
        raise Failure
    found = posixpath.normpath(value)
    return found[1:] if found.startswith("//") else found
