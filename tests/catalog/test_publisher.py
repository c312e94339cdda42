"""Publishers in a catalog: whose images they sign, and what must be there to verify that."""

from pathlib import Path

import pytest

from catalog import CatalogInvalid, load_catalog

KEY = """\
      - |
        -----BEGIN PUBLIC KEY-----
        MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE
        -----END PUBLIC KEY-----
"""
HEAD = "version: 1\nservers: {}\npublishers:\n  acme:\n"


def problems(tmp_path: Path, text: str) -> str:
    path = tmp_path / "catalog.yaml"
    path.write_text(HEAD + text)
    with pytest.raises(CatalogInvalid) as caught:
        load_catalog(path)
    return str(caught.value)


def test_a_publisher_is_read_and_knows_its_images(tmp_path: Path) -> None:
    path = tmp_path / "catalog.yaml"
    path.write_text(HEAD + "    images: [ghcr.io/acme/*, mcp/box]\n    keys:\n" + KEY)
    acme = load_catalog(path).publishers["acme"]
    assert acme.name == "acme"
    cached = [load_catalog(path, tmp_path / "cache") for _ in range(2)]
    assert [one.publishers["acme"] for one in cached] == [acme, acme], "a cached catalog must not lose them"
    for repository in ("ghcr.io/acme/x", "ghcr.io/acme/x/y", "docker.io/mcp/box"):
        assert acme.publishes(repository)
    for repository in ("ghcr.io/acme", "ghcr.io/acmee/x", "docker.io/mcp/box2", "evil.example/ghcr.io/acme/x"):
        assert not acme.publishes(repository)


def test_a_publisher_that_nothing_could_be_verified_by_is_refused(tmp_path: Path) -> None:
    said = problems(tmp_path, "    images: [ghcr.io/acme/*]\n")
    assert "publisher acme: has neither keys nor identities" in said
    said = problems(tmp_path, "    images: [ghcr.io/acme/*]\n    identities: [{issuer: a, subject: b}]\n")
    assert "need roots and log_keys" in said
    assert "has roots or log_keys but no identities" in problems(
        tmp_path, "    images: [x]\n    keys:\n" + KEY + "    log_keys:\n" + KEY
    )


@pytest.mark.parametrize("pattern", ["'*'", "''", "'ghcr.io/*/x'", "'https://ghcr.io/x'", "'x y'", "'X'", "'a//b'"])
def test_a_pattern_that_names_no_images_is_refused(pattern: str, tmp_path: Path) -> None:
    assert "catalog.yaml" in problems(tmp_path, f"    images: [{pattern}]\n    keys:\n" + KEY)


def test_unknown_keys_and_things_that_are_no_pem_are_refused(tmp_path: Path) -> None:
    said = problems(tmp_path, "    images: [x]\n    keys: [secret]\n    key: x\n")
    assert 'unknown key "key" (did you mean "keys"?)' in said
    assert "-----BEGIN PUBLIC KEY-----" in said
