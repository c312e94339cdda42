"""The JSON Schema of a catalog file, for editors and other programs: made from the models that the loader uses.

Does not check anything itself: what only the loader can see, it alone refuses (docs/catalog.md).
"""

import ast
import copy
import inspect
import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from catalog.assembly import FORMAT_VERSION
from catalog.entry import Entry
from catalog.model import NAME, Model
from catalog.profile import Profile
from catalog.publisher import Publisher
from catalog.reference import FORMS

DIALECT = "https://json-schema.org/draft/2020-12/schema"
SCHEMA_FILE = Path(__file__).with_name("schema.json")
"""The published copy."""
_ALIASES = {"callers": "for"}
"""Fields whose key in the file is a word of Python."""


def schema_text() -> str:
    """Return the schema as the published file holds it."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def json_schema() -> dict[str, Any]:
    """Return the schema of a whole catalog file."""
    parts: dict[str, Any] = {}
    entry = _model(Entry, "id", parts)
    profile = _model(Profile, "name", parts)
    publisher = _model(Publisher, "name", parts)
    model = _model(Model, "name", parts)
    named = {"type": "object", "propertyNames": {"pattern": FORMS["id"]}}
    return {
        "$schema": DIALECT,
        "title": "Lockgate catalog",
        "description": "Which MCP servers may run, how, and in which named sets.",
        "type": "object",
        "properties": {
            "version": {"const": FORMAT_VERSION, "description": "The format of the file."},
            "servers": {
                **named,
                "description": "The entries, by id.",
                "additionalProperties": {"$ref": "#/$defs/Entry"},
            },
            "profiles": {
                **named,
                "description": "The named sets, by name.",
                "additionalProperties": {"$ref": "#/$defs/Profile"},
            },
            "publishers": {
                **named,
                "description": "Who signs which images, by name.",
                "additionalProperties": {"$ref": "#/$defs/Publisher"},
            },
            "models": {
                "type": "object",
                "propertyNames": {"pattern": f"^{NAME}$"},
                "description": "The language models, by name and tag.",
                "additionalProperties": {"$ref": "#/$defs/Model"},
            },
        },
        "required": ["version", "servers"],
        "additionalProperties": False,
        "$defs": {
            "Entry": entry,
            "Profile": profile,
            "Publisher": publisher,
            "Model": model,
            **dict(sorted(parts.items())),
        },
    }


def _model(model: type[BaseModel], key: str, parts: dict[str, Any]) -> dict[str, Any]:
    """Return a model's schema without the field that is the key in the file; its parts go into `parts`."""
    schema = model.model_json_schema(mode="validation")
    for name, part in schema.pop("$defs", {}).items():
        parts[name] = _plain(part, name)
    del schema["properties"][key]
    schema["required"] = [name for name in schema["required"] if name != key]
    if model is Entry:
        schema["anyOf"] = [{"required": [way]} for way in ("image", "package", "remote", "per_call", "built_in")]
        schema["dependentRequired"] = {"package": ["command"], "command": ["package"], "args": ["image"]}
    return _plain(schema, model.__name__)


def _plain(schema: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a model's schema as the file is written: no nulls, no generated titles, and our own words."""
    cleaned = _without_nulls(copy.deepcopy(schema))
    assert isinstance(cleaned, dict)  # noqa: S101 - a mapping stays one
    words = _docstrings().get(name, {})
    for field, value in cleaned.get("properties", {}).items():
        if field in words:
            value["description"] = words[field]
    if "" in words:
        cleaned["description"] = words[""]
    return cleaned


def _without_nulls(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {key: _without_nulls(item) for key, item in value.items() if not (key == "default" and item is None)}
    if isinstance(kept.get("title"), str):
        del kept["title"]
    options = [option for option in kept.get("anyOf", ()) if option != {"type": "null"}]
    if len(options) == 1 and len(kept["anyOf"]) == 2:
        del kept["anyOf"]
        kept = {**options[0], **kept}
    return kept


@cache
def _docstrings() -> dict[str, dict[str, str]]:
    """What the sources say below each field of each model; "" is the model's own sentence."""
    found: dict[str, dict[str, str]] = {}
    for module in ("parts", "setting", "percall", "entry", "profile", "model"):
        tree = ast.parse(inspect.getsource(sys.modules[f"catalog.{module}"]))
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                fields = {"": _one_line(ast.get_docstring(node) or "")}
                for before, after in zip(node.body, node.body[1:], strict=False):
                    match before, after:
                        case ast.AnnAssign(target=ast.Name(id=field)), ast.Expr(value=ast.Constant(value=str(text))):
                            fields[_ALIASES.get(field, field)] = _one_line(text)
                found[node.name] = fields
    return found


def _one_line(text: str) -> str:
    return " ".join(text.split())
