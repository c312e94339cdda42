"""No program the gateway starts inherits a file it was not given."""

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import anyio
import pytest

from gateway.installer import run_installer
from tests.servers import DEADLINE_S, until

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).parents[2]

PROGRAM = """
import contextlib, os
for fd in range(3, 64):
    with contextlib.suppress(OSError):
        print(os.readlink(f"/proc/self/fd/{fd}"))
"""


@pytest.fixture
def handed(tmp_path: Path) -> Iterator[int]:
    """A file that whoever started the gateway left open for its children."""
    (tmp_path / "secret").touch()
    fd = os.open(tmp_path / "secret", os.O_RDONLY)
    os.set_inheritable(fd, True)
    yield fd
    os.close(fd)


async def test_an_installer_inherits_its_lock_and_nothing_else(tmp_path: Path, handed: int) -> None:
    lock = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    lines: list[str] = []
    try:
        await run_installer(
            [sys.executable, "-S", "-c", PROGRAM],
            env={},
            cwd=tmp_path,
            on_line=lines.append,
            timeout_s=DEADLINE_S,
            inherit=(lock,),
        )
    finally:
        os.close(lock)
    assert lines == [str(tmp_path / "lock")]
    assert handed > 2


async def test_the_models_worker_keeps_nothing_open_that_it_was_handed(tmp_path: Path, handed: int) -> None:
    environment = {"PYTHONPATH": str(ROOT), "LANG": "C.UTF-8"}
    argv = [sys.executable, "-P", "-m", "engine.worker"]
    async with await anyio.open_process(argv, env=environment, cwd="/", pass_fds=(handed,)) as process:
        folder = Path(f"/proc/{process.pid}/fd")

        def opened() -> list[str]:
            found = []
            for one in folder.iterdir():
                with suppress(FileNotFoundError):  # closed meanwhile
                    found.append(os.readlink(one))
            return found

        # It waits for its first message; the copy of its stdout is the first file it opens itself.
        await until(lambda: str(tmp_path / "secret") not in opened(), "it has closed what it was handed")
        process.kill()
