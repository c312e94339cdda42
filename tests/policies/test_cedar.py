"""Policies: what they may say, what their words mean, and that no spelling gets around one."""

from dataclasses import replace
from typing import Any

import pytest

from gateway.policyfiles import shipped
from policies import (
    Action,
    AllowList,
    CedarEngine,
    Circumstances,
    Facts,
    Known,
    PolicyError,
    Principal,
    Request,
    read_sets,
)

TEXT, WHOLE = {"type": "string"}, {"type": "integer"}
TOOLS: dict[str, Any] = {
    "read": {"properties": {"path": TEXT}},
    "fetch": {"properties": {"url": {"anyOf": [TEXT, {"type": "null"}]}, "limit": WHOLE}},
    "odd": {"properties": {"path": {"type": "array", "items": TEXT}, "rate": {"type": "number"}}},
    "deep": {
        "$defs": {"Mode": {"enum": ["r", "w"], "type": "string"}},
        "properties": {"options": {"type": "object", "properties": {"mode": {"$ref": "#/$defs/Mode"}}}},
    },
}
KNOWN = Known(["p"], ["s", "unasked"], {"s": TOOLS})
ME = Principal("me", "user", frozenset({"staff"}), strength="password")


def engine(text: str, known: Known = KNOWN, **more: str) -> CedarEngine:
    texts = {"mine": [("mine.cedar", text)], **{name: [(f"{name}.cedar", other)] for name, other in more.items()}}
    return CedarEngine(AllowList({"p": {"s": None, "unasked": None}}), read_sets(texts, known).sets, {"p": "mine"})


def asked(item: str = "read", action: Action = "call", **arguments: Any) -> Request:
    return Request(ME, action, "p", "s", item, arguments, Facts(parameters=TOOLS.get(item, {})))


def allows(text: str, request: Request) -> bool:
    return engine(text).decide(request).allowed


def refused(text: str) -> str:
    with pytest.raises(PolicyError) as caught:
        engine(text)
    return str(caught.value)


OPEN = "permit (principal, action, resource);"


# -- what a file may say -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("permit (principal action, resource);", 1, "is no policy: unexpected token"),
        (f"{OPEN}\n// a ; b\n\npermit", 4, "is no policy"),
        ('permit (principal, action == Action::"cal", resource);', 1, "unrecognized action"),
        ('permit (principal == Person::"x", action, resource);', 1, "Person"),
        ('permit (principal, action, resource in Server::"t");', 1, "not in the catalogue"),
        ('permit (principal, action, resource in Server::"unaskd");', 1, "did you mean unasked?"),
        ('permit (principal, action, resource in Profile::"q");', 1, "not in the catalogue"),
        ('permit (principal, action, resource == Tool::"read");', 1, "write it as server/name"),
        ('permit (principal, action, resource == ?resource);', 1, "?placeholder"),
        ('@effct("x")\npermit (principal, action, resource);', 1, "annotation @effct"),
        ("permit (principal, action, resource) when { principal.strenght == \"x\" };", 1, "strenght"),
        ("permit (principal, action, resource) when { context.args == {} };", 1, "context.args.NAME"),
        ("permit (principal, action, resource) when { context.arguments.x == 1 };", 1, "there are context.args.NAME"),
        (
            f'{OPEN}\n\npermit (principal, action, resource == Tool::"s/fetch") when {{ context.args.limit < 3 }};',
            3,
            "ask first whether it is there",
        ),
        (
            'permit (principal, action, resource == Tool::"s/fetch")\nwhen { context.args has limit && '
            'context.args.limit == "3" };',
            1,
            "not compatible",
        ),
        (
            'permit (principal, action, resource == Tool::"s/fetch") when { context.args has limt };',
            1,
            "did you mean limit?",
        ),
        (
            'permit (principal, action, resource in Server::"s") when { context.args has path };',
            1,
            "has several types",
        ),
        (
            'permit (principal, action, resource == Tool::"s/fetch") when { context.path has limit };',
            1,
            "is no text",
        ),
        (
            'forbid (principal, action, resource == Tool::"s/read") when '
            '{ context.args has path && context.args.path like "/etc/*" };',
            1,
            "use context.path or context.host",
        ),
        (
            'forbid (principal, action, resource is Resource) when { resource.uri like "file:///etc/*" };',
            1,
            "use resource.path or resource.host",
        ),
        (
            "permit (principal, action, resource is Tool) when { resource.readOnly };",
            1,
            "permits by resource.readOnly",
        ),
        (f'@id("a") {OPEN}\n@id("a") {OPEN}', 2, "has the id a of mine.cedar:1"),
        (f"permit (principal, action, resource) when {{ {'(' * 300}true{')' * 300} }};", 1, ""),
        (f"permit (principal, action, resource) when {{ {'true && ' * 300}true }};", 1, "nested too deeply"),
    ],
)  # fmt: skip
def test_a_policy_that_cannot_be_meant_is_refused_with_its_line(text: str, line: int, words: str) -> None:
    if words:
        message = refused(text)
        assert message.startswith(f"mine.cedar:{line}: "), message
        assert words in message
    else:
        assert allows(text, asked())


