"""Content guards: what they find, what they leave alone, and that nothing found survives in any spelling."""

import base64
import json
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalog import find_shipped_catalog, load_catalog
from policies.guards import DEFAULTS, GUARDS, Guard, Guards, Mode, Scan, scanner, unseen
from policies.guards import markup as pages
from policies.guards.scanner import MAX_COUNTED

CORPORA = Path(__file__).parents[1] / "corpora"
KEY = "ghp_" + "aB3dE5gH7jK9mN1pQ3sT5vX7zA9bC1dE3fG5"


def corpus(name: str) -> list[dict[str, Any]]:
    lines = (CORPORA / "guards" / name).read_text().splitlines()
    samples = [json.loads(line) for line in lines]
    # Encoded, so that no other tool takes the made-up secrets for real ones.
    return [{**sample, "text": base64.b64decode(sample["base64"]).decode()} for sample in samples]


def look(value: Any, mode: Mode = "redact", guards: tuple[Guard, ...] = GUARDS, **limits: int) -> Scan | None:
    return scanner(Guards.of(dict.fromkeys(guards, mode), **limits)).scan(json.dumps(value).encode())


def texts(found: Scan | None) -> str:
    assert found is not None
    return str(json.loads(found.payload)["t"])


# -- what is found ---------------------------------------------------------------------------------


def test_recall_of_the_frozen_corpus() -> None:
    """Those without a form of their own ("the password is …") are counted, too, and are not found."""
    total, found = Counter[str](), Counter[str]()
    for sample in corpus("found.jsonl"):
        guard = sample["guard"]
        total[guard] += 1
        done = look({"t": sample["text"]}, "warn")
        found[guard] += done is not None and done.counts[guard] > 0
    figures = {guard: round(found[guard] / total[guard], 3) for guard in total}
    print(f"recall {figures} of {dict(total)}")
    assert figures["hidden"] == figures["escapes"] == 1
    assert figures["secrets"] >= 0.87
    assert figures["personal"] >= 0.75


def test_innocent_texts_are_left_alone() -> None:
    samples = corpus("innocent.jsonl")
    alarms = [sample["text"] for sample in samples if look({"t": sample["text"]}, "warn") is not None]
    print(f"false alarms {len(alarms)} of {len(samples)}")
    assert len(samples) > 120
    assert alarms == []


def test_false_alarms_on_what_real_servers_and_programs_say() -> None:
    """Definitions of over a thousand real tools, the catalogue's texts, and this project's own documents."""
    servers = json.loads((CORPORA.parents[1] / "docs" / "servers.json").read_text())["servers"]
    said = [json.dumps(tool, ensure_ascii=False) for server in servers for tool in server["tools"]]
    said += [entry.description for entry in load_catalog(find_shipped_catalog()).entries.values()]
    said += [path.read_text() for path in (CORPORA.parents[1] / "docs").glob("*.md")]
    scan = scanner(Guards.of(DEFAULTS["results"]))
    alarms = {text[:80]: done.kinds for text in said if (done := scan.scan(json.dumps({"t": text}).encode()))}
    print(f"false alarms {len(alarms)} of {len(said)}: {alarms}")
    assert len(said) > 1000
    assert len(alarms) <= 0.01 * len(said)


@pytest.mark.parametrize(
    "spelled",
    [KEY, "".join(f"\\u{ord(c):04x}" for c in KEY), KEY[:2] + "\\u0070_" + KEY[4:], KEY.replace("_", "\\u005F")],
)
def test_a_secret_is_found_however_json_spells_it(spelled: str) -> None:
    done = scanner(Guards.of({"secrets": "redact"})).scan(b'{"t":"use ' + spelled.encode() + b' now"}')
    assert texts(done) == "use [GitHub token removed] now"


def test_secrets_are_found_in_json_within_text_and_in_names() -> None:
    done = look({"t": json.dumps({"token": KEY}), KEY: 1, "deep": [[{"a": f"x {KEY}"}]]})
    assert done is not None
    assert done.counts["secrets"] == 3
    assert done.keys_changed
    assert KEY.encode() not in done.payload


def test_text_in_base64_is_read_and_pictures_are_not() -> None:
    blob = base64.b64encode(f"key {KEY}".encode()).decode()
    done = look({"contents": [{"uri": "a:b", "mimeType": "text/plain", "blob": blob}]})
    assert done is not None
    assert base64.b64decode(json.loads(done.payload)["contents"][0]["blob"]) == b"key [GitHub token removed]"
    assert look({"content": [{"type": "image", "mimeType": "image/png", "data": KEY}]}) is None


