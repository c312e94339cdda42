"""`lockgate catalog push` and `pull` against a real registry: what comes back is what was pushed, or nothing.

Signatures are judged one by one in test_signatures.py."""

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from catalog import CatalogInvalid, load_catalog, read_lock
from catalog.textfile import MAX_BYTES
from gateway.exchange.artifact import ARTIFACT, CONTENT, DOCKER
from gateway.images.names import parse
from gateway.images.registry import digest_of, open_registry
from gateway.images.signing import attach_signature, load_key
from tests.catalog.files import BOX, document
from tests.gateway.exchange.conftest import PROFILES, done, lockgate, refused, sign_in
from tests.gateway.registries import MANIFEST, TestRegistry, pem, private_pem, registry, signed
from tests.gateway.registries import payload as signature_payload

SIGN = ("--sign-key", "sign.key")
BY_KEY = ("--key", "sign.pub")
MINE = ("-o", "mine.yaml")


@pytest.fixture
def reference(hub: TestRegistry, request: pytest.FixtureRequest) -> str:
    """A repository of the test's own."""
    return f"{hub.host}/acme/{request.node.name.partition('[')[0].replace('_', '-')[:60].rstrip('-')}:1"


def digest_behind(reference: str) -> str:
    client = open_registry(parse(reference))
    try:
        return client.manifest(parse(reference).tag or "").digest
    finally:
        client.close()


def change(file: Path, before: str, after: str) -> None:
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after))


def test_what_is_pulled_is_byte_for_byte_what_was_pushed_and_the_lock_says_from_where(
    reference: str, place: Path
) -> None:
    pushed = json.loads(done("catalog", "push", reference, "team.yaml", *SIGN, "--json"))
    assert pushed["signed"] is True
    pulled = json.loads(done("catalog", "pull", reference, *MINE, *BY_KEY, "--json"))
    assert (place / "mine.yaml").read_bytes() == (place / "team.yaml").read_bytes()
    assert pulled["pinned"] == pushed["pinned"]
    assert pulled["signer"].startswith("given-key, key ")
    assert pulled["difference"]["added"] == ["box"]
    source = read_lock(place / "mine.lock").sources["catalog"]
    assert (source.reference, source.digest) == (reference, pushed["digest"])


def test_a_later_pull_shows_what_changed_keeps_a_backup_and_needs_no_reference(reference: str, place: Path) -> None:
    done("catalog", "push", reference, "team.yaml", *SIGN)
    done("catalog", "pull", reference, *MINE, *BY_KEY)
    assert "is up to date" in done("catalog", "pull", *MINE, *BY_KEY)
    change(place / "team.yaml", "Keeps things in a box.", "Keeps other things.")
    done("catalog", "push", reference, "team.yaml", *SIGN)
    before = (place / "mine.yaml").read_text()
    shown = done("catalog", "pull", *MINE, *BY_KEY, "--dry-run")
    assert "- description: Keeps things in a box." in shown
    assert "nothing was written" in shown
    assert (place / "mine.yaml").read_text() == before
    shown = done("catalog", "pull", *MINE, *BY_KEY)
    assert "+ description: Keeps other things." in shown
    assert "->" in shown
    assert (place / "mine.yaml").read_text() == (place / "team.yaml").read_text()
    assert (place / "mine.yaml.lockgate-backup").read_text() == before
    assert sorted(path.name for path in place.glob(".mine*")) == [".mine.lock.lock"]


def test_what_was_changed_here_is_overwritten_only_when_that_is_asked_for(reference: str, place: Path) -> None:
    done("catalog", "push", reference, "team.yaml", *SIGN)
    done("catalog", "pull", reference, *MINE, *BY_KEY)
    change(place / "mine.yaml", "# ours", "# mine")
    assert "was changed here since it was pulled" in refused("catalog", "pull", *MINE, *BY_KEY)
    assert "# mine" in (place / "mine.yaml").read_text()
    done("catalog", "pull", *MINE, *BY_KEY, "--replace")
    assert "# mine" in (place / "mine.yaml.lockgate-backup").read_text()
    (place / "own.yaml").write_text(document({"other": BOX}))
    assert "was not pulled from anywhere" in refused("catalog", "pull", reference, "-o", "own.yaml", *BY_KEY)


