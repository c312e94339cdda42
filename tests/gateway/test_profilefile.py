"""A file with profiles is changed where it has to be, and stays as somebody wrote it everywhere else."""

import difflib
import json

import pytest
import yaml
from ruamel.yaml.comments import CommentedMap

from gateway import profilefile
from gateway.errors import SettingsError
from gateway.profilefile import sequence

TEXT = """\
# top
version: 1   # v
servers:
  box: {title: "Box",   description: 'x'}

# about profiles
profiles:
  # one of them
  one:   # first
    title: One    # t
    servers: [box]
    # inside
    details:
      box:
        settings:
          a: "1"   # q

  # two
  two: {title: Two,   servers: [box]}
# end
publishers: {}
"""
AS_JSON = json.dumps({"version": 1, "profiles": {"one": {"title": "One", "servers": ["box"]}}}, indent=1)


def differing(before: str, after: str) -> list[str]:
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0)
    return [line for line in lines if line[:3] not in ("---", "+++") and line[:2] != "@@"]


def add_a_server(profile: CommentedMap) -> None:
    profile["servers"].append("crate")
    profile["tools"] = CommentedMap({"crate": sequence(["a", "b"])})


def test_changed_profile_keeps_its_comments_and_everything_else_its_letters() -> None:
    after = profilefile.changed(TEXT, "one", add_a_server)
    assert differing(TEXT, after) == [
        "-    servers: [box]",
        "+    servers: [box, crate]",
        "+    tools:",
        "+      crate: [a, b]",
    ]


def test_profile_on_one_line_stays_on_one_line() -> None:
    after = profilefile.changed(TEXT, "two", add_a_server)
    assert differing(TEXT, after) == [
        "-  two: {title: Two,   servers: [box]}",
        "+  two: {title: Two, servers: [box, crate], tools: {crate: [a, b]}}",
    ]


def test_new_profile_comes_after_the_others() -> None:
    members = CommentedMap({"title": "x: y", "servers": sequence(["box"])})
    after = profilefile.added(TEXT, "three", members)
    assert differing(TEXT, after) == ["+", "+  three:", "+    title: 'x: y'", "+    servers: [box]"]
    assert list(yaml.safe_load(after)["profiles"]) == ["one", "two", "three"]


def test_removed_profile_leaves_the_others_and_the_last_one_leaves_none() -> None:
    after = profilefile.removed(TEXT, "one")
    assert not [line for line in differing(TEXT, after) if line.startswith("+")]
    assert yaml.safe_load(after)["profiles"] == {"two": {"title": "Two", "servers": ["box"]}}
    empty = profilefile.removed(after, "two")
    assert yaml.safe_load(empty)["profiles"] == {}
    again = profilefile.added(empty, "new", CommentedMap({"title": "New"}))
    assert yaml.safe_load(again)["profiles"] == {"new": {"title": "New"}}
    assert "# about profiles" in again


def test_first_profile_of_a_new_file_has_a_place() -> None:
    after = profilefile.added(profilefile.EMPTY, "new", CommentedMap({"title": "New"}))
    assert yaml.safe_load(after) == {"version": 1, "profiles": {"new": {"title": "New"}}}
    bare = profilefile.added("version: 1\nservers: {}", "new", CommentedMap({"title": "New"}))
    assert yaml.safe_load(bare)["profiles"] == {"new": {"title": "New"}}


def test_file_written_as_json_can_be_changed_too() -> None:
    changed = yaml.safe_load(profilefile.changed(AS_JSON, "one", add_a_server))["profiles"]
    assert changed["one"]["servers"] == ["box", "crate"]
    added = yaml.safe_load(profilefile.added(AS_JSON, "two", CommentedMap({"title": "Two"})))["profiles"]
    assert list(added) == ["one", "two"]
    assert yaml.safe_load(profilefile.removed(AS_JSON, "one"))["profiles"] == {}


def test_edited_excerpt_takes_the_place_of_what_was_there() -> None:
    excerpt = profilefile.excerpt(TEXT, "one")
    assert excerpt.startswith("one:   # first\n  title: One")
    assert profilefile.replaced(TEXT, "one", excerpt) == TEXT
    after = profilefile.replaced(TEXT, "one", excerpt.replace("title: One ", "title: Uno "))
    assert differing(TEXT, after) == ["-    title: One    # t", "+    title: Uno    # t"]
    with pytest.raises(SettingsError, match="no longer the profile one alone"):
        profilefile.replaced(TEXT, "one", excerpt.replace("one:", "uno:"))
    with pytest.raises(SettingsError, match="no YAML"):
        profilefile.replaced(TEXT, "one", "one: [")


def test_damaged_file_is_refused_and_not_guessed_at() -> None:
    with pytest.raises(SettingsError, match="no YAML"):
        profilefile.changed("profiles: [", "one", add_a_server)
    with pytest.raises(SettingsError, match="no profile absent"):
        profilefile.changed(TEXT, "absent", add_a_server)
