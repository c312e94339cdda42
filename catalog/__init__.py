"""The catalog: which MCP servers may run, how, and in which named sets.

Does not know the gateway, policies or models, starts nothing, and opens no file but the catalog it is given.
"""

from catalog.catalog import Catalog
from catalog.entry import Entry, Limits, Package, Remote, Secret, Volume
from catalog.errors import CatalogError, CatalogInvalid, CatalogUnreadable, NotInCatalog, Problem
from catalog.loader import find_shipped_catalog, load_catalog
from catalog.profile import Profile

__all__ = [
    "Catalog",
    "CatalogError",
    "CatalogInvalid",
    "CatalogUnreadable",
    "Entry",
    "Limits",
    "NotInCatalog",
    "Package",
    "Problem",
    "Profile",
    "Remote",
    "Secret",
    "Volume",
    "find_shipped_catalog",
    "load_catalog",
]
