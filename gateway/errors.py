"""Errors of the gateway room, one tree.

Knows no transport: the wire decides how each looks to a client.

    GatewayError
    ├── SettingsError          the operator's settings are wrong
    │   └── PoliciesUnusable       the policy files cannot be read, or break rules; the operator fixes them
    ├── SecretsError           a secret is missing or must not be used; the operator fixes it
    ├── DatabaseError          the database cannot be opened, or is of a newer version
    ├── MountRefused           a folder of this machine may not be shown to a server
    ├── DoorError              the caller asked for something it cannot have
    │   ├── UnknownName        no such tool, prompt or resource for this caller (absent and denied look alike)
    │   ├── BadCursor          a pagination cursor that this gateway did not issue
    │   ├── Denied             a visible tool, refused by policy
    │   └── AlreadyDecided     a call that waited for a person does so no more
    ├── LimitReached           a quota of tokens has no room; the caller waits, or asks for less
    ├── UpstreamError          a server behind the gateway misbehaved
    │   ├── UpstreamUnavailable    it could not be started or reached; nothing was sent
    │   │   ├── CredentialMissing      a secret or a sign-in is lacking; whoever has it sets it
    │   │   │   └── TokenRefused           a remote server wants another token than it was given
    │   │   ├── AtCapacity             as many servers run as may; the operator raises the limit, or the caller waits
    │   │   └── RuntimeDown            what starts servers does not answer (the Docker Engine)
    │   ├── UpstreamLost           the connection ended with the request in flight
    │   ├── UpstreamTimeout        no answer within the deadline
    │   ├── UpstreamCancelled      the caller withdrew the request
    │   └── UpstreamInvalid        it answered something that is not MCP
    │       └── UpstreamRefused    it answered a request of the gateway's own with an error
    ├── EngineDown             the Docker Engine does not answer
    ├── ImageError             an image could be neither found, pulled nor built
    │   └── ImageRefused           it could be had, but must not run: unsigned, or not the one that was pinned
    └── PackageError           a package could not be installed
"""

from __future__ import annotations


class GatewayError(Exception):
    """Anything this room reports on purpose."""


class SettingsError(GatewayError):
    """A setting is wrong; the operator fixes it."""


class PoliciesUnusable(SettingsError):
    """The policy files cannot be read or break rules; the operator fixes them, and until then nothing changes."""


class DatabaseError(GatewayError):
    """The database cannot be opened, or was written by a newer version."""


class SecretsError(GatewayError):
    """A secret is missing or must not be used; the operator fixes it."""


class MountRefused(GatewayError):
    """A folder of this machine may not be shown to a server; the operator approves one or names another."""


class DoorError(GatewayError):
    """The caller asked for something it cannot have."""


class UnknownName(DoorError):
    """No such tool, prompt or resource for this caller."""


class BadCursor(DoorError):
    """The pagination cursor was not issued by this gateway."""


class Denied(DoorError):
    """Policy refuses a call whose tool the caller may see."""


class AlreadyDecided(DoorError):
    """The call was approved or refused by somebody else, or waits no more."""


class LimitReached(GatewayError):
    """A quota of tokens has no room for a request, which the model did not see."""

    def __init__(self, limit: str, wait_s: int, n: int, *, is_never: bool) -> None:
        """
        Args:
            n: the tokens that the request may use.
            is_never: they are more than the whole quota.
        """
        smaller = "name a smaller max_tokens or send less text"
        what = f"; {smaller}" if is_never else f"; {smaller}, or try again in {wait_s} seconds"
        super().__init__(f"The limit {limit} has no room for the up to {n} tokens of this request{what}")
        self.limit = limit
        self.wait_s = wait_s


class UpstreamError(GatewayError):
    """A server behind the gateway misbehaved. `retry` tells the caller whether trying again is safe."""

    retry = "A retry may repeat side effects."


class UpstreamUnavailable(UpstreamError):
    """The server could not be started or reached; the request was not sent."""

    retry = "The request was not sent: a retry is safe."


class CredentialMissing(UpstreamUnavailable):
    """The server needs a secret or a sign-in that is not there yet; it is not the server's failure."""


class TokenRefused(CredentialMissing):
    """A remote server wants a token, another one, or one with more rights; `challenge` is what it says of it."""

    def __init__(self, message: str, challenge: str) -> None:
        super().__init__(message)
        self.challenge = challenge


class AtCapacity(UpstreamUnavailable):
    """As many servers run as may, and all are in use; it is nobody's fault."""


class RuntimeDown(UpstreamUnavailable):
    """What starts servers does not answer; the server itself may be well."""


class UpstreamLost(UpstreamError):
    """The connection ended while the request was in flight."""

    retry = "It is unknown whether the request was carried out: a retry may repeat side effects."


class UpstreamTimeout(UpstreamError):
    """No answer within the deadline; the server was told to stop."""

    retry = "It is unknown whether the request was carried out: a retry may repeat side effects."


class UpstreamCancelled(UpstreamError):
    """The caller withdrew the request."""

    retry = "The request was cancelled by the caller."


class UpstreamInvalid(UpstreamError):
    """The server answered something that is not MCP."""

    retry = "A retry is unlikely to help."


class UpstreamRefused(UpstreamInvalid):
    """The server answered a request of the gateway's own with an error: its JSON-RPC code, and its data as JSON."""

    def __init__(self, message: str, code: int, data: bytes = b"") -> None:
        super().__init__(message)
        self.code = code
        self.data = data


class EngineDown(GatewayError):
    """The Docker Engine does not answer; start it, or look at the address in use."""


class ImageError(GatewayError):
    """An image could be neither found, pulled nor built."""


class ImageRefused(ImageError):
    """The image could be had, but must not run: its signature or its pinned digest does not fit."""


class PackageError(GatewayError):
    """A package could not be installed."""
