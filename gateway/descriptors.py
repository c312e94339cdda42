"""Which open files a new program inherits: its own three, and those it is meant to have.

Knows no program. Needed because uvloop closes none in a child, and leaves copies of the child's own pipes open in it: a
server that closes its stdout would not be noticed."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

FIRST: Final = 3
"""After stdin, stdout and stderr."""
CLOSE_RANGE_CLOEXEC: Final = 4
"""<linux/close_range.h>, since Linux 5.11."""
LAST: Final = ctypes.c_uint(-1)

_close_range: Final[Any] = getattr(ctypes.CDLL(None), "close_range", None)
"""glibc 2.34 and later."""


def keep_only(*fds: int) -> Callable[[], None]:
    """What a child must run before its program starts (`preexec_fn`). One system call: after a fork little is safe."""
    for name in os.listdir("/proc/self/fd"):
        # For kernels without that call: at least none of what we were handed ourselves.
        if int(name) >= FIRST:
            with suppress(OSError):  # the listing's own is closed by now
                os.set_inheritable(int(name), False)

    def work() -> None:
        if _close_range is not None:
            _close_range(FIRST, LAST, CLOSE_RANGE_CLOEXEC)
        for fd in fds:
            os.set_inheritable(fd, True)

    return work
