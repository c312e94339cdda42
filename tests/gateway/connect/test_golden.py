"""Each client's own file, before and after: golden files that were compared with the client's documentation by hand."""

from pathlib import Path

import pytest

from gateway.connect import CLIENTS, Client, Configuration, Place, Platform, Target, find_client
from gateway.connect.jsonc import get
from gateway.errors import SettingsError

GOLDEN = Path(__file__).parent / "golden"
TARGET = Target("lockgate", "http://127.0.0.1:8811/mcp", "/opt/lockgate/bin/lockgate", ("stdio",))
ENVIRON = {
    "linux": {"HOME": "/home/ada"},
    "macos": {"HOME": "/Users/ada"},
    "windows": {
        "USERPROFILE": "C:/Users/ada",
        "APPDATA": "C:/Users/ada/AppData/Roaming",
        "LOCALAPPDATA": "C:/Users/ada/AppData/Local",
    },
}
PLACES: dict[str, tuple[str, str, str]] = {
    "amazon-q": ("~/.aws/amazonq/mcp.json",) * 3,
    "claude-code": ("~/.claude.json",) * 3,
    "claude-desktop": (
        "~/.config/Claude/claude_desktop_config.json",
        "~/Library/Application Support/Claude/claude_desktop_config.json",
        "~/AppData/Roaming/Claude/claude_desktop_config.json",
    ),
    "cline": (
        "~/.config/Code/User/globalStorage/saoudrizwan.claude-dev/settings/cline_mcp_settings.json",
        "~/Library/Application Support/Code/User/globalStorage/saoudrizwan.claude-dev/settings/cline_mcp_settings.json",
        "~/AppData/Roaming/Code/User/globalStorage/saoudrizwan.claude-dev/settings/cline_mcp_settings.json",
    ),
    "codex": ("~/.codex/config.toml",) * 3,
    "continue": ("~/.continue/config.yaml",) * 3,
    "crush": ("~/.config/crush/crush.json", "~/.config/crush/crush.json", "~/AppData/Local/crush/crush.json"),
    "cursor": ("~/.cursor/mcp.json",) * 3,
    "gemini": ("~/.gemini/settings.json",) * 3,
    "goose": (
        "~/.config/goose/config.yaml",
        "~/.config/goose/config.yaml",
        "~/AppData/Roaming/Block/goose/config/config.yaml",
    ),
    "kiro": ("~/.kiro/settings/mcp.json",) * 3,
    "lm-studio": ("~/.lmstudio/mcp.json",) * 3,
    "opencode": ("~/.config/opencode/opencode.json",) * 3,
    "vscode": (
        "~/.config/Code/User/mcp.json",
        "~/Library/Application Support/Code/User/mcp.json",
        "~/AppData/Roaming/Code/User/mcp.json",
    ),
    "windsurf": ("~/.codeium/windsurf/mcp_config.json",) * 3,
    "zed": ("~/.config/zed/settings.json", "~/.config/zed/settings.json", "~/AppData/Roaming/Zed/settings.json"),
}
"""Linux, macOS, Windows."""
PROJECTS = {
    "amazon-q": ".amazonq/mcp.json",
    "claude-code": ".mcp.json",
    "codex": ".codex/config.toml",
    "crush": ".crush.json",
    "cursor": ".cursor/mcp.json",
    "gemini": ".gemini/settings.json",
    "kiro": ".kiro/settings/mcp.json",
    "opencode": "opencode.json",
    "vscode": ".vscode/mcp.json",
    "zed": ".zed/settings.json",
}

every_client = pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.id)


def place_of(client: Client, file: Path) -> Place:
    return Place(file, client.format, client.path, client.listed)


def golden(client: Client, state: str) -> Path:
    (found,) = GOLDEN.glob(f"{client.id}.{state}.*")
    return found


