"""Where secrets come from: the stores that `LOCKGATE_STORES` lists, asked in its order.

Knows programs and servers that keep secrets for others; the vault is vault/, files and variables are secrets.py. Each
`get` here may block for seconds: it is called in worker threads."""

from __future__ import annotations

import http.client
import json
import os
import re
import shlex
import ssl
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlsplit

from catalog.reference import is_loopback
from gateway.errors import SecretsError, SettingsError
from gateway.secrets import MAX_SECRET_BYTES, EnvironmentSecrets, FolderSecrets, SecretStore, SecretValue, usable

DEFAULT: Final = "vault;environment;folder"
COMMAND_TIMEOUT_S: Final = 30.0
HTTP_TIMEOUT_S: Final = 10.0
BAO_TOKEN: Final = "openbao.token"  # noqa: S105  # a name
OP_TOKEN: Final = "onepassword.token"  # noqa: S105  # a name
_NOT_FOUND: Final = ("isn't an item", "isn't a field", "isn't a vault", "could not find item", "does not have a field")
"""What `op read` says of something that is not there; it has one exit code for everything."""

Find = Callable[[str], SecretValue | None]


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
        return _value(name, value)

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
            return _value(name, value)
        if any(words in said for words in _NOT_FOUND):
            return None
        raise SecretsError(f"{self._program} could not read {self._reference(name)} (code {code}); run: op signin")

    def _reference(self, name: str) -> str:
        item, field = _parts(name, "password")
        return f"op://{self._vault}/{item}/{field}"

    def how_to_set(self, name: str) -> str:
        return f"keep it in 1Password as {self._reference(name)}"


class BaoSecrets:
    """HashiCorp Vault or OpenBao, secrets engine KV version 2: `brave.api_key` is the field `api_key` of the secret
    `brave` below the path. The token is the secret `openbao.token` of a store before it."""

    def __init__(self, url: str, find: Find) -> None:
        """`url` is that of the server with the engine's mount, and perhaps a folder in it, as its path.

        Raises:
            SettingsError: it is none, or would send the token unencrypted.
        """
        parts = urlsplit(url)
        mount, _, folder = parts.path.strip("/").partition("/")
        if parts.scheme not in ("http", "https") or not parts.hostname or not mount or parts.query or parts.username:
            raise SettingsError("LOCKGATE_STORES: give openbao:https://host:8200/MOUNT or …/MOUNT/FOLDER")
        if parts.scheme == "http" and not is_loopback(parts.hostname):
            raise SettingsError(f"LOCKGATE_STORES: {parts.hostname} would be sent the token unencrypted; use https")
        self._host, self._port, self._tls = parts.hostname, parts.port, parts.scheme == "https"
        self._mount = mount
        self._folder = f"{folder}/" if folder else ""
        self._find = find

    def get(self, name: str, owner: str = "") -> SecretValue | None:
        if owner or name == BAO_TOKEN:
            return None
        token = self._find(BAO_TOKEN)
        if token is None:
            raise SecretsError(f"{self._host} wants a token to look {name} up: lockgate secret set {BAO_TOKEN}")
        item, field = _parts(name, "value")
        path = f"/v1/{quote(self._mount)}/data/{quote(self._folder + item)}"
        status, body = self._ask(path, token)
        if status == 404:
            return None  # also a version that was deleted
        if status != 200:
            raise SecretsError(f"{self._host} answered {status} when asked for {name}; may its token read {path}?")
        try:
            value = json.loads(body)["data"]["data"].get(field)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise SecretsError(f"{self._host} did not answer with a secret of the KV engine, version 2") from None
        if value is not None and not isinstance(value, str):
            raise SecretsError(f"the secret {name} at {self._host} is no text")
        return None if value is None else _value(name, value.encode())

    def _ask(self, path: str, token: SecretValue) -> tuple[int, bytes]:
        connection = (
            http.client.HTTPSConnection(
                self._host, self._port, timeout=HTTP_TIMEOUT_S, context=ssl.create_default_context()
            )
            if self._tls
            else http.client.HTTPConnection(self._host, self._port, timeout=HTTP_TIMEOUT_S)
        )
        headers = {"X-Vault-Token": token.reveal().decode("latin-1", "replace"), "X-Vault-Request": "true"}
        try:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            body = answer.read(4 * MAX_SECRET_BYTES + 1)
        except (OSError, http.client.HTTPException, ValueError) as exc:
            raise SecretsError(f"{self._host} does not answer ({type(exc).__name__})") from None
        finally:
            connection.close()
        if len(body) > 4 * MAX_SECRET_BYTES:
            raise SecretsError(f"{self._host} answered more than a secret may hold")
        return answer.status, body

    def how_to_set(self, name: str) -> str:
        item, field = _parts(name, "value")
        return f"write the field {field} of {self._mount}/{self._folder}{item} at {self._host}"


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


def _value(name: str, value: bytes) -> SecretValue | None:
    value = value.removesuffix(b"\n").removesuffix(b"\r")
    return SecretValue(name, usable(name, value)) if value else None


def _parts(name: str, alone: str) -> tuple[str, str]:
    """What stands before and after the last dot or slash of a name; the field of a name without one is `alone`."""
    item, *field = re.split(r"[./](?=[^./]*$)", name, maxsplit=1)
    return item, field[0] if field else alone
