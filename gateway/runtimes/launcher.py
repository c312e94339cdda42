"""The launcher: a static program, mounted read-only, that takes secrets from the first lines of stdin and becomes the
server. So they stand in no argument, no engine's record, no log and no image.

Knows how to get the launcher into an engine and what to say to it; not where secrets come from."""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Callable, Mapping
from typing import Final

import anyio
from anyio import to_thread

from gateway.errors import ImageError
from gateway.filelock import file_lock
from gateway.images import ImageStore
from gateway.images.recipes import LAUNCHER_ROOT, LAUNCHER_SCRIPT, launcher_recipe
from gateway.secrets import SecretValue

MOUNT: Final = "/run/lockgate"
SECRETS_FOLDER: Final = "/run/secrets"
PIPES: Final = "/run/lockgate-pipes"
"""Where the launcher finds the pipes to and from the gateway, if it is told of any."""
ENTRYPOINT: Final = (f"{MOUNT}/busybox", "sh", f"{MOUNT}/launch")
REFUSED: Final = 120
"""Exit status when the launcher did not understand what it was told."""
CHANGED: Final = 121
"""Exit status when a mounted folder is not the one that was checked."""
PT_INTERP: Final = 3


def opening(
    env: Mapping[str, SecretValue], files: Mapping[str, SecretValue], places: Mapping[str, str], pipes: str = ""
) -> bytes:
    """What the launcher reads before the server's own input: variables, files of SECRETS_FOLDER, and for each mounted
    place the `device:inode` that must be found there. `pipes` is that of the folder at PIPES, where there is one: the
    launcher then says on which way it goes on (pipes.py)."""
    lines = [b"pipes %b\n" % pipes.encode()] if pipes else []
    lines += [b"place %b %b\n" % (one.encode(), base64.b64encode(target.encode())) for target, one in places.items()]
    for kind, named in ((b"env", env), (b"file", files)):
        lines += [b"%b %b %b\n" % (kind, name.encode(), base64.b64encode(one.reveal())) for name, one in named.items()]
    return b"".join([*lines, b"go\n"])


class Launcher:
    """The launcher's volume in one engine: filled once from an image made here, verified once by each gateway."""

    def __init__(self, images: ImageStore) -> None:
        self._images = images
        self._folder = images.cache_dir / "launcher"
        self._volume = ""
        self._lock = anyio.Lock()

    async def volume(self, progress: Callable[[str], None]) -> str:
        """The name of the volume to mount at MOUNT.

        Raises:
            ImageError: the launcher cannot be had, or is not what it was.
        """
        async with self._lock:
            if not self._volume:
                recipe = launcher_recipe()
                image = await self._images.own(recipe, progress=progress)
                name = f"lockgate-launcher-{recipe.tag.rpartition(':')[2]}"
                async with file_lock(self._folder / "lock"):
                    files = await self._images.volume_files(image, name, LAUNCHER_ROOT)
                    await to_thread.run_sync(lambda: self._verify(name, files))
                self._volume = name
            return self._volume

    async def at_hand(self, progress: Callable[[str], None], *, or_made: bool) -> bool:
        """Whether the launcher is there, for a server that could do without it. To make it may take a base image that
        is not there: that is tried only if it is to be made."""
        try:
            if self._volume or or_made or await self._images.holds(launcher_recipe()):
                return bool(await self.volume(progress))
            return False
        except ImageError:
            return False  # whoever cannot do without it is told why

    def _verify(self, name: str, files: Mapping[str, bytes]) -> None:
        """The script is ours to the byte; the program is the one this machine saw when it was made.

        Raises:
            ImageError: it is not.
        """
        program = files.get("busybox", b"")
        if files.get("launch") != LAUNCHER_SCRIPT.encode() or not _is_static(program):
            raise ImageError(
                f"the volume {name} does not hold the launcher; remove it (docker volume rm {name}) and try again"
            )
        digest = hashlib.sha256(program).hexdigest()
        pin = self._folder / f"{name}.sha256"
        if not pin.exists():
            pin.write_text(digest + "\n")
        elif pin.read_text().strip() != digest:
            raise ImageError(
                f"the launcher in the volume {name} has changed since it was made here; remove the volume and {pin} "
                "if you know why, and find out why if you do not"
            )


def _is_static(program: bytes) -> bool:
    """Whether an ELF program needs no loader, so that it runs in an image without any library (64-bit, elf(5))."""
    if program[:5] != b"\x7fELF\x02":
        return False
    order = "<" if program[5] == 1 else ">"
    start, size, count = (
        struct.unpack_from(f"{order}Q", program, 0x20)[0],
        *struct.unpack_from(f"{order}HH", program, 0x36),
    )
    kinds = [struct.unpack_from(f"{order}I", program, start + size * index)[0] for index in range(count)]
    return PT_INTERP not in kinds
