"""Turning located nodes into a Catalog: the models judge, this module says in which line.

Does not know YAML or files.
"""

from collections.abc import Iterator
from collections.abc import Mapping as Members
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from catalog.catalog import Catalog
from catalog.entry import Entry
from catalog.errors import MAX_PROBLEMS, CatalogInvalid, Problem, place_name
from catalog.guards import Guarding
from catalog.located import Mapping, Node, Scalar, Unclear, find, plain
from catalog.model import Model, WeightPart, WeightSource
from catalog.parts import Limits, Mount, OAuth, Package, Remote, Sampling, Secret, Tasks, Volume, keys_of
from catalog.percall import CallTool
from catalog.profile import Budget, Callers, Detail, Profile
from catalog.publisher import Identity, Publisher
from catalog.setting import Setting
from catalog.spelling import did_you_mean, quoted, skeleton
from catalog.uses import misfits

FORMAT_VERSION = 1
_M = TypeVar("_M", bound=BaseModel)

_TOP_KEYS = ("version", "servers", "profiles", "publishers", "models")
_NAME_FIELDS = {"servers": "id", "profiles": "name", "publishers": "name", "models": "name"}
_PARTS: dict[str, type[BaseModel]] = {
    "package": Package,
    "remote": Remote,
    "limits": Limits,
    "sampling": Sampling,
    "tasks": Tasks,
    "guards": Guarding,
    "secrets": Secret,
    "volumes": Volume,
    "mounts": Mount,
    "oauth": OAuth,
    "config": Setting,
    "parameters": Setting,
    "per_call": CallTool,
    "identities": Identity,
    "details": Detail,
    "budget": Budget,
    "for": Callers,
    "sources": WeightSource,
    "packages": WeightPart,
}
_KEPT_PRIVATE = frozenset(("env", "headers", "command", "args", "settings", "details"))
"""Fields whose text is never repeated in a message, as somebody may have put a secret there."""


def assemble(path: Path, root: Node, problems: list[Problem]) -> Catalog:
    """Build the catalog.

    Args:
        path: for messages and for Catalog.path.
        root: the document.
        problems: what was already found in the document; they are reported with those found here.

    Raises:
        CatalogInvalid: something is wrong; all of it is in .problems, in the order of lines.
    """
    assembly = _Assembly(path, problems)
    catalog = assembly.catalog(root)
    if assembly.problems:
        raise CatalogInvalid(sorted(assembly.problems, key=lambda problem: problem.line or 0))
    return catalog


def assemble_profiles(path: Path, root: Node, problems: list[Problem], base: Catalog) -> Catalog:
    """Add the profiles of a document that has nothing else to a catalog.

    Raises:
        CatalogInvalid: something is wrong; all of it is in .problems, in the order of lines.
    """
    assembly = _Assembly(path, problems, base.entries)
    profiles = assembly.profiles(root, base)
    if assembly.problems:
        raise CatalogInvalid(sorted(assembly.problems, key=lambda problem: problem.line or 0))
    return Catalog(base.path, base.entries, {**base.profiles, **profiles}, base.publishers, base.models)


class _Assembly:
    """One pass over one document; collects problems instead of stopping at the first."""

    def __init__(self, path: Path, problems: list[Problem], entries: Members[str, Entry] | None = None) -> None:
        self.problems = list(problems)
        self._path = path
        self._entries: dict[str, Entry] = dict(entries or {})
        self._ids: set[str] = set(self._entries)
        """All ids in the file, also those of broken entries, so that a profile naming one is not blamed."""

    def catalog(self, root: Node) -> Catalog:
        if not isinstance(root, Mapping):
            self._add(root.line, None, "must be a mapping that begins with version: 1 and servers:")
            return Catalog(self._path, {}, {})
        self._check_keys(root, _TOP_KEYS)
        if "servers" not in root.members:
            self._add(root.line, None, "the key servers is missing; add it, with the entries below it")
        for name, line, node in self._named(root, "servers"):
            entry = self._model(Entry, "servers", name, line, node)
            if entry is not None:
                self._entries[name] = entry
        profiles = self._profiles(root)
        publishers = {
            name: publisher
            for name, line, node in self._named(root, "publishers")
            if (publisher := self._model(Publisher, "publishers", name, line, node)) is not None
        }
        models = {
            name: model
            for name, line, node in self._named(root, "models")
            if (model := self._model(Model, "models", name, line, node)) is not None
        }
        return Catalog(self._path, self._entries, profiles, publishers, models)

    def profiles(self, root: Node, base: Catalog) -> dict[str, Profile]:
        """The profiles of a document that has no entries of its own."""
        if not isinstance(root, Mapping):
            self._add(root.line, None, "must be a mapping that begins with version: 1 and profiles:")
            return {}
        self._check_keys(root, ("version", "profiles"))
        found = self._profiles(root)
        _, named = root.members.get("profiles", (0, root))
        for name, (line, _) in named.members.items() if isinstance(named, Mapping) else ():
            if name in base.profiles:
                self._add(line, place_name("profiles", name), f"is in {base.path} already; choose another name")
        return found

    def _profiles(self, root: Mapping) -> dict[str, Profile]:
        found: dict[str, Profile] = {}
        for name, line, node in self._named(root, "profiles"):
            profile = self._model(Profile, "profiles", name, line, node)
            self._check_uses(name, node)
            if profile is not None:
                found[name] = profile
        return found

    def _check_keys(self, root: Mapping, known: tuple[str, ...]) -> None:
        for key, (line, _) in root.members.items():
            if key not in known:
                self._add(line, None, f"unknown key {quoted(key)}{did_you_mean(key, known)}")
        self._check_version(root)

    def _add(self, line: int, where: str | None, message: str) -> None:
        self.problems.append(Problem(self._path, line, where, message))
        if len(self.problems) >= MAX_PROBLEMS:
            last = Problem(self._path, line, where, "has too many problems to go on; repair these first")
            raise CatalogInvalid([*self.problems, last])

    def _check_version(self, root: Mapping) -> None:
        if "version" not in root.members:
            self._add(root.line, None, f"the key version is missing; write version: {FORMAT_VERSION} at the top")
            return
        line, node = root.members["version"]
        value = plain(node)
        if type(value) is not int or value != FORMAT_VERSION:
            self._add(
                line,
                None,
                f"version must be the number {FORMAT_VERSION}; this Lockgate reads no other format",
            )

    def _named(self, root: Mapping, section: str) -> Iterator[tuple[str, int, Node]]:
        """Yield the named members of a section, having reported names that can be taken for another one."""
        if section not in root.members:
            return
        line, node = root.members[section]
        if not isinstance(node, Mapping):
            self._add(line, None, f"{section} must be a mapping of names to their contents (or {{}} for none)")
            return
        spellings: dict[str, str] = {}
        for name, (name_line, member) in node.members.items():
            other = spellings.setdefault(skeleton(name), name)
            if other != name:
                same = "differs from {} only in capitals" if other.casefold() == name.casefold() else "looks like {}"
                message = f"{same.format(quoted(other))}; choose another name"
                self._add(name_line, place_name(section, name), message)
            if section == "servers":
                self._ids.add(name)
            yield name, name_line, member

    def _model(self, model: type[_M], section: str, name: str, line: int, node: Node) -> _M | None:
        where = place_name(section, name)
        name_field = _NAME_FIELDS[section]
        if not isinstance(node, Mapping):
            self._add(line, where, "must be a mapping of keys to values, with title and the rest below it")
            return None
        data = {key: plain(value) for key, (_, value) in node.members.items()}
        if name_field in data:
            self._add(
                node.members[name_field][0],
                where,
                f"remove {name_field}; it is already given by the key above",
            )
        data[name_field] = name
        try:
            return model.model_validate(data)
        except ValidationError as exc:
            for error in exc.errors(include_url=False):
                path = error["loc"]
                at = line if path in ((), (name_field,)) else find(node, path)[0]
                for message in say(model, node, error):
                    self._add(at, where, message)
        return None

    def _check_uses(self, name: str, node: Node) -> None:
        """Report what a profile says of entries that does not fit them."""
        for line, message in misfits(node, self._entries, self._ids):
            self._add(line, place_name("profiles", name), message)


