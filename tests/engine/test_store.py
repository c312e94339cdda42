"""The model store on disk: an OCI layout that is whole at every moment."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from engine import BadModelFile, ModelNotFound, ModelStore
from tests.engine import tiny_gguf as tiny

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(tiny.gguf())
    return path


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


def blobs(store: ModelStore) -> set[str]:
    return {path.name for path in (store.root / "blobs" / "sha256").glob("*")}


def test_imported_model_is_found_again(store: ModelStore, gguf_file: Path) -> None:
    imported = store.import_file(gguf_file, "mine/tiny:1", license="MIT", parameters="8")
    assert store.list() == [imported]
    assert store.get("mine/tiny:1") == imported
    assert imported.digest == f"sha256:{hashlib.sha256(gguf_file.read_bytes()).hexdigest()}"
    assert imported.path.read_bytes() == gguf_file.read_bytes()
    assert (imported.architecture, imported.quantization, imported.license) == ("llama", "Q4_K_M", "MIT")
    assert (imported.context_length, imported.chat_template) == (2048, tiny.TEMPLATE)


def test_tag_is_latest_where_none_is_given(store: ModelStore, gguf_file: Path) -> None:
    store.import_file(gguf_file, "tiny")
    assert store.get("tiny").ref == "tiny:latest"
    assert store.get("tiny:latest").ref == "tiny:latest"


def test_layout_on_disk_is_an_oci_image_layout_with_model_media_types(store: ModelStore, gguf_file: Path) -> None:
    store.import_file(gguf_file, "tiny:1", license="MIT")
    assert json.loads((store.root / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads((store.root / "index.json").read_text())
    [entry] = index["manifests"]
    assert entry["annotations"]["org.opencontainers.image.ref.name"] == "tiny:1"
    manifest = json.loads((store.root / "blobs" / entry["digest"].replace(":", "/")).read_text())
    assert manifest["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert manifest["config"]["mediaType"] == "application/vnd.docker.ai.model.config.v0.1+json"
    assert [layer["mediaType"] for layer in manifest["layers"]] == [
        "application/vnd.docker.ai.gguf.v3",
        "application/vnd.docker.ai.license",
    ]
    for described in (entry, manifest["config"], *manifest["layers"]):
        blob = (store.root / "blobs" / described["digest"].replace(":", "/")).read_bytes()
        assert len(blob) == described["size"]
        assert f"sha256:{hashlib.sha256(blob).hexdigest()}" == described["digest"]


def test_same_file_gives_the_same_manifest(store: ModelStore, gguf_file: Path) -> None:
    assert store.import_file(gguf_file, "a:1").manifest_digest == store.import_file(gguf_file, "b:1").manifest_digest


@pytest.mark.parametrize(
    ("promise", "reason"),
    [({"sha256": "0" * 64}, "SHA-256"), ({"size_bytes": 1}, "1 were promised")],
)
def test_file_other_than_promised_leaves_nothing_behind(
    store: ModelStore, gguf_file: Path, promise: dict[str, object], reason: str
) -> None:
    with pytest.raises(BadModelFile, match=reason):
        store.import_file(gguf_file, "tiny:1", **promise)  # type: ignore[arg-type]
    assert store.list() == []
    assert not (store.root / "blobs").exists() or blobs(store) == set()


def test_file_that_is_no_model_leaves_nothing_behind(store: ModelStore, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.gguf"
    wrong.write_bytes(b"GIF89a" + b"\0" * 1000)
    with pytest.raises(BadModelFile, match="not a GGUF model"):
        store.import_file(wrong, "tiny:1")
    assert store.list() == []
    assert blobs(store) == set()


def test_later_change_of_the_source_does_not_reach_the_store(store: ModelStore, gguf_file: Path) -> None:
    imported = store.import_file(gguf_file, "tiny:1")
    with gguf_file.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    store.verify("tiny:1")
    assert imported.path.read_bytes()[-1] == 0


def test_disposable_source_is_moved(store: ModelStore, gguf_file: Path) -> None:
    inode = gguf_file.stat().st_ino
    imported = store.import_file(gguf_file, "tiny:1", disposable=True)
    assert not gguf_file.exists()
    assert imported.path.stat().st_ino == inode


def test_removing_a_model_keeps_blobs_another_uses(store: ModelStore, gguf_file: Path) -> None:
    store.import_file(gguf_file, "a:1")
    store.import_file(gguf_file, "b:1")
    store.remove("a:1")
    assert [model.ref for model in store.list()] == ["b:1"]
    store.verify("b:1")
    store.remove("b:1")
    assert blobs(store) == set()


def test_unknown_model_is_answered_with_similar_names(
    store: ModelStore, gguf_file: Path, model_store: ModelStore
) -> None:
    store.import_file(gguf_file, "tinymodel:1")
    with pytest.raises(ModelNotFound, match="tinymodel:1"):
        store.get("tinymodl:1")
    with pytest.raises(ModelNotFound, match="pull it first"):
        ModelStore(store.root, model_store.known).get("smollm2:135m")


@pytest.mark.parametrize(
    "ref", ["", "../etc/passwd", "Name:1", "a b", "a:", "a:b:c", "a//b:1", "x" * 3 + ":" + "y" * 200]
)
def test_names_that_are_no_model_names_are_refused(store: ModelStore, gguf_file: Path, ref: str) -> None:
    with pytest.raises(ModelNotFound, match="not a model name"):
        store.import_file(gguf_file, ref)


def test_damage_on_disk_is_noticed(store: ModelStore, gguf_file: Path) -> None:
    model = store.import_file(gguf_file, "tiny:1")
    model.path.chmod(0o644)
    with model.path.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    with pytest.raises(BadModelFile, match="damaged"):
        store.verify("tiny:1")
    with model.path.open("ab") as file:
        file.write(b"more")
    with pytest.raises(BadModelFile, match="pull it again"):
        store.get("tiny:1")
    (store.root / "index.json").write_text("{")
    with pytest.raises(BadModelFile, match=r"index\.json is damaged"):
        store.list()


def test_processes_importing_together_lose_nothing(store: ModelStore, gguf_file: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from engine.store import ModelStore\n"
        "for n in range(5): ModelStore(Path(sys.argv[1])).import_file(Path(sys.argv[2]), f'{sys.argv[3]}:{n}')"
    )
    argv = [sys.executable, "-c", script, str(store.root), str(gguf_file)]
    running = [subprocess.Popen([*argv, name], cwd=ROOT) for name in ("a", "b")]
    assert [process.wait(60) for process in running] == [0, 0]
    assert [model.ref for model in store.list()] == [f"{name}:{n}" for name in "ab" for n in range(5)]


def test_import_killed_at_any_moment_leaves_the_store_whole(store: ModelStore, tmp_path: Path) -> None:
    """Each round kills an importing process a little later; what is listed must be readable and intact."""
    big = tmp_path / "big.gguf"
    big.write_bytes(tiny.gguf(data=os.urandom(24 << 20)))
    script = (
        "import sys; from pathlib import Path; from engine.store import ModelStore\n"
        "print('ready', flush=True)\n"
        "for n in range(99): ModelStore(Path(sys.argv[1])).import_file(Path(sys.argv[2]), f'big:{n}')"
    )
    argv = [sys.executable, "-c", script, str(store.root), str(big)]
    for killed_after_s in (0.005, 0.02, 0.05, 0.1, 0.2, 0.4):
        process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        try:
            process.wait(killed_after_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        process.stdout.close()
        for model in store.list():
            store.verify(model.ref)
    for left in (store.root / "blobs" / "sha256").glob(".import-*"):
        os.utime(left, (0, 0))
    store.import_file(big, "big:after")
    store.verify("big:after")
    assert not [name for name in blobs(store) if name.startswith(".import-")]
