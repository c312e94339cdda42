"""A program in the background, with its output in a log file: started, waited for by a line it prints, stopped.

Knows not which program it is.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Self, TypeVar

T = TypeVar("T")

POLL_S: Final = 0.02
STOP_S: Final = 60
"""After SIGTERM; then it is killed."""
LOG_LINES: Final = 15


class Ended(Exception):
    """The program ended or did not get ready; carries the end of its log."""


class Background:
    """Use as a context: leaving it ends the program and everything in its process group."""

    def __init__(self, name: str, argv: Sequence[str], log: Path, env: Mapping[str, str]) -> None:
        self.log = log
        self._name = name
        self._argv = list(argv)
        self._env = dict(env)

    def __enter__(self) -> Self:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self._argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._env,
                start_new_session=True,
            )
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def wait_for(self, what: str, probe: Callable[[], T | None], within_s: float) -> T:
        """The first answer of `probe` that is not None.

        Raises:
            Ended: the program ended before, or there was none in time.
        """
        deadline = time.monotonic() + within_s
        while (found := probe()) is None:
            self.check()
            if time.monotonic() > deadline:
                raise Ended(f"{self._name}: no {what} within {within_s:g} s\n{self.tail()}")
            time.sleep(POLL_S)
        return found

    def check(self) -> None:
        """Raises Ended if the program is no longer there."""
        if (status := self._process.poll()) is not None:
            raise Ended(f"{self._name} ended with status {status}\n{self.tail()}")

    def line_after(self, prefix: str) -> str | None:
        """What follows the prefix on the first line of the log that begins with it."""
        for line in self.log.read_text(errors="replace").splitlines():
            if line.startswith(prefix):
                return line.removeprefix(prefix).strip()
        return None

    def tail(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()[-LOG_LINES:]
        return "\n".join(f"    {line}" for line in [*lines, f"(all of it: {self.log})"])
