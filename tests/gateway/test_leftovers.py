"""What killed processes leave on this machine goes at the next start, and what living ones work on stays."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gateway.leftovers import remove_leftovers, remove_unfinished
from gateway.runs import Run
from tests.servers import until

pytestmark = pytest.mark.anyio

SEEN_S = 120.0
ROOT = Path(__file__).parents[2]

MAKE_ROOTFS = """
import asyncio, os, sys
from pathlib import Path
from gateway.images.rootfs import make_rootfs, read_host_apt
asyncio.run(make_rootfs(Path(sys.argv[1]) / "rootfs", read_host_apt(os.environ), progress=print))
"""
INSTALL = """
import asyncio, sys
from pathlib import Path
from catalog import find_shipped_catalog, load_catalog
from gateway.packages import PackageStore
package = load_catalog(find_shipped_catalog()).entry("time").package
asyncio.run(PackageStore(Path(sys.argv[1])).ensure(package, progress=print))
"""
BRIDGE = """
import asyncio
from gateway.ssh_bridge import SshBridge
async def main():
    print(await SshBridge("ssh://user@nowhere.invalid").open(), flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


@contextmanager
def at_work(code: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that works below the folder; killed at the end if not before."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


async def stays_while_alive_and_goes_after(
    process: subprocess.Popen[str], seen: Callable[[], list[Path]], folder: Path
) -> None:
    with Run(folder / "state") as run:

        def begun() -> bool:
            found = seen()
            assert found or process.poll() is None, process.communicate()[0]
            return bool(found)

        await until(begun, "it has begun", SEEN_S)
        before = seen()
        remove_unfinished(run, folder / "state", folder)
        assert set(before) <= set(seen()), "a living process lost what it works on"
        assert process.poll() is None
        process.kill()
        process.wait()
        assert seen(), "the kill left nothing: what was tested?"

        def gone() -> bool:
            # As the gateway does: the programs of the killed process may take a moment to end.
            remove_unfinished(run, folder / "state", folder)
            return not seen()

        await until(gone, "nothing is left", SEEN_S)


async def test_a_file_system_whose_maker_was_killed_is_removed(tmp_path: Path) -> None:
    if os.geteuid() or shutil.which("debootstrap") is None:
        pytest.skip("needs root and debootstrap")
    with at_work(MAKE_ROOTFS, tmp_path) as process:

        def seen() -> list[Path]:
            return [*(tmp_path / "rootfs").glob("rootfs-*"), *(tmp_path / "rootfs").glob("*.part")]

        await until(lambda: seen() or process.poll() is not None, "debootstrap runs", SEEN_S)
        # What tar writes at the end, minutes from now.
        (lock,) = (tmp_path / "rootfs").glob("*.lock")
        lock.with_suffix("").with_suffix(".part").touch()
        await stays_while_alive_and_goes_after(process, seen, tmp_path)


async def test_a_package_whose_installer_was_killed_is_removed_and_a_whole_one_stays(tmp_path: Path) -> None:
    with at_work(INSTALL, tmp_path) as process:

        def seen() -> list[Path]:
            folders = [one for one in (tmp_path / "packages").glob("*/*") if one.is_dir()]
            return [one for one in folders if not (one / ".complete").exists()]

        await stays_while_alive_and_goes_after(process, seen, tmp_path)
    with at_work(INSTALL, tmp_path) as process:
        said, _ = process.communicate(timeout=SEEN_S)
        assert process.returncode == 0, said
    with Run(tmp_path / "state") as run:
        remove_unfinished(run, tmp_path / "state", tmp_path)
    (whole,) = (one for one in (tmp_path / "packages/pypi").iterdir() if one.is_dir())
    assert (whole / ".complete").exists()


async def test_the_socket_before_an_engine_behind_ssh_goes_with_its_gateway(tmp_path: Path) -> None:
    foreign = Path(tempfile.mkdtemp(prefix="lockgate-other-"))
    try:
        with at_work(BRIDGE, tmp_path) as process, at_work(BRIDGE, tmp_path) as living:
            assert process.stdout is not None
            assert living.stdout is not None
            folder = Path(process.stdout.readline().strip().removeprefix("unix://")).parent
            other = Path(living.stdout.readline().strip().removeprefix("unix://")).parent
            await stays_while_alive_and_goes_after(process, lambda: [folder] if folder.exists() else [], tmp_path)
            assert (other / "engine.sock").is_socket()
        assert foreign.is_dir()
    finally:
        foreign.rmdir()
        shutil.rmtree(other, ignore_errors=True)


@pytest.mark.sec("SEC-074")
def test_files_that_a_dead_gateway_had_not_finished_go_and_those_of_the_living_stay(tmp_path: Path) -> None:
    state, cache = tmp_path / "state", tmp_path / "cache"
    for folder in (
        state / "listings",
        state / "definitions",
        cache / "catalogs",
        cache / "signatures",
        cache / "vectors",
    ):
        folder.mkdir(parents=True)
    ended = subprocess.Popen(["true"])
    ended.wait()
    with Run(state) as run, Run(state) as command:
        dead = [
            state / "gateway.json",
            state / "stdio.sock",
            state / "use.tmp",
            state / "listings" / "time.7.tmp",
            state / "definitions" / "time.7.tmp",
            state / f".catalog.lock.{ended.pid}",
            state / f".audit.key.{ended.pid}.new",
            state / ".gateway-id.0123abcd",
            state / ".label-key.0123abcd",
            state / "runs" / ".0123456789abcdef",
            cache / "catalogs" / f"a.{ended.pid}.tmp",
            cache / "signatures" / f"a.{ended.pid}.tmp",
            cache / "vectors" / f"a.{ended.pid}.tmp",
        ]
        living = [
            state / "catalog.lock",
            state / ".catalog.lock.lock",
            state / f".catalog.lock.{os.getpid()}",
            state / f".vault.key.{os.getpid()}.new",
            state / "listings" / "time.json",
            cache / "catalogs" / f"a.{os.getpid()}.tmp",
            cache / "catalogs" / "a.json",
            cache / "signatures" / f"a.{os.getpid()}.tmp",
            cache / "vectors" / f"a.{os.getpid()}.tmp",
        ]
        for file in (*dead, *living):
            file.touch()
        remove_leftovers(run, state, cache)
        assert [file for file in dead if file.exists()] == []
        assert [file for file in living if not file.exists()] == []
        assert {one.name for one in (state / "runs").iterdir()} == {run.id, command.id}


def test_pipes_of_a_run_that_ended_go_and_those_of_a_living_one_stay(tmp_path: Path) -> None:
    """A gateway killed while a container starts leaves their folder; else their names are gone already."""
    with Run(tmp_path) as other:
        dead = other.pipes_folder()
    with Run(tmp_path) as run:
        living = run.pipes_folder()
        for folder in (dead, living):
            folder.mkdir(parents=True)
            os.mkfifo(folder / "in")
        remove_unfinished(run, tmp_path, tmp_path / "cache")
        assert not dead.exists()
        assert living.exists()
