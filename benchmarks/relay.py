"""The relay benchmark: calls through the gateway against the same calls to the same server without it.

Knows in which order what is compared; how to start, call and count is in the modules beside it.

    python benchmarks/relay.py [--quick]

Writes benchmarks/results/relay.json; the last line printed is the summary. docs/benchmarks.md explains the figures."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

import msgspec

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.figures import Cell, attach_readings, cell_of, summary, table
from benchmarks.gateways import ROOT
from benchmarks.generators import Load
from benchmarks.load import Sample
from benchmarks.subjects import Subject, subjects

RESULTS: Final = ROOT / "benchmarks" / "results" / "relay.json"
BUSY: Final = 0.7
"""Load average of the last minute, before anything is started, above which figures say little."""


@dataclass(frozen=True)
class Plan:
    """How much is measured: rounds of one sample each way, for every server and number of callers."""

    callers: tuple[int, ...]
    rounds: int
    seconds: float
    warm_up_s: float


FULL: Final = Plan((1, 16, 64), rounds=9, seconds=0.2, warm_up_s=0.05)
QUICK: Final = Plan((1, 16), rounds=4, seconds=0.15, warm_up_s=0.04)


def measure(load: Load, found: Sequence[Subject], plan: Plan) -> dict[str, dict[int, Cell]]:
    """All rounds. The two ways follow each other at once and take turns in going first."""
    samples: dict[tuple[str, int], list[tuple[Sample, Sample]]] = {}
    for number in range(plan.rounds):
        for subject in found:
            for callers in plan.callers:
                direct, through = (
                    msgspec.structs.replace(order, callers=callers, seconds=plan.seconds, warm_up_s=plan.warm_up_s)
                    for order in (subject.direct, subject.through)
                )
                by = subject.load or load
                if number % 2:
                    second, first = by.take(through), by.take(direct)
                else:
                    first, second = by.take(direct), by.take(through)
                samples.setdefault((subject.name, callers), []).append((first, second))
        print(f"round {number + 1} of {plan.rounds}", file=sys.stderr)
    return {
        subject.name: {callers: cell_of(callers, samples[subject.name, callers]) for callers in plan.callers}
        for subject in found
    }


def machine() -> dict[str, str]:
    """What the figures depend on."""
    packages = ("mcp", "uvicorn", "uvloop", "httptools", "msgspec")
    return {
        "cpus": str(os.cpu_count()),
        "kernel": platform.release(),
        "python": platform.python_version(),
    } | {name: version(name) for name in packages}


def main() -> None:
    parser = argparse.ArgumentParser(description="Calls through the gateway against direct calls to the same server.")
    parser.add_argument("--quick", action="store_true", help="about 30 seconds in place of two minutes")
    plan = QUICK if parser.parse_args().quick else FULL
    began = time.monotonic()
    busy_before = os.getloadavg()[0]
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="lockgate-benchmark-"))
        found = list(subjects(stack, Path(folder)))
        cells = measure(stack.enter_context(Load()), found, plan)
        about = machine() | {"load_average_before": f"{busy_before:.1f}"}
    for subject in found:
        print(f"\n{table(subject.title, cells[subject.name].values())}")
    line = summary(cells)
    readings = attach_readings(cells)
    RESULTS.parent.mkdir(exist_ok=True)
    report = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "took_s": round(time.monotonic() - began, 1),
        "plan": vars(plan),
        "machine": about,
        "attach": readings,
        "summary": line,
        "cells": {name: list(by_callers.values()) for name, by_callers in cells.items()},
    }
    RESULTS.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    print(f"\n{report['took_s']} s, written to {RESULTS.relative_to(ROOT)}")
    if busy_before > BUSY:
        print(f"Something else was using this machine (load average {busy_before:.1f}): do not quote these figures.")
    print(readings)
    print(line)


if __name__ == "__main__":
    main()
