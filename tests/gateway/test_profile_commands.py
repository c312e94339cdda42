"""`lockgate profile`: what each command writes, what it refuses, and that a running gateway follows."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
import yaml
from anyio import to_thread
from typer.testing import CliRunner, Result

from catalog import Catalog, CatalogInvalid, load_catalog
from gateway.catalogs import open_catalog
from gateway.cli import app
from gateway.errors import SettingsError
from gateway.settings import read_settings
from tests.gateway.running import Place, running
from tests.gateway.test_profiles import BOX
from tests.servers import DEADLINE_S

CATALOG = """\
version: 1
servers:
  box:
    title: Box
    description: Keeps things.
    image: example/box:1
    config: [{name: level, type: integer}, {name: fast, type: boolean}, {name: paths, type: list}]
    secrets: [{name: box.token, env: TOKEN}]
    tools: [put, take]
  crate: {title: Crate, description: Keeps more., image: "example/crate:1"}
profiles:
  # the one
  work: {title: Work, servers: [box]}  # a note
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("CACHE", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    monkeypatch.delenv("LOCKGATE_CATALOG", raising=False)
    return tmp_path


@pytest.fixture
def file(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = place / "catalog.yaml"
    path.write_text(CATALOG)
    monkeypatch.setenv("LOCKGATE_CATALOG", str(path))
    monkeypatch.setenv("LOCKGATE_PROFILE", "work")
    return path


def lockgate(*words: str) -> Result:
    return CliRunner().invoke(app, ["profile", *words])


def done(*words: str) -> str:
    result = lockgate(*words)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def refused(*words: str) -> str:
    result = lockgate(*words)
    assert isinstance(result.exception, SettingsError | CatalogInvalid), (result.output, result.exception)
    return str(result.exception)


def known() -> Catalog:
    return open_catalog(read_settings(os.environ))


def test_profile_in_the_catalogue_is_changed_where_it_stands(file: Path) -> None:
    done("add", "work", "crate")
    done("add", "work", "box", "--as", "other")
    done("set", "work", "other", "level=3", "fast=true", "paths=/a,/b")
    done("secret", "work", "other", "box.token=work/box")
    done("rename-tool", "work", "other", "put", "store")
    done("select", "work", "other", "put")
    done("bind", "work", "--principal", "ada", "--group", "ops")
    text = file.read_text()
    assert "# the one" in text
    assert "# a note" in text
    assert text.partition("profiles:")[0] == CATALOG.partition("profiles:")[0]
    profile = load_catalog(file).profile("work")
    assert profile.servers == ("box", "crate", "other")
    detail = profile.detail("other")
    assert dict(detail.settings) == {"level": 3, "fast": True, "paths": ("/a", "/b")}
    assert dict(detail.secrets) == {"box.token": "work/box"}
    assert dict(detail.rename) == {"put": "store"}
    assert profile.tools["other"] == ("put",)
    assert [profile.admits(*who) for who in (("ada", ()), ("bob", ("ops",)), ("bob", ()))] == [True, True, False]


def test_what_is_taken_back_leaves_the_profile_as_it_was(file: Path) -> None:
    before = load_catalog(file).profile("work")
    for words, back in (
        (("set", "work", "box", "level=3"), ("set", "work", "box", "level=")),
        (("secret", "work", "box", "box.token=a/b"), ("secret", "work", "box", "box.token=")),
        (("rename-tool", "work", "box", "put", "store"), ("rename-tool", "work", "box", "put")),
        (("select", "work", "box", "put"), ("select", "work", "box", "--all")),
        (("bind", "work", "--principal", "ada"), ("bind", "work", "--everybody")),
        (("add", "work", "box", "--as", "other"), ("remove", "work", "other")),
        (("budget", "work", "--tools", "40", "--chars", "60000"), ("budget", "work", "--all")),
        (("policy", "work", "read-only"), ("policy", "work", "open")),
    ):
        done(*words)
        assert load_catalog(file).profile("work") != before, words
        done(*back)
        assert load_catalog(file).profile("work") == before, back
        assert "details" not in file.read_text()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("set", "work", "box", "levl=3"), 'did you mean "level"'),
        (("set", "work", "box", "level=high"), "must be a whole number"),
        (("set", "work", "box", "level"), "write NAME=VALUE"),
        (("set", "work", "bx", "level=3"), "no entry"),
        (("secret", "work", "box", "box.token=plain"), "is not the name of a secret"),
        (("add", "work", "bx"), 'did you mean "box"'),
        (("add", "work", "box"), "listed twice"),
        (("add", "work", "box", "crate", "--as", "x"), "--as gives one server a name"),
        (("remove", "work", "bx"), "has no server bx"),
        (("remove", "work", "box"), "at least 1 item"),
        (("select", "work", "box"), "name the tools to show"),
        (("select", "work", "box", "pt"), 'did you mean "put"'),
        (("bind", "work"), "name somebody"),
        (("budget", "work"), "give --tools or --chars"),
        (("budget", "work", "--tools", "2"), "greater than or equal to 3"),
        (("policy", "work", "opn"), "there is no policy opn; there are"),
        (("create", "work", "box"), "there is a profile work already"),
        (("create", "wo rk", "box"), "is no valid id"),
        (("rm", "work"), "is served at /mcp"),
    ],
)
def test_change_that_would_not_do_is_refused_and_nothing_is_written(
    file: Path, place: Path, words: tuple[str, ...], why: str
) -> None:
    result = lockgate(*words)
    assert result.exit_code != 0
    assert why in str(result.exception)
    assert file.read_text() == CATALOG
    assert not (place / "state/lockgate/profiles.yaml").exists()


