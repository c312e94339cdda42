"""A load generator's process, seen from outside: orders go in, samples come out.

Knows how to run one; not what it measures."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self

import msgspec

from benchmarks.load import Order, Sample

STOP_TIMEOUT_S: Final = 30.0
"""One with a gateway in it has containers to remove."""


class Load:
    """One generator. `program` is a file of this folder; enter to start it, leave to end it."""

    def __init__(self, program: str = "load.py", env: Mapping[str, str] | None = None) -> None:
        self._program = program
        self._env = env

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name(self._program))],
            env=self._env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        return self

    def said(self) -> str:
        """A line that it says by itself."""
        return self._line("said nothing").decode().strip()

    def take(self, order: Order) -> Sample:
        """One sample; the generator bounds its own time, and ends when an answer is wrong."""
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(order) + b"\n")
        self._process.stdin.flush()
        where = order.url or order.argv or order.container or "the door"
        return msgspec.json.decode(self._line(f"no sample of {order.tool} at {where}"), type=Sample)

    def _line(self, failure: str) -> bytes:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"relay: {self._program}: {failure}")
        return line

    def __exit__(self, *exc: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
