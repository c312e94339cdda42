"""Tools that are no server: each call runs a container of its own, with one made in advance for the next.

Speaks MCP to the gateway in the place of a server (revision 2025-11-25, tools only); containers are oneshot.py's."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from catalog import CallTool, ConfigInvalid, Entry, Instance, Setting
from gateway import __version__, errors
from gateway.runtimes.oneshot import Made, Maker, Outcome, run_once
from gateway.serverlog import ServerLog
from gateway.wire import envelope
from gateway.wire.channel import Receiver, Routing
from gateway.wire.envelope import WireError
from gateway.wire.revisions import Era

REVISION: Final = "2025-11-25"
MAX_CALLS: Final = 8
"""Containers of one entry at a time; further calls wait."""
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
_SCHEMA: Final[Mapping[str, dict[str, Any]]] = {
    "string": {"type": "string"},
    "integer": {"type": "integer"},
    "number": {"type": "number"},
    "boolean": {"type": "boolean"},
    "list": {"type": "array", "items": {"type": "string"}},
}


def tool_entry(entry: Entry, tool: CallTool) -> Entry:
    """The container of one tool as an entry: what a caller gives are its settings."""
    members: dict[str, Any] = {
        "id": entry.id,
        "title": entry.title,
        "description": tool.description,
        "image": tool.image,
        "args": tool.command,
        "config": tool.parameters,
        "secrets": entry.secrets,
        "mounts": tool.mounts,
        "network": entry.network,
        "limits": entry.limits,
    }
    if isinstance(entry, Instance):
        return Instance(**members, of=entry.of, secret_names=entry.secret_names)
    return Entry(**members)


def definition(tool: CallTool) -> dict[str, Any]:
    """What a client sees of a tool: all its parameters, and which are required."""
    properties = {parameter.name: _property(parameter) for parameter in tool.parameters}
    required = [parameter.name for parameter in tool.parameters if parameter.required]
    schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return {"name": tool.name, "description": tool.description, "inputSchema": schema}


def _property(parameter: Setting) -> dict[str, Any]:
    schema = dict(_SCHEMA[parameter.type])
    if parameter.enum:
        schema["enum"] = list(parameter.enum)
    if parameter.default is not None:
        schema["default"] = parameter.default
    if parameter.example is not None:
        schema["examples"] = [parameter.example]
    return schema


class PerCallChannel:
    """Answers in the place of a server. Each call is a task; each tool without mounts has a container in reserve."""

    def __init__(self, maker: Maker, entry: Entry, receiver: Receiver, log: ServerLog, owner: str = "") -> None:
        """The containers get the secrets of `owner`'s own, where a principal is named."""
        self.detail: Mapping[str, str] = {"container": "one for each call"}
        self._maker = maker
        self._entry = entry
        self._tools = {tool.name: tool for tool in entry.per_call}
        self._receiver = receiver
        self._log = log
        self._owner = owner
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._spares: dict[str, Made] = {}
        self._making: dict[str, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(MAX_CALLS)
        self._closed = False

    # -- Channel -----------------------------------------------------------------------------

    def send(self, message: bytes, id: int | None = None, routing: Routing | None = None) -> None:
        if self._closed:
            return
        try:
            asked = envelope.value(message)
        except WireError:
            return
        method, params = asked.get("method"), asked.get("params") or {}
        if id is None:
            if method == "notifications/cancelled":
                self.abort(int(params.get("requestId") or 0))
            return
        match method:
            case "initialize":
                facts = {"name": self._entry.id, "title": self._entry.title, "version": __version__}
                answer = {"protocolVersion": REVISION, "capabilities": {"tools": {}}, "serverInfo": facts}
                self._answer(id, {"result": answer})
            case "ping":
                self._answer(id, {"result": {}})
            case "tools/list":
                self._answer(id, {"result": {"tools": [definition(tool) for tool in self._tools.values()]}})
            case "tools/call" if params.get("name") in self._tools:
                tool = self._tools[params["name"]]
                task = asyncio.get_running_loop().create_task(self._call(id, tool, params.get("arguments") or {}))
                self._calls[id] = task
                task.add_done_callback(lambda _: self._calls.pop(id, None))
            case "tools/call":
                self._answer(id, {"error": {"code": INVALID_PARAMS, "message": "unknown tool"}})
            case _:
                self._answer(id, {"error": {"code": METHOD_NOT_FOUND, "message": "method not found"}})

    def abort(self, id: int) -> bool:
        if task := self._calls.get(id):
            task.cancel()
        return True

    @property
    def is_full(self) -> bool:
        return False

    async def drain(self) -> None:
        """Calls wait for their turn in a task of their own."""

    def negotiated(self, era: Era, revision: str) -> None:
        """There is one revision."""

    async def settled(self) -> None:
        """Nothing is sent that belongs to no request."""

    async def close(self) -> None:
        self._closed = True
        tasks = [*self._calls.values(), *self._making.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        spares, self._spares = list(self._spares.values()), {}
        for spare in spares:
            try:
                await self._maker.remove(spare.name)
            except errors.UpstreamUnavailable as exc:
                self._log.write("gateway", str(exc))

    # -- calls -------------------------------------------------------------------------------

    async def _call(self, id: int, tool: CallTool, arguments: Mapping[str, object]) -> None:
        try:
            entry = tool_entry(self._entry, tool).configured(arguments)
        except ConfigInvalid as exc:
            wrong = "; ".join(problem.message.replace("setting", "argument") for problem in exc.problems)
            self._answer(id, _result(wrong, is_error=True))
            return
        try:
            async with self._slots:
                made = self._spares.pop(tool.name, None) if not tool.mounts else None
                if made is None:
                    made = await self._maker.make(entry, tool.command, self._log, self._owner)
                self._make_spare(tool)
                outcome = await run_once(self._maker, made, entry.args[len(tool.command) :], self._log)
        except errors.UpstreamError as exc:
            self._receiver.failed(id, exc)
            return
        self._answer(id, _outcome_result(outcome))

    def _make_spare(self, tool: CallTool) -> None:
        if tool.mounts or tool.name in self._spares or tool.name in self._making or self._closed:
            return
        task = asyncio.get_running_loop().create_task(self._spare(tool))
        self._making[tool.name] = task
        task.add_done_callback(lambda _: self._making.pop(tool.name, None))

    async def _spare(self, tool: CallTool) -> None:
        entry = tool_entry(self._entry, tool).model_copy(update={"config": ()})
        try:
            made = await self._maker.make(entry, tool.command, self._log, self._owner)
        except errors.UpstreamError as exc:
            self._log.write("gateway", f"no container in reserve: {exc}")
            return
        self._spares[tool.name] = made

    def _answer(self, id: int, members: Mapping[str, Any]) -> None:
        self._receiver.received(envelope.encode({"jsonrpc": "2.0", "id": id, **members}), id)


def _outcome_result(outcome: Outcome) -> dict[str, Any]:
    text = outcome.stdout.decode("utf-8", "replace")
    errors_text = outcome.stderr.decode("utf-8", "replace")
    if outcome.code != 0:
        text = "\n".join(part for part in (text, errors_text, f"exit code {outcome.code}") if part.strip())
    elif not text.strip():
        text = errors_text
    if outcome.is_cut:
        text += "\n(the rest of the output was cut)"
    return _result(text, is_error=outcome.code != 0)


def _result(text: str, *, is_error: bool) -> dict[str, Any]:
    return {"result": {"content": [{"type": "text", "text": text}], "isError": is_error}}
