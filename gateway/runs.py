"""The runs of gateways and commands on one state folder: who they are, whether they live, what they hold.

Knows files and labels; neither engines nor processes. A run lives as long as the lock on its file is held, and the
system releases that however the process ends."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Self

from gateway.runtimes.labels import GATEWAY, RUN, What, are_ours, build_name, run_of_build, signed

KEY_BYTES: Final = 32
ID_FILE: Final = "gateway-id"
KEY_FILE: Final = "label-key"
MARK: Final = "OF_LOCKGATE_RUN"
"""The variable by which a server's processes are found again. Named LOCKGATE_* it would be a setting."""
RUN_FILE: Final = "gateway.json"
"""How to reach the gateway that runs on the state folder."""
PIPES: Final = "pipes"
"""The folder with a folder for each container that is about to start; they bear the marks of runs."""
SOCKET: Final = "stdio.sock"
"""Where it listens for `lockgate stdio`."""


class Run:
    """One run on a state folder. Enter to live, leave to end."""

    def __init__(self, state_dir: Path) -> None:
        self._state = state_dir
        self._folder = state_dir / "runs"
        self._key = b""
        self._lock: int | None = None
        self._held: set[str] = set()
        self.gateway = ""
        """The id of the state folder."""
        self.id = secrets.token_hex(8)

    def __enter__(self) -> Self:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._only_one():
            self._begin()
        return self

    def _begin(self) -> None:
        self.gateway = _once(self._state / ID_FILE, secrets.token_hex(16).encode() + b"\n").decode().strip()
        self._key = _once(self._state / KEY_FILE, secrets.token_bytes(KEY_BYTES))
        # Locked before it has its name: nobody ever sees a file of a living run that is not locked.
        unnamed = self._folder / f".{self.id}"
        self._lock = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        unnamed.rename(self._folder / self.id)

    @contextmanager
    def _only_one(self) -> Iterator[None]:
        """Held for a moment by whoever begins, or removes what others left in beginning."""
        fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def __exit__(self, *exc: object) -> None:
        with suppress(OSError):
            (self._folder / self.id).unlink()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # -- names and labels --------------------------------------------------------------------

    @property
    def mark(self) -> str:
        """Names this run in variables of processes and in names of temporary folders."""
        return f"{self.gateway}.{self.id}"

    def pipes_folder(self) -> Path:
        """A new name for a folder of pipes, swept once this run has ended."""
        return self._state / PIPES / f"{self.mark}.{secrets.token_hex(4)}"

    def hold(self, of: str) -> str:
        """A new name for a container, network or volume, kept from being swept until it is released."""
        name = f"lockgate-{of.lower()}-{secrets.token_hex(4)}"
        self._held.add(name)
        return name

    def hold_build(self) -> str:
        """The same for a container in which an image is made."""
        name = build_name(self._key, gateway=self.gateway, run=self.id)
        self._held.add(name)
        return name

    def release(self, name: str) -> None:
        """The object is removed, or is to be: whatever of it is still there is swept."""
        self._held.discard(name)

    def labels(self, what: What, name: str, server: str) -> dict[str, str]:
        return signed(self._key, what, name, gateway=self.gateway, run=self.id, server=server)

    def may_remove(self, what: What, name: str, found: dict[str, str]) -> bool:
        """Whether an object is ours and nobody's any more: of a dead run, or of this one and not held."""
        if are_ours(self._key, what, name, found) and found[GATEWAY] == self.gateway:
            run: str | None = found[RUN]
        else:
            run = run_of_build(self._key, name, gateway=self.gateway) if what == "container" else None
        if run is None:
            return False
        return name not in self._held if run == self.id else not self.lives(run)

    # -- who lives ---------------------------------------------------------------------------

    def is_dead(self, mark: str) -> bool:
        """Whether the mark is that of a run on this state folder which has ended."""
        gateway, _, run = mark.partition(".")
        return gateway == self.gateway and bool(run) and not self.lives(run)

    def lives(self, run: str) -> bool:
        if run == self.id:
            return True
        try:
            fd = os.open(self._folder / Path(run).name, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def forget_dead(self) -> None:
        """Remove the files of dead runs, and those of runs that were killed before they had begun."""
        with self._only_one():
            unused = [one for name in (ID_FILE, KEY_FILE) for one in self._state.glob(f".{name}.*")]
            for file in (*self._folder.iterdir(), *unused):
                if not self.lives(file.name):
                    file.unlink(missing_ok=True)


def _once(path: Path, content: bytes) -> bytes:
    """What the file holds, which only its user can read; made whole the first time, by whoever is first."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(fd)
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink()
    return path.read_bytes()
