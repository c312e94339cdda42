"""`lockgate profile`: see, make and change profiles, and choose the one at /mcp.

Knows arguments and output; gateway/profiles.py knows the files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import click
import typer
from rich.table import Table
from ruamel.yaml.comments import CommentedMap

from catalog import Catalog, Entry, Profile, advice
from gateway import profilefile
from gateway.catalogs import open_catalog
from gateway.choice import write_choice
from gateway.commands.asking import ask_gateway
from gateway.commands.running import AsJson, completed, err, out, print_json, settings
from gateway.errors import SettingsError
from gateway.profilefile import sequence
from gateway.profiles import ProfileFiles
from gateway.running import find_running

app = typer.Typer(no_args_is_help=True)


_names = completed(lambda: open_catalog(settings()).profiles)
Name = Annotated[str, typer.Argument(help="The name of a profile.", autocompletion=_names)]
NewName = Annotated[str, typer.Argument(help="The name of the new profile.")]


# -- seeing --------------------------------------------------------------------------------------


@app.command("list")
def list_profiles(as_json: AsJson = False) -> None:
    """List the profiles: their servers, whom they are for, where they are written; * is the one at /mcp."""
    files = ProfileFiles(settings())
    catalog = files.catalog()
    default = _default()
    rows = [{**_facts(profile), "default": name == default, "file": str(files.file_of(name))}
            for name, profile in catalog.profiles.items()]  # fmt: skip
    if as_json:
        print_json(rows)
        return
    table = Table("profile", "for", "servers", "title", box=None, pad_edge=False)
    for row in rows:
        mark = " *" if row["default"] else ""
        table.add_row(f"{row['profile']}{mark}", _whom(row["for"]), ", ".join(row["servers"]), row["title"])
    out.print(table)


def _default() -> str:
    wanted = settings()
    if find_running(wanted) is None:
        return wanted.profile
    return str(ask_gateway(lambda client: client.admin("GET", "/catalog"))["default"])


def _facts(profile: Profile) -> dict[str, Any]:
    bound = profile.callers
    return {
        "profile": profile.name,
        "title": profile.title,
        "servers": list(profile.servers),
        "for": bound.model_dump(mode="json") if bound is not None else None,
    }


def _whom(bound: dict[str, list[str]] | None) -> str:
    if bound is None:
        return "everybody"
    return ", ".join([*bound["principals"], *(f"group {group}" for group in bound["groups"])])


@app.command("show")
def show(name: Name, as_json: AsJson = False) -> None:
    """Show a profile: each server with its entry, settings, secrets and tools, and the address for clients."""
    files = ProfileFiles(settings())
    catalog = files.catalog()
    profile = catalog.profile(name)
    if as_json:
        print_json({**profile.model_dump(mode="json", exclude_defaults=True), "file": str(files.file_of(name)),
                    "runs": dict(profile.runs), "endpoint": f"/p/{name}/mcp"})  # fmt: skip
        return
    out.print(f"{profile.title}  ({name}, for {_whom(_facts(profile)['for'])}, at /p/{name}/mcp)")
    table = Table("server", "entry", "particular", "tools", box=None, pad_edge=False)
    for server in profile.servers:
        entry = catalog.entry(profile.entry_id(server))
        table.add_row(server, entry.id, "; ".join(_particular(profile, server)), _tools(profile, server, entry))
    out.print(table)
    out.print(f"Written in {files.file_of(name)}")


def _particular(profile: Profile, server: str) -> list[str]:
    detail = profile.detail(server)
    found = [f"{key}={value}" for key, value in detail.settings.items()]
    found += [f"{place} from {kept}" for place, kept in detail.secrets.items()]
    found += [f"{tool} is {new}" for tool, new in detail.rename.items()]
    return found + [f"{tool} has other words" for tool in detail.descriptions]


def _tools(profile: Profile, server: str, entry: Entry) -> str:
    if server in profile.tools:
        return ", ".join(profile.tools[server]) or "none"
    return f"all {len(entry.tools)}" if entry.tools else "all"


@app.command("export")
def export(
    name: Name,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write it to this new file.")] = None,
) -> None:
    """Write a profile as a file of its own, with its comments. Docker's format: lockgate catalog export."""
    text = f"version: 1\n\nprofiles:\n{_indented(profilefile.excerpt(ProfileFiles(settings()).text_of(name), name))}"
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        with output.open("x") as file:
            file.write(text)
    except FileExistsError as exc:
        raise SettingsError(f"{output} exists; name a new file") from exc


