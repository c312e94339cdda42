"""A profile's budget of tools: which are listed, and how the others are found and called by two tools of the gateway.

Pure. Knows finished definitions and names; who may see a tool was decided before."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from msgspec import Raw

from catalog import Budget
from catalog.words import STOPWORDS, SYNONYMS, words
from gateway.upstream import Reply
from gateway.wire import envelope
from gateway.wire.envelope import Fields, WireError

FIND: Final = "lockgate__find_tools"
CALL: Final = "lockgate__call_tool"
MOST_FOUND: Final = 8
MAX_QUERY_CHARS: Final = 500
NAME_WEIGHT: Final = 4
"""How much a word in a tool's name counts; one in its description counts 1."""
SYNONYM_SHARE: Final = 0.5

_FIND: Final = envelope.encode(
    {
        "name": FIND,
        "title": "Find tools",
        "description": "More tools can be called here than are listed. Describe in a few words what you want to do; "
        f"the answer holds the definitions of the tools that fit. Call them with {CALL}.",
        "inputSchema": {
            "type": "object",
            "properties": {"query": {"type": "string", "description": "what the tool should do"}},
            "required": ["query"],
            "additionalProperties": False,
        },
        "annotations": {"readOnlyHint": True, "openWorldHint": False},
    }
)
_CALL: Final = envelope.encode(
    {
        "name": CALL,
        "title": "Call a tool that is not listed",
        "description": f"Calls a tool by the name that {FIND} told, with arguments that fit its input schema.",
        "inputSchema": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "description": "the name of the tool"},
                "arguments": {"type": "object", "description": "its arguments"},
            },
            "required": ["name"],
            "additionalProperties": False,
        },
    }
)
OWN: Final[Mapping[str, bytes]] = {FIND: _FIND, CALL: _CALL}


class Shelf:
    """All tools of a surface that does not list all of them, ready to be searched."""

    def __init__(self, definitions: Mapping[str, bytes]) -> None:
        self.definitions = definitions
        self._words: dict[str, Counter[str]] | None = None

    def find(self, query: str) -> list[bytes]:
        """The definitions of the tools that fit a question best, the best first, equals in the order of the profile."""
        if self._words is None:
            self._words = {name: _weights(name, raw) for name, raw in self.definitions.items()}
        known = self._words
        wanted = dict.fromkeys(words(query[:MAX_QUERY_CHARS]))
        scores: dict[str, float] = {}
        for word in [word for word in wanted if word not in STOPWORDS] or wanted:
            for share, meant in [(1.0, word), *((SYNONYM_SHARE, other) for other in SYNONYMS.get(word, ()))]:
                having = [name for name in known if meant in known[name]]
                rarity = share * math.log(1 + len(known) / max(1, len(having)))
                for name in having:
                    count = known[name][meant]
                    scores[name] = scores.get(name, 0.0) + rarity * count / (count + 1)
        best = sorted(scores, key=lambda name: -scores[name])
        return [self.definitions[name] for name in best[:MOST_FOUND]]


class Cut(NamedTuple):
    """What a budget makes of the tools of a profile."""

    listed: Mapping[str, bytes]
    shelf: Shelf | None
    """None without a budget. With one the gateway's own tools answer, also while everything is listed: a client may
    know them from before."""


def cut(budget: Budget | None, definitions: Mapping[str, bytes]) -> Cut:
    """List the first tools, in the order given, as long as they fit; the first that does not ends the list. Then the
    gateway's own two are listed too, and count."""
    if budget is None:
        return Cut(definitions, None)
    if _fits(budget, definitions.values()):
        return Cut(definitions, Shelf(definitions))
    listed = dict(OWN)
    for name, raw in definitions.items():
        if not _fits(budget, [*listed.values(), raw]):
            break
        listed.setdefault(name, raw)
    return Cut(listed, Shelf(definitions))


def _fits(budget: Budget, definitions: Iterable[bytes]) -> bool:
    sizes = [len(raw.decode()) for raw in definitions]
    return (budget.tools is None or len(sizes) <= budget.tools) and (budget.chars is None or sum(sizes) <= budget.chars)


def answer(shelf: Shelf, arguments: bytes) -> Reply:
    """The result of a search."""
    try:
        query = envelope.text(envelope.fields(arguments).get("query", envelope.ABSENT), "query")
    except WireError:
        return _text("Give a query: a few words on what the tool should do.", is_error=True)
    found = shelf.find(query)
    if not found:
        return _text("No tool fits these words. Try others.")
    listed = b"[%b]" % b",".join(found)
    content = [{"type": "text", "text": listed.decode()}]
    return Reply(envelope.encode({"content": content, "structuredContent": {"tools": Raw(listed)}}), None)


def _text(text: str, *, is_error: bool = False) -> Reply:
    return Reply(envelope.encode({"content": [{"type": "text", "text": text}], "isError": is_error}), None)


def unwrap(members: Fields) -> None:
    """Put the tool that a call of `CALL` names, and its arguments, in the place of the call's own.

    Raises:
        WireError: it names none.
    """
    inner = envelope.fields(members.get("arguments", envelope.ABSENT))
    envelope.text(inner.get("name", envelope.ABSENT), "arguments.name")
    members["name"] = inner["name"]
    members["arguments"] = inner.get("arguments", Raw(b"{}"))


def _weights(name: str, raw: bytes) -> Counter[str]:
    counts: Counter[str] = Counter()
    try:
        tool = envelope.value(raw)
    except WireError:
        tool = {}
    for word in words(name, humps=True):
        counts[word] += NAME_WEIGHT
    texts: Sequence[object] = (tool.get("title"), tool.get("description"))
    for text in texts:
        for word in words(text) if isinstance(text, str) else ():
            counts[word] += 1
    return counts