def test_what_a_server_gets_back_is_not_touched() -> None:
    assert look({"requestState": KEY, "nextCursor": KEY, "taskId": KEY}) is None


@pytest.mark.sec("SEC-086")
def test_what_drives_a_terminal_is_shown_in_place() -> None:
    assert texts(look({"t": "a\x1b]52;c;ZQ==\x07b\rc\r\nd\x9b1m"})) == "a␛]52;c;ZQ==␇b␍c\r\nd[U+009B]1m"


def test_hidden_characters_are_named_and_human_ones_kept() -> None:
    assert texts(look({"t": "a\u202eb \U000e0041\U000e0042 ❤\ufe0f\u200d🔥 می\u200cخواهم"})) == (
        "a[U+202E]b [2 hidden characters] ❤\ufe0f\u200d🔥 می\u200cخواهم"
    )


def test_a_secret_split_by_hidden_characters_is_found_where_those_are_shown() -> None:
    done = look({"t": KEY[:20] + "\u200b" + KEY[20:]})
    assert done is not None
    assert done.counts["hidden"] == 1


def test_every_hidden_character_is_looked_for() -> None:
    runs = {chr(code) for code in range(0x80, 0x110000) if unseen._RUN.match(chr(code))}
    assert runs == set(unseen.CHARACTERS)


@pytest.mark.parametrize(
    "text",
    [
        "card\n4111 1111 1111 1111", "(4111-1111-1111-1111)", "20260 4111 1111 1111 1111", "3782 822463 10005",
        "é4111111111111111", "\tDE89 3704 0044 0532 0130 00", "x: DE89370400440532013000.", "\n078-05-1120",
        "\n+49 30 1234567", "call (212) 555-1234", "+49(30)1234567",
    ],
)  # fmt: skip
def test_numbers_are_found_whatever_stands_before_them(text: str) -> None:
    done = look({"t": text}, guards=("personal",))
    assert done is not None
    assert done.counts == {"personal": 1}


def test_findings_are_counted_up_to_a_number_and_replaced_all() -> None:
    text = f"{KEY} a\u202eb \x1b a.b@firm.de\n" * (MAX_COUNTED + 7)
    each = ("secrets", "hidden", "escapes", "personal")
    for value in ({"t": text}, {"t": text.splitlines()}):
        for mode in ("warn", "block"):
            done = look(value, mode, each)  # type: ignore[arg-type]
            assert done is not None
            assert done.counts == dict.fromkeys(each, MAX_COUNTED)
            assert (done.blocked is not None) == (mode == "block")
        done = look(value, "redact", each)  # type: ignore[arg-type]
        assert done is not None
        assert set(done.counts.values()) == {MAX_COUNTED + 7}
        for gone in (KEY, "\\u202e", "\u202e", "\x1b", "\\u001b", "firm.de"):
            assert gone.encode() not in done.payload


# -- markup ----------------------------------------------------------------------------------------


@pytest.mark.sec("SEC-087")
@pytest.mark.parametrize(
    ("kind", "text", "found"),
    [
        ("svg", "<svg><script>alert(1)</script></svg>", "script in a picture"),
        ("svg", '<svg onload="x()"/>', "event handler in a picture"),
        ("svg", '<svg><a xlink:href="java\tscript:x()">a</a></svg>', "script in an address"),
        ("svg", "<svg><foreignObject><body/></foreignObject></svg>", "foreign content in a picture"),
        ("svg", '<svg><image href="https://evil.test/p.png"/></svg>', "loads from an unlisted host"),
        ("svg", '<!DOCTYPE svg [<!ENTITY x "y">]><svg/>', "entities of its own"),
        ("svg", '<svg><animate attributeName="href" values="javascript:x()"/></svg>', "script in an address"),
        ("html", '<script src="https://evil.test/x.js"></script>', "loads from an unlisted host"),
        ("html", '<img src="//evil.test/p?d=1">', "loads from an unlisted host"),
        ("html", '<img srcset="a.png 1x, https://evil.test/b.png 2x">', "loads from an unlisted host"),
        ("html", '<form action="https://evil.test/in"><input></form>', "sends to an unlisted host"),
        ("html", '<button formaction="https://evil.test/in">', "sends to an unlisted host"),
        ("html", '<meta http-equiv="Refresh" content="0;url=https://evil.test">', "redirect"),
        ("html", '<base href="https://evil.test/">', "base element"),
        ("html", '<iframe srcdoc="x"></iframe>', "iframe element"),
        ("html", '<a href="javascript:x()">a</a>', "script in an address"),
        ("html", "<style>@import url(https://evil.test/x.css)</style>", "loads from an unlisted host"),
        ("html", '<p style="background:url(https://evil.test/p)">', "loads from an unlisted host"),
    ],
)
def test_markup_that_runs_or_reaches_out_is_found(kind: str, text: str, found: str) -> None:
    assert found in pages.inspect(text, kind, {"cdn.firm.test"})


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("svg", '<svg xmlns="http://www.w3.org/2000/svg"><circle r="4"/><use href="#a"/></svg>'),
        ("html", "<script>let a = 1</script><p onclick='a()'>x</p><img src='data:image/png;base64,AA=='>"),
        ("html", '<script src="https://cdn.firm.test/x.js"></script><a href="https://elsewhere.test">link</a>'),
        ("html", '<img src="https://a.pictures.test/x.png">'),
    ],
)
def test_markup_of_an_app_as_it_declares_itself_is_left_alone(kind: str, text: str) -> None:
    assert pages.inspect(text, kind, {"cdn.firm.test", "*.pictures.test"}) == []


