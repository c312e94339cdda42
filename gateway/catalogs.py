"""The catalog these settings name, loaded from its file or, unchanged since the last time, from the cache; with it the
profiles of this user's own file.

Knows where catalogs lie; the catalog room knows what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from catalog import Catalog, find_shipped_catalog, load_catalog, load_profiles
from gateway.settings import Settings

CACHE_FOLDER: Final = "catalogs"
PROFILES_FILE: Final = "profiles.yaml"


def catalog_file(settings: Settings) -> Path:
    """Raises CatalogUnreadable if no file is named and the shipped one is missing."""
    return settings.catalog or find_shipped_catalog()


def profiles_file(settings: Settings) -> Path:
    """Where profiles are kept that somebody makes with the command line; it may not be there."""
    return settings.state_dir / PROFILES_FILE


def open_catalog(settings: Settings) -> Catalog:
    """Raises CatalogError if a file cannot be read or breaks rules."""
    catalog, own = curated_catalog(settings), profiles_file(settings)
    return load_profiles(own, catalog) if own.exists() else catalog


def curated_catalog(settings: Settings) -> Catalog:
    """The catalog without the profiles of this user's own.

    Raises CatalogError if the file cannot be read or breaks rules."""
    return load_catalog(catalog_file(settings), settings.cache_dir / CACHE_FOLDER)
