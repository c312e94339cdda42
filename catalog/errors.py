"""What can go wrong with a catalog, as one tree of exceptions that carry located problems.

Does not know YAML, nor which rule was broken: it only carries and prints what the other modules found.

    CatalogError                 anything about a catalog; .problems says what and where
    ├── CatalogUnreadable        the file cannot be read at all; whoever owns the file can fix it
    ├── CatalogInvalid           the file was read and breaks rules; whoever wrote the entries can fix them
    ├── ConfigInvalid            the values given for an entry's settings do not fit; whoever configures it can fix it
    └── NotInCatalog             an id or profile name was asked for that is not there; the caller can fix it
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from catalog.spelling import LONGEST_GUESS, quoted

MAX_PROBLEMS = 500
"""After this many a file is given up: a bound on the time a hostile one can take."""
SHOWN_PROBLEMS = 50
"""How many problems are printed before the rest is only counted; .problems keeps them all."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: where it is, and what to do about it."""

    file: Path | None
    """None where the problem is not in a file."""
    line: int | None
    """Counted from 1; None when the problem is in no line (a missing file, an unknown name)."""
    entry: str | None
    """The id of the entry, "profile NAME" inside a profile, None outside of both."""
    message: str

    def __str__(self) -> str:
        place = str(self.file) if self.line is None else f"{self.file}:{self.line}"
        places = [place if self.file else "", self.entry or "", self.message]
        return ": ".join(part for part in places if part)


class CatalogError(Exception):
    """Something is wrong with the catalog or with what was asked of it."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        lines = [str(problem) for problem in self.problems[:SHOWN_PROBLEMS]]
        hidden = len(self.problems) - SHOWN_PROBLEMS
        if hidden > 0:
            lines.append(f"... and {hidden} more")
        return "\n".join(lines)


class CatalogUnreadable(CatalogError):
    """The file is missing, not a file, too large, or may not be read."""


class CatalogInvalid(CatalogError):
    """The file breaks the rules of the format; every problem found is in .problems."""


class ConfigInvalid(CatalogError):
    """Values for the settings of an entry are unknown, of the wrong type, or missing."""


class NotInCatalog(CatalogError, LookupError):
    """No entry or profile has the name that was asked for."""


def place_name(section: str, name: str) -> str:
    """Return how problems name the entry, profile or publisher they are in, safe to print."""
    shown = name if len(name) <= LONGEST_GUESS and name.isprintable() else quoted(name)
    return shown if section == "servers" else f"{section.removesuffix('s')} {shown}"
