"""What is judged: the gateway before a fixture of each form, the gateway as a client, and both without a gateway.

Knows how to set each up, and to look at every message the gateway emitted meanwhile; prints nothing.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.conformance import emitted, fixture, front, signing
from tests.conformance.emitted import Emitted
from tests.conformance.process import Ended
from tests.conformance.relay import Relay
from tests.conformance.suite import REVISIONS, Outcome, Scenario, Suite, SuiteError

FORMS: Final = ("stdio-legacy", "stdio-modern", "http-legacy", "http-modern")
"""What stands behind the gateway: the transport it is reached by, and the only era it speaks."""
FLOOR: Final = "straight"
CLIENT: Final = "client"
CLIENT_REVISIONS: Final = ("2025-11-25", "2026-07-28")
SPEAKS: Final = {"legacy": ("2025-06-18", "2025-11-25"), "modern": ("2026-07-28",), "both": REVISIONS}
NEWEST: Final = {"legacy": "2025-11-25", "modern": "2026-07-28"}
SIGNING: Final = "signing"
"""The scenarios of the client role in which the gateway has to sign in first."""
DRIVER: Final = Path(__file__).with_name("driver.py")
AT_ONCE: Final = 2
"""Each run is a gateway, a fixture and the suite, and mostly one of them works."""
SHOWN_CHARS: Final = 600


@dataclass
class Run:
    """What one form's run found."""

    form: str
    outcomes: list[Outcome] = field(default_factory=list)
    messages: int = 0
    """That the gateway emitted, toward clients and servers."""
    violations: list[str] = field(default_factory=list)
    """Those among them that the schema does not allow, each with the scenario it belongs to."""
    broken: str = ""
    """Why it could not be run to its end."""

    @property
    def has_failed(self) -> bool:
        """Whether anything that counts is wrong."""
        return bool(self.broken or self.violations or any(o.scenario.scored and not o.passed for o in self.outcomes))


