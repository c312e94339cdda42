"""`lockgate catalog rules`: which rules are in force here, and what they refuse of the catalogue in use.

Knows what to print; gateway/rulebook.py applies them."""

from __future__ import annotations

from collections.abc import Iterator

import typer
from rich.table import Table

from catalog import Rules
from gateway.catalogs import open_catalog
from gateway.commands.catalog import print_refused
from gateway.commands.running import AsJson, out, print_json, settings, shown
from gateway.rulebook import FILE_NAME, open_rulebook


def rules(as_json: AsJson = False) -> None:
    """Show the rules in force, which bind every catalogue, and the entries they refuse."""
    wanted = settings()
    catalog = open_catalog(wanted)
    rulebook = open_rulebook(wanted, catalog)
    refused = rulebook.refused(catalog)
    if as_json:
        file = str(rulebook.file) if rulebook.file is not None else None
        print_json({"file": file, "rules": rulebook.rules.model_dump(mode="json"), "refused": refused})
        return
    if rulebook.file is None:
        typer.echo(f"No rules: every entry may run. To change that, write {wanted.state_dir / FILE_NAME}")
        return
    out.print(f"{rulebook.file}:")
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column()
    for name, value in _lines(rulebook.rules):
        table.add_row(name, shown(value))
    out.print(table)
    print_refused(refused)
    typer.echo(f"{catalog.path}: {len(catalog.entries) - len(refused)} of {len(catalog.entries)} entries may run")


def _lines(rules: Rules) -> Iterator[tuple[str, str]]:
    for name in type(rules.allow).model_fields:
        allowed = getattr(rules.allow, name)
        if allowed is not None:
            yield f"allow.{name}", ", ".join(allowed) or "none"
    if rules.signed:
        yield "signed", ", ".join(rules.signed)
    for name, publisher in rules.publishers.items():
        yield f"publisher {name}", ", ".join(publisher.images)
    for block in rules.block:
        kind = next(kind for kind in ("entry", "image", "package", "remote") if getattr(block, kind) is not None)
        yield f"block {kind}", f"{getattr(block, kind)}: {block.reason}"
