"""The agent clients that can be connected: where each keeps its MCP servers, by platform and scope.

Knows paths; what is written there is entries.py, how is configuration.py. Paths follow each client's documentation."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from gateway.connect.entries import (
    Entry,
    command_entry,
    goose_entry,
    opencode_entry,
    plain_url,
    typed_url,
    url_under,
    zed_entry,
)
from gateway.errors import SettingsError

Platform = Literal["linux", "macos", "windows"]
Scope = Literal["user", "project"]
Format = Literal["json", "yaml", "toml"]


@dataclass(frozen=True)
class Place:
    """A configuration file and where its list of servers stands in it."""

    file: Path
    format: Format
    path: tuple[str, ...]
    """Member names down to the servers, keyed by name; to a list of named servers where `listed`."""
    listed: bool = False


@dataclass(frozen=True)
class Client:
    """One agent client."""

    id: str
    title: str
    entry: Entry
    """What it wants written for this gateway."""
    path: tuple[str, ...] = ("mcpServers",)
    format: Format = "json"
    listed: bool = False
    linux: str = ""
    macos: str = ""
    windows: str = ""
    """Files of the user, with `~`, `$APPDATA` or `$LOCALAPPDATA` in front; empty means the same as on Linux."""
    variable: str = ""
    """An environment variable that names another folder for the user's file."""
    others: tuple[str, ...] = ()
    """Older places, used where they exist and the usual one does not."""
    project: str = ""
    """File in a project's folder; empty if the client has none."""
    project_path: tuple[str, ...] = field(default=())
    hint: str = "Restart it, or reload its MCP servers, to see the change."

    def place(self, scope: Scope, platform: Platform, environ: Mapping[str, str], folder: Path) -> Place:
        """Where this client keeps its servers. `folder` is the project's folder for that scope.

        Raises:
            SettingsError: this client has no such scope, or its folder cannot be known.
        """
        if scope == "project":
            if not self.project:
                raise SettingsError(f"{self.title} has no configuration file in projects; leave out --project")
            return Place(folder / self.project, self.format, self.project_path or self.path, self.listed)
        return Place(self._user_file(platform, environ), self.format, self.path, self.listed)

    def _user_file(self, platform: Platform, environ: Mapping[str, str]) -> Path:
        named = {"linux": self.linux, "macos": self.macos, "windows": self.windows}[platform] or self.linux
        if self.variable and (other := environ.get(self.variable)):
            return Path(other) / named.rpartition("/")[2]
        usual = _expanded(named, platform, environ)
        olds = (_expanded(old, platform, environ) for old in self.others)
        return usual if usual.exists() else next((old for old in olds if old.exists()), usual)


def _expanded(named: str, platform: Platform, environ: Mapping[str, str]) -> Path:
    first, _, rest = named.partition("/")
    home = environ.get("USERPROFILE" if platform == "windows" else "HOME", "")
    match first:
        case "~":
            base = home
        case "$CONFIG":
            base = environ.get("XDG_CONFIG_HOME") or (f"{home}/.config" if home else "")
        case "$APPDATA" | "$LOCALAPPDATA":
            base = environ.get(first[1:], "")
        case _:
            raise ValueError(f"{named} begins with no known folder")
    if not base:
        raise SettingsError(f"the folder of {named} is not known: {first} is not set")
    return Path(base) / rest


def this_platform() -> Platform:
    match sys.platform:
        case "darwin":
            return "macos"
        case "win32":
            return "windows"
        case _:
            return "linux"


def find_client(id: str) -> Client:
    """The client of that id.

    Raises:
        SettingsError: unknown, with a suggestion.
    """
    for client in CLIENTS:
        if client.id == id:
            return client
    near = difflib.get_close_matches(id, [client.id for client in CLIENTS], n=1)
    hint = f"; did you mean {near[0]}?" if near else "; see: lockgate client list"
    raise SettingsError(f"unknown client {id!r}{hint}")


