"""Browsers that somebody signed in with, and the forms they were given.

Knows cookies; not pages."""

from __future__ import annotations

import hmac
import secrets
import time
from dataclasses import replace
from typing import Final

from sqlalchemy import delete, insert, select
from starlette.requests import Request
from starlette.responses import Response

from gateway.database import Database
from gateway.signin.accounts import Account, Accounts, Strength
from gateway.signin.tables import browsers
from gateway.signin.tickets import hashed

SESSION_S: Final = 12 * 3600.0


class Browsers:
    """The sessions of browsers; cookies have the prefix `__Host-` where the gateway is reached by https."""

    def __init__(self, database: Database, accounts: Accounts, *, secure: bool) -> None:
        self._database = database
        self._accounts = accounts
        self._secure = secure
        prefix = "__Host-" if secure else ""
        self._session = f"{prefix}lockgate-session"
        self._form = f"{prefix}lockgate-form"

    # -- who it is ---------------------------------------------------------------------------------

    def session_id(self, request: Request) -> str:
        """The hash of the session cookie: what forms are bound to."""
        return hashed(request.cookies.get(self._session, ""))

    async def account(self, request: Request) -> Account | None:
        """Whoever is signed in with this browser."""
        cookie = request.cookies.get(self._session, "")
        if not cookie:
            return None
        async with self._database.begin() as connection:
            row = (await connection.execute(select(browsers).where(browsers.c.hash == hashed(cookie)))).first()
        if row is None or row.expires_at <= time.time():
            return None
        account = await self._accounts.get(row.account)
        return replace(account, strength="multi") if account is not None and row.strength == "multi" else account

    async def sign_in(self, request: Request, response: Response, account: Account, strength: Strength) -> None:
        """A new session for this browser; one that it had before is over."""
        cookie, now = secrets.token_urlsafe(32), time.time()
        old = self.session_id(request)
        async with self._database.begin() as connection:
            await connection.execute(delete(browsers).where((browsers.c.hash == old) | (browsers.c.expires_at < now)))
            row = {"hash": hashed(cookie), "account": account.name, "created_at": now, "expires_at": now + SESSION_S}
            await connection.execute(insert(browsers).values(strength=strength, **row))
        self._set(response, self._session, cookie, int(SESSION_S))

    async def sign_out(self, request: Request, response: Response) -> None:
        async with self._database.begin() as connection:
            await connection.execute(delete(browsers).where(browsers.c.hash == self.session_id(request)))
        response.delete_cookie(self._session, path="/", secure=self._secure, httponly=True, samesite="lax")

    async def end_all(self, name: str) -> None:
        """Sign an account out everywhere."""
        async with self._database.begin() as connection:
            await connection.execute(delete(browsers).where(browsers.c.account == name))

    # -- forms before anybody signed in ----------------------------------------------------------------

    def form_token(self, request: Request) -> tuple[str, str]:
        """A cookie for this browser and the token that a form of it carries."""
        cookie = request.cookies.get(self._form) or secrets.token_urlsafe(32)
        return cookie, hashed(cookie)

    def keep_form(self, response: Response, cookie: str) -> None:
        self._set(response, self._form, cookie, 3600)

    def form_cookie(self, request: Request) -> str:
        return hashed(request.cookies.get(self._form, ""))

    def owns_form(self, request: Request, token: str) -> bool:
        """Whether a form that was sent is one that this browser was given."""
        cookie = request.cookies.get(self._form, "")
        return bool(cookie) and hmac.compare_digest(hashed(cookie).encode(), token.encode())

    def _set(self, response: Response, name: str, value: str, seconds: int) -> None:
        # Lax: a provider sends the browser back here from its own site; forms of other sites carry no such cookie.
        response.set_cookie(name, value, max_age=seconds, path="/", secure=self._secure, httponly=True, samesite="lax")
