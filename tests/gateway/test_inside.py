"""Servers that speak HTTP inside a container without network: a real one, in both of its HTTP transports."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import docker
import pytest
from anyio import to_thread

from catalog import Entry, Limits, find_shipped_catalog, load_catalog
from gateway.errors import UpstreamError
from gateway.images import ImageStore
from gateway.runs import Run
from gateway.runtimes.docker import DockerRuntime
from gateway.runtimes.inside import MAX_CONNECTIONS, InsideChannel
from gateway.serverlog import ServerLog
from gateway.upstream import Upstream
from gateway.wire import envelope
from tests.gateway.engines import client, engine_url, make_tiny_image
from tests.servers import DEADLINE_S

pytestmark = [pytest.mark.anyio, pytest.mark.docker, pytest.mark.node]

BUILD_S = 1800.0
START_S = 120.0
PORT = 3001
MODES = {"http": "streamableHttp", "sse": "sse"}


@pytest.fixture(scope="module")
def engine() -> Iterator[docker.APIClient]:
    found = client()
    yield found
    found.close()


class Place:
    """A runtime, and the entry of a real server in each of its transports."""

    def __init__(self, runtime: DockerRuntime, image: str) -> None:
        self.runtime = runtime
        self._image = image

    def entry(self, transport: str) -> Entry:
        return Entry.model_validate(
            {
                "id": f"everything-{transport}",
                "title": "Everything",
                "description": "One of each kind.",
                "image": self._image,
                "args": ["mcp-server-everything", MODES[transport]],
                "env": {"PORT": str(PORT)},
                "transport": transport,
                "port": PORT,
                "limits": {"start_timeout_s": START_S, "call_timeout_s": DEADLINE_S},
            }
        )

    async def start(self, one: Entry) -> tuple[InsideChannel, Upstream]:
        upstream = Upstream(one.id, ServerLog(), call_timeout_s=DEADLINE_S, on_notification=lambda *_: None)
        with anyio.fail_after(START_S):
            channel = await self.runtime.start(one, upstream, upstream.log)
            assert isinstance(channel, InsideChannel)
            try:
                await upstream.open(channel, "legacy")
            except BaseException:
                await channel.close()
                raise
        return channel, upstream

    async def left(self) -> int:
        assert self.runtime.reconciler is not None
        return await self.runtime.reconciler.sweep()


@pytest.fixture
async def place(engine: docker.APIClient, tmp_path: Path, cache_dir: Path) -> AsyncIterator[Place]:
    with Run(tmp_path / "state") as run:
        images = ImageStore(cache_dir, docker_url=engine_url(), run=run)
        everything = load_catalog(find_shipped_catalog()).entry("everything")
        only_package = everything.model_copy(update={"image": None, "args": ()})
        with anyio.fail_after(BUILD_S):
            image = await images.ensure(only_package, progress=lambda _: None)
        runtime = DockerRuntime(engine_url(), images, tmp_path / "volumes", run)
        assert await runtime.probe() is None
        yield Place(runtime, image.reference)
        with anyio.CancelScope(shield=True):
            await runtime.aclose()


async def echo(upstream: Upstream, text: str) -> str:
    members = {"name": envelope.raw("echo"), "arguments": envelope.raw({"message": text})}
    return (await upstream.request("tools/call", members)).decode()


def connections(engine: docker.APIClient, container: str) -> int:
    """How many connections are open into the container: each is a process of the launcher's program there."""
    rows: list[list[str]] = engine.top(container)["Processes"]
    return sum("busybox nc" in " ".join(row) for row in rows)


@pytest.mark.parametrize("transport", ["http", "sse"])
async def test_a_server_behind_http_serves_without_a_network_and_leaves_nothing(
    transport: str, place: Place, engine: docker.APIClient
) -> None:
    channel, upstream = await place.start(place.entry(transport))
    container = channel.detail["container"]
    try:
        assert "hello" in await echo(upstream, "hello")
        answers: list[str] = []

        async def one(number: int) -> None:
            text = await echo(upstream, f"number {number}.")
            assert f"number {number}." in text
            answers.append(text)

        async with anyio.create_task_group() as group:
            for number in range(40):
                group.start_soon(one, number)
        assert len(answers) == 40
        seen: dict[str, Any] = await to_thread.run_sync(engine.inspect_container, container)
        assert seen["HostConfig"]["NetworkMode"] == "none"
        assert not seen["HostConfig"]["PortBindings"]
        assert await to_thread.run_sync(connections, engine, container) <= MAX_CONNECTIONS
        # Connections that are no longer used do not stay behind in the container.
        with anyio.fail_after(DEADLINE_S):
            while await to_thread.run_sync(connections, engine, container) > 3:
                await echo(upstream, "again")
                await anyio.sleep(0.2)
    finally:
        await channel.close()
        await channel.close()
    assert await place.left() == 0
    assert not [line for line in upstream.log.lines() if "could not" in line.text]


async def test_progress_comes_before_the_answer(place: Place) -> None:
    channel, upstream = await place.start(place.entry("http"))
    try:
        members = {
            "name": envelope.raw("trigger-long-running-operation"),
            "arguments": envelope.raw({"duration": 1, "steps": 4}),
            "_meta": envelope.raw({"progressToken": 1}),
        }
        call = await upstream.start("tools/call", members)
        items = []
        with anyio.fail_after(DEADLINE_S):
            while True:
                items.append(await call.next())
                if type(items[-1]).__name__ == "Reply":
                    break
        assert len(items) > 2
    finally:
        await channel.close()


async def test_a_server_that_dies_ends_its_calls_with_a_reason(place: Place, engine: docker.APIClient) -> None:
    channel, upstream = await place.start(place.entry("http"))
    try:
        await to_thread.run_sync(engine.kill, channel.detail["container"])
        with anyio.fail_after(DEADLINE_S):
            await upstream.ended.wait()
        assert "exit code 137" in upstream.end_reason
        with pytest.raises(UpstreamError):
            await echo(upstream, "anybody?")
    finally:
        await channel.close()
    assert await place.left() == 0


async def test_a_server_that_ends_before_it_listens_is_said_so(place: Place) -> None:
    broken = place.entry("http").model_copy(update={"args": ("mcp-server-everything", "no-such-mode")})
    with pytest.raises(UpstreamError) as caught:
        await place.start(broken)
    assert "before it listened on port 3001" in str(caught.value)
    assert await place.left() == 0


async def test_a_server_that_never_listens_is_given_up_with_its_start(
    place: Place, engine: docker.APIClient, tmp_path: Path
) -> None:
    name = f"lockgate.local/test-deaf-{os.getpid()}"
    await to_thread.run_sync(make_tiny_image, engine, tmp_path, name)  # it reads stdin and listens nowhere
    deaf = Entry(
        id="deaf",
        title="Deaf",
        description="Listens nowhere.",
        image=f"{name}:1",
        transport="http",
        port=9,
        limits=Limits(start_timeout_s=1.0),
    )
    upstream = Upstream("deaf", ServerLog(), call_timeout_s=DEADLINE_S, on_notification=lambda *_: None)
    try:
        with anyio.move_on_after(3.0) as scope:
            await place.runtime.start(deaf, upstream, upstream.log)
        assert scope.cancelled_caught
        assert await place.left() == 0
    finally:
        await to_thread.run_sync(lambda: engine.remove_image(f"{name}:1", force=True))
