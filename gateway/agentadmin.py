"""The HTTP API by which `lockgate agent run` says that a run begins and ends.

Knows HTTP; whether it may, and what is recorded, is told in agentuse.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from engine.transcript import Header
from gateway.agentuse import AgentUses
from gateway.caller import SOURCE, Caller
from gateway.gateway import Gateway
from gateway.tally import Tally
from policies import Principal

CLIENT = "lockgate agent run"


class Begin(msgspec.Struct, forbid_unknown_fields=True):
    run: str
    task: str
    model: str
    agent: str = ""
    profile: str = ""


class End(msgspec.Struct, forbid_unknown_fields=True):
    steps: int = 0
    calls: int = 0
    tokens: int = 0
    stopped: str = "cancelled"


class AgentAdmin:
    """`/admin/agents/runs`, for whom the admin API is open at all; the caller's policy decides."""

    def __init__(self, gateway: Gateway, uses: AgentUses, who: Callable[[Request], Principal]) -> None:
        self._gateway = gateway
        self._uses = uses
        self._who = who

    def routes(self, guarded: Callable[[Any, str], Any]) -> list[Route]:
        return [
            Route("/admin/agents/runs", guarded(self._begin, ""), methods=["POST"]),
            Route("/admin/agents/runs/{run}/end", guarded(self._end, ""), methods=["POST"]),
        ]

    async def _begin(self, request: Request) -> Response:
        try:
            given = msgspec.json.decode(await request.body(), type=Begin)
        except msgspec.DecodeError as exc:
            return JSONResponse({"error": str(exc)}, 422)
        profile = self._gateway.catalog.profile(given.profile) if given.profile else self._gateway.profile
        caller = Caller(self._who(request), profile, CLIENT)
        SOURCE.set(request.client.host if request.client is not None else "")
        self._uses.announce(
            caller, Header(given.run, 0.0, given.task, given.model, profile.name, budget={}, agent=given.agent)
        )
        return JSONResponse({"run": given.run})

    async def _end(self, request: Request) -> Response:
        try:
            given = msgspec.json.decode(await request.body(), type=End)
        except msgspec.DecodeError as exc:
            return JSONResponse({"error": str(exc)}, 422)
        tally = Tally()
        tally.steps, tally.calls, tally.tokens, tally.stopped = given.steps, given.calls, given.tokens, given.stopped
        self._uses.ended(request.path_params["run"], tally)
        return JSONResponse({"run": request.path_params["run"]})
