"""The words of our policies as a Cedar schema, and rules checked against it.

Knows entity types, actions and the arguments of known tools; decides nothing.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Final

from policies.decision import Action
from policies.rule import VIEWS, PolicyError, Rule, entities, mistakes
from policies.shapes import TEXT, Shape, merge, shapes

TYPES: Final[Mapping[Action, tuple[str, ...]]] = {
    "call": ("Tool",),
    "list": ("Tool",),
    "prompt": ("Prompt",),
    "complete": ("Prompt",),
    "read": ("Resource",),
    "extension": ("Method",),
    "use": ("Model",),
    "run": ("Agent",),
    "administer": ("Area",),
}
"""What each action is done to."""

AREAS: Final = ("approvals", "audit", "catalog", "connections", "profiles", "reviews", "secrets", "servers")
"""What there is to administer. `connections` are sign-ins at the providers of remote servers."""

_TEXT: Final = {"type": "String"}
_TEXTS: Final = {"type": "Set", "element": _TEXT}
_TRUTH: Final = {"type": "Boolean"}
_MAYBE: Final = {"type": "String", "required": False}
_ITEM: Final = {"name": _TEXT, "server": _TEXT, "categories": _TEXTS}
_ATTRIBUTES: Final[Mapping[str, Mapping[str, Any]]] = {
    "Tool": {**_ITEM, "readOnly": _TRUTH, "destructive": _TRUTH, "idempotent": _TRUTH, "openWorld": _TRUTH},
    "Prompt": _ITEM,
    "Method": _ITEM,
    "Resource": {
        "uri": _TEXT,
        "server": _TEXT,
        "categories": _TEXTS,
        "path": {**_TEXT, "required": False},
        "host": {**_TEXT, "required": False},
    },
    "Model": {**_ITEM, "license": _TEXT, "megabytes": {"type": "Long"}},
    "Agent": {**_ITEM, "model": _TEXT},
    "Area": {**_ITEM, "verb": _TEXT, "changes": _TRUTH, "owner": _MAYBE, "item": _MAYBE},
}
_USER: Final = {
    "kind": _TEXT,
    "client": _TEXT,
    "strength": _TEXT,
    "scopes": {**_TEXTS, "required": False},
}


@dataclass(frozen=True)
class Known:
    """What policies may name: the profiles, the servers, and the arguments of the tools and prompts of those servers
    that said what they offer."""

    profiles: Collection[str] = ()
    servers: Collection[str] = ()
    tools: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    """Server to tool to JSON schema of the tool's arguments."""

    @cached_property
    def shapes(self) -> Mapping[str, Mapping[str, Mapping[str, Shape]]]:
        return {
            server: {tool: shapes(parameters) for tool, parameters in tools.items()}
            for server, tools in self.tools.items()
        }


def check(rules: Iterable[Rule], known: Known) -> list[str]:
    """Hold rules against the schema; the answer are the places of rules whose arguments could not be checked, as their
    server was never asked what it offers.

    Raises:
        PolicyError: with every problem found, one a line.
    """
    problems: list[str] = []
    unchecked: list[str] = []
    for rule in rules:
        found = list(_strangers(rule, known))
        types, doubts, complete = _arguments(rule, known)
        found += doubts
        if not found and complete:
            schema = _schema(tuple(sorted(types.items())))
            found = [_plain(error) for error in mistakes(rule.text, schema)]
        elif not found:
            unchecked.append(rule.place)
        problems += [f"{rule.place}: {problem}" for problem in found]
    if problems:
        raise PolicyError("\n".join(problems))
    return unchecked


def _plain(error: str) -> str:
    if "unable to guarantee safety of access" in error:
        return f"{error.partition(', ')[2]}; ask first whether it is there, as in: context.path has file && …"
    return error.partition("policy0`, ")[2] or error


