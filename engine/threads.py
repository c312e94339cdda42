"""How many threads to compute with, given what else wants the processors.

Knows nothing of models. llama.cpp's threads meet at a barrier hundreds of times a token: when one of them waits for a
processor all of them do, so on a busy machine fewer threads are many times faster."""

import os
import time
from pathlib import Path
from typing import Final

_SPENT: Final = Path("/proc/stat")  # its first line: time of all processors by what they did, proc(5)
_WORKING: Final = (1, 2, 3, 6, 7)  # fields: user, nice, system, irq, softirq
_LOOK_S: Final = 0.2  # between looks: time is told in hundredths of a second
_MEMORY: Final = 0.5  # of the estimate at each look: a short burst changes little
_BEARABLE: Final = 0.6
"""Processors that others may use before there is a thread less. One program that never rests, beside two threads on two
processors, gets two thirds of one."""
MOST: Final = 8  # threads; small models gain nothing from more


def default_threads() -> int:
    """One for each CPU this process may use, within reason."""
    return max(1, min(len(os.sched_getaffinity(0)), MOST))


class ThreadCount:
    """An estimate of how many threads will really run at once, from the processor time that other processes took."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._n_cpus = len(os.sched_getaffinity(0))
        self.restart()

    def restart(self) -> None:
        """Forget what was seen: after a rest, what others did meanwhile says nothing of now."""
        self._n_others = 0.0
        self._looked_at = time.monotonic()
        self._others_s = _others_s()

    def look(self) -> int:
        """The number of threads to use now; cheap enough to ask before each computation."""
        now = time.monotonic()
        passed_s = now - self._looked_at
        if passed_s >= _LOOK_S:
            others_s = _others_s()
            n_others = max(others_s - self._others_s, 0.0) / passed_s
            self._n_others = _MEMORY * self._n_others + (1 - _MEMORY) * n_others
            self._looked_at, self._others_s = now, others_s
        return max(1, min(self._most, int(self._n_cpus - self._n_others + 1 - _BEARABLE)))


def _others_s() -> float:
    """Seconds that all processors worked for other processes than this one."""
    try:
        with _SPENT.open() as file:
            fields = file.readline().split()
        worked = sum(int(fields[index]) for index in _WORKING)
    except (OSError, ValueError, IndexError):
        return 0.0  # not Linux, or no /proc: nothing is known of the others
    return worked / os.sysconf("SC_CLK_TCK") - time.process_time()
