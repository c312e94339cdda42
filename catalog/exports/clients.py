"""Servers as a client would start them without a gateway: `mcpServers`, or `servers` of VS Code.

Does not know files. What protects a server behind the gateway (limits, policy, sandbox) is not in such a file.
"""

from collections.abc import Iterable
from typing import Any, Literal

from catalog.entry import Entry
from catalog.parts import Package


def export_clients(
    entries: Iterable[Entry], shape: Literal["mcpServers", "servers"] = "mcpServers"
) -> tuple[dict[str, Any], list[str]]:
    """Return the configuration and notes on what it lacks. Secrets are named, as variables of the environment."""
    servers: dict[str, Any] = {}
    notes: list[str] = []
    for entry in entries:
        found = _package(entry, entry.package) if entry.package else _image(entry) if entry.image else _remote(entry)
        if found is None:
            notes.append(f"{entry.id}: left out: each call runs a container of its own, which no client does")
            continue
        if shape == "servers" and "command" in found:
            found = {"type": "stdio", **found}
        servers[entry.id] = found
        if entry.config:
            names = ", ".join(setting.name for setting in entry.config)
            notes.append(f"{entry.id}: its settings have no values here: {names}")
    return {shape: servers}, notes


def _variables(entry: Entry) -> dict[str, str]:
    secrets = {secret.env: f"${{{secret.env}}}" for secret in entry.secrets if secret.env is not None}
    return {**entry.env, **secrets}


def _package(entry: Entry, package: Package) -> dict[str, Any]:
    program, *rest = entry.command
    if package.ecosystem == "pypi":
        pins = [word for pin in package.pins for word in ("--with", pin)]
        found: dict[str, Any] = {
            "command": "uvx",
            "args": [*pins, "--from", f"{package.name}=={package.version}", program, *rest],
        }
    else:
        args = ["-y", "--package", f"{package.name}@{package.version}", program, *rest]
        found = {"command": "npx", "args": args}
    return found | ({"env": variables} if (variables := _variables(entry)) else {})


def _image(entry: Entry) -> dict[str, Any]:
    args = ["run", "-i", "--rm"]
    if entry.network == "none":
        args += ["--network", "none"]
    for name in _variables(entry):
        args += ["-e", name]
    for volume in entry.volumes:
        args += ["-v", f"{volume.name}:{volume.target}"]
    for mount in entry.mounts:
        if mount.source is not None:
            args += ["-v", f"{mount.source}:{mount.target or mount.source}" + (":ro" if mount.read_only else "")]
    found: dict[str, Any] = {"command": "docker", "args": [*args, str(entry.image), *entry.args]}
    return found | ({"env": variables} if (variables := _variables(entry)) else {})


def _remote(entry: Entry) -> dict[str, Any] | None:
    if entry.remote is None:
        return None
    headers = dict(entry.remote.headers)
    for secret in entry.secrets:
        if secret.header is not None:
            variable = secret.env or secret.name.partition(".")[2].upper().replace("-", "_")
            headers[secret.header] = f"{secret.prefix}${{{variable}}}"
    kind = "sse" if entry.remote.transport == "sse" else "http"
    return {"type": kind, "url": entry.remote.url} | ({"headers": headers} if headers else {})