def test_every_problem_is_said_at_once() -> None:
    assert len(refused("permit (a);\npermit (b);\nforbid (c);").splitlines()) == 3


def test_arguments_of_a_server_that_was_never_asked_are_checked_later_and_judged_by_themselves() -> None:
    text = (
        'permit (principal, action, resource in Server::"unasked") when { context.args has n && context.args.n == 1 };'
    )
    assert read_sets({"mine": [("mine.cedar", text)]}, KNOWN).unchecked == ("mine.cedar:1",)
    request = replace(asked("any", n=1), server="unasked")
    assert allows(text, request)
    assert not allows(text, replace(request, arguments={"n": "1"}))


# -- what the words mean -----------------------------------------------------------------------


def test_nothing_is_allowed_that_no_policy_permits() -> None:
    assert not allows("", asked())
    assert not allows('permit (principal == User::"you", action, resource);', asked())
    assert not CedarEngine(AllowList({"p": {"s": None}}), {}, {"p": "gone"}).decide(asked()).allowed


def test_what_the_profile_does_not_select_no_policy_permits() -> None:
    rules = read_sets({"mine": [("mine.cedar", OPEN)]}, KNOWN).sets
    one = CedarEngine(AllowList({"p": {"s": frozenset({"read"})}}), rules, {"p": "mine"})
    assert one.decide(asked("read")).allowed
    assert not one.decide(asked("fetch")).allowed
    assert one.visible([asked("read", "list"), asked("fetch", "list")]) == [True, False]


@pytest.mark.sec("SEC-105")
@pytest.mark.parametrize("rule", ["permit", "forbid"])
@pytest.mark.parametrize(
    "value",
    ["3", 3.5, True, [3], {"limit": 3}, 2**63, -(2**63) - 1, 1e300, {"__extn": {"fn": "decimal", "arg": "1.0"}}],
)
def test_an_argument_of_another_type_is_denied_by_rules_of_both_kinds(rule: str, value: Any) -> None:
    body = "when { context.args has limit && context.args.limit > 100 };"
    text = f'{OPEN if rule == "forbid" else ""} {rule} (principal, action, resource == Tool::"s/fetch") {body}'
    decision = engine(text).decide(asked("fetch", limit=value))
    assert not decision.allowed
    assert "limit could not be judged" in decision.reason
    assert any(id.startswith("mine:") for id in decision.policy_ids)


@pytest.mark.sec("SEC-105")
def test_numbers_and_texts_keep_their_value() -> None:
    limit = (
        'permit (principal, action, resource == Tool::"s/fetch") when { context.args has limit && '
        "context.args.limit == 3 };"
    )
    assert allows(limit, asked("fetch", limit=3))
    assert allows(limit, asked("fetch", limit=3.0))
    assert not allows(limit, asked("fetch", limit=None))
    rate = (
        'permit (principal, action, resource == Tool::"s/odd") when '
        '{ context.args has rate && context.args.rate.lessThan(decimal("0.5")) };'
    )
    assert allows(rate, asked("odd", rate=0.25))
    assert allows(rate, asked("odd", rate=-7))
    assert not allows(rate, asked("odd", rate=0.5))
    assert not allows(rate, asked("odd", rate=0.00001))
    mode = (
        'permit (principal, action, resource == Tool::"s/deep") when { context.args has options && '
        'context.args.options has mode && context.args.options.mode == "r" };'
    )
    assert allows(mode, asked("deep", options={"mode": "r", "more": {"__entity": {"type": "Group", "id": "x"}}}))
    assert not allows(mode, asked("deep", options={"mode": ["r"]}))
    assert not allows(mode, asked("deep", options="r"))


@pytest.mark.sec("SEC-105")
def test_what_no_rule_reads_does_not_matter() -> None:
    assert allows(OPEN, asked("fetch", limit="3", more={"__extn": 1}))


