"""Backups: all secrets of a vault in one encrypted file, opened by a passphrase and by nothing else.

Knows the vault and files. Tokens of sign-ins are left out: a token that was used since must not come back to life."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any, Final, NamedTuple

from anyio import to_thread

from gateway import durable
from gateway.errors import SecretsError
from gateway.vault.roots import argon2_parameters, from_passphrase
from gateway.vault.sealing import Unsealable, bound, seal, unseal
from gateway.vault.vault import SECRET, Change, Place, Vault

FORMAT: Final = "lockgate-backup-1"
MIN_PASSPHRASE_CHARS: Final = 12


class Restored(NamedTuple):
    """What a backup brought back: how many secrets, and of which state of which vault it was."""

    secrets: int
    vault: str
    generation: int


async def back_up(vault: Vault, path: Path, passphrase: bytes) -> int:
    """Write every secret into one file, which is either complete or not there; the number of them.

    Raises:
        SecretsError: the vault cannot be read, the passphrase is too short, or the file cannot be written.
    """
    if len(passphrase.decode("utf-8", "replace")) < MIN_PASSPHRASE_CHARS:
        raise SecretsError(f"the passphrase of a backup has at least {MIN_PASSPHRASE_CHARS} characters")
    if vault.problem:
        raise SecretsError(vault.problem)
    secrets = []
    for kept in vault.kept():
        value = vault.value(Place(kept.kind, kept.owner, kept.name))
        if value is not None:
            secrets.append([kept.owner, kept.name, base64.b64encode(value).decode()])
    content = json.dumps({"vault": vault.id, "generation": vault.generation, "secrets": secrets}).encode()
    key = {**argon2_parameters()}
    sealed = await to_thread.run_sync(lambda: seal(from_passphrase(passphrase, key), content, _to(key)))
    whole = json.dumps({"format": FORMAT, "key": key, "sealed": base64.b64encode(sealed).decode()}).encode()
    try:
        await to_thread.run_sync(durable.write, path, whole)
    except OSError as exc:
        raise SecretsError(f"{path} cannot be written: {exc.strerror}") from exc
    return len(secrets)


async def restore(vault: Vault, path: Path, passphrase: bytes, *, replace: bool = False) -> Restored:
    """Put the secrets of a backup in place of the vault's, all at once.

    Raises:
        SecretsError: the file does not open, or is older than what the vault holds and `replace` was not given.
    """
    content = await to_thread.run_sync(lambda: _opened(path, passphrase))
    if vault.problem:
        raise SecretsError(vault.problem)
    found = Restored(len(content["secrets"]), content["vault"], content["generation"])
    is_older = vault.generation > found.generation if vault.id == found.vault else bool(vault.kept())
    if is_older and not replace:
        raise SecretsError(
            f"{path} is older than the vault, or of another one (generation {found.generation}, here "
            f"{vault.generation}); what was set since would be lost and what was removed come back; to do it all the "
            "same, give --replace"
        )
    changes = [Change(Place(SECRET, owner, name), base64.b64decode(value)) for owner, name, value in content["secrets"]]
    await vault.write(changes, replace=True)
    return found


def _opened(path: Path, passphrase: bytes) -> dict[str, Any]:
    whole = durable.read(path)
    if whole is None:
        raise SecretsError(f"there is no backup at {path}")
    try:
        outer = json.loads(whole)
        if outer["format"] != FORMAT:
            raise SecretsError(f"{path} is a backup of a form that this version does not know")
        key, sealed = dict(outer["key"]), base64.b64decode(outer["sealed"], validate=True)
    except (ValueError, KeyError, TypeError):
        raise SecretsError(f"{path} is no backup of a vault") from None
    try:
        content: dict[str, Any] = json.loads(unseal(from_passphrase(passphrase, key), sealed, _to(key)))
    except Unsealable:
        raise SecretsError(f"the passphrase does not open {path}, or the file was changed") from None
    return content


def _to(key: dict[str, str | int]) -> bytes:
    return bound(FORMAT, json.dumps(key, sort_keys=True))
