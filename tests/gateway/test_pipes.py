"""The short way to a container's server: taken where it can be, left where it cannot, and nothing of it stays."""

import asyncio
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread

from catalog import Secret
from gateway.errors import UpstreamError
from gateway.images import ImageStore
from gateway.runs import PIPES, Run
from gateway.runtimes.docker import DockerRuntime
from gateway.runtimes.handover import Handover
from gateway.runtimes.launcher import Launcher
from gateway.runtimes.pipes import THROUGH_PIPES, Pipes
from tests.gateway.sandboxes import BUILD_S, base_image, docker_url, probe_entry, sandbox
from tests.servers import DEADLINE_S

pytestmark = pytest.mark.anyio

WHERE = """
import os
folder = "/run/lockgate-pipes"
result = {
    "ways": [os.readlink(f"/proc/self/fd/{fd}") for fd in (0, 1)],
    "left": os.listdir(folder) if os.path.isdir(folder) else None,
    "environment": sorted(os.environ),
}
try:
    os.mkfifo(f"{folder}/mine")
except OSError as exc:
    result["made"] = type(exc).__name__
"""
LAST_WORDS = """
import json, os, sys
id = sys._getframe(2).f_locals["message"]["id"]
answer = {"jsonrpc": "2.0", "id": id, "result": {"content": [{"type": "text", "text": json.dumps("x" * 30000)}]}}
os.write(1, json.dumps(answer).encode() + b"\\n")
os._exit(7)
"""


@pytest.fixture
async def image(cache_dir: Path) -> str:
    """A published image, on an engine that has the launcher."""
    name = await base_image(cache_dir)
    with anyio.fail_after(BUILD_S):
        await Launcher(ImageStore(cache_dir, docker_url=docker_url())).volume(print)
    return name


def left(folder: Path) -> list[Path]:
    return list((folder / "state" / PIPES).glob("*"))


@pytest.mark.docker
@pytest.mark.sec("SEC-066")
async def test_a_servers_data_passes_pipes_whose_names_are_gone_when_it_runs(
    image: str, tmp_path: Path, cache_dir: Path
) -> None:
    async with sandbox(cache_dir, tmp_path, probe_entry(image)) as box:
        seen = await box.run(WHERE)
        assert [way.removesuffix(" (deleted)") for way in seen["ways"]] == [
            "/run/lockgate-pipes/in",
            "/run/lockgate-pipes/out",
        ]
        assert not seen["left"]
        assert seen["made"] in ("OSError", "FileNotFoundError")
        assert not [name for name in seen["environment"] if name.startswith("_lg")]
        assert left(tmp_path) == []
        mounts = {one["Destination"]: one for one in (await box.inspect())["Mounts"]}
        assert set(mounts) == {"/run/lockgate", "/run/lockgate-pipes"}
        assert not any(one["RW"] for one in mounts.values())


@pytest.mark.docker
async def test_many_large_messages_at_once_come_whole(image: str, tmp_path: Path, cache_dir: Path) -> None:
    async with sandbox(cache_dir, tmp_path, probe_entry(image, limits={"memory_mib": 256})) as box:

        async def one(number: int) -> None:
            text = f"{number}," * 200_000
            assert await box.run(f"result = {text!r}[::-1]") == text[::-1]

        async with anyio.create_task_group() as tasks:
            for number in range(8):
                tasks.start_soon(one, number)


@pytest.mark.docker
async def test_what_a_server_says_before_it_exits_is_heard(image: str, tmp_path: Path, cache_dir: Path) -> None:
    for _ in range(3):
        async with sandbox(cache_dir, tmp_path, probe_entry(image)) as box:
            answer = json.loads(await box.raw(LAST_WORDS))
            assert json.loads(answer["content"][0]["text"]) == "x" * 30000
            with anyio.fail_after(DEADLINE_S):
                await box.upstream.ended.wait()
            with pytest.raises(UpstreamError, match="exit code 7"):
                await box.run("result = 1")