@every_client
def test_connecting_adds_the_entry_and_touches_nothing_else(client: Client) -> None:
    change = Configuration(place_of(client, golden(client, "before"))).put("lockgate", client.entry(TARGET))
    assert change.after == golden(client, "connected").read_text()


@every_client
def test_connecting_twice_changes_nothing(client: Client) -> None:
    connected = Configuration(place_of(client, golden(client, "connected")))
    assert not connected.put("lockgate", client.entry(TARGET)).needed


@every_client
def test_disconnecting_restores_the_file(client: Client) -> None:
    change = Configuration(place_of(client, golden(client, "connected"))).remove("lockgate")
    before = golden(client, "before").read_text()
    if client.id in ("claude-desktop", "crush"):
        # These had no list of servers at all; an empty one stays.
        assert get(change.after, client.path) == {}
        assert Configuration(place_of(client, golden(client, "before"))).remove("lockgate").after == before
    else:
        assert change.after == before


@every_client
def test_disconnecting_what_was_never_connected_changes_nothing(client: Client) -> None:
    assert not Configuration(place_of(client, golden(client, "before"))).remove("lockgate").needed


@every_client
def test_a_new_address_replaces_the_old_one_in_its_place(client: Client) -> None:
    moved = Target("lockgate", "http://127.0.0.1:9999/mcp", "/elsewhere/lockgate", ("stdio",))
    change = Configuration(place_of(client, golden(client, "connected"))).put("lockgate", client.entry(moved))
    old = golden(client, "connected").read_text()
    expected = old.replace(":8811", ":9999").replace("/opt/lockgate/bin/lockgate", "/elsewhere/lockgate")
    assert change.after == expected


@every_client
def test_a_client_without_a_file_gets_one(client: Client, tmp_path: Path) -> None:
    file = tmp_path / "new" / f"config.{client.format}"
    configuration = Configuration(place_of(client, file))
    change = configuration.put("lockgate", client.entry(TARGET))
    assert change.before is None
    assert change.write() is None
    assert Configuration(place_of(client, file)).get("lockgate") == client.entry(TARGET)
    assert file.stat().st_mode & 0o777 == 0o600


@every_client
@pytest.mark.parametrize("platform", ["linux", "macos", "windows"])
def test_each_client_is_looked_for_where_it_keeps_its_servers(
    client: Client, platform: Platform, tmp_path: Path
) -> None:
    environ = ENVIRON[platform]
    home = environ.get("HOME") or environ["USERPROFILE"]
    expected = PLACES[client.id][("linux", "macos", "windows").index(platform)].replace("~", home)
    assert client.place("user", platform, environ, tmp_path).file == Path(expected)


@every_client
def test_projects_have_files_of_their_own(client: Client, tmp_path: Path) -> None:
    if client.id in PROJECTS:
        assert client.place("project", "linux", {}, tmp_path).file == tmp_path / PROJECTS[client.id]
    else:
        with pytest.raises(SettingsError, match="no configuration file in projects"):
            client.place("project", "linux", {}, tmp_path)


def test_variables_and_older_folders_are_followed(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path), "CLAUDE_CONFIG_DIR": "/elsewhere", "XDG_CONFIG_HOME": "/xdg"}
    assert find_client("claude-code").place("user", "linux", environ, tmp_path).file == Path("/elsewhere/.claude.json")
    assert find_client("zed").place("user", "linux", environ, tmp_path).file == Path("/xdg/zed/settings.json")
    old = tmp_path / ".cache/lm-studio/mcp.json"
    old.parent.mkdir(parents=True)
    old.write_text("{}")
    assert find_client("lm-studio").place("user", "linux", environ, tmp_path).file == old


def test_a_home_that_is_not_known_is_said(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="APPDATA is not set"):
        find_client("claude-desktop").place("user", "windows", {"USERPROFILE": "C:/Users/ada"}, tmp_path)


def test_an_unknown_client_is_refused_with_a_suggestion() -> None:
    with pytest.raises(SettingsError, match="did you mean cursor"):
        find_client("curser")
