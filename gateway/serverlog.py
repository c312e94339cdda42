"""The recent log of one server: what it wrote on stderr, stray stdout lines, and what the gateway did with it.

Knows nothing of containers or processes; bounded, in memory only."""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import Any, Final, Literal, NamedTuple

from gateway.egress.attempts import Attempts
from gateway.redaction import Redactor

MAX_LINES: Final = 1000
MAX_LINE_CHARS: Final = 2000

Origin = Literal["stderr", "stdout", "gateway"]


def printable(text: str) -> str:
    """The text with control characters as escapes: a log can neither drive a terminal nor be given lines of its own."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\t" else repr(c)[1:-1] for c in text)


class OneLine(logging.Formatter):
    """The gateway's own log: each record is one line, and only a traceback adds more, which are indented."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        return "\n".join(f"    {printable(line)}" for line in super().formatException(ei).splitlines())


class LogLine(NamedTuple):
    """`at` is seconds since the epoch."""

    at: float
    origin: Origin
    text: str


class ServerLog:
    """A ring of the last lines. Control characters are shown as escapes, so that a log cannot drive a terminal."""

    def __init__(self) -> None:
        self._lines: deque[LogLine] = deque(maxlen=MAX_LINES)
        self._partial = b""
        self.attempts = Attempts()
        """What the server tried to reach, where that is filtered."""
        self.hides: Redactor | None = None
        """Takes the server's secrets out of whatever it says; set at its start."""
        self.noise = 0
        """Lines on stdout that are not JSON-RPC, since the last start."""

    def branch(self) -> ServerLog:
        """The same log for one connection that holds a credential of its own: what it hides is hidden there alone."""
        branch = ServerLog()
        branch._lines, branch.attempts = self._lines, self.attempts
        return branch

    def hide(self, redactor: Redactor | None) -> None:
        """From now on this takes secrets out of what the server says."""
        self.hides = redactor
        for name in redactor.too_short if redactor is not None else ():
            self.write("gateway", f"the secret {name} is too short to be found in what the server says")

    def write(self, origin: Origin, text: str) -> None:
        if self.hides is not None:
            text = self.hides.clean(text.encode("utf-8", "surrogatepass")).decode("utf-8", "replace")
        self._lines.append(LogLine(time.time(), origin, printable(text[:MAX_LINE_CHARS])))

    def stderr(self, data: bytes) -> None:
        """Bytes from the server's stderr; lines may be split anywhere."""
        *lines, self._partial = (self._partial + data).split(b"\n")
        kept = self.hides.longest if self.hides is not None else 0  # a secret must not fall into two lines
        if len(self._partial) > MAX_LINE_CHARS + kept:
            whole = self._partial if self.hides is None else self.hides.clean(self._partial)
            lines.append(whole[: len(whole) - kept])
            self._partial = whole[len(whole) - kept :]
        for line in lines:
            if line.strip():
                self.write("stderr", line.decode("utf-8", "backslashreplace").rstrip())

    def stray(self, line: bytes) -> None:
        """A stdout line that is not a message."""
        self.noise += 1
        if self.noise <= MAX_LINES // 2:
            whole = line if self.hides is None else self.hides.clean(line)
            self.write("stdout", whole[:MAX_LINE_CHARS].decode("utf-8", "backslashreplace"))

    def lines(self) -> list[LogLine]:
        return list(self._lines)

    def last(self, n: int) -> str:
        """The last `n` lines from the server itself, for an error message."""
        own = [line.text for line in self._lines if line.origin != "gateway"]
        return "\n".join(own[-n:])
