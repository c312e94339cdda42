"""Servers in containers: create, attach, start and remove through the Docker Engine API.

Knows how containers begin and go; not what they may do (specification.py), how one is lived with (container.py), how
images come to be (images/) nor what the frames mean (attach.py)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import anyio
from anyio import to_thread

from catalog import CatalogError, Entry
from gateway import errors
from gateway.docker_engine import Client, DockerEngine, EngineErrors, EngineRefused, NotInEngine, short, to_its_end
from gateway.egress.attempts import Attempt
from gateway.egress.gate import Gate, own_addresses
from gateway.engine_address import EngineAddress
from gateway.images import Image, ImageStore
from gateway.mounts import MountGuard
from gateway.runs import Run
from gateway.runtimes import oneshot
from gateway.runtimes.attach import AttachProtocol, Stream
from gateway.runtimes.container import DockerChannel
from gateway.runtimes.handover import CONTAINER_UID, Handed, Handover
from gateway.runtimes.inside import InsideChannel, Lifeline
from gateway.runtimes.kind import EngineKind
from gateway.runtimes.launcher import PIPES, Launcher
from gateway.runtimes.oneshot import Made
from gateway.runtimes.percall import PerCallChannel, tool_entry
from gateway.runtimes.reconcile import EngineSilent, Reconciler
from gateway.runtimes.specification import Given, ImageFacts, as_podman_takes_it, specification
from gateway.secrets import Secrets
from gateway.serverlog import ServerLog
from gateway.wire.channel import Channel, Receiver
from gateway.wire.http_client import Answer

ATTACH_TIMEOUT_S: Final = 30.0
REMOVED_TIMEOUT_S: Final = 10

_Failures: Final = (*EngineErrors, errors.EngineDown)


class DockerRuntime:
    """Containers on one Docker Engine, all labelled and named by one run of a gateway."""

    name = "docker"

    def __init__(
        self,
        engine: DockerEngine | EngineAddress | str,
        images: ImageStore,
        volumes: Path,
        run: Run,
        *,
        secrets: Secrets | None = None,
        mounts: MountGuard | None = None,
        container_runtime: str = "",
        egress_network: str = "bridge",
        report: Callable[[str, Attempt], None] | None = None,
    ) -> None:
        """`container_runtime` is the engine's runtime for entries that name none; empty is the engine's default.
        `egress_network` is the engine's network through which filtered servers reach the internet; `report` hears of
        what they were denied, by server."""
        self._engine = engine if isinstance(engine, DockerEngine) else DockerEngine(engine)
        self._images = images
        self._handover = Handover(volumes, secrets or Secrets(), mounts or MountGuard((), ()), volume_uid=CONTAINER_UID)
        self._launcher = Launcher(images)
        self._container_runtime = container_runtime
        self._egress_network = egress_network
        self._report = report or (lambda server, attempt: None)
        self._facts: dict[str, ImageFacts] = {}
        self._sees_folders = True
        """The engine has not refused yet to mount a folder that is there."""
        self._run = run
        self._client: Client | None = None
        self.kind = EngineKind()
        """Known once there is an engine."""
        self.reconciler: Reconciler | None = None
        """Present once there is an engine; whoever owns the runtime runs its `watch`."""

    async def probe(self) -> str | None:
        """Connect to the engine and remove what a dead gateway with the same state folder left behind.

        Returns the reason if there is no usable engine.
        """
        try:
            await self._engine.open()
            await self._engine.check()
            self._client = client = await to_thread.run_sync(self._engine.client)
            info = await self._engine.guard(client.info)
            self.kind = EngineKind.of(info, is_podman=self._engine.is_podman)
            self.reconciler = Reconciler(self._engine.origin, self._run)
            await self.reconciler.sweep()
        except (*_Failures, EngineSilent, OSError) as exc:
            await self.aclose()
            return str(exc) if isinstance(exc, errors.EngineDown) else self._engine.without_answer(exc)
        return None

    @property
    def label(self) -> str:
        """For people: says so where the engine does not hold containers to their limits."""
        return self.kind.label

    async def silent_because(self, patience_s: float) -> str:
        """Why the engine does not answer now; empty if it does."""
        try:
            async with asyncio.timeout(patience_s):
                await self._engine.check()
        except errors.EngineDown as exc:
            return str(exc)
        except TimeoutError:
            return self._engine.without_answer(f"no answer within {patience_s:g} s")
        return ""

    def _require_client(self) -> Client:
        if self._client is None:
            raise errors.UpstreamUnavailable(
                f"no Docker Engine at {self._engine.address}; start it or choose runtime=process"
            )
        return self._client

    async def prepare(self, entry: Entry, log: ServerLog) -> None:
        for tool in entry.per_call:
            await self._image(tool_entry(entry, tool), log)
        if not entry.per_call:
            await self._image(entry, log)

    async def _image(self, entry: Entry, log: ServerLog) -> Image:
        self._require_client()
        if lacking := "; it ".join(self.kind.lacks(entry)):
            raise errors.UpstreamUnavailable(f"server {entry.id} {lacking}")
        try:
            return await self._images.ensure(entry, progress=lambda line: log.write("gateway", line))
        except errors.EngineDown as exc:
            raise errors.RuntimeDown(str(exc)) from exc
        except (errors.ImageError, CatalogError) as exc:
            raise errors.UpstreamUnavailable(str(exc)) from exc

    async def start(self, entry: Entry, receiver: Receiver, log: ServerLog, owner: str = "") -> Channel:
        if entry.per_call:
            self._require_client()
            return PerCallChannel(self, entry, receiver, log, owner)
        image = await self._image(entry, log)
        handed = await self._handover.collect(entry, owner)
        if not entry.hosts:
            return await self._start(entry, image, handed, None, receiver, log)
        gate = Gate(self._engine, self._run, entry, log, partial(self._report, entry.id))
        try:
            await self._open_gate(gate, log)
            return await self._start(entry, image, handed, gate, receiver, log)
        except BaseException as exc:
            with anyio.CancelScope(shield=True):
                await gate.aclose(self.remove)
            if isinstance(exc, (*_Failures, errors.ImageError, OSError)):
                text = f"the egress filter of {entry.id} could not be started: {short(exc)}"
                raise errors.UpstreamUnavailable(text) from exc
            raise

    # -- one container for one call ----------------------------------------------------------

    async def make(self, entry: Entry, command: Sequence[str], log: ServerLog, owner: str = "") -> Made:
        """A container that runs the image's program with `command` and what it reads; made and not started.

        Raises:
            UpstreamUnavailable: it cannot be made; nothing is left.
        """
        image = await self._image(entry, log)
        handed = await self._handover.collect(entry, owner)
        log.hide(handed.redactor)
        client = self._require_client()
        name = self._run.hold(entry.id)
        try:
            given = await self._given(client, entry, name, handed, None, log, launched=True)
            facts = await self._image_facts(client, image)
            spec = specification(entry, image, facts, given)
            spec |= {"Entrypoint": list(oneshot.ENTRYPOINT), "Cmd": [*facts.entrypoint, *command]}
            created = await to_its_end(self._create(client, spec, name))
        except BaseException as exc:
            self._run.release(name)
            with suppress(*_Failures):
                await to_its_end(self._remove(name))
            if isinstance(exc, (*_Failures, errors.ImageError)):
                text = f"the Docker Engine could not make a container for {entry.id}: {short(exc)}"
                raise errors.UpstreamUnavailable(text) from exc
            raise
        try:
            await self._handover.recheck(handed)
        except BaseException:
            await to_its_end(self.remove(name))
            raise
        return Made(name, created["Id"], handed.opening())

    async def run(self, made: Made) -> None:
        """Start what `make` made.

        Raises:
            UpstreamUnavailable: the engine could not.
        """
        client = self._require_client()
        try:
            await self._engine.guard(lambda: client.start(made.id), shield=True)
        except _Failures as exc:
            raise errors.UpstreamUnavailable(f"the Docker Engine could not start {made.name}: {short(exc)}") from exc

    # -- a server ----------------------------------------------------------------------------

    async def _open_gate(self, gate: Gate, log: ServerLog) -> None:
        base = await self._images.base("python", lambda line: log.write("gateway", line))
        address = self._engine.address.url
        # Of another machine only the filter itself knows an address: the way by which it goes out.
        own = own_addresses if address.startswith("unix://") else list[str]
        await gate.open(base, self._egress_network, own, self.connect_attach)

    async def _start(
        self, entry: Entry, image: Image, handed: Handed, gate: Gate | None, receiver: Receiver, log: ServerLog
    ) -> DockerChannel | InsideChannel:
        client = self._require_client()
        # A package speaks over stdio, also where its local image takes the place of one that speaks HTTP.
        over_http = entry.transport != "stdio" and image.origin == "published"
        name = self._run.hold(entry.id)
        pipes: Path | None = None
        try:
            facts = await self._image_facts(client, image)
            if not over_http and await self._takes_pipes(entry, image, facts, handed, log):
                pipes = self._run.pipes_folder()
            given = await self._given(client, entry, name, handed, gate, log, launched=over_http or pipes is not None)
            spec = specification(entry, image, facts, replace(given, pipes=pipes))
        except BaseException as exc:
            self._run.release(name)
            if isinstance(exc, (*_Failures, errors.ImageError)):
                raise errors.UpstreamUnavailable(f"server {entry.id} is not started: {short(exc)}") from exc
            raise
        log.hide(handed.redactor)
        log.write("gateway", f"starting container {name} from {image.reference}")
        channel: DockerChannel | None = None
        inside: InsideChannel | None = None
        try:
            lifeline = Lifeline(receiver, log)
            hears = lifeline if over_http else receiver
            channel = DockerChannel(self, name, entry, image, hears, log, gate)
            identity = channel.pipe(pipes, given.user) if pipes is not None else ""
            created = await to_its_end(self._create(client, spec, name))
            await self._handover.recheck(handed)
            await channel.attach(created["Id"], handed.opening(identity) if given.launcher_volume else b"")
            await self._engine.guard(lambda: client.start(created["Id"]), shield=True)
            if over_http:
                inside = InsideChannel(self._engine, created["Id"], entry, channel, receiver, lifeline, log)
                await inside.open()
                return inside
        except BaseException as exc:
            if inside is not None:
                with anyio.CancelScope(shield=True):
                    await inside.abandon()
            self._run.release(name)
            with anyio.CancelScope(shield=True), suppress(*_Failures):
                if channel is not None:
                    await channel.abandon()
                await to_its_end(self._remove(name))
            if isinstance(exc, (*_Failures, OSError)):
                text = f"the Docker Engine could not start {entry.id}: {short(exc)}"
                refused = isinstance(exc, EngineRefused)  # else it went away in the middle
                raise (errors.UpstreamUnavailable if refused else errors.RuntimeDown)(text) from exc
            raise
        if volumes := handed.folders[: len(handed.folders) - len(handed.opened)]:
            channel.guard([volume.source for volume in volumes])
        return channel

    async def _takes_pipes(self, entry: Entry, image: Image, facts: ImageFacts, handed: Handed, log: ServerLog) -> bool:
        """Whether the server is started by the launcher with pipes to this process: on an engine of root's that may be
        this machine's, and where that takes no image that is not there. Whether they are what they should be is for the
        launcher to find."""
        if not self._engine.address.url.startswith("unix://") or self.kind.is_podman or self.kind.is_rootless:
            return False
        has_program = image.origin == "local" or entry.args or facts.entrypoint or facts.command
        if not self._sees_folders or not facts.suits_a_shell or not has_program:
            return False
        if handed.needs_launcher:
            return True
        is_local = image.origin == "local"  # made here, so its base is here too
        return await self._launcher.at_hand(lambda line: log.write("gateway", line), or_made=is_local)

    async def _create(self, client: Client, spec: dict[str, Any], name: str) -> dict[str, Any]:
        try:
            return await self._create_exactly(client, spec, name)
        except EngineRefused as exc:
            mounts = spec["HostConfig"]["Mounts"]
            kept = [one for one in mounts if one["Target"] != PIPES]
            if kept == mounts or "bind source path" not in str(exc):
                raise
        self._sees_folders = False
        spec = {**spec, "HostConfig": {**spec["HostConfig"], "Mounts": kept}}
        return await self._create_exactly(client, spec, name)

    async def _create_exactly(self, client: Client, spec: dict[str, Any], name: str) -> dict[str, Any]:
        asked = as_podman_takes_it(spec) if self._engine.is_podman else spec

        def create() -> dict[str, Any]:
            created: dict[str, Any] = client.create_container_from_config(asked, name)  # type: ignore[no-untyped-call]
            return created

        return await self._engine.guard(create, shield=True)

    async def _given(
        self,
        client: Client,
        entry: Entry,
        name: str,
        handed: Handed,
        gate: Gate | None,
        log: ServerLog,
        *,
        launched: bool,
    ) -> Given:
        """What this container is given beside its entry.

        Raises:
            UpstreamUnavailable: the engine cannot do what the entry asks for.
            ImageError: there is no launcher.
        """
        if handed.opened and not self._engine.address.url.startswith("unix://"):
            raise errors.UpstreamUnavailable(
                f"server {entry.id} wants folders of this machine mounted, but the engine at {self._engine.address} is "
                "another machine's"
            )
        volume = ""
        if handed.needs_launcher or launched:
            volume = await self._launcher.volume(lambda line: log.write("gateway", line))
        uid = os.getuid()
        return Given(
            user=f"{uid}:{os.getgid()}" if uid else f"{CONTAINER_UID}:{CONTAINER_UID}",
            labels=self._run.labels("container", name, entry.id),
            folders=handed.folders,
            launcher_volume=volume,
            plain=handed.plain,
            network=gate.network if gate else "bridge" if entry.network == "internet" else "none",
            dns=gate.address if gate else "",
            container_runtime=await self._runtime(client, entry),
        )

    async def _runtime(self, client: Client, entry: Entry) -> str:
        wanted = entry.container_runtime or self._container_runtime
        if not wanted:
            return ""
        info = await self._engine.guard(client.info)
        listed = sorted(info.get("Runtimes") or {})
        if wanted not in listed:
            raise errors.UpstreamUnavailable(
                f"server {entry.id} wants the container runtime {wanted}, which the engine does not list (it has "
                f"{', '.join(listed) or 'none'}); install it and add it to the engine's settings"
            )
        return wanted

    async def _image_facts(self, client: Client, image: Image) -> ImageFacts:
        if image.id not in self._facts:
            inspected = await self._engine.guard(lambda: client.inspect_image(image.id))  # type: ignore[no-untyped-call]
            self._facts[image.id] = ImageFacts.of(inspected)
        return self._facts[image.id]

    async def connect_attach(self, id: str, channel: Stream) -> AttachProtocol:
        path = f"/containers/{id}/attach?stream=1&stdin=1&stdout=1&stderr=1"
        async with asyncio.timeout(ATTACH_TIMEOUT_S):
            _, protocol = await self._engine.dial(lambda: AttachProtocol(path, channel))
            try:
                await protocol.upgraded
            except BaseException:
                protocol.abort()
                raise
        return protocol

    def wait_for_exit(self, id: str) -> Answer:
        """Ask the engine for the exit code of the container's next exit; the answer arrives when it exits."""
        answer = Answer()
        self._engine.origin.request("POST", f"/containers/{id}/wait?condition=next-exit", b"", b"", answer)
        return answer

    def terminate(self, id: str) -> None:
        """Send SIGTERM; whether it helps is seen at the container's end."""
        self._engine.origin.request("POST", f"/containers/{id}/kill?signal=SIGTERM", b"", b"", Answer())

    async def _remove(self, name: str) -> None:
        client = self._client
        if client is None:
            return
        try:
            await self._engine.guard(lambda: client.remove_container(name, v=True, force=True), shield=True)
        except EngineRefused as exc:
            if exc.status_code == 409:
                # The engine is removing it already, because it ended: gone is when that is done.
                await self._engine.guard(lambda: _wait_until_removed(client, name), shield=True)
            elif exc.status_code != 404:
                raise

    async def remove(self, name: str) -> None:
        """Remove a container whatever its state; engine errors are for the caller's log."""
        self._run.release(name)
        try:
            await self._remove(name)
        except _Failures as exc:
            raise errors.UpstreamUnavailable(f"container {name} could not be removed: {short(exc)}") from exc

    async def aclose(self) -> None:
        client, self._client, self.reconciler = self._client, None, None
        await self._engine.aclose()
        if client is not None:
            await to_thread.run_sync(client.close)


def _wait_until_removed(client: Client, name: str) -> None:
    try:
        client.wait(name, timeout=REMOVED_TIMEOUT_S, condition="removed")
    except NotInEngine:
        return
