"""`lockgate secret`: put secrets into the vault, and look after the vault itself.

Values come from standard input or a prompt, never from an argument. A running gateway does the work, so that servers
that wait for a secret can start at once; without one it is done here."""

from __future__ import annotations

import datetime
import json
import sys
from getpass import getpass
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer
from rich.table import Table

from catalog.reference import check_secret_reference
from gateway import durable
from gateway.client import gateway_client
from gateway.commands.running import AsJson, out, print_json, run, settings, shown
from gateway.database import Database
from gateway.errors import SecretsError, SettingsError
from gateway.running import find_running
from gateway.settings import Settings
from gateway.statelock import lock_state, release_state
from gateway.vault import Vault
from gateway.vault.desk import VaultDesk

app = typer.Typer(no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="The secret's name, as in brave.api_key or work/github.")]
User = Annotated[str, typer.Option("--user", help="The principal whose own it is; without it everybody's.")]
PassphraseFile = Annotated[
    Path | None, typer.Option("--passphrase-file", help="A file with the backup's passphrase (mode 600).")
]
MAX_INPUT_BYTES: Final = 8 * 1024 * 1024


@app.command("set")
def set_secret(name: Name, user: User = "", as_json: AsJson = False) -> None:
    """Keep a secret; its value is read from standard input or asked for."""
    done = _ask("set", name=_checked(name), owner=user, value=_value(name))
    _say(done, f"{name} is kept{_of(user)}", as_json)


@app.command("list")
def list_secrets(as_json: AsJson = False) -> None:
    """List what is kept, without the values."""
    found = _ask("list")["secrets"]
    if as_json:
        print_json(found)
        return
    table = Table("secret", "owner", "changed", box=None, pad_edge=False)
    for one in found:
        at = datetime.datetime.fromtimestamp(one["changed_at"], datetime.UTC).strftime("%Y-%m-%d %H:%M")
        table.add_row(shown(one["name"]), shown(one["owner"]) or "everybody", at)
    out.print(table)


@app.command("rm")
def remove(name: Name, user: User = "", as_json: AsJson = False) -> None:
    """Remove a secret."""
    _say(_ask("remove", name=name, owner=user), f"{name} is removed{_of(user)}", as_json)


@app.command("rotate")
def rotate(
    name: Annotated[str, typer.Argument(help="A secret that is kept already.")] = "",
    user: User = "",
    key: Annotated[bool, typer.Option("--key", help="Give the vault a new key in place of a secret a value.")] = False,
    to: Annotated[str | None, typer.Option(help="With --key: keep the key there; as LOCKGATE_VAULT_KEY.")] = None,
    as_json: AsJson = False,
) -> None:
    """Replace a secret's value, or with --key the vault's key."""
    if key == bool(name) or (to is not None and not key):
        raise SettingsError("give the name of a secret, or --key and perhaps --to")
    if key:
        done = _ask("rotate-key", to=to)
        text = f"the vault has a new key, kept by: {done['key']}"
        if to is not None:
            text += f"; set LOCKGATE_VAULT_KEY={to.partition(' ')[0]} from now on"
        _say(done, text, as_json)
    else:
        done = _ask("replace", name=_checked(name), owner=user, value=_value(name))
        _say(done, f"{name} has a new value{_of(user)}; servers that held the old one start anew", as_json)


@app.command("import")
def import_secrets(
    file: Annotated[Path, typer.Argument(help="NAME=VALUE lines, or a JSON object; - is standard input.")],
    user: User = "",
    as_json: AsJson = False,
) -> None:
    """Keep all secrets of a file, or none of them."""
    values = _values(_input() if str(file) == "-" else _content(file))
    done = _ask("import", values=values, owner=user)
    _say(done, f"{len(values)} secrets are kept{_of(user)}; remove {file} if nothing else needs it", as_json)


@app.command("backup")
def backup(file: Path, passphrase_file: PassphraseFile = None, as_json: AsJson = False) -> None:
    """Write all secrets into one encrypted file."""
    done = _ask("backup", path=str(file.absolute()), passphrase=_passphrase(passphrase_file, twice=True))
    _say(done, f"{done['secrets']} secrets are in {file}; without the passphrase nobody can read it", as_json)


