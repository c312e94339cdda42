"""Roots: what protects the vault's master key, outside of the database. Chosen when the vault is made.

Knows how a key is wrapped and where that is kept; not what the key opens. All of it blocks: call it in a thread."""

from __future__ import annotations

import base64
import binascii
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from getpass import getpass
from pathlib import Path
from typing import Any, Final, Protocol

from gateway import durable
from gateway.errors import SecretsError, SettingsError
from gateway.vault.sealing import KEY_BYTES, Unsealable, new_key, seal, unseal

Facts = Mapping[str, str | int]
"""What the database notes of a root: its kind, and which key or which parameters; never a place or a program."""
KINDS: Final = ("keyring", "file", "command", "passphrase")
COMMAND_TIMEOUT_S: Final = 30.0
MAX_WRAPPED_BYTES: Final = 64 * 1024
MIN_PASSPHRASE_CHARS: Final = 12
ARGON2_TIME: Final = 3
ARGON2_MEMORY_KIB: Final = 64 * 1024
ARGON2_LANES: Final = 4
"""RFC 9106, section 4, second recommended option."""
MAX_ARGON2_TIME: Final = 64
MAX_ARGON2_MEMORY_KIB: Final = 4 * 1024 * 1024
KEYRING_SERVICE: Final = "lockgate vault"
MIN_KEYRING_PRIORITY: Final = 1.0
"""The keyring library gives backends that keep plain text, or nothing, less."""


class Root(Protocol):
    """Wraps and unwraps a master key, and remembers a number that only grows."""

    kind: str

    def create(self) -> Facts:
        """Make a new key, on disk or wherever it is kept before this returns, beside the old one."""

    def wrap(self, facts: Facts, master: bytes, to: bytes) -> bytes:
        """
        Raises:
            SecretsError: the key is not there or cannot be used.
        """

    def unwrap(self, facts: Facts, wrapped: bytes, to: bytes) -> bytes:
        """
        Raises:
            SecretsError: the key is not there, cannot be used, or is another one.
        """

    def forget(self, facts: Facts) -> None:
        """Remove this key."""

    def forget_others(self, facts: Facts) -> None:
        """Remove every key but this one: what an earlier change that did not come to its end has left."""

    def read_mark(self) -> str | None:
        """What was marked last."""

    def write_mark(self, mark: str) -> None:
        """Durable on return."""


def open_root(choice: str, folder: Path) -> Root:
    """The root that `LOCKGATE_VAULT_KEY` names; empty is the keyring where there is one, else a file in `folder`.

    Raises:
        SettingsError: it names none.
    """
    kind, _, rest = choice.partition(":")
    mark = folder / "vault.mark"
    match kind:
        case "":
            return KeyringRoot(folder) if KeyringRoot.is_usable() else FileRoot(folder / "vault.key")
        case "keyring" if not rest:
            return KeyringRoot(folder)
        case "file":
            return FileRoot(Path(rest).expanduser().absolute() if rest else folder / "vault.key")
        case "command" if rest.strip():
            return CommandRoot(shlex.split(rest), mark)
        case "passphrase":
            return PassphraseRoot(_asked(Path(rest).expanduser() if rest else None), mark)
    raise SettingsError(
        "LOCKGATE_VAULT_KEY: give keyring, file, file:/path, command:PROGRAM ARGUMENTS, passphrase or passphrase:/path"
    )


def root_of_kind(kind: str, choice: str, folder: Path) -> Root:
    """The root of an existing vault, which notes its kind.

    Raises:
        SecretsError: `LOCKGATE_VAULT_KEY` names one of another kind, or the vault's kind cannot be found without it.
    """
    named = choice.partition(":")[0]
    if named and named != kind:
        raise SecretsError(
            f"the vault's key is kept by {kind}, but LOCKGATE_VAULT_KEY says {named}; set it to what the key is kept "
            f"by, and to move the key run: lockgate secret rotate --key --to {choice.partition(' ')[0]}"
        )
    if not named and kind == "command":
        raise SecretsError("the vault's key is wrapped by a command; name it: LOCKGATE_VAULT_KEY=command:PROGRAM")
    if kind not in KINDS:
        raise SecretsError(f"the vault's key is kept by {kind}, which this version does not know")
    return open_root(choice or kind, folder)


