"""Docker's MCP catalogue, versions 2 and 3: `registry:` with an entry for each server.

Does not know files. A template becomes a setting whose value is one variable or whole arguments; what no setting can
say is noted. Members that only decorate (icon, readme, counts) are not carried over.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from catalog.imports.document import (
    LONGEST_TITLE,
    MAX_SERVERS,
    Imported,
    Packages,
    id_of,
    items,
    line_of,
    mapping,
    slug,
)
from catalog.imports.template import Template, split_variable, template_in, variables_in

MAX_CATEGORIES: Final = 16
ENGINE_SOCKET: Final = "/var/run/docker.sock"
_READ: Final = frozenset(
    {
        "name", "title", "description", "type", "image", "command", "volumes", "user", "longLived", "disableNetwork",
        "allowHosts", "extraHosts", "env", "secrets", "config", "remote", "sseEndpoint", "oauth", "tools", "prefix",
        "metadata", "ref", "dynamic",
    }
)  # fmt: skip
_DECORATION: Final = frozenset(
    {"icon", "readme", "toolsUrl", "source", "upstream", "dateAdded", "prompts", "resources", "policy", "about"}
)


def read(root: Mapping[str, Any], imported: Imported, packages: Packages) -> None:
    """Read the whole catalogue."""
    for number, (name, server) in enumerate(mapping(root.get("registry")).items()):
        if number >= MAX_SERVERS:
            imported.refuse(str(name), f"the document has more than {MAX_SERVERS} servers")
            return
        if isinstance(server, Mapping):
            read_server(str(name), server, imported)
        else:
            imported.refuse(str(name), "is no mapping")


def read_server(name: str, server: Mapping[str, Any], imported: Imported) -> str | None:
    """Read one server. Returns the id of its entry, or None if it is left out."""
    members = _Server(name, server, imported).members()
    entry = imported.add(name, members) if members is not None else None
    return entry.id if entry is not None else None


class _Server:
    """One server on its way to an entry."""

    def __init__(self, name: str, server: Mapping[str, Any], imported: Imported) -> None:
        self._name = name
        self._server = server
        self._imported = imported
        self._id = id_of(name)
        self._settings: dict[str, dict[str, Any]] = {}
        self._mounts: list[dict[str, Any]] = []
        self._volumes: list[dict[str, str]] = []
        self._env: dict[str, str] = {}
        self._secrets: dict[str, dict[str, Any]] = {}

    def _note(self, message: str) -> None:
        self._imported.note(self._name, message)

    def members(self) -> dict[str, Any] | None:
        server = self._server
        if unknown := sorted(str(key) for key in server if key not in _READ | _DECORATION):
            self._note(f"members that are not known here were not carried over: {', '.join(unknown)}")
        meta = mapping(server.get("metadata"))
        members: dict[str, Any] = {
            "id": self._id,
            "title": line_of(server.get("title") or self._name, LONGEST_TITLE),
            "description": line_of(server.get("description")) or f"The server {self._name}.",
            "categories": self._categories(meta),
            "license": line_of(meta.get("license"), 80) or None,
            "publisher": line_of(meta.get("owner"), 80) or None,
        }
        if server.get("type") == "poci":
            return members | {"per_call": list(self._call_tools()), "network": self._network()}
        members["tools"] = self._tool_names()
        members["dynamic_tools"] = mapping(server.get("dynamic")).get("tools") is True
        self._read_settings()
        self._read_secrets()
        if remote := self._remote():
            members["remote"] = remote
        else:
            image = server.get("image")
            if not isinstance(image, str) or not image:
                self._imported.refuse(self._name, "has neither image nor remote")
                return None
            members["image"] = self._pinned(image)
            self._read_env()
            members["args"] = list(self._arguments())
            self._read_volumes()
            members["network"] = self._network()
            members["hosts"] = self._hosts() if members["network"] == "internet" else []
        for key, meaning in (("extraHosts", "names for addresses"), ("user", "a user inside of the container")):
            if server.get(key):
                self._note(f"{key} ({meaning}) was not carried over: the gateway decides it")
        if server.get("prefix"):
            self._note("prefix was not carried over: tools are named by the entry's id")
        return members | {
            "config": list(self._settings.values()),
            "config_any_of": self._groups(),
            "secrets": list(self._secrets.values()),
            "oauth": self._oauth(),
            "env": self._env,
            "volumes": self._volumes,
            "mounts": self._mounts,
        }

    def _network(self) -> str:
        return "none" if self._server.get("disableNetwork") is True else "internet"

    @staticmethod
    def _categories(meta: Mapping[str, Any]) -> list[str]:
        found = (slug(text) for text in (meta.get("category"), *items(meta.get("tags"))))
        return list(dict.fromkeys(category for category in found if category))[:MAX_CATEGORIES]

    def _pinned(self, image: str) -> str:
        if ":" not in image.rpartition("/")[2] and "@" not in image:
            self._note(f"the image {image} has neither tag nor digest; the tag latest was written")
            return f"{image}:latest"
        return image

    def _tool_names(self) -> list[str]:
        return list(dict.fromkeys(str(tool["name"]) for tool in items(self._server.get("tools")) if _has_name(tool)))

    # -- settings and secrets ----------------------------------------------------------------

    def _read_settings(self) -> None:
        for schema in items(self._server.get("config")):
            required = items(mapping(schema).get("required"))
            for name, found in _flat(mapping(mapping(schema).get("properties")), required):
                self._settings[name] = {"name": name, **found}

    def _groups(self) -> list[list[str]]:
        groups: list[list[str]] = []
        for schema in items(self._server.get("config")):
            for key in ("anyOf", "oneOf"):
                for choice in items(mapping(schema).get(key)):
                    names = [str(name) for name in items(mapping(choice).get("required"))]
                    if names and all(name in self._settings for name in names):
                        groups.append(names)
        return groups

    def _setting(self, key: str, default: str | None = None) -> dict[str, Any]:
        """The setting behind a template; one that no schema names is text."""
        if key not in self._settings:
            self._settings[key] = {"name": key, "type": "string"}
        if default is not None and "default" not in self._settings[key] and not self._settings[key].get("required"):
            self._settings[key]["default"] = default
        return self._settings[key]

    def _read_secrets(self) -> None:
        for secret in items(self._server.get("secrets")):
            if not _has_name(secret):
                continue
            name = self._secret_name(str(secret["name"]))
            self._secrets[name] = {"name": name, "env": secret.get("env")}
            if secret.get("required") is False:
                self._secrets[name]["required"] = False

    def _secret_name(self, name: str) -> str:
        own = (
            name.removeprefix(f"{self._name}.") if name.startswith(f"{self._name}.") else name.partition(".")[2] or name
        )
        return f"{self._id}.{''.join(c if c.isascii() and (c.isalnum() or c in '_-') else '_' for c in own.lower())}"

    def _oauth(self) -> dict[str, Any] | None:
        oauth = mapping(self._server.get("oauth"))
        providers = items(oauth.get("providers"))
        if not providers:
            return None
        if len(providers) > 1:
            self._note("has several OAuth providers; the first one was taken")
        first = mapping(providers[0])
        members: dict[str, Any] = {
            "provider": id_of(str(first.get("provider", ""))),
            "scopes": items(oauth.get("scopes")),
        }
        if first.get("secret"):
            members["secret"] = self._secret_name(str(first["secret"]))
        if first.get("env"):
            members["env"] = first["env"]
        return members

    # -- remote --------------------------------------------------------------------------------

    def _remote(self) -> dict[str, Any] | None:
        remote = mapping(self._server.get("remote"))
        url = remote.get("url") or self._server.get("sseEndpoint")
        if not url:
            return None
        kind = str(remote.get("transport_type") or ("sse" if self._server.get("sseEndpoint") else "http"))
        headers: dict[str, str] = {}
        by_variable = {secret["env"]: secret for secret in self._secrets.values() if secret.get("env")}
        for header, value in mapping(remote.get("headers")).items():
            text = str(value)
            split = split_variable(text)
            if split and split[1] in by_variable:
                secret = by_variable[split[1]]
                secret |= {"header": str(header)} | ({"prefix": split[0]} if split[0] else {})
                secret.pop("env")
            elif variables_in(text):
                self._note(f"the header {header} is made of variables in a way that no secret can say; set it by hand")
            else:
                headers[str(header)] = text
        for secret in self._secrets.values():
            if "header" not in secret and "env" not in secret:
                secret["env"] = secret["name"].partition(".")[2].upper().replace("-", "_")
        return {"url": url, "transport": "sse" if kind == "sse" else "streamable-http", "headers": headers}

    # -- variables, arguments, volumes -----------------------------------------------------------

    def _read_env(self) -> None:
        secret_variables = {secret.get("env") for secret in self._secrets.values()}
        for variable in items(self._server.get("env")):
            if not _has_name(variable) or variable.get("value") in (None, ""):
                continue
            name, text = str(variable["name"]), _text(variable["value"])
            try:
                template = template_in(text, self._name)
            except ValueError as exc:
                self._by_hand(name, f"the variable {name} {exc}")
                continue
            if name in secret_variables:
                self._note(f"the variable {name} is set by a secret; its plain value was not carried over")
            elif template is None:
                if used := variables_in(text):
                    self._by_hand(name, f"the variable {name} is made of {', '.join(used)}")
                else:
                    self._env[name] = text
            elif not template.is_whole or self._setting(template.key).get("env"):
                self._by_hand(name, f"the variable {name} is made of text and the setting {template.key}")
            else:
                self._setting(template.key, template.argument("or") or None)["env"] = name

    def _by_hand(self, variable: str, why: str) -> None:
        """A variable whose value only a person can give, as a setting of its own."""
        key = variable.lower()
        while key in self._settings:
            key += "_value"
        self._settings[key] = {"name": key, "type": "string", "env": variable}
        self._note(f"{why}; give the whole value in the setting {key}")

    def _arguments(self) -> Iterator[str]:
        """Yield the plain arguments; settings become arguments behind them."""
        behind = False
        for item in items(self._server.get("command")):
            text = _text(item)
            try:
                template = template_in(text, self._name)
            except ValueError as exc:
                self._note(f"an argument {exc} and was not carried over; add it by hand")
                continue
            if template is None:
                if used := variables_in(text):
                    self._note(f"an argument holds {', '.join(used)}, which other programs could read; it was left out")
                    continue
                if behind:
                    self._note("an argument behind a setting stands before it now; check that the order is no matter")
                yield text
                continue
            behind = True
            if template.after:
                self._note(f"an argument goes on behind the setting {template.key}; it was left out, add it by hand")
                continue
            setting = self._setting(template.key, template.argument("or") or None)
            if template.has("into"):
                setting["type"] = "list"
            setting["arg"] = template.before

    def _read_volumes(self) -> None:
        for item in items(self._server.get("volumes")):
            self._read_volume(_text(item))

    def _read_volume(self, text: str) -> None:
        first, _, rest = text.partition("}}") if text.startswith("{{") else ("", "", text)
        source = f"{first}}}}}" if first else rest.partition(":")[0]
        target, _, mode = (rest.removeprefix(":") if first else rest.partition(":")[2]).partition(":")
        try:
            template = template_in(source, self._name)
            if template_in(target, self._name) is not None:
                target = ""
        except ValueError as exc:
            self._note(f"a volume {exc} and was not carried over")
            return
        if template is not None:
            self._mount_of(template, target, mode)
        elif source == ENGINE_SOCKET:
            self._note("wants the socket of the Docker Engine, which is as much as root on the host; it gets none")
        elif source.startswith("/"):
            self._mounts.append({"source": source, "target": target or None, "read_only": mode == "ro"})
        elif target:
            self._volumes.append({"name": slug(source)[:48] or "data", "target": target})

    def _mount_of(self, template: Template, target: str, mode: str) -> None:
        mounted = template.argument("mount_as")
        if mounted is not None:
            target, _, mode = mounted.partition(":")
        setting = self._setting(template.key)
        if template.has("into") and setting.get("type") != "string":
            setting["type"] = "list"
        self._mounts.append({"config": template.key, "target": target or None, "read_only": mode == "ro"})

    def _hosts(self) -> list[str]:
        hosts = (str(host).partition("/")[0].lower() for host in items(self._server.get("allowHosts")))
        return list(dict.fromkeys(hosts))

    # -- containers per call ---------------------------------------------------------------------

    def _call_tools(self) -> Iterator[dict[str, Any]]:
        for tool in items(self._server.get("tools")):
            if not _has_name(tool):
                continue
            container = mapping(tool.get("container"))
            schema = mapping(tool.get("parameters"))
            required = items(schema.get("required"))
            parameters = {
                name: {"name": name, **found} for name, found in _flat(mapping(schema.get("properties")), required)
            }
            for argument in items(tool.get("arguments")):
                if _has_name(argument) and argument["name"] not in parameters:
                    parameters[str(argument["name"])] = _parameter(argument)
            yield {
                "name": tool["name"],
                "description": line_of(tool.get("description")) or f"Runs {tool['name']}.",
                "image": self._pinned(str(container.get("image", ""))),
                **self._call_container(str(tool["name"]), container, parameters),
                "parameters": list(parameters.values()),
            }

    def _call_container(
        self, tool: str, container: Mapping[str, Any], parameters: dict[str, dict[str, Any]]
    ) -> dict[str, Any]:
        command: list[str] = []
        for item in items(container.get("command")):
            text = _text(item)
            template = template_in(text)
            if template is None:
                command.append(text)
            elif template.key in parameters and not template.after:
                parameters[template.key]["arg"] = template.before
                if template.has("into"):
                    parameters[template.key]["type"] = "list"
            else:
                self._note(f"an argument of the tool {tool} was not carried over: {template.key}")
        mounts: list[dict[str, Any]] = []
        socket = False
        for item in items(container.get("volumes")):
            source = _text(item).partition(":")[0]
            template = template_in(source)
            if source == ENGINE_SOCKET:
                socket = True
            elif template is not None and template.key in parameters:
                mounts.append({"config": template.key, "read_only": _text(item).endswith(":ro")})
            else:
                self._note(f"a volume of the tool {tool} was not carried over")
        return {"command": command, "mounts": mounts, "engine_socket": socket}


def _has_name(item: object) -> bool:
    return isinstance(item, Mapping) and bool(item.get("name"))


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


_TYPES: Final = {"string": "string", "integer": "integer", "number": "number", "boolean": "boolean", "array": "list"}


def _flat(properties: Mapping[str, Any], required: list[Any], before: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each property of a JSON Schema as a setting; one level of objects becomes names with a dot."""
    for name, schema in properties.items():
        found = mapping(schema)
        if found.get("type") == "object" and not before:
            yield from _flat(mapping(found.get("properties")), items(found.get("required")), f"{name}.")
            continue
        setting: dict[str, Any] = {"type": _TYPES.get(str(found.get("type")), "string")}
        if found.get("default") not in (None, "", []):
            setting["default"] = _fitting(found["default"], setting["type"])
        elif name in required or found.get("required") is True:
            setting["required"] = True
        if setting["type"] == "string" and found.get("enum"):
            setting["enum"] = [_text(value) for value in items(found["enum"])]
        yield f"{before}{name}", setting


def _parameter(argument: Mapping[str, Any]) -> dict[str, Any]:
    setting = {"name": str(argument["name"]), "type": _TYPES.get(str(argument.get("type")), "string")}
    return setting if argument.get("optional") is True else {**setting, "required": True}


def _fitting(value: Any, type: str) -> Any:
    """A default in the type of its setting, as hand-written catalogues have 8080 for text and "8080" for numbers."""
    if type == "string" and not isinstance(value, str):
        return _text(value)
    if type in ("integer", "number") and isinstance(value, str):
        try:
            return int(value) if type == "integer" else float(value)
        except ValueError:
            return value
    return value
