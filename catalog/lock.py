"""The lock file of a catalog: what its tags meant, what its tools looked like, and where it was pulled from.

Does not resolve or compare anything. A lock file is JSON in a fixed order, fit for version control:

    {
      "version": 1,
      "images": {"docker.io/acme/box:1": "sha256:..."},
      "tools": {"box": {"put": "sha256:..."}},
      "sources": {"catalog": {"reference": "registry.example/acme/catalog:1", "digest": "sha256:...",
                              "content": "sha256:...", "created": "2026-11-20T10:00:00Z"}}
    }
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from catalog.errors import CatalogInvalid, Problem
from catalog.textfile import read_text

VERSION = 1
MEMBERS = frozenset(("version", "images", "tools", "sources"))
_DIGEST = re.compile(r"(?:local:)?sha256:[0-9a-f]{64}")
_EMPTY: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Source:
    """Where the file, or a profile in it, was pulled from last.

    reference: as it was asked for. digest: of the manifest that was found there.
    content: SHA-256 of what was written here. created: when it was pushed, RFC 3339 in UTC; empty if not known.
    """

    reference: str
    digest: str
    content: str
    created: str = ""


@dataclass(frozen=True)
class Lock:
    """What is pinned.

    images: the digest each tag stood for; `local:` before it where the image never came from a registry.
    tools: for each entry, the hash of each tool's definition.
    sources: for "catalog", and for "profile NAME", where it was pulled from.
    """

    images: Mapping[str, str] = field(default_factory=lambda: _EMPTY)
    tools: Mapping[str, Mapping[str, str]] = field(default_factory=lambda: MappingProxyType({}))
    sources: Mapping[str, Source] = field(default_factory=lambda: MappingProxyType({}))

    def with_image(self, name: str, digest: str) -> "Lock":
        return replace(self, images={**self.images, name: digest})

    def without_image(self, name: str) -> "Lock":
        return replace(self, images={one: digest for one, digest in self.images.items() if one != name})

    def with_tools(self, entry: str, hashes: Mapping[str, str]) -> "Lock":
        return replace(self, tools={**self.tools, entry: dict(hashes)})

    def with_source(self, what: str, source: Source) -> "Lock":
        return replace(self, sources={**self.sources, what: source})


def read_lock(path: Path) -> Lock:
    """Read a lock file; one that is not there pins nothing.

    Raises:
        CatalogInvalid: it is damaged. Nothing is guessed: a pin that is lost would let anything through.
    """
    if not path.exists():
        return Lock()
    try:
        value = json.loads(read_text(path))
    except ValueError as exc:
        raise _invalid(path, "is no JSON") from exc
    if (
        not isinstance(value, dict)
        or value.keys() - {"version", "images", "tools", "sources"}
        or value.get("version") != VERSION
    ):
        raise _invalid(path, f"is no lock file of version {VERSION}")
    images, tools = value.get("images", {}), value.get("tools", {})
    if not _hashes(images) or not isinstance(tools, dict) or not all(_hashes(one) for one in tools.values()):
        raise _invalid(path, "pins something that is no sha256 digest")
    return Lock(images, tools, _sources(path, value.get("sources", {})))


def write_lock(path: Path, lock: Lock) -> None:
    """Replace the file as a whole. Who changes it must hold it for itself from reading to writing.

    Raises:
        OSError: it cannot be written.
    """
    value: dict[str, object] = {
        "version": VERSION,
        "images": dict(lock.images),
        "tools": {id: dict(one) for id, one in lock.tools.items()},
    }
    if lock.sources:
        value["sources"] = {what: asdict(source) for what, source in lock.sources.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=2, sort_keys=True) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _sources(path: Path, value: object) -> dict[str, Source]:
    found = {}
    for what, one in value.items() if isinstance(value, dict) else [("", None)]:
        if not isinstance(one, dict) or not all(isinstance(text, str) for text in one.values()):
            raise _invalid(path, "says wrongly where something was pulled from")
        try:
            found[what] = Source(**one)
        except TypeError as exc:
            raise _invalid(path, "says wrongly where something was pulled from") from exc
        if not _DIGEST.fullmatch(found[what].digest) or not _DIGEST.fullmatch(found[what].content):
            raise _invalid(path, "names a source by something that is no sha256 digest")
    return found


def _hashes(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(name, str) and isinstance(digest, str) and _DIGEST.fullmatch(digest)
        for name, digest in value.items()
    )


def _invalid(path: Path, what: str) -> CatalogInvalid:
    return CatalogInvalid([Problem(path, None, None, f"{what}; restore it, or remove it to pin everything anew")])
