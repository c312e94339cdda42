"""Tool calls in the text of a model, however it was cut into pieces."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.calls import Call, CallParser, Text

NAMES = {"get_time", "add"}
TIME = Call("get_time", '{"zone": "Asia/Tokyo"}')
ADD = Call("add", '{"a": 1, "b": 2}')
TIME_JSON = '{"name": "get_time", "arguments": {"zone": "Asia/Tokyo"}}'
ADD_JSON = '{"name": "add", "arguments": {"a": 1, "b": 2}}'


def parsed(pieces: list[str]) -> tuple[str, list[Call]]:
    parser = CallParser(NAMES)
    found = [item for piece in pieces for item in parser.feed(piece)] + list(parser.finish())
    text = "".join(item.text for item in found if isinstance(item, Text))
    return text, [item for item in found if isinstance(item, Call)]


CASES = {
    "a tagged call": (f"<tool_call>\n{TIME_JSON}\n</tool_call>", "", [TIME]),
    "two calls": (f"<tool_call>{TIME_JSON}</tool_call>\n<tool_call>\n{ADD_JSON}\n</tool_call>", "", [TIME, ADD]),
    "text before a call": (f"Let me look.\n<tool_call>\n{TIME_JSON}\n</tool_call>", "Let me look.", [TIME]),
    "a closing tag in a string": (
        '<tool_call>{"name": "get_time", "arguments": {"zone": "</tool_call> x"}}</tool_call>',
        "",
        [Call("get_time", '{"zone": "</tool_call> x"}')],
    ),
    "a list of calls": (f"<tool_call>[{TIME_JSON}, {ADD_JSON}]</tool_call>", "", [TIME, ADD]),
    "calls on lines": (f"<tool_call>\n{TIME_JSON}\n{ADD_JSON}\n</tool_call>", "", [TIME, ADD]),
    "a call in a fence": (f"```json\n{TIME_JSON}\n```", "", [TIME]),
    "text and a call in a fence": (f"Sure:\n```json\n{TIME_JSON}\n```", "Sure:", [TIME]),
    "a bare call": (TIME_JSON, "", [TIME]),
    "a bare call over lines": (json.dumps(json.loads(TIME_JSON), indent=2), "", [TIME]),
    "a bare list": (f"[{ADD_JSON}]", "", [ADD]),
    "the tools tag": (f"<tools>{ADD_JSON}</tools>", "", [ADD]),
    "parameters instead of arguments": ('{"name": "add", "parameters": {"a": 1, "b": 2}}', "", [ADD]),
    "arguments as text": (json.dumps({"name": "add", "arguments": '{"a": 1, "b": 2}'}), "", [ADD]),
    "a function inside": (f'{{"type": "function", "function": {ADD_JSON}}}', "", [ADD]),
    "no arguments in a tag": ('<tool_call>{"name": "get_time"}</tool_call>', "", [Call("get_time", "{}")]),
    "a tag never closed": (f"<tool_call>\n{TIME_JSON}", "", [TIME]),
    "a call cut off": ('<tool_call>\n{"name": "get_time", "argum', "", []),
    "a second call cut off": (f"<tool_call>{TIME_JSON}</tool_call>\n<tool_c", "", [TIME]),
    "an unknown tool in a tag": ('<tool_call>{"name": "rm", "arguments": {}}</tool_call>', "", []),
    "an unknown tool as JSON": ('{"name": "rm", "arguments": {}}', '{"name": "rm", "arguments": {}}', []),
    "other JSON": ('{"answer": 42}', '{"answer": 42}', []),
    "JSON in a fence": ('```json\n{"a": 1}\n```\nDone.', '```json\n{"a": 1}\n```\nDone.', []),
    "code in a fence": ("```python\nprint({1: 2})\n```", "```python\nprint({1: 2})\n```", []),
    "a fence never closed": ("```python\nx = 1", "```python\nx = 1", []),
    "a brace that opens nothing": ("{ is a brace\nand so on", "{ is a brace\nand so on", []),
    "braces inside a line": ("Use {name} and <b>bold</b>, 1 < 2.", "Use {name} and <b>bold</b>, 1 < 2.", []),
    "a markdown link": ("[Docs](https://example.com) and\n[more]", "[Docs](https://example.com) and\n[more]", []),
    "plain text": ("Hello!\n\nHow are you?", "Hello!\n\nHow are you?", []),
    "nothing": ("", "", []),
}


@pytest.mark.parametrize("case", CASES)
def test_calls_are_found_and_everything_else_is_text(case: str) -> None:
    written, text, calls = CASES[case]
    assert parsed([written]) == (text, calls)


@pytest.mark.parametrize("case", CASES)
def test_pieces_do_not_matter(case: str) -> None:
    written, text, calls = CASES[case]
    assert parsed(list(written)) == (text, calls)
    for middle in range(len(written)):
        assert parsed([written[:middle], written[middle:]]) == (text, calls)


def test_text_is_not_held_back_without_need() -> None:
    parser = CallParser(NAMES)
    assert list(parser.feed("Hello")) == [Text("Hello")]
    assert list(parser.feed(" <")) == []
    assert list(parser.feed(" 3")) == [Text(" < 3")]


def test_call_comes_as_soon_as_it_is_closed() -> None:
    parser = CallParser(NAMES)
    assert list(parser.feed(f"<tool_call>{TIME_JSON}</tool_call>")) == [TIME]


@given(st.text('<tool_call>/{}[]"`\n ab:,1', max_size=60), st.integers(1, 7))
def test_any_text_is_read_the_same_whole_and_in_pieces(written: str, size: int) -> None:
    pieces = [written[at : at + size] for at in range(0, len(written), size)]
    whole_text, whole_calls = parsed([written])
    assert parsed(pieces) == (whole_text, whole_calls)
    assert "<tool_call>" not in whole_text


def test_nested_brackets_do_not_exhaust_the_stack() -> None:
    text, calls = parsed(["[" * 100_000])
    assert calls == []
    assert len(text) <= 100_000
