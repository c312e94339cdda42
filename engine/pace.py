"""How many prompt tokens go into a step beside running answers, so that no stream pauses for long.

Knows no clock and no model: it is told what each step computed and how long that took."""

from typing import Final

LEAST: Final = 16  # prompt tokens a step: fewer would leave the processor's wide instructions idle
FIRST: Final = 32  # before anything is known
_MEMORY: Final = 0.7  # of an estimate at each step


class Pace:
    """Lets the prompt part of a step take as long as the writing part: a step is then at most twice a plain one."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._write_s: float | None = None  # of a step without prompt tokens
        self._token_s: float | None = None  # of one prompt token

    def budget(self) -> int:
        if self._write_s is None or not self._token_s:
            return min(FIRST, self._most)
        return max(LEAST, min(self._most, int(self._write_s / self._token_s)))

    def learn(self, *, n_writing: int, n_prompt: int, took_s: float) -> None:
        """One step computed the next token of `n_writing` answers and `n_prompt` tokens of prompts."""
        if not n_prompt:
            self._write_s = _blend(self._write_s, took_s)
        elif not n_writing:
            self._token_s = _blend(self._token_s, took_s / n_prompt)
        elif self._write_s is not None:
            self._token_s = _blend(self._token_s, max(took_s - self._write_s, 0.1 * took_s) / n_prompt)


def _blend(old: float | None, new: float) -> float:
    return new if old is None else _MEMORY * old + (1 - _MEMORY) * new