def say(
    model: type[BaseModel], node: Node, error: ErrorDetails, parts: Members[str, type[BaseModel]] = _PARTS
) -> list[str]:
    """Return what to tell about one complaint of a model: usually one message, one each for a joint check. `parts` are
    the models below each of its keys."""
    path = error["loc"]
    kind = error["type"]
    field = _spell(path)
    if kind == "value_error":
        cause = str(error["ctx"]["error"])
        return [f"{field}: {part}" if field else part for part in cause.split("\n")]
    if kind == "extra_forbidden":
        owner = _owner(model, path, parts)
        return [f"unknown key {quoted(field)}{did_you_mean(str(path[-1]), keys_of(owner))}"]
    if kind == "missing":
        return [f"the key {field} is missing; add it"]
    _, found = find(node, path)
    private = bool(_KEPT_PRIVATE.intersection(str(step) for step in path))
    return [f"{field}: {_wrong_value(kind, error, found, private)}"]


def _wrong_value(kind: str, error: ErrorDetails, found: Node, private: bool) -> str:
    text = found.text if isinstance(found, Scalar) else ""
    if kind in _EXPECTED:
        expected = _EXPECTED[kind]
    elif kind == "literal_error":
        expected = f"must be one of {error['ctx']['expected']}"
    else:
        return error["msg"][0].lower() + error["msg"][1:]
    match found:
        case Scalar(value=Unclear(reading="nothing")):
            return "has no value; write one, or leave the key out"
        case Scalar(value=str()) if kind == "literal_error" and not private:
            return f"is {quoted(text)}, but {expected}"
        case Scalar(value=str()):
            return expected
        case Scalar(value=value) if kind in ("string_type", "literal_error"):
            reading = value.reading if isinstance(value, Unclear) else _reading(value)
            return f"reads as a {reading}; put it in quotes" + ("" if private else f": {quoted(text)}")
        case _:
            return expected


def _reading(value: str | int | float | bool) -> str:
    return "truth value" if isinstance(value, bool) else "number"


_EXPECTED = {
    "string_type": "must be text",
    "int_type": "must be a whole number in plain digits, without quotes",
    "float_type": "must be a number in plain digits, without quotes",
    "bool_type": "must be true or false, without quotes",
    "tuple_type": "must be a list, as in [one, two]",
    "mapping_type": "must be a mapping of keys to values",
    "dict_type": "must be a mapping of keys to values",
    "model_type": "must be a mapping of keys to values",
}


def _spell(path: tuple[int | str, ...]) -> str:
    """Return a path as people write it: package.pins[0]."""
    spelled = ""
    for step in path:
        if isinstance(step, int):
            spelled += f"[{step}]"
        elif step != "[key]":
            spelled += f".{step}" if spelled else step
    return spelled


def _owner(
    model: type[BaseModel], path: tuple[int | str, ...], parts: Members[str, type[BaseModel]]
) -> type[BaseModel]:
    """Return the model whose key the last step of the path would have been."""
    owners = [parts[step] for step in path[:-1] if isinstance(step, str) and step in parts]
    return owners[-1] if owners else model
