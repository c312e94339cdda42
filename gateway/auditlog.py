"""Reading the audit file: its records, oldest first, as they were written.

Knows lines and files; what a record means is in audit.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

FILE: Final = "audit.jsonl"


def records(state_dir: Path) -> Iterator[dict[str, Any]]:
    """Every record; a line that is none, such as one that is just being written, is passed over."""
    try:
        file = (state_dir / FILE).open("rb")
    except FileNotFoundError:
        return
    with file:
        for line in file:
            try:
                record = msgspec.json.decode(line)
            except msgspec.DecodeError:
                continue
            if isinstance(record, dict):
                yield record


def find(state_dir: Path, call: str) -> list[dict[str, Any]]:
    """The records of one call."""
    return [record for record in records(state_dir) if record.get("call") == call]
