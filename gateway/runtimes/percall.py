"""Tools that are no server: each call runs a container of its own, with one made in advance for the next.

Speaks MCP to the gateway in the place of a server; containers are oneshot.py's."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from catalog import CallTool, ConfigInvalid, Entry, Instance, Setting
from gateway import errors
from gateway.runtimes.oneshot import Made, Maker, Outcome, run_once
from gateway.serverlog import ServerLog
from gateway.wire.answering import AnsweringChannel
from gateway.wire.channel import Receiver

MAX_CALLS: Final = 8
"""Containers of one entry at a time; further calls wait."""
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


class PerCallChannel(AnsweringChannel):
    """Each tool without mounts has a container in reserve."""

    def __init__(self, maker: Maker, entry: Entry, receiver: Receiver, log: ServerLog, owner: str = "") -> None:
        """The containers get the secrets of `owner`'s own, where a principal is named."""
        info = {"name": entry.id, "title": entry.title}
        super().__init__(receiver, info, map(definition, entry.per_call), container="one for each call")
        self._maker = maker
        self._entry = entry
        self._tools = {tool.name: tool for tool in entry.per_call}
        self._log = log
        self._owner = owner
        self._spares: dict[str, Made] = {}
        self._making: dict[str, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(MAX_CALLS)

    async def close(self) -> None:
        self._closed = True
        await self._end([*self._calls.values(), *self._making.values()])
        spares, self._spares = list(self._spares.values()), {}
        for spare in spares:
            try:
                await self._maker.remove(spare.name)
            except errors.UpstreamUnavailable as exc:
                self._log.write("gateway", str(exc))

    # -- calls -------------------------------------------------------------------------------

    async def _call(self, id: int, tool: str, params: Mapping[str, Any]) -> None:
        called = self._tools[tool]
        try:
            entry = tool_entry(self._entry, called).configured(params.get("arguments") or {})
        except ConfigInvalid as exc:
            wrong = "; ".join(problem.message.replace("setting", "argument") for problem in exc.problems)
            self._answer(id, _result(wrong, is_error=True))
            return
        try:
            async with self._slots:
                made = self._spares.pop(called.name, None) if not called.mounts else None
                if made is None:
                    made = await self._maker.make(entry, called.command, self._log, self._owner)
                self._make_spare(called)
                outcome = await run_once(self._maker, made, entry.args[len(called.command) :], self._log)
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
