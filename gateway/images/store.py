"""Finds or makes the image of an entry: pinned, verified and pulled, or built from its package.

Knows the order of these and who waits for whom; each is done by a module of its own. Knows no secrets, policies or
running servers."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from catalog import Publisher
from gateway.docker_engine import Client, DockerEngine, NotInEngine
from gateway.engine_address import find_engine
from gateway.errors import ImageError, ImageRefused
from gateway.filelock import file_lock
from gateway.images.bases import Bases
from gateway.images.builder import Builder
from gateway.images.image import Image
from gateway.images.names import ImageName, parse
from gateway.images.pins import Pins
from gateway.images.puller import Puller
from gateway.images.recipes import LANGUAGE, Language, Recipe, base_tag, launcher_recipe, server_recipe
from gateway.images.verifier import Refusal, Verifier, nothing_refused
from gateway.runs import Run
from gateway.runtimes.labels import UNFINISHED

if TYPE_CHECKING:
    from catalog import Entry, Package

Progress = Callable[[str], None]
OURS: Final = "lockgate.local"
"""The registry of names that are only here: they hold a hash of what is in the image, and need no pin."""
LOCAL: Final = "local:"
"""Before the id of an image that came from no registry."""


class ImageStore:
    """Finds or makes the image of an entry. One pull or build per image at a time, across processes too."""

    def __init__(
        self,
        cache_dir: Path,
        engine: DockerEngine | None = None,
        *,
        docker_url: str | None = None,
        run: Run | None = None,
        publishers: Mapping[str, Publisher] | None = None,
        refusal: Refusal = nothing_refused,
        lock: Path | None = None,
    ) -> None:
        """`docker_url` is the engine's address where no engine is given. Nothing is contacted yet.

        What a build leaves behind when this process is killed is found by names that `run` signs; without one nobody
        looks for it. `lock` is the catalog's lock file; `refusal` says which images the rules refuse."""
        self.cache_dir = cache_dir
        docker = engine or DockerEngine(find_engine(os.environ) if docker_url is None else docker_url)
        self._builder = Builder(cache_dir, docker, run)
        self._puller = Puller(docker)
        self._bases = Bases(cache_dir, self._builder, self._puller, self._only_one)
        self._pins = Pins(lock)
        self._verifier = Verifier(publishers or {}, cache_dir / "signatures", self._puller.connect, refusal)

    def trust(self, publishers: Mapping[str, Publisher], refusal: Refusal = nothing_refused) -> None:
        """From now on these are the publishers, and these images are refused."""
        self._verifier.publishers, self._verifier.refusal = publishers, refusal

    async def ensure(self, entry: Entry, *, progress: Progress) -> Image:
        """The image to run for the entry: the published one if it can be had, else one from its package.

        Raises:
            ImageRefused: the published one may not run; another one does not take its place.
            ImageError: neither could be had; says why for both.
        """
        reasons: list[str] = []
        if entry.image is None:
            reasons.append("the entry names no published image")
        else:
            try:
                return await self._published(entry.image, progress)
            except ImageRefused as exc:
                raise ImageRefused(f"no image for {entry.id}: {exc}") from exc
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

    # -- published images --------------------------------------------------------------------

    async def pull(self, entry: Entry, *, progress: Progress, update: bool = False) -> Image:
        """The entry's published image; with `update` its tag is resolved anew and the pin replaced.

        Raises:
            ImageError: it cannot be had, or may not run.
        """
        if entry.image is None:
            raise ImageError(f"{entry.id} names no published image")
        return await self._published(entry.image, progress, update=update)

    async def verify(self, entry: Entry) -> str | None:
        """Who signed the entry's published image; None if no publisher in the catalog has to.

        Raises:
            ImageRefused: it may not run; says why.
            ImageError: its tag cannot be resolved.
        """
        if entry.image is None:
            return None
        name = parse(entry.image)
        if name.digest is None and self._verifier.publisher(name) is not None:
            name = name.at(await self._digest(name))
        return await self._verifier.check(name)

    async def _digest(self, name: ImageName) -> str:
        pinned = await self._pins.get(name.tagged)
        if pinned is None or pinned.startswith(LOCAL):
            return await self._puller.resolve(name)
        return pinned

    async def _published(self, reference: str, progress: Progress, *, update: bool = False) -> Image:
        name = parse(reference)
        async with self._only_one(reference):
            if name.digest is None and name.registry != OURS:
                pin = None if update else await self._pins.get(name.tagged)
                if pin is None:
                    pin = await self._pin(name, ask=update)
                if pin.startswith(LOCAL):
                    return await self._made_here(name, reference, pin.removeprefix(LOCAL))
                name = name.at(pin)
            await self._verifier.check(name)
            wanted = reference if name.digest is None else name.pinned
            if present := await self._builder.find(wanted):
                return Image(reference, "published", present)
            if name.digest is None:
                raise ImageError(f"{reference} is not in the engine")
            await self._puller.pull(name, progress)
            if present := await self._builder.find(wanted):
                return Image(reference, "published", present)
        raise ImageError(f"{reference} was pulled, but the engine does not hold it under that name")

    async def _pin(self, name: ImageName, *, ask: bool) -> str:
        """What a tag means from now on: the image the engine has under it, else what its registry says."""
        pin = None if ask else await self._builder.engine(lambda client: _meaning(client, name))
        pin = pin or await self._puller.resolve(name)
        await self._pins.put(name.tagged, pin)
        return pin

    async def _made_here(self, name: ImageName, reference: str, id_: str) -> Image:
        await self._verifier.check(name)
        found = await self._builder.find(reference)
        if found is None:
            raise ImageError(f"{reference} was made on this machine and is no longer in the engine")
        if found != id_:
            raise ImageRefused(
                f"{reference} is another image than when it was pinned; if that is right: lockgate image pull --update"
            )
        return Image(reference, "published", found)

    # -- local images ------------------------------------------------------------------------

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
            if present := await self._builder.find(recipe.tag):
                return present
            base = await self._bases.get(recipe.base, progress)
            progress(f"making {recipe.tag}")
            return await self._builder.make(recipe, base, progress)

    async def holds(self, recipe: Recipe) -> bool:
        """Whether the engine has what the recipe makes."""
        return await self._builder.find(recipe.tag) is not None

    async def base(self, language: Language, progress: Progress) -> str:
        """The name of the base image for the language, made if it is not there.

        Raises:
            ImageError: it cannot be had.
        """
        return await self._bases.get(language, progress)

    async def volume_files(self, image: str, volume: str, folder: str) -> dict[str, bytes]:
        """The files of a volume, by their last names; an empty one is filled first from the image's `folder`.

        Raises:
            ImageError: it cannot be read, or holds too much.
        """
        return await self._builder.volume_files(image, volume, folder)

    def sbom_path(self, image: Image) -> Path:
        """Where the list of a local image's packages is kept."""
        return self._builder.sbom_path(image.reference)

    async def _local(self, entry: Entry, package: Package, progress: Progress, *, rebuild: bool) -> Image:
        recipe = server_recipe(entry, package)
        async with self._only_one(recipe.tag):
            present = await self._builder.find(recipe.tag)
            if present and not rebuild:
                return Image(recipe.tag, "local", present)
            base = await self._bases.get(recipe.base, progress)
            progress(f"{entry.id}: building an image from {package.ecosystem} {package.name} {package.version}")
            id_ = await self._builder.make(recipe, base, lambda line: progress(f"{entry.id}: {line}"))
            progress(f"{entry.id}: image {recipe.tag} is ready")
            if present and present != id_:
                await self._builder.discard(present)
            return Image(recipe.tag, "local", id_)

    # -- all of them -------------------------------------------------------------------------

    async def held(self, entry: Entry) -> Image | None:
        """The image that would run for the entry, if the engine holds it; fetches and verifies nothing."""
        if entry.image is not None:
            name = parse(entry.image)
            pin = None if name.digest else await self._pins.get(name.tagged)
            wanted = entry.image if pin is None or pin.startswith(LOCAL) else name.at(pin).pinned
            if found := await self._builder.find(wanted if name.digest is None else name.pinned):
                return Image(entry.image, "published", found)
        if entry.package is not None:
            tag = server_recipe(entry, entry.package).tag
            if found := await self._builder.find(tag):
                return Image(tag, "local", found)
        return None

    async def stale(self, entries: Iterable[Entry]) -> list[str]:
        """Images made here that none of these entries would use: of other versions, or left by a killed build."""
        wanted = {launcher_recipe().tag, *(base_tag(language) for language in LANGUAGE.values())}
        wanted |= {server_recipe(entry, entry.package).tag for entry in entries if entry.package is not None}

        def list_ours(client: Client) -> list[str]:
            found = client.images(filters={"label": "lockgate.image"}) + client.images(name=UNFINISHED)
            return [str(tag) for image in found for tag in image.get("RepoTags") or ()]

        tags = set(await self._builder.engine(list_ours))
        return sorted(tag for tag in tags if tag not in wanted and tag.startswith(f"{OURS}/"))

    async def remove(self, tag: str) -> None:
        """Remove an image that was made here, and the list of its packages.

        Raises:
            ImageError: a container still runs it.
        """
        await self._builder.engine(lambda client: client.remove_image(tag))
        self._builder.sbom_path(tag).unlink(missing_ok=True)

    def _only_one(self, reference: str) -> AbstractAsyncContextManager[Any]:
        digest = hashlib.sha256(reference.encode()).hexdigest()[:16]
        return file_lock(self.cache_dir / "locks" / f"image-{digest}.lock")


def _meaning(client: Client, name: ImageName) -> str | None:
    """What the engine holds under this tag: the digest of its registry, or the id of an image made on this machine."""
    try:
        found = client.inspect_image(name.tagged)  # type: ignore[no-untyped-call]
    except NotInEngine:
        return None
    for one in found.get("RepoDigests") or ():
        if parse(one).full == name.full:
            return parse(one).digest
    return LOCAL + str(found["Id"])
