"""A circuit breaker: after a failed start a server rests, longer each time, then one attempt shows whether it is back.

Pure: told the time, it decides; knows neither servers nor tasks."""

from __future__ import annotations

from typing import Final, Literal

FIRST_PAUSE_S: Final = 1.0
MAX_PAUSE_S: Final = 30.0

Circuit = Literal["closed", "open", "half-open"]
"""closed: starts are made; open: they are refused; half-open: one is made, and the others wait for its outcome."""


class Breaker:
    """The recent failures of one server. Times are seconds of any one clock."""

    def __init__(self) -> None:
        self.failures = 0
        """In a row."""
        self.why = ""
        """What failed last, for whoever is refused meanwhile."""
        self._retry_at = 0.0
        self._is_up = False

    def circuit(self, now: float) -> Circuit:
        if self.failures == 0 or self._is_up:
            return "closed"
        return "open" if now < self._retry_at else "half-open"

    def pause_s(self, now: float) -> float:
        """How long starts are still refused."""
        return 0.0 if self._is_up else max(0.0, self._retry_at - now)

    def fail(self, now: float, longest_s: float = MAX_PAUSE_S) -> None:
        """A start failed, or the server ended so soon after it that it might as well have."""
        self._is_up = False
        self.failures += 1
        self._retry_at = now + min(FIRST_PAUSE_S * 2.0 ** (self.failures - 1), longest_s)

    def started(self) -> None:
        """A start succeeded. The failures are remembered until it has proved stable."""
        self._is_up = True

    def prove(self) -> None:
        """The server ran for long enough, or was stopped on purpose."""
        self.failures = 0
        self._is_up = False
