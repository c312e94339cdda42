"""JSON-RPC envelopes: what is accepted, what is refused, and that payloads stay the bytes they were."""

import json
import time
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from gateway.wire import envelope
from gateway.wire.envelope import WireError

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
texts = st.text(st.characters(exclude_categories=["Cs"]))
values = st.recursive(
    scalars.filter(lambda value: not isinstance(value, str)) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
objects = st.dictionaries(texts, values, max_size=5)
blanks = st.text(" \t\n\r", max_size=3)


@st.composite
def spelled(draw: st.DrawFn, value: Any) -> str:
    """One of the many ways to write a JSON value: blanks, escapes and number forms as the dice fall."""
    before, after = draw(blanks), draw(blanks)
    match value:
        case dict():
            members = [f"{draw(spelled(key))}:{draw(spelled(inner))}" for key, inner in value.items()]
            body = "{" + (",".join(members) or draw(blanks)) + "}"
        case list():
            body = "[" + (",".join(draw(spelled(inner)) for inner in value) or draw(blanks)) + "]"
        case str():
            body = json.dumps(value, ensure_ascii=draw(st.booleans()))
        case float():
            body = draw(st.sampled_from([repr(value), f"{value:.17e}", f"{value:.17E}"]))
        case _:
            body = json.dumps(value)
    return before + body + after


def message(**members: str) -> bytes:
    """A JSON-RPC message whose members are given as JSON text."""
    body = ",".join(f'"{name}":{text}' for name, text in {"jsonrpc": '"2.0"', **members}.items())
    return ("{" + body + "}").encode()


# -- what goes through unchanged -----------------------------------------------------------------


@given(st.data(), objects)
def test_payload_bytes_pass_through_as_they_were_spelled(data: st.DataObject, payload: dict[str, Any]) -> None:
    text = data.draw(spelled(payload))
    request = envelope.decode(message(id="1", method='"m"', params=text))
    answer = envelope.decode(message(id="1", result=text))
    assert bytes(request.params) == bytes(answer.result) == text.strip().encode()


@given(st.data(), objects)
def test_a_request_that_was_written_reads_back_the_same(data: st.DataObject, payload: dict[str, Any]) -> None:
    id = data.draw(st.integers().map(str) | texts.map(json.dumps)).encode()
    method = data.draw(texts.filter(bool))
    params = envelope.encode(payload)
    incoming = envelope.decode(envelope.request(id, method, params))
    assert (bytes(incoming.id), incoming.method, bytes(incoming.params)) == (id, method, params)
    assert incoming.kind == "request"
    incoming = envelope.decode(envelope.notification(method, params))
    assert (bytes(incoming.id), incoming.method, bytes(incoming.params)) == (b"", method, params)
    assert incoming.kind == "notification"
    incoming = envelope.decode(envelope.result(id, params))
    assert (bytes(incoming.id), bytes(incoming.result), incoming.kind) == (id, params, "response")
    incoming = envelope.decode(envelope.error(id, -32000, method, payload))
    assert envelope.value(incoming.error) == {"code": -32000, "message": method, "data": payload}


def test_absent_params_are_left_out() -> None:
    assert envelope.request(b"1", "m", b"") == b'{"jsonrpc":"2.0","id":1,"method":"m"}'
    assert envelope.notification("m") == b'{"jsonrpc":"2.0","method":"m"}'


PARTICULAR = (
    b'{"n":1.10e5,"m":1.0,"big":123456789012345678901234567890,"tiny":1e-400,"minus":-0.0}',
    b'{"z":1,"a":2,"m":3}',
    b'{"twice":1,"twice":2}',
    b'{"unknown":{"x-vendor":[null,true]},"_meta":{"a/b":1}}',
    b'{"escaped":"\\u00e9\\/\\n\\ud83d\\ude00","plain":"\xc3\xa9"}',
    b'{ "spaced" :\t[ 1 , 2 ] }',
)


@pytest.mark.parametrize("payload", PARTICULAR)
def test_number_spellings_key_order_and_repeated_keys_survive(payload: bytes) -> None:
    incoming = envelope.decode(message(id="1", method='"m"', params=payload.decode()))
    assert bytes(incoming.params) == payload
    assert payload in envelope.request(b"7", "m", bytes(incoming.params))


@pytest.mark.parametrize("payload", PARTICULAR)
def test_a_changed_member_leaves_its_neighbours_as_they_were(payload: bytes) -> None:
    members = envelope.fields(b'{"name":"a","arguments":%b,"_meta":{"x":1.10e5}}' % payload)
    members["name"] = envelope.raw("b")
    assert envelope.encode(members) == b'{"name":"b","arguments":%b,"_meta":{"x":1.10e5}}' % payload


# -- ids -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "id",
    ["0", "1", "-1", "-0", "9007199254740993", "9" * 5000, '"a"', '""', '"1"', '"\\u0061"', '"\\ud83d\\ude00"', '"é"'],
    ids=ascii,
)
def test_an_id_is_kept_as_it_was_spelled(id: str) -> None:
    assert bytes(envelope.decode(message(id=f" {id} ", method='"m"')).id) == id.encode()


