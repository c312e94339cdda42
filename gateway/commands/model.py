"""`lockgate model`: the local model store.

Knows what to print; the engine keeps the models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from engine import ModelStore, known_models
from gateway.commands.running import AsJson, err, out, print_json, settings

app = typer.Typer(no_args_is_help=True)


def _store() -> ModelStore:
    return ModelStore(settings().cache_dir / "models")


@app.command("list")
def list_models(as_json: AsJson = False) -> None:
    """List stored models, and the known ones that can be pulled."""
    stored = {model.ref: model for model in _store().list()}
    known = known_models()
    rows = [
        {"ref": ref, "stored": True, "size_bytes": model.size_bytes, "license": model.license}
        for ref, model in stored.items()
    ]
    rows += [
        {"ref": ref, "stored": False, "size_bytes": model.size_bytes, "license": model.license}
        for ref, model in known.items()
        if ref not in stored
    ]
    if as_json:
        print_json(rows)
        return
    table = Table("model", "stored", "size", "licence", box=None, pad_edge=False)
    for row in rows:
        size = f"{int(str(row['size_bytes'])) / 1e6:.0f} MB"
        table.add_row(str(row["ref"]), "yes" if row["stored"] else "no", size, str(row["license"] or ""))
    out.print(table)


@app.command("pull")
def pull(
    ref: Annotated[str | None, typer.Argument(help="A known model; default: the starter model.")] = None,
) -> None:
    """Fetch a model from the first of its sources that answers; its digest is checked."""
    name = ref or settings().model
    model = _store().pull(name, lambda line: err.print(f"{name}: {line}"))
    typer.echo(f"{model.ref} {model.digest}")


@app.command("import")
def import_model(
    path: Annotated[Path, typer.Argument(help="A GGUF file.")],
    ref: Annotated[str, typer.Argument(help="The name to store it under, such as mymodel:q4.")],
    sha256: Annotated[str | None, typer.Option(help="Refuse the file unless it has this digest.")] = None,
) -> None:
    """Copy a GGUF file into the store."""
    model = _store().import_file(path, ref, sha256=sha256)
    typer.echo(f"{model.ref} {model.digest}")


@app.command("rm")
def remove(ref: str) -> None:
    """Remove a model and the files nothing else uses."""
    _store().remove(ref)
    typer.echo(f"removed {ref}")
