"""`lockgate key`: API keys, for programs that do not sign in as a person.

Works on the database of this state folder, with or without a running gateway."""

from __future__ import annotations

import re
import time
from typing import Annotated, Any, Final

import typer
from rich.table import Table

from gateway.auth.keys import Key, Keys
from gateway.commands.credentials import day, in_database, record
from gateway.commands.running import AsJson, err, out, print_json, run, settings
from gateway.database import Database

app = typer.Typer(no_args_is_help=True)

SPAN: Final = re.compile(r"([1-9][0-9]{0,4})([hdy])")
SECONDS: Final = {"h": 3600, "d": 86400, "y": 365 * 86400}


@app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="What the key is for; it stands in the audit.")],
    user: Annotated[str, typer.Option("--user", help="Act as this account, in place of the key itself.")] = "",
    group: Annotated[list[str] | None, typer.Option("--group", help="A group it belongs to; may be repeated.")] = None,
    scope: Annotated[list[str] | None, typer.Option("--scope", help="mcp (default), model or admin.")] = None,
    expires: Annotated[str, typer.Option(help="12h, 90d, 1y, or never.")] = "90d",
    as_json: AsJson = False,
) -> None:
    """Make a key and show it, this once."""
    wanted = settings()
    ends = ends_at(expires)

    async def work(database: Database) -> str:
        key = await Keys(database).create(
            name, account=user, groups=group or (), scopes=scope or ("mcp",), expires_at=ends
        )
        await record(wanted, f"key:{name}", "key created")
        return key

    key = run(in_database(wanted, work))
    if as_json:
        print_json({"name": name, "key": key, "expires_at": ends})
        return
    out.print(key)
    err.print("This key is shown once. Send it as `Authorization: Bearer KEY`.")
    if wanted.auth == "off":
        err.print("Nobody is asked for a key yet: set LOCKGATE_AUTH=keys")


@app.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """List the keys; their texts are not kept."""

    async def work(database: Database) -> list[Key]:
        return await Keys(database).list()

    found = run(in_database(settings(), work))
    if as_json:
        print_json([_as_json(key) for key in found])
        return
    table = Table("key", "begins", "acts as", "groups", "scopes", "expires", "last used", "state", box=None)
    for key in found:
        groups, scopes = " ".join(sorted(key.groups)), " ".join(sorted(key.scopes))
        ends, used = day(key.expires_at), day(key.used_at)
        table.add_row(key.name, key.prefix + "…", key.principal.id, groups, scopes, ends, used, key.state)
    out.print(table)


@app.command("revoke")
def revoke(name: str) -> None:
    """End a key now."""
    wanted = settings()

    async def work(database: Database) -> None:
        await Keys(database).revoke(name)
        await record(wanted, f"key:{name}", "key revoked")

    run(in_database(wanted, work))
    err.print(f"{name} is revoked")


def ends_at(text: str) -> float | None:
    """When a span that begins now ends."""
    if text == "never":
        return None
    if (found := SPAN.fullmatch(text)) is None:
        raise typer.BadParameter(f"{text!r} is no span like 12h, 90d or 1y, nor never")
    return time.time() + int(found[1]) * SECONDS[found[2]]


def _as_json(key: Key) -> dict[str, Any]:
    return {
        "name": key.name,
        "prefix": key.prefix,
        "principal": key.principal.id,
        "groups": sorted(key.groups),
        "scopes": sorted(key.scopes),
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "used_at": key.used_at,
        "state": key.state,
    }
