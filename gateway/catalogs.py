"""The catalog these settings name, loaded from its file or, unchanged since the last time, from the cache.

Knows where catalogs lie; the catalog room knows what they are."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from catalog import Catalog, find_shipped_catalog, load_catalog
from gateway.settings import Settings

CACHE_FOLDER: Final = "catalogs"


def catalog_file(settings: Settings) -> Path:
    """Raises CatalogUnreadable if no file is named and the shipped one is missing."""
    return settings.catalog or find_shipped_catalog()


def open_catalog(settings: Settings) -> Catalog:
    """Raises CatalogError if the file cannot be read or breaks rules."""
    return load_catalog(catalog_file(settings), settings.cache_dir / CACHE_FOLDER)
