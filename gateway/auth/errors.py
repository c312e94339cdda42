"""Why a credential does not open what it was shown for.

Knows the words of RFC 6750; their form on the wire is the guard's.

    AuthError (a GatewayError)
    ├── BadCredential        unknown, expired, revoked, for somebody else, or not a token at all: 401
    └── IssuerUnreachable    the provider's keys cannot be had now: 503
"""

from __future__ import annotations

from gateway.errors import GatewayError


class AuthError(GatewayError):
    """A credential was not accepted. The message is for the operator's audit; callers learn less."""


class BadCredential(AuthError):
    """The credential opens nothing here; the client gets another one."""


class IssuerUnreachable(AuthError):
    """The keys of a token's issuer cannot be fetched now; trying later may help."""
