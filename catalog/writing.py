"""Writing a catalog file: entries, profiles, publishers and models as YAML that the loader reads back to equal ones.

Does not know where the text goes.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from catalog.assembly import FORMAT_VERSION
from catalog.entry import Entry
from catalog.model import Model
from catalog.profile import Profile
from catalog.publisher import Publisher
from catalog.yamltext import dump


def write_catalog(
    entries: Iterable[Entry],
    profiles: Iterable[Profile] = (),
    publishers: Iterable[Publisher] = (),
    models: Iterable[Model] = (),
) -> str:
    """Return the text of a catalog file; what has its default is left out."""
    document: dict[str, Any] = {
        "version": FORMAT_VERSION,
        "servers": {entry.id: _members(entry, "id") for entry in entries},
    }
    if found := {profile.name: _members(profile, "name") for profile in profiles}:
        document["profiles"] = found
    if signers := {publisher.name: _members(publisher, "name") for publisher in publishers}:
        document["publishers"] = signers
    if listed := {model.name: _members(model, "name") for model in models}:
        document["models"] = listed
    return dump(document)


def _members(part: BaseModel, name: str) -> Mapping[str, Any]:
    # Through JSON: tuples become lists, and texts plain ones.
    members: dict[str, Any] = json.loads(part.model_dump_json(exclude_defaults=True, exclude={name}))
    return members
