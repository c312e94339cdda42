"""Fetching known models: from a registry that may break off, from packages, and from neither."""

import hashlib
import io
import re
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from engine import ModelStore, ModelUnavailable
from engine.sources import KnownModel, PackageSource, Part, RegistrySource, fetch
from tests.engine import tiny_gguf as tiny

WEIGHTS = tiny.gguf(data=bytes(range(256)) * 8_192)
DIGEST = hashlib.sha256(WEIGHTS).hexdigest()


class Registry:
    """A registry's blob endpoint that can break off, lie and ignore ranges."""

    def __init__(self) -> None:
        self.ranges: list[str | None] = []
        self.breaks_after: list[int] = []
        self.body = WEIGHTS
        self.honours_ranges = True
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path != f"/v2/tiny/model/blobs/sha256:{DIGEST}":
                    self.send_error(404)
                    return
                asked = self.headers.get("Range")
                registry.ranges.append(asked)
                start = 0
                if asked and registry.honours_ranges:
                    start = int(re.findall(r"bytes=(\d+)-", asked)[0])
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(registry.body) - start))
                self.end_headers()
                end = start + registry.breaks_after.pop(0) if registry.breaks_after else None
                self.wfile.write(registry.body[start:end])

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.server.server_port}"


@pytest.fixture
def registry() -> Iterator[Registry]:
    registry = Registry()
    thread = threading.Thread(target=registry.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield registry
    registry.server.shutdown()
    thread.join()
    registry.server.server_close()


def known(*sources: RegistrySource | PackageSource) -> KnownModel:
    return KnownModel("tiny:1", "Tiny", DIGEST, len(WEIGHTS), "MIT", "8", 2048, False, sources)


def test_registry_delivers_the_pinned_blob(registry: Registry, tmp_path: Path) -> None:
    said: list[str] = []
    [path] = fetch(known(RegistrySource(registry.host, "tiny/model")), tmp_path, said.append)
    assert path.read_bytes() == WEIGHTS
    assert said == [f"downloading 2 MB from {registry.host}/tiny/model"]


def test_broken_download_goes_on_where_it_stopped(registry: Registry, tmp_path: Path) -> None:
    registry.breaks_after = [1_000_000, 500_000]
    [path] = fetch(known(RegistrySource(registry.host, "tiny/model")), tmp_path, print)
    assert path.read_bytes() == WEIGHTS
    assert registry.ranges == [None, "bytes=1000000-", "bytes=1500000-"]


def test_server_that_ignores_ranges_is_read_from_the_start(registry: Registry, tmp_path: Path) -> None:
    registry.breaks_after = [1_000_000]
    registry.honours_ranges = False
    [path] = fetch(known(RegistrySource(registry.host, "tiny/model")), tmp_path, print)
    assert path.read_bytes() == WEIGHTS


def test_finished_download_is_not_repeated(registry: Registry, tmp_path: Path) -> None:
    model = known(RegistrySource(registry.host, "tiny/model"))
    fetch(model, tmp_path, print)
    fetch(model, tmp_path, print)
    assert len(registry.ranges) == 1


@pytest.mark.parametrize("body", [WEIGHTS[:-1] + b"x", WEIGHTS + b"more"], ids=["other bytes", "too many bytes"])
def test_wrong_bytes_are_refused_and_not_kept(registry: Registry, tmp_path: Path, body: bytes) -> None:
    registry.body = body
    with pytest.raises(ModelUnavailable, match=f"Import a GGUF file with SHA-256 {DIGEST}"):
        fetch(known(RegistrySource(registry.host, "tiny/model")), tmp_path, print)
    registry.body = WEIGHTS
    [path] = fetch(known(RegistrySource(registry.host, "tiny/model")), tmp_path, print)
    assert path.read_bytes() == WEIGHTS


def wheel(name: str, version: str, data: bytes) -> tuple[str, bytes]:
    """A package that carries `data` and would write to disk if it were ever imported."""
    module, info = name.replace("-", "_"), f"{name.replace('-', '_')}-{version}.dist-info"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(f"{module}/__init__.py", "raise SystemExit('imported')\n" + "#" * len(data) * 2)
        archive.writestr(f"{module}/data/part.bin", data)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return f"{module}-{version}-py3-none-any.whl", buffer.getvalue()


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder the package client takes packages from instead of the network."""
    folder = tmp_path / "packages"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def in_parts(packages: Path, *, spoil: int | None = None) -> PackageSource:
    size = len(WEIGHTS) // 3 + 1
    parts = []
    for number in range(3):
        data = WEIGHTS[number * size : (number + 1) * size]
        name = f"tiny-model-part{number}"
        parts.append(Part(name, "1.0", len(data), hashlib.sha256(data).hexdigest()))
        filename, archive = wheel(name, "1.0", data if number != spoil else b"!" + data[1:])
        (packages / filename).write_bytes(archive)
    return PackageSource(tuple(parts))


def test_parts_come_through_the_package_client_and_are_kept(packages: Path, tmp_path: Path) -> None:
    folder = tmp_path / "downloads"
    folder.mkdir()
    model = known(in_parts(packages))
    paths = fetch(model, folder, print)
    assert b"".join(path.read_bytes() for path in paths) == WEIGHTS
    for filename in packages.iterdir():
        filename.unlink()
    said: list[str] = []
    assert fetch(model, folder, said.append) == paths
    assert said[1:] == [f"tiny-model-part{n} 1.0 is already here" for n in range(3)]


def test_unreachable_registry_leads_to_the_next_source(packages: Path, tmp_path: Path) -> None:
    folder = tmp_path / "downloads"
    folder.mkdir()
    said: list[str] = []
    fetch(known(RegistrySource("127.0.0.1:9", "tiny/model"), in_parts(packages)), folder, said.append)
    assert said[0] == "127.0.0.1:9 cannot be reached (Connection refused); trying the next source"


def test_spoiled_part_is_refused_with_its_name(packages: Path, tmp_path: Path) -> None:
    folder = tmp_path / "downloads"
    folder.mkdir()
    with pytest.raises(ModelUnavailable, match="tiny-model-part1 delivered has the SHA-256"):
        fetch(known(in_parts(packages, spoil=1)), folder, print)
    assert len(list(folder.iterdir())) == 1


def test_package_that_does_not_exist_is_named(packages: Path, tmp_path: Path) -> None:
    folder = tmp_path / "downloads"
    folder.mkdir()
    with pytest.raises(ModelUnavailable, match="could not fetch no-such-package==9"):
        fetch(known(PackageSource((Part("no-such-package", "9"),))), folder, print)


def test_archive_that_unpacks_to_more_than_it_may_is_refused(packages: Path, tmp_path: Path) -> None:
    folder = tmp_path / "downloads"
    folder.mkdir()
    filename, archive = wheel("bomb", "1.0", b"\0" * (len(WEIGHTS) + 1))
    (packages / filename).write_bytes(archive)
    with pytest.raises(ModelUnavailable, match="is larger than"):
        fetch(known(PackageSource((Part("bomb", "1.0"),))), folder, print)


def test_shipped_list_is_complete(model_store: ModelStore) -> None:
    models = model_store.known
    assert list(models) == ["qwen2.5-coder:0.5b", "smollm2:135m", "qwen2.5-coder:1.5b"]
    for model in models.values():
        assert re.fullmatch(r"[0-9a-f]{64}", model.sha256)
        assert model.license == "Apache-2.0"
        assert isinstance(model.sources[0], RegistrySource)
        packaged = model.sources[-1]
        assert isinstance(packaged, PackageSource)
        sizes = [part.size_bytes for part in packaged.parts]
        assert None in sizes or sum(size or 0 for size in sizes) == model.size_bytes


@pytest.mark.model
def test_pulled_model_is_in_the_store(model_store: ModelStore) -> None:
    model = model_store.pull("smollm2:135m", print)
    assert model.digest == f"sha256:{model_store.known['smollm2:135m'].sha256}"
    said: list[str] = []
    assert model_store.pull("smollm2:135m", said.append) == model
    assert said == ["smollm2:135m is already in the store"]
