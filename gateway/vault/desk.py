"""The vault as people ask for it: the verbs of `lockgate secret`, in the running gateway and without one.

Knows what each verb wants and answers; values come in and never go out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec

from gateway.errors import SecretsError
from gateway.vault.backup import back_up, restore
from gateway.vault.vault import SECRET, Change, Place, Vault

MAX_BODY_BYTES: Final = 16 * 1024 * 1024


class Wish(msgspec.Struct, forbid_unknown_fields=True):
    """Everything a verb may want; each takes what it needs."""

    name: str = ""
    owner: str = ""
    value: str = ""
    values: dict[str, str] = {}
    path: str = ""
    passphrase: str = ""
    to: str | None = None
    accept: bool = False
    replace: bool = False

    def __repr__(self) -> str:
        return f"Wish({self.name})"


def subject(body: bytes) -> Wish:
    """Whose secret of which name a wish is about, and whether it accepts another state; nothing, if it is no wish."""
    try:
        wish = msgspec.json.decode(body or b"{}", type=Wish)
    except msgspec.DecodeError:
        return Wish()
    return Wish(name=wish.name, owner=wish.owner, accept=wish.accept)


class VaultDesk:
    """Carries out wishes on an open vault."""

    def __init__(self, vault: Vault, *, is_local: bool = True) -> None:
        """Only who `is_local` may name files and programs of this machine, or take back what protects against them."""
        self._vault = vault
        self._is_local = is_local

    async def do(self, verb: str, body: bytes) -> dict[str, Any]:
        """
        Raises:
            SecretsError: it cannot be done; says why.
        """
        try:
            wish = msgspec.json.decode(body or b"{}", type=Wish)
        except msgspec.DecodeError:
            raise SecretsError("the request is not what this version understands") from None  # it may hold a value
        if not self._is_local and (verb in ("backup", "restore") or wish.to is not None or wish.accept):
            raise SecretsError("this can be done on the gateway's own machine only, by its user")
        match verb:
            case "list":
                return self._list()
            case "set":
                await self._vault.put(wish.name, wish.value.encode(), wish.owner)
                return {"set": [wish.name]}
            case "replace":
                if not self._vault.version(Place(SECRET, wish.owner, wish.name)):
                    raise SecretsError(f"there is no {_named(wish)} to replace; run: lockgate secret set {wish.name}")
                await self._vault.put(wish.name, wish.value.encode(), wish.owner)
                return {"set": [wish.name]}
            case "import":
                changes = [Change(Place(SECRET, wish.owner, name), v.encode()) for name, v in wish.values.items()]
                await self._vault.write(changes)
                return {"set": list(wish.values)}
            case "remove":
                if not await self._vault.remove(wish.name, wish.owner):
                    raise SecretsError(f"there is no {_named(wish)}; see: lockgate secret list")
                return {"removed": [wish.name]}
            case "rotate-key":
                await self._vault.rotate(wish.to)
                return self._state()
            case "backup":
                n = await back_up(self._vault, Path(wish.path), wish.passphrase.encode())
                return {"secrets": n, "path": wish.path}
            case "restore":
                found = await restore(self._vault, Path(wish.path), wish.passphrase.encode(), replace=wish.replace)
                return {"secrets": found.secrets, "path": wish.path}
            case "check":
                return await self._check(wish)
        raise SecretsError(f"{verb} is nothing that can be done with the vault")

    def _list(self) -> dict[str, Any]:
        if self._vault.problem:
            raise SecretsError(self._vault.problem)
        rows = [
            {"name": one.name, "owner": one.owner, "version": one.version, "changed_at": one.changed_at}
            for one in self._vault.kept()
        ]
        return {"secrets": rows}

    async def _check(self, wish: Wish) -> dict[str, Any]:
        """Read everything from the database again and open it."""
        if wish.accept:
            await self._vault.accept()
        else:
            await self._vault.open()
        if self._vault.problem:
            raise SecretsError(self._vault.problem)
        self._vault.prove()
        return self._state()

    def _state(self) -> dict[str, Any]:
        vault = self._vault
        return {"vault": vault.id, "key": vault.root, "generation": vault.generation, "secrets": len(vault.kept())}


def _named(wish: Wish) -> str:
    return f"secret {wish.name}" + (f" of {wish.owner}" if wish.owner else "")
