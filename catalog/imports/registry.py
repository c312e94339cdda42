"""The official MCP registry's `server.json`, one server or a page of them, in the spellings of all its schemas.

Does not know the registry's API. Local packages come before remotes: what can run in a box here does.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from catalog.imports.document import (
    LONGEST_TITLE,
    MAX_SERVERS,
    Ecosystem,
    Imported,
    Packages,
    id_of,
    items,
    line_of,
    mapping,
)

_WHOLE_VARIABLE: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_.-]*)\}")
_TYPES: Final = {"string": "string", "number": "number", "boolean": "boolean", "filepath": "string"}
_ECOSYSTEMS: Final[Mapping[str, Ecosystem]] = {"pypi": "pypi", "npm": "npm"}


def read(root: Mapping[str, Any], imported: Imported, packages: Packages) -> None:
    """Read one server or a page of servers."""
    servers = items(root.get("servers")) if "servers" in root else [root]
    for number, item in enumerate(servers):
        server = mapping(mapping(item).get("server", item))
        name = str(server.get("name") or f"server {number + 1}")
        if number >= MAX_SERVERS:
            imported.refuse(name, f"the document has more than {MAX_SERVERS} servers")
            return
        if server.get("status") in ("deleted", "deprecated"):
            imported.note(name, f"the registry calls it {server['status']}")
        _Server(name, server, imported, packages).add()


def _get(members: Mapping[str, Any], name: str) -> Any:
    """A member in the registry's camelCase of today or the snake_case of its first schemas."""
    old = re.sub(r"[A-Z]", lambda match: f"_{match.group().lower()}", name)
    return members.get(name, members.get(old))


