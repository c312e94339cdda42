"""The short data path of a container: two named pipes that the launcher puts in place of the server's stdin and stdout,
so that calls pass neither the engine nor its helpers.

The launcher says by its first line which way it goes: through the pipes, or, where they are not those of this machine
or it may not open them, through the attach stream as before. Knows bytes and flow control; nothing of engines.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections import deque
from pathlib import Path
from typing import Final, Protocol, Self

THROUGH_PIPES: Final = b"launched yes\n"
NOT_THROUGH_PIPES: Final = b"launched no\n"
"""What the launcher says first, on the way it goes (images/recipes.py, LAUNCHER_SCRIPT)."""
READ_BYTES: Final = 64 * 1024
"""What a pipe holds on Linux, if nobody asks for more (pipe(7))."""
MAX_PIPE_BYTES: Final = 1024 * 1024
"""What it could hold if the server did ask (/proc/sys/fs/pipe-max-size): as much is read after the server's end."""
HIGH_BYTES: Final = 64 * 1024
LOW_BYTES: Final = 16 * 1024
"""So much must wait to be written before callers wait too, and so little for them to go on."""


class Stream(Protocol):
    """Who gets what the server says; a `LineChannel` is one."""

    def piped(self, data: bytes) -> None:
        """Bytes of the server's."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class Pipes:
    """The gateway's ends. Each is open for reading and writing, so that neither end waits for the other or sees an end
    too early: the server finds the end of its input when this process closes or dies, and that the server has ended is
    the engine's to say."""

    def __init__(self, folder: Path, stream: Stream) -> None:
        self.folder = folder
        self.identity = ""
        """`device:inode` of the folder, by which the launcher knows it."""
        self.is_open = False
        """The server's ends are these pipes. Before that, what is written waits here."""
        self._stream = stream
        self._in = -1
        self._out = -1
        self._unwritten: deque[bytes] = deque()
        self._unwritten_bytes = 0
        self._is_reading = False
        self._is_writing = False
        self._is_paused = False
        self._is_ending = False

    def make(self, uid: int, gid: int) -> Self:
        """Make the folder and its pipes for this user alone, and open our ends.

        Raises:
            OSError: the disk is full, or does not know pipes; nothing is left.
        """
        try:
            self.folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.folder.mkdir(mode=0o755)
            found = self.folder.stat()
            self.identity = f"{found.st_dev}:{found.st_ino}"
            self._in, self._out = (self._pipe(name, uid, gid) for name in ("in", "out"))
        except BaseException:
            self.close()
            raise
        self.resume_reading()
        return self

    def _pipe(self, name: str, uid: int, gid: int) -> int:
        path = self.folder / name
        os.mkfifo(path, 0o600)
        if os.getuid() == 0:
            os.chown(path, uid, gid)
        return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def opened(self) -> None:
        """The launcher holds the other ends: nobody needs the names any more, and what waited is sent."""
        self.is_open = True
        self._forget()
        self._flush()

    def taken_back(self) -> bytes:
        """What was to be written, for another way."""
        data = b"".join(self._unwritten)
        self._unwritten.clear()
        self._unwritten_bytes = 0
        return data

    def _forget(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    # -- writing -----------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Send now what the pipe takes, and the rest when it takes it."""
        if self._in < 0 or self._is_ending:
            return
        if not self.is_open or self._unwritten:
            self._keep(data)
            return
        try:
            n = os.write(self._in, data)
        except BlockingIOError:
            n = 0
        if n < len(data):
            self._keep(data[n:])
            self._watch()

    def _keep(self, data: bytes) -> None:
        self._unwritten.append(data)
        self._unwritten_bytes += len(data)
        if self._unwritten_bytes > HIGH_BYTES and not self._is_paused:
            self._is_paused = True
            self._stream.pause()

    def _watch(self) -> None:
        if not self._is_writing:
            self._is_writing = True
            asyncio.get_running_loop().add_writer(self._in, self._flush)

    def _flush(self) -> None:
        while self._unwritten:
            data = self._unwritten.popleft()
            try:
                n = os.write(self._in, data)
            except BlockingIOError:
                n = 0
            self._unwritten_bytes -= n
            if n < len(data):
                self._unwritten.appendleft(data[n:])
                self._watch()
                break
        else:
            self._stop_writing()
            if self._is_ending:
                self._close_in()
        if self._is_paused and self._unwritten_bytes <= LOW_BYTES:
            self._is_paused = False
            self._stream.resume()

    def _stop_writing(self) -> None:
        if self._is_writing:
            self._is_writing = False
            asyncio.get_running_loop().remove_writer(self._in)

    def is_closing(self) -> bool:
        return self._in < 0 or self._is_ending

    def get_write_buffer_size(self) -> int:
        return self._unwritten_bytes

    def close_stdin(self) -> None:
        """End the server's input once it is written, which a server takes as the request to exit."""
        self._is_ending = True
        if not self._unwritten:
            self._close_in()

    def _close_in(self) -> None:
        if self._in >= 0:
            self._stop_writing()
            os.close(self._in)
            self._in = -1

    # -- reading -----------------------------------------------------------------------------

    def _read(self) -> None:
        try:
            data = os.read(self._out, READ_BYTES)
        except BlockingIOError:
            return
        self._stream.piped(data)

    def pause_reading(self) -> None:
        if self._is_reading:
            self._is_reading = False
            asyncio.get_running_loop().remove_reader(self._out)

    def resume_reading(self) -> None:
        if not self._is_reading and self._out >= 0:
            self._is_reading = True
            asyncio.get_running_loop().add_reader(self._out, self._read)

    def rest(self) -> bytes:
        """What a server that has ended had still written."""
        found = bytearray()
        while self._out >= 0 and len(found) < MAX_PIPE_BYTES:
            try:
                found += os.read(self._out, READ_BYTES)
            except BlockingIOError:
                break
        return bytes(found)

    def close(self) -> None:
        """Let go of both pipes; safe to call again."""
        self._is_ending = True
        self._unwritten.clear()
        self._unwritten_bytes = 0
        self._close_in()
        self.pause_reading()
        if self._out >= 0:
            os.close(self._out)
            self._out = -1
        self._forget()