class _Marked:
    """What has its mark in a file."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def read_mark(self) -> str | None:
        content = durable.read(self._mark)
        return None if content is None else content.decode("ascii", "replace")

    def write_mark(self, mark: str) -> None:
        durable.write(self._mark, mark.encode())


class FileRoot(_Marked):
    """A key in a file that only the gateway's user can read; the mark lies beside it."""

    kind = "file"

    def __init__(self, path: Path) -> None:
        super().__init__(path.with_suffix(".mark"))
        self._path = path

    def create(self) -> Facts:
        keys = self._keys()
        id = os.urandom(8).hex()
        keys[id] = base64.b64encode(new_key()).decode()
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        durable.write(self._path, json.dumps(keys).encode())
        return {"kind": self.kind, "key": id}

    def wrap(self, facts: Facts, master: bytes, to: bytes) -> bytes:
        return seal(self._key(facts), master, to)

    def unwrap(self, facts: Facts, wrapped: bytes, to: bytes) -> bytes:
        return _opened(self._key(facts), wrapped, to, f"the key in {self._path}")

    def forget(self, facts: Facts) -> None:
        keys = self._keys()
        if keys.pop(str(facts["key"]), None) is not None:
            durable.write(self._path, json.dumps(keys).encode())

    def forget_others(self, facts: Facts) -> None:
        keys = self._keys()
        if set(keys) != {facts["key"]} and facts["key"] in keys:
            durable.write(self._path, json.dumps({facts["key"]: keys[str(facts["key"])]}).encode())

    def write_mark(self, mark: str) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        super().write_mark(mark)

    def _key(self, facts: Facts) -> bytes:
        try:
            return _decoded(self._keys()[str(facts["key"])])
        except (KeyError, ValueError):
            raise SecretsError(
                f"the vault's key {facts.get('key')} is not in {self._path}; put the file back where it was, or set "
                "LOCKGATE_VAULT_KEY=file:/path to where it is"
            ) from None

    def _keys(self) -> dict[str, str]:
        content = durable.read(self._path, is_secret=True)
        if content is None:
            return {}
        try:
            keys: dict[str, str] = json.loads(content)
            return dict(keys)
        except ValueError:
            raise SecretsError(f"{self._path} is no key file of a vault") from None


class KeyringRoot:
    """A key in the keyring of the operating system, where the mark is kept too."""

    kind = "keyring"

    def __init__(self, folder: Path) -> None:
        self._prefix = f"{folder}:"

    @staticmethod
    def is_usable() -> bool:
        """Whether there is a keyring that keeps secrets encrypted."""
        import keyring
        from keyring.errors import KeyringError

        try:
            return keyring.get_keyring().priority >= MIN_KEYRING_PRIORITY
        except (KeyringError, RuntimeError):
            return False

    def create(self) -> Facts:
        id = os.urandom(8).hex()
        ids = [*self._ids(), id]
        self._set("keys", " ".join(ids))  # first, so that a key is never there without being listed
        self._set(id, base64.b64encode(new_key()).decode())
        return {"kind": self.kind, "key": id}

    def wrap(self, facts: Facts, master: bytes, to: bytes) -> bytes:
        return seal(self._key(facts), master, to)

    def unwrap(self, facts: Facts, wrapped: bytes, to: bytes) -> bytes:
        return _opened(self._key(facts), wrapped, to, "the key in the keyring")

    def forget(self, facts: Facts) -> None:
        self._delete(str(facts["key"]))

    def forget_others(self, facts: Facts) -> None:
        others = [id for id in self._ids() if id != facts["key"]]
        for id in others:
            self._delete(id)
        if others:
            self._set("keys", str(facts["key"]))

    def read_mark(self) -> str | None:
        return self._get("mark")

    def write_mark(self, mark: str) -> None:
        self._set("mark", mark)

    def _key(self, facts: Facts) -> bytes:
        found = self._get(str(facts.get("key")))
        if found is None:
            raise SecretsError(
                f"the vault's key {facts.get('key')} is not in the keyring; unlock the keyring of the user who made it"
            )
        return _decoded(found)

    def _ids(self) -> list[str]:
        return (self._get("keys") or "").split()

    def _get(self, name: str) -> str | None:
        found = _with_keyring(lambda ring: ring.get_password(KEYRING_SERVICE, self._prefix + name))
        return None if found is None else str(found)

    def _set(self, name: str, value: str) -> None:
        _with_keyring(lambda ring: ring.set_password(KEYRING_SERVICE, self._prefix + name, value))

    def _delete(self, name: str) -> None:
        from keyring.errors import PasswordDeleteError

        def delete(ring: Any) -> None:
            try:
                ring.delete_password(KEYRING_SERVICE, self._prefix + name)
            except PasswordDeleteError:
                return  # an earlier attempt removed it

        _with_keyring(delete)


def _with_keyring(work: Callable[[Any], Any]) -> Any:
    import keyring
    from keyring.errors import KeyringError

    if not KeyringRoot.is_usable():
        raise SecretsError(
            "there is no keyring that keeps secrets encrypted (Secret Service, KWallet, macOS Keychain, Windows); "
            "start one, or set LOCKGATE_VAULT_KEY=file"
        )
    try:
        return work(keyring.get_keyring())
    except (KeyringError, RuntimeError) as exc:
        raise SecretsError(f"the keyring refuses: {type(exc).__name__}; unlock it") from None