@pytest.mark.sec("SEC-105")
def test_a_rule_about_another_tool_does_not_judge_this_ones_arguments() -> None:
    text = (
        f'{OPEN} forbid (principal, action, resource == Tool::"s/fetch") when {{ context.args has '
        f"limit && context.args.limit > 1 }};"
    )
    assert allows(text, asked("read", limit="many"))


INSIDE = ["/data/x", "/data//x", "/data/./x", "/data/a/../x", "file:///data/x", "/data/x.y", "/data/ä", "/data/x/"]
OUTSIDE = [
    "/data/../etc/x", "/data", "/database/x", "/etc/x", "data/x", "./data/x", "../data/x", "/DATA/x", "//data/../etc",
    "/data/x/../../etc/passwd", "/data/..", "/data/%2e%2e/etc", "/data/%2E%2e%2fetc", "/data/..%2fetc", "/data/..\\etc",
    "/data/\\..\\etc", "/data/..%5cetc", "/data/..%00/x", "/data/\x00/../etc", "file:///data/%2e%2e/etc/passwd",
    "file:///etc/x", "file:/etc/x", "FILE:///data/../etc", "file://host/data/x", "~/x", "/data/~/../..", "$HOME/data/x",
    "/data/${x}", "%HOME%/x", "/data/․․/etc", "/data/‥/etc", "/data/．．/etc", "/data∕../etc", "／data/x",
    "/data/../\u200betc",
    "/data/x\u202e", "/data/x.", "/data/x ", "/data/.. /etc", "/data/x\n", "", ".", "..", "/", " /data/x",
    "file:///data/x?y",
]  # fmt: skip


@pytest.mark.sec("SEC-104")
@pytest.mark.parametrize("spelling", [*INSIDE, *OUTSIDE])
def test_no_spelling_of_a_path_gets_out_of_the_permitted_folder(spelling: str) -> None:
    text = (
        'permit (principal, action, resource == Tool::"s/read") '
        'when { context.path has path && context.path.path like "/data/*" };'
    )
    assert allows(text, asked(path=spelling)) is (spelling in INSIDE)


@pytest.mark.sec("SEC-104")
@pytest.mark.parametrize(
    "spelling",
    [
        "/etc/x", "/data/../etc/x", "//etc//x", "/./etc/x", "file:///etc/x", "file:///%65tc/x", "FILE:/etc/x",
        "/etc/%2e/x",
        "etc/x", "../../etc/x", "..\\etc\\x", "/etc\\x", "~root/../etc/x", "/data/‥/etc/x", 7, ["/etc/x"],
        {"a": "/etc/x"},
    ],
)  # fmt: skip
def test_no_spelling_of_a_path_gets_past_a_forbidden_folder(spelling: Any) -> None:
    text = (
        f'{OPEN} forbid (principal, action, resource == Tool::"s/read") '
        'when { context.path has path && context.path.path like "/etc/*" };'
    )
    assert not allows(text, asked(path=spelling))
    assert allows(text, asked(path="/data/etc/x"))


@pytest.mark.sec("SEC-104")
@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("https://api.example.com/x", True),
        ("HTTPS://API.EXAMPLE.COM./x", True),
        ("https://user:pass@api.example.com:8443/x?y#z", True),
        ("api.example.com", True),
        ("https://api.ex%61mple.com/", True),
        ("https://api.example.com.evil.test/", False),
        ("https://api.example.com@evil.test/", False),
        ("https://evil.test\\@api.example.com/", False),
        ("https://evil.test/@api.example.com/", False),
        ("https://evil.test#@api.example.com/", False),
        ("https://evil.test?@api.example.com/", False),
        ("https://a@evil.test@api.example.com/", False),
        ("https:/\tapi.example.com/", False),
        ("https://api.example.com%2fevil.test/", False),
        ("https://xn--pi-7ia.example.com/", False),
        ("https://аpi.example.com/", False),
        ("javascript:api.example.com", False),
        ("https:api.example.com", False),
        ("", False),
    ],
)
def test_no_spelling_of_a_url_reaches_another_host(url: str, allowed: bool) -> None:
    text = (
        'permit (principal, action, resource == Tool::"s/fetch") '
        'when { context.host has url && context.host.url == "api.example.com" };'
    )
    assert allows(text, asked("fetch", url=url)) is allowed


