"""Where a browser may be sent with a code: addresses that a client named before, to the letter (RFC 9700, RFC 8252).

Knows addresses only."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

from gateway.auth.urls import LOOPBACK

LOOPBACK_LITERALS: Final = frozenset({"127.0.0.1", "::1"})
MAX_URIS: Final = 16
MAX_URI: Final = 1024
NEVER: Final = frozenset(
    {
        "javascript",
        "data",
        "file",
        "vbscript",
        "blob",
        "about",
        "view-source",
        "filesystem",
        "ws",
        "wss",
        "ftp",
        "mailto",
    }
)
_SCHEME: Final = re.compile(r"[a-z][a-z0-9+.-]*")
_NETLOC: Final = re.compile(r"(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_PLAIN: Final = re.compile(r"[A-Za-z0-9._~:/?\[\]@!$&'()*+,;=%-]+")


def problem(uri: str) -> str | None:
    """Why a client may not name this address; None if it may."""
    if not 0 < len(uri) <= MAX_URI or not _PLAIN.fullmatch(uri):
        return "has characters that do not belong there, or is too long"
    try:
        parts = urlsplit(uri)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        return "is no URI"
    if not _SCHEME.fullmatch(parts.scheme) or parts.scheme in NEVER or not uri.startswith(parts.scheme + ":"):
        return "has a scheme that is not taken"
    if parts.scheme in ("http", "https"):
        if not host or not _NETLOC.fullmatch(parts.netloc):
            return "names no plain host"
        if parts.scheme == "http" and host not in LOOPBACK:
            return "must be https://, except on the user's own machine"
        if any(segment in (".", "..") for segment in parts.path.replace("%2e", ".").replace("%2E", ".").split("/")):
            return "has dots as a step of its path"
    return None


def matches(wanted: str, named: Iterable[str]) -> bool:
    """Whether a client named exactly this address; at an IP address of loopback any port will do."""
    if problem(wanted) is not None:
        return False
    return any(wanted == one or _portless(wanted) == _portless(one) is not None for one in named)


def _portless(uri: str) -> tuple[str, str, str] | None:
    parts = urlsplit(uri)
    if parts.scheme != "http" or parts.hostname not in LOOPBACK_LITERALS:
        return None
    host = parts.netloc.rpartition(":")[0] if parts.port is not None else parts.netloc
    return host, parts.path, parts.query


def is_loopback(uri: str) -> bool:
    return (urlsplit(uri).hostname or "") in LOOPBACK


def shown(uri: str) -> str:
    """The part of an address that a person should look at."""
    parts = urlsplit(uri)
    return parts.netloc or f"an app that opens {parts.scheme}: links"


def origin(uri: str) -> str:
    """What a Content-Security-Policy calls the place that a form leads to."""
    parts = urlsplit(uri)
    return (
        f"{parts.scheme}://{parts.netloc}" if parts.netloc and parts.scheme in ("http", "https") else f"{parts.scheme}:"
    )
