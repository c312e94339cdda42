"""Which URLs may carry credentials or say whom to trust.

Knows their form only."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


def check_url(url: str) -> str:
    """https, or http on this machine; nothing that two readers could read differently."""
    parts = urlsplit(url)
    if (
        not parts.hostname
        or parts.scheme not in ("https", "http")
        or (parts.scheme == "http" and parts.hostname not in LOOPBACK)
        or parts.username is not None
        or parts.query
        or parts.fragment
        or not url.isascii()
        or any(c in url for c in "\\ \t\r\n")
    ):
        raise ValueError("must be an https:// URL without user, query or fragment (http:// only on this machine)")
    _ = parts.port  # a port that is none raises ValueError
    return url