def test_the_artifact_says_what_it_is_to_other_tools(reference: str, hub: TestRegistry) -> None:
    done("catalog", "push", reference, "team.yaml", *SIGN)
    name = parse(reference)
    client = open_registry(name)
    manifest: Any = client.manifest("1").json()
    assert manifest["artifactType"] == ARTIFACT["catalog"]
    assert manifest["config"]["mediaType"] == "application/vnd.oci.empty.v1+json"
    assert [layer["mediaType"] for layer in manifest["layers"]] == [CONTENT]
    assert manifest["annotations"]["org.opencontainers.image.title"] == "team"
    assert "1 MCP servers, 1 profiles" in manifest["annotations"]["org.opencontainers.image.description"]
    signature: Any = client.manifest(digest_behind(reference).replace(":", "-") + ".sig").json()
    assert client.blob(signature["config"]["digest"])  # cosign reads it
    client.close()


def test_only_a_profile_and_its_entries_can_be_pushed(reference: str, place: Path) -> None:
    (place / "two.yaml").write_text(document({"box": BOX, "other": BOX}, PROFILES))
    done("catalog", "push", reference, "two.yaml", "--profile", "home", *SIGN)
    done("catalog", "pull", reference, *MINE, *BY_KEY)
    assert list(load_catalog(place / "mine.yaml").entries) == ["box"]
    assert "there is no profile" in refused("catalog", "push", reference, "two.yaml", "--profile", "hme")


def test_a_digest_pins_what_is_pulled_and_cannot_be_pushed_to(reference: str, place: Path) -> None:
    done("catalog", "push", reference, "team.yaml", *SIGN)
    old = f"{parse(reference).full}@{digest_behind(reference)}"
    change(place / "team.yaml", "Keeps things", "Loses things")
    done("catalog", "push", reference, "team.yaml", *SIGN)
    done("catalog", "pull", old, *MINE, *BY_KEY)
    assert "Keeps things" in (place / "mine.yaml").read_text()
    assert "push to a tag" in refused("catalog", "push", old, "team.yaml")


# -- signatures --------------------------------------------------------------------------------------


@pytest.mark.sec("SEC-080")
def test_unsigned_is_taken_only_when_asked_for_and_then_says_so(reference: str, place: Path) -> None:
    assert "It is not signed" in done("catalog", "push", reference, "team.yaml")
    assert "take it as it is with --unsigned" in refused("catalog", "pull", reference, *MINE)
    assert "it is not signed" in refused("catalog", "pull", reference, *MINE, *BY_KEY)
    assert not (place / "mine.yaml").exists()
    assert "NOT SIGNED" in done("catalog", "pull", reference, *MINE, "--unsigned")


