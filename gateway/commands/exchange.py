"""`lockgate catalog import` and `export`: entries from and for other programs.

Knows files and what to print; catalog/imports/ and catalog/exports/ know the formats."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args

import typer

from catalog import Catalog, Entry
from catalog.exports import export_clients, export_docker, export_docker_profile, export_registry
from catalog.imports import FORMATS, Ecosystem, Imported, NoPackages, import_text
from catalog.textfile import read_text
from catalog.writing import write_catalog
from catalog.yamltext import dump
from gateway.catalogs import open_catalog
from gateway.commands.running import err, out, settings, shown
from gateway.errors import SettingsError
from gateway.indexes import current_indexes, installer_environment
from gateway.packages import find_uv
from gateway.rulebook import open_rulebook

ExportFormat = Literal["docker", "docker-profile", "registry", "mcpServers", "servers"]
LOOKUP_TIMEOUT_S: Final = 60.0


def import_(
    file: Annotated[Path, typer.Argument(help="The document of another program; - is standard input.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the catalogue to this new file.")] = None,
    format: Annotated[
        str | None, typer.Option("--format", help=f"One of {', '.join(FORMATS)}; default: found out.")
    ] = None,
    ask: Annotated[
        bool, typer.Option("--ask/--no-ask", help="Ask package indexes what the document leaves out.")
    ] = True,
) -> None:
    """Turn a Docker MCP catalogue or profile, a server.json, or a client's configuration into catalogue entries.

    What could not be carried over is said on standard error; values that may be secrets never are.
    """
    if format is not None and format not in FORMATS:
        raise SettingsError(f"unknown format {format!r}; one of {', '.join(FORMATS)}")
    if output is not None and output.exists():
        raise SettingsError(f"{output} exists; name a new file")
    text = typer.get_text_stream("stdin").read() if str(file) == "-" else read_text(file)
    found = import_text(text, format=format, packages=IndexedPackages() if ask else NoPackages())
    _leave_out_refused(found)
    written = write_catalog(found.entries.values(), found.profiles.values())
    if output is None:
        out.print(written, end="")
    else:
        output.write_text(written)
    _report(found, output)


def _leave_out_refused(found: Imported) -> None:
    """Entries that the rules refuse are left out, also of the profile; one of nothing else goes with them."""
    wanted = settings()
    rulebook = open_rulebook(wanted, Catalog(wanted.state_dir, found.entries, found.profiles))
    for id, why in rulebook.refused(Catalog(wanted.state_dir, found.entries, {})).items():
        del found.entries[id]
        found.refuse(id, why)
    for name, profile in list(found.profiles.items()):
        if any(profile.entry_id(server) not in found.entries for server in profile.servers):
            del found.profiles[name]
            found.refuse(f"profile {name}", "names an entry that is left out")


def _report(found: Imported, output: Path | None) -> None:
    for note in found.notes:
        err.print(shown(str(note)))
    refused = sum(note.refused for note in found.notes)
    err.print(f"{len(found.entries)} entries carried over, {refused} left out")
    if output is not None:
        err.print(f"Check it with: lockgate catalog lint {output}\nUse it with: LOCKGATE_CATALOG={output.absolute()}")
    if not found.entries:
        raise typer.Exit(1)


def export(
    ids: Annotated[list[str] | None, typer.Argument(help="Entries; default: all, or those of the profile.")] = None,
    format: Annotated[str, typer.Option("--format", help=f"One of {', '.join(get_args(ExportFormat))}.")] = "docker",
    profile: Annotated[str | None, typer.Option("--profile", help="The entries of a profile.")] = None,
    namespace: Annotated[str, typer.Option(help="For registry: the reverse-DNS name of the publisher.")] = "local",
    version: Annotated[str, typer.Option(help="For registry: the version of servers without a package.")] = "0.0.0",
) -> None:
    """Write entries as a Docker MCP catalogue or profile, as a server.json, or as a client's configuration."""
    if format not in get_args(ExportFormat):
        raise SettingsError(f"unknown format {format!r}; one of {', '.join(get_args(ExportFormat))}")
    catalog = open_catalog(settings())
    chosen = _chosen(catalog, ids or [], profile)
    document: Any
    match format:
        case "docker":
            document, notes = export_docker(profile or "lockgate", chosen)
        case "docker-profile":
            document, notes = export_docker_profile(catalog, catalog.profile(profile or settings().profile))
        case "registry":
            if len(chosen) != 1:
                raise SettingsError("a server.json holds one server; name one entry")
            document, notes = export_registry(chosen[0], namespace, version)
        case _:
            document, notes = export_clients(chosen, "servers" if format == "servers" else "mcpServers")
    for note in notes:
        err.print(note)
    text = dump(document) if format.startswith("docker") else json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    typer.echo(text, nl=False)


def _chosen(catalog: Catalog, ids: list[str], profile: str | None) -> list[Entry]:
    if ids:
        return [catalog.entry(id) for id in ids]
    if profile is not None:
        return [catalog.entry(id) for id in catalog.profile(profile).entries]
    return list(catalog.entries.values())


class IndexedPackages:
    """Asks the user's own package indexes, with the settings of pip and npm."""

    def __init__(self) -> None:
        self._environ = installer_environment(os.environ) | current_indexes().for_uv()

    def newest(self, ecosystem: Ecosystem, name: str) -> str | None:
        if ecosystem == "npm":
            return _first_line([_npm(), "view", "--silent", name, "version"], self._environ)
        uv = find_uv()
        if uv is None:
            return None
        argv = [uv, "pip", "compile", "--quiet", "--no-deps", "--no-header", "--no-annotate", "--no-config", "-"]
        line = _first_line(argv, self._environ, name)
        return line.partition("==")[2] if line else None

    def program(self, ecosystem: Ecosystem, name: str, version: str) -> str | None:
        """npm knows the programs of a package; if it has several, the one called like the package counts."""
        if ecosystem != "npm":
            return None
        line = _first_line(
            [_npm(), "view", "--silent", "--json", f"{name}@{version}", "bin"], self._environ, whole=True
        )
        try:
            programs = json.loads(line or "{}")
        except ValueError:
            return None
        if not isinstance(programs, dict):
            return None
        own = name.rpartition("/")[2]
        return own if own in programs else next(iter(programs), None)


def _npm() -> str:
    return shutil.which("npm") or "npm"


def _first_line(argv: list[str], environ: dict[str, str], text: str = "", *, whole: bool = False) -> str | None:
    try:
        done = subprocess.run(
            argv, env=environ, input=text, capture_output=True, text=True, timeout=LOOKUP_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    if whole:
        return done.stdout
    return next((line.strip() for line in done.stdout.splitlines() if line.strip()), None)
