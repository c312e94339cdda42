"""The conformance suite as an installed program: which scenarios it has, and one run of one of them.

Knows npm and the suite's command line and files; nothing of what is judged.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import yaml

Role = Literal["server", "client"]
Verdict = Literal["ok", "FAIL", "none"]

HERE: Final = Path(__file__).parent
REVISIONS: Final = ("2025-06-18", "2025-11-25", "2026-07-28")
INSTALL_TIMEOUT_S: Final = 600
LIST_TIMEOUT_S: Final = 60
RUN_TIMEOUT_S: Final = 120
"""For one scenario. They take a second or two; the suite itself gives a client 30 s."""


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
        self._node = self._root / "node_modules/.bin/node"
        self._package = self._root / "node_modules/@modelcontextprotocol/conformance"

    def ensure(self) -> None:
        """Install it, unless this very version is there.

        Raises:
            SuiteError: npm is missing or fails.
        """
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
        if not self._node.exists():
            raise SuiteError(f"there is no Node.js for this processor in {HERE / 'package.json'}")
        shutil.copy(lock, installed)

    def scenarios(self, role: Role, revision: str) -> list[Scenario]:
        """Every scenario that applies to the revision; extensions are not among them."""
        listing = self._run([*self._suite(), "list", f"--{role}", "--spec-version", revision], LIST_TIMEOUT_S)
        names = [line.split()[1] for line in listing.splitlines() if line.startswith("  - ")]
        required = self._required(role, revision)
        return [Scenario(name, revision, required is None or name in required) for name in names]

    def _required(self, role: Role, revision: str) -> frozenset[str] | None:
        """The revision's frozen list, in its order; None where the suite has none and everything counts."""
        path = self._package / "requirements" / f"{revision}.yaml"
        return frozenset(yaml.safe_load(path.read_text())[role]) if path.is_file() else None

    def _suite(self) -> list[str]:
        return [str(self._node), str(self._package / "dist/index.js")]

    def _run(self, argv: list[str], timeout_s: float) -> str:
        try:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout_s, check=False)
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise SuiteError(f"{argv[0]} did not work: {exc}") from exc
        if done.returncode != 0:
            raise SuiteError(f"{' '.join(argv)} ended with {done.returncode}:\n{done.stderr or done.stdout}")
        return done.stdout

    def judge_server(self, scenario: Scenario, url: str, folder: Path) -> Outcome:
        """Run a scenario against the server at the URL."""
        return self._judge(["server", "--url", url], scenario, folder, {})

    def judge_client(self, scenario: Scenario, command: str, folder: Path, env: Mapping[str, str]) -> Outcome:
        """Run a scenario against a client: the command is split at blanks and gets a URL as last argument."""
        return self._judge(["client", "--command", command], scenario, folder, env)

    def _judge(self, wanted: list[str], scenario: Scenario, folder: Path, env: Mapping[str, str]) -> Outcome:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        options = ["--scenario", scenario.name, "--spec-version", scenario.revision, "-o", str(folder)]
        with (folder / "console.txt").open("wb") as console:
            try:
                done: int | str = subprocess.run(
                    [*self._suite(), *wanted, *options],
                    stdin=subprocess.DEVNULL,
                    stdout=console,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **env},
                    timeout=RUN_TIMEOUT_S,
                    check=False,
                ).returncode
            except subprocess.TimeoutExpired:
                done = f"stopped after {RUN_TIMEOUT_S} s"
        checks = tuple(_read_checks(folder))
        if not checks:
            last = (folder / "console.txt").read_text(errors="replace").strip().splitlines()[-5:]
            message = "\n".join([f"the suite checked nothing (exit status {done}); its last words:", *last])
            checks += (Check("harness", "FAILURE", message),)
        return Outcome(scenario, checks, folder)


def _read_checks(folder: Path) -> Iterator[Check]:
    for path in folder.rglob("checks.json"):
        for raw in json.loads(path.read_text()):
            yield Check(raw["id"], raw["status"], _message(raw))


def _message(raw: Mapping[str, Any]) -> str:
    return str(raw.get("errorMessage") or raw.get("description") or raw.get("name") or "")
