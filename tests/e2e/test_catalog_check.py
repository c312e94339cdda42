"""The check behind docs/servers.md, on one server whose image other tests need anyway.

Knows what a result must say; the whole check is `make catalog-check`.
"""

import asyncio
from pathlib import Path

import pytest

from catalog import Entry, find_shipped_catalog, load_catalog
from tests.catalog_check.record import Result
from tests.catalog_check.trial import MADE_UP, prepared, trial
from tests.e2e.gateways import engine


def tried(entry: Entry, folder: Path) -> Result:
    assert entry.package is not None
    return asyncio.run(trial(entry, entry.package, folder, True))


@pytest.mark.docker
def test_trial_of_a_server_lists_its_tools_and_one_of_a_broken_server_says_why(tmp_path: Path) -> None:
    engine().close()
    time = load_catalog(find_shipped_catalog()).entry("time")
    for name in ("good", "bad"):
        (tmp_path / name).mkdir()
    good = tried(time, tmp_path / "good")
    assert (good.reason, good.package, good.made_up) == ("", "pypi: mcp-server-time", ())
    assert {tool.name for tool in good.tools} == set(time.tools)
    assert all(len(tool.schema_sha256) == 64 and tool.description for tool in good.tools)
    bad = tried(time.model_copy(update={"command": ("mcp-server-time", "--no-such-option")}), tmp_path / "bad")
    assert "no-such-option" in bad.reason
    assert bad.tools == ()


def test_secrets_and_settings_that_an_entry_requires_are_made_up_and_named() -> None:
    entry = Entry.model_validate(
        {
            "id": "box",
            "title": "Box",
            "description": "Keeps things.",
            "image": "example/box:1",
            "package": {"ecosystem": "pypi", "name": "box", "version": "1"},
            "command": ["box"],
            "config": [
                {"name": "level", "required": True, "enum": ["low", "high"], "arg": "--level="},
                {"name": "size", "type": "integer", "required": True, "env": "SIZE"},
                {"name": "folder", "required": True},
                {"name": "more", "env": "MORE"},
            ],
            "mounts": [{"config": "folder", "target": "/data"}],
            "secrets": [{"name": "box.key", "env": "KEY"}, {"name": "box.other", "env": "OTHER", "required": False}],
            "network": "internet",
            "hosts": ["box.example:443"],
        }
    )
    ready, made_up = prepared(entry)
    assert made_up == ("box.key", "level", "size")
    assert dict(ready.env) == {"SIZE": "1", "KEY": MADE_UP}
    assert ready.command == ("box", "--level=low")
    assert (ready.image, ready.network, ready.hosts, ready.mounts, ready.secrets) == (None, "none", (), (), ())