@app.command("restore")
def restore(
    file: Path,
    passphrase_file: PassphraseFile = None,
    replace: Annotated[bool, typer.Option("--replace", help="Also if the backup is older than the vault.")] = False,
    as_json: AsJson = False,
) -> None:
    """Put the secrets of a backup in place of those in the vault."""
    passphrase = _passphrase(passphrase_file, twice=False)
    done = _ask("restore", path=str(file.absolute()), passphrase=passphrase, replace=replace)
    _say(done, f"{done['secrets']} secrets are restored", as_json)


@app.command("check")
def check(
    accept: Annotated[bool, typer.Option("--accept", help="Take the database as it is, though it is older.")] = False,
    as_json: AsJson = False,
) -> None:
    """Open everything that is kept and see whether the database is the newest."""
    done = _ask("check", accept=accept)
    kept = f"key kept by: {done['key']}" if done["key"] else "not made yet"
    _say(done, f"{done['secrets']} secrets, generation {done['generation']}, {kept}", as_json)


# -- asking ----------------------------------------------------------------------------------


def _ask(verb: str, **wish: Any) -> dict[str, Any]:
    """What the running gateway answers; without one, what the vault itself does."""
    wanted = settings()

    async def work() -> dict[str, Any]:
        if find_running(wanted) is not None:
            async with gateway_client(wanted) as client:
                return await client.admin("POST", f"/secrets/{verb}", wish)
        return await _alone(wanted, verb, msgspec.json.encode(wish))

    return run(work())


async def _alone(wanted: Settings, verb: str, wish: bytes) -> dict[str, Any]:
    wanted.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = lock_state(wanted.state_dir)
    try:
        async with Database(wanted.database_url) as database:
            vault = Vault(database, wanted.state_dir, wanted.vault_key)
            if verb != "check":
                await vault.open()
            return await VaultDesk(vault).do(verb, wish)
    finally:
        release_state(lock)


# -- reading values --------------------------------------------------------------------------


def _checked(name: str) -> str:
    try:
        return check_secret_reference(name)
    except ValueError as exc:
        raise SettingsError(f"the first argument {exc}") from None


def _value(name: str) -> str:
    if not sys.stdin.isatty():
        return _input().removesuffix("\n").removesuffix("\r")
    value = getpass(f"Value of {name}: ")
    if value != getpass("The same again: "):
        raise SecretsError("the two values differ; nothing is changed")
    return value


def _passphrase(path: Path | None, *, twice: bool) -> str:
    if path is not None:
        content = durable.read(path, is_secret=True)
        if content is None:
            raise SecretsError(f"there is no file {path}")
        return content.decode("utf-8", "surrogateescape").removesuffix("\n").removesuffix("\r")
    if not sys.stdin.isatty():
        raise SettingsError("there is no terminal to ask for the passphrase; give --passphrase-file")
    passphrase = getpass("Passphrase of the backup: ")
    if twice and passphrase != getpass("The same again: "):
        raise SecretsError("the two passphrases differ; nothing is written")
    return passphrase


def _input() -> str:
    data = sys.stdin.buffer.read(MAX_INPUT_BYTES + 1)
    if len(data) > MAX_INPUT_BYTES:
        raise SecretsError(f"standard input holds more than {MAX_INPUT_BYTES} bytes")
    return _text(data)


def _content(path: Path) -> str:
    content = durable.read(path)
    if content is None:
        raise SettingsError(f"there is no file {path}")
    return _text(content)


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise SecretsError("this is not UTF-8 text; store it encoded, in base64 for instance") from None


def _values(text: str) -> dict[str, str]:
    """Names and values of a JSON object, or of `NAME=VALUE` lines; `#` begins a comment line."""
    if text.lstrip().startswith("{"):
        try:
            found = json.loads(text)
        except ValueError:
            raise SecretsError("the file begins like JSON but is none") from None
        if not all(isinstance(value, str) for value in found.values()):
            raise SecretsError("each value of the JSON object must be a string")
        return {_checked(name): value for name, value in found.items()}
    values = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not equals:
            raise SecretsError(f"line {number} is not NAME=VALUE")
        values[_checked(name.strip())] = value
    return values


def _of(user: str) -> str:
    return f" for {user}" if user else ""


def _say(done: dict[str, Any], text: str, as_json: bool) -> None:
    if as_json:
        print_json(done)
    else:
        typer.echo(shown(text))
