"""Docker's MCP catalogue, version 3, and its profile document.

Does not know files. A setting becomes a template of Docker's.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from catalog.catalog import Catalog
from catalog.entry import Entry
from catalog.parts import Mount
from catalog.percall import CallTool
from catalog.profile import Detail, Profile
from catalog.setting import Setting

VERSION: Final = 3
_TYPES: Final[Mapping[str, str]] = {"list": "array"}


def export_docker(name: str, entries: Iterable[Entry]) -> tuple[dict[str, Any], list[str]]:
    """Return the catalogue document and notes on entries that it cannot hold."""
    registry: dict[str, Any] = {}
    notes: list[str] = []
    for entry in entries:
        if entry.built_in:
            notes.append(f"{entry.id}: left out: it is part of the gateway")
            continue
        if not (entry.image or entry.remote or entry.per_call):
            notes.append(f"{entry.id}: left out: it runs from a package, and Docker's catalogue has images and remotes")
            continue
        registry[entry.id] = _entry(entry, notes)
    return {"version": VERSION, "name": name, "displayName": name, "registry": registry}, notes


def export_docker_profile(catalog: Catalog, profile: Profile) -> tuple[dict[str, Any], list[str]]:
    """Return the profile document, which holds the entries as snapshots, and notes."""
    servers: list[dict[str, Any]] = []
    notes: list[str] = []
    taken: set[str] = set()
    for name in profile.servers:
        id, detail = profile.entry_id(name), profile.detail(name)
        if id in taken:
            notes.append(f"{name}: left out: Docker's profile has each server once, and {id} is there already")
            continue
        document, found = export_docker(profile.name, [catalog.entry(id)])
        notes += found
        if id not in document["registry"]:
            continue
        taken.add(id)
        notes += _lost(name, id, detail)
        snapshot = {"name": id, **document["registry"][id]}
        server: dict[str, Any] = {"type": "image", "image": snapshot.get("image", "")}
        if "remote" in snapshot:
            server = {"type": "remote", "endpoint": snapshot["remote"]["url"]}
        if detail.settings:
            server["config"] = {
                key: list(value) if isinstance(value, tuple) else value for key, value in detail.settings.items()
            }
        if name in profile.tools:
            server["tools"] = list(profile.tools[name])
        servers.append({**server, "snapshot": {"server": snapshot}})
    for key, said in (("for", profile.callers), ("budget", profile.budget)):
        if said is not None:
            notes.append(f"{profile.name}: Docker's profile has no place for {key}")
    if profile.policy != "open":
        notes.append(f"{profile.name}: Docker's profile has no place for the policy {profile.policy}")
    return {"version": 1, "id": profile.name, "name": profile.title, "servers": servers}, notes


def _lost(name: str, id: str, detail: Detail) -> Iterator[str]:
    """What of a server's details Docker's profile has no place for."""
    if name != id:
        yield f"{name}: is called {id} there"
    for key, said in (("secrets", detail.secrets), ("rename", detail.rename), ("descriptions", detail.descriptions)):
        if said:
            yield f"{name}: Docker's profile has no place for {key}"


def _entry(entry: Entry, notes: list[str]) -> dict[str, Any]:
    members: dict[str, Any] = {"title": entry.title, "description": entry.description}
    if entry.per_call:
        members |= {"type": "poci", "tools": [_call_tool(tool) for tool in entry.per_call]}
    elif entry.image:
        members |= {"type": "server", "image": entry.image}
    elif entry.remote:
        kind = "sse" if entry.remote.transport == "sse" else "streamable-http"
        members |= {"type": "remote", "remote": {"url": entry.remote.url, "transport_type": kind}}
    headers = dict(entry.remote.headers) if entry.remote and not entry.image else {}
    secrets = []
    for secret in entry.secrets:
        variable = secret.env or secret.name.partition(".")[2].upper().replace("-", "_")
        secrets.append({"name": secret.name, "env": variable} | ({} if secret.required else {"required": False}))
        if secret.header is not None and "remote" in members:
            headers[secret.header] = f"{secret.prefix}${{{variable}}}"
    if headers:
        members["remote"]["headers"] = headers
    if secrets:
        members["secrets"] = secrets
    if entry.oauth:
        provider = {"provider": entry.oauth.provider, "secret": entry.oauth.secret, "env": entry.oauth.env}
        provider = {key: value for key, value in provider.items() if value}
        members["oauth"] = {"providers": [provider]} | (
            {"scopes": list(entry.oauth.scopes)} if entry.oauth.scopes else {}
        )
    if entry.image:
        members |= _container(entry)
    if entry.network == "none" and (entry.image or entry.per_call):
        members["disableNetwork"] = True
    if entry.tools and not entry.per_call:
        members["tools"] = [{"name": name} for name in entry.tools]
    if entry.transport != "stdio":
        notes.append(f"{entry.id}: its container speaks {entry.transport}; Docker's gateway expects stdio")
    return members | {"metadata": _metadata(entry)}


def _metadata(entry: Entry) -> dict[str, Any]:
    meta: dict[str, Any] = {}
    if entry.categories:
        meta |= {"category": entry.categories[0], "tags": list(entry.categories[1:])}
    return meta | {key: value for key, value in (("license", entry.license), ("owner", entry.publisher)) if value}


def _container(entry: Entry) -> dict[str, Any]:
    id = entry.id
    env = [{"name": name, "value": value} for name, value in entry.env.items()]
    env += [{"name": s.env, "value": _template(id, s.name)} for s in entry.config if s.env is not None]
    mounted = {mount.config: mount for mount in entry.mounts if mount.config is not None}
    command = list(entry.args)
    for setting in entry.config:
        if setting.arg is None:
            continue
        filters = "|volume-target" if setting.name in mounted else ""
        filters += "|into" if setting.type == "list" else ""
        command.append(f"{setting.arg}{_template(id, setting.name, filters)}")
    lists = {setting.name for setting in entry.config if setting.type == "list"}
    volumes = [f"{volume.name}:{volume.target}" for volume in entry.volumes]
    volumes += [_volume(id, mount, mount.config in lists) for mount in entry.mounts]
    found: dict[str, Any] = {"env": env, "command": command, "volumes": volumes, "allowHosts": list(entry.hosts)}
    found = {key: value for key, value in found.items() if value}
    if entry.config:
        found["config"] = [_schema(id, entry.config, entry.config_any_of)]
    return found


def _template(id: str, name: str, filters: str = "") -> str:
    return f"{{{{{id}.{name}{filters}}}}}"


def _volume(id: str, mount: Mount, is_list: bool) -> str:
    mode = ":ro" if mount.read_only else ""
    if mount.config is None:
        return f"{mount.source}:{mount.target or mount.source}{mode}"
    if mount.target is None:
        as_list = "|into" if is_list else ""
        return _template(id, mount.config, f"|volume{as_list}") + mode
    return f"{_template(id, mount.config)}:{mount.target}{mode}"


def _schema(id: str, settings: Iterable[Setting], any_of: Iterable[Iterable[str]] = ()) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    required: list[str] = []
    for setting in settings:
        group, dot, name = setting.name.partition(".")
        inside, names = properties, required
        if dot:
            parent = properties.setdefault(group, {"type": "object", "properties": {}, "required": []})
            inside, names = parent["properties"], parent["required"]
        else:
            name = group
        inside[name] = _property(setting)
        if setting.required:
            names.append(name)
    schema: dict[str, Any] = {"name": id, "type": "object", "properties": properties}
    if required:
        schema["required"] = required
    if choices := [{"required": list(names)} for names in any_of]:
        schema["anyOf"] = choices
    return schema


def _property(setting: Setting) -> dict[str, Any]:
    found: dict[str, Any] = {"type": _TYPES.get(setting.type, setting.type)}
    if setting.type == "list":
        found["items"] = {"type": "string"}
    if setting.default is not None:
        found["default"] = list(setting.default) if isinstance(setting.default, tuple) else setting.default
    if setting.enum:
        found["enum"] = list(setting.enum)
    return found


def _call_tool(tool: CallTool) -> dict[str, Any]:
    command = list(tool.command)
    for parameter in tool.parameters:
        if parameter.arg is not None:
            filters = "|into" if parameter.type == "list" else ""
            command.append(f"{parameter.arg}{{{{{parameter.name}{filters}}}}}")
    volumes = [
        f"{{{{{mount.config}}}}}:{{{{{mount.config}}}}}" + (":ro" if mount.read_only else "") for mount in tool.mounts
    ]
    if tool.engine_socket:
        volumes.append("/var/run/docker.sock:/var/run/docker.sock")
    schema = _schema(tool.name, tool.parameters)
    return {
        "name": tool.name,
        "description": tool.description,
        "container": {"image": tool.image, "command": command} | ({"volumes": volumes} if volumes else {}),
        "parameters": {key: schema[key] for key in ("type", "properties", "required") if key in schema},
    }
