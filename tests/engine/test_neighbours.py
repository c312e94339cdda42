"""Models of other programs, laid out as those programs do."""

import hashlib
import json
from pathlib import Path

from engine import ModelStore
from engine.neighbours import neighbours
from tests.engine import tiny_gguf as tiny


def ollama(home: Path, folder: str, content: bytes, *, digest: str = "") -> None:
    digest = digest or hashlib.sha256(content).hexdigest()
    root = home / ".ollama" / "models"
    (root / "blobs").mkdir(parents=True, exist_ok=True)
    (root / "blobs" / f"sha256-{digest}").write_bytes(content)
    path = root / "manifests" / folder
    path.parent.mkdir(parents=True)
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}", "size": len(content)}
    path.write_text(json.dumps({"schemaVersion": 2, "layers": [layer, {"mediaType": "x", "digest": "y", "size": 1}]}))


def test_models_of_ollama_and_llama_cpp_are_found_and_imported(tmp_path: Path) -> None:
    ollama(tmp_path, "registry.ollama.ai/library/tiny/latest", tiny.gguf())
    ollama(tmp_path, "hf.co/somebody/other/q4", tiny.gguf() + b"\0")
    cache = tmp_path / ".cache" / "llama.cpp"
    cache.mkdir(parents=True)
    (cache / "Some_Model-Q4_K_M.gguf").write_bytes(tiny.gguf())
    found = {f"{one.program} {one.name}": one for one in neighbours(tmp_path)}
    assert set(found) == {
        "ollama tiny:latest",
        "ollama somebody/other:q4",
        "llama.cpp some-model-q4-k-m:latest",
    }
    store = ModelStore(tmp_path / "models")
    for one in found.values():
        stored = store.import_file(one.path, one.name, sha256=one.sha256)
        assert stored.size_bytes == one.size_bytes
    assert len(store.list()) == 3


def test_what_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    assert not list(neighbours(tmp_path))
    ollama(tmp_path, "registry.ollama.ai/library/odd/latest", b"x", digest="../../../etc/passwd".replace("/", "_"))
    (tmp_path / ".ollama/models/manifests/registry.ollama.ai/library/odd/broken").write_text("{")
    assert not list(neighbours(tmp_path))


def test_names_can_be_given_and_what_no_model_uses_is_deleted(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "models")
    path = tmp_path / "tiny.gguf"
    path.write_bytes(tiny.gguf())
    store.import_file(path, "tiny:1")
    assert store.tag("tiny:1", "hf.co/Owner/Tiny:Q4").manifest_digest == store.get("tiny:1").manifest_digest
    store.remove("tiny:1")
    assert [model.ref for model in store.list()] == ["hf.co/Owner/Tiny:Q4"]
    (store.root / "blobs" / "sha256" / ("0" * 64)).write_bytes(b"x" * 100)
    left = store.root / "downloads" / "1"
    left.mkdir(parents=True)
    (left / "weights.part").write_bytes(b"x" * 50)
    assert store.used_bytes()[1] == 50
    assert store.prune() == 150
    assert store.prune() == 0
    store.verify("hf.co/Owner/Tiny:Q4")
