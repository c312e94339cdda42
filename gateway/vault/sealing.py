"""Sealing: values encrypted with AES-256-GCM, each bound to what it is and to where it belongs.

Knows bytes and keys; no database and no names. NIST SP 800-38D; RFC 5869 for keys derived from the master key."""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
"""Random for each sealing. A data key seals one value once, the master key wraps far fewer than 2^32 data keys."""
SUM_BYTES: Final = 32
_MODULUS: Final = 1 << (8 * SUM_BYTES)


class Unsealable(Exception):
    """Not sealed with this key, or bound to something else, or changed since."""


def new_key() -> bytes:
    return os.urandom(KEY_BYTES)


def bound(*parts: str | int | bytes) -> bytes:
    """One string of bytes for a sequence of parts, from which the parts can be told: each has its length before it."""
    raw = [part if isinstance(part, bytes) else str(part).encode("utf-8", "surrogatepass") for part in parts]
    return b"".join(struct.pack(">I", len(part)) + part for part in raw)


def seal(key: bytes, value: bytes, to: bytes) -> bytes:
    """The value, encrypted and bound `to` something: nonce, text and tag."""
    nonce = os.urandom(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, value, to)


def unseal(key: bytes, sealed: bytes, to: bytes) -> bytes:
    """
    Raises:
        Unsealable: another key, another place, or other bytes than were sealed.
    """
    try:
        return AESGCM(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], to)
    except (InvalidTag, ValueError):
        raise Unsealable from None


def derive(master: bytes, purpose: str) -> bytes:
    """A key of its own for one purpose."""
    return HKDF(hashes.SHA256(), KEY_BYTES, None, purpose.encode()).derive(master)


class Keyring:
    """What is made of one master key: `wrapping` for data keys, `proving` for proofs, and the id it is known by."""

    __slots__ = ("_proving", "_wrapping", "id")

    def __init__(self, master: bytes) -> None:
        self._wrapping = derive(master, "lockgate vault: data keys")
        self._proving = derive(master, "lockgate vault: proofs")
        self.id = derive(master, "lockgate vault: id")[:8].hex()
        """Names the key without telling anything of it, and is bound to all that it wraps: GCM itself would let one
        ciphertext open with two keys."""

    def __repr__(self) -> str:
        return f"Keyring({self.id})"

    def seal(self, value: bytes, to: bytes) -> tuple[bytes, bytes]:
        """A data key of the value's own, wrapped, and the value sealed with it."""
        key = new_key()
        return self._wrap(key, to), seal(key, value, to)

    def unseal(self, wrapped: bytes, sealed: bytes, to: bytes) -> bytes:
        """
        Raises:
            Unsealable: see `unseal`.
        """
        return unseal(self._unwrap(wrapped, to), sealed, to)

    def rewrap(self, wrapped: bytes, to: bytes, under: Keyring) -> bytes:
        """The same data key, wrapped by another master key.

        Raises:
            Unsealable: see `unseal`.
        """
        return under._wrap(self._unwrap(wrapped, to), to)

    def _wrap(self, key: bytes, to: bytes) -> bytes:
        return seal(self._wrapping, key, bound("data key", self.id, to))

    def _unwrap(self, wrapped: bytes, to: bytes) -> bytes:
        return unseal(self._wrapping, wrapped, bound("data key", self.id, to))

    def proof(self, content: bytes) -> bytes:
        """What only a holder of the key can make."""
        return hmac.digest(self._proving, content, hashlib.sha256)

    def proves(self, proof: bytes, content: bytes) -> bool:
        return hmac.compare_digest(proof, self.proof(content))


class Sum:
    """A sum of proofs: it tells whether a set of rows is the one that was summed, and changes with one row in one
    step. Nobody without the key can make other rows with the same sum, as each term is a keyed hash."""

    __slots__ = ("_value",)

    def __init__(self, stored: bytes = b"") -> None:
        self._value = int.from_bytes(stored)

    def add(self, term: bytes) -> None:
        self._value = (self._value + int.from_bytes(term)) % _MODULUS

    def take(self, term: bytes) -> None:
        self._value = (self._value - int.from_bytes(term)) % _MODULUS

    def bytes(self) -> bytes:
        return self._value.to_bytes(SUM_BYTES)
