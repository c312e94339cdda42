"""`lockgate profile push` and `pull` against a real registry: a profile with all it says, and the entries it names."""

from pathlib import Path

import pytest

from catalog import load_catalog, read_lock
from tests.catalog.files import BOX, document
from tests.gateway.exchange.conftest import done, refused
from tests.gateway.registries import TestRegistry

SIGN = ("--sign-key", "sign.key")
BY_KEY = ("--key", "sign.pub")
MINE = ("-o", "mine.yaml")
LEVELS = BOX + "config: [{name: level, env: LEVEL}]\nsecrets: [{name: box.key, env: KEY}]\ntools: [put, get]\n"
WORK = """\
profiles:
  work:
    title: Work
    servers: [near, far]
    details:
      near: {server: box, settings: {level: high}, secrets: {box.key: work/near}, rename: {put: keep}}
      far: {server: box, descriptions: {get: Takes it out again.}}
    tools: {near: [put]}
    for: {groups: [staff]}
  home:
    title: Home
    servers: [other]
"""


@pytest.fixture
def reference(hub: TestRegistry, request: pytest.FixtureRequest) -> str:
    return f"{hub.host}/profiles/{request.node.name.replace('_', '-')[:60].rstrip('-')}:1"


@pytest.fixture(autouse=True)
def team(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The catalogue in use, with two profiles."""
    file = place / "team.yaml"
    file.write_text(document({"box": LEVELS, "other": BOX}, WORK))
    monkeypatch.setenv("LOCKGATE_CATALOG", str(file))
    return file


def test_a_profile_comes_back_with_all_it_says_and_only_its_entries(reference: str, place: Path, team: Path) -> None:
    done("profile", "push", "work", reference, *SIGN)
    done("profile", "pull", reference, *MINE, *BY_KEY)
    pulled, pushed = load_catalog(place / "mine.yaml"), load_catalog(team)
    assert dict(pulled.profiles) == {"work": pushed.profiles["work"]}
    assert dict(pulled.entries) == {"box": pushed.entries["box"]}
    assert read_lock(place / "mine.lock").sources["profile work"].reference == reference
    assert "is a profile (pull it with: lockgate profile pull)" in refused("catalog", "pull", reference, *MINE, *BY_KEY)


def test_it_joins_what_is_there_and_a_later_one_takes_its_place(reference: str, place: Path, team: Path) -> None:
    mine = place / "mine.yaml"
    mine.write_text("# mine\n" + document({"mine": BOX}))
    done("profile", "push", "work", reference, *SIGN)
    assert "+ profile work" in done("profile", "pull", reference, *MINE, *BY_KEY)
    assert sorted(load_catalog(mine).entries) == ["box", "mine"]
    assert "is up to date" in done("profile", "pull", reference, *MINE, *BY_KEY)
    team.write_text(team.read_text().replace("title: Work", "title: Our work"))
    done("profile", "push", "work", reference, *SIGN)
    assert "+ title: Our work" in done("profile", "pull", reference, *MINE, *BY_KEY, "--dry-run")
    done("profile", "pull", reference, *MINE, *BY_KEY)
    assert load_catalog(mine).profile("work").title == "Our work"


def test_an_entry_or_profile_that_is_another_one_here_is_not_overwritten_unasked(
    reference: str, place: Path, team: Path
) -> None:
    mine = place / "mine.yaml"
    mine.write_text(document({"box": LEVELS.replace("Keeps things", "Loses things")}))
    done("profile", "push", "work", reference, *SIGN)
    assert "overwrite it with --replace" in refused("profile", "pull", reference, *MINE, *BY_KEY)
    done("profile", "pull", reference, *MINE, *BY_KEY, "--replace")
    assert "Loses things" in (place / "mine.yaml.lockgate-backup").read_text()
    mine.write_text(mine.read_text().replace("title: Work", "title: My work"))
    team.write_text(team.read_text().replace("title: Work", "title: Our work"))
    done("profile", "push", "work", reference, *SIGN)
    assert "was changed here since it was pulled" in refused("profile", "pull", reference, *MINE, *BY_KEY)
    assert load_catalog(mine).profile("work").title == "My work"


def test_unsigned_profiles_and_unknown_names_are_refused(reference: str, place: Path) -> None:
    assert "there is no profile" in refused("profile", "push", "wrk", reference)
    done("profile", "push", "work", reference)
    assert "--unsigned" in refused("profile", "pull", reference, *MINE)
    assert "it is not signed" in refused("profile", "pull", reference, *MINE, *BY_KEY)
    assert not (place / "mine.yaml").exists()
