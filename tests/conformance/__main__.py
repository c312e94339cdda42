"""`python -m tests.conformance`: run the suite against every form and print what the gateway fails.

Knows in which order to run and how to print.
"""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Sequence
from typing import Final

from tests.conformance import fixture
from tests.conformance.runs import CLIENT, FLOOR, FORMS, SIGNING, Order, Run
from tests.conformance.suite import REVISIONS, Check, Outcome, Suite, SuiteError, cache_dir

# -- printing ----------------------------------------------------------------------------------------


_printing: Final = threading.Lock()


def _print_outcome(form: str, outcome: Outcome, verbose: bool) -> None:
    scored = "" if outcome.scenario.scored else "  (not scored)"
    where = f"{form} {outcome.scenario.revision} {outcome.scenario.name}"
    counts = f"{outcome.count('SUCCESS')}/{outcome.count('FAILURE')}"
    with _printing:
        print(f"{outcome.verdict:4} {where:82} {counts:>7}{scored}", flush=True)
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


def _print_table(runs: Sequence[Run]) -> None:
    print(f"\n{'':16}{'revision':14}{'scored':>10}{'not scored':>14}{'checks':>12}{'warnings':>10}")
    for run in runs:
        for revision in REVISIONS:
            mine = [outcome for outcome in run.outcomes if outcome.scenario.revision == revision]
            if mine:
                checks = f"{sum(o.count('SUCCESS') for o in mine)}/{sum(o.count('FAILURE') for o in mine)}"
                warnings = sum(outcome.count("WARNING") for outcome in mine)
                columns = f"{_share(mine, True):>10}{_share(mine, False):>14}{checks:>12}{warnings:>10}"
                print(f"{run.form:16}{revision:14}{columns}")
    print("(passed/failed)\n")
    for run in runs:
        if run.messages:
            print(f"{run.form}: {run.messages} messages of the gateway, {len(run.violations)} against the schema")
    failed = [(run.form, o) for run in runs for o in run.outcomes if not o.passed]
    if failed:
        print("\nFailing:")
    for form, outcome in failed:
        scored = "" if outcome.scenario.scored else " (not scored)"
        why = "" if outcome.verdict == "FAIL" else ": the suite saw nothing to judge"
        print(f"  {form} {outcome.scenario.revision} {outcome.scenario.name}{scored}{why}")
        for check in outcome.checks:
            if check.status == "FAILURE":
                print(f"      {check.id}: {check.message.splitlines()[0] if check.message else ''}")
    for run in runs:
        for reason in (*run.violations, *filter(None, [run.broken])):
            print(f"\n{run.form}: {reason}")


def _share(outcomes: Sequence[Outcome], scored: bool) -> str:
    mine = [outcome for outcome in outcomes if outcome.scenario.scored is scored]
    passed = sum(outcome.passed for outcome in mine)
    return f"{passed}/{len(mine) - passed}" if mine else "-"


# -- the command -------------------------------------------------------------------------------------


def main() -> int:
    given = _arguments()
    cache = cache_dir()
    suite = Suite(cache)

    def told(form: str, outcome: Outcome) -> None:
        _print_outcome(form, outcome, given.verbose)

    order = Order(suite, cache / "results", cache, given.revision or REVISIONS, given.scenario, told)
    try:
        suite.ensure()
        fixture.forget_earlier(cache)
        runs = list(order.run_all(_plan(given)))
    except SuiteError as exc:
        print(exc, file=sys.stderr)
        return 2
    _print_table(runs)
    through = [run for run in runs if not run.form.startswith(FLOOR)]
    scored = [outcome.passed for run in through for outcome in run.outcomes if outcome.scenario.scored]
    wrong = sum(bool(run.broken) + len(run.violations) for run in through)
    if not any(run.outcomes or run.broken for run in runs):
        print("\nnothing to run: no such scenario at that revision")
        wrong += 1
    print(f"\nconformance: {scored.count(True)} passed, {scored.count(False) + wrong} failed")
    floor_fails = any(run.broken or any(not o.passed for o in run.outcomes) for run in runs if run not in through)
    return 1 if wrong or False in scored or floor_fails else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument(
        "--form", action="append", choices=[*FORMS, CLIENT, SIGNING], help="behind the gateway; default: all"
    )
    parser.add_argument("--revision", action="append", choices=REVISIONS, help="of the suite's side; default: all")
    parser.add_argument("--scenario", help="one scenario by its name")
    parser.add_argument("--straight", action="store_true", help="judge the fixture itself, without a gateway")
    parser.add_argument("-v", "--verbose", action="store_true", help="print every check")
    return parser.parse_args()


def _plan(given: argparse.Namespace) -> list[str]:
    """The forms to run, the longest first."""
    if given.straight:
        asked = [form for form in given.form or [CLIENT, "both"] if form != SIGNING]  # the pages of a gateway, or none
        kinds = dict.fromkeys(form.rpartition("-")[2] for form in asked)
        return [f"{FLOOR}-{kind}" for kind in kinds]
    floor = [] if given.form or given.scenario else [f"{FLOOR}-{CLIENT}", FLOOR]
    return [*floor, *(given.form or [SIGNING, CLIENT, *FORMS])]


if __name__ == "__main__":
    sys.exit(main())
