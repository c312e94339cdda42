"""One run of an outside installer program: its lines, its last words, its end.

Knows not what is installed, nor where from.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import anyio

from gateway.descriptors import keep_only

LAST_LINES: Final = 15
"""Lines of a failed installer that go into the error: enough for its own message, short enough to read."""
MAX_LINE_BYTES: Final = 1 << 20
KILL_WAIT_S: Final = 10.0
"""A killed process group is waited for this long; only a process stuck in the kernel takes longer."""

_URL_LOGIN: Final = re.compile(r"(?<=://)[^/@\s]+@")


class InstallerFailed(Exception):
    """The program ended with an error, could not be started, or took too long."""

    def __init__(self, reason: str, tail: Sequence[str]) -> None:
        super().__init__("\n    ".join([reason, *tail]))


def _dying_with_us(argv: Sequence[str], env: Mapping[str, str]) -> list[str]:
    """The command, run so that the kernel kills it when this process dies; unchanged where util-linux is missing."""
    setpriv = shutil.which("setpriv")
    if setpriv is None or shutil.which(argv[0], path=env.get("PATH")) is None:
        return list(argv)
    return [setpriv, "--pdeathsig", "KILL", "--", *argv]


def without_logins(line: str) -> str:
    """The line with user names and passwords taken out of its URLs."""
    return _URL_LOGIN.sub("", line)


async def run_installer(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path,
    on_line: Callable[[str], None],
    timeout_s: float,
    inherit: tuple[int, ...] = (),
) -> None:
    """Run the program to its end in a process group of its own, passing on each line that it prints.

    Cancelling kills the whole group. `inherit` are file descriptors (locks) that the program keeps open.

    Raises:
        InstallerFailed: it ended with an error; carries its last lines.
    """
    tail: deque[str] = deque(maxlen=LAST_LINES)
    try:
        process = await asyncio.create_subprocess_exec(
            *_dying_with_us(argv, env),
            env=dict(env),
            cwd=cwd,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            limit=MAX_LINE_BYTES,
            pass_fds=inherit,
            preexec_fn=keep_only(*inherit),
        )
    except OSError as exc:
        raise InstallerFailed(f"{argv[0]} could not be started: {exc}", ()) from exc
    output: asyncio.StreamReader = process.stdout  # type: ignore[assignment]  # a pipe was asked for
    try:
        with anyio.fail_after(timeout_s):
            async for raw in output:
                for part in raw.decode(errors="replace").replace("\r", "\n").split("\n"):
                    if line := without_logins(part.rstrip()):
                        tail.append(line)
                        on_line(line)
            status = await process.wait()
    except TimeoutError as exc:
        raise InstallerFailed(f"{argv[0]} was stopped after {timeout_s:.0f} s", tail) from exc
    except ValueError as exc:  # a line past MAX_LINE_BYTES
        raise InstallerFailed(f"{argv[0]} printed a line of more than {MAX_LINE_BYTES} bytes", tail) from exc
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        with anyio.move_on_after(KILL_WAIT_S, shield=True):
            await process.wait()
    if status != 0:
        raise InstallerFailed(f"{argv[0]} ended with exit status {status}", tail)
