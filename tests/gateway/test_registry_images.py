"""Published images from a real registry: pinned once, pulled by digest, refused unless signed as the catalog says.

Builds nothing; signatures are judged one by one in test_signatures.py."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from catalog import CatalogInvalid, Entry, Identity, Publisher, read_lock
from gateway.errors import ImageError, ImageRefused
from gateway.images import ImageStore
from gateway.images.names import parse
from gateway.images.puller import follow
from tests.gateway.engines import client, engine_url, make_tiny_image, tiny_entry
from tests.gateway.registries import (
    INDEX,
    MANIFEST,
    PASSWORD,
    USER,
    IdentityService,
    TestRegistry,
    b64,
    forget,
    payload,
    pem,
    registry,
    signed,
)

pytestmark = [pytest.mark.anyio, pytest.mark.docker]

KEY, STRANGER = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
WHO, BY = "https://ci.example/acme/box/release", "https://identity.example"


def silent(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def engine() -> Iterator[docker.APIClient]:
    found = client()
    yield found
    found.close()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, engine: docker.APIClient) -> Iterator[TestRegistry]:
    with registry(tmp_path_factory.mktemp("registry")) as one:
        yield one
        for image in engine.images():
            for name in image.get("RepoTags") or ():
                if name.startswith(one.host):
                    forget(engine, name.rpartition(":")[0])


class Place:
    """A store with a publisher of everything below acme/, and images of its own."""

    def __init__(self, folder: Path, hub: TestRegistry, engine: docker.APIClient) -> None:
        self.folder = folder
        self.hub = hub
        self.engine = engine
        self.lock = folder / "catalog.lock"
        self.publishers = {
            "acme": Publisher(name="acme", images=(f"{hub.host}/acme/*",), keys=(pem(KEY),)),
        }

    @property
    def store(self) -> ImageStore:
        """A new one each time, as after a restart."""
        return ImageStore(self.folder / "cache", docker_url=engine_url(), publishers=self.publishers, lock=self.lock)

    def push(self, name: str, marker: str = "") -> tuple[Entry, str]:
        """An entry by tag, and its digest."""
        digest = self.hub.push(self.engine, self.folder, name, marker=marker or name)
        return tiny_entry(f"{self.hub.host}/{name}:1"), digest

    def full(self, name: str) -> str:
        return f"{self.hub.host}/{name}"

    async def refusal(self, entry: Entry) -> str:
        with pytest.raises(ImageRefused) as caught:
            await self.store.ensure(entry, progress=silent)
        name = str(entry.image).rpartition(":")[0]
        held = [one for image in self.engine.images() for one in image.get("RepoDigests") or () if name in one]
        assert held == [], "it was pulled all the same"
        return str(caught.value)


@pytest.fixture
def place(tmp_path: Path, hub: TestRegistry, engine: docker.APIClient, request: pytest.FixtureRequest) -> Place:
    return Place(tmp_path, hub, engine)


# -- pins ----------------------------------------------------------------------------------------


async def test_a_tag_is_resolved_once_and_then_means_the_same_image(place: Place) -> None:
    entry, first = place.push("plain/box")
    image = await place.store.ensure(entry, progress=silent)
    assert read_lock(place.lock).images == {f"{place.full('plain/box')}:1": first}
    _, second = place.push("plain/box", marker="another")
    assert second != first
    forget(place.engine, place.full("plain/box"))
    again = await place.store.ensure(entry, progress=silent)  # the tag has moved on
    assert again.id == image.id
    updated = await place.store.pull(entry, progress=silent, update=True)
    assert updated.id != image.id
    assert read_lock(place.lock).images == {f"{place.full('plain/box')}:1": second}
    assert (await place.store.ensure(entry, progress=silent)).id == updated.id


async def test_a_tag_that_the_engine_has_is_pinned_to_that_without_asking_anybody(place: Place) -> None:
    name = f"lockgate.invalid/test-{os.getpid()}"
    id = make_tiny_image(place.engine, place.folder, name)
    try:
        image = await place.store.ensure(tiny_entry(f"{name}:1"), progress=silent)
        assert image.id == id
        assert read_lock(place.lock).images == {f"{name}:1": f"local:{id}"}
        make_tiny_image(place.engine, place.folder, name, marker="swapped")
        with pytest.raises(ImageRefused, match="is another image than when it was pinned"):
            await place.store.ensure(tiny_entry(f"{name}:1"), progress=silent)
    finally:
        forget(place.engine, name)


async def test_a_damaged_lock_file_pins_nothing_anew(place: Place) -> None:
    entry, _ = place.push("plain/locked")
    place.lock.write_text('{"version": 1, "images": {"x": "latest"}}')
    with pytest.raises(CatalogInvalid, match="pins something that is no sha256 digest"):
        await place.store.ensure(entry, progress=silent)
    place.lock.write_text("{")
    with pytest.raises(CatalogInvalid, match="is no JSON"):
        await place.store.ensure(entry, progress=silent)


def test_progress_is_told_in_tenths_of_all_layers() -> None:
    def report(id: str, current: int, total: int) -> dict[str, object]:
        return {"id": id, "status": "Downloading", "progressDetail": {"current": current, "total": total}}

    mib = 1024 * 1024
    reports = [{"status": "Pulling from acme"}, report("a", mib, 10 * mib), report("a", 5 * mib, 10 * mib)]
    reports += [report("b", 0, 10 * mib), report("b", 9 * mib, 10 * mib), report("a", 10 * mib, 10 * mib)]
    lines: list[str] = []
    follow(reports, parse("registry.example/acme/box:1"), lines.append)
    assert [line.partition(": ")[2] for line in lines] == [
        "10 % of 10.0 MiB",
        "50 % of 10.0 MiB",
        "70 % of 20.0 MiB",
        "90 % of 20.0 MiB",
    ]


# -- SEC-072: signatures -------------------------------------------------------------------------


async def test_a_signed_image_runs_and_is_verified_again_without_its_registry(place: Place) -> None:
    entry, digest = place.push("acme/good")
    place.hub.sign("acme/good", digest, signed(KEY, payload(digest, place.full("acme/good"))))
    image = await place.store.ensure(entry, progress=silent)
    assert (await place.store.verify(entry) or "").startswith("key ")
    # What was fetched is kept, and judged anew each time: the registry need not be there, the key must.
    place.hub.blob_file(digest).unlink()
    assert (await place.store.ensure(entry, progress=silent)).id == image.id
    place.publishers = {"acme": place.publishers["acme"].model_copy(update={"keys": (pem(STRANGER),)})}
    with pytest.raises(ImageRefused, match="none of the 1 keys of acme"):
        await place.store.ensure(entry, progress=silent)


@pytest.mark.sec("SEC-072")
async def test_an_unsigned_image_is_refused(place: Place) -> None:
    entry, _ = place.push("acme/unsigned")
    assert "it is not signed, and acme signs its images" in await place.refusal(entry)


async def test_a_refused_image_is_not_replaced_by_the_package(place: Place) -> None:
    entry, _ = place.push("acme/replaced")
    package = {"ecosystem": "pypi", "name": "mcp-server-time", "version": "2026.10.19"}
    both = entry.model_copy(update={"package": package, "command": ("mcp-server-time",)})
    assert "it is not signed" in await place.refusal(both)


@pytest.mark.sec("SEC-072")
async def test_an_image_signed_by_somebody_else_is_refused(place: Place) -> None:
    entry, digest = place.push("acme/foreign")
    place.hub.sign("acme/foreign", digest, signed(STRANGER, payload(digest, place.full("acme/foreign"))))
    assert "none of the 1 keys of acme" in await place.refusal(entry)


@pytest.mark.sec("SEC-072")
async def test_the_signature_of_another_image_is_refused(place: Place) -> None:
    entry, digest = place.push("acme/other")
    of_good = signed(KEY, payload("sha256:" + "0" * 64, place.full("acme/other")))
    of_elsewhere = signed(KEY, payload(digest, place.full("acme/elsewhere")))
    place.hub.sign("acme/other", digest, of_good, of_elsewhere)
    said = await place.refusal(entry)
    assert "of another image" in said
    assert "of another repository" in said


@pytest.mark.sec("SEC-072")
async def test_a_tag_that_was_moved_to_another_image_is_refused(place: Place) -> None:
    """The signature is of the digest, so what the tag means later does not inherit it."""
    entry, digest = place.push("acme/moved")
    place.hub.sign("acme/moved", digest, signed(KEY, payload(digest, place.full("acme/moved"))))
    place.push("acme/moved", marker="swapped")
    assert "it is not signed" in await place.refusal(entry)


@pytest.mark.sec("SEC-072")
async def test_an_image_that_was_swapped_behind_its_digest_is_refused(place: Place) -> None:
    entry, digest = place.push("acme/swapped")
    place.hub.sign("acme/swapped", digest, signed(KEY, payload(digest, place.full("acme/swapped"))))
    _, other = place.push("acme/impostor", marker="impostor")
    place.hub.blob_file(digest).write_bytes(place.hub.blob_file(other).read_bytes())
    with pytest.raises(ImageError) as caught:
        await place.store.ensure(entry, progress=silent)
    assert place.full("acme/swapped") in str(caught.value)
    assert not place.engine.images(name=place.full("acme/swapped"))


@pytest.mark.sec("SEC-072")
async def test_a_truncated_image_is_refused(place: Place) -> None:
    entry, digest = place.push("acme/short")
    place.hub.sign("acme/short", digest, signed(KEY, payload(digest, place.full("acme/short"))))
    manifest = json.loads(place.hub.blob_file(digest).read_bytes())
    layer = place.hub.blob_file(manifest["layers"][-1]["digest"])
    # The engine must not have the layer from another test: this image has a marker of its own in it.
    layer.write_bytes(layer.read_bytes()[:-100])
    with pytest.raises(ImageError):
        await place.store.ensure(entry, progress=silent)
    assert not place.engine.images(name=place.full("acme/short"))


async def test_signatures_that_cannot_be_fetched_or_read_refuse_the_image(place: Place) -> None:
    entry, digest = place.push("acme/torn")
    content = payload(digest, place.full("acme/torn"))
    place.hub.sign("acme/torn", digest, signed(KEY, content))
    blob = place.hub.blob_file(place.hub.put_blob("acme/torn", content))
    blob.write_bytes(content + b" ")
    assert "cannot be fetched: " in await place.refusal(entry)
    blob.unlink()
    assert "cannot be fetched: " in await place.refusal(entry)
    broken = {"payload": content, "dev.cosignproject.cosign/signature": "not base64!"}
    place.hub.sign("acme/torn", digest, broken)
    blob.parent.mkdir(exist_ok=True)
    blob.write_bytes(content)
    assert "no base64" in await place.refusal(entry)


async def test_an_unreachable_registry_refuses_what_was_never_verified(
    place: Place, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with registry(tmp_path_factory.mktemp("gone")) as gone:
        digest = gone.push(place.engine, place.folder, "acme/gone", keep=True)
    publisher = Publisher(name="acme", images=(f"{gone.host}/acme/*",), keys=(pem(KEY),))
    place.publishers = {"acme": publisher}
    try:
        with pytest.raises(ImageRefused, match="cannot be fetched"):
            await place.store.ensure(tiny_entry(f"{gone.host}/acme/gone:1"), progress=silent)
        assert digest
    finally:
        forget(place.engine, f"{gone.host}/acme/gone")


@pytest.mark.sec("SEC-072")
async def test_an_expired_root_and_a_foreign_identity_refuse_the_image(place: Place) -> None:
    entry, digest = place.push("acme/identity")
    service, old = IdentityService(), IdentityService(days=(-30, -1))

    def publisher(service: IdentityService, subject: str) -> Publisher:
        return Publisher(
            name="acme",
            images=(f"{place.hub.host}/acme/*",),
            identities=(Identity(issuer=BY, subject=subject),),
            roots=(service.root_pem,),
            log_keys=(pem(service.log),),
        )

    content = payload(digest, place.full("acme/identity"))
    place.hub.sign("acme/identity", digest, old.sign(content, WHO, BY))
    place.publishers = {"acme": publisher(old, WHO)}
    assert "expired on" in await place.refusal(entry)
    place.hub.sign("acme/identity", digest, service.sign(content, WHO, BY))
    place.publishers = {"acme": publisher(service, "https://ci.example/other")}
    assert WHO in await place.refusal(entry)
    place.publishers = {"acme": publisher(service, WHO)}
    assert await place.store.ensure(entry, progress=silent)
    assert await place.store.verify(entry) == f"{WHO} ({BY})"


async def test_a_signature_that_refers_to_the_image_is_found(place: Place) -> None:
    """The form of OCI 1.1: a manifest that names the image as its subject, here by the tag for older registries."""
    entry, digest = place.push("acme/referrer")
    one = signed(KEY, payload(digest, place.full("acme/referrer")))
    signature, size = place.hub.sign("acme/referrer", digest, one, tag="the-signature")
    index = {
        "schemaVersion": 2,
        "mediaType": INDEX,
        "manifests": [
            {
                "mediaType": MANIFEST,
                "size": size,
                "digest": signature,
                "artifactType": "application/vnd.dev.cosign.artifact.sig.v1+json",
            }
        ],
    }
    place.hub.put("acme/referrer", digest.replace(":", "-"), json.dumps(index).encode(), INDEX)
    assert await place.store.ensure(entry, progress=silent)


# -- logins --------------------------------------------------------------------------------------


@pytest.fixture
def private(
    tmp_path: Path, engine: docker.APIClient, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[TestRegistry, Path]]:
    """A registry that wants a login, an image in it, and the user's own Docker settings folder."""
    folder = tmp_path / "docker"
    folder.mkdir()
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))
    with registry(tmp_path / "registry", login=True) as one:
        name = f"{one.host}/plain/private"
        make_tiny_image(engine, tmp_path, name)
        login = {"username": USER, "password": PASSWORD}
        for report in engine.push(name, tag="1", stream=True, decode=True, auth_config=login):
            assert "error" not in report, report
        forget(engine, name)
        yield one, folder
        forget(engine, name)


