"""Transcripts of agent runs: a file a run, one event a line, on disk before the next step begins.

Knows no loop; whoever runs one adds its events. A line that a crash cut off is not an event."""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self

import msgspec

from engine.errors import TranscriptBusy, TranscriptError, TranscriptNotFound
from engine.events import Answered, Event, Stopped, TextWritten, ToolCalled

MAX_LINE_BYTES: Final = 64 * 1024 * 1024
SUFFIX: Final = ".jsonl"


class Header(msgspec.Struct, frozen=True):
    """What a run was asked for: all that is needed to go on with it."""

    run: str
    """Its id; ids sort by time."""
    at: float
    """Unix time of its beginning."""
    task: str
    model: str
    profile: str
    budget: dict[str, Any] = {}
    instructions: str = ""
    tools: list[str] = []
    """Names or patterns of the tools it may call; empty where it may call all of the profile."""
    functions: list[dict[str, Any]] = []
    """Those tools as the model was told of them, so that the run can be repeated without their servers."""
    schema: dict[str, Any] | None = None
    agent: str = ""
    """The definition it was made from, if any."""
    approve: str = "policy"
    insist: bool = False
    """Whether the model is small and is told to look where it answered from nothing."""


class _Line(msgspec.Struct, frozen=True):
    at: float
    event: Event = msgspec.field(name="is")


class Record(msgspec.Struct, frozen=True):
    """A transcript as it was read: each event with the Unix time it happened at."""

    header: Header
    events: list[tuple[float, Event]]

    @property
    def state(self) -> str:
        """The reason it stopped for, or "unfinished"."""
        last = self.events[-1][1] if self.events else None
        return last.reason if isinstance(last, Stopped) else "unfinished"

    @property
    def answer(self) -> Answered | None:
        return next((event for _, event in reversed(self.events) if isinstance(event, Answered)), None)

    @property
    def history(self) -> list[Event]:
        """The events of the run, to go on from. Where it had been stopped by a limit, it goes on from there."""
        return [event for _, event in self.events if not isinstance(event, Stopped)]


class Transcript:
    """A transcript that is being written, by one process at a time."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd

    @classmethod
    def create(cls, folder: Path, header: Header) -> Self:
        """
        Raises:
            TranscriptError: it cannot be written.
        """
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = folder / f"{header.run}{SUFFIX}"
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise TranscriptError(f"the transcript cannot be written: {exc}") from exc
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        transcript = cls(path, fd)
        transcript._write(msgspec.json.encode(header))
        return transcript

    @classmethod
    def reopen(cls, folder: Path, run: str) -> tuple[Self, Record]:
        """Go on with a run's transcript, after its last whole line.

        Raises:
            TranscriptNotFound: there is none.
            TranscriptBusy: the run is still going on.
            TranscriptError: it cannot be read.
        """
        path = find(folder, run)
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            record, end = _read(path)
            os.ftruncate(fd, end)
        except BlockingIOError:
            os.close(fd)
            raise TranscriptBusy(f"run {path.stem} is still going on") from None
        except BaseException:
            os.close(fd)
            raise
        return cls(path, fd), record

    def add(self, event: Event) -> None:
        """Keep an event, so that the end of this process does not lose it. Pieces of text are not kept, as the whole
        turn is. That a call is made, and how the run ended, are on the disk when this returns, with all before.

        Raises:
            TranscriptError: it cannot be written, so the run must not go on.
        """
        if not isinstance(event, TextWritten):
            is_due = isinstance(event, ToolCalled | Answered | Stopped)
            self._write(msgspec.json.encode(_Line(time.time(), event)), is_due)

    def _write(self, line: bytes, is_due: bool = True) -> None:
        rest = memoryview(line + b"\n")
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
            if is_due:
                os.fdatasync(self._fd)
        except OSError as exc:
            raise TranscriptError(f"the transcript {self.path} cannot be written: {exc}") from exc

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def new_id() -> str:
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"


def find(folder: Path, run: str) -> Path:
    """The file of a run, by its id or by the beginning or end of it; `last` is the newest.

    Raises:
        TranscriptNotFound: there is none, or more than one.
    """
    files = _files(folder)
    if run == "last" and files:
        return files[-1]
    exact = [path for path in files if path.stem == run]
    found = exact or [path for path in files if run and (path.stem.startswith(run) or path.stem.endswith(run))]
    if len(found) == 1:
        return found[0]
    if found:
        raise TranscriptNotFound(f"{run!r} could be {', '.join(path.stem for path in found[:5])}; write more of it")
    raise TranscriptNotFound(f"there is no run {run!r}; `lockgate agent list` shows those there are")


def load(folder: Path, run: str) -> Record:
    """
    Raises:
        TranscriptNotFound: there is none, or more than one.
        TranscriptError: it cannot be read.
    """
    return _read(find(folder, run))[0]


def load_all(folder: Path) -> Iterator[Record]:
    """Every transcript that can be read, newest first."""
    for path in reversed(_files(folder)):
        with suppress(TranscriptError):
            yield _read(path)[0]


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.suffix == SUFFIX)
    except OSError:
        return []


def _read(path: Path) -> tuple[Record, int]:
    """The transcript, and the length of its whole lines in bytes."""
    events: list[tuple[float, Event]] = []
    header: Header | None = None
    end = 0
    try:
        with path.open("rb") as file:
            while line := file.readline(MAX_LINE_BYTES):
                if not line.endswith(b"\n"):
                    break
                if header is None:
                    header = msgspec.json.decode(line, type=Header)
                else:
                    entry = msgspec.json.decode(line, type=_Line)
                    events.append((entry.at, entry.event))
                end += len(line)
    except OSError as exc:
        raise TranscriptError(f"the transcript {path} cannot be read: {exc}") from exc
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise TranscriptError(f"the transcript {path} is damaged after {end} bytes: {exc}") from exc
    if header is None:
        raise TranscriptError(f"the transcript {path} is empty")
    return Record(header, events), end
