"""Catalogs that were checked once: loaded again without parsing, and never anything else than the file says."""

import json
from pathlib import Path

import pytest

from catalog import CatalogInvalid, find_shipped_catalog, load_catalog
from catalog.cache import MAX_KEPT
from tests.catalog.files import BOX, document

PROFILE = "profiles:\n  work:\n    title: Work\n    servers: [box]\n    tools: {box: [put]}\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "catalog.yaml"
    path.write_text(text)
    return path


def only_file(cache: Path) -> Path:
    (file,) = cache.glob("*")
    return file


def test_kept_catalog_is_equal_to_the_parsed_one_in_every_entry(tmp_path: Path) -> None:
    path = find_shipped_catalog()
    parsed = load_catalog(path, tmp_path / "cache")
    kept = load_catalog(path, tmp_path / "cache")
    assert list(kept.entries.items()) == list(parsed.entries.items())
    assert list(kept.profiles.items()) == list(parsed.profiles.items())
    assert [entry.digest for entry in kept.entries.values()] == [entry.digest for entry in parsed.entries.values()]


def test_what_is_kept_is_what_is_read(tmp_path: Path) -> None:
    """Else the test above would compare two parsed ones."""
    path = write(tmp_path, document({"box": BOX}, PROFILE))
    load_catalog(path, tmp_path / "cache")
    file = only_file(tmp_path / "cache")
    assert file.stat().st_mode & 0o777 == 0o600
    file.write_text(file.read_text().replace("Keeps things", "Loses things"))
    assert load_catalog(path, tmp_path / "cache").entry("box").description == "Loses things in a box."


def test_changed_file_is_read_anew(tmp_path: Path) -> None:
    path = write(tmp_path, document({"box": BOX}))
    load_catalog(path, tmp_path / "cache")
    write(tmp_path, document({"box": BOX.replace("Keeps", "Hides")}))
    assert load_catalog(path, tmp_path / "cache").entry("box").description == "Hides things in a box."


def test_invalid_file_is_refused_each_time_and_never_kept(tmp_path: Path) -> None:
    path = write(tmp_path, document({"box": BOX + "privileged: true\n"}))
    for _ in range(2):
        with pytest.raises(CatalogInvalid, match="privileged"):
            load_catalog(path, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"entries": 1, "profiles": []}',
        '{"entries": [{"id": "box"}], "profiles": []}',
        '{"entries": []}',
    ],
)
def test_damaged_file_of_the_cache_is_passed_over(tmp_path: Path, content: str) -> None:
    path = write(tmp_path, document({"box": BOX}))
    load_catalog(path, tmp_path / "cache")
    only_file(tmp_path / "cache").write_text(content)
    assert load_catalog(path, tmp_path / "cache").entry("box").title == "Box"


def test_kept_entry_that_breaks_rules_is_not_taken(tmp_path: Path) -> None:
    path = write(tmp_path, document({"box": BOX}))
    load_catalog(path, tmp_path / "cache")
    file = only_file(tmp_path / "cache")
    rows = json.loads(file.read_text())
    rows["entries"][0]["volumes"] = [{"name": "data", "target": "/etc"}]
    file.write_text(json.dumps(rows))
    assert load_catalog(path, tmp_path / "cache").entry("box").volumes == ()


def test_file_that_others_can_write_is_not_read(tmp_path: Path) -> None:
    path = write(tmp_path, document({"box": BOX}))
    load_catalog(path, tmp_path / "cache")
    file = only_file(tmp_path / "cache")
    file.write_text(file.read_text().replace("Keeps", "Loses"))
    file.chmod(0o666)
    assert load_catalog(path, tmp_path / "cache").entry("box").description == "Keeps things in a box."


def test_cache_that_is_a_file_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    path = write(tmp_path, document({"box": BOX}))
    assert load_catalog(path, tmp_path / "cache").entry("box").title == "Box"


def test_only_the_latest_catalogs_are_kept(tmp_path: Path) -> None:
    for number in range(MAX_KEPT + 3):
        load_catalog(write(tmp_path, document({f"box{number}": BOX})), tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == MAX_KEPT
