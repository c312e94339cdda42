"""The audit's own small parts: ids that never repeat, fingerprints that everybody can check."""

import hashlib

from gateway import audit


def test_ids_are_random_and_never_the_same() -> None:
    ids = [audit.call_id() for _ in range(3 * audit.IDS_AT_ONCE)]
    assert len(set(ids)) == len(ids)
    assert {len(bytes.fromhex(id)) for id in ids} == {audit.ID_BYTES}


def test_a_digest_is_the_beginning_of_the_arguments_sha256_whatever_was_digested_before() -> None:
    for arguments in (b"{}", b'{"a":1}', b"{}", b"x" * 100_000):
        assert audit.digest(arguments) == hashlib.sha256(arguments).hexdigest()[:16]
    assert audit.digest(b"") == ""
