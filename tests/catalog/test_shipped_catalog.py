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


def test_shipped_catalog_has_at_least_33_servers(shipped: Catalog) -> None:
    assert len(shipped.entries) >= 33
    assert shipped.path.name == "catalog.yaml"


def test_starter_has_seven_servers_that_need_no_account_and_no_network(shipped: Catalog) -> None:
    starter = shipped.profile("starter")
    assert starter.servers == STARTER
    for id in starter.servers:
        entry = shipped.entry(id)
        assert entry.network == "none"
        assert entry.secrets == ()
        assert entry.package is not None


def test_every_image_is_pinned_by_digest(shipped: Catalog) -> None:
    for entry in shipped.entries.values():
        assert entry.image is None or "@sha256:" in entry.image, entry.id


def test_every_entry_tells_what_it_is_and_where_it_comes_from(shipped: Catalog) -> None:
    descriptions = [entry.description for entry in shipped.entries.values()]
    assert len(set(descriptions)) == len(descriptions)
    for entry in shipped.entries.values():
        assert entry.description.endswith("."), entry.id
        assert entry.tools, entry.id
        assert entry.categories, entry.id
        assert entry.source, entry.id


def test_paths_below_data_come_with_a_volume_there(shipped: Catalog) -> None:
    for entry in shipped.entries.values():
        uses = [*entry.command, *entry.args, *entry.env.values()]
        if any(text == "/data" or text.startswith("/data/") for text in uses):
            assert any(volume.target == "/data" for volume in entry.volumes), entry.id


def test_digests_of_the_entries_differ(shipped: Catalog) -> None:
    assert len({entry.digest for entry in shipped.entries.values()}) == len(shipped.entries)


def test_documentation_says_for_every_package_when_it_was_started(shipped: Catalog) -> None:
    text = (ROOT / "docs" / "catalog.md").read_text()
    for entry in shipped.entries.values():
        if entry.package is not None:
            row = (
                rf"\| {re.escape(entry.id)} \| {entry.package.ecosystem}: {re.escape(entry.package.name)} "
                rf"\| {re.escape(entry.package.version)} \| {len(entry.tools)} \| \d{{4}}-\d\d-\d\d \|"
            )
            assert re.search(row, text), entry.id


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