@pytest.mark.parametrize("id", ["1.0", "1e3", "1E0", "-1.5", "null", "true", "false", "{}", "[]", "[1]", '{"id":1}'])
@pytest.mark.parametrize("rest", [{"method": '"m"'}, {"result": "{}"}])
def test_an_id_that_is_neither_string_nor_integer_is_refused(id: str, rest: dict[str, str]) -> None:
    with pytest.raises(WireError) as caught:
        envelope.decode(message(id=id, **rest))
    assert caught.value.code == envelope.INVALID_REQUEST
    assert caught.value.id == b"null"


def test_a_null_id_is_fine_in_an_error_answer() -> None:
    incoming = envelope.decode(message(id="null", error='{"code":-32700,"message":"x"}'))
    assert incoming.kind == "response"


# -- what is refused -----------------------------------------------------------------------------


def nested(depth: int) -> bytes:
    return message(id="1", method='"m"', params='{"a":' + "[" * depth + "]" * depth + "}")


NOT_JSON = (
    b"",
    b" ",
    b"{",
    b"nonsense",
    b'{"jsonrpc":"2.0","id":1,"method":"m"',
    b'{"jsonrpc":"2.0","id":1,"method":"m"} x',
    b'{"jsonrpc":"2.0","id":1,"method":"m"}{"jsonrpc":"2.0","id":2,"method":"m"}',
    b'\xef\xbb\xbf{"jsonrpc":"2.0","id":1,"method":"m"}',
    b'{"jsonrpc":"2.0","id":1,"method":"\xff"}',
    b'{"jsonrpc":"2.0","id":1,"method":"m","params":{"a":"\xc3"}}',
    b'{"jsonrpc":"2.0","id":1,"method":"m","params":{"a":"\xed\xa0\x80"}}',
    b'{"jsonrpc":"2.0","id":1,"method":"m","params":{"a":"\xc0\xaf"}}',
    b'{"jsonrpc":"2.0","id":1,"method":"m"}'.decode().encode("utf-16"),
    nested(100_000),
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"jsonrpc":"2.0","id":1,"method":"\\ud800"}',
    *(
        b'{"jsonrpc":"2.0","id":1,"method":"m","params":{"a":%b}}' % bad
        for bad in (
            *(b"NaN", b"Infinity", b"-Infinity", b"nan", b"01", b"1.", b".5", b"+1", b"1e", b"0x1", b"--1", b"-"),
            *(b"tru", b"True", b"None", b"'a'", b"/*c*/1", b"1//c", b"[1,]", b'{"a":1,}', b"[1 2]", b"{a:1}", b"1.e5"),
            *(b'"a\nb"', b'"a\rb"', b'"\x00"', b'"\x1f"', b'"\\x41"', b'"\\u12"', b'"\\ud800"', b'"a', b"1;2"),
        )
    ),
)


@pytest.mark.parametrize("data", NOT_JSON, ids=range(len(NOT_JSON)))
def test_what_is_not_strict_json_is_a_parse_error(data: bytes) -> None:
    started = time.monotonic()
    with pytest.raises(WireError) as caught:
        envelope.decode(data)
    assert caught.value.code in (envelope.PARSE_ERROR, envelope.INVALID_REQUEST)
    assert "\n" not in caught.value.message
    assert time.monotonic() - started < 1.0


@pytest.mark.parametrize(
    "data",
    [
        b"null",
        b"1",
        b'"text"',
        b"[]",
        b'[{"jsonrpc":"2.0","id":1,"method":"m"}]',
        b"{}",
        b'{"id":1,"method":"m"}',
        b'{"jsonrpc":"1.0","id":1,"method":"m"}',
        b'{"jsonrpc":2.0,"id":1,"method":"m"}',
        message(id="1"),
        message(id="1", method='""'),
        message(id="1", method="null"),
        message(id="1", method="7"),
        message(id="1", method='"m"', params="[]"),
        message(id="1", method='"m"', params="null"),
        message(id="1", method='"m"', params="1"),
        message(id="1", method='"m"', params='"{}"'),
    ],
)
def test_json_that_is_no_json_rpc_is_an_invalid_request(data: bytes) -> None:
    with pytest.raises(WireError) as caught:
        envelope.decode(data)
    assert caught.value.code == envelope.INVALID_REQUEST


