"""Servers that speak HTTP inside their container: reached through the engine, with no port published and no network.

Each connection is one `nc` of the launcher's busybox, executed in the container, whose stdin and stdout the engine
carries. So it works in a container without network, and on every engine, wherever it is.

Knows connections and readiness; the container's life is docker.py's, the transports remote.py's and old_sse.py's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol, TypeVar

from catalog import Entry
from gateway import errors
from gateway.docker_engine import DockerEngine
from gateway.runtimes import launcher
from gateway.runtimes.attach import AttachProtocol
from gateway.runtimes.http_channel import HttpChannel
from gateway.runtimes.old_sse import SseChannel
from gateway.serverlog import ServerLog
from gateway.wire import envelope
from gateway.wire.channel import Channel, Receiver, Routing
from gateway.wire.http_client import Answer, HttpFailure, HttpOrigin
from gateway.wire.revisions import Era

P = TypeVar("P", bound=asyncio.Protocol)

MAX_CONNECTIONS: Final = 16
"""Of one server: each is a process in its container, and counts against its limit of processes."""
DIAL_TIMEOUT_S: Final = 30.0
PROBE_TIMEOUT_S: Final = 5.0
FIRST_PAUSE_S: Final = 0.05
MAX_PAUSE_S: Final = 0.5
DEFAULT_PATH: Final[Mapping[str, str]] = {"http": "/mcp", "sse": "/sse"}


class Container(Protocol):
    """The container that a server runs in."""

    @property
    def detail(self) -> Mapping[str, str]: ...

    @property
    def ended(self) -> asyncio.Event: ...

    async def close(self) -> None: ...


class InsideDial:
    """Opens connections to one port of one container."""

    def __init__(self, engine: DockerEngine, container: str, port: int, log: ServerLog) -> None:
        self._engine = engine
        self._container = container
        self._command = [f"{launcher.MOUNT}/busybox", "nc", "127.0.0.1", str(port)]
        self._log = log

    async def __call__(self, factory: Callable[[], P]) -> tuple[asyncio.BaseTransport, P]:
        """
        Raises:
            OSError: the engine does not carry the connection, or nothing listens on the port.
        """
        async with asyncio.timeout(DIAL_TIMEOUT_S):
            id = await self._prepare()
            carrier = _Carrier(factory(), self._log)
            body = envelope.encode({"Detach": False, "Tty": False})
            _, stream = await self._engine.dial(lambda: AttachProtocol(f"/exec/{id}/start", carrier, body))
            try:
                await stream.upgraded
                return carrier.connect(), carrier.inner  # type: ignore[return-value]  # what the factory made
            except BaseException:
                stream.abort()
                raise

    async def _prepare(self) -> str:
        asked = {"AttachStdin": True, "AttachStdout": True, "AttachStderr": True, "Tty": False, "Cmd": self._command}
        answer = Answer()
        path, head = f"/containers/{self._container}/exec", b"Content-Type: application/json\r\n"
        exchange = self._engine.origin.request("POST", path, head, envelope.encode(asked), answer)
        try:
            content = await answer.content()
            if answer.status != 201:
                raise ConnectionError(f"the engine answered HTTP {answer.status} to exec")
            return str(envelope.value(content)["Id"])
        except (HttpFailure, envelope.WireError, KeyError) as exc:
            raise ConnectionError(f"the engine did not answer to exec: {exc}") from exc
        finally:
            exchange.abort()


class _Carrier:
    """Hands the bytes of an executed `nc` to a protocol, as if they came from a socket. Written to in the raw."""

    def __init__(self, inner: asyncio.Protocol, log: ServerLog) -> None:
        self.inner = inner
        self._log = log
        self._transport: Any = None
        self._connected = False
        self._ended = False

    def connect(self) -> asyncio.BaseTransport:
        if self._ended:
            raise ConnectionError("nothing listens on the port")
        self._connected = True
        self.inner.connection_made(self._transport)
        transport: asyncio.BaseTransport = self._transport
        return transport

    def writes_to(self, write_end: Any) -> None:
        self._transport = write_end

    def complain(self, data: bytes) -> None:
        self._log.stderr(data)

    def feed(self, data: bytes) -> None:
        self.inner.data_received(data)

    def end(self, reason: str) -> None:
        if not self._ended:
            self._ended = True
            if self._connected:
                self.inner.connection_lost(None)

    def pause(self) -> None:
        if self._connected:
            self.inner.pause_writing()

    def resume(self) -> None:
        if self._connected:
            self.inner.resume_writing()


class Lifeline:
    """The receiver of a container whose stdout is a log: tells once that the container is gone."""

    def __init__(self, receiver: Receiver, log: ServerLog) -> None:
        self._receiver = receiver
        self._log = log
        self._gone = False

    def received(self, message: bytes, id: int | None = None) -> bool:
        self._log.stderr(message + b"\n")
        return False

    def failed(self, id: int, error: errors.UpstreamError) -> None:
        """It carries no requests."""

    def waits_for(self, id: int) -> bool:
        return False

    def lost(self, reason: str) -> None:
        if not self._gone:
            self._gone = True
            self._receiver.lost(reason)


class _Inside:
    """What the HTTP channel reports, passed on; the end of its session is the end of the container's use."""

    def __init__(self, receiver: Receiver, lifeline: Lifeline) -> None:
        self.received = receiver.received
        self.failed = receiver.failed
        self.waits_for = receiver.waits_for
        self.lost = lifeline.lost


