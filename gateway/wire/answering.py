"""A channel whose other end is this process: it answers in the place of a server that has tools and nothing else.

Knows the revision of sessions; what the tools do is a subclass's."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any, Final

from gateway import __version__
from gateway.wire import envelope
from gateway.wire.channel import Receiver, Routing
from gateway.wire.envelope import WireError
from gateway.wire.revisions import Era

REVISION: Final = "2025-11-25"


class AnsweringChannel:
    """Each call is a task of its own, in the context of whoever sent it."""

    is_full = False

    def __init__(
        self, receiver: Receiver, info: Mapping[str, str], definitions: Iterable[Mapping[str, Any]], **detail: str
    ) -> None:
        """`info` is what the server says of itself, without its version; `definitions` are its tools as MCP lists
        them."""
        self.detail: Mapping[str, str] = detail
        self._receiver = receiver
        self._info = {**info, "version": __version__}
        self._definitions = {str(one["name"]): one for one in definitions}
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._closed = False

    async def _call(self, id: int, tool: str, params: Mapping[str, Any]) -> None:
        """Carry out a call of one of the tools and answer it; cancelled when nobody waits any more."""
        raise NotImplementedError

    def _answer(self, id: int, outcome: Mapping[str, Any]) -> None:
        self._tell({"id": id, **outcome}, id)

    def _refuse(self, id: int, code: int, message: str) -> None:
        self._answer(id, {"error": {"code": code, "message": message}})

    def _tell(self, message: Mapping[str, Any], id: int | None = None) -> None:
        if not self._closed:
            self._receiver.received(envelope.encode({"jsonrpc": "2.0", **message}), id)

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
                facts = {"protocolVersion": REVISION, "capabilities": {"tools": {}}, "serverInfo": self._info}
                self._answer(id, {"result": facts})
            case "ping":
                self._answer(id, {"result": {}})
            case "tools/list":
                self._answer(id, {"result": {"tools": list(self._definitions.values())}})
            case "tools/call" if params.get("name") in self._definitions:
                task = asyncio.get_running_loop().create_task(self._call(id, params["name"], params))
                self._calls[id] = task
                task.add_done_callback(lambda _: self._calls.pop(id, None))
            case "tools/call":
                self._refuse(id, envelope.INVALID_PARAMS, f"Unknown tool: {params.get('name')}")
            case _:
                self._refuse(id, envelope.METHOD_NOT_FOUND, f"Method not found: {method}")

    def abort(self, id: int) -> bool:
        if task := self._calls.get(id):
            task.cancel()
        return True

    async def drain(self) -> None:
        """Nothing is ever queued: calls wait for their turn in tasks of their own."""

    def negotiated(self, era: Era, revision: str) -> None:
        """There is one revision."""

    async def settled(self) -> None:
        """Nothing is sent that belongs to no request."""

    async def close(self) -> None:
        self._closed = True
        await self._end(self._calls.values())

    @staticmethod
    async def _end(tasks: Iterable[asyncio.Task[None]]) -> None:
        ending = list(tasks)
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
