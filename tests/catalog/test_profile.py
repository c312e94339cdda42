"""What a profile may say about the servers of its catalog."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from catalog import NotInCatalog, Profile, advice, find_shipped_catalog, load_catalog
from tests.catalog.files import BOX, document, load, only_problem, problems

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


SETTINGS = """\
config:
  - {name: level, type: integer}
  - {name: mode, enum: [fast, slow]}
secrets:
  - {name: box.token, env: TOKEN}
tools: [open, shut]
"""


@pytest.mark.parametrize(
    ("details", "words"),
    [
        ("{work: {server: bx}}", 'no entry "bx" (did you mean "box"?)'),
        ("{work: {}}", 'no entry "work"'),
        ("{work: {server: box}, other: {server: box}}", "details of other, which is not among its servers"),
        ("{work: {server: box, settings: {levl: 1}}}", 'box has no setting "levl" (did you mean "level"?)'),
        ("{work: {server: box, settings: {level: one}}}", "the setting level must be a whole number"),
        ("{work: {server: box, settings: {mode: quick}}}", "must be one of fast, slow"),
        ("{work: {server: box, settings: [level]}}", "must be a mapping"),
        (
            "{work: {server: box, secrets: {box.tokn: a/b}}}",
            'asks for no secret "box.tokn" (did you mean "box.token"?)',
        ),
        ("{work: {server: box, secrets: {box.token: ghp0123456789}}}", "is not the name of a secret"),
        ("{work: {server: box, rename: {opn: x}}}", 'box lists no tool "opn" (did you mean "open"?)'),
        ("{work: {server: box, rename: {open: a b}}}", "is no name for a tool"),
        ("{work: {server: box, rename: {open: x, shut: x}}}", "two tools are renamed to x"),
        ("{work: {server: box, descriptions: {opn: x}}}", 'did you mean "open"'),
        ("{work: {server: box, setting: {}}}", 'unknown key "details.work.setting" (did you mean "settings"?)'),
    ],
)
def test_detail_that_does_not_fit_its_entry_is_refused(tmp_path: Path, details: str, words: str) -> None:
    profile = f"profiles:\n  one:\n    title: One\n    servers: [work]\n    details: {details}\n"
    problem = only_problem(tmp_path, document({"box": BOX + SETTINGS, "crate": BOX}, profile))
    assert words in problem.message
    assert "ghp" not in problem.message
    assert problem.entry == "profile one"
    assert problem.line in (18, 20, 21)


def test_every_detail_that_does_not_fit_is_told_with_its_line(tmp_path: Path) -> None:
    profile = """\
profiles:
  one:
    title: One
    servers: [work]
    details:
      work:
        server: box
        settings:
          levl: 1
          mode: quick
        secrets:
          box.tokn: a/b
    for: {principals: [al ice], group: [x]}
