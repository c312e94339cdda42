"""The profiles that somebody edits: in which file each is, and how a changed one gets there once it is checked.

Knows files and the catalog; what is changed is the caller's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from catalog import Catalog, find_shipped_catalog, parse_catalog, parse_profiles
from catalog.textfile import read_text
from gateway.catalogs import catalog_file, curated_catalog, profiles_file
from gateway.errors import SettingsError
from gateway.filelock import file_lock_in_thread
from gateway.profilefile import EMPTY
from gateway.replacing import replace_file
from gateway.settings import Settings

NEW_FILE_MODE: Final = 0o600
LOCK_TIMEOUT_S: Final = 30.0


class ProfileFiles:
    """The catalog's own file, and the user's file of profiles in the state folder."""

    def __init__(self, settings: Settings) -> None:
        self._own = profiles_file(settings)
        self._curated_file = catalog_file(settings)
        self._curated = curated_catalog(settings)

    def catalog(self) -> Catalog:
        """All profiles. Raises CatalogError if a file breaks rules."""
        if not self._own.exists():
            return self._curated
        return parse_profiles(self._own, read_text(self._own), self._curated)

    def file_of(self, name: str) -> Path:
        """Where the profile is. Raises NotInCatalog if it is nowhere."""
        self.catalog().profile(name)
        return self._curated_file if name in self._curated.profiles else self._own

    def text_of(self, name: str) -> str:
        """The text of that file."""
        return read_text(self.file_of(name))

    def change(self, name: str, edit: Callable[[str], str], *, new: bool = False) -> Catalog:
        """Change the file that has the profile, or the user's own for a new one, and return the catalog as it is then.

        Raises:
            CatalogError: the profile would break rules, or does not exist; nothing is changed.
            SettingsError: it is in the shipped catalog, which is not to be changed, or exists already.
        """
        self._own.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with file_lock_in_thread(self._own.with_name(f".{self._own.name}.lock"), LOCK_TIMEOUT_S):
            if new and name in self.catalog().profiles:
                raise SettingsError(f"there is a profile {name} already; choose another name")
            file = self._own if new else self.file_of(name)
            if file == find_shipped_catalog():
                raise SettingsError(
                    f"{name} is part of the shipped catalogue; make one of your own from it: "
                    f"lockgate profile create NAME --from {name}"
                )
            text = edit(read_text(file) if file.exists() else EMPTY)
            catalog = parse_profiles(file, text, self._curated) if file == self._own else parse_catalog(file, text)
            replace_file(file, text, file.stat().st_mode & 0o777 if file.exists() else NEW_FILE_MODE)
            if file != self._own:
                self._curated = catalog
        return self.catalog()
