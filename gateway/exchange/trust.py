"""Whose catalogues are taken: those signed by their publisher or by a key that was given, or unsigned ones if wished.

Knows publishers and signatures; not what is signed. A publisher's signature cannot be waived."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from catalog import CatalogError, Publisher, textfile
from gateway.errors import ImageError, ImageRefused
from gateway.images.names import ImageName
from gateway.images.registry import RegistryClient
from gateway.images.signatures import verify
from gateway.images.verifier import fetch_signatures

GIVEN: Final = "given-key"


@dataclass(frozen=True)
class Trust:
    """What must hold for an artifact to be taken."""

    publishers: tuple[Publisher, ...] = ()
    keys: tuple[str, ...] = ()
    """Public keys in PEM, each of which must have signed, whoever the publisher is."""
    unsigned: bool = False
    """Whether one may be taken that nobody has to sign."""

    def check(self, registry: RegistryClient, name: ImageName) -> str | None:
        """Who signed the artifact with this digest; None if nobody has to. Blocking.

        Raises:
            ImageRefused: it may not be taken; says why, and what to do.
        """
        signers = [one for one in self.publishers if one.publishes(name.full)]
        signers += [Publisher(name=GIVEN, images=(name.full,), keys=(key,)) for key in self.keys]
        if not signers:
            if self.unsigned:
                return None
            raise ImageRefused(
                f"nobody known here signs {name.full}: give the publisher's key with --key FILE, name the publisher in "
                "the catalogue or the rules under publishers, or take it as it is with --unsigned"
            )
        try:
            found = fetch_signatures(registry, str(name.digest))
        except ImageError as exc:
            raise ImageRefused(f"{name.pinned} is refused: its signatures cannot be fetched: {exc}") from exc
        try:
            return "; ".join(
                f"{signer.name}, {verify(found, str(name.digest), name.full, signer)}" for signer in signers
            )
        except ImageRefused as exc:
            raise ImageRefused(f"{name.pinned} is refused: {exc}") from exc


def read_keys(files: Iterable[Path]) -> tuple[str, ...]:
    """Public keys from PEM files.

    Raises:
        ImageError: a file holds none.
    """
    found = []
    for file in files:
        try:
            text = textfile.read_text(file)
            Publisher(name=GIVEN, images=("example.com/any",), keys=(text,))
        except (CatalogError, ValidationError) as exc:
            raise ImageError(f"{file} holds no public key in PEM (-----BEGIN PUBLIC KEY-----)") from exc
        found.append(text)
    return tuple(found)
