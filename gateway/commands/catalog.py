"""`lockgate catalog`: check and look at the catalogue, and compare two.

Knows what to print; the catalog room knows the rules."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.table import Table
from rich.text import Text

from catalog import (
    Catalog,
    CatalogError,
    Changed,
    Difference,
    Entry,
    Problem,
    Profile,
    advice,
    difference,
    load_catalog,
    load_profiles,
)
from catalog.jsonschema import schema_text
from catalog.writing import write_catalog
from gateway.abilities import lacking
from gateway.catalogs import catalog_file, open_catalog, profiles_file
from gateway.commands.asking import ask_gateway
from gateway.commands.running import AsJson, completed, err, out, print_json, settings, shown
from gateway.errors import SettingsError
from gateway.rulebook import open_rulebook

app = typer.Typer(no_args_is_help=True)

SHOWN_COUNTS: Final = 12
VALUE_CHARS: Final = 160


_ids = completed(lambda: open_catalog(settings()).entries)
EntryId = Annotated[str, typer.Argument(help="The id of a catalogue entry.", autocompletion=_ids)]


@app.command("lint")
def lint(
    file: Annotated[Path | None, typer.Argument(help="A catalogue file; default: the one in use.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check a catalogue file and, without FILE, your own profiles; each problem comes with file, line and entry."""
    path = file or catalog_file(settings())
    own = profiles_file(settings()) if file is None else None
    try:
        catalog = load_catalog(path)
        if own is not None and own.exists():
            catalog = load_profiles(own, catalog)
    except CatalogError as exc:
        if not as_json:
            raise
        print_json({"ok": False, "problems": _rows(exc.problems)})
        raise typer.Exit(2) from exc
    counts = {"entries": len(catalog.entries), "profiles": len(catalog.profiles)}
    refused = open_rulebook(settings(), catalog).refused(catalog)
    if as_json:
        found = {"problems": [], "warnings": _rows(advice(catalog)), "refused": refused}
        print_json({"ok": True, **found, **counts})
        return
    for warning in advice(catalog):
        err.print(f"warning: {warning}")
    typer.echo(f"{path}: {counts['entries']} entries and {counts['profiles']} profiles, no problems")
    print_refused(refused)


def print_refused(refused: Mapping[str, str]) -> None:
    """Say which entries the rules refuse."""
    for id, why in refused.items():
        err.print(shown(f"{id}: refused: {why}"))
    if refused:
        err.print(f"The rules refuse {len(refused)} entries; see: lockgate catalog rules")


def _rows(problems: list[Problem]) -> list[dict[str, Any]]:
    return [{**asdict(problem), "file": str(problem.file)} for problem in problems]


@app.command("show")
def show(id: EntryId, as_json: AsJson = False) -> None:
    """Show one entry: what it is, how it runs, what it needs before it can start, and its tools."""
    catalog = open_catalog(settings())
    entry = catalog.entry(id)
    refusal = open_rulebook(settings(), catalog).refusal(entry)
    if as_json:
        found = {"digest": entry.digest, "lacking": list(lacking(entry)), "refused": refusal}
        print_json({**entry.model_dump(mode="json"), **found})
        return
    out.print(Text.assemble((entry.title, "bold"), f"  ({entry.id})"))
    out.print(entry.description)
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column()
    for name, value in _facts(entry):
        table.add_row(name, value)
    out.print(table)
    reasons = list(lacking(entry))
    if refusal:
        out.print(Text(f"Refused here: {shown(refusal)}.", style="red"))
    elif reasons:
        out.print(Text(f"Cannot start here: it {'; it '.join(reasons)}.", style="yellow"))
    else:
        out.print(f"Start it: lockgate server start {entry.id}")


def _facts(entry: Entry) -> Iterator[tuple[str, str]]:
    for name, value in (("image", entry.image), ("publisher", entry.publisher), ("licence", entry.license)):
        if value:
            yield name, value
    if entry.package is not None:
        yield "package", f"{entry.package.ecosystem}: {entry.package.name} {entry.package.version}"
    if entry.remote is not None:
        yield "remote", f"{entry.remote.url} ({entry.remote.transport})"
    for tool in entry.per_call:
        yield f"tool {tool.name}", f"{tool.description} Each call runs {tool.image}."
    for secret in entry.secrets:
        yield "secret", f"{secret.name}{'' if secret.required else ' (optional)'}"
    if entry.oauth is not None:
        yield "sign-in", entry.oauth.provider
    for setting in entry.config:
        notes = ["required"] if setting.required else []
        notes += [f"default {setting.default}"] if setting.default is not None else []
        notes += [f"one of {', '.join(setting.enum)}"] if setting.enum else []
        yield "setting", f"{setting.name} ({setting.type}{''.join(f', {note}' for note in notes)})"
    for volume in entry.volumes:
        yield "volume", f"{volume.name} at {volume.target}"
    for mount in entry.mounts:
        rights = "read only" if mount.read_only else "writable"
        yield "mount", f"{mount.config or mount.source} at {mount.target or 'the same path'} ({rights})"
    if entry.image or entry.package or entry.per_call:
        yield "network", ", ".join(entry.hosts) or entry.network
    yield "categories", ", ".join(entry.categories)
    if entry.source:
        yield "source", entry.source
    if entry.tools:
        yield f"{len(entry.tools)} tools", ", ".join(entry.tools)
    elif entry.dynamic_tools:
        yield "tools", "known only after a sign-in"


