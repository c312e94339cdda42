"""Signing what was pushed, with a key of one's own, as cosign does: its own tools verify it, and so does signatures.py.

Knows keys in PEM and the simple signing format; where a signature is kept, verifier.py reads and this writes."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from gateway.errors import ImageError
from gateway.images.names import ImageName
from gateway.images.registry import NotThere, RegistryClient
from gateway.images.signatures import KIND
from gateway.images.verifier import MAX_SIGNATURES, PAYLOAD, SIGNATURE

MAX_KEY_BYTES: Final = 64 * 1024
IMAGE_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
_NEVER: Final = "0001-01-01T00:00:00Z"


class SigningKey:
    """An ECDSA key on P-256. Its secret part shows nowhere."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key

    @property
    def public(self) -> str:
        """The public key in PEM, as a catalog's `publishers:` takes it."""
        return self._key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message, ec.ECDSA(hashes.SHA256()))


def load_key(path: Path, passphrase: Callable[[], str]) -> SigningKey:
    """The key in a PEM file; `passphrase` is asked only if the file is encrypted.

    Raises:
        ImageError: the file is no such key, or the passphrase is wrong.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_KEY_BYTES)
    except OSError as exc:
        raise ImageError(f"the key {path} cannot be read: {exc.strerror or exc}") from exc
    if b"ENCRYPTED COSIGN PRIVATE KEY" in text or b"ENCRYPTED SIGSTORE PRIVATE KEY" in text:
        raise ImageError(f"{path} is in cosign's own form; make a key with: openssl ecparam -name prime256v1 -genkey")
    encrypted = b"ENCRYPTED" in text
    try:
        key = load_pem_private_key(text, passphrase().encode() if encrypted else None)
    except (ValueError, TypeError) as exc:
        why = "its passphrase is another one, or it" if encrypted else "it"
        raise ImageError(f"{path} is no private key that can be used: {why} is damaged or not PEM") from exc
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ImageError(f"{path} is another kind of key; sign with ECDSA on the curve P-256 (prime256v1)")
    return SigningKey(key)


def attach_signature(registry: RegistryClient, name: ImageName, key: SigningKey) -> str:
    """Sign the artifact with this digest and put the signature beside it, where cosign looks; signatures that are there
    stay. The digest of the signatures' manifest.

    Raises:
        ImageError: the registry does not take it, or holds too many.
    """
    payload = _payload(name)
    tag = f"{str(name.digest).replace(':', '-')}.sig"
    layer = registry.push_blob(payload, PAYLOAD).json()
    layer["annotations"] = {SIGNATURE: base64.b64encode(key.sign(payload)).decode()}
    layers = [*_present(registry, tag), layer]
    if len(layers) > MAX_SIGNATURES:
        raise ImageError(f"{name.pinned} has {MAX_SIGNATURES} signatures already, and more would not be read")
    config = registry.push_blob(_image_config(layers), IMAGE_CONFIG)
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config.json(),
        "layers": layers,
    }
    return registry.push_manifest(tag, json.dumps(manifest).encode())


def _payload(name: ImageName) -> bytes:
    critical = {
        "identity": {"docker-reference": name.full},
        "image": {"docker-manifest-digest": name.digest},
        "type": KIND,
    }
    return json.dumps({"critical": critical, "optional": None}).encode()


def _present(registry: RegistryClient, tag: str) -> list[dict[str, Any]]:
    try:
        layers = registry.manifest(tag).json().get("layers")
    except NotThere:
        return []
    return [dict(one) for one in layers if isinstance(one, dict)] if isinstance(layers, list) else []


def _image_config(layers: list[dict[str, Any]]) -> bytes:
    """What other tools expect of an image's config: they take the signatures for its layers."""
    rootfs = {"type": "layers", "diff_ids": [layer.get("digest") for layer in layers]}
    history = [{"created": _NEVER} for _ in layers]
    whole = {"architecture": "", "os": "", "created": _NEVER, "config": {}, "history": history, "rootfs": rootfs}
    return json.dumps(whole).encode()
