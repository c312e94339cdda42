"""Process trees, read from /proc: whose CPU time is counted.

Knows Linux only."""

from __future__ import annotations

from pathlib import Path


def tree(pid: int) -> tuple[int, ...]:
    """A process and everything below it."""
    return (pid, *(found for child in children(pid) for found in tree(child)))


def children(pid: int) -> list[int]:
    return [int(child) for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()]


def tree_running(parent: int, argument: str) -> tuple[int, ...]:
    """The tree of that child of `parent` whose command line has `argument` in it; empty if none has."""
    for child in children(parent):
        if argument in Path(f"/proc/{child}/cmdline").read_text(errors="replace"):
            return tree(child)
    return ()
