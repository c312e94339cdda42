"""What is made of samples: medians over rounds, ratios within rounds, the table and the summary line.

Knows no servers and no time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median

import msgspec

from benchmarks.load import Sample


class Side(msgspec.Struct):
    """One way to call, medians over the rounds. CPU is milliseconds per call."""

    calls_per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    load_cpu_ms: float
    gateway_cpu_ms: float | None
    server_cpu_ms: float | None


class Cell(msgspec.Struct):
    """One server with so many callers. Ratio and difference are taken within each round, then their median:
    what disturbs the machine for longer than a round then disturbs both sides alike."""

    callers: int
    direct: Side
    through: Side
    calls_per_s_ratio: float
    """Through the gateway to direct."""
    p50_ratio: float
    added_p50_ms: float


def cell_of(callers: int, rounds: Sequence[tuple[Sample, Sample]]) -> Cell:
    """The rounds of (direct, through the gateway)."""
    return Cell(
        callers,
        _side([direct for direct, _ in rounds]),
        _side([through for _, through in rounds]),
        median(through.calls_per_s / direct.calls_per_s for direct, through in rounds),
        median(through.p50_ms / direct.p50_ms for direct, through in rounds),
        median(through.p50_ms - direct.p50_ms for direct, through in rounds),
    )


def _side(samples: Sequence[Sample]) -> Side:
    def optional(of: Callable[[Sample], float | None]) -> float | None:
        known = [value for sample in samples if (value := of(sample)) is not None]
        return median(known) if known else None

    return Side(
        median(sample.calls_per_s for sample in samples),
        median(sample.p50_ms for sample in samples),
        median(sample.p95_ms for sample in samples),
        median(sample.p99_ms for sample in samples),
        median(sample.load_cpu_ms for sample in samples),
        optional(lambda sample: sample.gateway_cpu_ms),
        optional(lambda sample: sample.server_cpu_ms),
    )


HEAD = (
    "callers        calls/s: direct  gateway  ratio    p50 ms: direct  gateway  added    "
    "p95: direct  gateway    p99: direct  gateway    CPU ms/call: gateway  server"
)


def table(title: str, cells: Iterable[Cell]) -> str:
    lines = [title, HEAD]
    for cell in cells:
        d, t = cell.direct, cell.through
        cpu = " ".join("     -" if v is None else f"{v:6.3f}" for v in (t.gateway_cpu_ms, t.server_cpu_ms))
        lines.append(
            f"{cell.callers:7d} {d.calls_per_s:22.0f} {t.calls_per_s:8.0f} {cell.calls_per_s_ratio:6.2f} "
            f"{d.p50_ms:17.3f} {t.p50_ms:8.3f} {cell.added_p50_ms:6.3f} "
            f"{d.p95_ms:14.3f} {t.p95_ms:8.3f} {d.p99_ms:14.3f} {t.p99_ms:8.3f} {cpu:>28}"
        )
    return "\n".join(lines)


SDK = ("sdk", "sdk-modern")
"""Towards this server a gateway may choose the era that suits it, a caller of the other era may not: the rows differ,
and the worse one counts."""


READINGS = {"door": "door", "hop": "hop", "http": ""}
"""By name in the summary: what follows the server's name in the names of the subjects."""


def _attach(cells: Mapping[str, Mapping[int, Cell]], server: str, reading: str) -> str:
    name = "-".join(part for part in ("container", server, READINGS[reading]) if part)
    return f"{cells[name][1].p50_ratio:.2f}" if 1 in cells.get(name, {}) else "n/a"


def attach_readings(cells: Mapping[str, Mapping[int, Cell]]) -> str:
    """Every reading of the goal for containers, for both servers; the summary's `attach` is the first of these."""
    figures = [
        f"{server or 'everything'}_{reading}={_attach(cells, server, reading)}"
        for server in ("", "time")
        for reading in READINGS
    ]
    return f"attach: {' '.join(figures)}"


def summary(cells: Mapping[str, Mapping[int, Cell]]) -> str:
    """The one line that goals are set on; n/a where this machine could not run the server."""

    def found(subjects: Sequence[str], callers: Sequence[int], of: Callable[[Cell], float]) -> list[float]:
        return [of(cells[name][n]) for name in subjects for n in callers if n in cells.get(name, {})]

    ratios = found(SDK, [16], lambda cell: cell.calls_per_s_ratio)
    added = found(SDK, [1], lambda cell: cell.added_p50_ms)
    rates = found(["process"], [16, 64], lambda cell: cell.through.calls_per_s)
    return (
        f"relay: c16={min(ratios):.2f} c1_added_ms={max(added):.3f}"
        f" attach={_attach(cells, '', 'door')} process_cps={f'{max(rates):.0f}' if rates else 'n/a'}"
    )
