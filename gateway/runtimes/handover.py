"""What one server is handed when it starts: its folders and its secrets, and what it must not repeat.

Knows secrets, mounts and volumes; not how a container or process is made."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import anyio
from anyio import to_thread

from catalog import Entry
from gateway.errors import MountRefused, SecretsError, UpstreamUnavailable
from gateway.mounts import MountGuard, Opened
from gateway.redaction import Redactor
from gateway.runtimes.launcher import opening
from gateway.runtimes.specification import MIB, Folder
from gateway.secrets import Secrets, SecretValue

CONTAINER_UID: Final = 65532
"""The user inside when the gateway itself runs as root; otherwise the gateway's own user, so that volumes fit."""
BLOCK_BYTES: Final = 512
LOOK_EVERY_S: Final = 5.0
LOOK_SHARE: Final = 50
"""Large volumes are looked at less often, so that looking takes a fiftieth of the time at most."""


class Handed(NamedTuple):
    """Everything one start hands over. `plain`, `env` and `files` are disjoint."""

    folders: Sequence[Folder]
    opened: Sequence[Opened]
    """The mounted ones among the folders, in the same order, last."""
    plain: Mapping[str, SecretValue]
    env: Mapping[str, SecretValue]
    files: Mapping[str, SecretValue]
    redactor: Redactor | None

    @property
    def needs_launcher(self) -> bool:
        return bool(self.env or self.files or self.opened)

    def opening(self, pipes: str = "") -> bytes:
        """What the launcher reads first; `pipes` is the identity of their folder."""
        mounted = self.folders[len(self.folders) - len(self.opened) :]
        return opening(
            self.env,
            self.files,
            {folder.target: one.identity for folder, one in zip(mounted, self.opened, strict=True)},
            pipes,
        )


class Handover:
    """Collects what an entry asks for. One for each runtime; `volume_uid` is the user new volumes belong to, where that
    is not the gateway's own."""

    def __init__(self, volumes: Path, secrets: Secrets, mounts: MountGuard, *, volume_uid: int | None = None) -> None:
        self._volume_uid = volume_uid
        self._volumes = volumes
        self._secrets = secrets
        self._mounts = mounts

    async def collect(self, entry: Entry, owner: str = "") -> Handed:
        """
        Raises:
            UpstreamUnavailable: a secret is missing, a mount refused, or a volume too full; says what to do.
        """
        try:
            return await to_thread.run_sync(lambda: self._collect(entry, owner))
        except (MountRefused, SecretsError, OSError) as exc:
            raise UpstreamUnavailable(f"server {entry.id} is not started: {exc}") from exc

    def _collect(self, entry: Entry, owner: str) -> Handed:
        found = self._secrets.resolve(entry, owner)
        plain, env, files = dict[str, SecretValue](), dict[str, SecretValue](), dict[str, SecretValue]()
        for secret in entry.secrets:
            if secret.name not in found:
                continue
            if secret.env is not None:
                (plain if secret.plain_env else env)[secret.env] = found[secret.name]
            if secret.file is not None:
                files[secret.file] = found[secret.name]
        opened, folders = [], self.volume_folders(entry)
        for mount in entry.mounts:
            if mount.source is None:
                raise MountRefused(f"the setting {mount.config}, which names a folder to be mounted, is not set")
            one = self._mounts.open(mount.source)
            opened.append(one)
            folders.append(Folder(one.path, mount.target or mount.source, not mount.read_only))
        return Handed(folders, opened, plain, env, files, Redactor(found.values()) if found else None)

    async def recheck(self, handed: Handed) -> None:
        """
        Raises:
            UpstreamUnavailable: a mounted folder was replaced meanwhile.
        """
        try:
            for one in handed.opened:
                await to_thread.run_sync(self._mounts.recheck, one)
        except (MountRefused, OSError) as exc:
            raise UpstreamUnavailable(str(exc)) from exc

    def volume_folders(self, entry: Entry) -> list[Folder]:
        """The host folder and mount point of each volume, made on first use and private to the server's user."""
        folders = []
        used = 0
        for volume in entry.volumes:
            path = self._volumes / entry.id / volume.name
            if not path.exists():
                path.mkdir(mode=0o700, parents=True)
                if self._volume_uid is not None and os.getuid() == 0:
                    os.chown(path, self._volume_uid, self._volume_uid)
            folders.append(Folder(path, volume.target))
            used += used_bytes(path)
        if used > entry.limits.volume_mib * MIB:
            raise MountRefused(
                f"its volumes hold {used // MIB} MiB, more than its limit of {entry.limits.volume_mib} MiB; "
                f"clear {self._volumes / entry.id} or raise volume_mib"
            )
        return folders


async def until_full(folders: Sequence[Path], limit_mib: int) -> str:
    """Look at the folders again and again, and return what to say once they hold more than the limit."""
    while True:
        started = time.monotonic()
        used = await to_thread.run_sync(lambda: sum(used_bytes(folder) for folder in folders))
        if used > limit_mib * MIB:
            return f"its volumes hold {used // MIB} MiB, more than its limit of {limit_mib} MiB"
        await anyio.sleep(max(LOOK_EVERY_S, LOOK_SHARE * (time.monotonic() - started)))


def used_bytes(folder: Path) -> int:
    """What the folder's files take on the disk; what vanishes while we look takes nothing."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_blocks * BLOCK_BYTES
            except OSError:
                continue
    return total
