"""What the endpoints of the authorization server share.

Knows each part by name; composes nothing itself."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from starlette.requests import Request

from gateway.audit import Audit, AuditUnwritable, call_id, signed_in
from gateway.auth.authenticator import Authenticator
from gateway.auth.guard import MAX_RECORDS_A_MINUTE
from gateway.auth.keys import Keys
from gateway.auth.resources import Names
from gateway.signin.accounts import Accounts
from gateway.signin.browsers import Browsers
from gateway.signin.clients import Clients, Rate, Shares
from gateway.signin.grants import Grants
from gateway.signin.passkeys import Passkeys
from gateway.signin.signing import OwnTokens, SigningKeys
from gateway.signin.tickets import Tickets

if TYPE_CHECKING:
    from gateway.signin.provider import LoginProvider


PASSKEY_ASKS_A_MINUTE: Final = 120


class Refused(Exception):
    """A request of a client that is answered with an OAuth error."""

    def __init__(self, error: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.error = error
        self.message = message
        self.status = status


@dataclass
class Parts:
    """The parts of one authorization server."""

    names: Names
    accounts: Accounts
    browsers: Browsers
    tickets: Tickets
    clients: Clients
    grants: Grants
    keys: SigningKeys
    tokens: OwnTokens
    api_keys: Keys
    authenticator: Authenticator
    audit: Audit
    passkeys: Passkeys
    provider: LoginProvider | None = None
    failures: Rate = field(default_factory=lambda: Rate(MAX_RECORDS_A_MINUTE))

    passkey_asks: Shares = field(default_factory=lambda: Shares(PASSKEY_ASKS_A_MINUTE))

    @property
    def issuer(self) -> str:
        return self.names.base

    def record(self, request: Request, principal: str, what: str, *, client: str = "", failure: str = "") -> None:
        """Write down a sign-in or what belongs to it; failures of nobody known so often only: anybody causes them."""
        if failure and not (principal or client) and not self.failures.take():
            return
        peer = request.client.host if request.client else ""
        with suppress(AuditUnwritable):  # calls are refused by the door for the same reason
            self.audit.write(signed_in(call_id(), principal, what, peer, client=client[:256], failure=failure))

    async def end(self, grant: str) -> None:
        """A grant is over: now, for every token of it."""
        await self.grants.revoke(grant)
        self.authenticator.forget({f"grant:{grant}"})
