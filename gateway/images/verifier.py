"""Whether an image may run by its publisher's signatures: fetched once, kept, and verified each time.

Knows where cosign keeps signatures; how one is judged is in signatures.py. Who has no publisher in the catalog needs no
signature."""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final

import anyio
import msgspec
from anyio import to_thread

from catalog import Publisher
from gateway.errors import ImageError, ImageRefused
from gateway.images.names import ImageName
from gateway.images.registry import NotThere, RegistryClient
from gateway.images.signatures import Signature, verify

MAX_SIGNATURES: Final = 16
"""Of one image; who signs more often is not read further."""
PAYLOAD: Final = "application/vnd.dev.cosign.simplesigning.v1+json"
REFERRER: Final = "application/vnd.dev.cosign.artifact.sig.v1+json"
SIGNATURE: Final = "dev.cosignproject.cosign/signature"
CERTIFICATE: Final = "dev.sigstore.cosign/certificate"
CHAIN: Final = "dev.sigstore.cosign/chain"
BUNDLE: Final = "dev.sigstore.cosign/bundle"

Connect = Callable[[ImageName], RegistryClient]
"""Opens an image's repository, with the user's login; runs in a worker thread."""

Refusal = Callable[[ImageName], str]
"""Why an image must not run; empty if it may."""


def nothing_refused(_: ImageName) -> str:
    return ""


class Verifier:
    """Judges images by the publishers of one catalog, and by rules that may refuse one whoever signed it."""

    def __init__(
        self, publishers: Mapping[str, Publisher], folder: Path, connect: Connect, refusal: Refusal = nothing_refused
    ) -> None:
        self.publishers = publishers
        self.refusal = refusal
        self._folder = folder
        self._connect = connect

    def publisher(self, name: ImageName) -> Publisher | None:
        """Whose image this is, if the catalog says how its publisher signs."""
        return next((one for one in self.publishers.values() if one.publishes(name.full)), None)

    async def check(self, name: ImageName) -> str | None:
        """Who signed this image; None if nobody has to. It must be named by digest if somebody has.

        Raises:
            ImageRefused: it must be signed and is not, or that cannot be found out; says why.
        """
        if why := self.refusal(name):
            raise ImageRefused(f"{name.pinned if name.digest else name.tagged} is refused: {why}")
        publisher = self.publisher(name)
        if publisher is None:
            return None
        if name.digest is None:
            raise ImageRefused(f"{name.tagged} has no digest that a signature could be of")
        digest = name.digest
        with suppress(ImageRefused, OSError, msgspec.DecodeError):
            return verify(await to_thread.run_sync(self._kept, digest), digest, name.full, publisher)
        try:
            found = await to_thread.run_sync(self._fetch, name)
        except ImageRefused as exc:
            raise ImageRefused(f"{name.pinned} is refused: {exc}") from exc
        except ImageError as exc:
            text = f"{name.pinned} is refused: its signatures by {publisher.name} cannot be fetched: {exc}"
            raise ImageRefused(text) from exc
        try:
            signer = verify(found, digest, name.full, publisher)
        except ImageRefused as exc:
            raise ImageRefused(f"{name.pinned} is refused: {exc}") from exc
        with anyio.CancelScope(shield=True), suppress(OSError):  # it is only a memory for when there is no network
            await to_thread.run_sync(self._keep, digest, found)
        return signer

    def _path(self, digest: str) -> Path:
        return self._folder / f"{digest.partition(':')[2]}.json"

    def _kept(self, digest: str) -> list[Signature]:
        return msgspec.json.decode(self._path(digest).read_bytes(), type=list[Signature])

    def _keep(self, digest: str, signatures: Sequence[Signature]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._path(digest)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_bytes(msgspec.json.encode(signatures))
        temporary.replace(path)

    # -- in a worker thread ------------------------------------------------------------------

    def _fetch(self, name: ImageName) -> list[Signature]:
        with closing(self._connect(name)) as registry:
            return fetch_signatures(registry, str(name.digest))


def fetch_signatures(registry: RegistryClient, digest: str) -> list[Signature]:
    """What is signed about this digest, where cosign keeps it. Blocking; verifies nothing.

    Raises:
        ImageError: it cannot be had, or is damaged.
    """
    documents = []
    with suppress(NotThere):
        documents.append(registry.manifest(f"{digest.replace(':', '-')}.sig").json())
    for descriptor in registry.referrers(digest)[:MAX_SIGNATURES]:
        if descriptor.get("artifactType") == REFERRER:
            documents.append(registry.manifest(str(descriptor.get("digest"))).json())
    found: list[Signature] = []
    for document in documents:
        for layer in _layers(document):
            if len(found) < MAX_SIGNATURES:
                found.append(_signature(layer, registry.blob(str(layer.get("digest")))))
    return found


def _layers(manifest: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    layers = manifest.get("layers")
    found = layers if isinstance(layers, list) else []
    return [layer for layer in found if isinstance(layer, dict) and layer.get("mediaType") == PAYLOAD]


def _signature(layer: Mapping[str, Any], payload: bytes) -> Signature:
    notes = layer.get("annotations")
    texts = {name: str(text) for name, text in notes.items()} if isinstance(notes, dict) else {}
    try:
        signature = base64.b64decode(texts.get(SIGNATURE, ""), validate=True)
    except binascii.Error as exc:
        raise ImageRefused("a signature of it is no base64") from exc
    return Signature(payload, signature, texts.get(CERTIFICATE, ""), texts.get(CHAIN, ""), texts.get(BUNDLE, ""))
