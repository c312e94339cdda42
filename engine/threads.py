"""How many threads to compute with, given what else wants the processors.

Knows nothing of models. llama.cpp's threads meet at a barrier hundreds of times a token: when one of them waits for a
processor all of them do, so on a busy machine fewer threads are many times faster."""

import os
from pathlib import Path
from typing import Final

_RUNNABLE: Final = Path("/proc/loadavg")  # its fourth field: runnable threads / all threads, proc(5)
_MEMORY: Final = 0.7  # of the estimate at each look: a burst of a few steps changes little
MOST: Final = 8  # threads; small models gain nothing from more


def default_threads() -> int:
    """One for each CPU this process may use, within reason."""
    return max(1, min(len(os.sched_getaffinity(0)), MOST))


class ThreadCount:
    """An estimate, renewed before each computation, of how many threads will really run at once."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._n_cpus = len(os.sched_getaffinity(0))
        self._n_others = 0.0

    def look(self) -> int:
        """The number of threads to use now; call it while none of them runs."""
        if self._most == 1:
            return 1
        self._n_others = _MEMORY * self._n_others + (1 - _MEMORY) * max(_n_runnable() - 1, 0)
        return max(1, min(self._most, round(self._n_cpus - self._n_others)))


def _n_runnable() -> int:
    try:
        return int(_RUNNABLE.read_text().split()[3].partition("/")[0])
    except (OSError, ValueError, IndexError):
        return 1  # not Linux, or no /proc: nothing is known of the others