"""
    found = problems(tmp_path, document({"box": BOX + SETTINGS}, profile))
    assert [problem.line for problem in found] == [21, 22, 24, 25, 25]
    assert 'did you mean "groups"' in found[-1].message + found[-2].message


@pytest.mark.parametrize(
    ("bound", "words"),
    [("{}", "is for nobody"), ("{principals: [a, a]}", "listed twice"), ("[a]", "must be a mapping")],
)
def test_whom_a_profile_is_for_must_be_somebody(tmp_path: Path, bound: str, words: str) -> None:
    problem = only_problem(tmp_path, with_profile(f"{{title: Work, servers: [box], for: {bound}}}"))
    assert words in problem.message


def test_profile_is_for_those_it_names_and_for_everybody_if_it_names_none(tmp_path: Path) -> None:
    bound = load(tmp_path, with_profile("{title: W, servers: [box], for: {principals: [ada], groups: [ops]}}"))
    profile = bound.profile("work")
    assert [profile.admits(*who) for who in (("ada", ()), ("bob", ()), ("bob", ("ops",)), ("ops", ()))] == [
        True,
        False,
        True,
        False,
    ]
    assert load(tmp_path, with_profile("{title: W, servers: [box]}")).profile("work").admits("anybody", ())


def test_entry_does_not_take_the_name_of_another_one(tmp_path: Path) -> None:
    problem = only_problem(tmp_path, with_profile("{title: W, servers: [crate], details: {crate: {server: box}}}"))
    assert "another entry's id" in problem.message


def test_names_that_look_alike_are_refused_in_one_profile(tmp_path: Path) -> None:
    body = "{title: W, servers: [box-l, box-1], details: {box-l: {server: box}, box-1: {server: box}}}"
    assert "looks like" in only_problem(tmp_path, with_profile(body)).message


def test_instance_is_the_same_wherever_it_is_wanted_and_another_one_for_every_difference(tmp_path: Path) -> None:
    details = [
        "{work: {server: box, settings: {level: 1}}}",
        "{work: {settings: {level: 1}, server: box}}",
        "{work: {server: box, settings: {level: 2}}}",
        "{work: {server: box, settings: {level: 1}, secrets: {box.token: a/b}}}",
        "{work: {server: box}}",
        "{work: {server: box, settings: {level: 1}, rename: {open: lift}}}",
    ]
    profiles = "".join(
        f"  p{number}: {{title: P, servers: [work], details: {detail}}}\n" for number, detail in enumerate(details)
    )
    catalog = load(tmp_path, document({"box": BOX + SETTINGS}, f"profiles:\n{profiles}"))
    ids = [profile.runs["work"] for profile in catalog.profiles.values()]
    assert ids[0] == ids[1] == ids[5]
    assert len(set(ids)) == 4
    assert set(catalog.runnable) == {"box", *ids}
    assert all(id.startswith("work.") for id in ids)
    one = catalog.runnable[ids[0]]
    assert (one.entry_id, one.id) == ("box", ids[0])
    assert one.configured({}).digest != catalog.entry("box").digest


def test_entry_under_its_own_name_without_settings_is_no_instance(tmp_path: Path) -> None:
    profile = load(tmp_path, with_profile("{title: W, servers: [box], details: {box: {rename: {open: lift}}}}"))
    assert profile.profile("work").runs == {"box": "box"}


def test_instance_asks_for_the_secret_it_is_given_and_keeps_the_image_of_its_entry(tmp_path: Path) -> None:
    package = "title: B\ndescription: B.\npackage: {ecosystem: pypi, name: b, version: '1'}\ncommand: [b]\n"
    body = package + "config: [{name: level, arg: --level=}]\nsecrets: [{name: box.token, env: TOKEN}]\n"
    detail = "{work: {server: box, settings: {level: high}, secrets: {box.token: a/b}}}"
    catalog = load(
        tmp_path, document({"box": body}, f"profiles:\n  p: {{title: P, servers: [work], details: {detail}}}\n")
    )
    one = catalog.runnable[catalog.profile("p").runs["work"]].configured({})
    assert one.command == ("b", "--level=high")
    assert one.installed_command == ("b",)
    assert one.kept_as("box.token") == "a/b"
    assert catalog.entry("box").kept_as("box.token") == "box.token"


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


def test_budget_smaller_than_the_known_tools_is_warned_of(tmp_path: Path) -> None:
    tools = "tools: [a, b, c, d, e, f]\n"
    for limit, warned in (
        (6, []),
        (4, ["knows 6 tools and lists 4: the first 2, and two that find and call the others"]),
    ):
        profile = f"profiles:\n  p: {{title: P, servers: [box], budget: {{tools: {limit}}}}}\n"
        catalog = load(tmp_path, document({"box": BOX + tools}, profile))
        assert [problem.message for problem in advice(catalog)] == warned


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("{title: W, servers: [box], budget: {}}", "without a limit"),
        ("{title: W, servers: [box], budget: {tools: 2}}", "greater than or equal to 3"),
        ("{title: W, servers: [box], budget: {tool: 9}}", 'did you mean "tools"'),
        ("{title: W, servers: [lockgate], details: {lockgate: {server: box}}, budget: {tools: 9}}", "own tools"),
    ],
)
def test_budget_that_could_not_work_is_refused(tmp_path: Path, body: str, words: str) -> None:
    found = problems(tmp_path, with_profile(body))
    assert words in "\n".join(problem.message for problem in found)


def test_renames_that_look_like_mistakes_are_warned_of(tmp_path: Path) -> None:
    details = "{box: {rename: {open: shut}}, work: {server: box, rename: {open: lift, shut: open}}}"
    body = f"{{title: W, servers: [box, work], details: {details}, tools: {{work: [open]}}}}"
    warnings = [problem.message for problem in advice(load(tmp_path, with_profile(body)))]
    assert warnings == [
        "renames open of box to shut, the name of another of its tools; it keeps its own name",
        "renames shut of work, which it does not select",
    ]
    assert advice(load_catalog(find_shipped_catalog())) == []
