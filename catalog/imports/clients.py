"""The servers in a client's configuration: `mcpServers` of Claude, Cursor and others, `servers` of VS Code.

Does not know files. Values that may be secrets are never carried over: the entry names the secret instead.
"""

import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any, Final

from catalog.imports.document import MAX_SERVERS, Ecosystem, Imported, Packages, id_of, items, mapping

_SECRET_NAME: Final = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL|AUTH|COOKIE|SESSION|DSN|PRIVATE", re.IGNORECASE)
_INPUT: Final = re.compile(r"\$\{(?:input|env):([^}]+)\}|\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_DOCKER_VALUES: Final = frozenset(
    {"--name", "--network", "--user", "-u", "--workdir", "-w", "--memory", "-m", "--cpus", "--platform", "--pull"}
    | {"--add-host", "--label", "-l", "--env-file", "--entrypoint", "--hostname", "-h", "--gpus", "--publish", "-p"}
)


def read(root: Mapping[str, Any], imported: Imported, packages: Packages) -> None:
    """Read all servers of the configuration."""
    inputs = {str(item.get("id")): item for item in items(root.get("inputs")) if isinstance(item, Mapping)}
    servers = root.get("mcpServers") if isinstance(root.get("mcpServers"), Mapping) else root.get("servers")
    for number, (name, server) in enumerate(mapping(servers).items()):
        if number >= MAX_SERVERS:
            imported.refuse(str(name), f"the document has more than {MAX_SERVERS} servers")
            return
        _Server(str(name), mapping(server), inputs, imported, packages).add()


class _Server:
    def __init__(
        self, name: str, server: Mapping[str, Any], inputs: Mapping[str, Any], imported: Imported, packages: Packages
    ) -> None:
        self._name = name
        self._server = server
        self._inputs = inputs
        self._imported = imported
        self._index = packages
        self._id = id_of(name)
        self._secrets: list[dict[str, Any]] = []
        self._config: list[dict[str, Any]] = []
        self._env: dict[str, str] = {}

    def _note(self, message: str) -> None:
        self._imported.note(self._name, message)

    def add(self) -> None:
        url = self._server.get("url") or self._server.get("serverUrl") or self._server.get("httpUrl")
        try:
            run = self._remote(str(url)) if url else self._command()
        except ValueError as exc:
            self._imported.refuse(self._name, str(exc))
            return
        self._imported.add(
            self._name,
            {
                "id": self._id,
                "title": self._name if self._name.isprintable() and len(self._name) <= 80 else self._id,
                "description": f"The server {self._id}, as it was configured in a client.",
                **run,
                "secrets": self._secrets,
                "config": self._config,
                "env": self._env,
            },
        )

    def _remote(self, url: str) -> dict[str, Any]:
        if _INPUT.search(url):
            raise ValueError("its address holds variables; write it out by hand")
        headers: dict[str, str] = {}
        for name, value in mapping(self._server.get("headers")).items():
            text = str(value)
            found = _INPUT.search(text)
            if found or _SECRET_NAME.search(str(name)):
                prefix = text[: found.start()] if found else "Bearer " if text.startswith("Bearer ") else ""
                self._secrets.append({"name": self._secret_name(str(name)), "header": str(name), "prefix": prefix})
                if not found:
                    self._note(f"the value of the header {name} may be a secret and was not carried over")
            else:
                headers[str(name)] = text
        kind = "sse" if self._server.get("type") == "sse" or url.endswith("/sse") else "streamable-http"
        return {"remote": {"url": url, "transport": kind, "headers": headers}}

    def _command(self) -> dict[str, Any]:
        words = [str(self._server.get("command") or ""), *(str(arg) for arg in items(self._server.get("args")))]
        if len(words) == 1 and " " in words[0]:
            words = shlex.split(words[0])
        if words[0] in ("cmd", "cmd.exe") and [word.lower() for word in words[1:2]] == ["/c"]:
            words = words[2:] or [""]
        program = words[0].replace("\\", "/").rpartition("/")[2].removesuffix(".exe").removesuffix(".cmd")
        match program:
            case "npx" | "bunx" | "pnpx":
                run = self._npx(words[1:])
            case "uvx" | "pipx":
                run = self._uvx(words[1:])
            case "docker" | "podman":
                run = self._docker(words[1:])
            case _:
                raise ValueError(
                    f"runs {program or 'nothing'}, a program of this machine; entries are packages (npx, uvx), images "
                    "(docker run) or remote servers"
                )
        self._variables(mapping(self._server.get("env")))
        return {**run, "network": "internet"}

    def _variables(self, variables: Mapping[str, Any]) -> None:
        for key, value in variables.items():
            name, text = str(key), "true" if value is True else "false" if value is False else str(value)
            found = _INPUT.fullmatch(text)
            source = mapping(self._inputs.get(found.group(1) or "")) if found else {}
            if _SECRET_NAME.search(name) or source.get("password") is True:
                self._secrets.append({"name": self._secret_name(name), "env": name})
                if not found and text:
                    self._note(f"the value of {name} may be a secret and was not carried over")
            elif found:
                setting: dict[str, Any] = {"name": _setting_name(name), "env": name, "required": True}
                if source.get("type") == "pickString":
                    setting["enum"] = [str(option) for option in items(source.get("options"))]
                self._config.append(setting)
            elif _INPUT.search(text):
                self._config.append({"name": _setting_name(name), "env": name, "required": True})
                self._note(f"the variable {name} is made of text and variables; give its whole value in config")
            elif text:
                self._env[name] = text

    def _secret_name(self, name: str) -> str:
        return f"{self._id}.{re.sub(r'[^a-z0-9_-]', '_', name.lower()).lstrip('_-')[:48] or 'secret'}"

    def _npx(self, words: list[str]) -> dict[str, Any]:
        spec, rest = "", list(words)
        while rest and rest[0].startswith("-"):
            word = rest.pop(0)
            if word in ("-p", "--package") and rest:
                spec = rest.pop(0)
            elif word.startswith("--package="):
                spec = word.partition("=")[2]
        if not rest:
            raise ValueError("names no package to run")
        program = rest.pop(0)
        name, version = _npm_spec(spec or program)
        return self._package("npm", name, version, [program if spec else "", *rest])

    def _uvx(self, words: list[str]) -> dict[str, Any]:
        spec, rest = "", list(words)
        if rest[:1] == ["run"]:
            rest = rest[1:]
        while rest and rest[0].startswith("-"):
            word = rest.pop(0)
            if word in ("--from", "--spec") and rest:
                spec = rest.pop(0)
            elif word.startswith(("--from=", "--spec=")):
                spec = word.partition("=")[2]
            elif word in ("--python", "-p", "--with", "--index-url", "--index") and rest:
                self._note(f"{word} was not carried over")
                rest.pop(0)
        if not rest:
            raise ValueError("names no package to run")
        program = rest.pop(0)
        if "://" in spec:
            raise ValueError("installs from an address; only packages of PyPI are entries")
        name, version = _pypi_spec(spec or program)
        return self._package("pypi", name, version, [_pypi_spec(program)[0], *rest])

    def _package(self, ecosystem: Ecosystem, name: str, version: str, command: list[str]) -> dict[str, Any]:
        if not version or version == "latest":
            version = self._index.newest(ecosystem, name) or ""
            if not version:
                raise ValueError(f"names no exact version of {name}, and none could be looked up; write one")
            self._note(f"{name} is pinned to {version}, the newest version today")
        if not command[0]:
            command[0] = self._index.program(ecosystem, name, version) or name.rpartition("/")[2]
        self._warn_of_secrets(command)
        return {"package": {"ecosystem": ecosystem, "name": name, "version": version}, "command": command}

    def _warn_of_secrets(self, arguments: list[str]) -> None:
        for argument in arguments:
            if _INPUT.search(argument):
                raise ValueError("has arguments made of variables; write the entry by hand, with settings")

    def _docker(self, words: list[str]) -> dict[str, Any]:
        if words[:1] == ["container"]:
            words = words[1:]
        if words[:1] != ["run"]:
            raise ValueError("is no docker run; it cannot become an entry")
        volumes: list[dict[str, str]] = []
        mounts: list[dict[str, Any]] = []
        rest, passed = list(words[1:]), list[str]()
        for word, value in _options(rest):
            match word:
                case "-e" | "--env":
                    name, given, text = value.partition("=")
                    passed.append(name)
                    if given:
                        self._variables({name: text})
                case "-v" | "--volume":
                    _volume(value, volumes, mounts)
                case "--mount":
                    self._note("--mount was not carried over; write it into mounts")
                case "--privileged" | "--cap-add" | "--device" | "--security-opt" | "--pid" | "--ipc":
                    self._note(f"{word} was not carried over: no entry may have it")
                case "-i" | "--interactive" | "--rm" | "-t" | "--tty" | "--init":
                    pass
                case _:
                    self._note(f"{word} was not carried over")
        if not rest:
            raise ValueError("names no image to run")
        image = rest.pop(0)
        if "@" not in image and ":" not in image.rpartition("/")[2]:
            image += ":latest"
        self._warn_of_secrets(rest)
        known = {*mapping(self._server.get("env")), *self._env, *(secret["env"] for secret in self._secrets)}
        for name in passed:
            if name not in known:
                self._variables({name: "${env:" + name + "}"})
        return {"image": image.removeprefix("docker.io/"), "args": rest, "volumes": volumes, "mounts": mounts}