def test_a_publisher_of_the_catalogue_must_have_signed_whatever_is_asked_for(
    reference: str, place: Path, hub: TestRegistry, key: ec.EllipticCurvePrivateKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "".join(f"      {line}\n" for line in pem(key).splitlines())
    publishers = f"publishers:\n  acme:\n    images: ['{hub.host}/acme/*']\n    keys:\n    - |\n{lines}"
    (place / "use.yaml").write_text(document({"box": BOX}, publishers))
    monkeypatch.setenv("LOCKGATE_CATALOG", str(place / "use.yaml"))
    done("catalog", "push", reference, "team.yaml")
    assert "acme signs its images" in refused("catalog", "pull", reference, *MINE, "--unsigned")
    done("catalog", "push", reference, "team.yaml", *SIGN)
    assert "Signed by acme, key " in done("catalog", "pull", reference, *MINE)


@pytest.mark.sec("SEC-080")
def test_a_signature_by_another_key_or_of_another_artifact_counts_for_nothing(
    reference: str, place: Path, hub: TestRegistry, key: ec.EllipticCurvePrivateKey
) -> None:
    (place / "other.key").write_bytes(private_pem(ec.generate_private_key(ec.SECP256R1())))
    done("catalog", "push", reference, "team.yaml", "--sign-key", "other.key")
    assert "made by none of the 1 keys" in refused("catalog", "pull", reference, *MINE, *BY_KEY)
    name = parse(reference)
    digest = digest_behind(reference)
    elsewhere = signed(key, signature_payload(digest, f"{hub.host}/acme/elsewhere"))
    another = signed(key, signature_payload(digest_of(b"another"), name.full))
    hub.sign(name.repository, digest, elsewhere, another)
    why = refused("catalog", "pull", reference, *MINE, *BY_KEY)
    assert "one is of another repository" in why
    assert "one is of another image" in why
    assert not (place / "mine.yaml").exists()


def test_signatures_of_several_keys_stand_side_by_side(reference: str, place: Path) -> None:
    second = ec.generate_private_key(ec.SECP256R1())
    (place / "second.key").write_bytes(private_pem(second, "open sesame"))
    (place / "second.pub").write_text(pem(second))
    (place / "passphrase").write_text("open sesame\n")
    done("catalog", "push", reference, "team.yaml", *SIGN)
    digest = digest_behind(reference)
    client = open_registry(parse(reference))
    attach_signature(client, parse(reference).at(digest), load_key(place / "second.key", lambda: "open sesame"))
    client.close()
    done("catalog", "pull", reference, *MINE, *BY_KEY, "--key", "second.pub")


def test_an_encrypted_key_signs_with_its_passphrase_only(
    reference: str, place: Path, key: ec.EllipticCurvePrivateKey
) -> None:
    (place / "hidden.key").write_bytes(private_pem(key, "open sesame"))
    (place / "right").write_text("open sesame\n")
    (place / "wrong").write_text("open barley\n")
    hidden = ("catalog", "push", reference, "team.yaml", "--sign-key", "hidden.key", "--passphrase-file")
    why = refused(*hidden, "wrong")
    assert "passphrase" in why
    assert "barley" not in why
    done(*hidden, "right")
    done("catalog", "push", reference, "team.yaml", "--sign-key", "hidden.key", input="open sesame\n")
    done("catalog", "pull", reference, *MINE, *BY_KEY)


def test_a_key_of_another_kind_is_refused(reference: str, place: Path) -> None:
    (place / "p384.key").write_bytes(private_pem(ec.generate_private_key(ec.SECP384R1())))
    assert "P-256" in refused("catalog", "push", reference, "team.yaml", "--sign-key", "p384.key")
    assert "no private key" in refused("catalog", "push", reference, "team.yaml", "--sign-key", "sign.pub")
    assert "no public key" in refused("catalog", "pull", reference, *MINE, "--key", "sign.key")


@pytest.mark.sec("SEC-080")
def test_a_tag_that_was_moved_back_is_refused_although_it_is_signed(reference: str, place: Path) -> None:
    done("catalog", "push", reference, "team.yaml", *SIGN)
    done("catalog", "pull", reference, *MINE, *BY_KEY)
    lock = place / "mine.lock"
    source = read_lock(lock).sources["catalog"]
    later = lock.read_text().replace(source.created, "2999-01-01T00:00:00Z").replace(source.digest, digest_of(b"later"))
    lock.write_text(later)
    assert "before what is here" in refused("catalog", "pull", *MINE, *BY_KEY)
    done("catalog", "pull", *MINE, *BY_KEY, "--older")


# -- what comes back damaged -------------------------------------------------------------------------


def content_file(hub: TestRegistry, reference: str) -> Path:
    client = open_registry(parse(reference))
    layer: Any = client.manifest("1").json()["layers"]
    client.close()
    return hub.blob_file(layer[0]["digest"])


@pytest.mark.sec("SEC-080")
@pytest.mark.parametrize("damage", ["changed", "cut", "longer"])
def test_content_that_is_not_what_its_digest_says_is_refused(
    damage: str, reference: str, place: Path, hub: TestRegistry
) -> None:
    done("catalog", "push", reference, "team.yaml", *SIGN)
    file = content_file(hub, reference)
    whole = file.read_bytes()
    file.write_bytes({"changed": whole.replace(b"box", b"bix"), "cut": whole[:-9], "longer": whole + b"x"}[damage])
    try:
        why = refused("catalog", "pull", reference, *MINE, *BY_KEY)
    finally:
        file.write_bytes(whole)
    assert "sent" in why
    assert not (place / "mine.yaml").exists()
    assert not (place / "mine.lock").exists()


def artifact(hub: TestRegistry, reference: str, content: bytes, *, type_: str = "", **layer: Any) -> None:
    """Put something like a catalogue there, without any of the checks of a push."""
    name = parse(reference)
    described = {"mediaType": CONTENT, "digest": hub.put_blob(name.repository, content), "size": len(content), **layer}
    empty = {
        "mediaType": "application/vnd.oci.empty.v1+json",
        "digest": hub.put_blob(name.repository, b"{}"),
        "size": 2,
    }
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "artifactType": type_ or ARTIFACT["catalog"]}
    text = json.dumps({**manifest, "config": empty, "layers": [described]}).encode()
    hub.put(name.repository, str(name.tag), text, MANIFEST)