_VSCODE_STORAGE: Final = "Code/User/globalStorage/saoudrizwan.claude-dev/settings/cline_mcp_settings.json"

CLIENTS: Final = (
    Client(
        "amazon-q",
        "Amazon Q Developer",
        command_entry,
        linux="~/.aws/amazonq/mcp.json",
        project=".amazonq/mcp.json",
    ),
    Client(
        "claude-code",
        "Claude Code",
        typed_url("http"),
        linux="~/.claude.json",
        variable="CLAUDE_CONFIG_DIR",
        project=".mcp.json",
        hint="Start a new session, then /mcp shows it.",
    ),
    Client(
        "claude-desktop",
        "Claude Desktop",
        command_entry,
        linux="$CONFIG/Claude/claude_desktop_config.json",
        macos="~/Library/Application Support/Claude/claude_desktop_config.json",
        windows="$APPDATA/Claude/claude_desktop_config.json",
    ),
    Client(
        "cline",
        "Cline",
        typed_url("streamableHttp"),
        linux=f"$CONFIG/{_VSCODE_STORAGE}",
        macos=f"~/Library/Application Support/{_VSCODE_STORAGE}",
        windows=f"$APPDATA/{_VSCODE_STORAGE}",
    ),
    Client(
        "codex",
        "Codex",
        plain_url,
        path=("mcp_servers",),
        format="toml",
        linux="~/.codex/config.toml",
        variable="CODEX_HOME",
        project=".codex/config.toml",
    ),
    Client(
        "continue",
        "Continue",
        typed_url("streamable-http"),
        format="yaml",
        listed=True,
        linux="~/.continue/config.yaml",
    ),
    Client(
        "crush",
        "Crush",
        typed_url("http"),
        path=("mcp",),
        linux="$CONFIG/crush/crush.json",
        windows="$LOCALAPPDATA/crush/crush.json",
        project=".crush.json",
    ),
    Client(
        "cursor",
        "Cursor",
        plain_url,
        linux="~/.cursor/mcp.json",
        project=".cursor/mcp.json",
    ),
    Client(
        "gemini",
        "Gemini CLI",
        url_under("httpUrl"),
        linux="~/.gemini/settings.json",
        project=".gemini/settings.json",
    ),
    Client(
        "goose",
        "Goose",
        goose_entry,
        path=("extensions",),
        format="yaml",
        linux="$CONFIG/goose/config.yaml",
        macos="~/.config/goose/config.yaml",
        windows="$APPDATA/Block/goose/config/config.yaml",
    ),
    Client(
        "kiro",
        "Kiro",
        plain_url,
        linux="~/.kiro/settings/mcp.json",
        project=".kiro/settings/mcp.json",
    ),
    Client(
        "lm-studio",
        "LM Studio",
        plain_url,
        linux="~/.lmstudio/mcp.json",
        others=("~/.cache/lm-studio/mcp.json",),
    ),
    Client(
        "opencode",
        "OpenCode",
        opencode_entry,
        path=("mcp",),
        linux="$CONFIG/opencode/opencode.json",
        macos="~/.config/opencode/opencode.json",
        windows="~/.config/opencode/opencode.json",
        project="opencode.json",
    ),
    Client(
        "vscode",
        "VS Code",
        typed_url("http"),
        path=("servers",),
        linux="$CONFIG/Code/User/mcp.json",
        macos="~/Library/Application Support/Code/User/mcp.json",
        windows="$APPDATA/Code/User/mcp.json",
        project=".vscode/mcp.json",
    ),
    Client(
        "windsurf",
        "Windsurf",
        url_under("serverUrl"),
        linux="~/.codeium/windsurf/mcp_config.json",
    ),
    Client(
        "zed",
        "Zed",
        zed_entry,
        path=("context_servers",),
        linux="$CONFIG/zed/settings.json",
        macos="~/.config/zed/settings.json",
        windows="$APPDATA/Zed/settings.json",
        project=".zed/settings.json",
    ),
)
"""In the order in which they are listed."""
