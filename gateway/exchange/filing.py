"""Putting what was pulled into a catalogue file: compared first, written whole with a backup, and noted in its lock.

Knows files and the lock; not registries. Nothing that was changed here is overwritten unless that is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from catalog import Catalog, Difference, Profile, Source, difference, load_catalog, parse_catalog, read_lock, write_lock
from catalog.textfile import read_text
from catalog.writing import write_catalog
from gateway.errors import ImageError
from gateway.exchange.trip import Pulled
from gateway.filelock import file_lock_in_thread
from gateway.images.names import parse
from gateway.images.registry import digest_of
from gateway.replacing import BACKUP_SUFFIX, replace_file

LOCK_TIMEOUT_S: Final = 30.0
NEW_FILE_MODE: Final = 0o644
CATALOG: Final = "catalog"
"""What the lock calls the whole file, where it was pulled."""


@dataclass(frozen=True)
class Filed:
    """What pulling came to."""

    file: Path
    difference: Difference
    before: Source | None
    """Where it was pulled from the last time."""
    backup: Path | None
    written: bool


@dataclass(frozen=True)
class Wish:
    """What may happen to the file."""

    replace: bool = False
    """Whether what was changed here may be lost (the backup keeps it)."""
    older: bool = False
    """Whether what was pushed before what is here may take its place."""
    dry_run: bool = False


Merged: TypeAlias = tuple[str, bool]
"""The text that the file is to have, and whether something that was changed here is lost by it."""


def file_catalog(file: Path, reference: str, pulled: Pulled, wish: Wish) -> Filed:
    """The file becomes the catalogue that was pulled.

    Raises:
        ImageError: it was changed here, or what was pulled is older, and that is not wished; or it cannot be written.
        CatalogError: the file that is there is no valid catalogue, or its lock is damaged.
    """

    def merge(text: str | None, before: Source | None) -> Merged:
        return pulled.text, text is not None and (before is None or before.content != digest_of(text.encode()))

    return _file(file, CATALOG, _source(reference, pulled, pulled.content), pulled.name.full, wish, merge)


def file_profile(file: Path, reference: str, pulled: Pulled, wish: Wish) -> Filed:
    """The profile that was pulled, and its entries, become part of the file. Publishers that the file has stay its own.

    Raises:
        ImageError, CatalogError: as for a whole catalogue; also for an entry that is another one here.
    """
    profile = next(iter(pulled.catalog.profiles.values()))
    content = _content(pulled.catalog, profile)

    def merge(text: str | None, before: Source | None) -> Merged:
        old = parse_catalog(file, text) if text is not None else Catalog(file, {}, {})
        entries = {**old.entries, **pulled.catalog.entries}
        profiles = {**old.profiles, profile.name: profile}
        publishers = {**pulled.catalog.publishers, **old.publishers}
        if text is not None and not difference(old, Catalog(file, entries, profiles, publishers, old.models)):
            return text, False
        written = write_catalog(entries.values(), profiles.values(), publishers.values(), old.models.values())
        others = [id for id, entry in pulled.catalog.entries.items() if old.entries.get(id, entry) != entry]
        is_other = bool(others) or old.profiles.get(profile.name, profile) != profile
        here = old.profiles.get(profile.name)
        as_pulled = before is not None and here is not None and before.content == _content(old, here)
        return written, is_other and not as_pulled

    return _file(file, f"profile {profile.name}", _source(reference, pulled, content), pulled.name.full, wish, merge)


def _content(catalog: Catalog, profile: Profile) -> str:
    """The digest of a profile with its entries, however the file is written."""
    entries = [catalog.entries[id] for id in profile.entries]
    return digest_of(write_catalog(sorted(entries, key=lambda entry: entry.id), [profile]).encode())


def _source(reference: str, pulled: Pulled, content: str) -> Source:
    return Source(reference, str(pulled.name.digest), content, pulled.created)


def _file(
    file: Path,
    what: str,
    source: Source,
    repository: str,
    wish: Wish,
    merge: Callable[[str | None, Source | None], Merged],
) -> Filed:
    lock_file = lock_of(file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file_lock_in_thread(lock_file.with_name(f".{lock_file.name}.lock"), LOCK_TIMEOUT_S):
            lock = read_lock(lock_file)
            before = lock.sources.get(what)
            present = read_text(file) if file.exists() else None
            old = load_catalog(file) if present is not None else Catalog(file, {}, {})
            text, loses = merge(present, before)
            found = difference(old, parse_catalog(file, text))
            if not wish.dry_run:
                _check(file, before, source, repository, wish, loses=loses and text != present)
            backup = None
            if not wish.dry_run and text != present:
                backup = _write(file, present, text)
            if not wish.dry_run and source != before:
                write_lock(lock_file, lock.with_source(what, source))
    except TimeoutError as exc:
        raise ImageError(f"another program holds {lock_file}; try again") from exc
    except OSError as exc:
        raise ImageError(f"{file} cannot be written: {exc.strerror or exc}") from exc
    return Filed(file, found, before, backup, not wish.dry_run and text != present)


def _check(file: Path, before: Source | None, now: Source, repository: str, wish: Wish, *, loses: bool) -> None:
    """
    Raises:
        ImageError: something is not wished.
    """
    if loses and not wish.replace:
        why = "was changed here since it was pulled" if before is not None else "was not pulled from anywhere"
        raise ImageError(f"{file} {why}; see what would change with --dry-run, or overwrite it with --replace")
    if before is None or wish.older or parse(before.reference).full != repository or before.digest == now.digest:
        return
    if before.created and now.created < before.created:
        raise ImageError(
            f"{now.reference} is now what was pushed at {now.created or 'an unknown time'}, before what is here "
            f"({before.created}); if that is right: --older"
        )


def _write(file: Path, present: str | None, text: str) -> Path | None:
    """The backup, if there was something to keep."""
    file = file.resolve()
    if present is None:
        replace_file(file, text, NEW_FILE_MODE)
        return None
    mode = file.stat().st_mode & 0o7777
    backup = file.with_name(file.name + BACKUP_SUFFIX)
    replace_file(backup, present, mode)
    replace_file(file, text, mode)
    return backup


def lock_of(file: Path) -> Path:
    """The lock file of a catalog of one's own, as the settings name it."""
    return file.with_suffix(".lock")