class InsideChannel:
    """One session with a server over HTTP, and the container it runs in."""

    def __init__(
        self, engine: DockerEngine, id: str, entry: Entry, container: Container, receiver: Receiver, lifeline: Lifeline,
        log: ServerLog,
    ) -> None:  # fmt: skip
        self._entry = entry
        self._container = container
        self._receiver = _Inside(receiver, lifeline)
        self._log = log
        port = entry.port or 0
        self._path = entry.path or DEFAULT_PATH[entry.transport]
        self._url = f"http://127.0.0.1:{port}{self._path}"
        self._dial = InsideDial(engine, id, port, log)
        self._http: Channel | None = None

    @property
    def detail(self) -> Mapping[str, str]:
        return {**self._container.detail, "transport": self._entry.transport}

    async def open(self) -> None:
        """Wait until the server answers HTTP, then begin a session. The caller bounds the wait, and closes.

        Raises:
            UpstreamUnavailable: the container ended before, or the server names no session.
        """
        origin = self._origin()
        try:
            pause_s = FIRST_PAUSE_S
            while not await self._answers(origin):
                if self._container.ended.is_set():
                    raise errors.UpstreamUnavailable(f"it ended before it listened on port {self._entry.port}")
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, MAX_PAUSE_S)
        finally:
            await origin.aclose()
        if self._entry.transport == "sse":
            channel = SseChannel(self._url, {}, self._receiver, self._log, self._origin())
            self._http = channel
            await channel.connect()
        else:
            self._http = HttpChannel(self._url, {}, self._receiver, self._log, self._origin())

    def _origin(self) -> HttpOrigin:
        return HttpOrigin(self._url, max_connections=MAX_CONNECTIONS, dial=self._dial)

    async def _answers(self, origin: HttpOrigin) -> bool:
        """Whether anything at all comes back; OPTIONS begins no session, and any status says that the server is up."""
        answer = Answer()
        exchange = origin.request("OPTIONS", self._path, b"", b"", answer)
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                await answer.content()
        except (HttpFailure, TimeoutError):
            return False
        finally:
            exchange.abort()
        return True

    # -- Channel -----------------------------------------------------------------------------

    def send(self, message: bytes, id: int | None = None, routing: Routing | None = None) -> None:
        if self._http is not None:
            self._http.send(message, id, routing)

    def abort(self, id: int) -> bool:
        return self._http is not None and self._http.abort(id)

    @property
    def is_full(self) -> bool:
        return self._http is not None and self._http.is_full

    async def drain(self) -> None:
        if self._http is not None:
            await self._http.drain()

    def negotiated(self, era: Era, revision: str) -> None:
        if self._http is not None:
            self._http.negotiated(era, revision)

    async def settled(self) -> None:
        if self._http is not None:
            await self._http.settled()

    async def abandon(self) -> None:
        """End the session without the container."""
        http, self._http = self._http, None
        if http is not None:
            await http.close()

    async def close(self) -> None:
        await self.abandon()
        await self._container.close()
