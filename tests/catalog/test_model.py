"""Language models in a catalogue: read strictly, kept by the cache, written back, as the store wants them."""

from pathlib import Path

import pytest

from catalog import CatalogInvalid, load_catalog, parse_catalog
from catalog.writing import write_catalog
from engine.sources import PackageSource, RegistrySource
from gateway.modellist import known_model

TEXT = f"""version: 1
servers: {{}}
models:
  tiny:8m:
    title: Tiny
    digest: sha256:{"a" * 64}
    size_bytes: 12
    memory_mb: 100
    license: MIT
    parameters: 8M
    context_length: 2048
    tools: true
    sources:
      - registry: hf.co/owner/Tiny-GGUF
      - packages:
          - {{name: tiny-part1, version: "1.0", size_bytes: 7, digest: "sha256:{"b" * 64}"}}
          - {{name: tiny-part2, version: "1.0"}}
    context_tokens: 1024
    preload: true
"""


def test_model_is_read_kept_and_written(tmp_path: Path) -> None:
    path = tmp_path / "catalog.yaml"
    path.write_text(TEXT)
    model = load_catalog(path, tmp_path / "cache").models["tiny:8m"]
    assert (model.context_tokens, model.preload, model.gpu_layers) == (1024, True, None)
    assert load_catalog(path, tmp_path / "cache").models == {"tiny:8m": model}, "a cached catalog must not lose them"
    assert parse_catalog(path, write_catalog((), models=[model])).models == {"tiny:8m": model}
    known = known_model(model)
    assert (known.ref, known.sha256, known.has_tools) == ("tiny:8m", "a" * 64, True)
    registry, packages = known.sources
    assert registry == RegistrySource("hf.co", "owner/Tiny-GGUF")
    assert isinstance(packages, PackageSource)
    assert [(part.name, part.size_bytes, part.sha256) for part in packages.parts] == [
        ("tiny-part1", 7, "b" * 64),
        ("tiny-part2", None, None),
    ]


@pytest.mark.parametrize(
    ("before", "after", "line", "message"),
    [
        ("  tiny:8m:", "  Tiny:", 4, '"Tiny" is no model'),
        ("sha256:" + "a" * 64, "md5:1", 6, '"md5:1" is no digest'),
        ("size_bytes: 12", "size_bytes: 0", 7, "size_bytes: "),
        ("tools: true", "tool: true", 12, 'unknown key "tool"'),
        ("registry: hf.co/owner/Tiny-GGUF", "registry: tiny", 14, "names no repository"),
        ("registry: hf.co/owner/Tiny-GGUF", "{}", 14, "either registry, a repository, or packages"),
        ("name: tiny-part1", "name: ../etc", 16, "sources[1].packages[0].name"),
        ("context_tokens: 1024", "context_tokens: 12", 18, "context_tokens: "),
    ],
)
def test_mistakes_are_told_with_their_line(tmp_path: Path, before: str, after: str, line: int, message: str) -> None:
    assert before in TEXT
    with pytest.raises(CatalogInvalid) as found:
        parse_catalog(tmp_path / "catalog.yaml", TEXT.replace(before, after))
    told = [(problem.line, str(problem)) for problem in found.value.problems]
    assert any(at == line and message in text for at, text in told), told
