"""Caches of sequences at rest, kept outside of the context: what is computed there need not look past them.

Knows neither models nor requests; it keeps bytes for whoever made them, up to a limit, the newest."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

SHELF_BYTES: Final = 256 << 20


@dataclass(eq=False, frozen=True, slots=True)
class Shelved:
    """The state of a sequence that held these tokens."""

    owner: str
    tokens: Sequence[int]
    state: bytes


class Shelf:
    """Owned by the scheduler."""

    def __init__(self, most_bytes: int = SHELF_BYTES) -> None:
        self._most_bytes = most_bytes
        self._items: list[Shelved] = []  # the oldest first

    def put(self, owner: str, tokens: Sequence[int], state: bytes) -> None:
        """Keep it, in place of what it continues. What is larger than the shelf is not kept."""
        if len(state) > self._most_bytes:
            return
        self._items = [
            one for one in self._items if one.owner != owner or list(tokens[: len(one.tokens)]) != list(one.tokens)
        ]
        self._items.append(Shelved(owner, tokens, state))
        while sum(len(one.state) for one in self._items) > self._most_bytes:
            self._items.pop(0)

    def find(self, owner: str, prompt: Sequence[int]) -> tuple[Shelved | None, int]:
        """What begins like the prompt for the longest, and for how many tokens."""
        found = [(common(one.tokens, prompt), one) for one in self._items if one.owner == owner]
        n_shared, best = max(found, key=lambda pair: pair[0], default=(0, None))
        return (best, n_shared) if n_shared else (None, 0)

    def take(self, item: Shelved) -> None:
        self._items.remove(item)


def common(left: Sequence[int], right: Sequence[int]) -> int:
    """The length of the longest common prefix."""
    for position, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return position
    return min(len(left), len(right))
