"""The conformance suite as an installed program: which scenarios it has, and runs of one or all of them.

Knows npm and the suite's command line and files; nothing of what is judged.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

import yaml

from tests.conformance.emitted import Emitted

Role = Literal["server", "client"]
Verdict = Literal["ok", "FAIL", "none"]

HERE: Final = Path(__file__).parent
REVISIONS: Final = ("2025-06-18", "2025-11-25", "2026-07-28")
INSTALL_TIMEOUT_S: Final = 600
LIST_TIMEOUT_S: Final = 60
SCENARIO_TIMEOUT_S: Final = 120
"""They take a second or two on a quiet machine. The suite's own measure is 30 s."""
RUN_TIMEOUT_S: Final = 900
"""For one start of the suite: one scenario or all of a revision."""
EXTENSIONS: Final = ("tasks-",)
"""Beginnings of the names of scenarios that no revision requires and that count all the same."""
EXTENDED: Final = "2026-07-28"
"""The revision with these extensions."""
ALWAYS_SKIPPED: Final = ("tasks-status-notifications",)
"""The suite has a name for it but looks at nothing; tests/gateway/test_tasks.py does."""
FOLDER: Final = re.compile(r"(?:server-)?(?P<name>.+)-(?P<began>\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d-\d{3}Z)")
"""What the suite names the folder of a run."""


class SuiteError(Exception):
    """The suite could not be installed or asked; says what to do."""


@dataclass(frozen=True)
class Scenario:
    """One scenario at one revision. `scored` ones are what conformance to the revision requires."""

    name: str
    revision: str
    scored: bool


@dataclass(frozen=True)
class Check:
    """One thing the suite looked at."""

    id: str
    status: str
    message: str


@dataclass(frozen=True)
class Outcome:
    """What one run of one scenario found, and the folder with everything the suite wrote about it."""

    scenario: Scenario
    checks: tuple[Check, ...]
    folder: Path
    began: float
    """Unix time."""

    def count(self, *statuses: str) -> int:
        return sum(check.status in statuses for check in self.checks)

    @property
    def verdict(self) -> Verdict:
        """The suite's own measure, in which warnings do not count; a run that found only facts shows nothing."""
        if self.count("FAILURE"):
            return "FAIL"
        return "ok" if self.count("SUCCESS") else "none"

    @property
    def passed(self) -> bool:
        return self.verdict == "ok"


def cache_dir() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("LOCKGATE_CACHE_DIR") or Path(home) / "lockgate") / "conformance"


