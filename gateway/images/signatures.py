"""Signatures of images as cosign makes them, verified with keys and roots that are at hand. Pure: asks nobody.

Knows the simple signing format, Fulcio's certificates and Rekor's promise to log; not where signatures are kept."""

from __future__ import annotations

import base64
import binascii
import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from cryptography.x509.oid import ExtendedKeyUsageOID, ObjectIdentifier

from catalog import Identity, Publisher
from gateway.errors import ImageRefused
from gateway.images.names import parse

KIND: Final = "cosign container image signature"
MAX_CHAIN: Final = 4
MIN_RSA_BITS: Final = 2048
CLOCK_SLACK: Final = datetime.timedelta(minutes=5)
_ISSUER: Final = ObjectIdentifier("1.3.6.1.4.1.57264.1.8")
"""Fulcio's OIDC issuer, as a DER string; the older form is the bare text."""
_ISSUER_V1: Final = ObjectIdentifier("1.3.6.1.4.1.57264.1.1")


class Signature(msgspec.Struct, frozen=True):
    """One signature as it was found: `payload` is what is signed, the rest comes with it."""

    payload: bytes
    signature: bytes
    certificate: str = ""
    chain: str = ""
    bundle: str = ""


class _Refused(Exception):
    """This signature does not count; the message says why."""


def verify(signatures: Sequence[Signature], digest: str, repository: str, publisher: Publisher) -> str:
    """Who signed the image with this digest in this repository, by what the publisher is known by.

    Raises:
        ImageRefused: nobody the publisher is known by; says why for each signature.
    """
    if not signatures:
        raise ImageRefused(f"it is not signed, and {publisher.name} signs its images")
    reasons: dict[str, None] = {}
    for signature in signatures:
        try:
            _check_payload(signature.payload, digest, repository)
            return _signer(signature, publisher)
        except _Refused as exc:
            reasons[str(exc)] = None
    raise ImageRefused(f"no signature by {publisher.name} fits: " + "; ".join(reasons))


def _check_payload(payload: bytes, digest: str, repository: str) -> None:
    """Simple signing: what is signed names the image and where it belongs."""
    critical = _member(_object(payload, "its payload"), "critical")
    if critical.get("type") != KIND:
        raise _Refused("one signs something else than an image")
    signed = _member(critical, "image").get("docker-manifest-digest")
    if signed != digest:
        raise _Refused(f"one is of another image ({str(signed)[:80]})")
    named = _member(critical, "identity").get("docker-reference")
    if not isinstance(named, str) or not named or parse(named).full != repository:
        raise _Refused(f"one is of another repository ({str(named)[:80]})")


def _signer(signature: Signature, publisher: Publisher) -> str:
    for text in publisher.keys:
        key = _public_key(text)
        if _made_by(key, signature.signature, signature.payload):
            return f"key {_fingerprint(key)}"
    if not publisher.identities:
        raise _Refused(f"one is made by none of the {len(publisher.keys)} keys of {publisher.name}")
    if not signature.certificate:
        raise _Refused(f"one is made by none of the keys of {publisher.name} and carries no certificate")
    return _identity(signature, publisher)


# -- keys


def _public_key(text: str) -> PublicKeyTypes:
    try:
        return load_pem_public_key(text.encode())
    except ValueError as exc:
        raise ImageRefused("a public key in the catalog is none; write it in PEM") from exc


def _fingerprint(key: PublicKeyTypes) -> str:
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()[:16]


def _made_by(key: PublicKeyTypes, signature: bytes, message: bytes) -> bool:
    try:
        match key:
            case ec.EllipticCurvePublicKey():
                key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
            case ed25519.Ed25519PublicKey():
                key.verify(signature, message)
            case rsa.RSAPublicKey() if key.key_size >= MIN_RSA_BITS:
                key.verify(signature, message, padding.PKCS1v15(), hashes.SHA256())
            case _:
                return False
    except InvalidSignature:
        return False
    return True


# -- identities


def _identity(signature: Signature, publisher: Publisher) -> str:
    """The certificate is of one of the publisher's identities, was valid when the log promised to hold the signature,
    and leads to one of the publisher's roots."""
    leaf = _certificates(signature.certificate)[0]
    if not _made_by(leaf.public_key(), signature.signature, signature.payload):
        raise _Refused("one does not fit its own certificate")
    signed_at = _logged_at(signature, leaf, publisher.log_keys)
    _check_roots(leaf, _certificates(signature.chain), publisher, signed_at)
    subjects, issuer = _subjects(leaf), _issuer(leaf)
    for identity in publisher.identities:
        if issuer == identity.issuer and any(_fits(identity, subject) for subject in subjects):
            return f"{identity.subject} ({identity.issuer})"
    who = ", ".join(subjects)[:200] or "nobody"
    raise _Refused(f"one is by {who} ({issuer[:100]}), who is none of the identities of {publisher.name}")


def _fits(identity: Identity, subject: str) -> bool:
    """A final * stands for any end, as in a workflow at any tag."""
    if identity.subject.endswith("*"):
        return subject.startswith(identity.subject[:-1])
    return subject == identity.subject


