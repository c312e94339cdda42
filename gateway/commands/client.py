"""`lockgate client`: put this gateway into the configuration of agent clients, and take it out.

Knows what to print; gateway/connect/ knows the files."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.table import Table

from gateway.catalogs import open_catalog
from gateway.commands.running import AsJson, ProfileOption, out, print_json, settings
from gateway.connect import (
    CLIENTS,
    Change,
    Client,
    Configuration,
    DocumentError,
    Place,
    Scope,
    Target,
    find_client,
    this_platform,
)
from gateway.errors import SettingsError
from gateway.running import find_running

app = typer.Typer(no_args_is_help=True)
ENTRY_NAME: Final = "lockgate"

Names = Annotated[list[str], typer.Argument(help="Clients, as in `lockgate client list`.", show_default=False)]
ProjectOption = Annotated[
    Path | None, typer.Option("--project", help="A project's folder; default: the files of your user.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")]


@app.command("list")
def list_clients(project: ProjectOption = None, as_json: AsJson = False) -> None:
    """List the clients that can be connected, where each keeps its servers, and which are connected."""
    rows = [_row(client, project) for client in CLIENTS if project is None or client.project]
    if as_json:
        print_json(rows)
        return
    table = Table("client", "title", "state", "file", box=None, pad_edge=False)
    for row in rows:
        table.add_row(row["client"], row["title"], row["state"], row["file"])
    out.print(table)
    if not any(row["state"].startswith("connected") for row in rows):
        out.print("Connect one with: lockgate client connect NAME")


@app.command("connect")
def connect(
    names: Names, profile: ProfileOption = None, project: ProjectOption = None, dry_run: DryRun = False
) -> None:
    """Add this gateway to the configuration of one or more clients. A backup stays beside each file changed."""
    clients = [find_client(name) for name in names]
    target = _target(profile)
    for client in clients:
        change = Configuration(_place(client, project)).put(target.name, client.entry(target))
        _carry_out(client, change, dry_run, done=f"{client.title} is connected as {target.name!r}")


@app.command("disconnect")
def disconnect(
    names: Names, profile: ProfileOption = None, project: ProjectOption = None, dry_run: DryRun = False
) -> None:
    """Take this gateway out of the configuration of one or more clients. Everything else in the file stays."""
    clients = [find_client(name) for name in names]
    name = _entry_name(profile)
    for client in clients:
        change = Configuration(_place(client, project)).remove(name)
        _carry_out(client, change, dry_run, done=f"{client.title} is not connected as {name!r} any more")


def _carry_out(client: Client, change: Change, dry_run: bool, *, done: str) -> None:
    if not change.needed:
        out.print(f"{client.id}: nothing to change in {change.file}")
        return
    if dry_run:
        out.print(change.diff())
        return
    backup = change.write()
    kept = f" (before: {backup.name})" if backup else ""
    out.print(f"{done}: {change.file}{kept}. {client.hint}")


def _place(client: Client, project: Path | None) -> Place:
    scope: Scope = "user" if project is None else "project"
    return client.place(scope, this_platform(), os.environ, (project or Path()).absolute())


def _row(client: Client, project: Path | None) -> dict[str, Any]:
    place = _place(client, project)
    try:
        name = next((name for name, _ in _entries(place)), "")
        state = f"connected as {name}" if name else "not connected" if _installed(client, place) else "not found here"
    except DocumentError as exc:
        state = f"unreadable: {exc}"
    return {"client": client.id, "title": client.title, "state": state, "file": str(place.file)}


def _entries(place: Place) -> list[tuple[str, Any]]:
    """The entries of this gateway in a file, for every profile."""
    configuration = Configuration(place)
    profiles = open_catalog(settings()).profiles
    names = [ENTRY_NAME, *(f"{ENTRY_NAME}-{profile}" for profile in profiles)]
    return [(name, entry) for name in names if (entry := configuration.get(name)) is not None]


def _installed(client: Client, place: Place) -> bool:
    """A client that was started once has made its folder."""
    home = Path(os.environ.get("HOME", "/"))
    return place.file.exists() or (place.file.parent.exists() and place.file.parent not in (home, Path()))


def _target(profile: str | None) -> Target:
    wanted = settings()
    if profile is not None:
        open_catalog(wanted).profile(profile)  # an unknown one is refused here
    running = find_running(wanted)
    if running is None and wanted.port == 0:
        raise SettingsError("the gateway has no fixed port and does not run; set LOCKGATE_PORT or start it first")
    base = running.url if running is not None else wanted.url
    url = f"{base}/mcp" if profile is None else f"{base}/p/{profile}/mcp"
    args = ("stdio",) if profile is None else ("stdio", "--profile", profile)
    command = Path(shutil.which("lockgate") or sys.argv[0]).absolute()
    return Target(_entry_name(profile), url, str(command), args)


def _entry_name(profile: str | None) -> str:
    return ENTRY_NAME if profile is None else f"{ENTRY_NAME}-{profile}"