class CommandRoot(_Marked):
    """A program that wraps and unwraps, such as the client of a key management service: `PROGRAM wrap` and `PROGRAM
    unwrap` read one line of base64 and write one."""

    kind = "command"

    def __init__(self, command: list[str], mark: Path) -> None:
        super().__init__(mark)
        self._command = command

    def create(self) -> Facts:
        return {"kind": self.kind}

    def wrap(self, facts: Facts, master: bytes, to: bytes) -> bytes:
        # The program binds nothing to what it wraps, so a key of ours goes between.
        between = new_key()
        wrapped = self._ask("wrap", between)
        return len(wrapped).to_bytes(4) + wrapped + seal(between, master, to)

    def unwrap(self, facts: Facts, wrapped: bytes, to: bytes) -> bytes:
        size = int.from_bytes(wrapped[:4])
        between = self._ask("unwrap", wrapped[4 : 4 + size])
        if len(between) != KEY_BYTES:
            raise SecretsError(f"{self._command[0]} unwrap answered something that is no key")
        return _opened(between, wrapped[4 + size :], to, f"what {self._command[0]} unwrapped")

    def forget(self, facts: Facts) -> None:
        """Its keys are its own business."""

    forget_others = forget

    def _ask(self, what: str, value: bytes) -> bytes:
        try:
            done = subprocess.run(
                [*self._command, what],
                input=base64.b64encode(value) + b"\n",
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=COMMAND_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise SecretsError(f"{self._command[0]} {what} could not be run: {type(exc).__name__}") from None
        if done.returncode:
            raise SecretsError(f"{self._command[0]} {what} failed with code {done.returncode}; run it by hand to see")
        if len(done.stdout) <= MAX_WRAPPED_BYTES:
            try:
                return base64.b64decode(done.stdout.strip(), validate=True)
            except binascii.Error:
                pass
        raise SecretsError(f"{self._command[0]} {what} did not answer one line of base64")


class PassphraseRoot(_Marked):
    """A key made from a passphrase by Argon2id, whose parameters the vault notes."""

    kind = "passphrase"

    def __init__(self, passphrase: Callable[[], bytes], mark: Path) -> None:
        super().__init__(mark)
        self._ask = passphrase
        self._given: bytes | None = None

    @property
    def _passphrase(self) -> bytes:
        if self._given is None:
            self._given = self._ask()
        return self._given

    def create(self) -> Facts:
        if len(self._passphrase.decode("utf-8", "replace")) < MIN_PASSPHRASE_CHARS:
            raise SecretsError(f"the passphrase of a vault has at least {MIN_PASSPHRASE_CHARS} characters")
        return {"kind": self.kind, **argon2_parameters()}

    def wrap(self, facts: Facts, master: bytes, to: bytes) -> bytes:
        return seal(from_passphrase(self._passphrase, facts), master, to)

    def unwrap(self, facts: Facts, wrapped: bytes, to: bytes) -> bytes:
        return _opened(from_passphrase(self._passphrase, facts), wrapped, to, "the passphrase")

    def forget(self, facts: Facts) -> None:
        """There is nothing to keep."""

    forget_others = forget


def argon2_parameters() -> Facts:
    """For a new key: a salt, and what RFC 9106 recommends."""
    return {
        "salt": os.urandom(16).hex(),
        "time": ARGON2_TIME,
        "memory_kib": ARGON2_MEMORY_KIB,
        "lanes": ARGON2_LANES,
    }


def from_passphrase(passphrase: bytes, facts: Facts) -> bytes:
    """
    Raises:
        SecretsError: parameters that nobody here has written.
    """
    from argon2.low_level import Type, hash_secret_raw

    try:
        time, memory, lanes = int(facts["time"]), int(facts["memory_kib"]), int(facts["lanes"])
        salt = bytes.fromhex(str(facts["salt"]))
    except (KeyError, ValueError):
        raise SecretsError("the parameters of the passphrase are damaged") from None
    if not (1 <= time <= MAX_ARGON2_TIME and 8 * lanes <= memory <= MAX_ARGON2_MEMORY_KIB and 1 <= lanes <= 64):
        raise SecretsError("the parameters of the passphrase are damaged")
    return hash_secret_raw(passphrase, salt, time, memory, lanes, KEY_BYTES, Type.ID)


def _asked(path: Path | None) -> Callable[[], bytes]:
    def ask() -> bytes:
        if path is not None:
            content = durable.read(path, is_secret=True)
            if content is None:
                raise SecretsError(f"there is no passphrase in {path}")
            return content.removesuffix(b"\n").removesuffix(b"\r")
        if not sys.stdin.isatty():
            raise SecretsError("the vault wants a passphrase and there is no terminal; use passphrase:/path/to/file")
        return getpass("Passphrase of the vault: ").encode()

    return ask


def _opened(key: bytes, wrapped: bytes, to: bytes, what: str) -> bytes:
    try:
        return unseal(key, wrapped, to)
    except Unsealable:
        raise SecretsError(f"{what} does not open the vault: it is another one, or the vault was changed") from None


def _decoded(text: str) -> bytes:
    key = base64.b64decode(text, validate=True)
    if len(key) != KEY_BYTES:
        raise ValueError("a key has 32 bytes")
    return key