def _check_roots(
    leaf: x509.Certificate, others: list[x509.Certificate], publisher: Publisher, at: datetime.datetime
) -> None:
    """Only roots that are valid today count, whenever the signature was made."""
    roots = [root for text in publisher.roots for root in _certificates(text)]
    now = datetime.datetime.now(datetime.UTC)
    current = [root for root in roots if root.not_valid_before_utc <= now <= root.not_valid_after_utc]
    try:
        _check_chain(leaf, others, current, at)
    except _Refused as exc:
        for root in roots:
            if root not in current:
                text = f"a root of {publisher.name} in the catalog expired on {root.not_valid_after_utc:%Y-%m-%d}"
                raise _Refused(f"{exc} ({text}; put the current one there)") from exc
        raise


def _check_chain(
    leaf: x509.Certificate,
    others: Sequence[x509.Certificate],
    roots: Sequence[x509.Certificate],
    at: datetime.datetime,
) -> None:
    if not leaf.not_valid_before_utc - CLOCK_SLACK <= at <= leaf.not_valid_after_utc + CLOCK_SLACK:
        raise _Refused("the certificate of one was not valid when it was signed")
    usage = _extension(leaf, x509.ExtendedKeyUsage)
    if usage is None or ExtendedKeyUsageOID.CODE_SIGNING not in usage:
        raise _Refused("the certificate of one is not for signing code")
    current = leaf
    for _ in range(MAX_CHAIN):
        if any(_issued(current, root, at) for root in roots):
            return
        issuer = next((other for other in others if other != current and _issued(current, other, at)), None)
        if issuer is None:
            break
        current = issuer
    raise _Refused("the certificate of one leads to none of the roots in the catalog")


def _issued(subject: x509.Certificate, issuer: x509.Certificate, at: datetime.datetime) -> bool:
    constraints, usage = _extension(issuer, x509.BasicConstraints), _extension(issuer, x509.KeyUsage)
    if constraints is None or not constraints.ca or (usage is not None and not usage.key_cert_sign):
        return False
    if not issuer.not_valid_before_utc <= at <= issuer.not_valid_after_utc:
        return False
    try:
        subject.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _logged_at(signature: Signature, leaf: x509.Certificate, log_keys: Sequence[str]) -> datetime.datetime:
    """When the transparency log promised to hold this very signature (Rekor's signed entry timestamp)."""
    if not signature.bundle:
        raise _Refused("one carries no promise of a transparency log")
    bundle = _object(signature.bundle.encode(), "its log bundle")
    promise, entry = _decoded(bundle.get("SignedEntryTimestamp")), _member(bundle, "Payload")
    wanted = ("body", "integratedTime", "logID", "logIndex")
    # As Rekor signs it: RFC 8785, which for these four members is sorted JSON without spaces.
    canonical = json.dumps({name: entry.get(name) for name in wanted}, sort_keys=True, separators=(",", ":")).encode()
    keys = [_public_key(text) for text in log_keys]
    if not any(_log_id(key) == entry.get("logID") and _made_by(key, promise, canonical) for key in keys):
        raise _Refused("the promise of a transparency log that one carries is not by a log in the catalog")
    spec = _member(_object(_decoded(entry.get("body")), "its log entry"), "spec")
    logged = _member(_member(spec, "data"), "hash").get("value")
    content = _member(spec, "signature")
    certificate = _decoded(_member(content, "publicKey").get("content")).decode("ascii", "replace")
    if (
        logged != hashlib.sha256(signature.payload).hexdigest()
        or _decoded(content.get("content")) != signature.signature
        or _certificates(certificate)[0] != leaf
    ):
        raise _Refused("the log entry that one carries is of another signature")
    at = entry.get("integratedTime")
    if not isinstance(at, int) or not 0 < at < 2**40:
        raise _Refused("the log entry that one carries has no time")
    return datetime.datetime.fromtimestamp(at, datetime.UTC)


def _log_id(key: PublicKeyTypes) -> str:
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _subjects(certificate: x509.Certificate) -> list[str]:
    names = _extension(certificate, x509.SubjectAlternativeName)
    if names is None:
        return []
    return [
        *names.get_values_for_type(x509.UniformResourceIdentifier),
        *names.get_values_for_type(x509.RFC822Name),
    ]


def _issuer(certificate: x509.Certificate) -> str:
    for oid, skip in ((_ISSUER, 2), (_ISSUER_V1, 0)):
        try:
            raw = certificate.extensions.get_extension_for_oid(oid).value.public_bytes()
        except (x509.ExtensionNotFound, ValueError):
            continue
        if skip and (len(raw) < 2 or raw[0] != 0x0C or raw[1] != len(raw) - 2):
            continue  # not a short UTF8String
        return raw[skip:].decode("utf-8", "replace")
    return ""


def _extension(certificate: x509.Certificate, kind: type[Any]) -> Any:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return None


def _certificates(text: str) -> list[x509.Certificate]:
    if not text:
        return []
    try:
        return x509.load_pem_x509_certificates(text.encode())
    except ValueError as exc:
        raise _Refused("one carries a certificate that cannot be read") from exc


# -- documents


def _object(content: bytes, what: str) -> Mapping[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as exc:
        raise _Refused(f"{what} is no JSON") from exc
    if not isinstance(value, dict):
        raise _Refused(f"{what} is no JSON object")
    return value


def _member(value: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = value.get(name)
    if not isinstance(found, dict):
        raise _Refused(f"one has no {name}")
    return found


def _decoded(text: object) -> bytes:
    try:
        return base64.b64decode(text if isinstance(text, str) else "", validate=True)
    except (binascii.Error, ValueError) as exc:
        raise _Refused("one carries something that is no base64") from exc
