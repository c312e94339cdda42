"""The published JSON Schema: it is what the models say, and what it refuses the loader refuses, too."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from catalog import CatalogInvalid, find_shipped_catalog, load_catalog
from catalog.jsonschema import SCHEMA_FILE, json_schema, schema_text
from catalog.parts import Limits, Mount, Package
from tests.catalog.files import IMAGE

BOX: dict[str, Any] = {"title": "Box", "description": "Keeps things in a box.", "image": IMAGE}
VALIDATOR = Draft202012Validator(json_schema())


def document(**more: object) -> dict[str, Any]:
    return {"version": 1, "servers": {"box": {**BOX, **more}}}


def loads(folder: Path, value: object) -> bool:
    """Whether the loader takes it; JSON is YAML."""
    path = folder / "catalog.yaml"
    path.write_text(json.dumps(value))
    try:
        load_catalog(path)
    except CatalogInvalid:
        return False
    return True


def test_published_schema_is_the_one_the_models_make() -> None:
    assert SCHEMA_FILE.read_text() == schema_text(), "run: lockgate catalog schema > catalog/schema.json"
    Draft202012Validator.check_schema(json_schema())


def test_shipped_catalog_is_valid_and_tells_editors_where_the_schema_is() -> None:
    text = find_shipped_catalog().read_text()
    assert text.splitlines()[0] == "# yaml-language-server: $schema=catalog/schema.json"
    value = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    assert [error.message for error in VALIDATOR.iter_errors(value)] == []


def test_every_key_has_words_that_an_editor_can_show() -> None:
    """Fields whose name and type say all need none; those of the parts with rules of their own do."""
    for part, field in (("Mount", "target"), ("Setting", "arg"), ("Package", "apt"), ("Entry", "hosts")):
        assert len(json_schema()["$defs"][part]["properties"][field]["description"]) > 20
    for model in (Limits, Mount, Package):
        assert list(json_schema()["$defs"][model.__name__]["properties"]) == list(model.model_fields)


@pytest.mark.parametrize(
    "wrong",
    [
        {"version": 2, "servers": {}},
        {"version": 1},
        {"version": 1, "servers": {}, "extra": {}},
        {"version": 1, "servers": {"b\u043ex": BOX}},
        {"version": 1, "servers": {"box": {**BOX, "title": None}}},
        document(privileged=True),
        document(title="x" * 81),
        document(network="host"),
        document(transport="tcp"),
        document(port="80"),
        document(limits={"memory": 1}),
        document(limits={"pids": 0}),
        document(secrets=[{"name": "box.key", "env": "A-B"}]),
        document(secrets=[{"name": "key", "env": "A"}]),
        document(volumes=[{"name": "data"}]),
        document(volumes=[{"name": "data", "target": "data"}]),
        document(hosts=["https://box.example"], network="internet"),
        document(config=[{"name": "a", "type": "text"}]),
        document(config=[{"name": "a b"}]),
        document(tools=["a", 1]),
        document(args="x"),
        document(command=["box"]),
        document(package={"ecosystem": "cargo", "name": "box", "version": "1"}, command=["box"]),
        {"version": 1, "servers": {"box": {"title": "Box", "description": "Keeps."}}},
        {"version": 1, "servers": {"box": BOX}, "profiles": {"work": {"title": "Work", "servers": []}}},
    ],
    ids=repr,
)
def test_what_the_schema_refuses_the_loader_refuses(tmp_path: Path, wrong: dict[str, Any]) -> None:
    assert not VALIDATOR.is_valid(wrong)
    assert not loads(tmp_path, wrong)


@pytest.fixture(scope="module")
def shipped() -> dict[str, Any]:
    value: dict[str, Any] = yaml.load(
        find_shipped_catalog().read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    )
    return value


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_change_to_an_entry_passes_the_loader_but_not_the_schema(
    tmp_path: Path, shipped: dict[str, Any], data: st.DataObject
) -> None:
    """Else an editor would mark what runs."""
    id = data.draw(st.sampled_from(sorted(shipped["servers"])))
    value = {"version": 1, "servers": {id: copy.deepcopy(shipped["servers"][id])}}
    place = value["servers"][id]
    while True:
        key = data.draw(st.sampled_from(sorted(place)) if isinstance(place, dict) else st.integers(0, len(place) - 1))
        deeper = place[key]
        if not isinstance(deeper, dict | list) or not deeper or data.draw(st.booleans()):
            break
        place = deeper
    match data.draw(st.sampled_from(["delete", "replace", "add"])):
        case "delete":
            del place[key]
        case "replace":
            place[key] = data.draw(
                st.sampled_from([0, 1, True, "", "x", "1", "a b", [], {}, ["x"], {"a": "b"}, -1, 2.5])
            )
        case _ if isinstance(place, dict):
            place[data.draw(st.sampled_from(["x", "title", "name", "env", "run", "config", "default"]))] = "x"
        case _:
            place.append(data.draw(st.sampled_from(["x", 1, {}])))
    if loads(tmp_path, value):
        assert [error.message for error in VALIDATOR.iter_errors(value)] == []
