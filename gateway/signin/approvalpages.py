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

from gateway.administration import Act, Administration, AdministrationDenied
from gateway.approvals import Approval, Approvals, Approver
from gateway.approvaltext import visible
from gateway.audit import AuditUnwritable
from gateway.errors import DoorError
from gateway.signin import pages
from gateway.signin.accounts import Account
from gateway.signin.authorization import Form, with_form
from gateway.signin.parts import Parts
from policies import Principal

PATH: Final = "/oauth/approvals"
FORM_S: Final = 3600.0


class ApprovalPages:
    """A list, and a page for each call with the form that settles it."""

    def __init__(self, parts: Parts, approvals: Approvals, administration: Administration) -> None:
        self._parts = parts
        self._approvals = approvals
        self._administration = administration

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
        items = "".join(map(self._item, self._approvals.waiting(self._approver(request, account, "list"))))
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
            one = self._approvals.seen_by(id, self._approver(request, account, "show", id))
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
            one = self._decide(request, account, form["answer"], id)
        except (DoorError, AdministrationDenied) as exc:
            return pages.problem(str(exc), 409)
        except AuditUnwritable:
            return pages.problem("Your answer could not be recorded, so it does not count.", 503)
        return pages.page("Settled", f"<p>The call is {one.state}. {_BACK}</p>")

    def _decide(self, request: Request, account: Account, answer: str, id: str) -> Approval:
        """Their answer; that of an administrator is an act of administration, unless it is theirs to give anyway."""
        plain, yes = _approver(account, is_admin=False), answer == "approve"
        one = self._approvals.find(id)
        if not account.is_admin or (one is not None and self._approvals.may_decide(one, plain)):
            return self._approvals.decide(id, yes, plain)
        act = self._act(answer, id)
        with self._administration.act(_principal(account), act, _source(request), "browser"):
            return self._approvals.decide(id, yes, _approver(account, is_admin=True))

    def _approver(self, request: Request, account: Account, verb: str, id: str = "") -> Approver:
        act = self._act(verb, id, changes=False)
        is_admin = account.is_admin and self._administration.allows(_principal(account), act, _source(request))
        return _approver(account, is_admin=is_admin)

    def _act(self, verb: str, id: str, *, changes: bool = True) -> Act:
        one = self._approvals.find(id)
        return Act("approvals", verb, changes, one.asked.server if one is not None else "", item=id[:MAX_ID_CHARS])


MAX_ID_CHARS: Final = 64
_BACK: Final = f'<a href="{PATH}">Other calls that wait</a>'


def _approver(account: Account, *, is_admin: bool) -> Approver:
    return Approver(account.subject, "page", is_admin=is_admin, groups=account.groups)


def _principal(account: Account) -> Principal:
    return Principal(account.subject, "user", account.groups, strength=account.strength)


def _source(request: Request) -> str:
    return request.client.host if request.client is not None else ""


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
