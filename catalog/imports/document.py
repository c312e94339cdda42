"""What an import gives: entries, a profile if the document is one, and notes on everything that is not as it was.

Does not know any of the foreign formats.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from pydantic import ValidationError

from catalog.entry import Entry
from catalog.errors import CatalogError
from catalog.profile import Profile

LONGEST_ID = 48
LONGEST_LINE = 500
LONGEST_TITLE = 80
MAX_SERVERS = 5000
"""In one document; the official registry's whole list has several thousand."""

Ecosystem: TypeAlias = Literal["pypi", "npm"]


class Packages(Protocol):
    """What only an index of packages can say."""

    def newest(self, ecosystem: Ecosystem, name: str) -> str | None:
        """The newest version, for documents that name none; None if it cannot be had."""

    def program(self, ecosystem: Ecosystem, name: str, version: str) -> str | None:
        """The program a package installs, for documents that name none; None if it cannot be had."""


class NoPackages:
    """Nobody to ask."""

    def newest(self, ecosystem: Ecosystem, name: str) -> str | None:
        return None

    def program(self, ecosystem: Ecosystem, name: str, version: str) -> str | None:
        return None


class Unreadable(CatalogError):
    """A document to import is in none of the known formats; whoever has it can see why in .problems."""


@dataclass(frozen=True, slots=True)
class Note:
    """One thing that is not as it was in the document."""

    server: str
    """The server's name in the document."""
    message: str
    refused: bool = False
    """Whether the server is left out altogether."""

    def __str__(self) -> str:
        return f"{self.server}: {'left out: ' if self.refused else ''}{self.message}"


@dataclass(slots=True)
class Imported:
    """Entries by id, in the document's order, and what to know about them."""

    entries: dict[str, Entry] = field(default_factory=dict)
    profiles: dict[str, Profile] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)

    def refuse(self, server: str, message: str) -> None:
        self.notes.append(Note(server, message, refused=True))

    def note(self, server: str, message: str) -> None:
        self.notes.append(Note(server, message))

    def add(self, server: str, members: Mapping[str, Any]) -> Entry | None:
        """Keep an entry if it is valid; else the notes say what is wrong with it."""
        id = str(members.get("id", ""))
        if id in self.entries:
            self.refuse(server, f"another server of this document is called {id} already")
            return None
        try:
            entry = Entry.model_validate(members)
        except ValidationError as exc:
            self.refuse(server, "; ".join(_messages(exc)))
            return None
        if id != server.rpartition("/")[2]:
            self.note(server, f"is called {id} here")
        self.entries[id] = entry
        return entry


def _messages(exc: ValidationError) -> Iterable[str]:
    for error in exc.errors(include_input=False, include_url=False):
        place = ".".join(str(part) for part in error["loc"])
        message = error["msg"].removeprefix("Value error, ").replace("\n", "; ")
        yield f"{place}: {message}" if place else message


def id_of(name: str) -> str:
    """An id for a server's name: a reverse-DNS name keeps its last part, and what ids may not hold becomes -."""
    last = name.rpartition("/")[2] or name
    text = re.sub(r"[^A-Za-z0-9_-]+", "-", last)
    text = re.sub(r"[_-]*__[_-]*", "_", text).strip("-_")
    if text and not text[0].isalpha():
        text = f"mcp-{text}"
    return text[:LONGEST_ID].rstrip("-_") or "server"


def line_of(text: object, longest: int = LONGEST_LINE) -> str:
    """One visible line of a text, cut at a word where it is too long; empty for anything but text."""
    words = "".join(c if c.isprintable() else " " for c in text).split() if isinstance(text, str) else []
    line = " ".join(words)
    if len(line) <= longest:
        return line
    return line[: longest - 1].rsplit(" ", 1)[0] + "…"


def slug(text: object) -> str:
    """A category of lower-case letters, digits and -; empty if nothing is left."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:32].rstrip("-") if isinstance(text, str) else ""


def mapping(value: object) -> Mapping[str, Any]:
    """The value if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def items(value: object) -> list[Any]:
    """The value if it is a list, else an empty one."""
    return list(value) if isinstance(value, list) else []
