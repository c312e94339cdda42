"""Reading the audit file: its records, oldest first, as they were written, from all files that it was split into.

Knows lines and files; what a record means is in audit.py, how they hold together in auditchain.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec

FILE: Final = "audit.jsonl"
CHECKPOINTS: Final = "audit.checkpoints"
KEY: Final = "audit.key"
_CHUNK: Final = 65_536


def aside(path: Path, seq: int) -> Path:
    """The name of a file that is full, and ends with this record."""
    return path.with_name(f"audit-{seq:018d}.jsonl")


def files(state_dir: Path) -> list[Path]:
    """Every file of the chain, oldest first."""
    present = state_dir / FILE
    return [*sorted(state_dir.glob("audit-[0-9]*.jsonl")), *([present] if present.exists() else [])]


@contextmanager
def opened(state_dir: Path) -> Iterator[list[tuple[Path, BinaryIO]]]:
    """Every file of the chain, oldest first, opened at one moment: the gateway may put the present one aside while it
    is read, and what was opened under its name stays what it was.

    Raises:
        OSError: one cannot be opened.
    """
    with ExitStack() as stack:
        found: list[tuple[Path, BinaryIO]] = []
        while [path for path, _ in found] != (paths := files(state_dir)):
            stack.close()
            found = []
            for path in paths:
                try:
                    found.append((path, stack.enter_context(path.open("rb"))))
                except FileNotFoundError:
                    break  # put aside in this very moment: the names are others now
        yield found


def put_aside(path: Path) -> Path:
    """The newest file that is full; the present one if there is none."""
    full = sorted(path.parent.glob("audit-[0-9]*.jsonl"))
    return full[-1] if full else path


def last_line(path: Path) -> bytes | None:
    """The end of a file from its last line on, with or without a line break at its end; None without a line."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    with file:
        at = file.seek(0, os.SEEK_END)
        end = b""
        while at > 0:
            step = min(_CHUNK, at)
            at -= step
            file.seek(at)
            end = file.read(step) + end
            cut = end.rfind(b"\n", 0, len(end) - 1)
            if cut >= 0:
                return end[cut + 1 :]
        return end or None


def records(state_dir: Path) -> Iterator[dict[str, Any]]:
    """Every record; a line that is none, such as one that is just being written, is passed over."""
    with opened(state_dir) as found:
        for _, file in found:
            for line in file:
                try:
                    record = msgspec.json.decode(line)
                except msgspec.DecodeError:
                    continue
                if isinstance(record, dict):
                    yield record


def ends(state_dir: Path) -> Iterator[dict[str, Any]]:
    """What came of each call, and what else happened; a call that has only begun is not among them."""
    return (record for record in records(state_dir) if "event" not in record)


def find(state_dir: Path, call: str) -> list[dict[str, Any]]:
    """The records of one call."""
    return [record for record in records(state_dir) if record.get("call") == call]
