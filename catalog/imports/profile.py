"""Docker's profile document: servers with their settings, the tools chosen, and a snapshot of each entry.

Does not know files. Values of settings become those of the profile; values of secrets are not in such a document.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from catalog.imports import docker
from catalog.imports.document import LONGEST_TITLE, Imported, Packages, id_of, items, line_of, mapping
from catalog.profile import Profile
from catalog.spelling import quoted


def read(root: Mapping[str, Any], imported: Imported, packages: Packages) -> None:
    """Read the profile and the entries in it."""
    chosen: dict[str, tuple[str, ...]] = {}
    ids: list[str] = []
    details: dict[str, dict[str, Any]] = {}
    for number, item in enumerate(items(root.get("servers"))):
        server = mapping(item)
        id = _entry_of(server, f"server {number + 1}", imported)
        if id is None:
            continue
        ids.append(id)
        if settings := _settings(id, mapping(server.get("config")), imported):
            details[id] = {"settings": settings}
        if isinstance(server.get("tools"), list):
            chosen[id] = tuple(str(tool) for tool in server["tools"])
    if not ids:
        return
    name = id_of(str(root.get("id") or root.get("name") or "imported"))
    title = line_of(root.get("name"), LONGEST_TITLE) or name
    try:
        imported.profiles[name] = Profile.model_validate(
            {"name": name, "title": title, "servers": ids, "details": details, "tools": chosen}
        )
    except ValidationError as exc:
        imported.refuse(name, "; ".join(error["msg"] for error in exc.errors(include_input=False, include_url=False)))


def _entry_of(server: Mapping[str, Any], place: str, imported: Imported) -> str | None:
    snapshot = mapping(mapping(server.get("snapshot")).get("server"))
    if snapshot:
        return docker.read_server(str(snapshot.get("name") or place), snapshot, imported)
    match server.get("type"):
        case "image":
            image = str(server.get("image", ""))
            name = image.partition("@")[0].rpartition("/")[2].partition(":")[0]
            return docker.read_server(name or place, {"image": image, "description": f"The image {name}."}, imported)
        case "remote":
            url = str(server.get("endpoint", ""))
            name = url.partition("://")[2].partition("/")[0].partition(":")[0]
            members = {"remote": {"url": url}, "description": f"The server at {name}."}
            return docker.read_server(name.replace(".", "-") or place, members, imported)
        case _:
            imported.refuse(place, "has no snapshot, and its source cannot be asked here")
            return None


def _settings(id: str, values: Mapping[str, Any], imported: Imported) -> dict[str, Any]:
    """The values that fit the entry's settings."""
    known = {setting.name: setting for setting in imported.entries[id].config}
    found = {}
    for name, value in values.items():
        if name not in known:
            imported.note(id, f"the setting {quoted(str(name))} was not carried over: the server has none of that name")
        elif wrong := known[name].wrong(value):
            imported.note(id, f"the setting {name} was not carried over: it {wrong}")
        else:
            found[name] = value
    return found
