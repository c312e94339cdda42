"""Container images of servers: found, pulled or built here from the entry's package.

Knows no secrets, policies or running servers; the runtimes start what this module returns.

A local image is made by running the installer in a container of the base image and committing that container,
not by `docker build`. An installer needs the user's index, certificates, logins and proxies, and a committed
container keeps none of them: they are files on a mount, while build arguments end up in the image's history
(secret mounts would need BuildKit, which engines from before version 23 lack by default).
"""

from __future__ import annotations

import asyncio
import hashlib
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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import anyio
import anyio.to_thread
import docker
from docker.errors import APIError, DockerException, ImageNotFound, NotFound

from gateway.docker_engine import DockerEngine, EngineErrors
from gateway.engine_address import find_engine
from gateway.errors import EngineDown, ImageError
from gateway.filelock import file_lock
from gateway.image_recipes import (
    BUILD_MOUNT,
    CACHE_MOUNT,
    NEEDS_SOURCE_BUILD,
    REGISTRY_BASE,
    SCRIPT_FILE,
    SYSTEM_PATH,
    Language,
    Recipe,
    base_tag,
    node_base_recipe,
    server_recipe,
)
from gateway.indexes import PackageIndexes, current_indexes
from gateway.installer import LAST_LINES, without_logins
from gateway.reachability import Reachability, registry_address, split_address
from gateway.rootfs import HostApt, make_rootfs, read_host_apt
from gateway.runs import Run
from gateway.runtimes.labels import BUILD_PREFIX

if TYPE_CHECKING:
    from catalog import Entry, Package

T = TypeVar("T")
Progress = Callable[[str], None]

PULL_SILENCE_S: Final = 60.0
"""A pull that reports nothing for so long is given up."""
PULL_TIMEOUT_S: Final = 900.0
BUILD_TIMEOUT_S: Final = 1200.0
"""For one installation; minutes only where an index is slow or a package is built from source."""
REMOVE_TIMEOUT_S: Final = 30.0
API_TIMEOUT_S: Final = 60.0

CACHE_VOLUME: Final = "lockgate-build-cache"
"""Docker volume with uv and the download caches of uv and npm: in the engine, so that no files of root end up
in the user's cache folder."""
_CAPABILITIES: Final = ("CHOWN", "DAC_OVERRIDE", "FOWNER")
"""What installing files as root takes. Only for Debian packages, dpkg gets Docker's default set."""
_PARALLEL_BUILDS: Final = 2
BUILDS: Final = "builds"
"""Folder below the cache for what a running build mounts, each in a folder that begins with its run's mark."""
MAX_VOLUME_BYTES: Final = 16 * 1024 * 1024
"""For reading a volume of our own, which holds one small program."""


@dataclass(frozen=True)
class Image:
    """An image that the engine holds.

    origin: a "published" image runs its own entrypoint with the entry's args, a "local" one the entry's
        command.
    """

    reference: str
    origin: Literal["published", "local"]
    id: str


