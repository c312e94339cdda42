"""What each client wants written for one MCP server: at an address, or as a command to start.

Knows shapes only, no files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

EXTENSION_TIMEOUT_S: Final = 300
"""What Goose writes for an extension by itself."""


@dataclass(frozen=True)
class Target:
    """How this gateway is reached: its name in the client's list, its address, and the command that joins it."""

    name: str
    url: str
    command: str
    args: tuple[str, ...]


Entry = Callable[[Target], dict[str, Any]]


def command_entry(target: Target) -> dict[str, Any]:
    """For clients that start their servers: `lockgate stdio` joins the running gateway."""
    return {"command": target.command, "args": list(target.args)}


def plain_url(target: Target) -> dict[str, Any]:
    return {"url": target.url}


def url_under(key: str) -> Entry:
    """An address under a name of the client's own."""
    return lambda target: {key: target.url}


def typed_url(type: str) -> Entry:
    """An address with the client's own word for Streamable HTTP."""
    return lambda target: {"type": type, "url": target.url}


def zed_entry(target: Target) -> dict[str, Any]:
    return {"source": "custom", "enabled": True, **command_entry(target)}


def opencode_entry(target: Target) -> dict[str, Any]:
    return {"type": "remote", "url": target.url, "enabled": True}


def goose_entry(target: Target) -> dict[str, Any]:
    return {
        "type": "streamable_http",
        "name": target.name,
        "description": "Lockgate",
        "uri": target.url,
        "enabled": True,
        "timeout": EXTENSION_TIMEOUT_S,
    }
