"""What each tag of an image means here: resolved once, then kept in the catalog's lock file.

Knows the lock file and its lock; not how a tag is resolved."""

from __future__ import annotations

from pathlib import Path

from anyio import to_thread

from catalog import Lock, read_lock, write_lock
from gateway.errors import ImageError
from gateway.filelock import file_lock


class Pins:
    """The images of one lock file; without a file, pins of this process only."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._unsaved = Lock()

    async def get(self, tag: str) -> str | None:
        """What the tag was pinned to: a digest, or `local:` and the id of an image that came from no registry.

        Raises:
            CatalogInvalid: the lock file is damaged.
        """
        return (await self._read()).images.get(tag)

    async def put(self, tag: str, digest: str) -> None:
        """
        Raises:
            ImageError: the lock file cannot be written: a tag that cannot be pinned is not used.
        """
        if self._path is None:
            self._unsaved = self._unsaved.with_image(tag, digest)
            return
        path = self._path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            async with file_lock(path.with_name(f".{path.name}.lock")):
                lock = await self._read()
                await to_thread.run_sync(write_lock, path, lock.with_image(tag, digest))
        except OSError as exc:
            raise ImageError(f"{tag} cannot be pinned in {path}: {exc.strerror or exc}") from exc

    async def _read(self) -> Lock:
        return self._unsaved if self._path is None else await to_thread.run_sync(read_lock, self._path)