def runs_as(entry: Entry) -> str:
    """The ways an entry can run, in a few words."""
    ways = (
        (entry.image, "image"),
        (entry.package, "package"),
        (entry.remote, "remote"),
        (entry.per_call, "container per call"),
        (entry.built_in, "built in"),
    )
    return ", ".join(name for way, name in ways if way)


def needs(entry: Entry) -> list[str]:
    """What has to be given before it can start."""
    found = []
    if any(secret.required for secret in entry.secrets):
        found.append("secret")
    if entry.oauth is not None:
        found.append("sign-in")
    if any(setting.required for setting in entry.config) or entry.config_any_of:
        found.append("settings")
    return found


@app.command("pick")
def pick(
    ids: Annotated[list[str], typer.Argument(help="The entries to take.", autocompletion=_ids)],
    profile: Annotated[str, typer.Option("--profile", help="The profile that names them.")] = "starter",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write it to this new file.")] = None,
) -> None:
    """Make a catalogue of your own from entries of the one in use, with a profile that names them all."""
    catalog = open_catalog(settings())
    entries = [catalog.entry(id) for id in dict.fromkeys(ids)]
    rulebook = open_rulebook(settings(), catalog)
    if refused := {entry.id: why for entry in entries if (why := rulebook.refusal(entry))}:
        print_refused(refused)
        raise typer.Exit(1)
    named = Profile.model_validate(
        {"name": profile, "title": profile.capitalize(), "servers": [entry.id for entry in entries]}
    )
    text = write_catalog(entries, [named])
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        with output.open("x") as file:
            file.write(text)
    except FileExistsError as exc:
        raise SettingsError(f"{output} exists; name a new file") from exc
    typer.echo(
        f"{output}: {len(entries)} entries; use it: LOCKGATE_CATALOG={output} lockgate serve --profile {profile}"
    )


@app.command("stats")
def stats(as_json: AsJson = False) -> None:
    """Count the entries: by how they run, what they need, category, licence and publisher."""
    catalog = open_catalog(settings())
    counted = _counts(catalog)
    if as_json:
        print_json({"path": str(catalog.path), "entries": len(catalog.entries), **counted})
        return
    out.print(f"{catalog.path}: {len(catalog.entries)} entries, {len(catalog.profiles)} profiles")
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column()
    for name, counts in counted.items():
        shown = [f"{value} {count}" for value, count in list(counts.items())[:SHOWN_COUNTS]]
        more = len(counts) - SHOWN_COUNTS
        table.add_row(name.replace("_", " "), ", ".join(shown) + (f", and {more} more" if more > 0 else ""))
    out.print(table)


def _counts(catalog: Catalog) -> dict[str, dict[str, int]]:
    entries = list(catalog.entries.values())
    here = [entry for entry in entries if entry.image or entry.package or entry.per_call]
    counts: dict[str, Counter[str]] = {
        "runs_as": Counter(runs_as(entry) for entry in entries),
        "needs": Counter(need for entry in entries for need in needs(entry) or ["nothing"]),
        "network": Counter(entry.network for entry in here),
        "categories": Counter(category for entry in entries for category in entry.categories),
        "licences": Counter(entry.license or "not known" for entry in entries),
        "publishers": Counter(entry.publisher or "not known" for entry in entries),
        "tools": Counter({"known": sum(len(entry.tools) for entry in entries)}),
        "images": Counter("by digest" if "@sha256:" in entry.image else "by tag" for entry in entries if entry.image),
    }
    return {name: dict(counter.most_common()) for name, counter in counts.items()}


@app.command("diff")
def diff(
    old: Annotated[Path, typer.Argument(help="A catalogue file.")],
    new: Annotated[Path | None, typer.Argument(help="Another one; default: the one in use.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what differs between two catalogues; an entry marked * runs something else than before."""
    found = difference(load_catalog(old), load_catalog(new or catalog_file(settings())))
    if as_json:
        print_json(asdict(found))
        return
    print_difference(found)


def print_difference(found: Difference) -> None:
    """A difference for people."""
    if not found:
        typer.echo("No difference.")
        return
    for mark, style, names in (
        ("+", "green", found.added),
        ("-", "red", found.removed),
        ("+ profile", "green", found.added_profiles),
        ("- profile", "red", found.removed_profiles),
        ("+ publisher", "green", found.added_publishers),
        ("- publisher", "red", found.removed_publishers),
        ("+ model", "green", found.added_models),
        ("- model", "red", found.removed_models),
    ):
        for name in names:
            out.print(Text(f"{mark} {name}", style=style))
    for changed in (*found.changed, *found.changed_profiles, *found.changed_publishers, *found.changed_models):
        _print_changed(changed)


def _print_changed(changed: Changed) -> None:
    out.print(Text(f"~ {changed.name}{' *' if changed.restarts else ''}", style="bold"))
    for change in changed.changes:
        if change.before is not None:
            out.print(Text(f"    - {change.key}: {_short(change.before)}", style="red"))
        if change.after is not None:
            out.print(Text(f"    + {change.key}: {_short(change.after)}", style="green"))


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= VALUE_CHARS else text[: VALUE_CHARS - 3] + "..."


@app.command("reload")
def reload(as_json: AsJson = False) -> None:
    """Let the running gateway load its catalogue again; if the file is wrong, everything stays as it was."""
    found = ask_gateway(lambda client: client.admin("POST", "/catalog/reload"))
    if as_json:
        print_json(found)
        return
    typer.echo(found["summary"])
    print_refused(found["refused"])


@app.command("schema")
def schema() -> None:
    """Print the JSON Schema of a catalogue file, for editors: save it, and name it in the file's first line."""
    typer.echo(schema_text(), nl=False)
