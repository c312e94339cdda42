"""What recorded calls would have met under other policies, as far as their records say.

Knows engines and rules. What was not recorded is unknown: then every answer that it could lead to is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from policies.cedar import CedarEngine
from policies.compare import ORDER, Thing, arguments_beside, people, sources
from policies.decision import Request
from policies.rule import Rule

Word = Literal["allow", "ask", "deny"]
Verdict = Literal["same", "wider", "narrower", "unclear"]
MAX_KEPT: Final = 50_000


@dataclass(frozen=True, slots=True)
class Met:
    """The answers that a request may meet; more than one where they depend on what is not known."""

    words: frozenset[Word]
    policies: tuple[str, ...] = ()
    depends: tuple[str, ...] = ()
    """What the answer depends on and nobody recorded, as `context.args.path` or `principal`."""

    def against(self, then: Word) -> Verdict:
        """What has changed for a request that was answered so."""
        if len(self.words) > 1:
            return "unclear"
        (now,) = self.words
        if now == then:
            return "same"
        return "wider" if ORDER.index(now) > ORDER.index(then) else "narrower"


@dataclass
class Replay:
    """Asks one engine about recorded requests. `rules` are those of the profile's policy."""

    engine: CedarEngine
    rules: Sequence[Rule]
    _kept: dict[tuple[object, ...], Met] = field(default_factory=dict)

    def meet(self, request: Request, *, principal_known: bool) -> Met:
        """The request has no arguments: they are not recorded. Without the principal only its id is known, and not from
        where it came."""
        reads = self.engine.reads(request)
        kept_as = (request.principal, request.action, request.profile, request.server, request.item, principal_known)
        if not reads and (kept := self._kept.get(kept_as)) is not None:
            return kept
        words: set[Word] = set()
        policies: dict[str, None] = {}
        for asked in self._possible(request, principal_known):
            found, ids = self._words(asked)
            words |= found
            policies |= dict.fromkeys(ids)
        depends = [f"context.{'.'.join(place)}" for place in sorted(reads) if len(place) == 2]
        if not principal_known:
            depends.append("principal")
        met = Met(frozenset(words), tuple(policies), tuple(depends) if len(words) > 1 else ())
        if not reads and len(self._kept) < MAX_KEPT:
            self._kept[kept_as] = met
        return met

    def _possible(self, request: Request, principal_known: bool) -> Iterator[Request]:
        if principal_known:
            yield request
            return
        for _, who in people(self.rules):
            for source in sources(self.rules):
                yield replace(
                    request,
                    principal=replace(who, id=request.principal.id),
                    circumstances=replace(request.circumstances, source=source),
                )

    def _words(self, request: Request) -> tuple[set[Word], tuple[str, ...]]:
        if not any(len(place) == 2 for place in self.engine.reads(request)):
            decision = self.engine.decide(request)
            return {decision.word}, decision.policy_ids
        (possible,) = self.engine.visible([request])
        if not possible:
            return {"deny"}, self.engine.decide(request).policy_ids
        thing = Thing(request.action, request.server, request.item, request.facts)
        tried = [
            self.engine.decide(replace(request, arguments=values)) for values in arguments_beside(self.rules, thing)
        ]
        words: set[Word] = {decision.word for decision in tried}
        if words == {"deny"}:
            words.add("allow")
        # An argument that has no certain meaning denies, whatever the policies say.
        return words | {"deny"}, tuple(dict.fromkeys(id for decision in tried for id in decision.policy_ids))
