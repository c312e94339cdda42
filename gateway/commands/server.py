"""`lockgate server`: what runs behind the gateway.

Asks the running gateway; without one it can still show what the catalogue says."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.table import Table

from gateway.catalogs import open_catalog
from gateway.commands.asking import ask_gateway
from gateway.commands.running import AsJson, ProfileOption, err, first_line, out, print_json, settings
from gateway.running import find_running

app = typer.Typer(no_args_is_help=True)
ServerId = Annotated[str, typer.Argument(help="The id of a catalogue entry.")]


def _path(id: str, what: str = "") -> str:
    return f"/servers/{quote(id, safe='')}{what}"


@app.command("list")
def list_servers(
    as_json: AsJson = False,
    profile: ProfileOption = None,
    all_entries: Annotated[bool, typer.Option("--all", help="Every entry, not only the profile's.")] = False,
) -> None:
    """List the servers of the running gateway and their states; without a gateway, the catalogue's."""
    wanted, containers = settings(), {"state": "", "reason": ""}
    if find_running(wanted) is None:
        catalog = open_catalog(wanted)
        ids = catalog.runnable if all_entries else catalog.profile(profile or wanted.profile).names
        known = catalog.runnable
        servers = [
            {"id": id, "entry": known[id].entry_id, "title": known[id].title, "state": "no gateway", "runtime": ""}
            for id in ids
        ]
    else:
        query = "*" if all_entries else quote(profile or "", safe="")
        found = ask_gateway(lambda client: client.admin("GET", f"/servers?profile={query}"))
        servers, containers = found["servers"], found["containers"]
    if as_json:
        print_json(servers)
        return
    table = Table("server", "state", "runtime", "tools", "note", box=None, pad_edge=False)
    for server in servers:
        tools = server.get("tools")
        note = str(server.get("error") or server.get("lacks") or server["title"])
        count = "?" if tools is None else str(tools)
        table.add_row(server["id"], _state(server), server["runtime"], count, first_line(note, 100))
    out.print(table)
    if containers["state"] == "waiting":
        err.print(f"No containers for now: {containers['reason']}")


def _state(server: Mapping[str, Any]) -> str:
    """The state, and while starts are refused after a failure, for how long."""
    if server.get("circuit") == "open":
        return f"{server['state']}, rests {server['retry_in_s']:.0f} s"
    return str(server["state"])


@app.command("inspect")
def inspect(id: ServerId) -> None:
    """Show one server: its entry, state, container or process, and tools. Always JSON."""
    print_json(ask_gateway(lambda client: client.admin("GET", _path(id))))


@app.command("logs")
def logs(id: ServerId, as_json: AsJson = False) -> None:
    """Print the server's recent log."""
    lines = ask_gateway(lambda client: client.admin("GET", _path(id, "/logs")))["lines"]
    if as_json:
        print_json(lines)
        return
    for line in lines:
        at = datetime.datetime.fromtimestamp(line["at"], datetime.UTC).strftime("%H:%M:%S")
        typer.echo(f"{at} {line['origin']:7} {line['text']}")


@app.command("egress")
def egress(id: ServerId, as_json: AsJson = False) -> None:
    """Show what a server may reach, and what it has tried to."""
    found = ask_gateway(lambda client: client.admin("GET", _path(id, "/egress")))
    if as_json:
        print_json(found)
        return
    may = {"none": "nothing", "internet": "everything: it is not filtered", "hosts": ", ".join(found["hosts"])}
    typer.echo(f"may reach: {may[found['reach']]}")
    table = Table("", "host", "port", "by", "times", "last", "reason", box=None, pad_edge=False)
    for row in found["attempts"]:
        at = datetime.datetime.fromtimestamp(row["last"], datetime.UTC).strftime("%H:%M:%S")
        verdict = "denied" if row["denied"] else "passed"
        table.add_row(verdict, row["host"], str(row["port"]), row["via"], str(row["times"]), at, row["reason"])
    if found["attempts"]:
        out.print(table)
    if found["uncounted"]:
        typer.echo(f"and {found['uncounted']} more, too many at once to be told apart")


@app.command("start")
def start(id: ServerId) -> None:
    """Start a server now instead of at its first call."""
    print_json(ask_gateway(lambda client: client.admin("POST", _path(id, "/start"))))


@app.command("stop")
def stop(id: ServerId) -> None:
    """Stop a server; its next call starts it again."""
    print_json(ask_gateway(lambda client: client.admin("POST", _path(id, "/stop"))))
