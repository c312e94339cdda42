"""What the tests of containers share: an engine, and a server inside a sandbox that runs whatever it is sent.

Knows the runtimes; what is tried in there is the test's."""

import json
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import docker
import pytest
from anyio import to_thread

from catalog import Entry
from gateway.egress.attempts import Attempt
from gateway.images import ImageStore
from gateway.mounts import MountGuard
from gateway.runs import Run
from gateway.runtimes.docker import DockerRuntime
from gateway.secrets import EnvironmentSecrets, Secrets, variable
from gateway.serverlog import ServerLog
from gateway.settings import Settings
from gateway.upstream import Upstream
from gateway.wire import envelope
from gateway.wire.channel import Channel
from tests.gateway.leaks import remember
from tests.servers import DEADLINE_S

START_S = 120.0
BUILD_S = 1800.0
PROBE = Path(__file__).parent.parent / "servers" / "probe.py"


def docker_url() -> str:
    return os.environ.get("DOCKER_HOST") or Settings.docker_host


def engine() -> docker.APIClient:
    """The engine that tests use, as the gateway would find it; skips the test where there is none."""
    try:
        client = docker.APIClient(docker_url(), timeout=60)
        client.ping()
    except docker.errors.DockerException as exc:
        pytest.skip(f"no Docker Engine: {exc}")
    return client


async def base_image(cache_dir: Path) -> str:
    """A bare image with Python: the base of the gateway's own images."""
    with anyio.fail_after(BUILD_S):
        return await ImageStore(cache_dir, docker_url=docker_url()).base("python", lambda _: None)


def probe_entry(image: str, **parts: Any) -> Entry:
    """The probe as a published image. `parts` are parts of its entry."""
    limits = {"start_timeout_s": START_S, "call_timeout_s": DEADLINE_S, "memory_mib": 128} | parts.pop("limits", {})
    args = parts.pop("args", ("python3", "-c", PROBE.read_text()))
    named = {"id": "probe", "title": "Probe", "description": "Does what it is told."} | parts
    return Entry(image=image, args=args, limits=limits, **named)


class Sandbox:
    """One running probe."""

    def __init__(
        self, runtime: DockerRuntime, client: docker.APIClient, channel: Channel, upstream: Upstream, run: Run
    ) -> None:
        self.runtime = runtime
        self.run_of_it = run
        self.client = client
        self.channel = channel
        self.upstream = upstream
        self.log = upstream.log

    async def raw(self, code: str) -> bytes:
        members = {"name": envelope.raw("run"), "arguments": envelope.raw({"code": code})}
        return await self.upstream.request("tools/call", members)

    async def run(self, code: str) -> Any:
        """What the code left in `result`."""
        return json.loads(json.loads(await self.raw(code))["content"][0]["text"])

    async def inspect(self) -> dict[str, Any]:
        seen: dict[str, Any] = await to_thread.run_sync(self.client.inspect_container, self.channel.detail["container"])
        return seen


@asynccontextmanager
async def sandbox(
    cache_dir: Path,
    folder: Path,
    entry: Entry,
    values: Mapping[str, str] | None = None,
    mounts: MountGuard | None = None,
    container_runtime: str = "",
    egress_network: str = "bridge",
    attempts: list[Attempt] | None = None,
) -> AsyncIterator[Sandbox]:
    """Start the probe in a container, below a state folder of its own; nothing is left afterwards. `values` are secrets
    by name; denied attempts to reach something are added to `attempts`."""
    client = engine()
    shown = {secret.name for secret in entry.secrets if secret.plain_env}
    remember(value for name, value in (values or {}).items() if name not in shown)
    log = ServerLog()
    upstream = Upstream(entry.id, log, call_timeout_s=DEADLINE_S * 3, on_notification=lambda *_: None)
    stores = [EnvironmentSecrets({variable(name): value for name, value in (values or {}).items()})]
    with Run(folder / "state") as run:
        images = ImageStore(cache_dir, docker_url=docker_url(), run=run)
        runtime = DockerRuntime(
            docker_url(),
            images,
            folder / "volumes",
            run,
            secrets=Secrets(stores),
            mounts=mounts,
            container_runtime=container_runtime,
            egress_network=egress_network,
            report=lambda _, attempt: attempts.append(attempt) if attempts is not None else None,
        )
        try:
            assert await runtime.probe() is None
            with anyio.fail_after(BUILD_S):
                await runtime.prepare(entry, log)
                channel = await runtime.start(entry, upstream, log)
            try:
                with anyio.fail_after(START_S):
                    await upstream.open(channel)
                yield Sandbox(runtime, client, channel, upstream, run)
            finally:
                await channel.close()
        finally:
            await runtime.aclose()
            client.close()
