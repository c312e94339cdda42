"""`lockgate image`: the container images of catalogue entries.

Knows what to print; the image store knows how each is done."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import typer
from rich.table import Table

from catalog import Catalog, Entry
from gateway.catalogs import open_catalog
from gateway.commands.running import AsJson, out, print_json, run, settings, shown
from gateway.docker_engine import DockerEngine
from gateway.errors import ImageError
from gateway.images import ImageStore
from gateway.rulebook import open_rulebook
from gateway.runs import Run

app = typer.Typer(no_args_is_help=True)
Ids = Annotated[list[str] | None, typer.Argument(help="Entry ids; without any, the default profile's.")]
Row = dict[str, Any]


def _each(ids: list[str] | None, do: Callable[[ImageStore, Entry], Awaitable[Row]]) -> list[Row]:
    """Do it for each entry; what fails becomes a row that says why, and the others go on."""

    async def work(store: ImageStore, catalog: Catalog) -> list[Row]:
        rows = []
        for entry in [catalog.entry(id) for id in ids or catalog.profile(settings().profile).entries]:
            try:
                rows.append({"entry": entry.id, **await do(store, entry)})
            except ImageError as exc:
                rows.append({"entry": entry.id, "error": str(exc)})
        return rows

    return _with_store(work)


def _with_store(work: Callable[[ImageStore, Catalog], Awaitable[list[Row]]]) -> list[Row]:
    wanted = settings()
    catalog = open_catalog(wanted)
    rulebook = open_rulebook(wanted, catalog)

    async def inside() -> list[Row]:
        engine = DockerEngine(wanted.engine)
        try:
            with Run(wanted.state_dir) as own:
                store = ImageStore(
                    wanted.cache_dir,
                    engine,
                    run=own,
                    publishers=rulebook.publishers,
                    refusal=rulebook.image_refusal,
                    lock=wanted.catalog_lock,
                )
                return await work(store, catalog)
        finally:
            await engine.aclose()

    return run(inside())


def _finish(rows: list[Row], as_json: bool, say: Callable[[Row], str]) -> None:
    """Print the rows; exit code 1 if one failed."""
    if as_json:
        print_json(rows)
    else:
        for row in rows:
            typer.echo(shown(f"{row['entry']}: {row['error'] if 'error' in row else say(row)}"), err="error" in row)
    if any("error" in row for row in rows):
        raise typer.Exit(1)


def _progress(line: str) -> None:
    typer.echo(shown(line), err=True)


@app.command("build")
def build(
    ids: Ids = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Build anew what exists, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Build the local image of each entry from its PyPI or npm package; an image that exists is not built again."""

    async def one(store: ImageStore, entry: Entry) -> Row:
        image = await store.build(entry, progress=_progress, rebuild=rebuild)
        return {"image": image.reference, "id": image.id, "sbom": str(store.sbom_path(image))}

    _finish(_each(ids, one), as_json, lambda row: str(row["image"]))


@app.command("pull")
def pull(
    ids: Ids = None,
    update: Annotated[bool, typer.Option("--update", help="Resolve tags anew and replace their pins.")] = False,
    as_json: AsJson = False,
) -> None:
    """Pull the published image of each entry by its digest, once its signature is verified where one must be."""

    async def one(store: ImageStore, entry: Entry) -> Row:
        image = await store.pull(entry, progress=_progress, update=update)
        return {"image": image.reference, "id": image.id}

    _finish(_each(ids, one), as_json, lambda row: f"{row['image']} ({row['id'][:19]})")


@app.command("verify")
def verify(ids: Ids = None, as_json: AsJson = False) -> None:
    """Say who signed the published image of each entry; exit code 1 if one may not run."""

    async def one(store: ImageStore, entry: Entry) -> Row:
        return {"image": entry.image, "signer": await store.verify(entry)}

    def say(row: Row) -> str:
        if row["image"] is None:
            return "no published image"
        return f"signed by {row['signer']}" if row["signer"] else "no publisher in the catalog signs it"

    _finish(_each(ids, one), as_json, say)


@app.command("list")
def list_images(
    as_json: AsJson = False,
    all_entries: Annotated[bool, typer.Option("--all", help="Every entry, not only the profile's.")] = False,
) -> None:
    """List the image of each entry that the engine holds."""

    async def work(store: ImageStore, catalog: Catalog) -> list[Row]:
        ids = list(catalog.entries) if all_entries else catalog.profile(settings().profile).entries
        rows = []
        for entry in (catalog.entry(id) for id in ids):
            image = await store.held(entry)
            row: Row = {"entry": entry.id, "origin": None, "image": None, "id": None, "sbom": None}
            if image is not None:
                row |= {"origin": image.origin, "image": image.reference, "id": image.id}
                if image.origin == "local" and store.sbom_path(image).exists():
                    row["sbom"] = str(store.sbom_path(image))
            rows.append(row)
        return rows

    rows = _with_store(work)
    if as_json:
        print_json(rows)
        return
    table = Table("entry", "origin", "image", "id", box=None, pad_edge=False)
    for row in rows:
        table.add_row(row["entry"], row["origin"] or "-", row["image"] or "not here", (row["id"] or "")[7:19])
    out.print(table)


@app.command("prune")
def prune(
    as_json: AsJson = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
) -> None:
    """Remove local images that no entry of the catalogue would use any more. Published ones are left to you."""

    async def work(store: ImageStore, catalog: Catalog) -> list[Row]:
        rows = []
        for tag in await store.stale(catalog.entries.values()):
            try:
                if not dry_run:
                    await store.remove(tag)
                rows.append({"entry": tag})
            except ImageError as exc:
                rows.append({"entry": tag, "error": str(exc)})
        return rows

    _finish(_with_store(work), as_json, lambda _: "would be removed" if dry_run else "removed")