def test_profile_of_the_shipped_catalogue_is_copied_and_not_changed(place: Path) -> None:
    assert "lockgate profile create NAME --from starter" in refused("add", "starter", "fetch")
    done("create", "mine", "fetch", "--from", "starter", "--title", "Mine")
    own = place / "state/lockgate/profiles.yaml"
    assert list(yaml.safe_load(own.read_text())["profiles"]) == ["mine"]
    assert own.stat().st_mode & 0o777 == 0o600
    mine = known().profile("mine")
    assert (mine.title, mine.servers[-1]) == ("Mine", "fetch")
    assert known().profile("starter").servers == mine.servers[:-1]
    assert str(own) in done("show", "mine")
    done("rm", "mine")
    assert "mine" not in known().profiles


def test_profiles_are_listed_shown_and_exported(file: Path, place: Path) -> None:
    done("set", "work", "box", "level=3")
    done("create", "home", "crate")
    rows = json.loads(done("list", "--json"))
    assert [(row["profile"], row["default"], row["servers"]) for row in rows] == [
        ("work", True, ["box"]),
        ("home", False, ["crate"]),
    ]
    assert [row["file"] for row in rows] == [str(file), str(place / "state/lockgate/profiles.yaml")]
    assert "work *" in done("list")
    assert "level=3" in done("show", "work")
    shown = json.loads(done("show", "work", "--json"))
    assert shown["endpoint"] == "/p/work/mcp"
    assert shown["runs"]["box"].startswith("box.")
    target = place / "out.yaml"
    done("export", "work", "-o", str(target))
    assert yaml.safe_load(target.read_text())["profiles"]["work"]["details"] == {"box": {"settings": {"level": 3}}}
    assert "exists" in refused("export", "work", "-o", str(target))


def test_change_that_leaves_data_behind_is_said(file: Path) -> None:
    file.write_text(CATALOG.replace("    tools: [put, take]\n", "    volumes: [{name: data, target: /data}]\n"))
    result = lockgate("set", "work", "box", "level=3")
    assert "box is another instance now, with empty volumes" in result.stderr
    assert "instance" not in lockgate("rename-tool", "work", "box", "put", "store").stderr


def test_lint_looks_at_profiles_of_ones_own_too(file: Path, place: Path) -> None:
    done("create", "home", "crate")
    own = place / "state/lockgate/profiles.yaml"
    words = ["catalog", "lint", "--json"]
    assert json.loads(CliRunner().invoke(app, words).stdout)["profiles"] == 2
    own.write_text(own.read_text().replace("crate", "crte"))
    found = json.loads(CliRunner().invoke(app, words).stdout)["problems"]
    assert [(one["file"], one["entry"]) for one in found] == [(str(own), "profile home")]
    assert json.loads(CliRunner().invoke(app, [*words, str(file)]).stdout)["ok"]


def test_choice_of_the_default_profile_outlives_the_gateway_and_yields_to_the_environment(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done("create", "home", "crate")
    done("use", "home")
    assert read_settings(os.environ).profile == "work"
    monkeypatch.delenv("LOCKGATE_PROFILE")
    assert read_settings(os.environ).profile == "home"
    assert lockgate("use", "hme").exit_code != 0


def test_edited_profile_is_checked_before_it_is_taken(file: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    editor = place / "editor"
    for change, works in (("s/title: Work/title: Edited/", True), ("s/box/bx/", False)):
        editor.write_text(f"#!/bin/sh\nexec sed -i '{change}' \"$1\"\n")
        editor.chmod(0o700)
        monkeypatch.setenv("VISUAL", str(editor))
        assert (lockgate("edit", "work").exit_code == 0) == works
    assert load_catalog(file).profile("work").title == "Edited"
    assert "# a note" in file.read_text()


async def cli(place: Place, *words: str) -> Any:
    """A command of its own process, beside a running gateway."""
    chosen = place.gateway.settings
    env = {**os.environ, "LOCKGATE_STATE_DIR": str(chosen.state_dir), "LOCKGATE_CATALOG": str(chosen.catalog)}
    env |= {"LOCKGATE_CACHE_DIR": str(chosen.cache_dir)}
    argv = [sys.executable, "-c", "from gateway.cli import main; main()", *words]
    ended = await to_thread.run_sync(
        lambda: subprocess.run(argv, env=env, capture_output=True, text=True, timeout=DEADLINE_S * 3, check=False)
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.anyio
async def test_running_gateway_follows_each_change_at_once(tmp_path: Path) -> None:
    async with running(tmp_path, {"box": BOX, "crate": ["friendly"]}, {"all": ["box"]}) as place:
        session = await place.session()
        assert "box__echo" in await session.tools()
        await cli(place, "profile", "create", "mine", "crate")
        await cli(place, "profile", "add", "mine", "box", "--as", "work")
        await cli(place, "profile", "rename-tool", "mine", "work", "echo", "say")
        own = await place.session("/p/mine/mcp")
        assert {"crate__echo", "work__say"} <= set(await own.tools())
        async with session.listening() as stream:
            assert json.loads(await cli(place, "profile", "use", "mine", "--json"))["profile"] == "mine"
            with anyio.fail_after(DEADLINE_S):
                await stream.until("notifications/tools/list_changed")
        assert "work__say" in await session.tools()
        assert "mine *" in await cli(place, "profile", "list")
        assert "work__say" in await cli(place, "tools", "list")