class _Server:
    def __init__(self, name: str, server: Mapping[str, Any], imported: Imported, packages: Packages) -> None:
        self._name = name
        self._server = server
        self._imported = imported
        self._index = packages
        self._id = id_of(name)
        self._config: list[dict[str, Any]] = []
        self._secrets: list[dict[str, Any]] = []
        self._env: dict[str, str] = {}

    def _note(self, message: str) -> None:
        self._imported.note(self._name, message)

    def add(self) -> None:
        repository = mapping(self._server.get("repository")).get("url")
        members: dict[str, Any] = {
            "id": self._id,
            "title": line_of(self._server.get("title") or self._name.rpartition("/")[2], LONGEST_TITLE),
            "description": line_of(self._server.get("description")) or f"The server {self._name}.",
            "publisher": line_of(self._name.rpartition("/")[0], 80) or None,
            "source": repository if isinstance(repository, str) and repository.startswith("https://") else None,
        }
        run = self._packages() or self._remote()
        if run is None:
            self._imported.refuse(self._name, "has neither a package of PyPI, npm or OCI over stdio nor a remote")
            return
        self._imported.add(
            self._name,
            {**members, **run, "config": self._config, "secrets": self._secrets, "env": self._env},
        )

    # -- packages ------------------------------------------------------------------------------

    def _packages(self) -> dict[str, Any] | None:
        found: dict[str, Any] = {}
        first: Mapping[str, Any] | None = None
        for item in items(self._server.get("packages")):
            package = mapping(item)
            kind = str(_get(package, "registryType") or package.get("registry_name") or "").lower()
            transport = mapping(package.get("transport")).get("type", "stdio")
            if transport != "stdio":
                self._note(f"its {kind} package speaks {transport}; that form was not carried over")
                continue
            if kind == "oci" and "image" not in found:
                found["image"] = self._image(package)
            elif kind in _ECOSYSTEMS and "package" not in found:
                if (named := self._named(_ECOSYSTEMS[kind], package)) is None:
                    continue
                found["package"] = named
            else:
                if kind not in ("oci", *_ECOSYSTEMS):
                    self._note(f"its {kind or 'unnamed'} package cannot run here")
                continue
            first = first if first is not None else package
        if first is None:
            return None
        arguments = list(self._arguments(items(_get(first, "packageArguments"))))
        self._variables(items(_get(first, "environmentVariables")))
        if "image" in found:
            found["args"] = arguments
        if "package" in found:
            program = self._index.program(**found["package"])
            if program is None:
                program = found["package"]["name"].rpartition("/")[2]
                self._note(f"the program of its package is taken to be {program}; check command")
            found["command"] = [program, *arguments]
        if _get(first, "runtimeArguments"):
            self._note("runtime arguments were not carried over: the gateway decides how containers run")
        return {**found, "network": "internet"}

    def _image(self, package: Mapping[str, Any]) -> str:
        image, version = str(package.get("identifier", "")), package.get("version")
        host = str(_get(package, "registryBaseUrl") or "").removeprefix("https://").strip("/")
        if host and host != "docker.io" and not image.startswith(f"{host}/"):
            image = f"{host}/{image}"
        image = image.removeprefix("docker.io/")
        tagged = "@" in image or ":" in image.rpartition("/")[2]
        return image if tagged else f"{image}:{version or 'latest'}"

    def _named(self, ecosystem: Ecosystem, package: Mapping[str, Any]) -> dict[str, str] | None:
        name = str(package.get("identifier") or package.get("name") or "")
        version = str(package.get("version") or "")
        if not version or version == "latest":
            version = self._index.newest(ecosystem, name) or ""
        if not version:
            self._note(f"its {ecosystem} package {name} names no exact version, and none could be looked up")
            return None
        return {"ecosystem": ecosystem, "name": name, "version": version}

    def _arguments(self, arguments: list[Any]) -> Iterator[str]:
        for item in arguments:
            argument = mapping(item)
            flag = str(argument.get("name") or "") if argument.get("type") == "named" else ""
            value = argument.get("value")
            if value is not None and not _WHOLE_VARIABLE.search(str(value)):
                yield from (flag, str(value)) if flag else (str(value),)
                continue
            if flag and value is None and argument.get("format") == "boolean" and not _get(argument, "valueHint"):
                self._config.append({"name": _setting_name(flag), "type": "string", "arg": "", "enum": [flag]})
                continue
            name = _setting_name(flag or str(_get(argument, "valueHint") or argument.get("name") or "argument"))
            if _get(argument, "isSecret"):
                self._note(f"the argument {name} holds a secret, which other programs could read; it was left out")
                continue
            self._config.append(self._setting(name, argument) | {"arg": f"{flag}=" if flag else ""})

    def _variables(self, variables: list[Any]) -> None:
        for item in variables:
            variable = mapping(item)
            name = str(variable.get("name") or "")
            value = variable.get("value")
            if not name:
                continue
            if _get(variable, "isSecret"):
                secret: dict[str, Any] = {"name": f"{self._id}.{name.lower()}", "env": name}
                if not _get(variable, "isRequired"):
                    secret["required"] = False
                self._secrets.append(secret)
            elif value is not None and not _WHOLE_VARIABLE.search(str(value)):
                self._env[name] = str(value)
            else:
                self._config.append(self._setting(_setting_name(name), variable) | {"env": name})

    def _setting(self, name: str, found: Mapping[str, Any]) -> dict[str, Any]:
        setting: dict[str, Any] = {"name": name, "type": _TYPES.get(str(found.get("format")), "string")}
        default = found.get("default")
        if default not in (None, "") and setting["type"] == "string":
            setting["default"] = str(default)
        elif _get(found, "isRequired") and default in (None, ""):
            setting["required"] = True
        elif default not in (None, ""):
            setting["default"] = _plain(default)
        if choices := [str(choice) for choice in items(found.get("choices"))]:
            setting |= {"type": "string", "enum": choices}
            if "default" in setting:
                setting["default"] = str(default)
        return setting

    # -- remotes -------------------------------------------------------------------------------

    def _remote(self) -> dict[str, Any] | None:
        remotes = [mapping(remote) for remote in items(self._server.get("remotes"))]
        remotes.sort(key=lambda remote: _kind(remote) != "streamable-http")
        for remote in remotes:
            url = str(remote.get("url") or "")
            if _WHOLE_VARIABLE.search(url):
                self._note("its remote address holds variables; write it out by hand")
                continue
            headers = {}
            for item in items(remote.get("headers")):
                header = mapping(item)
                name, value = str(header.get("name") or ""), header.get("value")
                if _get(header, "isSecret") or (isinstance(value, str) and _WHOLE_VARIABLE.search(value)):
                    self._secrets.append(self._header_secret(name, header))
                elif value is not None:
                    headers[name] = str(value)
                else:
                    self._note(f"the header {name} has no value; write it into headers by hand")
            return {"remote": {"url": url, "transport": _kind(remote), "headers": headers}}
        return None

    def _header_secret(self, name: str, header: Mapping[str, Any]) -> dict[str, Any]:
        text = str(header.get("value") or "")
        prefix = _WHOLE_VARIABLE.split(text)[0] if _WHOLE_VARIABLE.search(text) else ""
        secret: dict[str, Any] = {"name": f"{self._id}.{name.lower()}", "header": name}
        if prefix:
            secret["prefix"] = prefix
        if not _get(header, "isRequired"):
            secret["required"] = False
        return secret


def _kind(remote: Mapping[str, Any]) -> str:
    kind = str(remote.get("type") or _get(remote, "transportType") or "")
    return "sse" if kind == "sse" else "streamable-http"


def _setting_name(text: str) -> str:
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", text.lstrip("-")).strip("_-")
    return (name if name[:1].isalpha() else f"value_{name}".rstrip("_"))[:64]


def _plain(value: Any) -> Any:
    if isinstance(value, str) and value in ("true", "false"):
        return value == "true"
    if isinstance(value, str):
        try:
            return float(value) if "." in value else int(value)
        except ValueError:
            return value
    return value