@pytest.mark.docker
@pytest.mark.parametrize("exchanged", ["folder", "rights"])
async def test_pipes_that_are_not_the_gateways_are_not_used(
    exchanged: str, image: str, tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on an engine in another machine or user namespace: the launcher looks, and the engine carries the data."""
    recheck = Handover.recheck

    async def exchange(self: Handover, handed: Any) -> None:
        (folder,) = left(tmp_path)
        if exchanged == "folder":
            folder.rename(tmp_path / "aside")
            shutil.copytree(tmp_path / "aside", folder, copy_function=lambda *_: None)
        else:
            (folder / "out").chmod(0)
        await recheck(self, handed)

    monkeypatch.setattr(Handover, "recheck", exchange)
    entry = probe_entry(image, secrets=(Secret(name="probe.key", env="KEY"),))
    async with sandbox(cache_dir, tmp_path, entry, {"probe.key": "as-before-and-secret"}) as box:
        seen = await box.run(WHERE)
        assert all(way.startswith("pipe:") for way in seen["ways"])
        assert "KEY" in seen["environment"]
        assert any("the engine does not see" in line.text for line in box.log.lines())
        text = "x" * 300_000
        assert await box.run(f"result = {text!r}") == text
    shutil.rmtree(tmp_path / "aside", ignore_errors=True)


@pytest.mark.docker
async def test_an_engine_that_does_not_see_the_folder_carries_the_data_itself(
    image: str, tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = DockerRuntime._create

    async def unseen(self: DockerRuntime, client: Any, spec: dict[str, Any], name: str) -> dict[str, Any]:
        for folder in left(tmp_path):
            shutil.rmtree(folder)
        return await create(self, client, spec, name)

    monkeypatch.setattr(DockerRuntime, "_create", unseen)
    async with sandbox(cache_dir, tmp_path, probe_entry(image)) as box:
        assert all(way.startswith("pipe:") for way in (await box.run(WHERE))["ways"])
        assert {one["Destination"] for one in (await box.inspect())["Mounts"]} == {"/run/lockgate"}


@pytest.mark.docker
async def test_a_start_that_fails_leaves_no_pipes(
    image: str, tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(self: Handover, handed: Any) -> None:
        assert left(tmp_path)
        raise OSError("as if the disk were gone")

    monkeypatch.setattr(Handover, "recheck", fail)
    with pytest.raises(UpstreamError, match="as if the disk were gone"):
        async with sandbox(cache_dir, tmp_path, probe_entry(image)):
            pass
    assert left(tmp_path) == []


# -- the pipes alone -----------------------------------------------------------------------------


class Listener:
    """What a stream is told."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.enough = asyncio.Event()
        self.wanted = 0
        self.has_room = asyncio.Event()
        self.has_room.set()
        self.n_paused = 0

    def piped(self, data: bytes) -> None:
        self.data += data
        if len(self.data) >= self.wanted:
            self.enough.set()

    def pause(self) -> None:
        self.n_paused += 1
        self.has_room.clear()

    def resume(self) -> None:
        self.has_room.set()


async def test_more_than_a_pipe_holds_is_written_as_it_is_read_and_then_the_input_ends(tmp_path: Path) -> None:
    with Run(tmp_path / "state") as run:
        listener = Listener()
        listener.wanted = len(THROUGH_PIPES)
        pipes = Pipes(run.pipes_folder(), listener).make(65532, 65532)
        pipes.write(b"before it is open;")
        script = 'exec <"$1/in" >"$1/out"; echo "launched yes"; exec cat'
        process = subprocess.Popen(["/bin/sh", "-c", script, "x", str(pipes.folder)])
        try:
            with anyio.fail_after(DEADLINE_S):
                await listener.enough.wait()
                assert bytes(listener.data) == THROUGH_PIPES
                block = bytes(range(256)) * 512
                listener.enough.clear()
                listener.wanted += len(b"before it is open;") + 64 * len(block)
                pipes.opened()
                assert not pipes.folder.exists()
                for _ in range(64):
                    await listener.has_room.wait()
                    pipes.write(block)
                assert listener.n_paused > 1
                await listener.enough.wait()
                assert bytes(listener.data) == THROUGH_PIPES + b"before it is open;" + 64 * block
                pipes.write(block)
                pipes.close_stdin()
                assert pipes.is_closing()
                assert await to_thread.run_sync(process.wait) == 0
            whole = bytes(listener.data) + pipes.rest()
            assert whole == THROUGH_PIPES + b"before it is open;" + 65 * block
        finally:
            process.kill()
            process.wait()
            pipes.close()
            pipes.close()
        assert left(tmp_path) == []