class Suite:
    """The locked version of the suite in the cache, with a Node.js of its own (the suite needs 22)."""

    def __init__(self, cache: Path) -> None:
        self._root = cache / "suite"
        self.node = self._root / "node_modules/.bin/node"
        self._package = self._root / "node_modules/@modelcontextprotocol/conformance"

    def ensure(self) -> None:
        """Install it, unless this very version is there.

        Raises:
            SuiteError: npm is missing or fails.
        """
        self._root.parent.mkdir(parents=True, exist_ok=True)
        with (self._root.parent / "suite.lock").open("w") as one_at_a_time:
            fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
            self._install()

    def _install(self) -> None:
        lock, installed = HERE / "package-lock.json", self._root / "installed.lock"
        if installed.is_file() and installed.read_bytes() == lock.read_bytes():
            return
        npm = shutil.which("npm")
        if npm is None:
            raise SuiteError("the suite is installed with npm, and there is none on PATH: use `make conformance`")
        print(f"Installing the conformance suite into {self._root}", flush=True)
        shutil.rmtree(self._root, ignore_errors=True)
        self._root.mkdir(parents=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / name, self._root)
        # Scripts stay off: Node.js comes as a plain package for this processor.
        options = ["--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=error"]
        self._run([npm, "ci", "--prefix", str(self._root), *options], INSTALL_TIMEOUT_S)
        if not self.node.exists():
            raise SuiteError(f"there is no Node.js for this processor in {HERE / 'package.json'}")
        shutil.copy(lock, installed)

    def scenarios(self, role: Role, revision: str) -> list[Scenario]:
        """Every scenario that applies to the revision, and those of the extensions in `EXTENSIONS`."""
        required = self._required(role, revision)
        names = self._names(role, "--spec-version", revision)
        found = [Scenario(name, revision, required is None or name in required) for name in names]
        if role == "server" and revision == EXTENDED:
            found += [Scenario(name, revision, True) for name in self._names(role) if _is_extension(name)]
        return found

    def _names(self, role: Role, *options: str) -> list[str]:
        listing = self._run([*self._suite(), "list", f"--{role}", *options], LIST_TIMEOUT_S)
        return [line.split()[1] for line in listing.splitlines() if line.startswith("  - ")]

    def _required(self, role: Role, revision: str) -> frozenset[str] | None:
        """The revision's frozen list, in its order; None where the suite has none and everything counts."""
        path = self._requirements(revision)
        return frozenset(yaml.safe_load(path.read_text())[role]) if path.is_file() else None

    def _requirements(self, revision: str) -> Path:
        return self._package / "requirements" / f"{revision}.yaml"

    def _suite(self) -> list[str]:
        return [str(self.node), str(self._package / "dist/index.js")]

    def violations(self, messages: Iterable[Emitted]) -> list[tuple[Emitted, str]]:
        """The messages that their revision's schema does not allow, and why, as the suite itself would judge them."""
        messages = list(messages)
        asked = "".join(
            json.dumps({"revision": one.revision, "answers": one.answers, "message": one.message}) + "\n"
            for one in messages
        )
        argv = [str(self.node), str(HERE / "schema.mjs"), str(self._package / "dist/index.js")]
        found = json.loads(self._run(argv, RUN_TIMEOUT_S, asked))
        return [(one, "; ".join(errors)) for one, errors in zip(messages, found, strict=True) if errors]

    def _run(self, argv: list[str], timeout_s: float, given: str = "") -> str:
        try:
            done = subprocess.run(argv, input=given, capture_output=True, text=True, timeout=timeout_s, check=False)
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise SuiteError(f"{argv[0]} did not work: {exc}") from exc
        if done.returncode != 0:
            raise SuiteError(f"{' '.join(argv)} ended with {done.returncode}:\n{done.stderr or done.stdout}")
        return done.stdout

    def judge_server(self, url: str, revision: str, folder: Path, only: str | None = None) -> list[Outcome]:
        """Run all scenarios of a revision against the server at the URL, or only one."""
        expected = self.scenarios("server", revision)
        if only is not None:
            expected = [scenario for scenario in expected if scenario.name == only]
            chosen = ["--scenario", only, "--spec-version", revision, "--force"]
        elif self._requirements(revision).is_file():
            chosen = ["--requirements", revision]
        else:
            chosen = ["--suite", "all", "--spec-version", revision]
        last = self._judge(["server", "--url", url, *chosen], folder, {})
        found = {outcome.scenario.name: outcome for outcome in self._outcomes(folder, expected)}
        for scenario in expected:
            if scenario.name not in found:
                found[scenario.name] = _nothing(scenario, folder, last)
        return list(found.values())

    def judge_client(self, scenario: Scenario, command: str, folder: Path, env: Mapping[str, str]) -> Outcome:
        """Run a scenario against a client: the command is split at blanks and gets a URL as last argument."""
        chosen = ["--scenario", scenario.name, "--spec-version", scenario.revision]
        last = self._judge(["client", "--command", command, *chosen], folder, env)
        return next(self._outcomes(folder, [scenario]), _nothing(scenario, folder, last))

    def _judge(self, wanted: list[str], folder: Path, env: Mapping[str, str]) -> str:
        """Start the suite once; gives its last words."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        argv = [*self._suite(), *wanted, "--timeout", str(SCENARIO_TIMEOUT_S * 1000), "-o", str(folder)]
        with (folder / "console.txt").open("wb") as console:
            try:
                done: int | str = subprocess.run(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=console,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **env},
                    timeout=RUN_TIMEOUT_S,
                    check=False,
                ).returncode
            except subprocess.TimeoutExpired:
                done = f"stopped after {RUN_TIMEOUT_S} s"
        said = (folder / "console.txt").read_text(errors="replace").strip().splitlines()[-5:]
        return "\n".join([f"the suite checked nothing (exit status {done}); its last words:", *said])

    def _outcomes(self, folder: Path, expected: Iterable[Scenario]) -> Iterator[Outcome]:
        """What the suite left in the folder, in the order in which it ran; scenarios nobody expects are not scored."""
        scenarios = {scenario.name.rpartition("/")[2]: scenario for scenario in expected}
        revision = next(iter(scenarios.values())).revision if scenarios else ""
        found = []
        for path in folder.rglob("checks.json"):
            named = FOLDER.fullmatch(path.parent.name)
            checks = tuple(_read_checks(path))
            if named is None or not checks:
                continue
            name = named["name"]
            scenario = scenarios.get(name) or Scenario(name, revision, _is_extension(name))
            began = datetime.strptime(named["began"], "%Y-%m-%dT%H-%M-%S-%fZ").replace(tzinfo=UTC)
            found.append(Outcome(scenario, checks, path.parent, began.timestamp()))
        yield from sorted(found, key=lambda outcome: outcome.began)


def _is_extension(name: str) -> bool:
    return name.startswith(EXTENSIONS) and name not in ALWAYS_SKIPPED


def _nothing(scenario: Scenario, folder: Path, why: str) -> Outcome:
    return Outcome(scenario, (Check("harness", "FAILURE", why),), folder, 0.0)


def _read_checks(path: Path) -> Iterator[Check]:
    for raw in json.loads(path.read_text()):
        yield Check(raw["id"], raw["status"], _message(raw))


def _message(raw: Mapping[str, Any]) -> str:
    return str(raw.get("errorMessage") or raw.get("description") or raw.get("name") or "")
