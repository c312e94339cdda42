"""Discovery: which authorization server a remote server trusts, and what that one offers.

Knows RFC 9728 and RFC 8414 and in which order addresses are tried; keeps nothing. Whatever is named by a document is
checked before it is used: issuers and resources are compared as plain strings, endpoints must be https."""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import msgspec

from catalog.reference import is_loopback
from gateway.auth.fetch import Fetcher, FetchRefused
from gateway.errors import CredentialMissing

PRM: Final = "/.well-known/oauth-protected-resource"
AS: Final = "/.well-known/oauth-authorization-server"
OIDC: Final = "/.well-known/openid-configuration"
MAX_SERVERS: Final = 4
_PARAMETER: Final = re.compile(r'([a-zA-Z_]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')


class Challenge(NamedTuple):
    """What a `WWW-Authenticate: Bearer` header says."""

    error: str = ""
    scope: tuple[str, ...] = ()
    metadata: str = ""


class Resource(NamedTuple):
    """A protected resource: its own name, whom it trusts, and the scopes it knows."""

    resource: str
    issuers: tuple[str, ...]
    scopes: tuple[str, ...]


class Authority(NamedTuple):
    """An authorization server."""

    issuer: str
    authorize: str
    token: str
    register: str
    revoke: str
    methods: tuple[str, ...]
    """How a client may prove itself at the token endpoint."""
    says_issuer: bool
    """It promises `iss` in its answers (RFC 9207)."""
    scopes: tuple[str, ...]


def challenge(header: str) -> Challenge:
    """The first Bearer challenge of a header."""
    kind, _, rest = header.strip().partition(" ")
    if kind.lower() != "bearer":
        return Challenge()
    found = {name.lower(): quoted or plain for name, quoted, plain in _PARAMETER.findall(rest)}
    return Challenge(found.get("error", ""), tuple(found.get("scope", "").split()), found.get("resource_metadata", ""))


async def protected_resource(fetcher: Fetcher, url: str, named: str) -> Resource:
    """What the server at `url` says of itself: where its challenge `named`, below its path, at its root.

    Raises:
        CredentialMissing: there is no such document, or it is of another server.
    """
    parts = urlsplit(url)
    origin, path = f"{parts.scheme}://{parts.netloc}", parts.path.rstrip("/")
    for address in dict.fromkeys(filter(None, (named, f"{origin}{PRM}{path}", f"{origin}{PRM}"))):
        found = await _document(fetcher, address)
        if found is None:
            continue
        resource = _text(found, "resource")
        if not _covers(resource, url):
            raise CredentialMissing(f"{parts.netloc} says that it is another server ({resource[:200]}), so no sign-in")
        issuers = _texts(found, "authorization_servers")[:MAX_SERVERS]
        return Resource(resource, issuers or (origin,), _texts(found, "scopes_supported"))
    return Resource(url, (origin,), ())


def _covers(resource: str, url: str) -> bool:
    """Whether a resource's name is the server's own address, or a folder in it."""
    if resource == url:
        return True
    name, own = urlsplit(resource), urlsplit(url)
    if (name.scheme, name.netloc) != (own.scheme, own.netloc) or name.query or name.fragment:
        return False
    folder = name.path.rstrip("/")
    return own.path == folder or own.path.startswith(folder + "/")


async def authority(fetcher: Fetcher, issuer: str) -> Authority:
    """
    Raises:
        CredentialMissing: it has no metadata, is another one than it says, or lacks PKCE.
    """
    _secure(issuer, "the authorization server")
    parts = urlsplit(issuer)
    origin, path = f"{parts.scheme}://{parts.netloc}", parts.path.rstrip("/")
    addresses = [f"{origin}{AS}{path}", f"{origin}{OIDC}{path}"] + ([f"{origin}{path}{OIDC}"] if path else [])
    for address in addresses:
        found = await _document(fetcher, address)
        if found is None:
            continue
        if found.get("issuer") != issuer:
            raise CredentialMissing(f"{parts.netloc} says that it is another authorization server, so no sign-in")
        if "S256" not in _texts(found, "code_challenge_methods_supported"):
            raise CredentialMissing(f"{parts.netloc} does not say that it knows PKCE with S256, so no sign-in")
        made = Authority(
            issuer,
            _text(found, "authorization_endpoint"),
            _text(found, "token_endpoint"),
            _text(found, "registration_endpoint"),
            _text(found, "revocation_endpoint"),
            _texts(found, "token_endpoint_auth_methods_supported"),
            found.get("authorization_response_iss_parameter_supported") is True,
            _texts(found, "scopes_supported"),
        )
        for endpoint in (made.authorize, made.token):
            _secure(endpoint, f"an endpoint of {parts.netloc}")
        for endpoint in filter(None, (made.register, made.revoke)):
            _secure(endpoint, f"an endpoint of {parts.netloc}")
        return made
    raise CredentialMissing(f"{parts.netloc} has no metadata of an authorization server")


def _secure(url: str, what: str) -> None:
    """https, or http on this machine; nothing that a browser or a shell would take for something else."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise CredentialMissing(f"the address of {what} is not a plain https URL, so no sign-in") from None
    host = parts.hostname or ""
    loopback = is_loopback(host)
    strange = any(ord(c) <= 32 or ord(c) > 126 or c in "\\\"'<>`{}|^" for c in url)
    if not host or strange or parts.username is not None or parts.fragment or (
        parts.scheme != "https" and not (parts.scheme == "http" and loopback)
    ):  # fmt: skip
        raise CredentialMissing(f"the address of {what} is not a plain https URL, so no sign-in")


async def _document(fetcher: Fetcher, url: str) -> dict[str, Any] | None:
    """The JSON object there; None if there is none.

    Raises:
        CredentialMissing: the address must not be reached, or does not answer.
    """
    try:
        document = await fetcher.get(url)
        if document.status != 200:
            return None
        found = msgspec.json.decode(document.body)
    except FetchRefused as exc:
        if "not JSON" in str(exc):
            return None
        raise CredentialMissing(f"no sign-in: {exc}") from exc
    except msgspec.DecodeError:
        return None
    return found if isinstance(found, dict) else None


def _text(found: dict[str, Any], name: str) -> str:
    value = found.get(name, "")
    return value if isinstance(value, str) else ""


def _texts(found: dict[str, Any], name: str) -> tuple[str, ...]:
    value = found.get(name)
    return tuple(one for one in value if isinstance(one, str)) if isinstance(value, list) else ()
