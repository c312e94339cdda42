"""`lockgate catalog` in this process: what it prints and how it ends."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from catalog import CatalogInvalid, NotInCatalog, find_shipped_catalog, load_catalog
from catalog.jsonschema import schema_text
from gateway.cli import app
from tests.catalog.files import BOX, document

NEEDY = """\
title: Needy
description: Needs a lot.
image: example/needy:1
config: [{name: level, required: true, enum: [low, high]}]
secrets: [{name: needy.key, env: KEY}]
network: internet
hosts: ["needy.example:443"]
tools: [put]
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("CACHE", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    monkeypatch.delenv("LOCKGATE_CATALOG", raising=False)
    return tmp_path


def lockgate(*words: str) -> Result:
    return CliRunner().invoke(app, ["catalog", *words])


def printed(*words: str) -> str:
    done = lockgate(*words)
    assert done.exit_code == 0, done.output
    return done.stdout


def answer(*words: str) -> Any:
    return json.loads(printed(*words, "--json"))


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_search_takes_a_question_without_quotes_and_says_what_each_server_needs() -> None:
    lines = printed("search", "send", "a", "message", "to", "a", "slack", "channel").splitlines()
    assert lines[0].split() == ["entry", "runs", "as", "needs", "description"]
    assert lines[1].startswith("slack ")
    assert " secret" in lines[1]
    assert [entry["id"] for entry in answer("search", "slack channel", "--limit", "1")] == ["slack"]


def test_search_without_a_result_says_what_to_try() -> None:
    done = lockgate("search", "zyzzyva")
    assert done.exit_code == 0
    assert done.stdout == ""
    assert "lockgate catalog stats" in done.stderr


def test_show_tells_what_stands_between_an_entry_and_its_start(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCKGATE_CATALOG", str(write(place, "c.yaml", document({"needy": NEEDY, "box": BOX}))))
    said = printed("show", "needy")
    assert "Cannot start here" in said
    for fact in ("needy.key", "level (string, required, one of low, high)", "needy.example:443", "1 tools"):
        assert fact in said, fact
    assert "lockgate server start box" in printed("show", "box")
    assert len(answer("show", "needy")["lacking"]) >= 1


def test_show_of_an_unknown_entry_suggests_one() -> None:
    assert "did you mean" in str(lockgate("show", "timee").exception)
    assert isinstance(lockgate("show", "timee").exception, NotInCatalog)


def test_pick_makes_a_catalog_of_some_entries_that_loads(place: Path) -> None:
    target = place / "mine.yaml"
    assert "3 entries" in printed("pick", "time", "git", "time", "aks", "-o", str(target))
    mine = load_catalog(target)
    assert mine.profile("starter").servers == ("time", "git", "aks")
    shipped = load_catalog(find_shipped_catalog())
    assert all(entry == shipped.entry(id) for id, entry in mine.entries.items())
    assert "exists" in str(lockgate("pick", "time", "-o", str(target)).exception)
    assert printed("pick", "time").startswith("version: 1")


def test_stats_count_every_entry() -> None:
    counted = answer("stats")
    assert sum(counted["runs_as"].values()) == counted["entries"]
    assert sum(counted["licences"].values()) == counted["entries"]
    assert f"{counted['entries']} entries" in printed("stats")


def test_diff_shows_both_sides_and_marks_what_restarts(place: Path) -> None:
    old = write(place, "old.yaml", document({"box": BOX, "gone": BOX}))
    new = write(place, "new.yaml", document({"box": BOX + "network: internet\n", "come": BOX}))
    said = printed("diff", str(old), str(new))
    assert said.splitlines() == ["+ come", "- gone", "~ box *", "    + network: internet"]
    assert answer("diff", str(old), str(new))["changed"][0]["restarts"] is True
    assert printed("diff", str(old), str(old)) == "No difference.\n"


def test_lint_reports_all_problems_as_json_and_fails(place: Path) -> None:
    bad = write(place, "bad.yaml", document({"box": BOX + "imagine: x\nnetwork: host\n"}))
    done = lockgate("lint", str(bad), "--json")
    assert done.exit_code == 2
    found = json.loads(done.stdout)
    assert [problem["line"] for problem in found["problems"]] == [7, 8]
    assert found["problems"][0]["entry"] == "box"
    assert isinstance(lockgate("lint", str(bad)).exception, CatalogInvalid)
    assert answer("lint")["ok"] is True


def test_schema_is_printed_as_published() -> None:
    assert printed("schema") == schema_text()


def test_shell_completion_offers_entry_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_LOCKGATE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "lockgate catalog show post")
    monkeypatch.setenv("COMP_CWORD", "3")
    done = CliRunner().invoke(app, [], prog_name="lockgate")
    assert done.stdout.split() == ["postman"]
