"""`lockgate oauth`: who is signed in at the providers of remote servers, signing in, and signing out.

Asks the running gateway, to which the provider sends the browser back."""

from __future__ import annotations

import datetime
import webbrowser
from typing import Annotated
from urllib.parse import quote

import typer
from rich.table import Table

from gateway.commands.asking import ask_gateway
from gateway.commands.running import AsJson, out, print_json, shown

app = typer.Typer(no_args_is_help=True)
ServerId = Annotated[str, typer.Argument(help="The id of a server that callers sign in for.")]
User = Annotated[str, typer.Option("--user", help="The principal that signs in; without it the local user.")]


@app.command("list")
def list_grants(as_json: AsJson = False) -> None:
    """List who is signed in where; tokens are not shown."""
    grants = ask_gateway(lambda client: client.admin("GET", "/oauth"))["grants"]
    if as_json:
        print_json(grants)
        return
    table = Table("server", "user", "provider", "scope", "token ends", box=None, pad_edge=False)
    for one in grants:
        at = datetime.datetime.fromtimestamp(one["expires_at"], datetime.UTC).strftime("%Y-%m-%d %H:%M")
        ends = f"{at}, is renewed" if one["refreshes"] else at
        table.add_row(shown(one["server"]), shown(one["owner"]), shown(one["issuer"]), shown(one["scope"]), ends)
    out.print(table)


@app.command("connect")
def connect(
    id: ServerId,
    user: User = "",
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the link here.")] = True,
    as_json: AsJson = False,
) -> None:
    """Get a link to sign in with; it works once and for ten minutes."""
    found = ask_gateway(lambda client: client.admin("POST", _path(id, "connect", user)))
    if as_json:
        print_json(found)
        return
    typer.echo(f"Open this link in your browser: {found['url']}")
    if browser:
        webbrowser.open(found["url"])


@app.command("revoke")
def revoke(id: ServerId, user: User = "", as_json: AsJson = False) -> None:
    """Forget a user's tokens, and tell the provider that they are over."""
    done = ask_gateway(lambda client: client.admin("POST", _path(id, "revoke", user)))
    if as_json:
        print_json(done)
        return
    told = "the provider was told" if done["provider_told"] else "the provider could not be told: revoke it there, too"
    typer.echo(f"{shown(done['owner'])} is signed out of {shown(id)}; {told}")


def _path(id: str, verb: str, user: str) -> str:
    return f"/oauth/{quote(id, safe='')}/{verb}?user={quote(user, safe='')}"
