"""Qualified names and wrapped URIs: short, plain, stable, and never the same for two things."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalog import reference
from gateway import names

LEGAL = re.compile(r"[A-Za-z0-9_-]{1,64}")


def is_id(text: str) -> bool:
    try:
        reference.check_id(text)
    except ValueError:
        return False
    return True


ids = st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,47}", fullmatch=True).filter(is_id)
# Names that are likely to meet: few letters, separators, and everything a hostile server could think of.
close = st.text("aA_-", max_size=6)
hashed = st.builds(lambda head, tail: f"{head}--{tail}", close, st.text("ab27", min_size=12, max_size=12))
long = st.builds(lambda head, n, tail: head + "x" * n + tail, close, st.integers(30, 80), close)
wild = st.text(max_size=80)
tools = (
    close | hashed | long | wild | st.sampled_from(["", "__", "a__b", "../x", "a b", "a\0b", "é", "e\u0301", "\ud800"])
)


@given(ids, tools)
def test_a_qualified_name_is_short_and_plain(server: str, tool: str) -> None:
    assert LEGAL.fullmatch(names.qualify(server, tool))
    assert LEGAL.fullmatch(names.plain(tool))


@given(ids, tools)
def test_the_server_can_be_read_from_a_qualified_name(server: str, tool: str) -> None:
    assert names.owner(names.qualify(server, tool)) == server


@settings(max_examples=600)
@given(st.sets(st.tuples(ids | st.sampled_from(["a", "a_b", "a-b", "aa", "A"]), tools), min_size=2, max_size=80))
def test_two_tools_never_get_the_same_name(pairs: set[tuple[str, str]]) -> None:
    assert len({names.qualify(server, tool) for server, tool in pairs}) == len(pairs)
    alone = {tool for _, tool in pairs}
    assert len({names.plain(tool) for tool in alone}) == len(alone)


def test_no_two_of_a_hundred_thousand_pairs_meet() -> None:
    letters = "aA_-"
    short = ["".join((a, b, c, d)) for a in letters for b in letters for c in letters for d in letters]
    many = [*short, *(f"{name}!" for name in short), *(f"{name}?" for name in short), *(name * 20 for name in short)]
    many += [names.qualify("a", name).removeprefix("a__") for name in many]
    servers = [f"{first}{middle}{last}" for first in "aAb" for middle in ("", "_", "-", "a", "_a-") for last in "aAb1"]
    pairs = {(server, tool) for server in servers if is_id(server) for tool in many}
    assert len(pairs) > 80_000
    assert len({names.qualify(server, tool) for server, tool in pairs}) == len(pairs)


def test_a_name_does_not_depend_on_other_servers_or_on_the_day() -> None:
    assert names.qualify("time", "get_current_time") == "time__get_current_time"
    assert names.qualify("time", "get current time") == "time__get_current_time--5h2m5hlnqlzz"
    assert names.plain("get_current_time") == "get_current_time"
    assert names.plain("x" * 65) == "x" * 50 + "--" + "su34l7prebec"


def test_a_tool_cannot_take_the_shortened_name_of_another() -> None:
    short = names.qualify("s", "get current time")
    assert names.qualify("s", short.removeprefix("s__")) != short
    assert names.plain(names.plain("get current time")) != names.plain("get current time")


def test_a_tool_named_with_a_separator_does_not_reach_into_another_server() -> None:
    assert names.owner(names.qualify("a", "b__c")) == "a"
    assert names.owner(names.qualify("a", "_c")) == "a"


uris = st.tuples(st.sampled_from(["", "ui://", "ui://lockgate/", "lockgate://"]), st.text()).map("".join).filter(bool)


@given(ids, uris.filter(lambda uri: "\ud800" not in uri))
def test_unwrapping_undoes_wrapping(server: str, uri: str) -> None:
    wrapped = names.wrap_uri(server, uri)
    assert names.unwrap_uri(wrapped) == (server, uri)
    assert names.owner(wrapped) == server
    assert wrapped.startswith("ui://") == (uri.startswith("ui://") and uri != "ui://")


@pytest.mark.parametrize(
    "uri",
    [
        *("", "lockgate:", "lockgate://", "lockgate://a", "lockgate://a/", "lockgate:///x", "x://a/b"),
        *("ui://", "ui://a", "ui://a/b", "ui://lockgate", "ui://lockgate/", "ui://lockgate/a", "ui://lockgate/a/"),
    ],
)
def test_what_was_not_wrapped_is_not_unwrapped(uri: str) -> None:
    assert names.unwrap_uri(uri) is None


@pytest.mark.parametrize("name", ["", "time", "time_", "_", "lockgate://a"])
def test_a_name_without_separator_has_no_owner(name: str) -> None:
    assert names.owner(name) == ""
