"""Tools each call of which runs a container of its own: real containers, arguments of every kind, nothing left."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import docker
import pytest
from anyio import to_thread

from catalog import Entry
from gateway.errors import UpstreamUnavailable
from gateway.images import ImageStore
from gateway.mounts import MountGuard
from gateway.runs import Run
from gateway.runtimes.docker import DockerRuntime
from gateway.runtimes.labels import GATEWAY
from gateway.secrets import EnvironmentSecrets, Secrets, variable
from gateway.serverlog import ServerLog
from gateway.upstream import Upstream
from gateway.wire import envelope
from gateway.wire.channel import Channel
from tests.gateway.engines import client, engine_url, road_to_engine
from tests.gateway.leaks import assert_absent, remember, sweep_whole_engine
from tests.gateway.sandboxes import probe_entry
from tests.servers import DEADLINE_S, until

pytestmark = [pytest.mark.anyio, pytest.mark.docker]

BUILD_S = 1800.0
GIVEN_UP_S = 0.5
ARGV = "import json, sys; print(json.dumps(sys.argv[1:]))"
READ = "import pathlib, sys; print(pathlib.Path(sys.argv[1]).read_text())"
FAIL = "import sys; print('half'); print('broken', file=sys.stderr); sys.exit(3)"
SECRET = (
    "import os, sys; key, token = os.environ['KEY'], open('/run/secrets/token').read();"
    "print(key[::-1], token[::-1], key); print(token, file=sys.stderr); print(sorted(os.environ))"
)
CANARIES = {"box.key": "percall-c4nary/of=every+call", "box.token": "an0ther-percall-canary"}
FLOOD = "print('x' * 3_000_000)"


@pytest.fixture(scope="module")
def engine() -> Iterator[docker.APIClient]:
    found = client()
    yield found
    found.close()


def tools(image: str) -> Entry:
    def tool(name: str, *code: str, **more: Any) -> dict[str, Any]:
        return {"name": name, "description": f"Does {name}.", "image": image, "command": ["python3", *code], **more}

    args = {"name": "args", "type": "list", "arg": ""}
    level = {"name": "level", "enum": ["low", "high"], "default": "low", "arg": "--level="}
    path = {"name": "path", "required": True, "arg": ""}
    return Entry.model_validate(
        {
            "id": "box",
            "title": "Box",
            "description": "Tools without a server.",
            "limits": {"memory_mib": 128},
            "secrets": [{"name": "box.key", "env": "KEY"}, {"name": "box.token", "file": "token"}],
            "per_call": [
                tool("argv", "-c", ARGV, parameters=[args, level]),
                tool("read", "-c", READ, parameters=[path], mounts=[{"config": "path"}]),
                tool("fail", "-c", FAIL),
                tool("secret", "-c", SECRET),
                tool("flood", "-c", FLOOD),
                tool("wait", "-c", "import time; time.sleep(3600)"),
            ],
        }
    )


def secrets_of_the_box() -> Secrets:
    remember(CANARIES.values())
    return Secrets([EnvironmentSecrets({variable(name): value for name, value in CANARIES.items()})])


class Place:
    def __init__(self, runtime: DockerRuntime, entry: Entry, run: Run, engine: docker.APIClient, files: Path) -> None:
        self.runtime = runtime
        self.entry = entry
        self.files = files
        self._run = run
        self._engine = engine
        self.log = ServerLog()
        self.upstream = Upstream("box", self.log, call_timeout_s=120, on_notification=lambda *_: None)
        self.channel: Channel | None = None

    async def open(self) -> None:
        with anyio.fail_after(BUILD_S):
            await self.runtime.prepare(self.entry, self.log)
            self.channel = await self.runtime.start(self.entry, self.upstream, self.log)
            await self.upstream.open(self.channel, "legacy")

    async def call(self, tool: str, **arguments: Any) -> tuple[str, bool]:
        members = {"name": envelope.raw(tool), "arguments": envelope.raw(arguments)}
        with anyio.fail_after(DEADLINE_S * 6):
            result = json.loads(await self.upstream.request("tools/call", members))
        return result["content"][0]["text"], result["isError"]

    def containers(self, *states: str) -> list[dict[str, Any]]:
        label = {"label": f"{GATEWAY}={self._run.gateway}"}
        found: list[dict[str, Any]] = self._engine.containers(all=True, filters=label)
        return [one for one in found if not states or one["State"] in states]

    async def spare(self) -> dict[str, Any]:
        """The container that waits for the next call."""
        with anyio.fail_after(DEADLINE_S):
            while not (found := await to_thread.run_sync(self.containers, "created")):
                await anyio.sleep(0.05)
        return found[0]


@pytest.fixture
async def place(engine: docker.APIClient, tmp_path: Path, cache_dir: Path) -> AsyncIterator[Place]:
    files = tmp_path / "files"
    files.mkdir()
    files.chmod(0o755)
    with Run(tmp_path / "state") as run:
        images = ImageStore(cache_dir, docker_url=engine_url(), run=run)
        with anyio.fail_after(BUILD_S):
            base = await images.base("python", lambda _: None)
        guard = MountGuard([files], [])
        runtime = DockerRuntime(
            engine_url(), images, tmp_path / "volumes", run, mounts=guard, secrets=secrets_of_the_box()
        )
        assert await runtime.probe() is None
        place = Place(runtime, tools(base), run, engine, files)
        await place.open()
        yield place
        with anyio.CancelScope(shield=True):
            assert place.channel is not None
            await place.channel.close()
            await until(lambda: not place.containers(), "no container is left")
            await runtime.aclose()


async def test_a_tool_shows_all_its_parameters_and_which_are_required(place: Place) -> None:
    raw = await place.upstream.list_all("tools/list", "tools")
    listed = {tool["name"]: tool for tool in map(envelope.value, raw)}
    assert list(listed) == ["argv", "read", "fail", "secret", "flood", "wait"]
    assert listed["argv"]["inputSchema"] == {
        "type": "object",
        "properties": {
            "args": {"type": "array", "items": {"type": "string"}},
            "level": {"type": "string", "enum": ["low", "high"], "default": "low"},
        },
        "required": [],
        "additionalProperties": False,
    }
    assert listed["read"]["inputSchema"]["required"] == ["path"]
    assert place.containers() == []  # listing runs nothing


async def test_arguments_arrive_as_they_are_and_stand_in_no_record_of_the_engine(
    place: Place, engine: docker.APIClient
) -> None:
    odd = ["a b", "", "-n", "$(id)", "`id`", "'\"\\", "line\nbreak\n", "\t", "ünï", "*", "{{x}}", "x" * 8000]
    assert await place.call("argv", args=odd) == (json.dumps([*odd, "--level=low"]) + "\n", False)
    # The next call finds a container that was made, with nothing in it of a call.
    spare = await place.spare()
    seen = await to_thread.run_sync(engine.inspect_container, spare["Id"])
    assert seen["Config"]["Cmd"] == ["python3", "-c", ARGV]
    assert seen["HostConfig"]["NetworkMode"] == "none"
    assert seen["HostConfig"]["ReadonlyRootfs"] is True
    assert seen["HostConfig"]["CapDrop"] == ["ALL"]
    assert seen["HostConfig"]["Memory"] == 128 * 1024 * 1024
    assert await place.call("argv", args=["second"], level="high") == ('["second", "--level=high"]\n', False)
    after = await place.spare()
    assert after["Id"] != spare["Id"], "the container in reserve was not used"


async def test_wrong_arguments_are_said_so_and_run_nothing(place: Place) -> None:
    for arguments, said in (
        ({"args": "text"}, "the argument args must be a list of texts"),
        ({"level": "middle"}, "must be one of low, high"),
        ({"levle": "low"}, 'there is no argument "levle"'),
        ({"args": ["a\0b"]}, "contains a NUL character"),
    ):
        text, is_error = await place.call("argv", **arguments)
        assert is_error
        assert said in text
    text, is_error = await place.call("read")
    assert is_error
    assert "the argument path is missing" in text
    assert place.containers() == []


async def test_a_program_that_fails_is_an_error_with_what_it_said(place: Place) -> None:
    text, is_error = await place.call("fail")
    assert is_error
    assert "half" in text
    assert "broken" in text
    assert "exit code 3" in text


@pytest.mark.sec("SEC-058")
@pytest.mark.sec("SEC-059")
async def test_secrets_reach_the_containers_of_calls_and_stand_nowhere_else(
    place: Place, engine: docker.APIClient
) -> None:
    since, values = int(time.time()), list(CANARIES.values())
    for _ in range(2):  # made for the call, and made in advance
        text, is_error = await place.call("secret")
        assert not is_error
        key, token, said = text.splitlines()[0].split(maxsplit=2)
        assert [key[::-1], token[::-1]] == values
        assert said == "[hidden secret: box.key]"
        assert "'TOKEN'" not in text
        spare = await place.spare()
        seen = await to_thread.run_sync(engine.inspect_container, spare["Id"])
        assert_absent("docker inspect", json.dumps(seen, ensure_ascii=False).encode(), values)
    assert await to_thread.run_sync(sweep_whole_engine, engine, since, int(time.time()) + 1, values) > 5
    log = "\n".join(line.text for line in place.log.lines())
    assert "[hidden secret: box.token]" in log
    assert_absent("the log", log.encode(), values)


async def test_endless_output_is_cut(place: Place) -> None:
    text, is_error = await place.call("flood")
    assert not is_error
    assert text.endswith("(the rest of the output was cut)")
    assert len(text) < 1_100_000


async def test_a_folder_named_by_the_caller_is_mounted_only_below_an_approved_one(place: Place) -> None:
    file = place.files / "letter.txt"
    file.write_text("dear reader")
    file.chmod(0o644)
    assert await place.call("read", path=str(file)) == ("dear reader\n", False)
    for path in ("/etc/passwd", str(place.files / "../x"), "relative", str(place.files.parent)):
        try:
            text, is_error = await place.call("read", path=path)
        except UpstreamUnavailable as exc:
            text, is_error = str(exc), True
        assert is_error
        assert "root:" not in text
    (place.files / "link").symlink_to("/etc/passwd")
    with pytest.raises(UpstreamUnavailable, match="symbolic link"):
        await place.call("read", path=str(place.files / "link"))


async def test_a_withdrawn_call_leaves_no_container(place: Place) -> None:
    members = {"name": envelope.raw("wait"), "arguments": envelope.raw({})}
    call = await place.upstream.start("tools/call", members)
    with anyio.fail_after(DEADLINE_S * 3):
        while not await to_thread.run_sync(place.containers, "running"):
            await anyio.sleep(0.05)
    place.upstream.cancel(call, "enough")
    with anyio.fail_after(DEADLINE_S * 3):
        while await to_thread.run_sync(place.containers, "running", "removing"):
            await anyio.sleep(0.05)


@pytest.mark.sec("SEC-074")
@pytest.mark.parametrize("moment", ["a call", "the container in reserve", "a server", "a filter", "a network"])
async def test_what_is_given_up_while_the_engine_makes_it_is_removed_at_once(
    moment: str, engine: docker.APIClient, tmp_path: Path, cache_dir: Path
) -> None:
    """No sweep runs here: who asked for the container removes it."""
    async with road_to_engine(tmp_path / "e.sock") as road:
        with Run(tmp_path / "state") as run:
            images = ImageStore(cache_dir, docker_url=engine_url(), run=run)
            base = await images.base("python", lambda _: None)
            url = f"unix://{tmp_path}/e.sock"
            runtime = DockerRuntime(url, images, tmp_path / "volumes", run, secrets=secrets_of_the_box())
            assert await runtime.probe() is None
            place = Place(runtime, tools(base), run, engine, tmp_path)
            log = ServerLog()
            await runtime.prepare(place.entry, log)
            await runtime._launcher.volume(print)  # so that what is held back is what is meant
            if moment == "the container in reserve":
                await place.open()
                assert await place.call("argv") == ('["--level=low"]\n', False)
                await place.spare()
            road.held_back = b"/networks/create" if moment == "a network" else b"/containers/create"
            if moment in ("a call", "the container in reserve"):
                await place.open() if place.channel is None else None
                members = {"name": envelope.raw("argv"), "arguments": envelope.raw({})}
                call = await place.upstream.start("tools/call", members)
                async with asyncio.timeout(DEADLINE_S * 3):
                    await road.holds.wait()
                place.upstream.cancel(call, "enough") if moment == "a call" else None
                assert place.channel is not None
                ending = asyncio.create_task(place.channel.close())
            else:
                listed = {"network": "internet", "hosts": ["example.com:443"]} if moment != "a server" else {}
                server = probe_entry(base, **listed)
                starting = asyncio.create_task(runtime.start(server, place.upstream, log))
                async with asyncio.timeout(DEADLINE_S * 3):
                    await road.holds.wait()
                starting.cancel()
                ending = asyncio.create_task(asyncio.wait([starting]))  # type: ignore[arg-type]
            # Who does not wait for what it asked for has gone by now, and would miss it.
            await asyncio.wait([ending], timeout=GIVEN_UP_S)
            road.let.set()
            async with asyncio.timeout(DEADLINE_S * 3):
                await ending
                await road.answered.wait()
            label = {"label": f"{GATEWAY}={run.gateway}"}
            await until(lambda: not place.containers() and not engine.networks(filters=label), "nothing is left")
            await runtime.aclose()


async def test_many_calls_at_once_are_all_answered(place: Place) -> None:
    answers: dict[int, str] = {}

    async def one(number: int) -> None:
        answers[number], _ = await place.call("argv", args=[str(number)])

    async with anyio.create_task_group() as group:
        for number in range(12):
            group.start_soon(one, number)
    assert answers == {number: f'["{number}", "--level=low"]\n' for number in range(12)}
