"""Which profile this gateway serves at /mcp, as somebody chose it: one line in the state folder.

Knows that file; not whether there is a profile of that name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

FILE: Final = "profile"
MAX_CHARS: Final = 64


def read_choice(state_dir: Path) -> str:
    """The name of the profile that was chosen; empty if none ever was."""
    try:
        with (state_dir / FILE).open(encoding="utf-8", errors="replace") as file:
            return file.read(MAX_CHARS).strip()
    except OSError:
        return ""


def write_choice(state_dir: Path, name: str) -> None:
    """From the next start on it is this one.

    Raises:
        OSError: it cannot be written.
    """
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = state_dir / f".{FILE}.{os.getpid()}.tmp"
    temporary.write_text(f"{name}\n", encoding="utf-8")
    temporary.replace(state_dir / FILE)
