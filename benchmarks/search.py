"""How well and how fast `lockgate catalog search` finds servers: recall@5 and MRR over 200 questions.

The questions are frozen in benchmarks/data; half of them were looked at while the ranking was made, half were not. With
`--semantic MODEL` the same questions are asked of the vectors of a stored model, and of both rankings made one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import anyio

from catalog import Catalog, Entry, find_shipped_catalog, load_catalog
from catalog.fusion import fuse
from gateway.semantic import BATCH_TEXTS, embedder, learn, question_text, stored_model
from gateway.settings import read_settings

QUERIES = Path(__file__).parent / "data" / "catalog_queries.jsonl"
TOP = 5
FLOOR_RECALL = 0.9


Search = Callable[[str], list[Entry]]


@dataclass(frozen=True)
class Question:
    """What somebody might type, and the entries that would answer it."""

    query: str
    wanted: tuple[str, ...]


@dataclass(frozen=True)
class Score:
    """Averages over some questions."""

    n: int
    recall_at_5: float
    """Of the wanted entries, at most five, how many are among the first five."""
    any_at_5: float
    """How often at least one wanted entry is among the first five."""
    mrr: float


def questions() -> list[Question]:
    rows = [json.loads(line) for line in QUERIES.read_text().splitlines()]
    return [Question(row["query"], tuple(row["wanted"])) for row in rows]


def score(search: Search, asked: list[Question]) -> tuple[Score, list[tuple[Question, list[str]]]]:
    """The averages, and the questions whose first five answers lack something."""
    recalls, hits, ranks, lacking = [], [], [], []
    for question in asked:
        found = [entry.id for entry in search(question.query)]
        first = found[:TOP]
        recall = sum(id in first for id in question.wanted) / min(TOP, len(question.wanted))
        places = [found.index(id) for id in question.wanted if id in found]
        recalls.append(recall)
        hits.append(any(id in first for id in question.wanted))
        ranks.append(1 / (1 + min(places)) if places else 0.0)
        if recall < 1:
            lacking.append((question, first))
    means = [statistics.fmean(values) for values in (recalls, hits, ranks)]
    return Score(len(asked), *(round(mean, 4) for mean in means)), lacking


def scores(search: Search, asked: list[Question]) -> dict[str, dict[str, Any]]:
    """Of all questions, and of the two halves."""
    parts = {"all": asked, "seen": asked[::2], "unseen": asked[1::2]}
    return {name: asdict(score(search, part)[0]) for name, part in parts.items()}


async def semantic(catalog: Catalog, asked: list[Question], ref: str) -> dict[str, Any]:
    """The same questions, answered by the vectors of a model alone, and by both rankings."""
    settings = read_settings(os.environ)
    model = stored_model(settings, ref)
    texts = [question_text(question.query) for question in asked]
    vectors: list[Sequence[float]] = []
    async with embedder(settings, model.ref) as embed:
        meanings = await learn(settings, catalog, model, embed, lambda done, total: None)
        for start in range(0, len(texts), BATCH_TEXTS):
            vectors += await embed(texts[start : start + BATCH_TEXTS])
    ranked = {one.query: meanings.rank(vector) for one, vector in zip(asked, vectors, strict=True)}
    return {
        "model": model.ref,
        "meaning": scores(ranked.__getitem__, asked),
        "fused": scores(lambda text: fuse(catalog.search(text), ranked[text]), asked),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--lacking", action="store_true", help="print the questions not fully answered")
    parser.add_argument("--semantic", metavar="MODEL", help="a stored model, whose vectors are tried as well")
    wanted = parser.parse_args()
    started = time.process_time()
    catalog = load_catalog(find_shipped_catalog())
    loaded = time.process_time()
    catalog.search("anything")
    indexed = time.process_time()
    asked = questions()
    whole, lacking = score(catalog.search, asked)
    searched = time.process_time()
    report: dict[str, Any] = {
        **scores(catalog.search, asked),
        "cpu_ms": {
            "load": round((loaded - started) * 1000, 1),
            "index": round((indexed - loaded) * 1000, 1),
            "search": round((searched - indexed) * 1000 / len(asked), 3),
        },
        "entries": len(catalog.entries),
    }
    if wanted.semantic:
        report |= anyio.run(semantic, catalog, asked, wanted.semantic)
    if wanted.json:
        print(json.dumps(report, indent=2))
    else:
        for name in ("all", "seen", "unseen"):
            print(f"{name:7} {report[name]}")
        if wanted.semantic:
            for way in ("meaning", "fused"):
                for name, found in report[way].items():
                    print(f"{way} {name:7} {found}")
        print(f"CPU     {report['cpu_ms']} ms, {len(catalog.entries)} entries")
    if wanted.lacking:
        for question, first in lacking:
            print(f"{question.query}\n    wanted {' '.join(question.wanted)}\n    found  {' '.join(first)}")
    return 0 if whole.recall_at_5 >= FLOOR_RECALL else 1


if __name__ == "__main__":
    sys.exit(main())
