"""Qualified names: `server__tool`, at most 64 characters, injective, and stable when servers are added.

Knows no server and no listing: a name depends on nothing but the server id and the item's own name or URI."""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Final

SEPARATOR: Final = "__"
MAX_NAME_CHARS: Final = 64
"""The shortest limit among model APIs; MCP itself advises 128 (server/tools, "Tool Names")."""
HASH_MARK: Final = "--"
HASH_CHARS: Final = 12
"""60 bits: enough that two names of one server do not meet."""
URI_SCHEME: Final = "lockgate://"
VIEW_SCHEME: Final = "ui://"
"""Of MCP Apps; hosts take nothing else for a view, so these URIs keep it."""
VIEW_PREFIX: Final = "ui://lockgate/"

_PLAIN: Final = re.compile(r"[A-Za-z0-9_-]+")
_HASHED: Final = re.compile(rf"{HASH_MARK}[a-z2-7]{{{HASH_CHARS}}}$")
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_-]")


def qualify(server: str, name: str) -> str:
    """The name under which clients see `name` of `server`.

    Server ids contain no `__` and do not end in `_` (the catalog refuses those), so the first `__` always ends the
    server id. Names with other characters, names that are too long, and names that look like a shortened one, get a
    hash at the end, which keeps the mapping injective.
    """
    prefix = server + SEPARATOR
    if len(prefix) + len(name) <= MAX_NAME_CHARS and _PLAIN.fullmatch(name) and not _HASHED.search(name):
        return prefix + name
    return prefix + _shortened(name, MAX_NAME_CHARS - len(prefix))


def plain(name: str) -> str:
    """The name clients see in a profile with a single server and plain names: changed only where it must be."""
    if len(name) <= MAX_NAME_CHARS and _PLAIN.fullmatch(name) and not _HASHED.search(name):
        return name
    return _shortened(name, MAX_NAME_CHARS)


def _shortened(name: str, room: int) -> str:
    digest = base64.b32encode(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()).decode().lower()
    tail = HASH_MARK + digest[:HASH_CHARS]
    return _UNSAFE.sub("_", name)[: room - len(tail)] + tail


def wrap_uri(server: str, uri: str) -> str:
    """A resource URI or URI template as clients see it: `lockgate://SERVER/ORIGINAL`, and `ui://lockgate/SERVER/REST`
    for `ui://REST`."""
    if uri.startswith(VIEW_SCHEME) and uri != VIEW_SCHEME:
        return f"{VIEW_PREFIX}{server}/{uri[len(VIEW_SCHEME) :]}"
    return f"{URI_SCHEME}{server}/{uri}"


def unwrap_uri(uri: str) -> tuple[str, str] | None:
    """The server and original URI behind a wrapped one; None for any other URI."""
    for prefix, scheme in ((URI_SCHEME, ""), (VIEW_PREFIX, VIEW_SCHEME)):
        if uri.startswith(prefix):
            server, slash, original = uri[len(prefix) :].partition("/")
            return (server, scheme + original) if slash and server and original else None
    return None


def owner(name: str) -> str:
    """The server id in a qualified name or wrapped URI; empty if it is neither."""
    if (unwrapped := unwrap_uri(name)) is not None:
        return unwrapped[0]
    server, separator, _ = name.partition(SEPARATOR)
    return server if separator else ""
