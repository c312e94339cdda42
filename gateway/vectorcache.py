"""Vectors of texts kept in the cache folder, by the digest of what they were made from.

Knows neither the model nor the texts; a file that is damaged counts as one that is not there."""

from __future__ import annotations

import hashlib
import io
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Matrix = NDArray[np.float32]

MAX_KEPT: Final = 8
"""Files in the folder; the oldest go first."""
_SUFFIX: Final = ".vectors"
_SUM_BYTES: Final = 32


class VectorCache:
    """One folder of matrices, a row for each text; any number of processes may use it at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, key: str, n_rows: int) -> Matrix | None:
        """What was saved under this key, if it is whole."""
        try:
            content = self._file(key).read_bytes()
            if hashlib.sha256(content[_SUM_BYTES:]).digest() != content[:_SUM_BYTES]:
                return None
            kept = np.load(io.BytesIO(content[_SUM_BYTES:]), allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        return kept if kept.dtype == np.float32 and kept.ndim == 2 and len(kept) == n_rows else None

    def save(self, key: str, vectors: Matrix) -> None:
        """Keep a matrix: its checksum, then NumPy's own form. What cannot be written is not kept."""
        form = io.BytesIO()
        np.save(form, vectors, allow_pickle=False)
        content = form.getvalue()
        with suppress(OSError):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary = self._file(key).with_suffix(f".{os.getpid()}.tmp")
            temporary.write_bytes(hashlib.sha256(content).digest() + content)
            temporary.replace(self._file(key))
            kept = sorted(self._folder.glob(f"*{_SUFFIX}"), key=lambda found: found.stat().st_mtime, reverse=True)
            for old in kept[MAX_KEPT:]:
                old.unlink(missing_ok=True)

    def _file(self, key: str) -> Path:
        return self._folder / f"{key}{_SUFFIX}"
