"""One configuration file of a client: read, changed in place, backed up and written whole.

Knows the three formats and files; not which client wants what. Comments and order of everything else stay."""

from __future__ import annotations

import difflib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import tomlkit
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import YAMLError
from ruamel.yaml.util import load_yaml_guess_indent
from tomlkit.exceptions import TOMLKitError

from gateway.connect import jsonc
from gateway.connect.clients import Place
from gateway.connect.jsonc import ABSENT, DocumentError
from gateway.replacing import BACKUP_SUFFIX, replace_file

MAX_FILE_BYTES: Final = 16 * 1024 * 1024
"""Some clients keep their whole history in the same file."""
NEW_FILE_MODE: Final = 0o600


@dataclass(frozen=True)
class Change:
    """A file before and after; equal texts mean nothing to do."""

    file: Path
    before: str | None
    """None if the file does not exist."""
    after: str

    @property
    def needed(self) -> bool:
        return (self.before or "") != self.after

    def diff(self) -> str:
        """The change for people, as a unified diff."""
        old, new = (self.before or "").splitlines(), self.after.splitlines()
        return "\n".join(difflib.unified_diff(old, new, str(self.file), str(self.file), lineterm=""))

    def write(self) -> Path | None:
        """Keep a backup beside the file, then put the new text in its place. Returns the backup.

        Raises:
            DocumentError: it cannot be written, or somebody else changed it meanwhile.
        """
        file = self.file.resolve()
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            if _read(file) != self.before:
                raise DocumentError(f"{self.file} was changed by another program meanwhile; try again")
            backup = None
            mode = NEW_FILE_MODE
            if self.before is not None:
                mode = file.stat().st_mode & 0o7777
                backup = file.with_name(file.name + BACKUP_SUFFIX)
                replace_file(backup, self.before, mode)
            replace_file(file, self.after, mode)
        except OSError as exc:
            raise DocumentError(f"{self.file} cannot be written: {exc.strerror or exc}") from exc
        return backup


class Configuration:
    """The servers in one place of a client."""

    def __init__(self, place: Place) -> None:
        self._place = place
        try:
            self._text = _read(place.file)
        except OSError as exc:
            raise DocumentError(f"{place.file} cannot be read: {exc.strerror or exc}") from exc

    def get(self, name: str) -> Any:
        """The entry of that name; None if there is none.

        Raises:
            DocumentError: the file is not what its client would read.
        """
        with self._naming_the_file():
            found = _FORMATS[self._place.format].get(self._text or "", self._place, name)
        return None if found is ABSENT else found

    def put(self, name: str, entry: Mapping[str, Any]) -> Change:
        """The change that adds or replaces an entry.

        Raises:
            DocumentError: the file is not what its client would read.
        """
        if self.get(name) == entry:
            return self._change(self._text or "")
        with self._naming_the_file():
            return self._change(_FORMATS[self._place.format].put(self._text or "", self._place, name, entry))

    def remove(self, name: str) -> Change:
        """The change that takes an entry out; none is needed if it is not there.

        Raises:
            DocumentError: the file is not what its client would read.
        """
        if self.get(name) is None:
            return self._change(self._text or "")
        with self._naming_the_file():
            return self._change(_FORMATS[self._place.format].remove(self._text or "", self._place, name))

    def _change(self, after: str) -> Change:
        return Change(self._place.file, self._text, after)

    def _naming_the_file(self) -> _Naming:
        return _Naming(self._place.file)


