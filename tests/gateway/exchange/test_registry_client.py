"""Blobs to and from a real registry: in pieces, over connections that break, and never other bytes than were named."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.errors import ImageError
from gateway.images.names import parse
from gateway.images.registry import MAX_INTERRUPTIONS, UPLOAD_BYTES, NotThere, RegistryClient, digest_of, open_registry
from tests.gateway.cutting import CuttingProxy, cutting_proxy
from tests.gateway.registries import TestRegistry

LARGE = os.urandom(2 * UPLOAD_BYTES + 12_345)
DIGEST = digest_of(LARGE)


@pytest.fixture
def proxy(hub: TestRegistry) -> Iterator[CuttingProxy]:
    with cutting_proxy(int(hub.host.rpartition(":")[2])) as one:
        yield one


@pytest.fixture
def client(proxy: CuttingProxy, request: pytest.FixtureRequest) -> Iterator[RegistryClient]:
    name = request.node.name.partition("[")[0].replace("_", "-")[:60].rstrip("-")
    one = open_registry(parse(f"{proxy.host}/blobs/{name}:1"))
    yield one
    one.close()


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "large"
    path.write_bytes(LARGE)
    return path


class Reports(list[int]):
    def __call__(self, done: int, whole: int) -> None:
        assert whole == len(LARGE)
        self.append(done)


def test_a_large_file_goes_there_in_pieces_and_comes_back(client: RegistryClient, large: Path, tmp_path: Path) -> None:
    assert not client.has_blob(DIGEST)
    up, down = Reports(), Reports()
    descriptor = client.push_file(large, "application/vnd.acme.weights", up)
    assert descriptor == ("application/vnd.acme.weights", DIGEST, len(LARGE))
    assert up == [UPLOAD_BYTES, 2 * UPLOAD_BYTES, len(LARGE), len(LARGE)]
    assert client.has_blob(DIGEST)
    client.pull_blob(DIGEST, len(LARGE), tmp_path / "back", down)
    assert (tmp_path / "back").read_bytes() == LARGE
    assert down == sorted(down)
    assert down[-1] == len(LARGE)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file() and "back" in path.name) == ["back"]


def test_an_upload_goes_on_where_the_connection_broke(client: RegistryClient, proxy: CuttingProxy, large: Path) -> None:
    proxy.cut("up", UPLOAD_BYTES // 2, times=2)
    client.push_file(large)
    assert proxy.cuts == 2
    assert client.has_blob(DIGEST)


def test_a_download_goes_on_where_the_connection_broke(
    client: RegistryClient, proxy: CuttingProxy, large: Path, tmp_path: Path
) -> None:
    client.push_file(large)
    reports = Reports()
    proxy.cut("down", 5_000_000, times=3)
    client.pull_blob(DIGEST, len(LARGE), tmp_path / "back", reports)
    assert proxy.cuts == 3
    assert (tmp_path / "back").read_bytes() == LARGE
    assert reports == sorted(reports), "nothing was fetched twice"


def test_what_came_before_a_download_was_given_up_is_used_by_the_next(
    client: RegistryClient, proxy: CuttingProxy, large: Path, tmp_path: Path
) -> None:
    client.push_file(large)
    (tmp_path / "back.part").write_bytes(LARGE[:1_000_000])
    reports = Reports()
    client.pull_blob(DIGEST, len(LARGE), tmp_path / "back", reports)
    assert reports[0] > 1_000_000
    (tmp_path / "again.part").write_bytes(b"x" * 1_000_000)
    with pytest.raises(ImageError, match="sent another blob"):
        client.pull_blob(DIGEST, len(LARGE), tmp_path / "again")
    assert not (tmp_path / "again.part").exists()
    assert not (tmp_path / "again").exists()


def test_a_connection_that_always_breaks_ends_in_an_error(
    client: RegistryClient, proxy: CuttingProxy, large: Path, tmp_path: Path
) -> None:
    client.push_file(large)
    proxy.cut("down", 1, times=2 * MAX_INTERRUPTIONS)
    with pytest.raises(ImageError, match=r"breaks off|cannot be asked"):
        client.pull_blob(DIGEST, len(LARGE), tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_registry_that_sends_more_than_was_named_is_stopped(
    client: RegistryClient, large: Path, tmp_path: Path
) -> None:
    client.push_file(large)
    with pytest.raises(ImageError, match="sent more than the 1000 bytes"):
        client.pull_blob(DIGEST, 1000, tmp_path / "back")
    assert not list(tmp_path.glob("back*"))


def test_a_blob_is_taken_from_another_repository_of_the_registry(
    client: RegistryClient, proxy: CuttingProxy, large: Path
) -> None:
    other = open_registry(parse(f"{proxy.host}/blobs/source:1"))
    try:
        other.push_file(large)
    finally:
        other.close()
    assert client.mount_blob(DIGEST, "blobs/source")
    assert client.has_blob(DIGEST)
    assert not client.mount_blob(digest_of(b"nothing"), "blobs/source")


def test_what_a_manifest_names_must_be_there(client: RegistryClient) -> None:
    config = client.push_blob(b"{}", "application/vnd.oci.empty.v1+json")
    absent = {"mediaType": "text/plain", "digest": digest_of(b"absent"), "size": 6}
    manifest = f'{{"schemaVersion": 2, "config": {config.json()!s}, "layers": [{absent}]}}'.replace("'", '"')
    with pytest.raises(ImageError, match="HTTP 40"):
        client.push_manifest("1", manifest.encode())
    with pytest.raises(NotThere):
        client.manifest("1")
    with pytest.raises(NotThere):
        client.blob(digest_of(b"absent"))
    assert client.blob(config.digest, 2) == b"{}"
