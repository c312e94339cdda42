"""The MCP registry's `server.json` for one entry.

Does not know the registry's API or who may publish under a name.
"""

from typing import Any, Final

from catalog.entry import Entry
from catalog.setting import Setting

SCHEMA: Final = "https://static.modelcontextprotocol.io/schemas/2025-12-11/server.schema.json"
MAX_DESCRIPTION: Final = 100
"""What the registry's schema allows."""


def export_registry(entry: Entry, namespace: str, version: str) -> tuple[dict[str, Any], list[str]]:
    """Return the document and notes on what it cannot say.

    Args:
        entry: a server with a package, an image or a remote.
        namespace: the reverse-DNS name of whoever publishes, as in io.github.someone.
        version: of the server, for images and remotes; a package has its own.
    """
    notes: list[str] = []
    description = entry.description
    if len(description) > MAX_DESCRIPTION:
        description = description[: MAX_DESCRIPTION - 1].rsplit(" ", 1)[0] + "…"
        notes.append(f"{entry.id}: its description was cut to {MAX_DESCRIPTION} characters")
    if entry.per_call:
        notes.append(f"{entry.id}: containers per call cannot be written in server.json")
    if entry.built_in:
        notes.append(f"{entry.id}: a server that is part of the gateway cannot be written in server.json")
    packages = list(_packages(entry))
    document: dict[str, Any] = {
        "$schema": SCHEMA,
        "name": f"{namespace}/{entry.id}",
        "title": entry.title,
        "description": description,
        "version": entry.package.version if entry.package else version,
    }
    if entry.source:
        document["repository"] = {"url": entry.source, "source": _host(entry.source)}
    if packages:
        document["packages"] = packages
    if entry.remote:
        kind = "sse" if entry.remote.transport == "sse" else "streamable-http"
        document["remotes"] = [{"type": kind, "url": entry.remote.url, "headers": _headers(entry)}]
    return document, notes


def _host(source: str) -> str:
    return "gitlab" if source.startswith("https://gitlab.") else "github"


def _packages(entry: Entry) -> list[dict[str, Any]]:
    packages: list[dict[str, Any]] = []
    shared = {"transport": {"type": "stdio"}, "environmentVariables": _variables(entry)}
    if entry.image:
        arguments = _arguments(entry.args, entry.config)
        packages.append({"registryType": "oci", "identifier": entry.image, **shared, "packageArguments": arguments})
    if entry.package:
        arguments = _arguments(entry.command[1:], entry.config)
        packages.append(
            {
                "registryType": entry.package.ecosystem,
                "identifier": entry.package.name,
                "version": entry.package.version,
                **shared,
                "packageArguments": arguments,
            }
        )
    return packages


def _arguments(plain: tuple[str, ...], settings: tuple[Setting, ...]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{"type": "positional", "value": value} for value in plain]
    for setting in settings:
        if setting.arg is None:
            continue
        flag = setting.arg.removesuffix("=")
        kind = {"type": "named", "name": flag} if flag else {"type": "positional", "valueHint": setting.name}
        found.append({**kind, **_input(setting)})
    return found


def _input(setting: Setting) -> dict[str, Any]:
    found: dict[str, Any] = {"format": setting.type if setting.type in ("number", "boolean") else "string"}
    if setting.required:
        found["isRequired"] = True
    if isinstance(setting.default, str | int | float):
        found["default"] = str(setting.default).lower() if isinstance(setting.default, bool) else str(setting.default)
    if setting.enum:
        found["choices"] = list(setting.enum)
    return found


def _variables(entry: Entry) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{"name": name, "value": value} for name, value in entry.env.items()]
    found += [
        {"name": secret.env, "isSecret": True, "isRequired": secret.required}
        for secret in entry.secrets
        if secret.env is not None
    ]
    found += [{"name": setting.env, **_input(setting)} for setting in entry.config if setting.env is not None]
    return found


def _headers(entry: Entry) -> list[dict[str, Any]]:
    remote = entry.remote
    found: list[dict[str, Any]] = [
        {"name": name, "value": value} for name, value in (remote.headers if remote else {}).items()
    ]
    for secret in entry.secrets:
        if secret.header is not None:
            header = {"name": secret.header, "isSecret": True, "isRequired": secret.required}
            found.append(header | ({"value": f"{secret.prefix}{{value}}"} if secret.prefix else {}))
    return found
