"""`lockgate approvals`: the calls that wait for a person at the running gateway, and the answer to each.

Knows arguments and output; the gateway knows what waits and who may decide."""

from __future__ import annotations

import time
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.table import Table
from rich.text import Text

from gateway.approvals import summary
from gateway.commands.asking import ask_gateway
from gateway.commands.running import AsJson, out, print_json, shown

app = typer.Typer(no_args_is_help=True)
Id = Annotated[str, typer.Argument(help="The id of a call, as `approvals list` shows it.")]


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """The calls that wait for approval, oldest first."""
    found = ask_gateway(lambda client: client.admin("GET", "/approvals"))["approvals"]
    if as_json:
        print_json(found)
        return
    if not found:
        out.print("no call waits for approval")
        return
    table = Table("id", "who", "tool", "arguments", "for another", box=None, pad_edge=False)
    for one in found:
        left = f"{max(0, int(one['expires_at'] - time.time()))} s"
        row = (one["id"], one["principal"], one["tool"], one["arguments"][:60], left)
        table.add_row(*(Text(shown(cell)) for cell in row))
    out.print(table)


@app.command()
def show(
    id: Id,
    full: Annotated[bool, typer.Option("--full", help="Show the arguments in full length.")] = False,
    as_json: AsJson = False,
) -> None:
    """What a call would do, and which policies want it approved."""
    one = ask_gateway(lambda client: client.admin("GET", f"/approvals/{quote(id, safe='')}{'?full=1' if full else ''}"))
    if as_json:
        print_json(one)
        return
    out.print(Text(shown(summary(one))))
    out.print(Text(shown(f"Policies: {', '.join(one['policies'])}. Approvers: {', '.join(one['approvers'])}.")))
    by = f" by {one['by']}" if one["by"] else ""
    out.print(Text(shown(f"It is {one['state']}{by}; settle with: lockgate approvals approve {one['id']} (or deny)")))


@app.command()
def approve(id: Id, as_json: AsJson = False) -> None:
    """Let a call be made, once, with the arguments that `approvals show` shows."""
    _settle(id, "approve", as_json)


@app.command()
def deny(id: Id, as_json: AsJson = False) -> None:
    """Refuse a call; the very same one is refused for five minutes without asking again."""
    _settle(id, "deny", as_json)


def _settle(id: str, decision: str, as_json: bool) -> None:
    path = f"/approvals/{quote(id, safe='')}/{decision}"
    one: dict[str, Any] = ask_gateway(lambda client: client.admin("POST", path))
    if as_json:
        print_json(one)
    else:
        out.print(Text(shown(f"{one['tool']} for {one['principal']} is {one['state']}")))
