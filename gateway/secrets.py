"""Secrets: values that hide themselves, and where they come from.

Knows names and stores; not who asks for a secret, nor how it reaches a server."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Final, NoReturn, Protocol, final

from catalog import Entry
from gateway.errors import SecretsError

VARIABLE_PREFIX: Final = "LOCKGATE_SECRET_"
MAX_SECRET_BYTES: Final = 64 * 1024
HIDDEN: Final = "[hidden]"


@final
class SecretValue:
    """One secret's bytes. Shown, logged, formatted or pickled it is `[hidden]` or an error; `reveal` is the one way."""

    __slots__ = ("__value", "name")

    def __init__(self, name: str, value: bytes) -> None:
        self.name = name
        self.__value = value

    def reveal(self) -> bytes:
        """The value itself, to be handed to a server and to nothing else."""
        return self.__value

    def __repr__(self) -> str:
        return HIDDEN

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return HIDDEN

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a secret is not pickled or copied")

    def __eq__(self, other: object) -> NoReturn:
        raise TypeError("secrets are not compared")

    __hash__ = None  # type: ignore[assignment]  # a secret is no key


class SecretStore(Protocol):
    """Where secrets are kept."""

    def get(self, name: str, owner: str = "") -> SecretValue | None:
        """The secret of this very name, or None: of the principal `owner`, or a shared one if that is empty.

        Raises:
            SecretsError: it is there, but must not be used; says why and never shows it.
        """

    def how_to_set(self, name: str) -> str:
        """What a person does to put the secret here, as an imperative clause."""


def variable(name: str) -> str:
    """The variable for a secret: `brave.api_key` is LOCKGATE_SECRET_BRAVE__API_KEY, and so would be `brave/api_key`."""
    return VARIABLE_PREFIX + name.replace(".", "__").replace("/", "__").replace("-", "_").upper()


class EnvironmentSecrets:
    """Secrets in variables of the gateway's own environment. They are taken out of it at once, so that no process
    started later inherits them."""

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        self._values = {key: os.fsencode(environ.pop(key)) for key in list(environ) if key.startswith(VARIABLE_PREFIX)}

    def get(self, name: str, owner: str = "") -> SecretValue | None:
        value = None if owner else self._values.get(variable(name))
        return SecretValue(name, usable(name, value)) if value is not None else None

    def how_to_set(self, name: str) -> str:
        return f"set {variable(name)} in the gateway's environment"


class FolderSecrets:
    """Secrets as files of one folder, each named like its secret; nobody else may be able to read them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, name: str, owner: str = "") -> SecretValue | None:
        if owner:
            return None  # what lies here is everybody's
        try:
            folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise SecretsError(f"{self._folder} is no folder that secrets may be kept in: {exc.strerror}") from exc
        try:
            _private(self._folder, os.fstat(folder), 0o700)
            return self._read(folder, name)
        finally:
            os.close(folder)

    def _read(self, folder: int, name: str) -> SecretValue | None:
        path = self._folder / _file_name(name)
        try:
            # Not to wait for a writer, if it is a pipe.
            fd = os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise SecretsError(f"{path} cannot be read as a secret: {exc.strerror}") from exc
        with os.fdopen(fd, "rb") as file:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise SecretsError(f"{path} is no regular file")
            _private(path, found, 0o600)
            value = file.read(MAX_SECRET_BYTES + 2)
        return SecretValue(name, usable(name, value.removesuffix(b"\n").removesuffix(b"\r")))

    def how_to_set(self, name: str) -> str:
        return f"write it to {self._folder / _file_name(name)} (mode 600, the folder 700)"


def _file_name(name: str) -> str:
    """Two secrets with the same file would have the same variable too, which is refused."""
    return name.replace("/", ".")


def _private(path: Path, found: os.stat_result, mode: int) -> None:
    if found.st_uid not in (os.geteuid(), 0):
        raise SecretsError(f"{path} belongs to another user; secrets in it are not used")
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise SecretsError(f"{path} can be read or changed by other users; run: chmod {mode:o} {path}")


def usable(name: str, value: bytes) -> bytes:
    """The same value, if a server can be handed it.

    Raises:
        SecretsError: it is empty, too long, or no text that a variable could hold.
    """
    if not value:
        raise SecretsError(f"the secret {name} is empty")
    if len(value) > MAX_SECRET_BYTES:
        raise SecretsError(f"the secret {name} is longer than {MAX_SECRET_BYTES} bytes")
    if b"\0" in value:
        raise SecretsError(f"the secret {name} contains a NUL byte, which no variable can hold")
    try:
        value.decode()
    except UnicodeDecodeError:
        raise SecretsError(f"the secret {name} is not UTF-8 text; store it encoded, in base64 for instance") from None
    return value


def value_of(name: str, value: bytes) -> SecretValue | None:
    """What a program or server answered, without the end of its line; None if that is nothing.

    Raises:
        SecretsError: no server can be handed it.
    """
    value = value.removesuffix(b"\n").removesuffix(b"\r")
    return SecretValue(name, usable(name, value)) if value else None


def _ignored(values: Iterable[SecretValue]) -> None:
    """Nobody wants to know."""


class Secrets:
    """All stores, asked in order; each entry gets its own secrets and no others."""

    def __init__(self, stores: Sequence[SecretStore] = (), names: Iterable[str] = ()) -> None:
        """`names` are all secrets of the catalog.

        Raises:
            SecretsError: two of them would be read from one variable.
        """
        self._stores = stores
        self.resolved: Callable[[Iterable[SecretValue]], None] = _ignored
        """Told of all values that are handed out."""
        self.check(names)

    @staticmethod
    def check(names: Iterable[str]) -> None:
        """Check that each of these secrets has a variable of its own.

        Raises:
            SecretsError: two of them would be read from one variable.
        """
        owners: dict[str, str] = {}
        for name in names:
            other = owners.setdefault(variable(name), name)
            if other != name:
                raise SecretsError(
                    f"the secrets {other} and {name} would both be read from {variable(name)}; rename one entry"
                )

    def resolve(self, entry: Entry, owner: str = "") -> Mapping[str, SecretValue]:
        """The entry's secrets by name, each the owner's own where they have one, else the shared one; optional ones
        that are not set are left out.

        Raises:
            SecretsError: a required one is missing, or one must not be used; names it and says how to set it.
        """
        found: dict[str, SecretValue] = {}
        missing = []
        for secret in entry.secrets:
            name = entry.kept_as(secret.name)
            value = self._find(name, owner)
            if value is not None:
                found[secret.name] = value
            elif secret.required:
                missing.append(name)
        if missing:
            raise SecretsError("; ".join(self._how_to_set(name) for name in missing))
        self.resolved(found.values())
        return found

    def get(self, name: str) -> SecretValue | None:
        """A secret of the gateway's own, from the first store that has it.

        Raises:
            SecretsError: it is there, but must not be used.
        """
        return self._find(name, "")

    def _find(self, name: str, owner: str) -> SecretValue | None:
        for whose in (owner, "") if owner else ("",):
            for store in self._stores:
                if (value := store.get(name, whose)) is not None:
                    return value
        return None

    def _how_to_set(self, name: str) -> str:
        ways = " or ".join(store.how_to_set(name) for store in self._stores)
        return f"the secret {name} is missing: {ways or 'this gateway has no secret store'}"
