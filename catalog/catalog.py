"""The catalog: all entries and profiles of one file, by name.

Does not know how it was read, and never changes: a new file makes a new catalog.
"""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

from catalog.entry import Entry
from catalog.errors import NotInCatalog, Problem
from catalog.instance import instance
from catalog.model import Model
from catalog.profile import Profile
from catalog.publisher import Publisher
from catalog.search import Index
from catalog.spelling import did_you_mean, quoted


class Catalog:
    """The servers that may run, and the named sets of them."""

    def __init__(
        self,
        path: Path,
        entries: Mapping[str, Entry],
        profiles: Mapping[str, Profile],
        publishers: Mapping[str, Publisher] | None = None,
        models: Mapping[str, Model] | None = None,
    ) -> None:
        self.path = path
        self.entries: Mapping[str, Entry] = MappingProxyType(dict(entries))
        self.profiles: Mapping[str, Profile] = MappingProxyType(dict(profiles))
        self.publishers: Mapping[str, Publisher] = MappingProxyType(dict(publishers or {}))
        self.models: Mapping[str, Model] = MappingProxyType(dict(models or {}))

    def entry(self, id: str) -> Entry:
        """Return the entry with this id.

        Raises:
            NotInCatalog: there is none; the message suggests the closest id.
        """
        if id in self.entries:
            return self.entries[id]
        raise self._unknown("entry", id, self.entries)

    def profile(self, name: str) -> Profile:
        """Return the profile with this name.

        Raises:
            NotInCatalog: there is none; the message suggests the closest name.
        """
        if name in self.profiles:
            return self.profiles[name]
        raise self._unknown("profile", name, self.profiles)

    @cached_property
    def runnable(self) -> Mapping[str, Entry]:
        """All that may run, by id: the entries, and their instances as profiles want them."""
        found = dict(self.entries)
        for profile in self.profiles.values():
            for name, id in profile.runs.items():
                entry = self.entries.get(profile.entry_id(name))
                if id not in found and entry is not None:
                    detail = profile.detail(name)
                    found[id] = instance(id, entry, detail.settings, detail.secrets)
        return MappingProxyType(found)

    def search(self, text: str) -> list[Entry]:
        """Return the entries that match any word of the text, best first; all of them for an empty text."""
        return self._index.search(text)

    @cached_property
    def _index(self) -> Index:
        return Index(self.entries.values())

    def _unknown(self, kind: str, name: str, known: Mapping[str, object]) -> NotInCatalog:
        message = f"there is no {kind} {quoted(name)}{did_you_mean(name, known)}"
        return NotInCatalog([Problem(self.path, None, None, message)])
