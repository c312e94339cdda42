"""The way of a catalogue or profile to a registry and back: pushed and signed, fetched, verified and checked.

Blocking: for worker threads and commands. Writes no file; filing.py does."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from catalog import Catalog, parse_catalog, textfile
from catalog.imports import NoPackages, Packages, import_text
from catalog.reference import check_image
from catalog.writing import write_catalog
from gateway.errors import ImageError
from gateway.exchange.artifact import (
    CONTENT,
    EMPTY,
    EMPTY_CONFIG,
    NOUN,
    Kind,
    found_in,
    manifest_of,
)
from gateway.exchange.trust import Trust
from gateway.images.names import ImageName, parse
from gateway.images.registry import digest_of, open_registry
from gateway.images.signing import SigningKey, attach_signature

NOBODY: Final = NoPackages()


@dataclass(frozen=True)
class Pulled:
    """A catalogue as it came: verified, and valid."""

    name: ImageName
    """With the digest of its manifest."""
    catalog: Catalog
    text: str
    """A catalogue file: what was pushed, or what was made of a document of Docker's."""
    content: str
    """The digest of the text."""
    signer: str | None
    created: str
    notes: Sequence[str]
    """What could not be carried over from a document of Docker's."""


def name_of(reference: str) -> ImageName:
    """Where something is pushed to or pulled from; without a tag it is `latest`.

    Raises:
        ImageError: it is no reference.
    """
    whole = reference if parse(reference).tag or "@" in reference else f"{reference}:latest"
    try:
        return parse(check_image(whole))
    except ValueError as exc:
        raise ImageError(str(exc)) from exc


def push(kind: Kind, name: ImageName, text: str, title: str, key: SigningKey | None) -> ImageName:
    """Push the text of a catalogue file, signed if there is a key; the name with the digest of its manifest.

    The tag is moved last, once the signature is there: who follows it never finds the artifact unsigned.

    Raises:
        CatalogInvalid: it is no valid catalogue; nothing is sent.
        ImageError: the registry does not take it.
    """
    if name.digest is not None:
        raise ImageError(f"{name.pinned} names a digest; push to a tag, as in {name.full}:1")
    catalog = parse_catalog(Path(title), text)
    with closing(open_registry(name)) as registry:
        config = registry.push_blob(EMPTY_CONFIG, EMPTY)
        content = registry.push_blob(text.encode(), CONTENT)
        manifest = manifest_of(kind, config, content, title, catalog)
        digest = registry.push_manifest(digest_of(manifest), manifest)
        pushed = name.at(digest)
        if key is not None:
            attach_signature(registry, pushed, key)
        registry.push_manifest(name.tag or "latest", manifest)
    return pushed


def pull(kind: Kind, name: ImageName, trust: Trust, packages: Packages = NOBODY) -> Pulled:
    """Fetch what a tag or digest names: its signature is verified before its content is fetched, and that before it
    is read. `packages` is asked for what a document of Docker's leaves out.

    Raises:
        ImageRefused: it may not be taken.
        ImageError: it cannot be had, is something else, or is another one than its digest says.
        CatalogInvalid: it is no valid catalogue; all problems are in .problems.
    """
    place = name.pinned if name.digest else name.tagged
    with closing(open_registry(name)) as registry:
        document = registry.manifest(name.digest or name.tag or "latest")
        name = name.at(document.digest)
        found = found_in(document, kind, place)
        signer = trust.check(registry, name)
        content = registry.blob(found.content.digest, found.content.size)
    notes: list[str] = []
    path = Path(place)
    if found.foreign:
        imported = import_text(content.decode("utf-8", "replace"), packages=packages)
        text = write_catalog(imported.entries.values(), imported.profiles.values())
        notes = [str(note) for note in imported.notes]
    else:
        text = textfile.decode_text(path, content)
    catalog = parse_catalog(path, text)
    if kind == "profile" and len(catalog.profiles) != 1:
        raise ImageError(f"{place} holds {len(catalog.profiles)} profiles; a {NOUN[kind]} is one")
    return Pulled(name, catalog, text, digest_of(text.encode()), signer, found.created, notes)
