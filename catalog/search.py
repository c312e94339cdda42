"""Ranking entries against what somebody types: SQLite's full-text index over names, words and tools.

Does not know files, and gives no opinion on who may use what it finds.
"""

import sqlite3
import weakref
from collections import defaultdict
from collections.abc import Iterable, Iterator
from threading import Lock

from catalog.entry import Entry
from catalog.words import STOPWORDS, SYNONYMS, words

WEIGHTS = {"id": 4.0, "title": 6.0, "categories": 3.0, "description": 3.0, "tools": 1.0, "publisher": 0.5}
"""How much a word counts by where it stands; the columns of the index, in order."""
PREFIX_SHARE = 0.6
"""What a word is worth that only begins with the typed one."""
SYNONYM_SHARE = 0.5
SHORTEST_PREFIX = 3
COVERAGE = 0.6
"""How much of an entry's score depends on the share of the typed words that it matches."""
MAX_QUERY_WORDS = 16
MAX_QUERY_CHARS = 1000
MAX_TOOL_WORDS = 120


class Index:
    """The words of some entries, ready to be searched; built once, never changed. Any thread may search."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._entries = list(entries)
        self._lock = Lock()
        # One connection, which the lock gives to one thread at a time; the index lives in memory.
        self._db = sqlite3.connect(":memory:", check_same_thread=False)
        weakref.finalize(self, self._db.close)
        columns = ", ".join(WEIGHTS)
        self._db.execute(
            f"CREATE VIRTUAL TABLE entries USING fts5({columns}, "
            "tokenize='porter unicode61', prefix='3 4', detail=column)"
        )
        slots = ", ".join("?" for _ in WEIGHTS)
        self._db.executemany(
            f"INSERT INTO entries(rowid, {columns}) VALUES (?, {slots})",  # noqa: S608 - names from WEIGHTS
            ((number, *_texts(entry)) for number, entry in enumerate(self._entries)),
        )

    def search(self, text: str) -> list[Entry]:
        """Return the matching entries, best first, equals in catalog order; all entries for no words."""
        text = text[:MAX_QUERY_CHARS]
        typed = list(dict.fromkeys(words(text)))[:MAX_QUERY_WORDS]
        if not typed:
            return [] if text.strip() else list(self._entries)
        meant = [word for word in typed if word not in STOPWORDS] or typed
        scores: dict[int, float] = defaultdict(float)
        matched: dict[int, float] = defaultdict(float)
        for word in meant:
            for number, (score, share) in self._score(word).items():
                scores[number] += score
                matched[number] += share
        exact = text.strip().casefold()

        def rank(number: int) -> tuple[bool, float, int]:
            covered = 1 - COVERAGE + COVERAGE * matched[number] / len(meant)
            return (self._entries[number].id.casefold() != exact, -scores[number] * covered, number)

        return [self._entries[number] for number in sorted(scores, key=rank)]

    def _score(self, word: str) -> dict[int, tuple[float, float]]:
        """Return each matching entry's best score for one word, and the share it is worth."""
        best: dict[int, tuple[float, float]] = {}
        for query, share in _variants(word):
            for number, score in self._matches(query):
                if share * score > best.get(number, (0.0, 0.0))[0]:
                    best[number] = (share * score, share)
        return best

    def _matches(self, query: str) -> list[tuple[int, float]]:
        weights = ", ".join(str(weight) for weight in WEIGHTS.values())
        with self._lock:
            return self._db.execute(
                f"SELECT rowid, -bm25(entries, {weights}) FROM entries WHERE entries MATCH ?",  # noqa: S608 - numbers
                (query,),
            ).fetchall()


def _variants(word: str) -> Iterator[tuple[str, float]]:
    """Yield what to look for in place of a typed word, and what finding it is worth. Words hold no quotes."""
    yield f'"{word}"', 1.0
    for other in SYNONYMS.get(word, ()):
        yield f'"{other}"', SYNONYM_SHARE
    if len(word) >= SHORTEST_PREFIX:
        yield f'"{word}" *', PREFIX_SHARE


def _texts(entry: Entry) -> Iterator[str]:
    for field in WEIGHTS:
        match field:
            case "tools":
                # A word in many tool names says little more than in one: count each once.
                found = dict.fromkeys(word for tool in entry.tools for word in words(tool, humps=True))
                yield " ".join(list(found)[:MAX_TOOL_WORDS])
            case "categories":
                yield " ".join(words(" ".join(entry.categories)))
            case _:
                yield " ".join(words(getattr(entry, field) or "", humps=True))
