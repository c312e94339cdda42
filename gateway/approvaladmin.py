"""The admin API of calls that wait for a person: list them, look at one, approve or refuse it.

Knows HTTP; who may decide what is told in approvals.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway import errors
from gateway.approvals import Approvals, Approver
from gateway.auth.guard import PRINCIPAL

LOCAL: Approver = Approver("local administrator", "command line", is_admin=True)


class ApprovalAdmin:
    """`/admin/approvals`, for whom the admin API is open at all."""

    def __init__(self, approvals: Approvals, is_local: Callable[[Request], bool]) -> None:
        """`is_local` says whether it is this machine's user who asks."""
        self._approvals = approvals
        self._is_local = is_local

    def routes(self, guarded: Callable[[Any, str, str], Any]) -> list[Route]:
        return [
            Route("/admin/approvals", guarded(self._list, "approvals", "list")),
            Route("/admin/approvals/{id}", guarded(self._show, "approvals", "show")),
            Route("/admin/approvals/{id}/{decision}", guarded(self._decide, "approvals", ""), methods=["POST"]),
        ]

    def _who(self, request: Request) -> Approver:
        if self._is_local(request):
            return LOCAL
        principal = request.scope[PRINCIPAL]  # the guard has asked for the scope `admin`
        return Approver(principal.id, "admin API", is_admin=True, groups=principal.groups)

    async def _list(self, request: Request) -> Response:
        found = self._approvals.waiting(self._who(request))
        return JSONResponse({"approvals": [self._approvals.describe(one) for one in found]})

    async def _show(self, request: Request) -> Response:
        """One of them (`?full=1` with its whole arguments)."""
        one = self._approvals.seen_by(request.path_params["id"], self._who(request))
        return JSONResponse(self._approvals.describe(one, full="full" in request.query_params))

    async def _decide(self, request: Request) -> Response:
        decision = request.path_params["decision"]
        if decision not in ("approve", "deny"):
            return JSONResponse({"error": f"{decision} is no decision; approve or deny"}, 422)
        try:
            one = self._approvals.decide(request.path_params["id"], decision == "approve", self._who(request))
        except errors.AlreadyDecided as exc:
            return JSONResponse({"error": str(exc)}, 409)
        return JSONResponse(self._approvals.describe(one))
