"""What a signature must be for its image to run, case by case; nothing is asked of anybody."""

import base64
import datetime
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from catalog import Identity, Publisher
from gateway.errors import ImageRefused
from gateway.images.signatures import Signature, verify
from tests.gateway.registries import IdentityService, PrivateKey, b64, now, payload, pem, signed

DIGEST, OTHER = "sha256:" + "ab" * 32, "sha256:" + "cd" * 32
BOX = "registry.example/acme/box"
WHO, BY = "https://ci.example/acme/box/release@refs/tags/v1", "https://identity.example"


def found(one: dict[str, Any]) -> Signature:
    return Signature(
        one["payload"],
        base64.b64decode(one["dev.cosignproject.cosign/signature"]),
        one.get("dev.sigstore.cosign/certificate", ""),
        one.get("dev.sigstore.cosign/chain", ""),
        one.get("dev.sigstore.cosign/bundle", ""),
    )


def keyed(*keys: PrivateKey) -> Publisher:
    return Publisher(name="acme", images=("registry.example/acme/*",), keys=tuple(pem(key) for key in keys))


def identified(service: IdentityService, subject: str = WHO, issuer: str = BY) -> Publisher:
    return Publisher(
        name="acme",
        images=("registry.example/acme/*",),
        identities=(Identity(issuer=issuer, subject=subject),),
        roots=(service.root_pem,),
        log_keys=(pem(service.log),),
    )


def refusal(one: dict[str, Any], publisher: Publisher, digest: str = DIGEST, repository: str = BOX) -> str:
    with pytest.raises(ImageRefused) as caught:
        verify([found(one)], digest, repository, publisher)
    return str(caught.value)


KEYS = [
    ec.generate_private_key(ec.SECP256R1()),
    ec.generate_private_key(ec.SECP384R1()),
    ed25519.Ed25519PrivateKey.generate(),
    rsa.generate_private_key(65537, 2048),
]


@pytest.mark.parametrize("key", KEYS, ids=["p256", "p384", "ed25519", "rsa"])
def test_a_signature_by_a_key_of_the_publisher_counts_and_by_any_other_does_not(key: PrivateKey) -> None:
    one = signed(key, payload(DIGEST, BOX))
    assert verify([found(one)], DIGEST, BOX, keyed(KEYS[0], key)).startswith("key ")
    others = keyed(*(other for other in KEYS if other is not key))
    assert "none of the 3 keys" in refusal(one, others)


def test_one_good_signature_among_bad_ones_is_enough() -> None:
    bad, good = signed(KEYS[2], payload(DIGEST, BOX)), signed(KEYS[0], payload(DIGEST, BOX))
    assert verify([found(bad), found(good)], DIGEST, BOX, keyed(KEYS[0]))


def test_no_signature_at_all_is_refused() -> None:
    with pytest.raises(ImageRefused, match="it is not signed, and acme signs its images"):
        verify([], DIGEST, BOX, keyed(KEYS[0]))


def test_what_is_signed_must_be_this_image_in_this_repository() -> None:
    publisher = keyed(KEYS[0])
    assert OTHER in refusal(signed(KEYS[0], payload(OTHER, BOX)), publisher)
    assert "another repository" in refusal(signed(KEYS[0], payload(DIGEST, "registry.example/acme/other")), publisher)
    assert "another repository" in refusal(signed(KEYS[0], payload(DIGEST, "")), publisher)
    assert "something else" in refusal(signed(KEYS[0], payload(DIGEST, BOX, kind="atomic")), publisher)
    for broken in (b"", b"[]", b'{"critical": []}', b"\xff", b"[" * 100_000):
        assert refusal(signed(KEYS[0], broken), publisher)


def test_names_of_docker_hub_are_the_same_in_every_spelling() -> None:
    publisher = Publisher(name="hub", images=("mcp/*",), keys=(pem(KEYS[0]),))
    assert publisher.publishes("docker.io/mcp/time")
    for spelling in ("mcp/time", "docker.io/mcp/time", "index.docker.io/mcp/time"):
        one = signed(KEYS[0], payload(DIGEST, spelling))
        assert verify([found(one)], DIGEST, "docker.io/mcp/time", publisher)


