"""`python -m tests.conformance`: run the suite scenario by scenario and print what the gateway fails.

Knows what to run in which order and how to print it.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from tests.conformance import fixture, front
from tests.conformance.process import Ended
from tests.conformance.suite import REVISIONS, Check, Outcome, Scenario, Suite, SuiteError, cache_dir

FORMS: Final = ("stdio-legacy", "stdio-modern", "http-legacy", "http-modern")
"""What stands behind the gateway: the transport it is reached by, and the only era it speaks."""
FLOOR: Final = "straight"
CLIENT: Final = "client"
CLIENT_REVISIONS: Final = ("2025-11-25", "2026-07-28")
SPEAKS: Final = {"legacy": ("2025-06-18", "2025-11-25"), "modern": ("2026-07-28",), "both": REVISIONS}
DRIVER: Final = Path(__file__).with_name("driver.py")


@dataclass
class Report:
    """The outcomes so far, by what was judged."""

    outcomes: dict[str, list[Outcome]] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    """Forms that could not be run to the end, and why."""

    def scored(self, passed: bool) -> int:
        """Scored scenarios through the gateway."""
        through = [outcome for form, found in self.outcomes.items() if not form.startswith(FLOOR) for outcome in found]
        return sum(outcome.scenario.scored and outcome.passed is passed for outcome in through)


@dataclass(frozen=True)
class Run:
    """What the command line asked for."""

    suite: Suite
    report: Report
    results: Path
    cache: Path
    revisions: Sequence[str]
    only: str | None
    verbose: bool

    def scenarios(self, form: str, revision: str) -> list[Scenario]:
        is_client = form.endswith(CLIENT)
        found = self.suite.scenarios("client" if is_client else "server", revision)
        if is_client:
            found = [scenario for scenario in found if not scenario.name.startswith("auth/")]
        return [scenario for scenario in found if self.only in (None, scenario.name)]

    def judge(self, form: str, revisions: Sequence[str], run: Callable[[Scenario, Path], Outcome]) -> None:
        """Run every wanted scenario, one at a time, and print each as it ends."""
        for revision in revisions:
            if revision not in self.revisions:
                continue
            for scenario in self.scenarios(form, revision):
                started = time.monotonic()
                outcome = run(scenario, self.results / form / revision / scenario.name.replace("/", "_"))
                self.report.outcomes.setdefault(form, []).append(outcome)
                _print_outcome(form, outcome, time.monotonic() - started, self.verbose)

    def judge_server(self, form: str, url: str, revisions: Sequence[str]) -> None:
        self.judge(form, revisions, lambda scenario, folder: self.suite.judge_server(scenario, url, folder))


# -- what is judged ----------------------------------------------------------------------------------


def straight(run: Run, era: str = "both") -> None:
    """The fixture itself, with nothing in front: what the suite can find at best."""
    form = FLOOR if era == "both" else f"{FLOOR}-{era}"
    with fixture.serving(era, run.results / form / "fixture.log") as url:
        run.judge_server(form, url, SPEAKS[era])


def through_gateway(run: Run, form: str) -> None:
    """The gateway as a server, before a fixture of one form. Clients of every revision must get on with each."""
    with _fronted(run, form) as url:
        run.judge_server(form, url, REVISIONS)


@contextmanager
def _fronted(run: Run, form: str) -> Iterator[str]:
    transport, era = form.split("-")
    interactive = era == "legacy"
    log = run.results / form / "gateway.log"
    if transport == "stdio":
        with front.gateway(front.package_entry(era, interactive=interactive), run.cache, log) as url:
            yield url
    else:
        with (
            fixture.serving(era, run.results / form / "fixture.log") as behind,
            front.gateway(front.remote_entry(behind, interactive=interactive), run.cache, log) as url,
        ):
            yield url


def as_client(run: Run, *, is_straight: bool = False) -> None:
    """The gateway as a client: the suite plays the server behind it, the driver calls what the scenario wants.

    Straight, the driver calls the suite's server itself: the floor is what the SDK's client achieves.
    """
    form = f"{FLOOR}-{CLIENT}" if is_straight else CLIENT
    command = shlex.join([sys.executable, str(DRIVER)])

    def judge(scenario: Scenario, folder: Path) -> Outcome:
        log = folder.with_name(f"{folder.name}.gateway.log")
        env = {"PYTHONPATH": str(front.ROOT), "CONFORMANCE_GATEWAY_LOG": str(log), "CONFORMANCE_CACHE": str(run.cache)}
        if is_straight:
            env["CONFORMANCE_STRAIGHT"] = "1"
        return run.suite.judge_client(scenario, command, folder, env)

    run.judge(form, CLIENT_REVISIONS, judge)


# -- printing ----------------------------------------------------------------------------------------


def _print_outcome(form: str, outcome: Outcome, seconds: float, verbose: bool) -> None:
    scored = "" if outcome.scenario.scored else "  (not scored)"
    where = f"{form} {outcome.scenario.revision} {outcome.scenario.name}"
    counts = f"{outcome.count('SUCCESS')}/{outcome.count('FAILURE')}"
    print(f"{outcome.verdict:4} {where:82} {counts:>7}  {seconds:4.1f} s{scored}", flush=True)
    for check in outcome.checks:
        if verbose or check.status in ("FAILURE", "WARNING"):
            _print_check(check)
    if verbose or not outcome.passed:
        print(f"       {outcome.folder}")


def _print_check(check: Check) -> None:
    first, *rest = check.message.splitlines() or [""]
    print(f"       {check.status:7} {check.id}: {first}")
    for line in rest:
        print(f"               {line}")


def _print_table(report: Report) -> None:
    print(f"\n{'':16}{'revision':14}{'scored':>10}{'not scored':>14}{'checks':>12}{'warnings':>10}")
    for form, outcomes in report.outcomes.items():
        for revision in REVISIONS:
            mine = [outcome for outcome in outcomes if outcome.scenario.revision == revision]
            if mine:
                checks = f"{sum(o.count('SUCCESS') for o in mine)}/{sum(o.count('FAILURE') for o in mine)}"
                warnings = sum(outcome.count("WARNING") for outcome in mine)
                columns = f"{_share(mine, True):>10}{_share(mine, False):>14}{checks:>12}{warnings:>10}"
                print(f"{form:16}{revision:14}{columns}")
    print("(passed/failed)")
    failed = [(form, o) for form, outcomes in report.outcomes.items() for o in outcomes if not o.passed]
    if failed:
        print("\nFailing:")
    for form, outcome in failed:
        scored = "" if outcome.scenario.scored else " (not scored)"
        why = "" if outcome.verdict == "FAIL" else ": the suite saw nothing to judge"
        print(f"  {form} {outcome.scenario.revision} {outcome.scenario.name}{scored}{why}")
        for check in outcome.checks:
            if check.status == "FAILURE":
                print(f"      {check.id}: {check.message.splitlines()[0] if check.message else ''}")
    for reason in report.broken:
        print(f"\n{reason}")


def _share(outcomes: Sequence[Outcome], scored: bool) -> str:
    mine = [outcome for outcome in outcomes if outcome.scenario.scored is scored]
    passed = sum(outcome.passed for outcome in mine)
    return f"{passed}/{len(mine) - passed}" if mine else "-"


# -- the command -------------------------------------------------------------------------------------


def main() -> int:
    given = _arguments()
    cache = cache_dir()
    report = Report()
    suite = Suite(cache)
    run = Run(suite, report, cache / "results", cache, given.revision or REVISIONS, given.scenario, given.verbose)
    try:
        suite.ensure()
        fixture.forget_earlier(cache)
        for name, work in _plan(given):
            try:
                work(run)
            except Ended as exc:
                report.broken.append(f"{name} could not be run to its end: {exc}")
    except SuiteError as exc:
        print(exc, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        report.broken.append("stopped")
    _print_table(report)
    if not report.outcomes and not report.broken:
        report.broken.append("nothing to run: no such scenario at that revision")
    passed, failed = report.scored(True), report.scored(False) + len(report.broken)
    print(f"\nconformance: {passed} passed, {failed} failed")
    floor_fails = any(not o.passed for form, found in report.outcomes.items() if form.startswith(FLOOR) for o in found)
    return 1 if failed or floor_fails else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("--form", action="append", choices=[*FORMS, CLIENT], help="behind the gateway; default: all")
    parser.add_argument("--revision", action="append", choices=REVISIONS, help="of the suite's side; default: all")
    parser.add_argument("--scenario", help="one scenario by its name")
    parser.add_argument("--straight", action="store_true", help="judge the fixture itself, without a gateway")
    parser.add_argument("-v", "--verbose", action="store_true", help="print every check")
    return parser.parse_args()


_straight_client: Final = partial(as_client, is_straight=True)


def _plan(given: argparse.Namespace) -> Iterator[tuple[str, Callable[[Run], None]]]:
    if given.straight:
        for form in dict.fromkeys(form.rpartition("-")[2] for form in given.form or ["both", CLIENT]):
            yield f"{FLOOR} {form}", _straight_client if form == CLIENT else partial(straight, era=form)
        return
    if not given.form and not given.scenario:
        yield FLOOR, straight
        yield f"{FLOOR} {CLIENT}", _straight_client
    forms = given.form or [*FORMS, CLIENT]
    for form in forms:
        yield form, as_client if form == CLIENT else partial(through_gateway, form=form)


if __name__ == "__main__":
    sys.exit(main())