def test_pictures_and_pages_are_replaced_whole() -> None:
    svg = base64.b64encode(b"<svg onload='x()'/>").decode()
    done = look(
        {
            "content": [
                {"type": "image", "mimeType": "image/svg+xml", "data": svg},
                {"type": "resource", "resource": {"uri": "ui://a", "mimeType": "text/html", "text": "<base href=x>"}},
            ]
        }
    )
    assert done is not None
    picture, page = json.loads(done.payload)["content"]
    assert picture == {"type": "text", "text": "[removed by the gateway: event handler in a picture]"}
    assert page["resource"]["mimeType"] == "text/plain"
    assert page["resource"]["text"] == "[removed by the gateway: base element]"


# -- limits ----------------------------------------------------------------------------------------


@pytest.mark.sec("SEC-087")
def test_a_result_over_the_limit_is_cut_and_says_so() -> None:
    whole = {"content": [{"type": "text", "text": "é" * 3000}] * 3}
    done = look(whole, max_bytes=5000)
    assert done is not None
    kept = json.loads(done.payload)["content"]
    assert len(done.payload) < 7000
    assert kept[-1]["text"].startswith("[cut here: 3 items of ")
    assert kept[0]["text"].strip("é") == ""


def test_too_many_items_are_cut_and_structured_content_is_refused() -> None:
    done = look({"content": [{"type": "text", "text": "x"}] * 50}, max_items=10)
    assert done is not None
    assert len(json.loads(done.payload)["content"]) == 11
    done = look({"content": [], "structuredContent": {"a": "x" * 3000}}, max_bytes=2000)
    assert done is not None
    assert done.blocked == "size"


# -- whatever comes --------------------------------------------------------------------------------

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
    | st.sampled_from([KEY, f"a {KEY}.", "a\u202eb", "\x1b[1m", "mail a.b@firm.de", "4111 1111 1111 1111", "<svg/>"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.just(KEY), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(st.dictionaries(st.text(max_size=8), values, max_size=5), st.booleans())
def test_what_is_left_is_json_without_what_was_found(value: dict[str, Any], ascii: bool) -> None:
    payload = json.dumps(value, ensure_ascii=ascii).encode("utf-8", "surrogatepass")
    try:
        msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return  # lone surrogates are no JSON that passes the wire
    scan = scanner(Guards.of(dict.fromkeys(GUARDS, "redact")))
    done = scan.scan(payload)
    if done is None:
        return
    left = json.loads(done.payload)
    assert isinstance(left, dict)
    if not value.keys() & {"requestState", "taskId", "nextCursor"}:
        assert KEY not in json.dumps(left)
        assert "4111 1111 1111 1111" not in json.dumps(left)
    again = scan.scan(done.payload)
    assert again is None or again.payload is done.payload or again.counts.keys() <= {"size"}


@given(st.dictionaries(st.text(max_size=8), values, max_size=5))
def test_the_look_at_the_bytes_misses_nothing_that_a_look_at_the_texts_finds(value: dict[str, Any]) -> None:
    payload = json.dumps(value).encode()
    scan = scanner(Guards.of(dict.fromkeys(GUARDS, "warn")))
    quick = scan.scan(payload)
    scan_all = type(scan)(scan.guards)
    scan_all.suspects = lambda payload: set(GUARDS) - {"size"}  # type: ignore[method-assign]
    full = scan_all.scan(payload)
    assert (quick.counts if quick else Counter()) == (full.counts if full else Counter())


def test_a_guard_that_is_off_finds_nothing() -> None:
    assert scanner(Guards.of({"secrets": "off"})).scan(json.dumps({"t": KEY}).encode()) is None
    assert look({"t": KEY}, guards=("hidden",)) is None
