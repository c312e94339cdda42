"""One Docker Engine, or one that speaks its API: clients for the control path, connections for the data path.

Knows how to reach it and whether it answers; not what is asked of it."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Coroutine
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit

import anyio
import docker
import requests
from anyio import to_thread
from docker.tls import TLSConfig
from docker.transport.unixconn import UnixHTTPAdapter, UnixHTTPConnection, UnixHTTPConnectionPool

from gateway.engine_address import EngineAddress, checked
from gateway.errors import EngineDown
from gateway.ssh_bridge import SshBridge
from gateway.wire.http_client import Answer, HttpFailure, HttpOrigin

T = TypeVar("T")
P = TypeVar("P", bound=asyncio.Protocol)

API_TIMEOUT_S: Final = 60.0
KNOCK_TIMEOUT_S: Final = 3.0
PING_TIMEOUT_S: Final = 1.5
"""An engine that does not answer `/_ping` in this time is taken for down: callers are told at once."""
SSH_PING_TIMEOUT_S: Final = 15.0
"""Each connection over ssh begins with a login."""
LATE_S: Final = 0.2
TRUSTED_FOR_S: Final = 1.0
"""After an answer the engine is not asked again for so long."""
DOWN_FOR_S: Final = 1.0
"""After a failure nobody waits for the engine for so long; the first caller after it asks again."""
FAILURES_TO_GIVE_UP: Final = 2
MAX_CONNECTIONS: Final = 1024
"""Each running container holds one, on which the engine will tell its end."""
OLDEST_VERSION: Final = "1.41"
"""Of the Engine API; the engine's own is asked for."""
TLS_PORT: Final = 2376
PLAIN_PORT: Final = 2375

Client = docker.APIClient
EngineRefused = docker.errors.APIError
"""The engine answered with an error: `status_code` says which."""
NotInEngine = docker.errors.NotFound
EngineErrors: Final = (docker.errors.DockerException, requests.exceptions.RequestException)
"""What the docker library raises: its own errors, and those of its HTTP library."""


class _UnixConnection(UnixHTTPConnection):
    """The docker library's own leaves its socket open when the engine does not take the connection."""

    def connect(self) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(self.timeout)
            sock.connect(self.unix_socket)
        except BaseException:
            sock.close()
            raise
        self.sock = sock


class _UnixPool(UnixHTTPConnectionPool):
    def _new_conn(self) -> _UnixConnection:  # type: ignore[override]  # as the library does
        return _UnixConnection(self.base_url, self.socket_path, self.timeout)  # type: ignore[arg-type]  # its stubs


class _UnixAdapter(UnixHTTPAdapter):
    def get_connection(self, url: str | bytes, proxies: Any = None) -> _UnixPool:
        with self.pools.lock:
            pool: _UnixPool | None = self.pools.get(url)
            if pool is None:
                pool = _UnixPool(str(url), self.socket_path, self.timeout, maxsize=self.max_pool_size)
                self.pools[url] = pool
        return pool