def _options(words: list[str]) -> Iterator[tuple[str, str]]:
    """Take the options of docker run off the front, each with its value."""
    taking = {"-e", "--env", "-v", "--volume", "--mount", "--cap-add", "--device", "--security-opt", "--pid", "--ipc"}
    taking |= _DOCKER_VALUES
    while words and words[0].startswith("-"):
        word = words.pop(0)
        if word.startswith("--") and "=" in word:
            name, _, value = word.partition("=")
            yield name, value
        elif word in taking:
            yield word, words.pop(0) if words else ""
        elif not word.startswith("--") and len(word) > 2:
            yield from ((f"-{letter}", "") for letter in word[1:])
        else:
            yield word, ""


def _volume(text: str, volumes: list[dict[str, str]], mounts: list[dict[str, Any]]) -> None:
    source, _, rest = text.partition(":")
    target, _, mode = rest.partition(":")
    if source.startswith("/"):
        mounts.append({"source": source, "target": target or None, "read_only": "ro" in mode.split(",")})
    elif target:
        volumes.append({"name": re.sub(r"[^a-z0-9_.-]", "-", source.lower()), "target": target})


def _npm_spec(spec: str) -> tuple[str, str]:
    name, at, version = spec.rpartition("@")
    return (name, version) if at and name else (spec, "")


def _pypi_spec(spec: str) -> tuple[str, str]:
    match = re.match(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?(?:==|@)?(.*)$", spec)
    return (match.group(1), match.group(2).strip()) if match else (spec, "")


def _setting_name(variable: str) -> str:
    name = re.sub(r"[^a-z0-9_-]", "_", variable.lower()).strip("_-")
    return (name if name[:1].isalpha() else f"value_{name}")[:64]
