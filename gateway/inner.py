"""Servers that are part of the gateway: spoken to like any other, so that policy, audit and tasks hold for them, too.

Knows the revision of sessions and one kind of item, tools; what a tool does is its own module's."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from catalog import Entry
from gateway import __version__, errors
from gateway.serverlog import ServerLog
from gateway.wire.channel import Receiver, Routing
from gateway.wire.revisions import Era

if TYPE_CHECKING:
    from gateway.caller import Caller

_log: Final = logging.getLogger(__name__)

REVISION: Final = "2025-11-25"
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603

calling: ContextVar[Caller] = ContextVar("calling")
"""Whose call is being carried; the door says so before it asks an upstream, and only servers in here look."""

Progress = Callable[[float, float | None, str], None]
"""How far a call is: steps done, steps in all if known, and what is being done."""


class InnerTool(Protocol):
    """A tool of the gateway's own."""

    @property
    def definition(self) -> Mapping[str, Any]:
        """As MCP lists it."""

    async def call(self, caller: Caller, arguments: Mapping[str, Any], progress: Progress) -> Mapping[str, Any]:
        """The result as MCP has it; with the rights of `caller` and no others. Cancelled when nobody waits any more.

        Raises:
            ToolArgumentsInvalid: they do not fit the definition.
        """


class ToolArgumentsInvalid(errors.GatewayError):
    """Arguments that do not fit a tool's definition; the message says which."""


class InnerRuntime:
    """Starts servers of the gateway's own, by the name in an entry's `built_in`."""

    name = "built in"

    def __init__(self, servers: Mapping[str, Sequence[InnerTool]]) -> None:
        self._servers = servers

    async def prepare(self, entry: Entry, log: ServerLog) -> None:
        """They are there."""

    async def start(self, entry: Entry, receiver: Receiver, log: ServerLog, owner: str = "") -> InnerChannel:
        return InnerChannel(self._servers[entry.built_in or ""], receiver)

    async def aclose(self) -> None:
        """Each channel ends its own calls."""


class InnerChannel:
    """A session with one of them. Each call is a task of its own."""

    is_full = False

    def __init__(self, tools: Sequence[InnerTool], receiver: Receiver) -> None:
        self._tools = {str(tool.definition["name"]): tool for tool in tools}
        self._receiver: Receiver | None = receiver
        self._calls: dict[int, asyncio.Task[None]] = {}

    @property
    def detail(self) -> Mapping[str, str]:
        return {}

    def send(self, message: bytes, id: int | None = None, routing: Routing | None = None) -> None:
        asked: dict[str, Any] = msgspec.json.decode(message)
        method, params = asked.get("method"), asked.get("params") or {}
        if id is None:
            if method == "notifications/cancelled" and params.get("requestId") in self._calls:
                self._calls[params["requestId"]].cancel()
            return
        match method:
            case "initialize":
                self._reply(id, {"result": _facts()})
            case "ping":
                self._reply(id, {"result": {}})
            case "tools/list":
                self._reply(id, {"result": {"tools": [dict(tool.definition) for tool in self._tools.values()]}})
            case "tools/call" if params.get("name") in self._tools:
                caller = calling.get(None)
                if caller is None:
                    self._reply(id, _error(INVALID_PARAMS, "nobody calls"))
                    return
                task = asyncio.ensure_future(self._call(id, self._tools[params["name"]], caller, params))
                self._calls[id] = task
                task.add_done_callback(lambda _: self._calls.pop(id, None))
            case "tools/call":
                self._reply(id, _error(INVALID_PARAMS, f"Unknown tool: {params.get('name')}"))
            case _:
                self._reply(id, _error(METHOD_NOT_FOUND, f"Method not found: {method}"))

    async def _call(self, id: int, tool: InnerTool, caller: Caller, params: Mapping[str, Any]) -> None:
        token = (params.get("_meta") or {}).get("progressToken")

        def progress(done: float, total: float | None, text: str) -> None:
            if token is not None:
                known = {} if total is None else {"total": total}
                told = {"progressToken": token, "progress": done, "message": text, **known}
                self._deliver({"method": "notifications/progress", "params": told}, None)

        try:
            result = await tool.call(caller, params.get("arguments") or {}, progress)
        except ToolArgumentsInvalid as exc:
            self._deliver({"id": id, **_error(INVALID_PARAMS, str(exc))}, id)
        except Exception as exc:  # noqa: BLE001  # outermost border of a call: whoever waits gets an answer
            _log.exception("built-in tool %s: internal error", params.get("name"))
            self._deliver({"id": id, **_error(INTERNAL_ERROR, f"internal error: {type(exc).__name__}")}, id)
        else:
            self._deliver({"id": id, "result": result}, id)

    def _reply(self, id: int, outcome: Mapping[str, Any]) -> None:
        """After whoever asks has finished asking."""
        asyncio.get_running_loop().call_soon(self._deliver, {"id": id, **outcome}, id)

    def _deliver(self, message: Mapping[str, Any], id: int | None) -> None:
        if self._receiver is not None:
            self._receiver.received(msgspec.json.encode({"jsonrpc": "2.0", **message}), id)

    def abort(self, id: int) -> bool:
        return False

    async def drain(self) -> None:
        """Nothing is ever queued."""

    def negotiated(self, era: Era, revision: str) -> None:
        """There is only one."""

    async def settled(self) -> None:
        """It says nothing unasked."""

    async def close(self) -> None:
        self._receiver = None
        tasks = list(self._calls.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _facts() -> dict[str, Any]:
    return {
        "protocolVersion": REVISION,
        "capabilities": {"tools": {}},
        "serverInfo": {"name": "lockgate", "version": __version__},
    }


def _error(code: int, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message}}