class ImageStore:
    """Finds or makes the image of an entry. One pull or build per image at a time, across processes too."""

    def __init__(
        self,
        cache_dir: Path,
        engine: DockerEngine | None = None,
        *,
        docker_url: str | None = None,
        run: Run | None = None,
    ) -> None:
        """`docker_url` is the engine's address where no engine is given. Nothing is contacted yet.

        What a build leaves behind when this process is killed is found by names that `run` signs; without one nobody
        looks for it."""
        self._run = run
        self.cache_dir = cache_dir
        self._docker = engine or DockerEngine(find_engine(os.environ) if docker_url is None else docker_url)
        self._reachability = Reachability()
        self._builds = anyio.Semaphore(_PARALLEL_BUILDS)
        self._inputs: tuple[PackageIndexes, HostApt] | None = None

    async def ensure(self, entry: Entry, *, progress: Progress) -> Image:
        """The image to run for the entry: the published one if it can be had, else one from its package.

        Raises:
            ImageError: neither could be had; says why for both.
        """
        reasons: list[str] = []
        if entry.image is None:
            reasons.append("the entry names no published image")
        else:
            try:
                return await self._published(entry.image, progress)
            except ImageError as exc:
                reasons.append(f"published image: {exc}")
        if entry.package is None:
            reasons.append("the entry names no package to build an image from")
        else:
            try:
                return await self._local(entry, entry.package, progress, rebuild=False)
            except ImageError as exc:
                reasons.append(f"local build: {exc}")
        raise ImageError(f"no image for {entry.id}: " + "; ".join(reasons))

    async def build(self, entry: Entry, *, progress: Progress, rebuild: bool = True) -> Image:
        """Build the entry's local image from its package; with `rebuild` also one that exists, anew.

        Raises:
            ImageError: the entry has no package, or the build failed.
        """
        if entry.package is None:
            raise ImageError(f"no image for {entry.id}: the entry names no package to build an image from")
        return await self._local(entry, entry.package, progress, rebuild=rebuild)

    async def own(self, recipe: Recipe, *, progress: Progress) -> str:
        """The id of an image that the gateway itself needs, made by the recipe unless it is there.

        Raises:
            ImageError: it could not be made.
        """
        async with self._only_one(recipe.tag):
            if present := await self._find(recipe.tag):
                return present
            base = await self.base(recipe.base, progress)
            async with self._builds:
                progress(f"making {recipe.tag}")
                return await self._make(recipe, base, progress)

    async def volume_files(self, image: str, volume: str, folder: str) -> dict[str, bytes]:
        """The files of a volume, by their last names, read through a container that is never started. An empty volume
        is filled first, with what the image holds in `folder`.

        Raises:
            ImageError: it cannot be read, or holds too much.
        """

        def read(client: docker.APIClient) -> bytes:
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

        packed = await self._engine(read)
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            return {
                Path(member.name).name: file.read()
                for member in archive
                if member.isfile() and (file := archive.extractfile(member)) is not None
            }

    async def _published(self, reference: str, progress: Progress) -> Image:
        async with self._only_one(reference):
            if present := await self._find(reference):
                return Image(reference, "published", present)
            await self._pull(reference, progress)
            if present := await self._find(reference):
                return Image(reference, "published", present)
        raise ImageError(f"{reference} was pulled, but the engine does not hold it under that name")

    async def _local(self, entry: Entry, package: Package, progress: Progress, *, rebuild: bool) -> Image:
        recipe = server_recipe(entry, package)
        async with self._only_one(recipe.tag):
            present = await self._find(recipe.tag)
            if present and not rebuild:
                return Image(recipe.tag, "local", present)
            base = await self.base(recipe.base, progress)
            async with self._builds:
                progress(f"{entry.id}: building an image from {package.ecosystem} {package.name} {package.version}")
                id_ = await self._make(recipe, base, lambda line: progress(f"{entry.id}: {line}"))
                progress(f"{entry.id}: image {recipe.tag} is ready")
            if present and present != id_:
                await self._discard(present)
            return Image(recipe.tag, "local", id_)

    async def base(self, language: Language, progress: Progress) -> str:
        """The name of the base image for the language, made from a registry's or, out of reach of one, from Debian
        packages.

        Raises:
            ImageError: neither can be had.
        """
        tag = base_tag(language)
        async with self._only_one(tag):
            if await self._find(tag):
                return tag
            published = REGISTRY_BASE[language]
            try:
                if not await self._find(published):
                    await self._pull(published, progress)
                await self._engine(lambda client: client.tag(published, *_split_reference(tag)))
            except ImageError as unpublished:
                progress(f"{unpublished}; taking Debian packages instead")
                try:
                    await self._base_from_debian(language, progress)
                except ImageError as exc:
                    raise ImageError(f"no base image: {unpublished}; {exc}") from exc
            return tag

    async def _base_from_debian(self, language: Language, progress: Progress) -> None:
        if language == "python":
            await self._import_rootfs(base_tag(language), progress)
        else:
            python = await self.base("python", progress)
            await self._make(node_base_recipe(), python, lambda line: progress(f"base-node: {line}"))

    async def _import_rootfs(self, tag: str, progress: Progress) -> None:
        _, host = await self._build_inputs()
        tarball = await make_rootfs(self.cache_dir / "rootfs", host, progress=progress)
        name, _, version = tag.partition(":")
        changes = [f"ENV PATH={SYSTEM_PATH}", 'CMD ["python3"]', "LABEL lockgate.image=base"]

        def load(client: docker.APIClient) -> None:
            client.import_image_from_file(str(tarball), repository=name, tag=version, changes=changes)

        progress("loading the base image into the engine")
        await self._engine(load, timeout_s=BUILD_TIMEOUT_S)
        if not await self._find(tag):
            raise ImageError(
                f"the engine did not import {tarball}: look into its log, or remove that file and try again"
            )

    async def _pull(self, reference: str, progress: Progress) -> None:
        """Pull from the image's registry, if that answers at all.

        Raises:
            ImageError: it does not answer, refuses, or stalls.
        """
        address = _pull_address(reference, await self._engine(lambda client: client.info()))
        if not await self._reachability.check(address):
            raise ImageError(f"{reference} is not here, and its registry ({address[0]}) cannot be reached")
        progress(f"pulling {reference}")
        name, version = _split_reference(reference)
        try:
            with anyio.fail_after(PULL_TIMEOUT_S):
                await self._engine(lambda client: _follow_pull(client, name, version), timeout_s=PULL_SILENCE_S)
        except TimeoutError as exc:
            self._reachability.refuse(address)
            raise ImageError(f"pulling {reference} took too long") from exc

    async def _make(self, recipe: Recipe, base: str, progress: Progress) -> str:
        """Run the recipe's script in a container of the base and commit the result; the image's id."""
        indexes, host = await self._build_inputs()
        for from_source in (False, True):
            files = recipe.files(indexes, from_source=from_source)
            if host.suite:
                files[f"sources.{host.suite}.list"] = "\n".join([*host.source_lines, ""]).encode()
            with self._inputs_folder(files) as folder:
                status, tail, id_ = await self._attempt(recipe, base, folder, progress, from_source=from_source)
            if id_ is not None:
                return id_
            if status != NEEDS_SOURCE_BUILD:
                break
            progress("a package comes without a wheel: building it from source")
        raise ImageError("\n    ".join([f"building {recipe.tag} failed; the installer said:", *tail]))

    async def _attempt(
        self, recipe: Recipe, base: str, folder: Path, progress: Progress, *, from_source: bool
    ) -> tuple[int, list[str], str | None]:
        """Exit status, last lines and, where the status is 0, the id of the committed image."""
        loop = asyncio.get_running_loop()
        unowned = f"{BUILD_PREFIX}{secrets.token_hex(8)}"
        container_name = self._run.hold_build() if self._run is not None else unowned
        tail: deque[str] = deque(maxlen=LAST_LINES)
        given_up = threading.Event()
        """Set before the last removal: a thread that a cancellation left behind creates no container after it."""

        def on_line(line: str) -> None:
            tail.append(line)
            progress(line)

        def work(client: docker.APIClient) -> tuple[int, str | None]:
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
                    cap_add=[] if recipe.apt else list(_CAPABILITIES),
                    security_opt=["no-new-privileges"],
                ),
            )
            id = str(created["Id"])
            if given_up.is_set():
                _remove_container(client, container_name)
                raise DockerException("the build was given up")
            client.start(id)
            for line in _lines(client.logs(id, stream=True, follow=True)):
                loop.call_soon_threadsafe(on_line, line)
            status = int(client.wait(id)["StatusCode"])
            if status != 0:
                return status, None
            name, _, version = recipe.tag.partition(":")
            committed = client.commit(
                id,
                repository=name,
                tag=version,
                message="made by Lockgate",
                changes=list(recipe.changes),
            )
            return status, str(committed["Id"])

        try:
            with anyio.fail_after(BUILD_TIMEOUT_S):
                status, id_ = await self._engine(work, timeout_s=BUILD_TIMEOUT_S)
        except TimeoutError as exc:
            raise ImageError(f"building {recipe.tag} took more than {BUILD_TIMEOUT_S:.0f} s") from exc
        finally:
            given_up.set()
            if self._run is not None:
                self._run.release(container_name)
            with anyio.move_on_after(REMOVE_TIMEOUT_S, shield=True):
                await self._engine(lambda client: _remove_container(client, container_name))
        return status, list(tail), id_

    async def _build_inputs(self) -> tuple[PackageIndexes, HostApt]:
        if self._inputs is None:
            indexes = await anyio.to_thread.run_sync(current_indexes)
            self._inputs = indexes, await anyio.to_thread.run_sync(read_host_apt, dict(os.environ))
        return self._inputs

    @contextmanager
    def _inputs_folder(self, files: dict[str, bytes]) -> Iterator[Path]:
        """A folder that holds the user's settings and logins for as long as one container runs."""
        parent = self.cache_dir / BUILDS
        parent.mkdir(parents=True, exist_ok=True)
        prefix = f"{self._run.mark}." if self._run is not None else None
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))  # readable by its owner only
        try:
            for name, content in files.items():
                (folder / name).write_bytes(content)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    async def _discard(self, id_: str) -> None:
        """Remove an image that lost its name, unless a container still runs it."""
        with suppress(ImageError):
            await self._engine(lambda client: client.remove_image(id_))

    async def _find(self, reference: str) -> str | None:
        def find(client: docker.APIClient) -> str | None:
            try:
                return str(client.inspect_image(reference)["Id"])  # type: ignore[no-untyped-call]
            except ImageNotFound:
                return None

        return await self._engine(find)

    async def _engine(self, work: Callable[[docker.APIClient], T], *, timeout_s: float = API_TIMEOUT_S) -> T:
        """Run blocking work with a client of its own in a thread; `timeout_s` bounds the wait for each byte.

        A cancelled call leaves its thread to end by itself, when the container or stream that it reads goes.
        """

        try:
            return await self._docker.run(work, timeout_s=timeout_s)
        except EngineDown as exc:
            raise ImageError(str(exc)) from exc
        except EngineErrors as exc:
            raise ImageError(without_logins(str(exc))) from exc

    def _only_one(self, reference: str) -> Any:
        digest = hashlib.sha256(reference.encode()).hexdigest()[:16]
        return file_lock(self.cache_dir / "locks" / f"image-{digest}.lock")


