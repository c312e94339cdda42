"""What a credential can be for: each endpoint by its own URL (RFC 8707), and the scope that opens it.

Knows paths and names of this gateway; no credential."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

PROFILES: Final = "mcp"
MODEL: Final = "model"
ADMIN: Final = "admin"
SCOPES: Final = (PROFILES, MODEL, ADMIN)
"""`mcp` opens the MCP endpoints, `model` the API of the local model, `admin` the admin API."""
SCOPE_TEXTS: Final = {
    PROFILES: "Use the tools, prompts and resources of this gateway as you",
    MODEL: "Use the local language model",
    ADMIN: "Control this gateway: its servers, its catalogue, its reviews",
}
METADATA: Final = "/.well-known/oauth-protected-resource"
OPEN: Final = frozenset({"/healthz"})
OPEN_BELOW: Final = ("/.well-known/", "/oauth/", "/connect/")
"""Paths that ask for no bearer token: what tells how to sign in, and the pages where that is done."""
MODEL_BELOW: Final = ("/v1/", "/engines/", "/api/")
MODEL_PATHS: Final = frozenset({"/rerank", "/tokenize", "/detokenize"})
"""Where the APIs of the local model answer; all of them are one resource."""
_PROFILE: Final = re.compile(r"/mcp|/p/[A-Za-z0-9._-]{1,64}/mcp")


@dataclass(frozen=True, slots=True)
class Resource:
    """One thing to be protected: its path, under each name of this gateway, and the scope it asks for."""

    path: str
    scope: str


def resource_at(path: str) -> Resource | None:
    """The resource that a request's path belongs to; None for what is open to everybody. Unknown paths are not."""
    path = path.removesuffix("\n")  # the router takes the path before a last line break for the same
    if path in OPEN or path.startswith(OPEN_BELOW):
        return None
    if path == "/v1" or path.startswith(MODEL_BELOW) or path in MODEL_PATHS:
        return Resource("/v1", MODEL)
    if path == "/admin" or path.startswith("/admin/"):
        return Resource("/admin", ADMIN)
    return Resource(path if _PROFILE.fullmatch(path) else "/mcp", PROFILES)


def resource_named(path: str) -> Resource | None:
    """The resource whose own path this is, as clients name it; None if there is none of that name."""
    if _PROFILE.fullmatch(path):
        return Resource(path, PROFILES)
    return {"/v1": Resource("/v1", MODEL), "/admin": Resource("/admin", ADMIN)}.get(path)


class Names:
    """The names this gateway answers to. The first one is what it calls itself: its issuer and the root of its URLs."""

    def __init__(self, base: str, others: tuple[str, ...] = ()) -> None:
        """
        Args:
            base: `https://gateway.example`, without a path.
        """
        self.base = base
        self.bases = (base, *others)
        self._by_host = {urlsplit(one).netloc.lower().encode(): one for one in self.bases}

    def under(self, host: bytes) -> str:
        """The base by which a request came, from its Host header; its main one where it names none of ours."""
        return self._by_host.get(host.lower(), self.base)

    def audiences(self, resource: Resource) -> frozenset[str]:
        """What a token for this resource may be addressed to: its URL under each name, to the letter."""
        return frozenset(base + resource.path for base in self.bases)

    def resource_for(self, url: str) -> Resource | None:
        """The resource that a client means by a URL (RFC 8707); None if it is not exactly one of ours."""
        for base in self.bases:
            if url.startswith(base + "/"):
                return resource_named(url.removeprefix(base))
        return None


def loopback_names(port: int, scheme: str = "http") -> tuple[str, ...]:
    """What a gateway on loopback may be called by its clients."""
    return tuple(f"{scheme}://{host}:{port}" for host in ("127.0.0.1", "localhost", "[::1]"))
