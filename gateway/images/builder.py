"""Local images: base images, and an image for each package, the same to the last byte for the same content.

Knows recipes and the engine; not entries that have no package, nor which images may run.

An image is made by running the installer in a container of the base and taking the files it changed, not by
`docker build`. An installer needs the user's index, certificates, logins and proxies, and these are files on a mount
of that container, while build arguments end up in the image's history (secret mounts would need BuildKit, which engines
from before version 23 lack by default)."""

from __future__ import annotations

import asyncio
import io
import os
import secrets
import shutil
import tarfile
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar

import anyio
import anyio.to_thread

from gateway.docker_engine import Client, DockerEngine, EngineErrors, EngineRefused, NotInEngine
from gateway.errors import EngineDown, ImageError
from gateway.images import layers, sbom
from gateway.images.recipes import (
    BUILD_MOUNT,
    CACHE_MOUNT,
    NEEDS_SOURCE_BUILD,
    SCRIPT_FILE,
    Recipe,
)
from gateway.images.rootfs import HostApt, read_host_apt
from gateway.indexes import PackageIndexes, current_indexes
from gateway.installer import LAST_LINES, without_logins
from gateway.runs import Run
from gateway.runtimes.labels import BUILD_PREFIX, UNFINISHED

T = TypeVar("T")
Progress = Callable[[str], None]

API_TIMEOUT_S: Final = 60.0
BUILD_TIMEOUT_S: Final = 1200.0
"""For one installation; minutes only where an index is slow or a package is built from source."""
REMOVE_TIMEOUT_S: Final = 30.0
CACHE_VOLUME: Final = "lockgate-build-cache"
"""Docker volume with uv and the download caches of uv and npm: in the engine, so that no files of root end up
in the user's cache folder."""
CAPABILITIES: Final = ("CHOWN", "DAC_OVERRIDE", "FOWNER")
"""What installing files as root takes. Only for Debian packages, dpkg gets Docker's default set."""
PARALLEL_BUILDS: Final = 2
BUILDS: Final = "builds"
"""Folder below the cache for what a running build mounts, each in a folder that begins with its run's mark."""
MAX_VOLUME_BYTES: Final = 16 * 1024 * 1024
"""For reading a volume of our own, which holds one small program."""


