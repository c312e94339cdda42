"""What is allowed in a catalog and still looks like a mistake.

Does not know files; the loader refuses what is wrong, this only warns.
"""

from collections.abc import Iterator

from catalog.catalog import Catalog
from catalog.errors import Problem, place_name
from catalog.profile import Profile


def advice(catalog: Catalog) -> list[Problem]:
    """Return the warnings, in the order of the profiles."""
    return [
        Problem(catalog.path, None, place_name("profiles", profile.name), message)
        for profile in catalog.profiles.values()
        for message in (*_renamed(catalog, profile), *_beyond_budget(catalog, profile))
    ]


def known_tools(catalog: Catalog, profile: Profile) -> int:
    """Return how many tools of a profile are known in advance."""
    return sum(
        len(profile.tools[server]) if server in profile.tools else len(catalog.entry(profile.entry_id(server)).tools)
        for server in profile.servers
    )


def _beyond_budget(catalog: Catalog, profile: Profile) -> Iterator[str]:
    limit = profile.budget.tools if profile.budget is not None else None
    if limit is not None and (n_known := known_tools(catalog, profile)) > limit:
        yield f"knows {n_known} tools and lists {limit}: the first {limit - 2}, and two that find and call the others"


def _renamed(catalog: Catalog, profile: Profile) -> Iterator[str]:
    for server in profile.servers:
        entry = catalog.entries.get(profile.entry_id(server))
        names = profile.detail(server).rename
        if entry is None:
            continue
        shown = {tool for tool in entry.tools if profile.selects(server, tool)}
        for tool, name in names.items():
            if not profile.selects(server, tool):
                yield f"renames {tool} of {server}, which it does not select"
            elif name in shown - set(names):
                yield f"renames {tool} of {server} to {name}, the name of another of its tools; it keeps its own name"