def _indented(text: str) -> str:
    return "".join(f"  {line}" if line.strip() else line for line in text.splitlines(keepends=True))


# -- making --------------------------------------------------------------------------------------


@app.command("create")
def create(
    name: NewName,
    servers: Annotated[list[str] | None, typer.Argument(help="Entries of the catalogue.")] = None,
    title: Annotated[str | None, typer.Option("--title", help="A name for people.")] = None,
    like: Annotated[
        str | None, typer.Option("--from", help="Begin with a copy of this profile.", autocompletion=_names)
    ] = None,
) -> None:
    """Make a profile, in a file of your own in the state folder."""
    files = ProfileFiles(settings())
    members = CommentedMap({"title": title or name.capitalize()})
    listed = list(servers or [])
    if like is not None:
        known = files.catalog().profile(like)
        rest: dict[str, Any] = known.model_dump(
            mode="json", exclude_defaults=True, exclude={"name", "title", "servers"}
        )
        listed = [*known.servers, *(one for one in listed if one not in known.servers)]
        members["title"] = title or known.title
        members["servers"] = sequence(listed)
        members.update(rest)
    members["servers"] = sequence(listed)
    written(name, lambda text: profilefile.added(text, name, members), files, new=True)


@app.command("rm")
def remove_profile(name: Name) -> None:
    """Remove a profile. Connected clients find nothing in it any more."""
    if name == _default():
        raise SettingsError(f"{name} is served at /mcp; choose another one first: lockgate profile use NAME")
    ProfileFiles(settings()).change(name, lambda text: profilefile.removed(text, name))
    _reload()
    typer.echo(f"{name} is removed")


@app.command("edit")
def edit(name: Name) -> None:
    """Open a profile in your editor; it is checked before it takes the place of what was there."""
    files = ProfileFiles(settings())
    before = profilefile.excerpt(files.text_of(name), name)
    after = click.edit(before, extension=".yaml")
    if after is None or after == before:
        typer.echo("nothing is changed")
        return
    written(name, lambda text: profilefile.replaced(text, name, after), files)


@app.command("use")
def use(name: Name, as_json: AsJson = False) -> None:
    """Serve this profile at /mcp: at once where a gateway runs, and whenever one starts without LOCKGATE_PROFILE."""
    wanted = settings()
    if find_running(wanted) is not None:
        found = ask_gateway(lambda client: client.admin("POST", f"/profiles/{quote(name, safe='')}/use"))
    else:
        profile = open_catalog(wanted).profile(name)
        write_choice(wanted.state_dir, name)
        found = {"profile": name, "title": profile.title}
    if as_json:
        print_json(found)
        return
    typer.echo(f"/mcp serves {name}: {found['title']}")


# -- the way to the file -------------------------------------------------------------------------


def written(name: str, edit: Callable[[str], str], files: ProfileFiles, *, new: bool = False) -> None:
    before = files.catalog().profiles.get(name)
    catalog = files.change(name, edit, new=new)
    _reload()
    _warn(catalog, name)
    for server in _with_new_volumes(catalog, before, catalog.profile(name)):
        err.print(f"{server} is another instance now, with empty volumes; those it had stay in the state folder")
    typer.echo(f"{name}: {', '.join(catalog.profile(name).servers)} ({files.file_of(name)})")


def _warn(catalog: Catalog, name: str) -> None:
    for warning in advice(catalog):
        if warning.entry == f"profile {name}":
            err.print(f"warning: {warning.message}")


def _with_new_volumes(catalog: Catalog, before: Profile | None, after: Profile) -> Iterator[str]:
    """The servers that keep data and, by what changed about them, have lost sight of it."""
    for server, id in after.runs.items():
        kept = catalog.entry(after.entry_id(server)).volumes
        if before is not None and kept and before.runs.get(server, id) != id:
            yield server


def _reload() -> None:
    """A running gateway would see it by itself in a second; whoever waits for the command waits for that, too."""
    if find_running(settings()) is not None:
        ask_gateway(lambda client: client.admin("POST", "/catalog/reload"))
