"""Checked catalogs kept as JSON, by the digest of the file and of the rules that checked it, to load them again fast.

Does not know YAML. What is kept is checked again by the models when it is read, so a damaged or forged file of the
cache can at worst be another valid entry, and one that somebody else could write to is not read at all.
"""

import hashlib
import os
import stat
from contextlib import suppress
from functools import cache
from pathlib import Path

import msgspec
from pydantic import ValidationError

from catalog.catalog import Catalog
from catalog.entry import Entry
from catalog.model import Model
from catalog.profile import Profile
from catalog.publisher import Publisher

FORM = "lockgate-catalog-cache-1"
MAX_KEPT = 8
"""Catalogs in the folder; the oldest go first."""
_ABBREVIATED = 40
"""Hexadecimal digits of a digest in a file name."""


class CatalogCache:
    """One folder of checked catalogs; any number of processes may use it at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, path: Path, text: str) -> Catalog | None:
        """Return the catalog that this text was found to be, or None."""
        file = self._file(text)
        try:
            status = file.stat()
            if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                return None
            kept = msgspec.json.decode(file.read_bytes())
            entries = [Entry.model_validate(row) for row in kept["entries"]]
            profiles = [Profile.model_validate(row) for row in kept["profiles"]]
            publishers = [Publisher.model_validate(row) for row in kept["publishers"]]
            models = [Model.model_validate(row) for row in kept["models"]]
        except (OSError, msgspec.DecodeError, ValidationError, KeyError, TypeError):
            return None
        return Catalog(
            path,
            {entry.id: entry for entry in entries},
            {profile.name: profile for profile in profiles},
            {publisher.name: publisher for publisher in publishers},
            {model.name: model for model in models},
        )

    def save(self, text: str, catalog: Catalog) -> None:
        """Keep a catalog that was just checked; what cannot be written is not kept."""
        file = self._file(text)
        rows = {
            "entries": [entry.model_dump(mode="json", exclude_defaults=True) for entry in catalog.entries.values()],
            "profiles": [
                profile.model_dump(mode="json", exclude_defaults=True) for profile in catalog.profiles.values()
            ],
            "publishers": [
                publisher.model_dump(mode="json", exclude_defaults=True) for publisher in catalog.publishers.values()
            ],
            "models": [model.model_dump(mode="json", exclude_defaults=True) for model in catalog.models.values()],
        }
        temporary = file.with_suffix(f".{os.getpid()}.tmp")
        with suppress(OSError):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as out:
                out.write(msgspec.json.encode(rows))
            temporary.replace(file)
            kept = sorted(self._folder.glob("*.json"), key=lambda found: found.stat().st_mtime, reverse=True)
            for old in kept[MAX_KEPT:]:
                old.unlink(missing_ok=True)

    def _file(self, text: str) -> Path:
        digest = hashlib.sha256(f"{FORM}\n{rules_digest()}\n{text}".encode())
        return self._folder / f"{digest.hexdigest()[:_ABBREVIATED]}.json"


@cache
def rules_digest() -> str:
    """SHA-256 over the sources of this room: another version of the rules finds nothing kept by this one."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
