"""The catalog that ships: that it loads, and that its promises hold for every entry."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import catalog as catalog_room
from catalog import Catalog, find_shipped_catalog, load_catalog
from tests.catalog.files import load

ROOT = Path(__file__).resolve().parents[2]
STARTER = ("time", "filesystem", "memory", "sequentialthinking", "git", "SQLite", "everything")


@pytest.fixture(scope="module")
def shipped() -> Catalog:
    return load_catalog(find_shipped_catalog())


WITHOUT_KNOWN_DIGEST = {
    "alfresco", "apollo-mcp-server", "kgrag-mcp-server", "mcp-github-pr-issue-analyser", "okta-mcp-server",
    "proxmox", "pulumi", "tembo", "uberall", "zscaler-mcp-server",
}  # fmt: skip
"""Published images of which no digest was known when they were catalogued."""


def test_shipped_catalog_has_330_servers(shipped: Catalog) -> None:
    assert len(shipped.entries) >= 330
    kinds = [
        (entry.image is not None, entry.remote is not None, bool(entry.per_call)) for entry in shipped.entries.values()
    ]
    assert kinds.count((True, False, False)) >= 245
    assert kinds.count((False, True, False)) >= 75
    assert kinds.count((False, False, True)) == 3
    assert shipped.path.name == "catalog.yaml"


def test_starter_has_seven_servers_that_need_no_account_and_no_network(shipped: Catalog) -> None:
    starter = shipped.profile("starter")
    assert starter.servers == STARTER
    for id in starter.servers:
        entry = shipped.entry(id)
        assert entry.network == "none"
        assert entry.secrets == ()
        assert entry.package is not None


def test_every_image_is_pinned_by_digest_where_one_is_known(shipped: Catalog) -> None:
    unpinned = {id for id, entry in shipped.entries.items() if entry.image and "@sha256:" not in entry.image}
    assert unpinned == WITHOUT_KNOWN_DIGEST


def test_every_entry_says_in_one_sentence_of_its_own_what_it_does(shipped: Catalog) -> None:
    descriptions = [entry.description for entry in shipped.entries.values()]
    assert len(set(descriptions)) == len(descriptions)
    for id, entry in shipped.entries.items():
        assert entry.description.endswith("."), id
        assert not re.search(r"[.!?] [A-Z]", entry.description), id
        assert len(entry.description) <= 140, id
        assert len(entry.description.split()) >= 3, id


def test_every_entry_tells_what_it_is_and_where_it_comes_from(shipped: Catalog) -> None:
    for id, entry in shipped.entries.items():
        assert entry.categories, id
        assert entry.source or entry.remote or entry.per_call or entry.built_in, id
        assert entry.package is None or entry.tools, id
    assert sum(len(entry.tools) for entry in shipped.entries.values()) >= 4000


def test_titles_differ(shipped: Catalog) -> None:
    titles = [entry.title for entry in shipped.entries.values()]
    assert sorted(title for title in set(titles) if titles.count(title) > 1) == []


def test_entries_that_need_a_login_say_so(shipped: Catalog) -> None:
    """What a variable is called gives a credential away that is only declared as a setting."""
    credential = re.compile(r"(?i)(password|passwd|api_?key|secret(?!s)|token)$")
    for id, entry in shipped.entries.items():
        for setting in entry.config:
            assert not credential.search(setting.env or ""), f"{id}: {setting.env}"
            assert not credential.search(setting.name), f"{id}: {setting.name}"


def test_paths_below_data_come_with_a_volume_there(shipped: Catalog) -> None:
    for entry in shipped.entries.values():
        uses = [*entry.command, *entry.args, *entry.env.values()]
        if any(text == "/data" or text.startswith("/data/") for text in uses):
            assert any(volume.target == "/data" for volume in entry.volumes), entry.id


def test_digests_of_the_entries_differ(shipped: Catalog) -> None:
    assert len({entry.digest for entry in shipped.entries.values()}) == len(shipped.entries)


def test_example_in_the_documentation_loads(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "catalog.md").read_text()
    example = text.split("```yaml\n", maxsplit=1)[1].split("```", maxsplit=1)[0]
    assert load(tmp_path, example).profile("work").servers == ("box",)


def test_catalog_inside_of_an_installed_package_is_found_before_one_beside_it(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "catalog", tmp_path / "catalog", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-c", "import catalog; print(catalog.find_shipped_catalog())"]

    def found() -> str:
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False).stdout.strip()

    assert found() == ""
    (tmp_path / "catalog.yaml").touch()
    assert found() == str(tmp_path / "catalog.yaml")
    (tmp_path / "catalog" / "catalog.yaml").touch()
    assert found() == str(tmp_path / "catalog" / "catalog.yaml")


def test_everything_promised_can_be_imported() -> None:
    for name in catalog_room.__all__:
        assert hasattr(catalog_room, name)