@pytest.mark.sec("SEC-104")
@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.1", "2130706433", "0x7f000001", "0x7f.0.0.1", "0177.0.0.1", "[::ffff:127.0.0.1]", "127.0.0.1.",
     "[::ffff:7f00:1]", "１２７.0.0.1", "127.0.0.%31", "127.9.9.9", "256.1", "1.2.3.4.5", "0x", "[::1%25lo]",
     "[127.0.0.1]"],
)  # fmt: skip
def test_no_spelling_of_an_address_gets_past_a_forbidden_range(host: str) -> None:
    text = (
        f'{OPEN} forbid (principal, action, resource == Tool::"s/fetch") '
        'when { context.ip has url && (context.ip.url.isLoopback() || context.ip.url.isInRange(ip("0.0.0.0/8"))) };'
    )
    assert not allows(text, asked("fetch", url=f"http://{host}/"))
    assert not allows(text, asked("fetch", url=f"http://a:b@{host}:80/"))
    assert allows(text, asked("fetch", url="http://192.0.2.1/"))


@pytest.mark.sec("SEC-104")
def test_resources_are_judged_by_the_place_their_uri_names() -> None:
    text = (
        f"{OPEN} forbid (principal, action, resource is Resource) when {{ resource has path && "
        f'resource.path like "/etc/*" }};'
    )
    for uri in ("file:///etc/x", "FILE:///etc/x", "file:///data/../etc/x", "file:///%65tc/x", "file:/etc/x",
                "file:///data/%252e%252e/etc", " file:///etc/x", "/etc/x"):  # fmt: skip
        assert not allows(text, asked(uri, "read")), uri
    for uri in ("file:///data/x", "memo://etc/x", "https://example.com/etc/x"):
        assert allows(text, asked(uri, "read")), uri


@pytest.mark.sec("SEC-085")
def test_what_a_server_says_of_a_tool_can_only_take_away() -> None:
    text = f"{OPEN} forbid (principal, action, resource is Tool) unless {{ resource.readOnly }};"
    says = Facts(read_only=True)
    assert engine(text).decide(replace(asked(), facts=says)).allowed
    assert not engine(text).decide(asked()).allowed
    assert "permits by" in refused("permit (principal, action, resource is Tool) unless { resource.destructive };")
    assert not engine(f"{text} forbid (principal, action, resource);").decide(replace(asked(), facts=says)).allowed


def test_time_and_address_are_what_the_request_says() -> None:
    text = (
        "permit (principal, action, resource) when { context.hour >= 8 && context.hour < 17 && context.weekday <= 5 && "
        'context has source && context.source.isInRange(ip("10.0.0.0/8")) && context.now < datetime("2030-01-01") };'
    )
    wednesday = 1_795_600_800.0 + 0  # 2026-11-25 10:00 UTC
    for at, source, allowed in (
        (wednesday, "10.1.2.3", True),
        (wednesday, "::ffff:10.1.2.3", True),
        (wednesday, "11.1.2.3", False),
        (wednesday, "", False),
        (wednesday + 9 * 3600, "10.1.2.3", False),
        (wednesday + 3 * 86400, "10.1.2.3", False),
        (wednesday + 5 * 365 * 86400, "10.1.2.3", False),
    ):
        request = replace(asked(), circumstances=Circumstances(at, source))
        assert engine(text).decide(request).allowed is allowed, (at, source)
    assert engine(text).reads_context(asked())
    assert engine(text).visible([asked("read", "list")]) == [True]


def test_only_what_no_arguments_could_make_allowed_is_hidden() -> None:
    text = (
        'permit (principal, action, resource == Tool::"s/read") when { context.path has path && '
        'context.path.path like "/a/*" };'
        'permit (principal in Group::"admins", action, resource == Tool::"s/fetch") when { context.args has limit };'
        'permit (principal, action, resource == Tool::"s/deep");'
        'forbid (principal, action == Action::"list", resource == Tool::"s/deep");'
        'permit (principal, action == Action::"list", resource == Tool::"s/odd");'
    )
    items = [asked(item, "list") for item in ("read", "fetch", "deep", "odd", "unknown")]
    assert engine(text).visible(items) == [True, False, False, False, False]
    assert engine(text).decide(asked("deep")).allowed


def test_policies_of_everywhere_hold_in_every_set() -> None:
    assert not engine(OPEN, everywhere='forbid (principal, action, resource in Server::"s");').decide(asked()).allowed


def test_a_reason_is_said_and_the_deciding_policies_are_named() -> None:
    text = (
        f'@id("all") {OPEN} @id("no") @reason("ask the owner") forbid (principal, action, resource == Tool::"s/read");'
    )
    decision = engine(text).decide(asked())
    assert (decision.allowed, decision.reason, decision.policy_ids) == (
        False,
        "ask the owner",
        ("profile:p:s", "mine:no"),
    )
    assert engine(text).decide(asked("fetch")).policy_ids == ("profile:p:s", "mine:all")


