"""`lockgate catalog search`: finding servers by words, and by what a question means.

Knows options and output; the catalog room ranks words, semantic.py meanings."""

from __future__ import annotations

from typing import Annotated, Final

import typer
from rich.progress import Progress
from rich.table import Table

from catalog import Catalog, Entry
from gateway.catalogs import open_catalog
from gateway.commands.catalog import needs, runs_as
from gateway.commands.running import AsJson, err, out, print_json, run, settings
from gateway.errors import SettingsError

SHOWN_MATCHES: Final = 15


def search(
    text: Annotated[list[str], typer.Argument(help="Words, or a question.")],
    as_json: AsJson = False,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many to show at most.")] = SHOWN_MATCHES,
    semantic: Annotated[
        bool, typer.Option("--semantic", help="Look at what is meant, too, with vectors of a stored model.")
    ] = False,
    model: Annotated[str | None, typer.Option(help="The model for --semantic; default: LOCKGATE_MODEL.")] = None,
) -> None:
    """Find servers by what they are for: searches ids, titles, descriptions, categories and tools."""
    if model is not None and not semantic:
        raise SettingsError("--model names the model for --semantic; add --semantic, or leave --model out")
    asked = " ".join(text)
    catalog = open_catalog(settings())
    found = _by_meaning(catalog, asked, model) if semantic else catalog.search(asked)
    if as_json:
        print_json([entry.model_dump(mode="json") for entry in found[:limit]])
        return
    if not found:
        err.print(f"Nothing matches {asked!r}. Try other words, or see what there is: lockgate catalog stats")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("entry", style="cyan", no_wrap=True)
    table.add_column("runs as", no_wrap=True)
    table.add_column("needs", style="yellow", no_wrap=True)
    table.add_column("description")
    for entry in found[:limit]:
        table.add_row(entry.id, runs_as(entry), ", ".join(needs(entry)), entry.description)
    out.print(table)
    if len(found) > limit:
        err.print(f"{len(found) - limit} more; all of them: --limit {len(found)}")


def _by_meaning(catalog: Catalog, asked: str, model: str | None) -> list[Entry]:
    from gateway.semantic import search_by_meaning  # NumPy takes longer to load than most commands do

    wanted = settings()
    with Progress(*Progress.get_default_columns(), console=err, transient=True, disable=not err.is_terminal) as bars:
        bar = bars.add_task("learning the entries", visible=False)

        def tell(done: int, total: int) -> None:
            bars.update(bar, completed=done, total=total, visible=done < total)

        return run(search_by_meaning(wanted, catalog, asked, model or wanted.model, tell))
