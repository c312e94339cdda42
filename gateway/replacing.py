"""Replacing a file that somebody else may read or that the power may be cut from: whole, or not at all.

Knows not what is in it."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

BACKUP_SUFFIX: Final = ".lockgate-backup"
"""Follows the name of a file whose content before a change is kept."""


def replace_file(file: Path, text: str, mode: int) -> None:
    """The file holds the whole text or what it held before, whatever happens."""
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(text.encode())
            stream.flush()
            os.fchmod(stream.fileno(), mode)
            os.fsync(stream.fileno())
        Path(name).replace(file)
    except BaseException:
        with suppress(FileNotFoundError):
            Path(name).unlink()
        raise
