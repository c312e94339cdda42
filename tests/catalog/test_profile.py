"""What a profile may say about the servers of its catalog."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from catalog import NotInCatalog, Profile
from tests.catalog.files import BOX, document, load, only_problem

SERVERS = {"box": BOX + "tools: [open, shut]\n", "crate": BOX}


def with_profile(body: str) -> str:
    return document(SERVERS, f"profiles:\n  work:\n    {body}\n")


def test_profile_keeps_the_order_of_its_servers_and_its_tool_selection(tmp_path: Path) -> None:
    body = "{title: Work, servers: [crate, box], tools: {box: [open], crate: []}}"
    profile = load(tmp_path, with_profile(body)).profile("work")
    assert profile == Profile(
        name="work", title="Work", servers=("crate", "box"), tools={"box": ("open",), "crate": ()}
    )
    assert profile.plain_names is False
    assert profile.tools["crate"] == ()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("{title: Work, servers: []}", "at least 1"),
        ("{title: Work}", "servers is missing"),
        ("{servers: [box]}", "title is missing"),
        ("{title: Work, servers: [bx]}", 'no entry "bx" (did you mean "box"?)'),
        ("{title: Work, servers: [Box]}", 'did you mean "box"'),
        ("{title: Work, servers: [box, box]}", "box is listed twice"),
        ("{title: Work, servers: [box, crate], plain_names: true}", "only for a profile of one server"),
        ("{title: Work, servers: [box], plain_names: yes}", "must be true or false"),
        ("{title: Work, servers: [box], tools: {crate: [a]}}", "not among its servers"),
        ("{title: Work, servers: [box], tools: {box: [opn]}}", 'no tool "opn" (did you mean "open"?)'),
        ("{title: Work, servers: [box], tools: {box: [open, open]}}", "is listed twice"),
        ("{title: Work, servers: [box], tools: {box: open}}", "must be a list"),
        ("{title: Work, servers: [box], tools: [open]}", "must be a mapping"),
        ("{title: Work, servers: [box], server: [box]}", "unknown key"),
        ("{title: Work, servers: [box], name: work}", "remove name"),
        ("{title: Work, servers: box}", "must be a list"),
        ("[box]", "must be a mapping"),
    ],
)
def test_profile_that_could_not_work_is_refused(tmp_path: Path, body: str, words: str) -> None:
    problem = only_problem(tmp_path, with_profile(body))
    assert words in problem.message
    assert problem.line in (13, 14)
    assert problem.entry == "profile work"
    assert problem.file == tmp_path / "catalog.yaml"


def test_tools_of_a_server_that_lists_none_may_be_selected_by_any_name(tmp_path: Path) -> None:
    body = "{title: Work, servers: [crate], tools: {crate: [anything]}, plain_names: true}"
    assert load(tmp_path, with_profile(body)).profile("work").tools["crate"] == ("anything",)


def test_profile_naming_a_broken_entry_is_not_blamed_for_it(tmp_path: Path) -> None:
    text = document({"box": BOX + "colour: red\n"}, "profiles:\n  work: {title: Work, servers: [box]}\n")
    assert only_problem(tmp_path, text).entry == "box"


def test_profile_names_follow_the_rules_of_ids(tmp_path: Path) -> None:
    text = document(SERVERS, "profiles:\n  wo rk: {title: Work, servers: [box]}\n")
    assert only_problem(tmp_path, text).entry == "profile wo rk"
    text = document(SERVERS, "profiles:\n  a: {title: A, servers: [box]}\n  A: {title: A, servers: [box]}\n")
    assert "only in capitals" in only_problem(tmp_path, text).message


def test_profile_cannot_be_changed() -> None:
    profile = Profile(name="work", title="Work", servers=("box",), tools={"box": ("open",)})
    with pytest.raises(TypeError):
        profile.tools["box"] = ()  # type: ignore[index]  # the point of the test
    with pytest.raises(ValidationError):
        profile.servers = ()
    assert profile in {profile}


def test_unknown_entry_or_profile_comes_with_a_suggestion(tmp_path: Path) -> None:
    catalog = load(tmp_path, with_profile("{title: Work, servers: [box]}"))
    with pytest.raises(NotInCatalog, match=r'no entry "crat" \(did you mean "crate"\?\)'):
        catalog.entry("crat")
    with pytest.raises(NotInCatalog, match=r'no profile "wrok" \(did you mean "work"\?\)'):
        catalog.profile("wrok")
    with pytest.raises(NotInCatalog) as caught:
        catalog.entry("\x1b[31m" * 1000)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500
