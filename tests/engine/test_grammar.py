"""Grammars from JSON Schemas: what they allow is JSON, and fits the schema."""

import json
import random
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import BadRequest
from engine.grammar import MAX_GRAMMAR_CHARS, GrammarBuilder, check_grammar_text
from tests.engine.gbnf import parse

Schema = dict[str, Any]


def grammar_of(schema: object) -> str:
    builder = GrammarBuilder()
    text = builder.text(builder.add_schema(schema, "t"))
    check_grammar_text(text)
    return text


def texts_of(schema: object, n: int = 20) -> list[str]:
    grammar = parse(grammar_of(schema))
    return [grammar.write(random.Random(seed).randrange) for seed in range(n)]


def values_of(schema: object, n: int = 20) -> list[Any]:
    return [json.loads(text) for text in texts_of(schema, n)]


names = st.text('abcXYZ_-é"\\ ', min_size=1, max_size=8)
leaves: st.SearchStrategy[Schema] = st.one_of(
    st.sampled_from(
        [
            {"type": "string"},
            {"type": "string", "minLength": 2, "maxLength": 5},
            {"type": "integer"},
            {"type": "integer", "minimum": 0},
            {"type": "number"},
            {"type": "boolean"},
            {"type": "null"},
            {"type": ["string", "null"]},
            {},
        ]
    ),
    st.lists(
        st.one_of(st.text(max_size=6), st.integers(-99, 99), st.booleans(), st.none()), min_size=1, max_size=4
    ).map(lambda values: {"enum": values}),
    st.text(max_size=6).map(lambda value: {"const": value}),
)


def nested(inner: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    properties = st.dictionaries(names, inner, max_size=4)
    objects = properties.flatmap(
        lambda declared: st.fixed_dictionaries(
            {
                "type": st.just("object"),
                "properties": st.just(declared),
                "required": st.lists(st.sampled_from(sorted(declared)), unique=True) if declared else st.just([]),
            }
        )
    )
    arrays = st.builds(
        lambda item, least, more: {"type": "array", "items": item, "minItems": least, "maxItems": least + more},
        inner,
        st.integers(0, 3),
        st.integers(0, 3),
    )
    maps = inner.map(lambda item: {"type": "object", "additionalProperties": item})
    choices = st.lists(inner, min_size=1, max_size=3).map(lambda options: {"anyOf": options})
    return st.one_of(objects, arrays, maps, choices)


schemas = st.recursive(leaves, nested, max_leaves=12)


@settings(max_examples=300, deadline=None)
@given(schemas, st.randoms(use_true_random=False))
def test_every_text_of_the_grammar_is_json_that_fits_the_schema(schema: Schema, rng: random.Random) -> None:
    text = parse(grammar_of(schema)).write(rng.randrange)
    jsonschema.validate(json.loads(text), schema)


def test_required_members_always_come_and_optional_ones_sometimes() -> None:
    schema = {
        "type": "object",
        "properties": {"tail": {"type": "integer"}, "path": {"type": "string"}, "head": {"type": "integer"}},
        "required": ["path"],
    }
    seen = {tuple(value) for value in values_of(schema, 60)}
    assert seen == {("path",), ("path", "tail"), ("path", "head"), ("path", "tail", "head")}


def test_object_without_declared_members_can_be_closed() -> None:
    assert set(texts_of({"type": "object", "properties": {}, "additionalProperties": False})) == {"{}"}


def test_local_references_are_followed_also_in_circles() -> None:
    schema = {
        "type": "object",
        "properties": {"child": {"$ref": "#/$defs/node"}},
        "required": ["child"],
        "$defs": {
            "node": {
                "type": "object",
                "properties": {"name": {"const": "n"}, "next": {"$ref": "#/$defs/node"}},
                "required": ["name"],
            }
        },
    }
    for value in values_of(schema):
        jsonschema.validate(value, schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"anyOf": [{"$ref": "#/$defs/a"}]}}},
        {"$ref": "#"},
        {
            "$ref": "#/$defs/a",
            "$defs": {
                "a": {"anyOf": [{"type": "array", "items": {"$ref": "#/$defs/b"}}, {"$ref": "#/$defs/b"}]},
                "b": {"anyOf": [{"$ref": "#/$defs/a"}, {"type": "string"}]},
            },
        },
    ],
)
def test_references_that_lead_to_themselves_become_any_value(schema: Schema) -> None:
    grammar = parse(grammar_of(schema))
    json.loads(grammar.write(random.Random(1).randrange))


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "https://example.com/schema.json"},
        {"$ref": "#/nowhere"},
        {"type": "teapot"},
        {"not": {"type": "string"}},
        {"enum": []},
        {"enum": list(range(100_000))},
        {"const": "x" * 100_000},
        True,
        None,
        "string",
    ],
)
def test_what_cannot_be_expressed_becomes_any_json_value(schema: object) -> None:
    assert "root ::= value\n" in grammar_of(schema)


def test_all_of_is_merged() -> None:
    schema = {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
            {"properties": {"b": {"type": "boolean"}}, "required": ["b"]},
        ]
    }
    assert {tuple(value) for value in values_of(schema)} == {("a", "b")}


def deep(levels: int) -> Schema:
    schema: Schema = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        deep(900),
        {"type": "object", "properties": {f"p{n}": deep(3) for n in range(5_000)}},
        {"anyOf": [{"type": "string", "maxLength": n} for n in range(500)]},
        {"type": "string", "minLength": 1_000_000_000},
        {"type": "array", "items": {"type": "string"}, "minItems": 10**12, "maxItems": 10**15},
        {"anyOf": [{"anyOf": [{"anyOf": [{"anyOf": [{"type": "string"}] * 20}] * 20}] * 20}] * 20},
    ],
    ids=["deep", "wide", "many choices", "long string", "long array", "exponential choices"],
)
@pytest.mark.sec("SEC-098")
def test_schema_bomb_gives_a_small_grammar(schema: Schema) -> None:
    assert len(grammar_of(schema)) < MAX_GRAMMAR_CHARS


@pytest.mark.parametrize(
    "text",
    [
        "root ::= " + "(" * 60_000 + '"a"' + ")" * 60_000,
        'root ::= "a"{0,1000000000}',
        'root ::= "' + "a" * (MAX_GRAMMAR_CHARS + 1) + '"',
        'root ::= "a\0"',
    ],
    ids=["60,000 groups", "repetition", "too long", "zero byte"],
)
@pytest.mark.sec("SEC-098")
def test_grammar_text_llama_cpp_might_not_survive_is_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        check_grammar_text(text)
