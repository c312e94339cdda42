"""Engines for tests: the one that is there, a faulty road to it, and the smallest image that serves.

Knows sockets and images; not what is tested with them."""

import asyncio
import io
import os
import shutil
import ssl
import subprocess
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import docker
import pytest

from catalog import Entry
from gateway.settings import Settings

Mode = Literal["open", "refusing", "silent"]
TINY_C = Path(__file__).parents[1] / "servers" / "tiny.c"
HELLO = "hello from a container"


def engine_url() -> str:
    """The engine that tests use, as the gateway would find it."""
    return os.environ.get("DOCKER_HOST") or Settings.docker_host


def engine_socket() -> Path:
    """The socket of that engine; skips where it is reached some other way."""
    parts = urlsplit(engine_url())
    if parts.scheme != "unix":
        pytest.skip("this test needs an engine behind a socket file")
    return Path(parts.path)


class Road:
    """A way to the engine that can be closed, or fall silent, at any moment. Bytes pass unchanged."""

    def __init__(self, engine: Path) -> None:
        self.mode: Mode = "open"
        self.n_connections = 0
        self.held_back = b""
        """Requests that begin with this do not arrive before `let` is set."""
        self.holds = asyncio.Event()
        self.let = asyncio.Event()
        self.answered = asyncio.Event()
        """The engine has answered what was held back."""
        self._engine = engine
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def cut(self, mode: Mode) -> None:
        """From now on so; what is open is cut off."""
        self.mode = mode
        for writer in self._writers:
            writer.transport.abort()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        self.n_connections += 1
        try:
            await self._carry(reader, writer)
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.mode == "refusing":
            return
        there_reader, there_writer = await asyncio.open_unix_connection(self._engine)
        self._writers.add(there_writer)
        try:
            held = asyncio.Event()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._copy(reader, there_writer, held, is_request=True))
                await self._copy(there_reader, writer, held)
                if not writer.can_write_eof():
                    writer.close()
        finally:
            self._writers.discard(there_writer)
            there_writer.transport.abort()

    async def _copy(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        held: asyncio.Event,
        *,
        is_request: bool = False,
    ) -> None:
        with suppress(OSError, RuntimeError):  # RuntimeError: uvloop's for a transport that closed meanwhile
            while data := await reader.read(65536):
                if is_request and self.held_back and self.held_back in data.partition(b"\r\n")[0]:
                    self.holds.set()
                    await self.let.wait()
                    held.set()
                elif held.is_set():
                    self.answered.set()
                if self.mode == "silent":
                    await asyncio.Event().wait()  # neither an answer nor an end: a half-open connection
                writer.write(data)
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()

    async def end(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def road_to_engine(path: Path) -> AsyncIterator[Road]:
    """A socket file that leads to the engine."""
    road = Road(engine_socket())
    server = await asyncio.start_unix_server(road.accept, path)
    try:
        yield road
    finally:
        server.close()
        await road.end()


@asynccontextmanager
async def tls_to_engine(context: ssl.SSLContext) -> AsyncIterator[int]:
    """A port on this machine where the engine is spoken to over TLS."""
    road = Road(engine_socket())
    server = await asyncio.start_server(road.accept, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await road.end()


def client(url: str | None = None) -> docker.APIClient:
    """A client of the engine; skips, or in CI fails, where none answers."""
    try:
        found = docker.APIClient(url or engine_url(), version="auto", timeout=60)
        found.ping()
    except docker.errors.DockerException as exc:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI has to test with a Docker Engine, and none answers: {exc}")
        pytest.skip(f"no Docker Engine: {exc}")
    return found


def engine_if_any() -> docker.APIClient | None:
    """A client of the engine, if one answers."""
    try:
        found = docker.APIClient(engine_url(), version="auto", timeout=60)
        found.ping()
    except docker.errors.DockerException:
        return None
    return found


def tiny_rootfs(folder: Path, *, marker: str = "") -> bytes:
    """A file system that holds the tiny server; `marker` makes it another one."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("the tiny server needs a C compiler")
    program = folder / "tiny"
    if not program.exists():
        subprocess.run([compiler, "-static", "-Os", "-s", "-o", program, TINY_C], check=True)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content, mode in (("tiny", program.read_bytes(), 0o755), ("marker", marker.encode(), 0o644)):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), mode
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def make_tiny_image(engine: docker.APIClient, folder: Path, name: str, *, marker: str = "") -> str:
    """An image `name:1` that serves; its id."""
    changes = ['ENTRYPOINT ["/tiny"]']
    engine.import_image_from_data(tiny_rootfs(folder, marker=marker), repository=name, tag="1", changes=changes)
    return str(engine.inspect_image(f"{name}:1")["Id"])


def tiny_entry(image: str, id: str = "tiny") -> Entry:
    return Entry(id=id, title="Tiny", description="The smallest server.", image=image)
