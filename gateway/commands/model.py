"""`lockgate model`: the local model store, and models on their way from and to registries.

Knows what to print; the engine keeps the models. Running them is model_run.py's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from engine import ModelNotFound, ModelStore, StoredModel
from engine.neighbours import neighbours
from engine.store import full_ref
from gateway.commands.running import AsJson, err, out, print_json, settings
from gateway.modellist import listed_models, open_store
from gateway.modeltrip import Progress as Tell
from gateway.modeltrip import pull_model, push_model

app = typer.Typer(no_args_is_help=True)


def store() -> ModelStore:
    return open_store(settings())


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.0f} MB"


@app.command("list")
def list_models(as_json: AsJson = False) -> None:
    """List stored models, and the known ones that can be pulled."""
    _print_models("", as_json)


@app.command("search")
def search(
    words: Annotated[str, typer.Argument(help="Words of a name, title or licence.")], as_json: AsJson = False
) -> None:
    """Search stored and known models."""
    _print_models(words, as_json)


def _print_models(words: str, as_json: bool) -> None:
    models = store()
    stored, known = {model.ref: model for model in models.list()}, models.known
    listed_by_name = listed_models(settings())
    rows: list[dict[str, object]] = []
    for ref in [*stored, *(ref for ref in known if ref not in stored)]:
        here, listed = stored.get(ref), known.get(ref)
        described = here or listed
        if described is None:
            continue
        rows.append(
            {
                "ref": ref,
                "stored": here is not None,
                "size_bytes": described.size_bytes,
                "license": described.license,
                "parameters": described.parameters,
                "context_length": described.context_length,
                "tools": _has_tools(here) if here else listed is not None and listed.has_tools,
                "title": listed.title if listed else "",
                "memory_mb": listed_by_name[ref].memory_mb if ref in listed_by_name else None,
            }
        )
    wanted = words.lower().split()
    rows = [row for row in rows if all(word in " ".join(map(str, row.values())).lower() for word in wanted)]
    if as_json:
        print_json(rows)
        return
    table = Table("model", "stored", "size", "memory", "context", "tools", "licence", box=None, pad_edge=False)
    for row in rows:
        marks = ["yes" if row[name] else "no" for name in ("stored", "tools")]
        size, context = _mb(int(str(row["size_bytes"]))), str(row["context_length"])
        memory = f"{row['memory_mb']} MB" if row["memory_mb"] else ""
        table.add_row(str(row["ref"]), marks[0], size, memory, context, marks[1], str(row["license"] or ""))
    out.print(table)


def _has_tools(model: StoredModel) -> bool:
    return "tools" in (model.chat_template or "")


@contextmanager
def _bars() -> Iterator[Tell]:
    """A bar for each layer that is on its way."""
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, console=err, transient=True) as bars:
        known = {}

        def tell(digest: str, had: int, size: int) -> None:
            if digest not in known:
                known[digest] = bars.add_task(digest.partition(":")[2][:12], total=size)
            bars.update(known[digest], completed=had)

        yield tell


@app.command("pull")
def pull(
    ref: Annotated[
        str | None, typer.Argument(help="A known model, or one in a registry; default: the starter.")
    ] = None,
) -> None:
    """Fetch a known model from the first of its sources that answers, or any model from its registry."""
    name = ref or settings().model
    if full_ref(name.partition("@")[0]) in (models := store()).known:
        model = models.pull(name, lambda line: err.print(f"{name}: {line}"))
    elif "/" in name:
        with _bars() as tell:
            model = pull_model(models, name, tell)
    else:
        known = ", ".join(models.known)
        raise ModelNotFound(
            f"{name} is not in the list of known models ({known}), and names no registry like ai/{name}"
        )
    typer.echo(f"{model.ref} {model.digest}")


@app.command("push")
def push(
    ref: Annotated[str, typer.Argument(help="A stored model.")],
    target: Annotated[str | None, typer.Argument(help="Its name in a registry, if that is not its name here.")] = None,
) -> None:
    """Put a model into a registry, in the published model artifact format. Log in with: docker login."""
    name = target or ref
    if "/" not in name:
        raise ModelNotFound(f"{name} names no registry; say where to push it, such as registry.example/{name}")
    with _bars() as tell:
        digest = push_model(store(), ref, name, tell)
    typer.echo(f"{name} {digest}")


@app.command("import")
def import_model(
    path: Annotated[Path | None, typer.Argument(help="A GGUF file, or any part of a split one.")] = None,
    ref: Annotated[str | None, typer.Argument(help="The name to store it under, such as mymodel:q4.")] = None,
    sha256: Annotated[str | None, typer.Option(help="Refuse the file unless it has this digest.")] = None,
    neighbour: Annotated[
        str | None, typer.Option("--from", help="A model of Ollama or llama.cpp, by its name.")
    ] = None,
) -> None:
    """Copy a GGUF file into the store, or a model that Ollama or llama.cpp keeps; without either, list those."""
    if path is not None and ref is not None:
        model = store().import_file(path, ref, sha256=sha256)
    elif path is None and neighbour is not None:
        found = next((one for one in neighbours(Path.home()) if one.name == neighbour), None)
        if found is None:
            raise ModelNotFound(f"neither Ollama nor llama.cpp keeps {neighbour}; see: lockgate model import")
        model = store().import_file(found.path, found.name, sha256=found.sha256)
    elif path is None:
        for one in neighbours(Path.home()):
            typer.echo(f"{one.program:10} {_mb(one.size_bytes):>9}  {one.name}")
        return
    else:
        raise typer.BadParameter("name the model too, such as mymodel:q4")
    typer.echo(f"{model.ref} {model.digest}")


@app.command("package")
def package(
    path: Annotated[Path, typer.Argument(help="A GGUF file, or any part of a split one.")],
    ref: Annotated[str, typer.Argument(help="The name to store it under.")],
    license: Annotated[str | None, typer.Option(help="Its licence, as an SPDX identifier.")] = None,
    template: Annotated[Path | None, typer.Option(help="A file with its chat template, in place of its own.")] = None,
) -> None:
    """Make an artifact of a GGUF file, its licence and its chat template, ready to be pushed."""
    text = template.read_text() if template else None
    model = store().import_file(path, ref, license=license, chat_template=text)
    typer.echo(f"{model.ref} {model.manifest_digest}")


@app.command("tag")
def tag(ref: str, new: str) -> None:
    """Give a model one more name."""
    typer.echo(f"{store().tag(ref, new).ref}")


@app.command("inspect")
def inspect(ref: str) -> None:
    """Print what is known of a model, as JSON."""
    model = store().get(ref)
    hidden = ("path", "more_paths", "metadata")
    shown = {name: getattr(model, name) for name in model.__dataclass_fields__ if name not in hidden}
    files = {"path": str(model.path), "more_paths": [str(path) for path in model.more_paths]}
    print_json(shown | files | {"metadata": dict(model.metadata)})


@app.command("df")
def df(as_json: AsJson = False) -> None:
    """How much of the disk models take, and what interrupted downloads left."""
    used, left = store().used_bytes()
    if as_json:
        print_json({"models_bytes": used, "downloads_bytes": left})
    else:
        typer.echo(f"models {_mb(used)}, interrupted downloads {_mb(left)}")


@app.command("prune")
def prune() -> None:
    """Delete files that no model uses, and what interrupted downloads left."""
    typer.echo(f"freed {_mb(store().prune())}")


@app.command("rm")
def remove(ref: str) -> None:
    """Remove a model and the files nothing else uses."""
    store().remove(ref)
    typer.echo(f"removed {ref}")