def test_the_refusal_of_a_request_with_bad_params_names_its_id() -> None:
    with pytest.raises(WireError) as caught:
        envelope.decode(message(id='"mine"', method='"m"', params="[]"))
    assert caught.value.id == b'"mine"'


@given(st.binary(max_size=200))
def test_any_bytes_decode_or_raise_a_wire_error(data: bytes) -> None:
    with suppress(WireError):
        envelope.decode(data)


@given(st.data(), values, st.integers(0, 400), st.binary(min_size=1, max_size=3))
def test_a_damaged_message_is_refused_exactly_when_json_refuses_it(
    data: st.DataObject, payload: Any, place: int, damage: bytes
) -> None:
    text = message(id="1", method='"m"', params='{"a":' + data.draw(spelled(payload)) + "}")
    damaged = text[: place % len(text)] + damage + text[place % len(text) :]

    def refuse(name: str) -> None:
        raise ValueError(name)

    try:
        decoded = json.loads(damaged.decode("utf-8"), parse_constant=refuse)
        json.dumps(decoded, ensure_ascii=False).encode()  # a lone surrogate is no Unicode
        is_json = not damaged.startswith(b"\xef\xbb\xbf")
    except ValueError:
        is_json = False
    if not is_json:
        with pytest.raises(WireError):
            envelope.decode(damaged)
        return
    try:
        envelope.decode(damaged)
        refusal = None
    except WireError as exc:
        refusal = exc.code
    assert refusal in (None, envelope.INVALID_REQUEST)


# -- single lines --------------------------------------------------------------------------------


@given(st.data(), values)
def test_one_line_keeps_the_content_and_has_no_line_break(data: st.DataObject, payload: Any) -> None:
    text = data.draw(spelled(payload)).encode()
    line = envelope.one_line(text)
    assert b"\n" not in line
    assert b"\r" not in line
    assert json.loads(line) == json.loads(text)


@pytest.mark.parametrize("payload", PARTICULAR)
def test_one_line_keeps_spellings(payload: bytes) -> None:
    line = envelope.one_line(b"\r\n[\n" + payload + b"\n]\r\n")
    assert line.strip() == b"[ " + payload + b" ]"


@pytest.mark.parametrize("data", [b'{"a":"x\ny"}', b"\n{oops\r", b"\n" + b"[" * 100_000])
def test_one_line_lets_no_line_break_through_whatever_it_is_given(data: bytes) -> None:
    line = envelope.one_line(data)
    assert b"\n" not in line
    assert b"\r" not in line


def test_one_line_takes_whatever_depth_decode_takes() -> None:
    # The deeper the stack, the less nesting a recursive formatter takes: this one runs deeper than the decoder did.
    def deeper(levels: int, payload: bytes) -> bytes:
        return deeper(levels - 1, payload) if levels else envelope.one_line(payload)

    depth = 1000
    while True:
        try:
            incoming = envelope.decode(message(id="1", result="\n" + "[" * depth + "]" * depth))
            break
        except WireError:
            depth -= 10
    assert deeper(100, bytes(incoming.result)).count(b"[") == depth


# -- members -------------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", [b"[]", b"1", b'"x"', b"null", b"[" * 100_000, b'{"a":' * 100_000])
def test_what_is_no_object_has_no_members(payload: bytes) -> None:
    with pytest.raises(WireError):
        envelope.fields(payload)


@pytest.mark.parametrize("payload", [b"{}", b"1", b'"x"', b"null", b"[" * 100_000])
def test_what_is_no_array_has_no_items(payload: bytes) -> None:
    with pytest.raises(WireError):
        envelope.items(payload)
    with pytest.raises(WireError):
        envelope.decode_batch(payload)


def test_an_absent_payload_has_no_members() -> None:
    assert envelope.fields(b"") == {}


def test_a_text_member_must_be_a_string_and_is_named_in_the_refusal() -> None:
    assert envelope.text(Raw(b'"\\u0061"'), "name") == "a"
    for bad in (b"", b"1", b"null", b"[]", b'"\\ud800"'):
        with pytest.raises(WireError, match=r"^cursor must be a string$") as caught:
            envelope.text(Raw(bad), "cursor")
        assert caught.value.code == envelope.INVALID_PARAMS
