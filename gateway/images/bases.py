"""Base images for local ones: from a registry or, out of reach of one, from Debian packages.

Knows two languages; not what is installed on top."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from gateway.docker_engine import Client
from gateway.errors import ImageError
from gateway.images.builder import BUILD_TIMEOUT_S, Builder
from gateway.images.names import parse
from gateway.images.puller import Puller
from gateway.images.recipes import REGISTRY_BASE, SYSTEM_PATH, Language, base_tag, node_base_recipe
from gateway.images.rootfs import make_rootfs

Progress = Callable[[str], None]
OnlyOne = Callable[[str], AbstractAsyncContextManager[Any]]


class Bases:
    """Base images in one engine."""

    def __init__(self, cache_dir: Path, builder: Builder, puller: Puller, only_one: OnlyOne) -> None:
        self._cache_dir = cache_dir
        self._builder = builder
        self._puller = puller
        self._only_one = only_one

    async def get(self, language: Language, progress: Progress) -> str:
        """The name of the base image for the language, made if it is not there.

        Raises:
            ImageError: it can be had neither way; says why for both.
        """
        tag = base_tag(language)
        async with self._only_one(tag):
            if await self._builder.find(tag):
                return tag
            published = REGISTRY_BASE[language]
            try:
                if not await self._builder.find(published):
                    name = parse(published)
                    name = name.at(await self._puller.resolve(name))
                    await self._puller.pull(name, progress)
                    published = name.pinned
                repository, _, version = tag.partition(":")
                await self._builder.engine(lambda client: client.tag(published, repository, version))
            except ImageError as unpublished:
                progress(f"{unpublished}; taking Debian packages instead")
                try:
                    await self._from_debian(language, progress)
                except ImageError as exc:
                    raise ImageError(f"no base image: {unpublished}; {exc}") from exc
            return tag

    async def _from_debian(self, language: Language, progress: Progress) -> None:
        if language == "python":
            await self._import_rootfs(base_tag(language), progress)
        else:
            python = await self.get("python", progress)
            await self._builder.make(node_base_recipe(), python, lambda line: progress(f"base-node: {line}"))

    async def _import_rootfs(self, tag: str, progress: Progress) -> None:
        _, host = await self._builder.inputs()
        tarball = await make_rootfs(self._cache_dir / "rootfs", host, progress=progress)
        name, _, version = tag.partition(":")
        changes = [f"ENV PATH={SYSTEM_PATH}", 'CMD ["python3"]', "LABEL lockgate.image=base"]

        def load(client: Client) -> None:
            client.import_image_from_file(str(tarball), repository=name, tag=version, changes=changes)

        progress("loading the base image into the engine")
        await self._builder.engine(load, timeout_s=BUILD_TIMEOUT_S)
        if not await self._builder.find(tag):
            raise ImageError(
                f"the engine did not import {tarball}: look into its log, or remove that file and try again"
            )
