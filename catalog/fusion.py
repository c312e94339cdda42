"""Two rankings made one: of what matches the typed words, and of what comes near the meaning of the question.

Does not know how either came about, nor what is ranked.
"""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import TypeVar

T = TypeVar("T", bound=Hashable)

SMOOTHING = 10
"""Added to each place: the larger, the less the first places are worth above the later ones."""
MEANING_SHARE = 0.1
"""What a place by meaning is worth beside the same place by words."""
NEIGHBOURS = 20
"""Of the ranking by meaning, which has an opinion on everything, so many count."""


def fuse(by_words: Sequence[T], by_meaning: Sequence[T]) -> list[T]:
    """Return all that is in the first ranking and the nearest of the second, best first.

    Each gets the sum of the reciprocals of its places (reciprocal rank fusion); equals stay in the order of the words.
    """
    scores: dict[T, float] = defaultdict(float)
    for ranking, share in ((by_words, 1.0), (by_meaning[:NEIGHBOURS], MEANING_SHARE)):
        for place, item in enumerate(ranking, 1):
            scores[item] += share / (SMOOTHING + place)
    return sorted(scores, key=lambda item: -scores[item])
