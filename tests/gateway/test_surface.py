"""What a principal sees: public names, finished pages, resources found by server, rewritten results."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from catalog import Profile
from gateway import surface
from gateway.errors import BadCursor, UnknownName
from gateway.listings import PROMPTS, RESOURCES, TEMPLATES, TOOLS, Item, Kind, Listing
from gateway.surface import Surface, Target


def items(*raw: dict[str, Any], key: str = "name") -> tuple[Item, ...]:
    return tuple(Item(one[key], Raw(json.dumps(one).encode())) for one in raw)


def everything(kind: Kind, server: str, item: str) -> bool:
    return True


def seen(listings: dict[str, Listing], *, plain: bool = False, visible: Any = everything) -> Surface:
    profile = Profile(name="p", title="p", servers=tuple(listings), plain_names=plain)
    return surface.build(profile, listings, visible)


def walk(view: Surface, kind: Kind, size: int) -> list[dict[str, Any]]:
    """All items, page by page."""
    found: list[dict[str, Any]] = []
    cursor = None
    while True:
        page = json.loads(view.page(kind, cursor, size))
        assert len(page[kind.member]) <= size
        found += page[kind.member]
        cursor = page.get("nextCursor")
        if cursor is None:
            return found


# -- names and pages -----------------------------------------------------------------------------


def test_items_keep_everything_but_their_name() -> None:
    raw = Raw(b'{"zeta":1.10e5,"name":"do it","x-vendor":{"b":1,"a":[]},"inputSchema":{"type":"object"}}')
    view = seen({"s": Listing("d", tools=(Item("do it", raw),))})
    name = next(iter(view.tools))
    expected = b'{"zeta":1.10e5,"name":"%b","x-vendor":{"b":1,"a":[]},"inputSchema":{"type":"object"}}' % name.encode()
    assert view.page(TOOLS, None, 10) == b'{"tools":[%b]}' % expected
    assert view.tools[name] == Target("s", "do it")


def test_plain_names_are_the_servers_own() -> None:
    listing = Listing("d", tools=items({"name": "do"}), resources=items({"uri": "memo://x", "name": "x"}, key="uri"))
    view = seen({"s": listing}, plain=True)
    assert view.tools == {"do": Target("s", "do")}
    assert view.resource("memo://x") == Target("s", "memo://x")


@given(st.sets(st.from_regex(r"[a-z]{1,3}", fullmatch=True), max_size=20), st.integers(1, 25))
def test_pages_hold_every_item_once(tools: set[str], size: int) -> None:
    view = seen({s: Listing("d", tools=items(*({"name": tool} for tool in sorted(tools)))) for s in ("b", "a")})
    found = [tool["name"] for tool in walk(view, TOOLS, size)]
    assert found == sorted(found)
    assert set(found) == {f"{server}__{tool}" for server in ("a", "b") for tool in tools}


def test_a_cursor_stays_right_when_items_come_and_go() -> None:
    before = seen({"s": Listing("d", tools=items(*({"name": name} for name in "abcdef")))})
    after = seen({"s": Listing("d", tools=items(*({"name": name} for name in "adefg")))})
    cursor = json.loads(before.page(TOOLS, None, 3))["nextCursor"]
    assert [tool["name"] for tool in json.loads(after.page(TOOLS, cursor, 10))["tools"]] == [
        "s__d",
        "s__e",
        "s__f",
        "s__g",
    ]


@pytest.mark.parametrize(
    "cursor", ["", "1", "zzz", "é", "\0", "W10=", "WyJ0b29scy9saXN0Il0=", "IiI=", "bnVsbA==", "A" * 100_000]
)
def test_a_cursor_nobody_issued_is_refused(cursor: str) -> None:
    with pytest.raises(BadCursor):
        seen({"s": Listing("d")}).page(TOOLS, cursor, 10)


def test_a_cursor_of_another_list_is_refused() -> None:
    view = seen({"s": Listing("d", tools=items({"name": "a"}, {"name": "b"}))})
    cursor = json.loads(view.page(TOOLS, None, 1))["nextCursor"]
    with pytest.raises(BadCursor, match="tools/list"):
        view.page(PROMPTS, cursor, 1)


def test_what_policy_hides_is_in_no_list_and_has_no_name() -> None:
    def visible(kind: Kind, server: str, item: str) -> bool:
        return (kind, item) == (TOOLS, "good")

    listing = Listing(
        "d",
        tools=items({"name": "good"}, {"name": "bad"}),
        prompts=items({"name": "good"}),
        resources=items({"uri": "memo://x"}, key="uri"),
        templates=items({"uriTemplate": "memo://{x}"}, key="uriTemplate"),
    )
    view = seen({"s": listing}, visible=visible)
    assert set(view.tools) == {"s__good"}
    for kind in (PROMPTS, RESOURCES, TEMPLATES):
        assert json.loads(view.page(kind, None, 10)) == {kind.member: []}
    for uri in ("lockgate://s/memo://x", "lockgate://s/memo://y"):
        with pytest.raises(UnknownName):
            view.resource(uri)


# -- resources -----------------------------------------------------------------------------------


def with_resources() -> Listing:
    return Listing("d", capabilities={"resources": Raw(b"{}")})


@pytest.mark.parametrize("uri", ["memo://one", "memo://", "a://b/c?q=1#f", "no uri at all", "lockgate://s/memo://x"])
def test_a_resource_need_not_be_listed_to_be_found(uri: str) -> None:
    assert seen({"s": with_resources()}).resource(f"lockgate://s/{uri}") == Target("s", uri)
    assert seen({"s": with_resources()}, plain=True).resource(uri) == Target("s", uri)


def test_a_resource_is_found_at_the_server_its_uri_names_and_no_other() -> None:
    view = seen({"a": with_resources(), "ab": with_resources(), "b": Listing("d")})
    assert view.resource("lockgate://a/memo://1") == Target("a", "memo://1")
    assert view.resource("lockgate://ab/memo://1") == Target("ab", "memo://1")
    for uri in ("lockgate://b/memo://1", "memo://1", "lockgate://c/memo://1", "lockgate:///memo://1", "lockgate://a"):
        with pytest.raises(UnknownName):
            view.resource(uri)


# -- results -------------------------------------------------------------------------------------


def rewritten(method: str, result: bytes, *, plain: bool = False) -> bytes:
    return surface.rewrite_uris(seen({"s": Listing("d")}, plain=plain), "s", method, result)


def test_uris_in_results_become_the_ones_clients_must_use() -> None:
    read = rewritten(
        "resources/read", b'{"contents":[{"uri":"memo://1","text":"t","n":1.10e5},{"uri":"memo://2"}],"_meta":{}}'
    )
    assert read == (
        b'{"contents":[{"uri":"lockgate://s/memo://1","text":"t","n":1.10e5},{"uri":"lockgate://s/memo://2"}],"_meta":{}}'
    )
    link = b'{"type":"resource_link","uri":"%b","name":"one"}'
    inner = b'{"type":"resource","resource":{"uri":"%b","blob":"eA=="},"annotations":{"priority":0.10}}'
    for method, form in (
        ("tools/call", b'{"content":[{"type":"text","text":"memo://1"},%b,%b],"isError":false}' % (link, inner)),
        (
            "prompts/get",
            b'{"messages":[{"role":"user","content":%b},{"role":"user","content":%b},{"role":"user","content":"x"}]}'
            % (link, inner),
        ),
    ):
        own, public = (form % (uri, uri) for uri in (b"memo://1", b"lockgate://s/memo://1"))
        assert rewritten(method, own) == public
        assert rewritten(method, own, plain=True) == own


@pytest.mark.parametrize(
    "result",
    [
        b'{"content":[{"type":"text","text":"plain"}], "n" : 1.10e5}',
        b'{"content":[{"type":"resource","resource":5}]}',
        b'{"content":[{"type":"resource_link","uri":5}]}',
        b'{"content":{"type":"resource"}}',
        b'["resource"]',
        b'"resource"',
        b'{"content":[{"type":"resource","resource":{"uri":"x"}},{"type":"resource_link","uri":null}]}',
    ],
)
def test_a_result_that_holds_no_proper_uri_is_left_alone(result: bytes) -> None:
    assert rewritten("tools/call", result) == result


@given(st.binary(max_size=80))
def test_rewriting_takes_whatever_a_server_answers(data: bytes) -> None:
    try:
        json.loads(data)
    except ValueError:
        return
    for method in ("tools/call", "prompts/get", "resources/read"):
        rewritten(method, data)
