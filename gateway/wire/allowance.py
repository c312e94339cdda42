"""How much a server may say without being asked: so much a second, and a little at once. Reading waits for the rest.

Knows sizes and times; not what is said, nor how reading is stopped."""

from __future__ import annotations

import asyncio
from typing import Final

BYTES_PER_S: Final = 4 * 1024 * 1024
"""A server that logs or reports more than this is of no use to anybody, and would take the time of the others."""
AT_ONCE_BYTES: Final = 256 * 1024
LINE_BYTES: Final = 512
"""What a line counts besides its own bytes: reading many short ones costs more than reading a long one."""


class Allowance:
    """What is left of it, as the time at which all that was said is paid for."""

    def __init__(self) -> None:
        self._paid_at = 0.0

    def spend(self, size_bytes: int, n_lines: int = 1) -> None:
        earliest = asyncio.get_running_loop().time() - AT_ONCE_BYTES / BYTES_PER_S
        self._paid_at = max(self._paid_at, earliest) + (size_bytes + n_lines * LINE_BYTES) / BYTES_PER_S

    @property
    def wait_s(self) -> float:
        """How long to read nothing; 0 while there is something left."""
        return max(0.0, self._paid_at - asyncio.get_running_loop().time())
