"""Where a server that is spoken to over HTTP is, and the headers that every request to it carries.

Knows URLs, entries and secrets; nothing of the transports that use them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from anyio import to_thread

from catalog import Entry
from gateway.errors import SecretsError, UpstreamUnavailable
from gateway.redaction import Redactor
from gateway.secrets import Secrets, SecretValue

_VALUE: Final = re.compile(rb"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")
"""What is one header's value whoever reads it (RFC 9110, section 5.5, without obs-text)."""


def shown(url: str) -> str:
    """The URL for people: without the query, which may hold a key."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}{parts.path}"


def target(url: str) -> str:
    """What stands in a request's first line."""
    parts = urlsplit(url)
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def head(headers: Mapping[str, str]) -> bytes:
    """The headers as they go out."""
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode()


async def fixed_headers(
    entry: Entry, secrets: Secrets, owner: str, token: SecretValue | None = None
) -> tuple[Mapping[str, str], Redactor | None]:
    """The headers of a remote entry, its secrets and the owner's token among them, and what takes these out of its
    answers.

    Raises:
        UpstreamUnavailable: a secret is missing, or no header can hold it; names it and says what to do.
    """
    try:
        found = await to_thread.run_sync(secrets.resolve, entry, owner)
        headers = dict(entry.remote.headers) if entry.remote is not None else {}
        for secret in entry.secrets:
            if secret.header is not None and secret.name in found:
                headers[secret.header] = secret.prefix + _in_header(found[secret.name])
    except (SecretsError, OSError) as exc:
        raise UpstreamUnavailable(f"server {entry.id} is not started: {exc}") from exc
    hidden = list(found.values())
    if token is not None:
        headers = {name: value for name, value in headers.items() if name.lower() != "authorization"}
        headers["Authorization"] = "Bearer " + _in_header(token)
        hidden.append(token)
    return headers, Redactor(hidden) if hidden else None


def _in_header(secret: SecretValue) -> str:
    if not _VALUE.fullmatch(secret.reveal()):
        raise SecretsError(
            f"the secret {secret.name} cannot stand in a header: it must be printable ASCII on one line, without "
            "spaces around it"
        )
    return secret.reveal().decode("ascii")
