"""What an entry asks for that this gateway cannot give: named before anything is started.

Knows entries and their words; starts nothing."""

from __future__ import annotations

from collections.abc import Iterator

from catalog import CatalogError, Entry


def with_defaults(entry: Entry) -> Entry:
    """The entry with the defaults of its settings in place; unchanged where a value is missing."""
    if not entry.config:
        return entry
    try:
        return entry.configured({})
    except CatalogError:
        return entry


def lacking(entry: Entry) -> Iterator[str]:
    """What stands between this entry and a start, each as a clause that follows "server X"."""
    try:
        entry.configured({})
    except CatalogError as exc:
        asked = "; ".join(problem.message for problem in exc.problems)
        yield f"is not configured: {asked}; give it values in a profile: lockgate profile set"
    if entry.oauth is not None and _runs_here(entry) and not _has_its_token(entry):
        yield f"needs a sign-in at {entry.oauth.provider}, which this gateway cannot do yet for servers that run here"
    if any(tool.engine_socket for tool in entry.per_call):
        yield "needs the Docker Engine's own socket, which is as much as root on this machine and is given to nobody"


def _has_its_token(entry: Entry) -> bool:
    """Whether a token made by hand, which is a secret like any other, stands in for the sign-in."""
    return entry.oauth is not None and entry.oauth.secret in [secret.name for secret in entry.secrets]


def _runs_here(entry: Entry) -> bool:
    return entry.image is not None or entry.package is not None
