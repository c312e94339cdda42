"""The pages on which people who signed in approve calls that wait, or refuse them.

Knows requests of browsers and what is shown; who may decide what is told in approvals.py."""

from __future__ import annotations

import time
from html import escape
from typing import Any, Final
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from gateway.approvals import Approval, Approvals, Approver
from gateway.approvaltext import visible
from gateway.audit import AuditUnwritable
from gateway.errors import DoorError
from gateway.signin import pages
from gateway.signin.accounts import Account
from gateway.signin.authorization import Form, with_form
from gateway.signin.parts import Parts

PATH: Final = "/oauth/approvals"
FORM_S: Final = 3600.0


class ApprovalPages:
    """A list, and a page for each call with the form that settles it."""

    def __init__(self, parts: Parts, approvals: Approvals) -> None:
        self._parts = parts
        self._approvals = approvals

    def routes(self) -> list[Route]:
        return [
            Route(PATH, self._list),
            Route(PATH + "/{id}", self._show),
            Route(PATH + "/{id}", self._settle, methods=["POST"]),
        ]

    async def _list(self, request: Request) -> Response:
        account = await self._parts.browsers.account(request)
        if account is None:
            return _login(PATH)
        items = "".join(map(self._item, self._approvals.waiting(_approver(account))))
        body = f"<ul>{items}</ul>" if items else "<p>No call waits for your approval.</p>"
        body += f'<p>Signed in as {escape(account.name)}. <a href="{PATH}">Look again</a></p>'
        return pages.page("Calls that wait for you", body)

    def _item(self, one: Approval) -> str:
        asked, left = one.asked, max(0, int(one.expires_at - time.time()))
        who, tool = escape(visible(asked.principal)), escape(visible(asked.name))
        return f'<li><a href="{PATH}/{one.id}">{tool} for {who}</a>, for another {left} seconds</li>'

    async def _show(self, request: Request) -> Response:
        account, id = await self._parts.browsers.account(request), request.path_params["id"]
        if account is None:
            return _login(f"{PATH}/{id}" if id.isalnum() else PATH)
        try:
            one = self._approvals.seen_by(id, _approver(account))
        except DoorError:
            return pages.problem("No such call waits for you.", 404)
        shown = self._approvals.describe(one, full="full" in request.query_params)
        if one.state != "pending":
            return pages.page("Settled", f"<p>This call is {one.state} already. {_BACK}</p>")
        data = {"session": self._parts.browsers.session_id(request), "account": account.name, "approval": one.id}
        return _question(shown, await self._parts.tickets.issue("approval", data, FORM_S))

    @with_form
    async def _settle(self, request: Request, form: Form) -> Response:
        account, id = await self._parts.browsers.account(request), request.path_params["id"]
        data = await self._parts.tickets.take("approval", form.get("ticket", ""))
        if (
            account is None
            or data is None
            or data["session"] != self._parts.browsers.session_id(request)
            or (data["account"], data["approval"]) != (account.name, id)
        ):
            return pages.problem("This form is too old, was sent before, or is not yours. Open the page again.", 403)
        if form.get("answer") not in ("approve", "deny"):
            return pages.problem("The form has no answer.")
        try:
            one = self._approvals.decide(id, form["answer"] == "approve", _approver(account))
        except DoorError as exc:
            return pages.problem(str(exc), 409)
        except AuditUnwritable:
            return pages.problem("Your answer could not be recorded, so it does not count.", 503)
        return pages.page("Settled", f"<p>The call is {one.state}. {_BACK}</p>")


_BACK: Final = f'<a href="{PATH}">Other calls that wait</a>'


def _approver(account: Account) -> Approver:
    return Approver(account.subject, "page", is_admin=account.is_admin, groups=account.groups)


def _login(following: str) -> Response:
    return RedirectResponse(f"/oauth/login?{urlencode({'next': following})}", 303)


def _question(shown: dict[str, Any], ticket: str) -> Response:
    def row(name: str, text: str) -> str:
        return f"<dt>{name}</dt><dd>{escape(visible(text))}</dd>"

    more = ""
    if shown["left_out"]:
        more = f'<p><a href="{PATH}/{shown["id"]}?full=1">Show the other {shown["left_out"]} characters</a></p>'
    rows = [
        row("Who", f"{shown['principal']} ({shown['client'] or 'no client name'})"),
        row("Tool", f"{shown['tool']} of the server {shown['server']} in the profile {shown['profile']}"),
        *(row("Why you are asked", reason) for reason in shown["reasons"]),
        f'<dt>Arguments</dt><dd><code id="arguments">{escape(shown["arguments"])}</code>{more}</dd>',
    ]
    if shown["remember_s"]:
        rows.append(row("Your yes is good for", f"this very call during {shown['remember_s']} seconds"))
    body = (
        f'<dl>{"".join(rows)}</dl><form method="post" action="{PATH}/{shown["id"]}">'
        f'<input type="hidden" name="ticket" value="{escape(ticket)}">'
        '<button class="yes" type="submit" name="answer" value="approve">Approve this call</button>'
        '<button type="submit" name="answer" value="deny">Refuse it</button></form>'
    )
    return pages.page("Approve this call?", body)
