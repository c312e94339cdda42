"""What a loaded model has done so far: requests, tokens, cache hits, time.

Knows no model; it is told of events and reads the clock."""

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from engine.pipe import Done, Progress


@dataclass
class Spent:
    """The tokens of one request so far, as its usage counts them."""

    n_prompt: int = 0
    n_completion: int = 0

    @property
    def total(self) -> int:
        return self.n_prompt + self.n_completion


class Statistics:
    """Counters since the model was loaded; they only grow, but for `n_waiting` and `n_writing`."""

    def __init__(self) -> None:
        self.n_requests = 0
        self.n_failed = 0
        self.n_prompt = 0
        self.n_cached = 0
        self.n_completion = 0
        self.n_embedded = 0
        self.writing_s = 0.0
        """Seconds between first and last token, of all answers together."""
        self.first_token_s = 0.0
        """Seconds until the first token, of all answers together."""
        self.n_waiting = 0
        """Requests without a first token yet."""
        self.n_writing = 0

    @property
    def tokens_per_s(self) -> float:
        """Of one answer, on average."""
        return self.n_completion / self.writing_s if self.writing_s else 0.0

    @contextlib.contextmanager
    def request(self) -> "Iterator[Counted]":
        counted = Counted(self)
        self.n_requests += 1
        self.n_waiting += 1
        try:
            yield counted
        except Exception:
            self.n_failed += 1
            raise
        finally:
            counted.end()


class Counted:
    """One request, perhaps of several answers."""

    def __init__(self, statistics: Statistics) -> None:
        self._statistics = statistics
        self._began = time.monotonic()
        self._first: dict[int, float] = {}
        self._seen: set[int] = set()
        self._n_tokens: Counter[int] = Counter()

    def progress(self, number: int, event: Progress) -> None:
        if number not in self._seen:
            self._seen.add(number)
            self._statistics.n_prompt += event.n_prompt
            self._statistics.n_cached += event.n_cached

    def piece(self, number: int, n_tokens: int) -> None:
        self._n_tokens[number] += n_tokens
        if number in self._first:
            return
        now = time.monotonic()
        if not self._first:
            self._statistics.n_waiting -= 1
            self._statistics.n_writing += 1
        self._first[number] = now
        self._statistics.first_token_s += now - self._began

    def n_tokens(self, number: int) -> int:
        """Of the answer so far, about."""
        return self._n_tokens[number]

    def done(self, number: int, event: Done) -> None:
        self._statistics.n_completion += event.n_completion
        if number in self._first:
            self._statistics.writing_s += time.monotonic() - self._first[number]

    def end(self) -> None:
        if self._first:
            self._statistics.n_writing -= 1
        else:
            self._statistics.n_waiting -= 1
