"""Servers that are part of the gateway: spoken to like any other, so that policy, audit and tasks hold for them, too.

Knows whose call it is; what a tool does is its own module's."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Protocol

from catalog import Entry
from gateway import errors
from gateway.serverlog import ServerLog
from gateway.wire import envelope
from gateway.wire.answering import AnsweringChannel
from gateway.wire.channel import Receiver

if TYPE_CHECKING:
    from gateway.caller import Caller

_log: Final = logging.getLogger(__name__)

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


class InnerChannel(AnsweringChannel):
    """A session with one of them."""

    def __init__(self, tools: Sequence[InnerTool], receiver: Receiver) -> None:
        super().__init__(receiver, {"name": "lockgate"}, (tool.definition for tool in tools))
        self._tools = {str(tool.definition["name"]): tool for tool in tools}

    async def _call(self, id: int, tool: str, params: Mapping[str, Any]) -> None:
        caller = calling.get(None)
        if caller is None:
            self._refuse(id, envelope.INVALID_PARAMS, "nobody calls")
            return
        token = (params.get("_meta") or {}).get("progressToken")

        def progress(done: float, total: float | None, text: str) -> None:
            if token is not None:
                known = {} if total is None else {"total": total}
                told = {"progressToken": token, "progress": done, "message": text, **known}
                self._tell({"method": "notifications/progress", "params": told})

        try:
            result = await self._tools[tool].call(caller, params.get("arguments") or {}, progress)
        except ToolArgumentsInvalid as exc:
            self._refuse(id, envelope.INVALID_PARAMS, str(exc))
        except Exception as exc:  # noqa: BLE001  # outermost border of a call: whoever waits gets an answer
            _log.exception("built-in tool %s: internal error", tool)
            self._refuse(id, envelope.INTERNAL_ERROR, f"internal error: {type(exc).__name__}")
        else:
            self._answer(id, {"result": result})