def _remove_container(client: docker.APIClient, name: str) -> None:
    try:
        client.remove_container(name, v=True, force=True)
    except NotFound:
        return
    except APIError as exc:
        if exc.status_code != 409:  # 409: its removal is already under way
            raise


def _follow_pull(client: docker.APIClient, name: str, version: str) -> None:
    for report in client.pull(name, tag=version, stream=True, decode=True):
        if "error" in report:
            raise DockerException(f"the registry refused {name}: {report['error']}")


def _split_reference(reference: str) -> tuple[str, str]:
    """Name, and digest or tag, as the engine wants them."""
    if "@" in reference:
        name, _, digest = reference.partition("@")
        return name, digest
    name, colon, tag = reference.rpartition(":")
    return (name, tag) if colon and "/" not in tag else (reference, "latest")


def _pull_address(reference: str, info: dict[str, Any]) -> tuple[str, int]:
    """Whom the engine must reach to pull: its proxy or its mirror where it has one, else the registry."""
    registry = registry_address(reference)
    proxy = info.get("HttpsProxy") or info.get("HttpProxy")
    mirrors = (info.get("RegistryConfig") or {}).get("Mirrors") or []
    if proxy:
        return _url_address(str(proxy))
    if mirrors and registry == registry_address("library"):
        return _url_address(str(mirrors[0]))
    return registry


def _url_address(url: str) -> tuple[str, int]:
    scheme, _, rest = url.rpartition("://")
    host = rest.partition("/")[0].rpartition("@")[2]
    return split_address(host, 443 if scheme == "https" else 80)


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Lines of a container's output; carriage returns end lines too, and URLs lose their logins."""
    rest = ""
    for chunk in chunks:
        *whole, rest = (rest + chunk.decode(errors="replace")).replace("\r", "\n").split("\n")
        yield from (without_logins(line.rstrip()) for line in whole if line.strip())
    if rest.strip():
        yield without_logins(rest.rstrip())
