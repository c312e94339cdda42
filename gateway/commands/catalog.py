"""`lockgate catalog`: check and search the catalogue file.

Knows what to print; the catalog room knows the rules."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from catalog import find_shipped_catalog, load_catalog
from gateway.commands.running import AsJson, out, print_json, settings

app = typer.Typer(no_args_is_help=True)


@app.command("lint")
def lint(
    file: Annotated[Path | None, typer.Argument(help="A catalogue file; default: the one in use.")] = None,
) -> None:
    """Check a catalogue file; every problem is printed with file, line and entry."""
    path = file or settings().catalog or find_shipped_catalog()
    catalog = load_catalog(path)
    typer.echo(f"{path}: {len(catalog.entries)} entries and {len(catalog.profiles)} profiles, no problems")


@app.command("search")
def search(text: str, as_json: AsJson = False) -> None:
    """Find entries by words in their id, title, description, categories and tools."""
    catalog = load_catalog(settings().catalog or find_shipped_catalog())
    found = catalog.search(text)
    if as_json:
        print_json([entry.model_dump(mode="json") for entry in found])
        return
    table = Table("entry", "description", box=None, pad_edge=False)
    for entry in found:
        table.add_row(entry.id, entry.description)
    out.print(table)
