"""What differs between two catalogs."""

from pathlib import Path

from catalog import Catalog, Change, difference
from tests.catalog.files import BOX, document, load

WORK = "profiles:\n  work:\n    title: Work\n    servers: [box]\n"


def catalog(folder: Path, name: str, servers: dict[str, str], profiles: str = "") -> Catalog:
    (folder / name).mkdir()
    return load(folder / name, document(servers, profiles))


def test_equal_catalogs_do_not_differ(tmp_path: Path) -> None:
    one = catalog(tmp_path, "one", {"box": BOX}, WORK)
    two = catalog(tmp_path, "two", {"box": BOX + "# a comment\n"}, WORK)
    assert not difference(one, two)


def test_entries_and_profiles_that_come_and_go_are_named(tmp_path: Path) -> None:
    one = catalog(tmp_path, "one", {"box": BOX, "old": BOX}, WORK)
    two = catalog(tmp_path, "two", {"box": BOX, "new": BOX}, WORK.replace("work:", "play:"))
    found = difference(one, two)
    assert (found.added, found.removed, found.changed) == (("new",), ("old",), ())
    assert (found.added_profiles, found.removed_profiles, found.changed_profiles) == (("play",), ("work",), ())
    assert found


def test_changed_keys_are_told_with_both_values_and_whether_another_thing_runs(tmp_path: Path) -> None:
    one = catalog(tmp_path, "one", {"box": BOX + "network: internet\n", "bag": BOX}, WORK)
    servers = {"box": BOX + "args: [x]\n", "bag": BOX.replace("Keeps", "Hides")}
    two = catalog(tmp_path, "two", servers, WORK.replace("[box]", "[box, bag]"))
    found = difference(one, two)
    box, bag = found.changed
    assert (box.name, box.restarts) == ("box", True)
    assert box.changes == (Change("args", None, ["x"]), Change("network", "internet", None))
    assert (bag.name, bag.restarts) == ("bag", False)
    assert bag.changes == (Change("description", "Keeps things in a box.", "Hides things in a box."),)
    (work,) = found.changed_profiles
    assert work.changes == (Change("servers", ["box"], ["box", "bag"]),)
