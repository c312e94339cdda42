"""Small private files that are either the old or the new one, whatever happens while they are written.

Knows paths and bytes; not what they mean."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

from gateway.errors import SecretsError

MAX_BYTES: Final = 64 * 1024 * 1024
SUFFIX: Final = ".new"
"""Ends the name of a file half written, behind the id of the process that writes it."""


def write(path: Path, content: bytes) -> None:
    """Replace the file; on return the new one is on disk.

    Raises:
        OSError: the old one is still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{SUFFIX}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read(path: Path, *, is_secret: bool = False) -> bytes | None:
    """The file's content, or None if there is none.

    Raises:
        SecretsError: it is no regular file, or is a secret that others could read or put in place of this one.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise SecretsError(f"{path} cannot be read: {exc.strerror}") from exc
    with os.fdopen(fd, "rb") as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise SecretsError(f"{path} is no regular file")
        if is_secret:
            _check_private(path, found)
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise SecretsError(f"{path} is larger than {MAX_BYTES} bytes")
    return content


def _check_private(path: Path, found: os.stat_result) -> None:
    if found.st_uid not in (os.geteuid(), 0):
        raise SecretsError(f"{path} belongs to another user and is not used")
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise SecretsError(f"{path} can be read or changed by other users; run: chmod 600 {path}")
    folder = path.parent.stat()
    if stat.S_IMODE(folder.st_mode) & 0o022 and not folder.st_mode & stat.S_ISVTX:
        raise SecretsError(f"{path.parent} can be changed by other users, so {path.name} is not used; chmod 700 it")