@dataclass(frozen=True)
class Order:
    """What to run, and where to leave what was found."""

    suite: Suite
    results: Path
    cache: Path
    revisions: Sequence[str] = REVISIONS
    only: str | None = None
    told: Callable[[str, Outcome], None] = lambda form, outcome: None
    """Called with each outcome, from several threads."""

    def run(self, form: str) -> Run:
        """Judge one form to its end."""
        run = Run(form)
        is_straight = form.startswith(FLOOR)
        kind = form.rpartition("-")[2]
        try:
            if kind == CLIENT:
                self._as_client(run, is_straight=is_straight)
            elif kind == SIGNING:
                self._signing_in(run)
            elif is_straight:
                self._straight(run, kind if kind in SPEAKS else "both")
            else:
                self._through_gateway(run)
        except (Ended, SuiteError) as exc:
            run.broken = f"{form} could not be run to its end: {exc}"
        return run

    def run_all(self, forms: Iterable[str]) -> Iterator[Run]:
        """Two at a time, since no form knows of another; in the order given."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            yield from pool.map(self.run, forms)

    def _judge_server(self, run: Run, url: str, revision: str) -> None:
        for outcome in self.suite.judge_server(url, revision, self.results / run.form / revision, self.only):
            run.outcomes.append(outcome)
            self.told(run.form, outcome)

    def _wanted(self, revisions: Iterable[str]) -> list[str]:
        return [revision for revision in revisions if revision in self.revisions]

    # -- the runs --------------------------------------------------------------------------------

    def _straight(self, run: Run, era: str) -> None:
        """The fixture itself, with nothing in front: what the suite can find at best."""
        with fixture.serving(era, self.results / run.form / "fixture.log") as url:
            for revision in self._wanted(SPEAKS[era]):
                self._judge_server(run, url, revision)

    def _through_gateway(self, run: Run) -> None:
        """The gateway as a server, before a fixture of one form. Clients of every revision must get on with each."""
        seen: list[Emitted] = []
        with self._fronted(run, seen) as url:
            for revision in self._wanted(REVISIONS):
                with Relay(url) as relay:
                    self._judge_server(run, relay.url, revision)
                run.violations += relay.unread
                seen += emitted.to_clients(relay.exchanges, revision)
        self._check(run, seen)

    @contextmanager
    def _fronted(self, run: Run, seen: list[Emitted]) -> Iterator[str]:
        """The gateway's endpoint; what it emitted toward the fixture is seen when it has ended."""
        transport, era = run.form.split("-")
        interactive = era == "legacy"
        folder = self.results / run.form
        log = folder / "gateway.log"
        if transport == "stdio":
            with front.gateway(front.package_entry(era, interactive=interactive), self.cache, log) as url:
                yield url
            records = list((folder / front.RECORD).glob("*.jsonl"))
            assert records, "the fixture recorded nothing"
            for record in records:
                seen += emitted.to_stdio_server(record, NEWEST[era])
        else:
            with (
                fixture.serving(era, folder / "fixture.log") as behind,
                Relay(behind) as relay,
                front.gateway(front.remote_entry(relay.url, interactive=interactive), self.cache, log) as url,
            ):
                yield url
            run.violations += relay.unread
            seen += emitted.to_http_servers(relay.exchanges)

    def _as_client(self, run: Run, *, is_straight: bool) -> None:
        """The gateway as a client: the suite plays the server behind it, the driver calls what the scenario wants.

        Straight, the driver calls the suite's server itself: the floor is what the SDK's client achieves.
        """
        command = shlex.join([sys.executable, str(DRIVER)])
        seen: list[Emitted] = []
        for scenario in self._client_scenarios(signs_in=False):
            folder = self._folder(run, scenario)
            beside = folder.with_name(f"{folder.name}.gateway")
            env = {"PYTHONPATH": str(front.ROOT), "CONFORMANCE_CACHE": str(self.cache)}
            env |= {"CONFORMANCE_STRAIGHT": "1"} if is_straight else {"CONFORMANCE_GATEWAY": str(beside)}
            self._judge_client(run, scenario, command, env)
            if not is_straight and (kept := beside / "emitted.jsonl").is_file():
                seen += emitted.read(kept)
        self._check(run, seen)

    def _signing_in(self, run: Run) -> None:
        """The gateway as a client that has to sign in first; no relay, as it would have another address than the
        resource that the suite's server names."""
        with signing.playing(self.results / run.form / "gateway.log") as command:
            for scenario in self._client_scenarios(signs_in=True):
                self._judge_client(run, scenario, command, {})

    def _judge_client(self, run: Run, scenario: Scenario, command: str, env: Mapping[str, str]) -> None:
        outcome = self.suite.judge_client(scenario, command, self._folder(run, scenario), env)
        run.outcomes.append(outcome)
        self.told(run.form, outcome)

    def _folder(self, run: Run, scenario: Scenario) -> Path:
        return self.results / run.form / scenario.revision / scenario.name.replace("/", "_")

    def _client_scenarios(self, *, signs_in: bool) -> list[Scenario]:
        """Those of signing in, or all others."""
        return [
            scenario
            for revision in self._wanted(CLIENT_REVISIONS)
            for scenario in self.suite.scenarios("client", revision)
            if scenario.name.startswith(signing.PREFIX) == signs_in and self.only in (None, scenario.name)
        ]

    def _check(self, run: Run, seen: Sequence[Emitted]) -> None:
        run.messages = len(seen)
        for message, why in self.suite.violations(seen):
            before = [outcome for outcome in run.outcomes if outcome.began <= message.at]
            last = max(before, key=lambda outcome: outcome.began, default=None)
            where = f"{last.scenario.revision} {last.scenario.name}" if last else "before the first scenario"
            what = str(message.message)[:SHOWN_CHARS]
            run.violations.append(f"{where}: toward the {message.toward}, at {message.revision}: {why}: {what}")