class Builder:
    """Builds in one engine. What a killed process leaves of a build is found by names that `run` signs."""

    def __init__(self, cache_dir: Path, engine: DockerEngine, run: Run | None) -> None:
        self._cache_dir = cache_dir
        self._docker = engine
        self._run = run
        self._slots = anyio.Semaphore(PARALLEL_BUILDS)
        self._inputs: tuple[PackageIndexes, HostApt] | None = None

    # -- the engine --------------------------------------------------------------------------

    async def engine(self, work: Callable[[Client], T], *, timeout_s: float = API_TIMEOUT_S) -> T:
        """Blocking work with a client of its own; `timeout_s` bounds the wait for each byte.

        Raises:
            ImageError: the engine does not answer, or refuses.
        """
        try:
            return await self._docker.run(work, timeout_s=timeout_s)
        except EngineDown as exc:
            raise ImageError(str(exc)) from exc
        except EngineErrors as exc:
            raise ImageError(without_logins(str(exc))) from exc

    async def find(self, reference: str) -> str | None:
        """The id of the image with this name, if the engine holds it."""

        def find(client: Client) -> str | None:
            try:
                return str(client.inspect_image(reference)["Id"])  # type: ignore[no-untyped-call]
            except NotInEngine:
                return None

        return await self.engine(find)

    async def discard(self, id_: str) -> None:
        """Remove an image that lost its name, unless a container still runs it."""
        with suppress(ImageError):
            await self.engine(lambda client: client.remove_image(id_))

    async def volume_files(self, image: str, volume: str, folder: str) -> dict[str, bytes]:
        """The files of a volume, by their last names, read through a container that is never started. An empty volume
        is filled first, with what the image holds in `folder`.

        Raises:
            ImageError: it cannot be read, or holds too much.
        """

        def read(client: Client) -> bytes:
            mount = {"Type": "volume", "Source": volume, "Target": folder}
            spec = {"Image": image, "Cmd": ["true"], "HostConfig": {"Mounts": [mount], "NetworkMode": "none"}}
            name = self._run.hold_build() if self._run is not None else None
            created = client.create_container_from_config(spec, name)  # type: ignore[no-untyped-call]
            try:
                chunks, _ = client.get_archive(created["Id"], folder)
                whole = bytearray()
                for chunk in chunks:
                    whole += chunk
                    if len(whole) > MAX_VOLUME_BYTES:
                        raise ImageError(f"the volume {volume} holds more than {MAX_VOLUME_BYTES} bytes")
                return bytes(whole)
            finally:
                client.remove_container(created["Id"], force=True)
                if self._run is not None and name is not None:
                    self._run.release(name)

        packed = await self.engine(read)
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            return {
                Path(member.name).name: file.read()
                for member in archive
                if member.isfile() and (file := archive.extractfile(member)) is not None
            }

    # -- images ------------------------------------------------------------------------------

    async def make(self, recipe: Recipe, base: str, progress: Progress) -> str:
        """Build the image and name it; its id. Its list of packages is kept at `sbom_path`.

        Raises:
            ImageError: the installer or the engine failed.
        """
        indexes, host = await self.inputs()
        async with self._slots:
            for from_source in (False, True):
                files = recipe.files(indexes, from_source=from_source)
                if host.suite:
                    files[f"sources.{host.suite}.list"] = "\n".join([*host.source_lines, ""]).encode()
                with self._scratch(files) as folder:
                    status, tail = await self._attempt(recipe, base, folder, progress, from_source=from_source)
                if status == 0:
                    found = await self.find(recipe.tag)
                    if found is None:
                        raise ImageError(f"the engine took {recipe.tag}, but does not hold it")
                    return found
                if status != NEEDS_SOURCE_BUILD:
                    break
                progress("a package comes without a wheel: building it from source")
        raise ImageError("\n    ".join([f"building {recipe.tag} failed; the installer said:", *tail]))

    def sbom_path(self, tag: str) -> Path:
        """Where the list of an image's packages is kept (CycloneDX)."""
        return self._cache_dir / "sboms" / f"{tag.rpartition('/')[2].replace(':', '-')}.cdx.json"

    async def _attempt(
        self, recipe: Recipe, base: str, folder: Path, progress: Progress, *, from_source: bool
    ) -> tuple[int, list[str]]:
        """Exit status and last lines of the installer; where it is 0, the image is in the engine."""
        loop = asyncio.get_running_loop()
        unowned = f"{BUILD_PREFIX}{secrets.token_hex(8)}"
        container_name = self._run.hold_build() if self._run is not None else unowned
        tail: deque[str] = deque(maxlen=LAST_LINES)
        given_up = threading.Event()
        """Set before the last removal: a thread that a cancellation left behind creates no container after it."""

        def on_line(line: str) -> None:
            tail.append(line)
            progress(line)

        def work(client: Client) -> int:
            # The low-level call: the other declares each mount as a VOLUME, which would end up in the image.
            created = client.create_container(
                base,
                name=container_name,
                hostname="lockgate",
                entrypoint=[""],
                command=["/bin/sh", f"{BUILD_MOUNT}/{SCRIPT_FILE}"],
                user="0:0",
                working_dir="/",
                host_config=client.create_host_config(
                    network_mode="host",
                    binds=[
                        f"{folder}:{BUILD_MOUNT}:ro,z",
                        f"{CACHE_VOLUME}:{CACHE_MOUNT}:{'ro' if from_source else 'rw'}",
                    ],
                    tmpfs={"/run": "mode=755"},
                    cap_drop=[] if recipe.apt else ["ALL"],
                    cap_add=[] if recipe.apt else list(CAPABILITIES),
                    security_opt=["no-new-privileges"],
                ),
            )
            id = str(created["Id"])
            if given_up.is_set():
                _remove_container(client, container_name)
                raise ImageError("the build was given up")
            client.start(id)
            for line in _lines(client.logs(id, stream=True, follow=True)):
                loop.call_soon_threadsafe(on_line, line)
            status = int(client.wait(id)["StatusCode"])
            if status == 0:
                with self._scratch({}) as scratch:
                    self._finish(client, id, recipe, scratch, given_up)
            return status

        try:
            with anyio.fail_after(BUILD_TIMEOUT_S):
                status = await self.engine(work, timeout_s=BUILD_TIMEOUT_S)
        except TimeoutError as exc:
            raise ImageError(f"building {recipe.tag} took more than {BUILD_TIMEOUT_S:.0f} s") from exc
        finally:
            given_up.set()
            if self._run is not None:
                self._run.release(container_name)
            with anyio.move_on_after(REMOVE_TIMEOUT_S, shield=True):
                await self.engine(lambda client: _remove_container(client, container_name))
        return status, list(tail)

    def _finish(self, client: Client, id: str, recipe: Recipe, scratch: Path, given_up: threading.Event) -> None:
        """Take what the container changed as one layer, and load the base with that layer on top. Blocking."""
        unfinished = f"{UNFINISHED}:{id[:24]}"
        client.commit(id, repository=UNFINISHED, tag=id[:24])
        try:
            with (scratch / "saved.tar").open("wb") as out:
                for chunk in client.get_image(unfinished):
                    out.write(chunk)
        finally:
            client.remove_image(unfinished, noprune=True)
        saved = layers.read_saved(scratch / "saved.tar")
        records = dict(layers.files(saved, sbom.is_record))
        layer = scratch / "layer.tar"
        diff_id = layers.normalise(saved, layer)
        config = layers.make_config(saved.config, [*saved.diff_ids[:-1], diff_id], recipe.config)
        if given_up.is_set():
            return
        for whole in (False, True):
            image_id = layers.write_archive(scratch / "image.tar", config, layer, saved, recipe.tag, whole=whole)
            try:
                with (scratch / "image.tar").open("rb") as archive:
                    for _ in client.load_image(archive):  # type: ignore[no-untyped-call]
                        pass
                client.inspect_image(recipe.tag)  # type: ignore[no-untyped-call]
                break
            except (EngineRefused, *EngineErrors):
                if whole:
                    raise
        found = {part for path, content in records.items() for part in sbom.components(path, content)}
        path = self.sbom_path(recipe.tag)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sbom.document(recipe.tag, image_id, found))

    async def inputs(self) -> tuple[PackageIndexes, HostApt]:
        """Where packages come from on this machine; asked once."""
        if self._inputs is None:
            indexes = await anyio.to_thread.run_sync(current_indexes)
            self._inputs = indexes, await anyio.to_thread.run_sync(read_host_apt, dict(os.environ))
        return self._inputs

    @contextmanager
    def _scratch(self, files: dict[str, bytes]) -> Iterator[Path]:
        """A private folder for as long as one step runs; the files may hold the user's settings and logins."""
        parent = self._cache_dir / BUILDS
        parent.mkdir(parents=True, exist_ok=True)
        prefix = f"{self._run.mark}." if self._run is not None else None
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))  # readable by its owner only
        try:
            for name, content in files.items():
                (folder / name).write_bytes(content)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_container(client: Client, name: str) -> None:
    try:
        client.remove_container(name, v=True, force=True)
    except NotInEngine:
        return
    except EngineRefused as exc:
        if exc.status_code != 409:  # 409: its removal is already under way
            raise


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Lines of a container's output; carriage returns end lines too, and URLs lose their logins."""
    rest = ""
    for chunk in chunks:
        *whole, rest = (rest + chunk.decode(errors="replace")).replace("\r", "\n").split("\n")
        yield from (without_logins(line.rstrip()) for line in whole if line.strip())
    if rest.strip():
        yield without_logins(rest.rstrip())
