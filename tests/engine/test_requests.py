"""Chat requests from clients: what is known is checked, what is unknown is refused."""

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import BadRequest
from engine.requests import MAX_TEXT_CHARS, ChatRequest, parse_request, text_of

HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}]}
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def test_smallest_request_is_enough() -> None:
    request = parse_request(HELLO)
    assert text_of(request.messages[0].content) == "Hello"


def test_full_conversation_is_read() -> None:
    body = {
        "model": "m",
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "Ann"},
            {
                "role": "assistant",
                "content": None,
                "refusal": None,
                "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
            },
            {"role": "tool", "tool_call_id": "1", "content": "done"},
        ],
        "tools": [TOOL],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}},
        "stop": ["a", "b"],
        "temperature": 0,
        "user": "ann",
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert text_of(parse_request(body).messages[1].content) == "a\nb"


BAD = {
    "no messages": {"messages": []},
    "messages missing": {"messages": None},
    "an unknown role": {"messages": [{"role": "root", "content": "x"}]},
    "an image": {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]},
    "a number as content": {"messages": [{"role": "user", "content": 7}]},
    "a user without content": {"messages": [{"role": "user"}]},
    "an unknown field": {**HELLO, "n_discard": -1},
    "top logprobs without logprobs": {**HELLO, "top_logprobs": 2},
    "too many top logprobs": {**HELLO, "logprobs": True, "top_logprobs": 21},
    "no answer": {**HELLO, "n": 0},
    "too many answers": {**HELLO, "n": 17},
    "a negative temperature": {**HELLO, "temperature": -0.1},
    "a boiling temperature": {**HELLO, "temperature": 1e9},
    "not-a-number": {**HELLO, "temperature": float("nan")},
    "top_p above one": {**HELLO, "top_p": 1.1},
    "no tokens": {**HELLO, "max_tokens": 0},
    "negative tokens": {**HELLO, "max_tokens": -1},
    "endless tokens": {**HELLO, "max_tokens": 1 << 62},
    "tokens as text": {**HELLO, "max_tokens": "10"},
    "an empty stop": {**HELLO, "stop": ""},
    "a long stop": {**HELLO, "stop": "x" * 1_000},
    "many stops": {**HELLO, "stop": ["x"] * 100},
    "a tool without name": {**HELLO, "tools": [{"type": "function", "function": {}}]},
    "a tool name with a quote": {**HELLO, "tools": [{"type": "function", "function": {"name": 'a"b'}}]},
    "a tool twice": {**HELLO, "tools": [TOOL, TOOL]},
    "a thousand tools": {**HELLO, "tools": [TOOL] * 1_000},
    "required without tools": {**HELLO, "tool_choice": "required"},
    "a choice that is not offered": {
        **HELLO,
        "tools": [TOOL],
        "tool_choice": {"type": "function", "function": {"name": "g"}},
    },
    "a regular expression as format": {**HELLO, "response_format": {"type": "regex"}},
    "too much text": {"messages": [{"role": "user", "content": "x" * (MAX_TEXT_CHARS + 1)}]},
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.sec("SEC-101")
def test_request_with_a_fault_is_refused_with_words(case: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_request(BAD[case])
    assert len(str(caught.value)) > 20


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)


@given(st.sampled_from(ChatRequest.__struct_fields__), json_values)
@pytest.mark.sec("SEC-101")
def test_any_value_in_any_field_is_read_or_refused(field: str, value: object) -> None:
    with contextlib.suppress(BadRequest):
        parse_request({**HELLO, field: value})
