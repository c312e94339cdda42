"""Folders of this machine that a server may see: approved by an administrator, opened without following links.

Knows paths and what lies there; nothing of containers."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from gateway.errors import MountRefused

NEVER_ROOTS: Final = (
    "/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/proc", "/root", "/run", "/sbin", "/sys", "/usr",
    "/var/lib", "/var/log", "/var/run", "/var/spool",
)  # fmt: skip
"""Trees of the host in which no folder may be approved."""
NOT_WHOLE: Final = ("/", "/home", "/media", "/mnt", "/opt", "/srv", "/tmp", "/var", "/var/tmp")  # noqa: S108
"""Folders that many share: one below may be approved, not the whole."""
PRIVATE_NAMES: Final = frozenset(
    {
        ".aws", ".azure", ".bash_history", ".cargo", ".config", ".docker", ".gem", ".git-credentials", ".gnupg",
        ".kube", ".lockgate", ".mozilla", ".netrc", ".npmrc", ".password-store", ".pgpass", ".pypirc", ".ssh",
        ".terraform.d", ".thunderbird", ".vault-token", "docker.sock", "podman.sock", "containerd.sock",
    }
)  # fmt: skip
"""Where people and programs keep keys and logins: neither these nor a folder that holds one of them is mounted."""
LINK_REFUSED: Final = "is a symbolic link or not a folder; write the path without links"


class Opened(NamedTuple):
    """A folder or file as it was found: `identity` is `device:inode` in decimal."""

    path: Path
    identity: str


def check_root(path: Path) -> Path:
    """A folder below which an administrator approves mounts, resolved.

    Raises:
        ValueError: it must not be approved.
    """
    real = Path(os.path.realpath(path))
    if not path.is_absolute():
        raise ValueError(f"{path} is no absolute path")
    if str(real) in NOT_WHOLE or any(real.is_relative_to(tree) for tree in NEVER_ROOTS):
        raise ValueError(f"{path} belongs to the system or to many; approve a folder of your own")
    return real


class MountGuard:
    """Decides which folders may be mounted. `own` are paths of the gateway and the engine, which no server may see."""

    def __init__(self, roots: Sequence[Path], own: Iterable[Path]) -> None:
        self._roots = [(path, Path(os.path.realpath(path))) for path in roots]
        self._own = [Path(os.path.realpath(path)) for path in own]

    def open(self, source: str) -> Opened:
        """Find the folder by descriptors, one part of the path after the other; nothing is followed.

        Raises:
            MountRefused: it may not be mounted; says why.
        """
        path = self._below_a_root(source)
        fd = _walk(path, source)
        try:
            found = os.fstat(fd)
            if not stat.S_ISDIR(found.st_mode) and not stat.S_ISREG(found.st_mode):
                raise MountRefused(f"{source} is neither a folder nor a file")
            self._check_contents(path, source, fd, stat.S_ISDIR(found.st_mode))
        finally:
            os.close(fd)
        return Opened(path, f"{found.st_dev}:{found.st_ino}")

    def recheck(self, opened: Opened) -> None:
        """
        Raises:
            MountRefused: something else is there now.
        """
        if self.open(str(opened.path)) != opened:
            raise MountRefused(f"{opened.path} was replaced while the server was being started")

    def _below_a_root(self, source: str) -> Path:
        if not self._roots:
            raise MountRefused(f"{source} cannot be mounted: no folder is approved; name one in LOCKGATE_MOUNT_ROOTS")
        if "\0" in source or ":" in source or os.path.normpath(source) != source or not source.startswith("/"):
            raise MountRefused("a path to be mounted is absolute and normalised, and has no colon")
        for written, real in self._roots:
            for root in (written, real):
                if Path(source).is_relative_to(root):
                    return real / Path(source).relative_to(root)
        raise MountRefused(f"{source} lies below none of the folders approved in LOCKGATE_MOUNT_ROOTS")

    def _check_contents(self, path: Path, source: str, fd: int, is_folder: bool) -> None:
        if private := [part for part in path.parts if part.lower() in PRIVATE_NAMES]:
            raise MountRefused(f"{source} lies in {private[0]}, where keys and logins are kept")
        for own in self._own:
            if own.is_relative_to(path) or path.is_relative_to(own):
                raise MountRefused(f"{source} would show a server what belongs to the gateway or the engine: {own}")
        if is_folder:
            listing = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
            try:
                names = {name.lower() for name in os.listdir(listing)}
            finally:
                os.close(listing)
            if held := sorted(names & PRIVATE_NAMES):
                raise MountRefused(f"{source} holds {held[0]}, where keys and logins are kept; name a folder below")


def _walk(path: Path, source: str) -> int:
    """A descriptor of the path, which the caller closes."""
    fd = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    *folders, last = path.parts[1:]
    try:
        for name, flags in [*((name, os.O_DIRECTORY) for name in folders), (last, 0)]:
            below = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC | flags, dir_fd=fd)
            os.close(fd)
            fd = below
        if stat.S_ISLNK(os.fstat(fd).st_mode):
            raise MountRefused(f"{source}: {last} {LINK_REFUSED}")
    except FileNotFoundError as exc:
        os.close(fd)
        raise MountRefused(f"{source} does not exist") from exc
    except OSError as exc:
        os.close(fd)
        raise MountRefused(f"{source}: {name} {LINK_REFUSED}") from exc
    except MountRefused:
        os.close(fd)
        raise
    return fd
