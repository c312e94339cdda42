"""Ranking entries against the words somebody types: BM25 over their names and descriptions.

Does not know files, and gives no opinion on who may use what it finds.
"""

import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator

from catalog.entry import Entry

# Okapi BM25. B is lower than the usual 0.75: an entry with many tools is not a worse answer for it.
K1 = 1.2
B = 0.4
WEIGHTS = {"id": 4.0, "title": 4.0, "categories": 2.0, "tools": 1.5, "description": 1.0}
"""How much a word counts by where it stands."""
PREFIX_SHARE = 0.5
"""What a word is worth that only begins with the typed one."""
SHORTEST_PREFIX = 3
MAX_QUERY_WORDS = 16
MAX_QUERY_CHARS = 1000

_WORD = re.compile(r"[^\W_]+")
_HUMP = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")


class Index:
    """The words of some entries, ready to be searched; built once, never changed."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._entries = list(entries)
        self._postings: dict[str, dict[int, float]] = defaultdict(dict)
        """Word to entry number to weighted count."""
        self._lengths: list[float] = []
        for number, entry in enumerate(self._entries):
            weights: defaultdict[str, float] = defaultdict(float)
            for word, weight in _weighted_words(entry):
                weights[word] += weight
            for word, weight in weights.items():
                self._postings[word][number] = weight
            self._lengths.append(sum(weights.values()))
        self._mean_length = sum(self._lengths) / len(self._lengths) if self._lengths else 1.0

    def search(self, text: str) -> list[Entry]:
        """Return the matching entries, best first, equals in catalog order; all entries for no words."""
        text = text[:MAX_QUERY_CHARS]
        words = list(dict.fromkeys(_words(text)))[:MAX_QUERY_WORDS]
        if not words:
            return [] if text.strip() else list(self._entries)
        scores: dict[int, float] = defaultdict(float)
        for word in words:
            for number, score in self._score(word).items():
                scores[number] += score
        exact = text.strip().casefold()

        def rank(number: int) -> tuple[bool, float, int]:
            return (self._entries[number].id.casefold() != exact, -scores[number], number)

        return [self._entries[number] for number in sorted(scores, key=rank)]

    def _score(self, word: str) -> dict[int, float]:
        """Return each matching entry's score for one word: the exact word, else words that begin with it."""
        best: dict[int, float] = {}
        for candidate, share in self._candidates(word):
            posting = self._postings[candidate]
            rarity = math.log(1 + (len(self._entries) - len(posting) + 0.5) / (len(posting) + 0.5))
            for number, count in posting.items():
                length = self._lengths[number] / self._mean_length
                score = share * rarity * count * (K1 + 1) / (count + K1 * (1 - B + B * length))
                best[number] = max(best.get(number, 0.0), score)
        return best

    def _candidates(self, word: str) -> Iterator[tuple[str, float]]:
        if word in self._postings:
            yield word, 1.0
        if len(word) >= SHORTEST_PREFIX:
            for other in self._postings:
                if other != word and other.startswith(word):
                    yield other, PREFIX_SHARE


def _weighted_words(entry: Entry) -> Iterator[tuple[str, float]]:
    texts = {
        "id": [entry.id],
        "title": [entry.title],
        "categories": entry.categories,
        "tools": entry.tools,
        "description": [entry.description],
    }
    for field, weight in WEIGHTS.items():
        # A word in many tool names says little more than in one: count it once.
        words = [word for text in texts[field] for word in _words(text, humps=True)]
        for word in set(words) if field == "tools" else words:
            yield word, weight


def _words(text: str, *, humps: bool = False) -> Iterator[str]:
    """Yield the words of a text, folded; with humps also the parts of DynamoDB and getForecast."""
    for match in _WORD.finditer(unicodedata.normalize("NFKC", text)):
        word = match[0]
        yield _singular(word.casefold())
        if humps and len(parts := _HUMP.findall(word)) > 1:
            yield from (_singular(part.casefold()) for part in parts)


def _singular(word: str) -> str:
    """Drop a plural s, so that files finds file; crude, but the same on both sides."""
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