def test_generation_changes_with_any_policy_and_any_choice() -> None:
    sets = read_sets({"a": [("a", OPEN)], "b": [("b", "")]}, KNOWN).sets
    base = AllowList({"p": {"s": None}})
    assert CedarEngine(base, sets, {"p": "a"}).generation == CedarEngine(base, sets, {"p": "a"}).generation
    assert CedarEngine(base, sets, {"p": "a"}).generation != CedarEngine(base, sets, {"p": "b"}).generation
    assert engine(OPEN).generation != engine(f"{OPEN} {OPEN}").generation


# -- the shipped sets --------------------------------------------------------------------------


def with_shipped(name: str) -> CedarEngine:
    return CedarEngine(AllowList({"p": {"s": None}}), read_sets(shipped(), KNOWN).sets, {"p": name})


@pytest.mark.parametrize(
    ("name", "reading", "writing", "other"),
    [("open", True, True, True), ("read-only", True, False, True), ("locked", False, False, False)],
)
def test_shipped_sets_do_what_their_names_say(name: str, reading: bool, writing: bool, other: bool) -> None:
    one = with_shipped(name)
    reader, writer = replace(asked("read"), facts=Facts(read_only=True)), asked("fetch")
    assert one.decide(reader).allowed is reading
    assert one.decide(writer).allowed is writing
    assert one.visible([replace(reader, action="list"), replace(writer, action="list")]) == [reading, writing]
    for action in ("read", "prompt", "complete"):
        assert one.decide(asked("memo://x", action)).allowed is other
    assert one.decide(asked("a/b", "extension")).allowed is (name == "open")
    assert not any(one.reads_context(asked("read", action)) for action in ("call", "read", "prompt"))


def test_the_shipped_set_approve_writes_asks_about_what_does_not_say_that_it_reads() -> None:
    one = with_shipped("approve-writes")
    reader, writer = replace(asked("read"), facts=Facts(read_only=True)), asked("fetch")
    assert [one.decide(each).word for each in (reader, writer)] == ["allow", "ask"]
    assert one.visible([replace(reader, action="list"), replace(writer, action="list")]) == [True, True]
    assert [one.decide(asked("memo://x", action)).word for action in ("read", "prompt", "complete")] == ["allow"] * 3
    assert one.decide(asked("a/b", "extension")).word == "deny"


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        (OPEN, [True, True, True]),
        (f'{OPEN} forbid (principal, action, resource in Server::"s");', [False, False, True]),
        (f'{OPEN} forbid (principal, action == Action::"list", resource == Tool::"s/read");', [False, True, True]),
        ('permit (principal in Group::"staff", action, resource);', [True, True, True]),
        ('permit (principal in Group::"others", action, resource);', [False, False, False]),
        ('permit (principal, action, resource in Server::"unasked");', [False, False, True]),
        ('permit (principal, action == Action::"read", resource);', [False, False, False]),
        ("permit (principal, action, resource) when { principal.strength == \"password\" };", [True, True, True]),
        ("permit (principal, action, resource) when { principal.strength == \"key\" };", [False, False, False]),
    ],
)  # fmt: skip
def test_what_is_listed_is_what_each_server_alone_would_list(text: str, seen: list[bool]) -> None:
    items = [asked("read", "list"), asked("fetch", "list"), Request(ME, "list", "p", "unasked", "any")]
    one = engine(text)
    assert one.visible(items) == seen
    assert [engine(text).decide(item).allowed for item in items] == seen


@pytest.mark.sec("SEC-104")
@pytest.mark.parametrize("head", ['== Tool::"s/read"', 'in Tool::"s/read"', 'is Tool in Tool::"s/read"'])
def test_one_tool_is_forbidden_however_the_head_names_it(head: str) -> None:
    rules = engine(f"permit (principal, action, resource); forbid (principal, action, resource {head});")
    assert not rules.decide(asked("read")).allowed
    assert rules.decide(asked("fetch")).allowed
    assert rules.visible([asked("read", "list"), asked("fetch", "list")]) == [False, True]


@pytest.mark.sec("SEC-105")
def test_an_argument_in_other_capitals_gets_around_no_rule() -> None:
    def where(folder: str) -> str:
        return f'resource == Tool::"s/read") when {{ context.path has path && context.path.path like "{folder}/*" }};'

    permits = f"permit (principal, action, {where('/data')}"
    assert allows(permits, asked(path="/data/a", other="/etc"))
    assert not allows(permits, asked(path="/data/a", Path="/etc/b"))
    forbids = f"permit (principal, action, resource); forbid (principal, action, {where('/etc')}"
    assert not allows(forbids, asked(PATH="/etc/b"))
