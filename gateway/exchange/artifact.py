"""A catalogue or profile as an OCI artifact: the manifest that is pushed, and what a manifest found says it is.

Pure: asks nobody. Knows the media types; not what the content means.

Ours has one layer, a catalogue file as it is: a profile's is a catalogue with that profile and its entries. Docker's
has one layer of JSON."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

from catalog import Catalog, textfile
from catalog.imports import MAX_BYTES as MAX_FOREIGN_BYTES
from gateway import __version__
from gateway.errors import ImageError
from gateway.images.registry import MANIFEST, Descriptor, Document

Kind = Literal["catalog", "profile"]
NOUN: Final[Mapping[Kind, str]] = {"catalog": "catalogue", "profile": "profile"}
ARTIFACT: Final[Mapping[Kind, str]] = {
    "catalog": "application/vnd.lockgate.catalog.v1",
    "profile": "application/vnd.lockgate.profile.v1",
}
CONTENT: Final = "application/vnd.lockgate.catalog.v1+yaml"
"""The layer of both."""
DOCKER: Final[Mapping[Kind, str]] = {
    "catalog": "application/vnd.docker.mcp.catalog.v1+json",
    "profile": "application/vnd.docker.mcp.profile.v1+json",
}
EMPTY: Final = "application/vnd.oci.empty.v1+json"
EMPTY_CONFIG: Final = b"{}"
CREATED: Final = "org.opencontainers.image.created"
TITLE: Final = "org.opencontainers.image.title"
MAX_LAYERS: Final = 64
_INDEXES: Final = frozenset(
    ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
)
_IMAGES: Final = frozenset(
    ("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json")
)
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_TIME: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")


class Found(NamedTuple):
    """What a manifest says: where the content is, whether it is Docker's, and when it was pushed, if it says so."""

    content: Descriptor
    foreign: bool
    created: str


def manifest_of(kind: Kind, config: Descriptor, content: Descriptor, title: str, catalog: Catalog) -> bytes:
    """The manifest of a catalogue or profile that is pushed now."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    counted = f"{len(catalog.entries)} MCP servers, {len(catalog.profiles)} profiles"
    layer = {**content.json(), "annotations": {TITLE: "catalog.yaml"}}
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": ARTIFACT[kind],
        "config": config.json(),
        "layers": [layer],
        "annotations": {
            CREATED: now,
            TITLE: title,
            "org.opencontainers.image.description": f"A Lockgate {NOUN[kind]}: {counted}.",
            "org.opencontainers.image.version": __version__,
        },
    }
    return json.dumps(manifest, indent=2).encode()


def found_in(document: Document, kind: Kind, place: str) -> Found:
    """What a manifest found at `place` holds, if it is of this kind.

    Raises:
        ImageError: it is something else, or too large; says what, and what to do.
    """
    manifest = document.json()
    type_ = _type(manifest)
    foreign = type_ == DOCKER[kind]
    if not foreign and type_ != ARTIFACT[kind]:
        raise ImageError(f"{place} is {_called(type_, manifest)}, not a {NOUN[kind]}")
    layers = manifest.get("layers")
    if not isinstance(layers, list) or not 1 <= len(layers) <= MAX_LAYERS:
        raise ImageError(f"{place} holds no {NOUN[kind]}: its manifest names no content")
    content = _descriptor(layers[0], place)
    if not foreign and content.media_type != CONTENT:
        raise ImageError(f"{place} holds content of the type {content.media_type[:80]}, which is not read here")
    limit = MAX_FOREIGN_BYTES if foreign else textfile.MAX_BYTES
    if content.size > limit:
        raise ImageError(f"{place} holds {content.size} bytes; a {NOUN[kind]} has at most {limit}")
    notes = manifest.get("annotations")
    created = notes.get(CREATED) if isinstance(notes, dict) else None
    return Found(content, foreign, created if isinstance(created, str) and _TIME.fullmatch(created) else "")


def _type(manifest: Mapping[str, Any]) -> str:
    config = manifest.get("config")
    of_config = config.get("mediaType") if isinstance(config, dict) else None
    return str(manifest.get("artifactType") or of_config or manifest.get("mediaType") or "of no type")


def _called(type_: str, manifest: Mapping[str, Any]) -> str:
    if manifest.get("mediaType") in _INDEXES or isinstance(manifest.get("manifests"), list) or type_ in _IMAGES:
        return "a container image"
    for kind, noun in NOUN.items():
        if type_ in (ARTIFACT[kind], DOCKER[kind]):
            return f"a {noun} (pull it with: lockgate {kind} pull)"
    return f"an artifact of the type {type_[:80]}"


def _descriptor(value: object, place: str) -> Descriptor:
    match value:
        case {"mediaType": str(type_), "digest": str(digest), "size": int(size)} if size >= 0:
            if _DIGEST.fullmatch(digest):
                return Descriptor(type_, digest, size)
    raise ImageError(f"{place} has a manifest whose content is not named by digest and size")
