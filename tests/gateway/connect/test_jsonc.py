"""Changes in place: whatever the document looks like, the change is made and nothing else is touched."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.connect.jsonc import ABSENT, MAX_DEPTH, DocumentError, get, put, remove

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
documents = st.dictionaries(st.text(max_size=6), values, max_size=4)
blanks = st.sampled_from(["", " ", "\n", "\n  ", "\t", "\r\n", " // note\n", " /* a, {b} */ ", '\n// "c": 1\n'])


@st.composite
def written(draw: st.DrawFn, value: Any = None) -> str:
    """A document as a person might have left it: comments, odd spacing, trailing commas."""

    def write(value: Any) -> str:
        if isinstance(value, dict):
            inner = [f"{blank()}{json.dumps(k)}{blank()}:{blank()}{write(v)}{blank()}" for k, v in value.items()]
            return "{" + ",".join(inner) + trailing(inner) + "}"
        if isinstance(value, list):
            inner = [f"{blank()}{write(item)}{blank()}" for item in value]
            return "[" + ",".join(inner) + trailing(inner) + "]"
        return json.dumps(value)

    def blank() -> str:
        return draw(blanks)

    def trailing(inner: list[str]) -> str:
        return ("," if inner and draw(st.booleans()) else "") + blank()

    return blank() + write(value) + blank()


@given(st.data(), documents, values, st.lists(st.text(max_size=6), min_size=1, max_size=3))
def test_a_value_that_was_put_is_there_and_all_else_is_as_it_was(
    data: st.DataObject, document: dict[str, Any], value: Any, path: list[str]
) -> None:
    text = data.draw(written(document))
    assert get(text, ()) == document
    expected = json.loads(json.dumps(document))
    inner = expected
    for name in path[:-1]:
        if not isinstance(inner, dict):
            break
        inner = inner.setdefault(name, {})
    if not isinstance(inner, dict):
        with pytest.raises(DocumentError, match="is not an object"):
            put(text, path, value)
        return
    replaced = inner.get(path[-1], ABSENT)
    inner[path[-1]] = value
    changed = put(text, path, value)
    assert get(changed, ()) == expected
    if replaced is ABSENT:
        assert comments(text) == comments(changed)


@given(st.data(), documents.filter(bool))
def test_a_member_that_was_removed_is_gone_and_all_else_is_as_it_was(
    data: st.DataObject, document: dict[str, Any]
) -> None:
    name = data.draw(st.sampled_from(sorted(document)))
    text = data.draw(written(document))
    changed = remove(text, [name])
    assert get(changed, ()) == {key: value for key, value in document.items() if key != name}
    assert remove(changed, [name]) == changed


@given(st.data(), documents, values)
def test_putting_and_removing_again_keeps_the_values(data: st.DataObject, document: dict[str, Any], value: Any) -> None:
    text = data.draw(written(document))
    name = data.draw(st.text(max_size=8).filter(lambda name: name not in document))
    assert get(remove(put(text, [name], value), [name]), ()) == document


def comments(text: str) -> list[str]:
    """Comments outside strings."""
    tokens = re.findall(r'"(?:[^"\\]|\\.)*"|//[^\n]*|/\*.*?\*/', text, re.DOTALL)
    return [token.rstrip("\r") for token in tokens if token.startswith("/")]


def test_an_empty_document_becomes_one() -> None:
    assert json.loads(put("", ["a", "b"], 1)) == {"a": {"b": 1}}
    assert put("// mine\n", ["a"], 1).startswith("// mine\n{")


def test_line_ends_and_byte_order_mark_stay() -> None:
    changed = put('\ufeff{\r\n    "a": 1\r\n}\r\n', ["b"], {"c": 2})
    assert changed == '\ufeff{\r\n    "a": 1,\r\n    "b": {\r\n        "c": 2\r\n    }\r\n}\r\n'


def test_a_plain_json_file_stays_plain_json() -> None:
    text = '{\n  "a": 1,\n  "b": 2\n}\n'
    assert json.loads(remove(text, ["b"])) == {"a": 1}
    assert json.loads(remove(text, ["a"])) == {"b": 2}
    assert json.loads(put(text, ["c"], 3)) == {"a": 1, "b": 2, "c": 3}


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('{"a": 1', "line 1, column 8"),
        ('{\n  "a" 1\n}', "line 2, column 7"),
        ('{"a": 1, "a": 2}', "line 1, column 10: member 'a' stands twice"),
        ("{a: 1}", "line 1, column 2"),
        ('{"a": 01}', "line 1, column 8"),
        ('{"a": NaN}', "line 1, column 7"),
        ('{"a": "x\ny"}', "line 1, column 7"),
        ('{"a": "\\q"}', "line 1, column 7"),
        ("{} {}", "line 1, column 4"),
        ("[1, 2", "line 1"),
        ("{ /* }", "line 1, column 3"),
        ("[" * (MAX_DEPTH + 5), "nested deeper"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(text: str, where: str) -> None:
    with pytest.raises(DocumentError, match=re.escape(where)):
        put(text, ["b"], 1)


def test_a_list_in_place_of_servers_is_refused() -> None:
    with pytest.raises(DocumentError, match="mcpServers is not an object"):
        put('{"mcpServers": []}', ["mcpServers", "lockgate"], {})


@pytest.mark.parametrize("text", ["", "\ufeff", "// note", "\ufeff// note", "/* note */", "// note\r\n// more"])
def test_a_document_of_nothing_but_comments_can_be_added_to(text: str) -> None:
    after = put(text, ("servers", "x"), {"a": 1})
    assert after.startswith(text)
    assert get(after, ("servers", "x")) == {"a": 1}
