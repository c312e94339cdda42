"""Runs on a state folder: who lives, what is whose, and what cannot be forged."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.leftovers import remove_leftovers
from gateway.runs import MARK, Run
from gateway.runtimes.labels import GATEWAY, RUN, SERVER, SIGNATURE
from tests.servers import DEADLINE_S, until

pytestmark = pytest.mark.anyio

DIE_HOLDING = """
import os, signal, sys
from pathlib import Path
from gateway.runs import Run
with Run(Path(sys.argv[1])) as run:
    print(run.id, run.hold("server"), run.hold_build(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def killed(state: Path) -> list[str]:
    """A run that was killed: its id, and the names of a container and of a build it held."""
    done = subprocess.run(
        [sys.executable, "-c", DIE_HOLDING, str(state)], capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert done.returncode == -9, done.stderr
    return done.stdout.split()


def test_a_run_lives_until_it_ends_or_is_killed(tmp_path: Path) -> None:
    with Run(tmp_path) as watcher:
        with Run(tmp_path) as other:
            assert watcher.lives(other.id)
            assert other.lives(watcher.id)
        assert not watcher.lives(other.id)
        dead, *_ = killed(tmp_path)
        assert not watcher.lives(dead)
        assert watcher.is_dead(f"{watcher.gateway}.{dead}")
        assert not watcher.is_dead(f"{watcher.gateway}.{watcher.id}")
        assert not watcher.is_dead(f"another.{dead}")
        assert not watcher.is_dead("")
        watcher.forget_dead()
        assert [file.name for file in (tmp_path / "runs").iterdir()] == [watcher.id]


def test_the_key_of_the_labels_is_the_users_alone_and_stays_the_same(tmp_path: Path) -> None:
    with Run(tmp_path) as first:
        labels = first.labels("container", "x", "time")
    assert oct((tmp_path / "label-key").stat().st_mode)[-3:] == "600"
    with Run(tmp_path) as second:
        assert second.gateway == first.gateway
        assert second.may_remove("container", "x", labels)


def test_only_what_a_dead_run_signed_may_be_removed(tmp_path: Path) -> None:
    with Run(tmp_path / "a") as dead:
        labels = dead.labels("container", "x", "time")
        build = dead.hold_build()
    with Run(tmp_path / "a") as run, Run(tmp_path / "b") as elsewhere:
        assert run.may_remove("container", "x", labels)
        assert run.may_remove("container", build, {})
        assert not elsewhere.may_remove("container", "x", labels)
        assert not elsewhere.may_remove("container", build, {})
        assert not run.may_remove("container", "copy-of-x", labels)
        assert not run.may_remove("network", "x", labels)
        assert not run.may_remove("network", build, {})
        for changed in (GATEWAY, RUN, SERVER, SIGNATURE):
            assert not run.may_remove("container", "x", {**labels, changed: "other"})
            assert not run.may_remove("container", "x", {one: labels[one] for one in labels if one != changed})
        for forged in (f"{build}0", build.replace(dead.id, "0" * 16), "lockgate-build-", "lockgate-build-x-y-z"):
            assert not run.may_remove("container", forged, {})


def test_what_a_living_run_holds_stays_and_what_it_released_goes(tmp_path: Path) -> None:
    with Run(tmp_path) as run, Run(tmp_path) as command:
        held, foreign = run.hold("Time"), command.hold("time")
        assert held.startswith("lockgate-time-")
        build = run.hold_build()
        labels = {name: run.labels("container", name, "time") for name in (held, build)}
        assert not run.may_remove("container", held, labels[held])
        assert not run.may_remove("container", build, {})
        assert not run.may_remove("container", foreign, command.labels("container", foreign, "time"))
        run.release(held)
        run.release(build)
        assert run.may_remove("container", held, labels[held])
        assert run.may_remove("container", build, {})


async def test_processes_and_temporary_files_of_dead_runs_are_removed_and_no_others(tmp_path: Path) -> None:
    state, cache = tmp_path / "state", tmp_path / "cache"
    dead, *_ = killed(state)
    with Run(state) as run, Run(state) as command, Run(tmp_path / "other") as other:
        marks = {
            "dead": f"{run.gateway}.{dead}",
            "mine": run.mark,
            "command": command.mark,
            "other": other.mark,
            "other-dead": f"{other.gateway}.{dead}",
        }
        for name, mark in marks.items():
            (cache / "builds" / f"{mark}.{name}").mkdir(parents=True)
        (state / "gateway.tmp").touch()
        sleepers = {
            name: subprocess.Popen(["sleep", "1000"], env={MARK: mark, "PATH": os.environ["PATH"]})
            for name, mark in marks.items()
        }
        try:
            for one in sleepers.values():  # the variables are there once the program is
                await until(lambda pid=one.pid: b"sleep" in Path(f"/proc/{pid}/cmdline").read_bytes(), "it runs")
            remove_leftovers(run, state, cache)
            assert sleepers["dead"].wait(DEADLINE_S) == -9
            assert {name for name, one in sleepers.items() if one.poll() is None} == set(marks) - {"dead"}
        finally:
            for one in sleepers.values():
                one.kill()
                one.wait()
        assert {folder.suffix for folder in (cache / "builds").iterdir()} == {
            ".mine",
            ".command",
            ".other",
            ".other-dead",
        }
        assert not (state / "gateway.tmp").exists()
        assert {file.name for file in (state / "runs").iterdir()} == {run.id, command.id}
