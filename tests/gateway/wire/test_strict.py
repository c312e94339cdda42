"""A client's JSON has one reading only, and refusing it costs a bounded amount of work."""

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.wire import envelope, strict
from gateway.wire.envelope import WireError

pytestmark = pytest.mark.sec("SEC-016")

MIB = 1024 * 1024
AROUND = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x","arguments":%b}}'

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=30)


@st.composite
def spelled_keys(draw: st.DrawFn) -> tuple[str, str]:
    """One key in two spellings, as JSON."""
    key = draw(st.text(min_size=1, max_size=8).filter(lambda text: text.isprintable()))
    escaped = "".join(f"\\u{ord(c):04x}" if ord(c) < 0x10000 else c for c in key)
    return json.dumps(key, ensure_ascii=False), f'"{escaped}"' if draw(st.booleans()) else json.dumps(key)


@given(values, st.booleans(), st.sampled_from([None, 1]))
def test_ordinary_json_passes_however_it_is_spelled(value: Any, ascii: bool, indent: int | None) -> None:
    strict.check(json.dumps(value, ensure_ascii=ascii, indent=indent).encode("utf-8", "replace"))


@pytest.mark.parametrize("digits", [308, 309, 310, 400, 4300])
@pytest.mark.parametrize("around", [b"%b", b"[%b]", b'{"a":%b,"b":1}'])
def test_an_integer_no_double_holds_is_refused_however_plainly_it_is_written(digits: int, around: bytes) -> None:
    message = around % (b"9" * digits)
    if digits <= 308:
        strict.check(message)
    else:
        with pytest.raises(strict.Ambiguous, match="too large"):
            strict.check(message)


@given(spelled_keys(), values, values, st.lists(st.sampled_from(["[%s]", '{"k":%s}', '{"k":1,"z":[%s]}', " %s\n"])))
def test_a_key_that_comes_twice_is_refused_at_any_depth_and_in_any_spelling(
    keys: tuple[str, str], first: Any, second: Any, around: list[str]
) -> None:
    text = f"{{{keys[0]}:{json.dumps(first)},{keys[1]}:{json.dumps(second)}}}"
    for shell in around:
        text = shell.replace("%s", text)
    with pytest.raises(strict.Ambiguous, match="repeated"):
        strict.check(text.encode("utf-8", "replace"))


@pytest.mark.parametrize(
    "message",
    [
        b'{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}',
        b'{"jsonrpc":"2.0","id":1,"method":"ping","method":"tools/call"}',
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"allowed","name":"denied"}}',
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"allowed","n\\u0061me":"denied"}}',
        b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"_meta":{"progressToken":1,"progressToken":2}}}',
        AROUND % b'{"path":"/tmp","path":"/etc"}',
        AROUND % b'[{"deep":[{"a":1,"b":2,"a":3}]}]',
    ],
)
def test_envelope_params_and_arguments_hold_each_key_once(message: bytes) -> None:
    with pytest.raises(WireError) as caught:
        envelope.decode_from_client(message)
    assert caught.value.code == envelope.PARSE_ERROR


@pytest.mark.parametrize(
    "argument",
    [
        b"NaN",
        b"Infinity",
        b"-Infinity",
        b"1e999",
        b"-1e999",
        b"9" * 400,
        b"9" * 5000,
        b"-" + b"9" * 5000,
        b"9" * 400 + b".5",
        b'"\\ud800"',
        b'"\\udc00 and more text after it"',
        b'"\\ud800 and more text after it"',
        b'"\\ud83d\\u0041 and more text after it"',
        b'{"\\ud800 and more text after it":1}',
        b'"\xff"',
        b'"\xed\xa0\x80"',
        b'"\xc0\xaf"',
        b'"\xf4\x90\x80\x80"',
        b'"\x00"',
        b"[" * 127 + b"]" * 127,
        b'{"a":' * 127 + b"1" + b"}" * 127,
        b"[" * 100_000,
    ],
)
def test_what_parsers_disagree_about_is_refused(argument: bytes) -> None:
    with pytest.raises(WireError) as caught:
        envelope.decode_from_client(AROUND % argument)
    assert caught.value.code == envelope.PARSE_ERROR


@pytest.mark.parametrize(
    "argument",
    [
        b"1e308",
        b"9" * 300,
        b'"\\ud83d\\ude00"',
        b'"\\\\ud800"',
        b"[" * 126 + b"]" * 126,
        b'"' + b"[{" * 1000 + b'"',
        b'["a\\"b",{"a\\"":1,"a\\\\":2}]',
        b'{"a":{"a":{"a":1}},"b":[{"a":1},{"a":2}]}',
    ],
)
def test_what_only_looks_dangerous_passes(argument: bytes) -> None:
    envelope.decode_from_client(AROUND % argument)


@pytest.mark.parametrize("mark", [b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\x00"])
def test_a_byte_order_mark_is_refused(mark: bytes) -> None:
    with pytest.raises(WireError):
        envelope.decode_from_client(mark + AROUND % b"{}")


BOMBS = {
    "empty arrays": b"[" + b"[]," * (4 * MIB // 3) + b"1]",
    "empty objects": b"[" + b"{}," * (4 * MIB // 3) + b"1]",
    "small members": b"{" + b'"":1,' * (4 * MIB // 5) + b'"":1}',
    "small objects": b"[" + b'{"a":1},' * (4 * MIB // 8) + b"1]",
    "escapes": b'["' + b'\\n","' * (4 * MIB // 5) + b'"]',
    "numbers": b"[" + b"1," * (2 * MIB) + b"1]",
    "depth": b"[" * (2 * MIB) + b"]" * (2 * MIB),
    "keys in pairs": b"[" + b'{"a":1,"a":2},' * 100_000 + b"1]",
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_a_bomb_is_refused_before_anything_is_built_from_it(bomb: bytes) -> None:
    message = AROUND % bomb
    tracemalloc.start()
    try:
        with pytest.raises(WireError) as caught:
            envelope.decode_from_client(message)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.code == envelope.PARSE_ERROR
    assert peak < 5 * len(message) + 32 * MIB  # built, it would be ten times as much


def test_a_large_text_is_not_taken_for_many_values() -> None:
    for text in (b"a,b,[c],{d}\\n" * 100_000, b'\\",' * 300_000):
        envelope.decode_from_client(AROUND % (b'{"text":"%b"}' % text))
