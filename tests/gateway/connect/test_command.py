"""`lockgate client` as a user meets it: in a home folder with real files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

LOCKGATE = Path(sys.executable).with_name("lockgate")


def client(home: Path, *args: str, code: int = 0) -> str:
    environ = {"PATH": f"{LOCKGATE.parent}:{os.environ['PATH']}", "HOME": str(home)}
    done = subprocess.run(
        [LOCKGATE, "client", *args], env=environ, cwd=home, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if code == 0 else done.stderr


@pytest.fixture
def cursor(tmp_path: Path) -> Path:
    file = tmp_path / ".cursor" / "mcp.json"
    file.parent.mkdir()
    file.write_text('{\n  // mine\n  "mcpServers": {}\n}\n')
    file.chmod(0o640)
    return file


def test_connect_and_disconnect_leave_the_file_as_it_was(tmp_path: Path, cursor: Path) -> None:
    before = cursor.read_text()
    said = client(tmp_path, "connect", "cursor")
    assert "Cursor is connected as 'lockgate'" in said
    assert str(cursor) in said
    assert '"url": "http://127.0.0.1:8811/mcp"' in cursor.read_text()
    assert cursor.with_name("mcp.json.lockgate-backup").read_text() == before
    assert cursor.stat().st_mode & 0o777 == 0o640
    assert "nothing to change" in client(tmp_path, "connect", "cursor")
    client(tmp_path, "disconnect", "cursor")
    assert cursor.read_text() == before
    assert "nothing to change" in client(tmp_path, "disconnect", "cursor")


def test_a_dry_run_shows_the_change_and_makes_none(tmp_path: Path, cursor: Path) -> None:
    before = cursor.read_text()
    said = client(tmp_path, "connect", "--dry-run", "cursor", "codex")
    assert '+      "url": "http://127.0.0.1:8811/mcp"' in said
    assert "+[mcp_servers.lockgate]" in said
    assert cursor.read_text() == before
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".cursor", "mcp.json"]


def test_list_says_what_is_connected(tmp_path: Path, cursor: Path) -> None:
    rows = {row["client"]: row for row in json.loads(client(tmp_path, "list", "--json"))}
    assert len(rows) == 16
    assert rows["cursor"]["state"] == "not connected"
    assert rows["zed"]["state"] == "not found here"
    assert "lockgate client connect" in client(tmp_path, "list")
    client(tmp_path, "connect", "cursor", "--profile", "starter")
    rows = {row["client"]: row for row in json.loads(client(tmp_path, "list", "--json"))}
    assert rows["cursor"]["state"] == "connected as lockgate-starter"
    assert "/p/starter/mcp" in cursor.read_text()


def test_clients_that_start_a_command_get_one_that_exists(tmp_path: Path) -> None:
    client(tmp_path, "connect", "claude-desktop", "--profile", "starter")
    file = tmp_path / ".config/Claude/claude_desktop_config.json"
    entry = json.loads(file.read_text())["mcpServers"]["lockgate-starter"]
    assert Path(entry["command"]).is_file()
    assert entry["args"] == ["stdio", "--profile", "starter"]


def test_a_project_has_its_own_file(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    client(tmp_path, "connect", "vscode", "--project", "work")
    assert json.loads((tmp_path / "work/.vscode/mcp.json").read_text())["servers"]["lockgate"]["type"] == "http"
    assert "leave out --project" in client(tmp_path, "connect", "windsurf", "--project", "work", code=2)


def test_a_file_that_is_a_link_stays_one(tmp_path: Path, cursor: Path) -> None:
    kept = tmp_path / "dotfiles.json"
    cursor.rename(kept)
    cursor.symlink_to(kept)
    client(tmp_path, "connect", "cursor")
    assert cursor.is_symlink()
    assert "lockgate" in kept.read_text()


def test_a_broken_file_is_left_alone_and_named(tmp_path: Path, cursor: Path) -> None:
    cursor.write_text('{"mcpServers": {')
    said = client(tmp_path, "connect", "cursor", code=1)
    assert "line 1, column 17" in said
    assert str(cursor) in said
    assert cursor.read_text() == '{"mcpServers": {'
    assert "unreadable" in client(tmp_path, "list")


def test_unknown_clients_and_profiles_exit_2_and_change_nothing(tmp_path: Path, cursor: Path) -> None:
    before = cursor.read_text()
    assert "did you mean cursor" in client(tmp_path, "connect", "cursor", "curser", code=2)
    assert "startr" in client(tmp_path, "connect", "cursor", "--profile", "startr", code=2)
    assert cursor.read_text() == before
