"""Where secrets come from: the stores that `LOCKGATE_STORES` lists, asked in its order.

Knows programs that keep secrets for others; the vault is vault/, files and variables are secrets.py, servers
openbao.py. Each `get` here may block for seconds: it is called in worker threads."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from gateway.errors import SecretsError, SettingsError
from gateway.openbao import BaoSecrets, Find, parts_of
from gateway.secrets import MAX_SECRET_BYTES, EnvironmentSecrets, FolderSecrets, SecretStore, SecretValue, value_of

DEFAULT: Final = "vault;environment;folder"
COMMAND_TIMEOUT_S: Final = 30.0
OP_TOKEN: Final = "onepassword.token"  # noqa: S105  # a name
_NOT_FOUND: Final = ("isn't an item", "isn't a field", "isn't a vault", "could not find item", "does not have a field")
"""What `op read` says of something that is not there; it has one exit code for everything."""


class CommandSecrets:
    """A program of the operator's: it gets the name as its last argument, and answers with the value alone."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = [*command]

    def get(self, name: str, owner: str = "") -> SecretValue | None:
        if owner:
            return None
        code, value, _ = _output([*self._command, name])
        if code:
            raise SecretsError(f"{self._command[0]} failed with code {code} when asked for {name}; run it by hand")
        return value_of(name, value)

    def how_to_set(self, name: str) -> str:
        return f"let {self._command[0]} answer it for {name}"


class OnePasswordSecrets:
    """1Password through its command line: `brave.api_key` is `op://VAULT/brave/api_key`. A service account's token, if
    it needs one, is the secret `onepassword.token` of a store before it."""

    def __init__(self, vault: str, find: Find, program: str = "op") -> None:
        self._vault = vault
        self._find = find
        self._program = program

    def get(self, name: str, owner: str = "") -> SecretValue | None:
        if owner or name == OP_TOKEN:
            return None
        token = self._find(OP_TOKEN)
        environ = {"OP_SERVICE_ACCOUNT_TOKEN": token.reveal().decode()} if token is not None else {}
        code, value, said = _output([self._program, "read", "--no-newline", self._reference(name)], environ)
        if not code:
            return value_of(name, value)
        if any(words in said for words in _NOT_FOUND):
            return None
        raise SecretsError(f"{self._program} could not read {self._reference(name)} (code {code}); run: op signin")

    def _reference(self, name: str) -> str:
        item, field = parts_of(name, "password")
        return f"op://{self._vault}/{item}/{field}"

    def how_to_set(self, name: str) -> str:
        return f"keep it in 1Password as {self._reference(name)}"


def open_stores(listed: str, vault: SecretStore, environ: EnvironmentSecrets, folder: Path) -> list[SecretStore]:
    """The stores of a setting, each of which may ask those before it.

    Raises:
        SettingsError: one of them is not known.
    """
    stores: list[SecretStore] = []

    def find(name: str) -> SecretValue | None:
        return next((value for store in stores if (value := store.get(name)) is not None), None)

    for one in filter(None, map(str.strip, (listed or DEFAULT).split(";"))):
        kind, _, rest = one.partition(":")
        match kind:
            case "vault" if not rest:
                stores.append(vault)
            case "environment" if not rest:
                stores.append(environ)
            case "folder":
                stores.append(FolderSecrets(Path(rest).expanduser() if rest else folder))
            case "command" if rest.strip():
                stores.append(CommandSecrets(shlex.split(rest)))
            case "openbao" | "vault-kv2":
                stores.append(BaoSecrets(rest, find))
            case "op" if rest:
                stores.append(OnePasswordSecrets(rest, find))
            case _:
                raise SettingsError(
                    f"LOCKGATE_STORES: {one!r} is no store; list vault, environment, folder, command:PROGRAM, "
                    "openbao:URL or op:VAULT, with semicolons between"
                )
    return stores


def _output(command: Sequence[str], environ: Mapping[str, str] | None = None) -> tuple[int, bytes, str]:
    """Exit code, stdout, and stderr for looking at only: it may hold anything."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
            env={**os.environ, **(environ or {})},
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise SecretsError(f"{command[0]} could not be run ({type(exc).__name__}); is it installed?") from None
    return done.returncode, done.stdout[: MAX_SECRET_BYTES + 2], done.stderr[:4096].decode("utf-8", "replace")
