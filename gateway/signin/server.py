"""The authorization server as a whole: its parts, its metadata and its routes.

Composes this package; knows no rule of its own."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gateway.administration import Administration
from gateway.approvals import Approvals
from gateway.audit import Audit
from gateway.auth.authenticator import Authenticator
from gateway.auth.configuration import Configuration
from gateway.auth.fetch import Fetcher, Reach
from gateway.auth.keys import Keys
from gateway.auth.opening import fetcher_for
from gateway.auth.resources import SCOPES, Names
from gateway.database import Database
from gateway.secrets import Secrets
from gateway.signin.accounts import Accounts
from gateway.signin.approvalpages import ApprovalPages
from gateway.signin.authorization import OFFLINE, Authorization
from gateway.signin.browsers import Browsers
from gateway.signin.clients import Clients
from gateway.signin.endpoint import DEVICE_GRANT, TokenEndpoint, answering
from gateway.signin.grants import DELEGATED_S, Grants
from gateway.signin.parts import Parts
from gateway.signin.passkeypages import PasskeyPages
from gateway.signin.passkeys import Passkeys
from gateway.signin.provider import LoginProvider, ProviderPages
from gateway.signin.signing import OwnTokens, SigningKeys
from gateway.signin.tickets import Tickets

FOLDER = "signing"
"""Below the state folder: private keys, readable by this gateway's user only."""


class AuthorizationServer:
    """Signs people in and gives clients tokens for this gateway."""

    def __init__(
        self,
        configuration: Configuration,
        names: Names,
        database: Database,
        audit: Audit,
        secrets: Secrets,
        state_dir: Path,
    ) -> None:
        folder = state_dir / FOLDER
        self._names = names
        self._configuration = configuration
        self._database = database
        self._audit = audit
        self._secrets = secrets
        self.keys = SigningKeys(folder, database)
        self.accounts = Accounts(database)
        delegated_s = configuration.login.again_after_h * 3600.0 if configuration.login else DELEGATED_S
        self.grants = Grants(database, folder / "rotation.key", delegated_s)
        self.tokens = OwnTokens(names.base, self.keys, self.grants)

    def routes(self, authenticator: Authenticator, approvals: Approvals, administration: Administration) -> list[Route]:
        """Every path of it; `authenticator` forgets tokens when their grant ends, people decide `approvals`, some of
        them as administrators."""
        configuration, names = self._configuration, self._names
        parts = Parts(
            names,
            self.accounts,
            Browsers(self._database, self.accounts, secure=names.base.startswith("https://")),
            Tickets(self._database),
            Clients(self._database, configuration, Fetcher(Reach(loopback=configuration.client_loopback))),
            self.grants,
            self.keys,
            self.tokens,
            Keys(self._database),
            authenticator,
            self._audit,
            Passkeys(self._database),
        )
        login = configuration.login
        if login is not None:
            callback = f"{names.base}/oauth/callback"
            parts.provider = LoginProvider(login, fetcher_for(login.issuer), self._secrets, callback)
        self.parts = parts
        people, programs = Authorization(parts), TokenEndpoint(parts)
        provider = ProviderPages(parts, people)
        return [
            Route("/.well-known/oauth-authorization-server", self._metadata),
            Route("/.well-known/openid-configuration", self._metadata),
            Route("/oauth/jwks", self._jwks),
            Route("/oauth/authorize", people.authorize),
            Route("/oauth/consent", people.consent, methods=["POST"]),
            Route("/oauth/login", people.login_page),
            Route("/oauth/login", people.login, methods=["POST"]),
            Route("/oauth/login/provider", provider.leave, methods=["POST"]),
            Route("/oauth/callback", provider.back),
            Route("/oauth/logout", people.logout, methods=["POST"]),
            Route("/oauth/setup", people.setup_page),
            Route("/oauth/setup", people.setup, methods=["POST"]),
            *PasskeyPages(parts, people).routes(),
            *ApprovalPages(parts, approvals, administration).routes(),
            Route("/oauth/device", people.device_page),
            Route("/oauth/device", people.device, methods=["POST"]),
            Route("/oauth/token", answering(programs.token), methods=["POST"]),
            Route("/oauth/revoke", answering(programs.revoke), methods=["POST"]),
            Route("/oauth/introspect", answering(programs.introspect), methods=["POST"]),
            Route("/oauth/register", answering(programs.register), methods=["POST"]),
            Route("/oauth/device_authorization", answering(programs.device_authorization), methods=["POST"]),
        ]

    async def _metadata(self, request: Request) -> Response:
        base = self._names.base
        methods = ["none", "client_secret_basic", "client_secret_post"]
        document = {
            "issuer": base,
            "authorization_endpoint": f"{base}/oauth/authorize",
            "token_endpoint": f"{base}/oauth/token",
            "jwks_uri": f"{base}/oauth/jwks",
            "revocation_endpoint": f"{base}/oauth/revoke",
            "introspection_endpoint": f"{base}/oauth/introspect",
            "device_authorization_endpoint": f"{base}/oauth/device_authorization",
            "scopes_supported": [*SCOPES, OFFLINE],
            "response_types_supported": ["code"],
            "response_modes_supported": ["query"],
            "grant_types_supported": ["authorization_code", "refresh_token", "client_credentials", DEVICE_GRANT],
            "token_endpoint_auth_methods_supported": methods,
            "revocation_endpoint_auth_methods_supported": methods,
            "introspection_endpoint_auth_methods_supported": methods[1:],
            "code_challenge_methods_supported": ["S256"],
            "authorization_response_iss_parameter_supported": True,
            "client_id_metadata_document_supported": True,
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        }
        if self._configuration.open_registration:
            document["registration_endpoint"] = f"{base}/oauth/register"
        return JSONResponse(document, headers={"Cache-Control": "public, max-age=300"})

    async def _jwks(self, request: Request) -> Response:
        await self.keys.current()
        keys = [key.as_dict(private=False) for key in await self.keys.public()]
        return JSONResponse({"keys": keys}, headers={"Cache-Control": "public, max-age=300"})