class _Naming:
    """Puts the file's name in front of what is wrong with it."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: object) -> None:
        if isinstance(exc, DocumentError | YAMLError | TOMLKitError):
            text = " ".join(str(exc).split())
            raise DocumentError(f"{self._file}: {text}. Nothing was changed.") from exc


def _read(file: Path) -> str | None:
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return None
    if len(data) > MAX_FILE_BYTES:
        raise DocumentError(f"{file} is larger than {MAX_FILE_BYTES} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as exc:
        raise DocumentError(f"{file} is not UTF-8 (byte {exc.start})") from exc


class _Json:
    @staticmethod
    def get(text: str, place: Place, name: str) -> Any:
        return jsonc.get(text, (*place.path, name))

    @staticmethod
    def put(text: str, place: Place, name: str, entry: Mapping[str, Any]) -> str:
        return jsonc.put(text, (*place.path, name), entry)

    @staticmethod
    def remove(text: str, place: Place, name: str) -> str:
        return jsonc.remove(text, (*place.path, name))


class _Toml:
    @staticmethod
    def get(text: str, place: Place, name: str) -> Any:
        found: Any = tomlkit.parse(text).unwrap()
        return _at(found, (*place.path, name))

    @staticmethod
    def put(text: str, place: Place, name: str, entry: Mapping[str, Any]) -> str:
        document = tomlkit.parse(text)
        servers: Any = document
        for key in place.path:
            if key not in servers:
                servers[key] = tomlkit.table(is_super_table=True)
            servers = _object(servers[key], key)
        table = tomlkit.table()
        table.update(entry)
        if name not in servers:
            table.add(tomlkit.nl())  # before whatever table comes next
        servers[name] = table
        return tomlkit.dumps(document)

    @staticmethod
    def remove(text: str, place: Place, name: str) -> str:
        document = tomlkit.parse(text)
        servers: Any = document
        for key in place.path:
            servers = servers[key]
        del servers[name]
        return tomlkit.dumps(document)


class _Yaml:
    @staticmethod
    def get(text: str, place: Place, name: str) -> Any:
        found = YAML(typ="safe").load(text)
        if not place.listed:
            return _at(found, (*place.path, name))
        servers = _at(found, place.path)
        for server in servers if isinstance(servers, list) else ():
            if isinstance(server, dict) and server.get("name") == name:
                return {key: value for key, value in server.items() if key != "name"}
        return ABSENT

    @staticmethod
    def put(text: str, place: Place, name: str, entry: Mapping[str, Any]) -> str:
        yaml, document = _loaded(text)
        servers: Any = document
        for depth, key in enumerate(place.path):
            last = depth == len(place.path) - 1
            if servers.get(key) is None:
                servers[key] = CommentedSeq() if last and place.listed else CommentedMap()
            servers = servers[key]
        if place.listed:
            if not isinstance(servers, list):
                raise DocumentError(f"{'.'.join(place.path)} is not a list")
            wanted = CommentedMap({"name": name, **entry})
            index = _index(servers, name)
            if index is None:
                servers.append(wanted)
            else:
                servers[index] = wanted
        else:
            _object(servers, ".".join(place.path))[name] = CommentedMap(entry)
        return _dumped(yaml, document)

    @staticmethod
    def remove(text: str, place: Place, name: str) -> str:
        yaml, document = _loaded(text)
        servers: Any = document
        for key in place.path:
            servers = servers[key]
        del servers[_index(servers, name) if place.listed else name]
        return _dumped(yaml, document)


_FORMATS: Final[Mapping[str, type[_Json] | type[_Toml] | type[_Yaml]]] = {"json": _Json, "toml": _Toml, "yaml": _Yaml}


def _at(found: Any, path: Sequence[str]) -> Any:
    for key in path:
        if not isinstance(found, dict) or key not in found:
            return ABSENT
        found = found[key]
    return found


def _object(found: Any, what: str) -> Any:
    if not isinstance(found, dict):
        raise DocumentError(f"{what} is not a table of servers")
    return found


def _index(servers: Any, name: str) -> int | None:
    found = (i for i, server in enumerate(servers) if isinstance(server, dict) and server.get("name") == name)
    return next(found, None)


def _loaded(text: str) -> tuple[YAML, Any]:
    """The document with its comments, and a writer that indents as it does."""
    _, indent, offset = load_yaml_guess_indent(text)
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=indent or 2, offset=offset or 0)
    document = yaml.load(text)
    if document is None:
        document = CommentedMap()
    return yaml, _object(document, "the document")


def _dumped(yaml: YAML, document: Any) -> str:
    stream = io.StringIO()
    yaml.dump(document, stream)
    return stream.getvalue()
