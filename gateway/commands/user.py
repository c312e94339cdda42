"""`lockgate user`: accounts of people who sign in at this gateway.

Works on the database of this state folder, with or without a running gateway."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer
from rich.table import Table

from gateway.auth.keys import Keys
from gateway.commands.credentials import day, in_database, record
from gateway.commands.running import AsJson, err, out, print_json, run, settings
from gateway.database import Database
from gateway.signin.accounts import Account, Accounts, hash_password
from gateway.signin.browsers import Browsers
from gateway.signin.grants import Grants
from gateway.signin.passkeys import Passkey, Passkeys

app = typer.Typer(no_args_is_help=True)

FromStdin = Annotated[bool, typer.Option("--password-stdin", help="Read the password from standard input.")]


def _password(from_stdin: bool) -> str:
    if from_stdin:
        return sys.stdin.readline().rstrip("\n")
    return str(typer.prompt("Password", hide_input=True, confirmation_prompt=True))


@app.command("bootstrap")
def bootstrap() -> None:
    """Print a code with which the first administrator signs up on the gateway's page, within an hour."""

    async def work(database: Database) -> str:
        return await Accounts(database).bootstrap_code()

    out.print(run(in_database(settings(), work)))


@app.command("create")
def create(
    name: str,
    admin: Annotated[bool, typer.Option("--admin", help="May control the gateway.")] = False,
    group: Annotated[list[str] | None, typer.Option("--group", help="A group; may be repeated.")] = None,
    password_stdin: FromStdin = False,
) -> None:
    """Make an account."""
    wanted = settings()
    password = _password(password_stdin)

    async def work(database: Database) -> None:
        account = await Accounts(database).create(name, password, groups=group or (), is_admin=admin)
        await record(wanted, account.subject, "account created")

    run(in_database(wanted, work))
    err.print(f"{name} may sign in")


@app.command("list")
def list_users(as_json: AsJson = False) -> None:
    """List the accounts."""

    async def work(database: Database) -> list[Account]:
        return await Accounts(database).list()

    found = run(in_database(settings(), work))
    if as_json:
        rows = [
            {
                "name": one.name,
                "principal": one.subject,
                "groups": sorted(one.groups),
                "admin": one.is_admin,
                "created_at": one.created_at,
                "disabled_at": one.disabled_at,
            }
            for one in found
        ]
        print_json(rows)
        return
    table = Table("account", "principal", "groups", "admin", "state", box=None)
    for one in found:
        state = "disabled" if one.disabled_at is not None else "good"
        table.add_row(one.name, one.subject, " ".join(sorted(one.groups)), "yes" if one.is_admin else "", state)
    out.print(table)


@app.command("disable")
def disable(name: str) -> None:
    """End an account: its sessions, and everything that clients may do for it, at once."""
    wanted = settings()

    async def work(database: Database) -> None:
        accounts = Accounts(database)
        await accounts.change(name, disabled_at=time.time())
        await Browsers(database, accounts, secure=False).end_all(name)
        await Grants(database, wanted.state_dir / "unused").revoke_account(name)
        await record(wanted, f"user:{name}", "account disabled")

    run(in_database(wanted, work))
    err.print(f"{name} is disabled")


@app.command("passwd")
def passwd(name: str, password_stdin: FromStdin = False) -> None:
    """Give an account another password; a disabled one is let in again.

    It is signed out everywhere, and everything that clients may do for it ends. Its passkeys and the API keys that act
    as it stay; they are named.
    """
    wanted = settings()
    password = _password(password_stdin)

    async def work(database: Database) -> tuple[list[str], list[str]]:
        accounts = Accounts(database)
        await accounts.change(name, password=await hash_password(password), disabled_at=None)
        await Browsers(database, accounts, secure=False).end_all(name)
        await Grants(database, wanted.state_dir / "unused").revoke_account(name)
        await record(wanted, f"user:{name}", "password changed")
        keys = [key.name for key in await Keys(database).list() if key.account == name and key.state == "good"]
        return keys, [one.name for one in await Passkeys(database).of(name)]

    keys, found = run(in_database(wanted, work))
    err.print(f"{name} has a new password and is signed out everywhere, clients too")
    if found:
        err.print(f"Its passkeys stay: {', '.join(found)}. `lockgate user passkeys {name} --remove` takes one away")
    if keys:
        err.print(f"API keys that act as {name} are still good: {', '.join(keys)}. `lockgate key revoke` ends them")


@app.command("passkeys")
def passkeys(
    name: str,
    remove: Annotated[str, typer.Option("--remove", help="Take this one away, and sign the account out.")] = "",
    as_json: AsJson = False,
) -> None:
    """List the passkeys of an account. People add them in their browser, at /oauth/passkeys."""
    wanted = settings()

    async def work(database: Database) -> list[Passkey]:
        kept = Passkeys(database)
        if remove:
            await kept.remove(name, remove)
            await Browsers(database, Accounts(database), secure=False).end_all(name)
            await record(wanted, f"user:{name}", "passkey removed")
        return await kept.of(name)

    found = run(in_database(wanted, work))
    if as_json:
        rows = [{"name": one.name, "created_at": one.created_at, "used_at": one.used_at} for one in found]
        print_json(rows)
        return
    table = Table("passkey", "made", "used last", box=None)
    for one in found:
        table.add_row(one.name, day(one.created_at), day(one.used_at))
    out.print(table)
