"""A client of the gateway's own endpoint, for the command line: the running gateway, or one started for the moment.

Knows the endpoint like any client does; nothing here reaches a server except through the door."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import msgspec
from anyio import CancelScope, move_on_after
from msgspec import Raw

from gateway import errors
from gateway.chatstream import GatewayRefused, stream_chat
from gateway.running import Running, find_running, own_tls
from gateway.runtimes.http_channel import HttpChannel
from gateway.serverlog import ServerLog
from gateway.settings import Settings
from gateway.upstream import Notice, Reply, Upstream
from gateway.wire import envelope
from gateway.wire.http_client import Answer, HttpFailure, HttpOrigin

if TYPE_CHECKING:
    from engine.transcript import Header
    from gateway.tally import Tally

END_TIMEOUT_S: Final = 10.0
CALL_TIMEOUT_S: Final = 2100.0
"""Longer than any server's own deadline, which the gateway keeps, and than building an image for a first call."""


class NoSuchName(errors.SettingsError):
    """The gateway has no server or profile of this name; its message suggests one."""


class GatewayClient:
    """One MCP session with the gateway, and its HTTP APIs."""

    def __init__(
        self, running: Running, upstream: Upstream, channel: HttpChannel, origin: HttpOrigin, profile: str = ""
    ) -> None:
        """`profile` is the one of the session, if not the default one."""
        self.running = running
        self._upstream = upstream
        self._channel = channel
        self._origin = origin
        self._profile = profile

    async def list_tools(self) -> list[dict[str, Any]]:
        """Every tool of the profile, as MCP tool objects."""
        return [envelope.value(raw) for raw in await self._upstream.list_all("tools/list", "tools")]

    async def call_tool(
        self,
        name: str,
        arguments: dict[str, Any],
        on_progress: Callable[[Notice], Awaitable[None]] | None = None,
    ) -> dict[str, Any]:
        """The tool's result object.

        Raises:
            GatewayRefused: no such tool, or a malformed request.
            UpstreamError: the gateway went away.
        """
        members = {"name": envelope.raw(name), "arguments": envelope.raw(arguments)}
        if on_progress is not None:
            members["_meta"] = Raw(b'{"progressToken":1}')
        call = await self._upstream.start("tools/call", members)
        try:
            while not isinstance(item := await call.next(), Reply):
                if isinstance(item, Notice) and on_progress is not None:
                    await on_progress(item)
        finally:
            self._upstream.cancel(call, "the user stopped it")
        if item.result is None:
            raise GatewayRefused(str(envelope.value(item.error or b"{}").get("message", "refused")))
        result: dict[str, Any] = envelope.value(item.result)
        return result

    async def admin(self, method: str, path: str, content: dict[str, Any] | None = None) -> dict[str, Any]:
        """One admin request, with a JSON object as its body where there is one.

        Raises:
            NoSuchName: the path names a server or profile that is not there.
            GatewayRefused: the gateway says no, and why.
        """
        return await self.api(method, f"/admin{path}", content)

    async def api(self, method: str, path: str, content: dict[str, Any] | None = None) -> dict[str, Any]:
        """One request to an API whose errors are texts: the admin's, or Ollama's of the models. Raises: as `admin`."""
        answer = Answer()
        headers = f"Authorization: Bearer {self.running.admin_token}\r\nContent-Type: application/json\r\n".encode()
        given = b"" if content is None else msgspec.json.encode(content)
        self._origin.request(method, path, headers, given, answer)
        try:
            body: dict[str, Any] = envelope.value(await answer.content())
        except HttpFailure as exc:
            raise GatewayRefused(f"the gateway does not answer: {exc}") from exc
        except envelope.WireError:
            body = {}  # an answer that is not the admin API's own: its status says what there is to say
        if answer.status != 200:
            refusal = NoSuchName if answer.status == 404 else GatewayRefused
            raise refusal(str(body.get("error", f"HTTP {answer.status}")))
        return body

    @asynccontextmanager
    async def agent_run(self, header: Header, tally: Tally) -> AsyncIterator[None]:
        """Tell the gateway that an agent's run begins here, and how it ended, as the tally has it then.

        Raises:
            GatewayRefused: policy says no, or it cannot be recorded.
        """
        said = {"run": header.run, "task": header.task, "model": header.model, "agent": header.agent}
        await self.admin("POST", "/agents/runs", {**said, "profile": self._profile})
        try:
            yield
        finally:
            with CancelScope(shield=True), move_on_after(END_TIMEOUT_S):
                await self.admin("POST", f"/agents/runs/{quote(header.run, safe='')}/end", vars(tally))

    def chat(self, request: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        """Stream chat.completion.chunk objects from the gateway's model; closing the iterator cancels.

        Raises:
            GatewayRefused: the model's error.
        """
        token = f"Authorization: Bearer {self.running.admin_token}\r\n".encode()
        return stream_chat(self._origin, "/v1/chat/completions", token, request)


@asynccontextmanager
async def gateway_client(settings: Settings, profile: str | None = None) -> AsyncIterator[GatewayClient]:
    """A session with the running gateway of this state folder; if there is none, with one that lives as long as this.

    Raises:
        NoSuchName: it has no such profile.
        GatewayError: it cannot be started or does not answer.
    """
    running = find_running(settings)
    if running is not None:
        async with _session(running, profile, own_tls(settings)) as client:
            yield client
        return
    from gateway.gateway import Gateway  # a whole gateway takes a second to import
    from gateway.serving import served

    async with (
        Gateway(replace(settings, port=0)) as gateway,
        served(gateway) as service,
        _session(service.running, profile, own_tls(settings)) as client,
    ):
        yield client


@asynccontextmanager
async def _session(running: Running, profile: str | None, tls: ssl.SSLContext | None) -> AsyncIterator[GatewayClient]:
    log = ServerLog()
    upstream = Upstream("gateway", log, call_timeout_s=CALL_TIMEOUT_S, on_notification=_ignore)
    path = f"/p/{quote(profile, safe='')}/mcp" if profile else "/mcp"
    fixed = {"Authorization": f"Bearer {running.admin_token}"}
    channel = HttpChannel(running.url + path, fixed, upstream, log, HttpOrigin(running.url, tls=tls))
    origin = HttpOrigin(running.url, tls=tls)
    client = GatewayClient(running, upstream, channel, origin, profile or "")
    try:
        if profile:
            await client.admin("GET", f"/servers?profile={quote(profile, safe='')}")
        await upstream.open(channel)
        yield client
    finally:
        await channel.close()
        await origin.aclose()


def _ignore(upstream: Upstream, method: str, params: bytes) -> None:
    """The command line shows no logs or list changes."""