def _strangers(rule: Rule, known: Known) -> Iterator[str]:
    """Servers and profiles in the rule that are in no catalogue: a rule about a misspelt name protects nothing."""
    for entity in entities(rule.tree):
        kind, id = entity["type"], entity["id"]
        of = known.servers if kind == "Server" else known.profiles if kind == "Profile" else None
        if of is not None and id not in of:
            yield f"names {kind}::{json.dumps(id)}, which is not in the catalogue{_hint(id, of)}"
        elif kind == "Model":
            if ":" not in id.rpartition("/")[2]:
                yield f"names Model::{json.dumps(id)}; write it with its tag, as {id}:latest"
        elif kind == "Area":
            if id not in AREAS:
                yield f"names Area::{json.dumps(id)}; there are {', '.join(AREAS)}{_hint(id, AREAS)}"
        elif kind in _ATTRIBUTES and kind != "Agent":
            server, slash, _ = id.partition("/")
            if not slash or server not in known.servers:
                yield (
                    f"names {kind}::{json.dumps(id)}; write it as server/name with a server of the catalogue"
                    f"{_hint(server, known.servers)}"
                )


def _hint(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _arguments(rule: Rule, known: Known) -> tuple[dict[tuple[str, str], str], list[str], bool]:
    """The Cedar types of the arguments a rule reads, what is wrong with them, and whether all of them are known."""
    wanted = {(place[0], place[1]) for place in rule.reads if len(place) == 2}
    if not wanted:
        return {}, [], True
    if "call" not in rule.actions():
        return {place: json.dumps(TEXT.cedar()) for place in wanted}, [], True
    server, tool = rule.scope()
    if server and server not in known.shapes:
        return {}, [], False
    tools = known.shapes[server] if server else {f"{s}/{t}": x for s, of in known.shapes.items() for t, x in of.items()}
    if tool and tool in tools:
        tools = {tool: tools[tool]}
    merged, clashing = merge(tools.values())
    complete = bool(server) or set(known.shapes) >= set(known.servers)
    types: dict[tuple[str, str], str] = {}
    doubts = []
    for view, name in sorted(wanted):
        shape = merged.get(name)
        if shape is None and name in clashing:
            doubts.append(f"reads the argument {name}, which has several types; write a rule for each tool")
        elif shape is None and complete:
            hint = _hint(name, merged) or (f"; they are {', '.join(sorted(merged)[:8])}" if merged else "")
            doubts.append(f"reads the argument {name}, which no tool it is about has with one type{hint}")
        elif shape is not None and view != "args" and shape != TEXT:
            doubts.append(f"reads context.{view}.{name}, but the argument is no text")
        elif shape is not None:
            types[view, name] = json.dumps({"type": "Extension", "name": "ipaddr"} if view == "ip" else shape.cedar())
    return types, doubts, not doubts and len(types) == len(wanted)


@lru_cache(maxsize=512)
def _schema(arguments: tuple[tuple[tuple[str, str], str], ...]) -> str:
    """The whole vocabulary, with these arguments."""
    views: dict[str, dict[str, Any]] = {view: {} for view in VIEWS}
    for (view, name), kind in arguments:
        views[view][name] = {**json.loads(kind), "required": False}
    context = {view: {"type": "Record", "attributes": members} for view, members in views.items()}
    circumstances = {
        "now": {"type": "Extension", "name": "datetime"},
        "hour": {"type": "Long"},
        "weekday": {"type": "Long"},
        "source": {"type": "Extension", "name": "ipaddr", "required": False},
    }

    def entity(attributes: Mapping[str, Any], *parents: str) -> dict[str, Any]:
        return {"memberOfTypes": list(parents), "shape": {"type": "Record", "attributes": attributes}}

    document = {
        "": {
            "entityTypes": {
                "User": entity(_USER, "Group"),
                "Group": entity({}),
                "Profile": entity({}),
                "Server": entity({}, "Profile"),
                **{name: entity(attributes, "Server", "Profile") for name, attributes in _ATTRIBUTES.items()},
                "Model": entity(_ATTRIBUTES["Model"], "Profile"),
                "Agent": entity(_ATTRIBUTES["Agent"], "Profile"),
                "Area": entity(_ATTRIBUTES["Area"]),
            },
            "actions": {
                action: {
                    "appliesTo": {
                        "principalTypes": ["User"],
                        "resourceTypes": list(types),
                        "context": {"type": "Record", "attributes": {**context, **circumstances}},
                    }
                }
                for action, types in TYPES.items()
            },
        }
    }
    return json.dumps(document)
