"""Telling the foreign formats apart, and reading the text of each.

Does not know what the members mean: one module for each format does.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from catalog.errors import Problem
from catalog.imports import clients, docker, profile, registry
from catalog.imports.document import Imported, NoPackages, Packages, Unreadable
from catalog.yamltext import parse_plain

MAX_BYTES: Final = 32 * 1024 * 1024

_NOBODY: Final = NoPackages()
Reader = Callable[[Mapping[str, Any], Imported, Packages], None]
FORMATS: Final[Mapping[str, Reader]] = {
    "docker": docker.read,
    "docker-profile": profile.read,
    "registry": registry.read,
    "clients": clients.read,
}


def import_text(text: str, *, format: str | None = None, packages: Packages = _NOBODY) -> Imported:
    """Read a document of another program.

    Args:
        text: the whole document, JSON or YAML.
        format: a name in FORMATS; None finds out by the document's members.
        packages: asked for what the document does not say.

    Raises:
        Unreadable: it is neither, or of an unknown format.
    """
    root = _parsed(text)
    if not isinstance(root, dict):
        raise _unreadable("is a list or a single value; expected an object with servers")
    name = format or _format_of(root)
    if name is None:
        raise _unreadable(
            "is none of: a Docker MCP catalogue (registry:), a Docker MCP profile (servers: with type), "
            "a server.json of the MCP registry (packages or remotes), a client's mcpServers or servers"
        )
    imported = Imported()
    FORMATS[name](root, imported, packages)
    return imported


def _format_of(root: Mapping[str, Any]) -> str | None:
    servers = root.get("servers")
    if isinstance(root.get("registry"), dict):
        return "docker"
    if isinstance(root.get("packages"), list) or isinstance(root.get("remotes"), list) or "server" in root:
        return "registry"
    if isinstance(servers, list):
        first = servers[0] if servers else {}
        return "docker-profile" if isinstance(first, dict) and "type" in first else "registry"
    if isinstance(root.get("mcpServers"), dict) or isinstance(servers, dict):
        return "clients"
    return None


def _parsed(text: str) -> Any:
    if len(text.encode(errors="surrogatepass")) > MAX_BYTES:
        raise _unreadable(f"is larger than {MAX_BYTES} bytes")
    text = text.removeprefix("\ufeff")
    if text.lstrip()[:1] == "{":
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            pass  # YAML may begin so too, and clients allow comments
    try:
        return parse_plain(text)
    except ValueError as exc:
        raise _unreadable(str(exc)) from exc


def _unreadable(message: str) -> Unreadable:
    return Unreadable([Problem(None, None, None, f"the document {message}")])
