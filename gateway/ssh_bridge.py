"""A socket of our own in front of an engine that is reached by ssh: each connection runs `docker system dial-stdio`.

Knows bytes only. What connects to the socket need not know that ssh is in between."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shlex
import shutil
import stat
import tempfile
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from gateway.filelock import lock_if_free

FOLDER: Final = "lockgate-ssh-"
"""How the private folders begin, all in the system's folder for temporary files."""
CHUNK_BYTES: Final = 64 * 1024
END_GRACE_S: Final = 2.0
"""How long ssh may take to end once its input is closed."""
KEPT_LINES: Final = 5
CONNECT_TIMEOUT_S: Final = 10


def ssh_command(url: str) -> list[str]:
    """The argv that connects to the engine behind an `ssh://` address. Never asks for a password."""
    parts = urlsplit(url)
    argv = ["ssh", "-T", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_TIMEOUT_S}"]
    argv += ["-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=2"]
    if parts.username:
        argv += ["-l", parts.username]
    if parts.port:
        argv += ["-p", str(parts.port)]
    remote = ["docker"]
    if parts.path.strip("/"):
        remote += ["--host", shlex.quote(f"unix://{parts.path}")]  # a shell reads it over there
    return [*argv, "--", parts.hostname or "", *remote, "system", "dial-stdio"]


class SshBridge:
    """Listens on a socket in a private folder; owns every ssh that its connections start."""

    def __init__(self, url: str) -> None:
        self._argv = ssh_command(url)
        self._folder: Path | None = None
        self._lock: int | None = None
        """On the folder: says that its maker lives."""
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._said: deque[str] = deque(maxlen=KEPT_LINES)

    @property
    def said(self) -> str:
        """What ssh last wrote on stderr: why there is no connection."""
        return "; ".join(self._said)

    async def open(self) -> str:
        """Start listening; the URL to connect to."""
        if self._folder is None:
            self._folder, self._lock = _locked_folder()
            self._server = await asyncio.start_unix_server(self._accept, self._folder / "engine.sock")
        return f"unix://{self._folder / 'engine.sock'}"

    async def aclose(self) -> None:
        """Stop listening and end every ssh."""
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
        self._server = self._folder = self._lock = None

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._carry(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        process: asyncio.subprocess.Process | None = None
        try:
            process = await asyncio.create_subprocess_exec(
                *self._argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
            assert process.stdin and process.stdout and process.stderr  # noqa: S101, PT018  # pipes were asked for
            there = asyncio.create_task(_copy(reader, process.stdin))
            listen = asyncio.create_task(self._listen(process.stderr))
            try:
                await _copy(process.stdout, writer)
            finally:
                for task in (there, listen):
                    task.cancel()
                await asyncio.gather(there, listen, return_exceptions=True)
        except OSError as exc:
            self._said.append(f"ssh could not be started: {exc.strerror or exc}")
        finally:
            writer.close()
            if process is not None:
                await _end(process)

    async def _listen(self, stderr: asyncio.StreamReader) -> None:
        with suppress(ValueError):
            while line := await stderr.readline():
                self._said.append(line.decode(errors="replace").strip()[:200])


def _locked_folder() -> tuple[Path, int]:
    """Locked before it has its name: nobody ever sees a folder of a living bridge that is not locked."""
    unnamed = Path(tempfile.mkdtemp(prefix=f".{FOLDER}"))
    lock = os.open(unnamed, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return unnamed.rename(unnamed.with_name(unnamed.name.removeprefix("."))), lock


def remove_dead_bridges() -> None:
    """Remove the folders of this user's bridges that ended without removing them."""
    for folder in Path(tempfile.gettempdir()).glob(f"{FOLDER}*"):
        with suppress(OSError):
            found = folder.lstat()
            if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid():
                with lock_if_free(folder) as is_free:
                    if is_free:
                        shutil.rmtree(folder, ignore_errors=True)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Everything, then the end of the stream."""
    with suppress(OSError, RuntimeError):  # RuntimeError: uvloop's for a transport that closed meanwhile
        while data := await reader.read(CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.stdin is not None:
        process.stdin.close()
    with suppress(TimeoutError):
        async with asyncio.timeout(END_GRACE_S):
            await process.wait()
            return
    with suppress(ProcessLookupError):
        process.kill()
    await process.wait()
