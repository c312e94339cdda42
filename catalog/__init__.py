"""The catalog: which MCP servers may run, how, and in which named sets.

Does not know the gateway, policies or how models run, starts nothing, and opens no file but the catalog it is given.
"""

from catalog.advice import advice
from catalog.catalog import Catalog
from catalog.difference import Change, Changed, Difference, difference
from catalog.entry import Entry
from catalog.errors import CatalogError, CatalogInvalid, CatalogUnreadable, ConfigInvalid, NotInCatalog, Problem
from catalog.guards import Guarding
from catalog.instance import Instance
from catalog.loader import find_shipped_catalog, load_catalog, load_profiles, parse_catalog, parse_profiles
from catalog.lock import Lock, Source, read_lock, write_lock
from catalog.model import Model, WeightPart, WeightSource
from catalog.parts import Limits, Mount, OAuth, Package, Remote, Sampling, Secret, Tasks, Volume
from catalog.percall import CallTool
from catalog.profile import Budget, Callers, Detail, Profile
from catalog.publisher import Identity, Publisher
from catalog.rules import Rules, load_rules
from catalog.setting import Setting

__all__ = [
    "Budget",
    "CallTool",
    "Callers",
    "Catalog",
    "CatalogError",
    "CatalogInvalid",
    "CatalogUnreadable",
    "Change",
    "Changed",
    "ConfigInvalid",
    "Detail",
    "Difference",
    "Entry",
    "Guarding",
    "Identity",
    "Instance",
    "Limits",
    "Lock",
    "Model",
    "Mount",
    "NotInCatalog",
    "OAuth",
    "Package",
    "Problem",
    "Profile",
    "Publisher",
    "Remote",
    "Rules",
    "Sampling",
    "Secret",
    "Setting",
    "Source",
    "Tasks",
    "Volume",
    "WeightPart",
    "WeightSource",
    "advice",
    "difference",
    "find_shipped_catalog",
    "load_catalog",
    "load_profiles",
    "load_rules",
    "parse_catalog",
    "parse_profiles",
    "read_lock",
    "write_lock",
]
