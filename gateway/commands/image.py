"""`lockgate image`: local images of catalogue entries.

Knows what to print; images.py knows how to build."""

from __future__ import annotations

from typing import Annotated

import typer

from gateway.catalogs import open_catalog
from gateway.commands.running import AsJson, print_json, run, settings
from gateway.docker_engine import DockerEngine
from gateway.images import ImageStore
from gateway.runs import Run

app = typer.Typer(no_args_is_help=True)


@app.command("build")
def build(
    ids: Annotated[list[str] | None, typer.Argument(help="Entry ids; without any, the default profile's.")] = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Build anew what exists, too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Build the local image of each entry from its PyPI or npm package; an image that exists is not built again."""
    wanted = settings()
    catalog = open_catalog(wanted)
    entries = [catalog.entry(id) for id in ids or catalog.profile(wanted.profile).servers]

    async def work() -> list[dict[str, str]]:
        built = []
        with Run(wanted.state_dir) as own:
            images = ImageStore(wanted.cache_dir, DockerEngine(wanted.engine), run=own)
            for entry in entries:
                image = await images.build(entry, progress=lambda line: typer.echo(line, err=True), rebuild=rebuild)
                built.append({"entry": entry.id, "image": image.reference, "id": image.id})
        return built

    result = run(work())
    if as_json:
        print_json(result)
    else:
        for row in result:
            typer.echo(f"{row['entry']}: {row['image']}")