@pytest.mark.filterwarnings("ignore:docker-credential-missing not installed")
async def test_logins_of_the_config_file_and_of_credential_helpers_are_used(
    private: tuple[TestRegistry, Path], place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, folder = private
    entry = tiny_entry(f"{hub.host}/plain/private:1")
    # Signatures are read by the gateway itself, with the same login.
    publisher = Publisher(name="acme", images=(f"{hub.host}/*",), keys=(pem(KEY),))
    place.publishers = {"acme": publisher}
    with pytest.raises(ImageError) as caught:
        await place.store.ensure(entry, progress=silent)
    assert "cannot be resolved" in str(caught.value)

    (folder / "config.json").write_text(json.dumps({"auths": {hub.host: {"auth": b64(f"{USER}:{PASSWORD}".encode())}}}))
    with pytest.raises(ImageRefused, match="it is not signed"):
        await place.store.ensure(entry, progress=silent)
    place.publishers = {}
    assert await place.store.ensure(entry, progress=silent)
    forget(place.engine, f"{hub.host}/plain/private")

    programs = tmp_path / "bin"
    programs.mkdir()
    helper = programs / "docker-credential-test"
    answer = {"ServerURL": hub.host, "Username": USER, "Secret": PASSWORD}
    helper.write_text(f"#!/bin/sh\ncat >/dev/null\n[ \"$1\" = get ] || exit 1\necho '{json.dumps(answer)}'\n")
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    (folder / "config.json").write_text(json.dumps({"credHelpers": {hub.host: "test"}}))
    assert await place.store.ensure(entry, progress=silent)
    forget(place.engine, f"{hub.host}/plain/private")

    (folder / "config.json").write_text(json.dumps({"credHelpers": {hub.host: "missing"}}))
    place.lock.unlink()
    with pytest.raises(ImageError) as caught:
        await place.store.ensure(entry, progress=silent)
    assert PASSWORD not in str(caught.value)
