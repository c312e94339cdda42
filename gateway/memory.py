"""The memory of a process that holds keys: nobody else of its user reads it, and no core file is written of it.

Knows the kernel's two switches. Programs that the process starts are not meant: `exec` turns the first one back."""

from __future__ import annotations

import ctypes
import resource
import sys
from typing import Final

_PR_SET_DUMPABLE: Final = 4  # linux/prctl.h


def keep_to_itself() -> None:
    """From now on other processes of this user neither read this one's memory nor trace it; root still can."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
