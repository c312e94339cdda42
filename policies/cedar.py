"""The policy engine: what a profile selects is allowed where its set of Cedar policies permits it without errors.

Knows rules and requests. Cedar leaves out a policy that cannot be evaluated, even one that forbids: any error denies.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import cedarpy

from policies import arguments, asking
from policies.allowlist import AllowList
from policies.arguments import Unjudgeable
from policies.decision import Action, Decision, Principal, Request, place_of
from policies.rule import Rule
from policies.ruleset import RuleSet
from policies.shapes import Shape, shapes
from policies.vocabulary import TYPES

UNJUDGED: Final = "could not be judged"
ASKED: Final = "a person must approve it"
MAX_SHAPES: Final = 10_000


class CedarEngine:
    """Decides by a profile's selection first and its set of policies then.

    `chosen` says which set each profile has; a profile without one is allowed nothing.
    """

    def __init__(self, base: AllowList, sets: Mapping[str, RuleSet], chosen: Mapping[str, str]) -> None:
        self._base = base
        self._sets = dict(sets)
        self._chosen = dict(chosen)
        self._slices: dict[tuple[str, str, str, Action], _Slice] = {}
        self._alike: dict[tuple[str, ...], _Slice] = {}
        """Slices by the set and the rules they are made of: most servers have the same ones."""
        self._alone = {name: frozenset(rule.only for rule in each.rules) for name, each in sets.items()}
        texts = sorted((name, rule.id, rule.text) for name, each in sets.items() for rule in each.rules)
        whole = repr((base.generation, texts, sorted(chosen.items())))
        self.generation = hashlib.sha256(whole.encode()).hexdigest()[:16]

    def reads_context(self, request: Request) -> bool:
        return bool(self.reads(request))

    def reads(self, request: Request) -> frozenset[tuple[str, ...]]:
        """The members of `context` that a policy about this request looks at."""
        if request.action == "list" or not self._base.decide(request).allowed:
            return frozenset()
        return self._slice(request.profile, request.server, request.item, request.action).reads

    def decide(self, request: Request) -> Decision:
        if request.action == "list":
            (seen,) = self.visible([request])
            base = self._base.decide(request)
            return base if not base.allowed or seen else Decision(False, base.policy_ids, "hidden by policy")
        base = self._base.decide(request)
        if not base.allowed:
            return base
        part = self._slice(request.profile, request.server, request.item, request.action)
        if part.whole is None:
            return Decision(False, base.policy_ids, "no policy permits it")
        try:
            asked = part.request(request)
            resource = _resource(request, part.reads_uri)
        except _Doubt as doubt:
            return Decision(False, (*base.policy_ids, *doubt.ids), doubt.why)
        (result,) = _ask([asked], part.whole, [_user(request.principal), resource])
        return part.decision(result, base.policy_ids)

    def visible(self, requests: Sequence[Request]) -> list[bool]:
        seen = [self._base.decide(request).allowed for request in requests]
        groups: dict[tuple[str, str, str, Action, Principal], list[int]] = defaultdict(list)
        for at, request in enumerate(requests):
            if seen[at]:
                alone = self._only(request.profile, request.server, request.item)
                groups[request.profile, request.server, alone, request.action, request.principal].append(at)
        for (profile, server, item, action, _), places in groups.items():
            done: Action = "call" if action == "list" else action
            each = [requests[at] for at in places]
            answers = self._slice(profile, server, item, done).possible(each, done)
            if action == "list":
                hidden = self._slice(profile, server, item, "list").hides(each)
                answers = [yes and not no for yes, no in zip(answers, hidden, strict=True)]
            for at, answer in zip(places, answers, strict=True):
                seen[at] = answer
        return seen

    def _only(self, profile: str, server: str, item: str) -> str:
        """The item, if the head of a policy is about it alone."""
        return item if place_of(server, item) in self._alone.get(self._chosen.get(profile, ""), ()) else ""

    def _slice(self, profile: str, server: str, item: str, action: Action) -> _Slice:
        item = self._only(profile, server, item)
        key = (profile, server, item, action)
        found = self._slices.get(key)
        if found is None:
            own = self._sets.get(self._chosen.get(profile, ""))
            kinds = TYPES[action]
            rules = [
                rule
                for rule in (own.rules if own is not None else ())
                if any(rule.concerns(profile, server, item, kind, action) for kind in kinds)
            ]
            name = own.name if own is not None else ""
            made = (name, *(rule.id for rule in rules))
            if made not in self._alike:
                self._alike[made] = _Slice(name, rules)
            # Who asks chooses neither: profiles and servers are the catalogue's.
            found = self._slices[key] = self._alike[made]
        return found


class _Doubt(Exception):
    """A request that a rule reads and nobody can judge."""

    def __init__(self, why: str, ids: tuple[str, ...]) -> None:
        super().__init__(why)
        self.why, self.ids = why, ids


class _Slice:
    """The policies that can concern one kind of action in one server of one profile, ready to be asked."""

    def __init__(self, name: str, rules: list[Rule]) -> None:
        self._name = name
        self._rules = {rule.id: rule for rule in rules}
        self.reads = frozenset(place for rule in rules for place in rule.reads)
        self.reads_uri = any(rule.members & {"path", "host", ""} for rule in rules)
        self._names = any(rule.names for rule in rules)
        self._mentioned = frozenset(id for rule in rules for id in rule.mentions)
        self._forbids_read = frozenset(place for rule in rules if rule.narrows for place in rule.reads)
        self._shapes: dict[int, tuple[Mapping[str, Any], dict[str, Shape]]] = {}
        permits = any(rule.permits for rule in rules)
        self.whole = _policy_set({rule.id: rule.tree for rule in rules}) if rules else None
        possible = {rule.id: tree for rule in rules if (tree := rule.possibly()) is not None}
        self._possible = _policy_set(possible) if permits else None
        hiding = {id: tree for id, tree in possible.items() if not self._rules[id].permits}
        self._hiding = _policy_set(hiding) if hiding else None
        self._permits_all = all(rule.permits for rule in rules) and any(map(_is_unconditional, rules))
        self._asks = any(rule.ask is not None for rule in rules)

    # -- asking ------------------------------------------------------------------------------

    def request(self, request: Request) -> dict[str, Any]:
        """
        Raises:
            _Doubt: something that a rule reads has no certain meaning.
        """
        context: dict[str, Any] = {"args": {}, "path": {}, "host": {}, "ip": {}}
        for place in self.reads:
            try:
                value = self._read(request, place)
            except Unjudgeable as exc:
                ids = tuple(f"{self._name}:{rule.id}" for rule in self._rules.values() if place in rule.reads)
                raise _Doubt(f"the argument {place[1]} {UNJUDGED}: {exc}", ids) from exc
            if value is None:
                continue
            if len(place) == 2:
                context[place[0]][place[1]] = value
            else:
                context[place[0]] = value
        return _asked(request, request.action, context)

    def _read(self, request: Request, place: tuple[str, ...]) -> Any:
        if len(place) == 1:
            return _circumstance(request, place[0])
        view, name = place
        if not isinstance(request.arguments, Mapping):
            raise Unjudgeable("the arguments are no object")
        for other in request.arguments:
            # Some servers read names without regard to capitals, and take the last.
            if other != name and other.casefold() == name.casefold() and self._shape(request, other) is None:
                raise Unjudgeable(f"{other[:100]!r} may be taken for it")
        value = request.arguments.get(name)
        if value is None:
            return None
        match view:
            case "path":
                resolved = arguments.path(value)
                if place in self._forbids_read and not arguments.is_certain(resolved):
                    raise Unjudgeable("a relative path, and a rule forbids by it")
                return resolved
            case "host":
                return arguments.host(value)
            case "ip":
                return arguments.address(value)
            case _:
                return arguments.typed(value, self._shape(request, name))

    def _shape(self, request: Request, name: str) -> Shape | None:
        parameters = request.facts.parameters
        kept = self._shapes.get(id(parameters))
        if kept is None or kept[0] is not parameters:
            if len(self._shapes) >= MAX_SHAPES:
                self._shapes.clear()
            kept = self._shapes[id(parameters)] = parameters, shapes(parameters)
        return kept[1].get(name)

    def decision(self, result: cedarpy.AuthzResult | None, base: tuple[str, ...]) -> Decision:
        if result is None:
            return Decision(False, base, f"the request {UNJUDGED}")
        ids = (*base, *(f"{self._name}:{id}" for id in sorted(result.diagnostics.reasons)))
        if result.diagnostics.errors:
            return Decision(False, ids, "a policy could not be evaluated")
        if result.allowed and self._asks:
            found = [ask for id in sorted(result.diagnostics.reasons) if (ask := self._rules[id].ask) is not None]
            if found:
                return Decision(False, ids, ASKED, asking.joined(found))
        if result.allowed:
            return Decision(True, ids, "permitted by policy")
        said = [self._rules[id].reason for id in sorted(result.diagnostics.reasons) if self._rules[id].reason]
        why = "; ".join(said) or ("forbidden" if len(ids) > len(base) else "no policy permits it")
        return Decision(False, ids, why)

    def possible(self, requests: list[Request], action: Action) -> list[bool]:
        """Which of these, of one principal, could be permitted."""
        if self._possible is None or self._permits_all:
            return [self._permits_all] * len(requests)
        return [
            answer is not None and answer.allowed and not answer.diagnostics.errors
            for answer in self._each(requests, action, self._possible)
        ]

    def hides(self, requests: list[Request]) -> list[bool]:
        """Which of these are forbidden to be listed."""
        if self._hiding is None:
            return [False] * len(requests)
        return [
            answer is None or bool(answer.diagnostics.reasons or answer.diagnostics.errors)
            for answer in self._each(requests, "list", self._hiding)
        ]

    def _each(
        self, requests: list[Request], action: Action, policies: cedarpy.PolicySet
    ) -> Iterable[cedarpy.AuthzResult | None]:
        """The answers, asked once for all items that no policy can tell apart."""
        alike: dict[tuple[object, ...], int] = {}
        asked: list[dict[str, Any]] = []
        entities: list[dict[str, Any]] = []
        places: list[int | None] = []
        for request in requests:
            facts = request.facts
            named = self._names or request.place in self._mentioned
            key = (request.item if named else "", facts.categories, *_hints(request).values())
            if key not in alike:
                try:
                    resource = _resource(request, self.reads_uri)
                except _Doubt:
                    places.append(None)
                    continue
                alike[key] = len(asked)
                asked.append(_asked(request, action, {"args": {}, "path": {}, "host": {}, "ip": {}}))
                entities.append(resource)
            places.append(alike[key])
        answers = _ask(asked, policies, [_user(requests[0].principal), *entities]) if asked else []
        return [answers[place] if place is not None else None for place in places]


def _is_unconditional(rule: Rule) -> bool:
    """Whether a rule permits everything to everybody: nothing of a request can change its word."""
    heads = (rule.tree[part] for part in ("principal", "action", "resource"))
    return rule.permits and not rule.tree.get("conditions") and all(head == {"op": "All"} for head in heads)


def _policy_set(trees: Mapping[str, Mapping[str, Any]]) -> cedarpy.PolicySet:
    return cedarpy.PolicySet.from_json_str(json.dumps({"staticPolicies": trees, "templates": {}, "templateLinks": []}))


def _ask(
    requests: list[dict[str, Any]], policies: cedarpy.PolicySet, entities: list[dict[str, Any]]
) -> list[cedarpy.AuthzResult | None]:
    """The answers; None for each if Cedar takes the requests for malformed."""
    try:
        return list(cedarpy.is_authorized_batch(requests, policies, json.dumps(entities)))
    except ValueError:
        return [None] * len(requests)


def _asked(request: Request, action: Action, context: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "principal": {"type": "User", "id": request.principal.id},
        "action": {"type": "Action", "id": action},
        "resource": {"type": TYPES[action][0], "id": request.place},
        "context": context,
    }


def _user(principal: Principal) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "kind": principal.kind,
        "client": principal.client,
        "strength": principal.strength,
    }
    if principal.scopes is not None:
        attributes["scopes"] = sorted(principal.scopes)
    return {
        "uid": {"type": "User", "id": principal.id},
        "attrs": attributes,
        "parents": [{"type": "Group", "id": group} for group in sorted(principal.groups)],
    }


def _hints(request: Request) -> dict[str, Any]:
    facts = request.facts
    if request.action == "use":
        return {"license": facts.license, "megabytes": facts.size_bytes // 1_000_000}
    if request.action in ("run", "administer"):
        return dict(facts.about)
    if request.action not in ("call", "list"):
        return {}
    return {
        "readOnly": facts.read_only,
        "destructive": facts.destructive and not facts.read_only,
        "idempotent": facts.idempotent,
        "openWorld": facts.open_world,
    }


def _resource(request: Request, uri_views: bool) -> dict[str, Any]:
    """
    Raises:
        _Doubt: a rule reads the path or host of a URI that has no certain one.
    """
    kind = TYPES[request.action][0]
    attributes: dict[str, Any] = {
        "server": request.server,
        "categories": list(request.facts.categories),
        **_hints(request),
    }
    if kind == "Resource":
        attributes["uri"] = request.item
        if uri_views:
            attributes.update(_uri_views(request.item))
    else:
        attributes["name"] = request.item
    parents = [{"type": "Profile", "id": request.profile}] if kind != "Area" else []
    if request.server:
        parents.insert(0, {"type": "Server", "id": request.server})
    return {"uid": {"type": kind, "id": request.place}, "attrs": attributes, "parents": parents}


def _uri_views(uri: str) -> dict[str, str]:
    """The path of a file's URI, or the host of any other with one."""
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):(//)?", uri)
    try:
        if scheme is None and not uri.startswith("/"):
            raise Unjudgeable("no valid URI")
        if scheme is None or scheme[1].lower() == "file":
            return {"path": arguments.path(uri)}
        has_host = scheme[2] and uri[scheme.end() : scheme.end() + 1] not in ("", "/", "?", "#")
        return {"host": arguments.host(uri)} if has_host else {}
    except Unjudgeable as exc:
        raise _Doubt(f"the URI {UNJUDGED}: {exc}", ()) from exc


def _circumstance(request: Request, name: str) -> Any:
    at = datetime.fromtimestamp(request.circumstances.at, UTC)
    match name:
        case "now":
            return {"__extn": {"fn": "datetime", "arg": at.strftime("%Y-%m-%dT%H:%M:%SZ")}}
        case "hour":
            return at.hour
        case "weekday":
            return at.isoweekday()
    if not request.circumstances.source:
        return None
    try:
        source = ipaddress.ip_address(request.circumstances.source)
    except ValueError:
        return None
    mapped = source.ipv4_mapped if isinstance(source, ipaddress.IPv6Address) else None
    return {"__extn": {"fn": "ip", "arg": str(mapped or source)}}