class DockerEngine:
    """Reaches one engine. `dial` and `check` belong to one event loop; `client` is for worker threads."""

    def __init__(self, address: EngineAddress | str | None = None) -> None:
        """Nothing is contacted yet.

        Raises:
            SettingsError: the address is not usable.
        """
        self.address = checked(EngineAddress(address) if isinstance(address, str) else address or EngineAddress())
        self.is_podman = False
        """Whether it is Podman that speaks the engine's language; known from the first client on."""
        self._scheme = urlsplit(self.address.url).scheme
        self._bridge = SshBridge(self.address.url) if self._scheme == "ssh" else None
        self._url = self.address.url
        self._origin: HttpOrigin | None = None
        self._answered_at = float("-inf")
        self._down_until = float("-inf")
        self._down_reason = ""
        self._asking: asyncio.Task[str] | None = None

    async def open(self) -> None:
        """Make ready what connections need; idempotent."""
        if self._bridge is not None:
            self._url = await self._bridge.open()

    async def aclose(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
        if self._origin is not None:
            await self._origin.aclose()
            self._origin = None
        if self._bridge is not None:
            await self._bridge.aclose()
            self._url = self.address.url

    # -- the control path --------------------------------------------------------------------

    def client(self, timeout_s: float = API_TIMEOUT_S) -> Client:
        """A blocking client; the caller closes it. `timeout_s` bounds the wait for each byte.

        Raises:
            OSError, one of EngineErrors: the engine cannot be reached.
        """
        if self._url.startswith("unix:"):
            # Knock first: the error of a plain connect says more than what the docker library makes of it.
            with socket.socket(socket.AF_UNIX) as knock:
                knock.settimeout(KNOCK_TIMEOUT_S)
                knock.connect(urlsplit(self._url).path)
        with closing(self._client(OLDEST_VERSION, timeout_s)) as asking:
            said = asking.version(api_version=False)
        self.is_podman = any("Podman" in str(part.get("Name")) for part in said.get("Components") or ())
        return self._client(str(said["ApiVersion"]), timeout_s)

    def _client(self, version: str, timeout_s: float) -> Client:
        tls = self._tls_config
        url = self._url if tls is None else self._url.replace("tcp://", "https://", 1)
        client = docker.APIClient(base_url=url, version=version, timeout=int(timeout_s), tls=tls or False)
        if url.startswith("unix:"):
            adapter = _UnixAdapter(url.replace("unix:", "http+unix:", 1), int(timeout_s))
            vars(client)["_custom_adapter"] = adapter  # where the library looks before it looks at what is mounted
            client.mount("http+docker://", adapter)
        # Else REQUESTS_CA_BUNDLE takes the place of the engine's own authority.
        client.trust_env = False
        return client

    async def run(self, work: Callable[[Client], T], *, timeout_s: float = API_TIMEOUT_S) -> T:
        """Blocking work with a client of its own.

        Raises:
            EngineDown: no engine answers, or it stopped answering.
            One of EngineErrors: the engine refuses, or breaks off.
        """

        def in_thread() -> T:
            try:
                client = self.client(timeout_s)
            except (*EngineErrors, OSError) as exc:
                raise EngineDown(self.without_answer(exc)) from exc
            with closing(client):
                return work(client)

        return await self.guard(in_thread)

    async def guard(self, blocking: Callable[[], T], *, shield: bool = False) -> T:
        """Blocking work on this engine in a thread, for as long as the engine answers.

        A cancelled call leaves its thread to end by itself, when the container or stream that it reads goes; with
        `shield` it is waited for, so that what it made is known.

        Raises:
            EngineDown: the engine does not answer, or no longer.
        """
        await self.check()
        with anyio.CancelScope(shield=shield) as scope:
            watch = asyncio.get_running_loop().create_task(self._watch(scope))
            try:
                done = await to_thread.run_sync(blocking, abandon_on_cancel=True)
            finally:
                watch.cancel()
            self._answered_at = asyncio.get_running_loop().time()
            return done
        raise EngineDown(self._down_reason)

    async def _watch(self, scope: anyio.CancelScope) -> None:
        """Give up on an engine that stops answering in the middle of something: a busy one still answers a ping."""
        failures = 0
        while failures < FAILURES_TO_GIVE_UP:
            await asyncio.sleep(TRUSTED_FOR_S)
            try:
                await self.check()
                failures = 0
            except EngineDown:
                failures += 1
        scope.cancel()

    @cached_property
    def _tls_config(self) -> TLSConfig | None:
        folder = self.address.certificates
        if folder is None or self._scheme != "tcp":
            return None
        pair = (str(folder / "cert.pem"), str(folder / "key.pem"))
        return TLSConfig(client_cert=pair, ca_cert=str(folder / "ca.pem"), verify=True)

    # -- the data path -----------------------------------------------------------------------

    async def dial(self, protocol: Callable[[], P]) -> tuple[asyncio.BaseTransport, P]:
        """A connection on which the engine speaks HTTP.

        Raises:
            OSError: it cannot be reached, or its certificate is not the expected one.
        """
        loop = asyncio.get_running_loop()
        await self.open()
        parts = urlsplit(self._url)
        if parts.scheme == "unix":
            return await loop.create_unix_connection(protocol, parts.path)
        port = parts.port or (PLAIN_PORT if self._ssl is None else TLS_PORT)
        return await loop.create_connection(protocol, parts.hostname or "localhost", port, ssl=self._ssl)

    @cached_property
    def _ssl(self) -> ssl.SSLContext | None:
        folder = self.address.certificates
        if folder is None or self._scheme != "tcp":
            return None
        context = ssl.create_default_context(cafile=_file(folder, "ca.pem"))
        context.load_cert_chain(_file(folder, "cert.pem"), _file(folder, "key.pem"))
        return context

    @property
    def origin(self) -> HttpOrigin:
        """Plain requests to the engine, answered on the event loop."""
        if self._origin is None:
            self._origin = HttpOrigin("http://docker", max_connections=MAX_CONNECTIONS, dial=self.dial)
        return self._origin

    # -- does it answer? ---------------------------------------------------------------------

    async def check(self) -> None:
        """Return if the engine answers; callers at the same time share one question.

        Raises:
            EngineDown: it does not, or did not a moment ago.
        """
        now = asyncio.get_running_loop().time()
        if now < self._answered_at + TRUSTED_FOR_S:
            return
        if now < self._down_until:
            raise EngineDown(self._down_reason)
        if self._asking is None or self._asking.done():
            self._asking = asyncio.get_running_loop().create_task(self._ask())
        if reason := await asyncio.shield(self._asking):
            raise EngineDown(reason)

    async def _ask(self) -> str:
        """Why the engine is down; empty if it answers."""
        limit_s = PING_TIMEOUT_S if self._bridge is None else SSH_PING_TIMEOUT_S
        loop = asyncio.get_running_loop()
        asked_at = loop.time()
        answer = Answer()
        exchange = self.origin.request("GET", "/_ping", b"Connection: close\r\n", b"", answer)
        content = loop.create_task(answer.content())
        try:
            # A second look: it may be this loop that was late and not the engine, and then the answer is there by now.
            for patience_s in (limit_s, LATE_S):
                await asyncio.wait({content}, timeout=patience_s)
            if not content.done():
                raise TimeoutError
            await content
            if answer.status != 200:
                raise HttpFailure(f"it answers HTTP {answer.status}", sent=True)
        except TimeoutError:
            exchange.abort()  # the connection may be half open: the next question gets a new one
            if self._answered_at > asked_at:
                return ""  # it is slow, but has just done something else
            reason = self.without_answer(f"no answer within {limit_s:g} s")
        except (HttpFailure, OSError) as exc:
            reason = self.without_answer(exc)
        else:
            self._answered_at = loop.time()
            return ""
        finally:
            content.cancel()
        self._down_until, self._down_reason = loop.time() + DOWN_FOR_S, reason
        self._answered_at = float("-inf")
        return reason

    def without_answer(self, reason: object) -> str:
        """The sentence for a failure, with what ssh said where it is in between."""
        said = self._bridge.said if self._bridge is not None else ""
        text = short(reason) if isinstance(reason, Exception) else str(reason)
        return f"no Docker Engine answers at {self.address}: {text}" + (f" (ssh: {said})" if said else "")


def _file(folder: Path, name: str) -> str:
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; TLS to the engine needs ca.pem, cert.pem and key.pem")
    return str(path)


async def to_its_end(making: Coroutine[Any, Any, T]) -> T:
    """What the engine made, or removed. It is not told of a cancellation: a caller that is cancelled, once or often,
    waits for its answer all the same, so that what was made is known."""
    task = asyncio.get_running_loop().create_task(making)
    cancelled: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError as exc:
                cancelled = exc
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # nobody else looks
        raise cancelled
    return task.result()


def short(exc: Exception) -> str:
    """What an engine error says, in a length fit for a message."""
    explanation = getattr(exc, "explanation", None)
    return str(explanation or exc).strip()[:500]
