"""Writing small catalog files for tests and loading them.

Does not know what a test expects of them."""

from pathlib import Path
from textwrap import indent

from catalog import Catalog, CatalogInvalid, Problem, load_catalog

IMAGE = "example/box@sha256:" + "ab" * 32

BOX = f"""\
title: Box
description: Keeps things in a box.
image: {IMAGE}
"""
"""The body of a valid entry."""


def document(servers: dict[str, str], profiles: str = "") -> str:
    """Return the text of a catalog with these entry bodies."""
    body = "".join(f"  {name}:\n{indent(text, '    ')}" for name, text in servers.items()) or "  {}\n"
    return f"version: 1\nservers:\n{body}{profiles}"


def load(folder: Path, text: str | bytes) -> Catalog:
    """Write the text to a file and load it."""
    path = folder / "catalog.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_catalog(path)


def problems(folder: Path, text: str | bytes) -> list[Problem]:
    """Return what is wrong with the text; it is an error if nothing is."""
    try:
        load(folder, text)
    except CatalogInvalid as invalid:
        return invalid.problems
    raise AssertionError("the catalog was accepted")


def only_problem(folder: Path, text: str | bytes) -> Problem:
    """Return the one thing that is wrong with the text."""
    found = problems(folder, text)
    assert len(found) == 1, "\n".join(map(str, found))
    return found[0]
