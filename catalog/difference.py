"""What differs between two catalogs: entries, profiles and publishers that came, went or changed, and in which keys.

Does not know files, and judges nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TypeVar

from catalog.catalog import Catalog
from catalog.parts import Part, keys_of

HIDDEN_KEYS = frozenset(("id", "name"))
_P = TypeVar("_P", bound=Part)


@dataclass(frozen=True, slots=True)
class Change:
    """One key of an entry or profile, with its values as plain data; None is a key that is not written."""

    key: str
    before: object
    after: object


@dataclass(frozen=True, slots=True)
class Changed:
    """An entry, profile or publisher that both catalogs have, but not alike."""

    name: str
    changes: tuple[Change, ...]
    restarts: bool
    """Whether what runs is another thing, so that a running server must be started anew."""


@dataclass(frozen=True, slots=True)
class Difference:
    """The whole difference; each group in the order of its catalog."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[Changed, ...]
    added_profiles: tuple[str, ...]
    removed_profiles: tuple[str, ...]
    changed_profiles: tuple[Changed, ...]
    added_publishers: tuple[str, ...] = ()
    removed_publishers: tuple[str, ...] = ()
    changed_publishers: tuple[Changed, ...] = ()
    added_models: tuple[str, ...] = ()
    removed_models: tuple[str, ...] = ()
    changed_models: tuple[Changed, ...] = ()

    def __bool__(self) -> bool:
        return any(getattr(self, field.name) for field in fields(self))


def difference(before: Catalog, after: Catalog) -> Difference:
    """Return what makes `after` another catalog than `before`."""
    old, new = before.entries, after.entries
    changed = tuple(
        Changed(id, _changes(old[id], entry), old[id].digest != entry.digest)
        for id, entry in new.items()
        if id in old and old[id] != entry
    )
    return Difference(
        _missing(new, old),
        _missing(old, new),
        changed,
        _missing(after.profiles, before.profiles),
        _missing(before.profiles, after.profiles),
        _changed(before.profiles, after.profiles),
        _missing(after.publishers, before.publishers),
        _missing(before.publishers, after.publishers),
        _changed(before.publishers, after.publishers),
        _missing(after.models, before.models),
        _missing(before.models, after.models),
        _changed(before.models, after.models),
    )


def _changed(old: Mapping[str, _P], new: Mapping[str, _P]) -> tuple[Changed, ...]:
    return tuple(
        Changed(name, _changes(old[name], part), False)
        for name, part in new.items()
        if name in old and old[name] != part
    )


def _missing(these: Mapping[str, object], those: Mapping[str, object]) -> tuple[str, ...]:
    return tuple(name for name in these if name not in those)


def _changes(before: Part, after: Part) -> tuple[Change, ...]:
    old = before.model_dump(mode="json", exclude_defaults=True)
    new = after.model_dump(mode="json", exclude_defaults=True)
    return tuple(
        Change(key, old.get(key), new.get(key))
        for key in keys_of(type(after))
        if key not in HIDDEN_KEYS and old.get(key) != new.get(key)
    )