@pytest.mark.parametrize(
    ("type_", "why"),
    [
        (ARTIFACT["profile"], "is a profile (pull it with: lockgate profile pull)"),
        (DOCKER["profile"], "is a profile (pull it with: lockgate profile pull)"),
        ("application/vnd.oci.image.config.v1+json", "is a container image, not a catalogue"),
        ("application/vnd.acme.thing", "is an artifact of the type application/vnd.acme.thing, not a catalogue"),
    ],
)
def test_another_kind_of_artifact_is_named(type_: str, why: str, reference: str, hub: TestRegistry) -> None:
    artifact(hub, reference, document({"box": BOX}).encode(), type_=type_)
    assert why in refused("catalog", "pull", reference, *MINE, "--unsigned")


def test_more_than_a_catalogue_may_have_is_not_even_fetched(reference: str, hub: TestRegistry) -> None:
    artifact(hub, reference, b"x", size=MAX_BYTES + 1)
    assert f"holds {MAX_BYTES + 1} bytes" in refused("catalog", "pull", reference, *MINE, "--unsigned")


def test_a_catalogue_with_errors_is_told_line_by_line_and_neither_pushed_nor_written(
    reference: str, place: Path, hub: TestRegistry
) -> None:
    wrong = document({"box": BOX.replace("description:", "descripton:")})
    (place / "wrong.yaml").write_text(wrong)
    result = lockgate("catalog", "push", reference, "wrong.yaml")
    assert isinstance(result.exception, CatalogInvalid)
    artifact(hub, reference, wrong.encode())
    result = lockgate("catalog", "pull", reference, *MINE, "--unsigned")
    assert isinstance(result.exception, CatalogInvalid)
    assert f'{reference}:5: box: unknown key "descripton" (did you mean "description"?)' in str(result.exception)
    assert not (place / "mine.yaml").exists()
    artifact(hub, reference, b"\xff\xfe\x00")
    assert "byte order mark" in refused("catalog", "pull", reference, *MINE, "--unsigned")


def test_what_is_not_there_is_said(hub: TestRegistry) -> None:
    assert "has no 7" in refused("catalog", "pull", f"{hub.host}/acme/nothing:7", *MINE, "--unsigned")
    assert "capitals" in refused("catalog", "pull", f"{hub.host}/Acme/nothing:7", *MINE, "--unsigned")
    assert "cannot be asked" in refused("catalog", "pull", "127.0.0.1:1/acme/nothing", *MINE, "--unsigned")


def test_dockers_own_catalogue_artifact_is_read(reference: str, place: Path, hub: TestRegistry) -> None:
    """One layer of JSON, as Docker's gateway pushes it."""
    server = {"name": "box", "title": "Box", "type": "server", "image": f"acme/box@sha256:{'cd' * 32}"}
    server |= {"description": "Keeps things."}
    listed = {"type": "image", "image": server["image"], "snapshot": {"server": server}}
    content = json.dumps({"title": "Acme", "servers": [listed]}).encode()
    artifact(hub, reference, content, type_=DOCKER["catalog"], mediaType="application/json")
    done("catalog", "pull", reference, *MINE, "--unsigned")
    assert load_catalog(place / "mine.yaml").entry("box").image == f"acme/box@sha256:{'cd' * 32}"


# -- logins and TLS ----------------------------------------------------------------------------------


def test_the_users_docker_login_is_used_and_without_it_nothing_moves(
    place: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with registry(tmp_path_factory.mktemp("private"), login=True) as private:
        reference = f"{private.host}/acme/catalog:1"
        assert "wants a login" in refused("catalog", "push", reference, "team.yaml")
        sign_in(place, private.host)
        done("catalog", "push", reference, "team.yaml", *SIGN)
        done("catalog", "pull", reference, *MINE, *BY_KEY)
        (place / ".docker" / "config.json").unlink()
        assert "wants a login" in refused("catalog", "pull", reference, "-o", "more.yaml", *BY_KEY)


def test_a_private_authority_is_trusted_where_docker_looks_for_it_and_plain_http_never_takes_its_place(
    place: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("tls")
    with registry(folder, tls=True) as private:
        reference = f"{private.host}/acme/catalog:1"
        assert "nobody known here vouches for" in refused("catalog", "push", reference, "team.yaml")
        trusted = place / ".config" / "docker" / "certs.d" / private.host
        trusted.mkdir(parents=True)
        (trusted / "ca.crt").write_bytes((folder / "ca.crt").read_bytes())
        done("catalog", "push", reference, "team.yaml", *SIGN)
        done("catalog", "pull", reference, *MINE, *BY_KEY)