def test_every_changed_byte_of_payload_and_signature_is_noticed() -> None:
    one = found(signed(KEYS[0], payload(DIGEST, BOX)))
    publisher = keyed(KEYS[0])
    for position in range(0, len(one.payload), 7):
        changed = bytearray(one.payload)
        changed[position] ^= 1
        with pytest.raises(ImageRefused):
            verify([Signature(bytes(changed), one.signature)], DIGEST, BOX, publisher)
    for position in range(len(one.signature)):
        changed = bytearray(one.signature)
        changed[position] ^= 1
        with pytest.raises(ImageRefused):
            verify([Signature(one.payload, bytes(changed))], DIGEST, BOX, publisher)


# -- identities ----------------------------------------------------------------------------------


def test_a_certified_identity_counts_and_others_do_not() -> None:
    service = IdentityService()
    one = service.sign(payload(DIGEST, BOX), WHO, BY)
    assert verify([found(one)], DIGEST, BOX, identified(service)) == f"{WHO} ({BY})"
    assert verify([found(one)], DIGEST, BOX, identified(service, "https://ci.example/acme/box/release@*"))
    assert WHO in refusal(one, identified(service, WHO + "0"))
    assert WHO in refusal(one, identified(service, "https://ci.example/other/*"))
    assert BY in refusal(one, identified(service, issuer="https://another.example"))


def test_a_root_that_is_foreign_or_expired_is_refused() -> None:
    service, foreign = IdentityService(), IdentityService()
    one = service.sign(payload(DIGEST, BOX), WHO, BY)
    publisher = identified(service).model_copy(update={"roots": (foreign.root_pem,)})
    assert "none of the roots" in refusal(one, publisher)
    old = IdentityService(days=(-30, -1))
    assert "expired on" in refusal(old.sign(payload(DIGEST, BOX), WHO, BY), identified(old))


def test_a_certificate_that_was_not_valid_at_the_time_or_is_for_something_else_is_refused() -> None:
    service = IdentityService()
    late = service.sign(payload(DIGEST, BOX), WHO, BY, signed_at=now() + datetime.timedelta(hours=2))
    assert "was not valid when it was signed" in refusal(late, identified(service))
    web = service.sign(payload(DIGEST, BOX), WHO, BY, code_signing=False)
    assert "not for signing code" in refusal(web, identified(service))


def test_the_promise_of_the_log_must_be_there_by_a_known_log_and_of_this_signature() -> None:
    service = IdentityService()
    good = service.sign(payload(DIGEST, BOX), WHO, BY)
    assert "no promise" in refusal(good | {"dev.sigstore.cosign/bundle": ""}, identified(service))
    forged = service.sign(payload(DIGEST, BOX), WHO, BY, log=ec.generate_private_key(ec.SECP256R1()))
    assert "not by a log in the catalog" in refusal(forged, identified(service))
    other = service.sign(payload(DIGEST, BOX), WHO, BY, logged=b"something else")
    assert "of another signature" in refusal(other, identified(service))
    bundle = json.loads(good["dev.sigstore.cosign/bundle"])
    bundle["Payload"]["integratedTime"] += 1
    moved = good | {"dev.sigstore.cosign/bundle": json.dumps(bundle)}
    assert "not by a log in the catalog" in refusal(moved, identified(service))


def test_a_signature_beside_somebody_elses_certificate_is_refused() -> None:
    service = IdentityService()
    good = service.sign(payload(DIGEST, BOX), WHO, BY)
    stolen = good | signed(KEYS[0], payload(DIGEST, BOX))
    assert "does not fit its own certificate" in refusal(stolen, identified(service))
    damaged = good | {"dev.sigstore.cosign/certificate": "-----BEGIN CERTIFICATE-----\n" + b64(b"x")}
    assert "cannot be read" in refusal(damaged, identified(service))
