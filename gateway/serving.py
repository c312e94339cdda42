"""Running a gateway behind a listener, and finding the one that runs.

Knows uvicorn and the run file in the state folder; not what is served."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec
import uvicorn
from starlette.types import Scope

from catalog import Profile
from gateway import errors, patience
from gateway.app import create_app, loopback_principal
from gateway.auth.guard import authenticated_principal
from gateway.auth.opening import names_of, open_guard
from gateway.gateway import Gateway
from gateway.running import Running, socket_path
from gateway.runs import RUN_FILE
from gateway.settings import Settings
from gateway.signin.server import AuthorizationServer
from gateway.wire.http import McpEndpoint
from gateway.wire.modern import ModernEra
from gateway.wire.stdio import serve_socket
from policies import Principal

DRAIN_S: Final = 5
KEEP_ALIVE_S: Final = 30
BACKLOG: Final = 512
COLLECT_EVERY: Final = (50_000, 20, 20)
"""Garbage collection thresholds: a call leaves few cycles, so young objects are looked at less often."""
SOCKET_LINE_BYTES: Final = 65536


class Service:
    """A gateway behind its listener: how to reach it, and how to end it."""

    def __init__(self, running: Running, server: uvicorn.Server, endpoint: McpEndpoint) -> None:
        self.running = running
        self.endpoint = endpoint
        self._server = server
        self._ended = asyncio.Event()

    def stop(self) -> None:
        """Accept nothing new, end listening streams (uvicorn would wait for them), let open calls finish briefly."""
        self.endpoint.close()
        self._server.should_exit = True

    async def wait(self) -> None:
        """Until the listener is closed."""
        await self._ended.wait()

    async def run(self, listener: socket.socket) -> None:
        sweeping = asyncio.get_running_loop().create_task(patience.sweep(self._server.server_state.connections))
        try:
            await self._server.serve([listener])
        finally:
            sweeping.cancel()
            await asyncio.gather(sweeping, return_exceptions=True)
            self._ended.set()


class _QuietServer(uvicorn.Server):
    """Leaves signals alone: uvicorn would raise them again before the gateway has stopped its servers."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


@asynccontextmanager
async def served(
    gateway: Gateway, principal_of: Callable[[Scope], Principal] = loopback_principal
) -> AsyncIterator[Service]:
    """Serve an entered gateway for the length of the body. `principal_of` says who makes a request.

    Raises:
        SettingsError: the port is taken.
    """
    settings = gateway.settings
    listener = _listen(settings)
    port = listener.getsockname()[1]
    running = Running(settings.url_at(port), os.getpid(), secrets.token_hex(32), settings.profile)
    guard = server = None
    if gateway.signin is not None:
        names = names_of(settings, port)
        state, secrets_of = settings.state_dir, gateway.secrets
        if gateway.signin.accounts:
            server = AuthorizationServer(gateway.signin, names, gateway.database, gateway.audit, secrets_of, state)
        own = server.tokens if server is not None else None
        guard = open_guard(gateway.signin, names, gateway.database, gateway.audit, running.admin_token, own)
        principal_of = authenticated_principal
    gateway.signins.base = settings.public_url or running.url
    gateway.signins.gives_links = guard is None
    endpoint = McpEndpoint(gateway.door, principal_of)
    config = uvicorn.Config(
        create_app(gateway, endpoint, running.admin_token, guard, server),
        lifespan="off",
        http=patience.PatientProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
        date_header=False,
        timeout_graceful_shutdown=DRAIN_S,
        timeout_keep_alive=KEEP_ALIVE_S,
        limit_concurrency=_max_connections(),
        log_level="error",  # whoever sends nonsense must not fill the log with it
    )
    # What exists by now lives as long as the process: looking at it in every collection is a waste.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_EVERY)
    service = Service(running, _QuietServer(config), endpoint)
    task = asyncio.get_running_loop().create_task(service.run(listener))
    run_file = settings.state_dir / RUN_FILE
    try:
        async with joinable(gateway, endpoint.modern):
            _write_private(run_file, msgspec.json.encode(running))
            yield service
    finally:
        with suppress(FileNotFoundError):
            run_file.unlink()
        service.stop()
        await task


@asynccontextmanager
async def joinable(gateway: Gateway, modern: ModernEra) -> AsyncIterator[set[asyncio.Task[None]]]:
    """Listen for `lockgate stdio` on a socket that only this user can open; its connections, yielded as tasks, end with
    the body."""
    clients: set[asyncio.Task[None]] = set()

    def profile_named(name: str) -> Profile:
        return gateway.catalog.profile(name) if name else gateway.profile

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = asyncio.current_task()
        if client is not None:
            clients.add(client)
            client.add_done_callback(clients.discard)
        with suppress(asyncio.CancelledError):  # the end of the gateway, which the stream's owner takes for an accident
            await serve_socket(reader, writer, gateway.door, modern, profile_named)

    with socket_path(gateway.settings.state_dir) as path:
        path.unlink(missing_ok=True)
        server = await asyncio.start_unix_server(serve, str(path), limit=SOCKET_LINE_BYTES)
        path.chmod(0o600)
    try:
        yield clients
    finally:
        server.close()
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
        with socket_path(gateway.settings.state_dir) as path:
            path.unlink(missing_ok=True)


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as exc:
        listener.close()
        raise errors.SettingsError(
            f"cannot listen on {settings.host}:{settings.port}: {exc.strerror}; set LOCKGATE_PORT to a free port"
        ) from exc
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener


def _max_connections() -> int:
    """Half of the files this process may open: the other half is for its servers."""
    return min(patience.MAX_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)


def _write_private(path: Path, content: bytes) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
    temporary.replace(path)
