"""What every command does first: read the settings, and run its coroutine on the fast event loop.

Knows no command."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterable
from typing import Annotated, Any, Final, TypeVar

import typer
import uvloop
from rich.console import Console

from gateway.serverlog import OneLine
from gateway.settings import Settings, read_settings

T = TypeVar("T")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
ProfileOption = Annotated[str | None, typer.Option("--profile", help="A profile other than the default.")]

TERMINATED: Final = 128 + signal.SIGTERM
FILE_WIDTH: Final = 200
"""Columns when the output is not a terminal: tables must not be folded for `grep`."""

out = Console(markup=False, highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else FILE_WIDTH)
err = Console(markup=False, stderr=True, highlight=False, soft_wrap=True)


def completed(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """What a shell offers for a name that is being typed; it must never fail."""

    def offered(incomplete: str) -> list[str]:
        try:
            return [name for name in names() if name.startswith(incomplete)]
        except Exception:  # noqa: BLE001  # outermost border: a shell that completes shows no errors
            return []

    return offered


def settings() -> Settings:
    return read_settings(os.environ)


def log_to_stderr() -> None:
    """The gateway's own log, of what somebody should look at."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end; Ctrl-C and SIGTERM cancel the work, which cleans up; then the command ends as shells expect."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            return runner.run(_ended_by_sigterm(work))
        except asyncio.CancelledError:
            sys.exit(TERMINATED)


async def _ended_by_sigterm(work: Coroutine[Any, Any, T]) -> T:
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await work


def shown(text: str) -> str:
    """What a server or a package wrote, without the control characters that could drive a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def counted(number: int, noun: str) -> str:
    """`1 tool`, `2 tools`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def first_line(text: str, chars: int) -> str:
    """The same for a cell of a table; what is cut ends with `…`."""
    line = shown(text.strip().partition("\n")[0])
    return line if len(line) <= chars else line[: chars - 1] + "…"


def print_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
