"""Models split over several GGUF files: taken in whole, refused where parts do not fit."""

import random
from pathlib import Path

import pytest

from engine import BadModelFile, ModelStore
from engine.gguf import read_header
from engine.neighbours import neighbours
from engine.parts import files_of, in_order
from tests.engine import tiny_gguf as tiny
from tests.engine.splitting import split


def a_model(folder: Path, n_tensors: int = 6, prefix: str = "w") -> Path:
    path = folder / f"{prefix}.gguf"
    tensors = [tiny.tensor(f"{prefix}{n}", offset=32 * n) for n in range(n_tensors)]
    path.write_bytes(tiny.gguf(tensors=tensors, data=random.Random(prefix).randbytes(32 * n_tensors)))
    return path


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    return split(a_model(tmp_path), tmp_path, "tiny", 3)


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


def test_any_part_brings_all_and_whatever_the_order_they_are_sorted(parts: list[Path], store: ModelStore) -> None:
    for file in parts:
        assert files_of(file) == parts
    headers = [read_header(file) for file in parts]
    assert in_order([headers[2], headers[0], headers[1]]) == [1, 2, 0]
    model = store.import_file(parts[2], "tiny:1", license="MIT")
    assert (model.license, model.digest) == ("MIT", model.manifest_digest)
    assert len(model.more_paths) == 2
    assert store.get("tiny:1") == model
    store.verify("tiny:1")
    store.remove("tiny:1")
    assert store.used_bytes() == (0, 0)


def test_damage_of_any_part_is_found(parts: list[Path], store: ModelStore) -> None:
    last = store.import_file(parts[0], "tiny:1").more_paths[-1]
    last.chmod(0o644)
    whole = last.read_bytes()
    last.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(BadModelFile, match="damaged on disk"):
        store.verify("tiny:1")
    last.write_bytes(whole[:-1])
    with pytest.raises(BadModelFile, match=r"have \d+ bytes, not"):
        store.get("tiny:1")
    last.unlink()
    with pytest.raises(BadModelFile, match="incomplete in the store"):
        store.get("tiny:1")


def test_parts_that_do_not_belong_together_are_refused(parts: list[Path], tmp_path: Path) -> None:
    def order(*files: Path) -> list[int]:
        return in_order([read_header(file) for file in files])

    folder = tmp_path / "others"
    folder.mkdir()
    others = split(a_model(folder, prefix="v"), folder, "tiny", 3)
    longer = split(a_model(folder, 9), folder, "longer", 3)
    same = split(a_model(folder), folder, "pair", 2)
    plain = a_model(folder)
    with pytest.raises(BadModelFile, match="part 1 of 3"):
        order(parts[0])
    with pytest.raises(BadModelFile, match="part 1 of 3 is there, among 2 weights files"):
        order(*parts[:2])
    with pytest.raises(BadModelFile, match="part 2 of 3 is there twice, and another is missing"):
        order(parts[0], parts[1], parts[1])
    with pytest.raises(BadModelFile, match="part 2 of 2 is there, among 3 weights files"):
        order(parts[0], same[1], parts[2])
    with pytest.raises(BadModelFile, match="not part of a split model"):
        order(parts[0], plain, parts[2])
    with pytest.raises(BadModelFile, match=r"'w\d' is in two parts"):
        order(parts[0], longer[1], parts[2])
    with pytest.raises(BadModelFile, match="belongs to another model"):
        order(parts[0], parts[1], longer[2])
    order(*others)


def test_missing_and_misnamed_parts_are_named(parts: list[Path], store: ModelStore) -> None:
    with pytest.raises(BadModelFile, match="a digest or size promises a single file"):
        store.import_file(parts[0], "tiny:1", sha256="0" * 64)
    renamed = parts[0].rename(parts[0].with_name("model.gguf"))
    with pytest.raises(BadModelFile, match="part 1 of a model split into 3; keep the parts in one folder"):
        store.import_file(renamed, "tiny:1")
    renamed.rename(parts[0])
    parts[1].write_bytes(parts[1].read_bytes()[:-64])
    with pytest.raises(BadModelFile, match="it is cut short"):
        store.import_file(parts[0], "tiny:1")
    parts[1].unlink()
    with pytest.raises(BadModelFile, match=r"tiny-00002-of-00003\.gguf is missing"):
        store.import_file(parts[0], "tiny:1")
    assert not store.list()


@pytest.mark.sec("SEC-099")
@pytest.mark.parametrize(("number", "count", "n_tensors"), [(3, 3, 6), (7, 3, 6), (0, 60_000, 6), (0, 2, 6), (1, 3, 6)])
def test_headers_that_lie_about_parts_are_refused(
    tmp_path: Path, store: ModelStore, number: int, count: int, n_tensors: int
) -> None:
    values = [("split.no", number), ("split.count", count), ("split.tensors.count", n_tensors)]
    path = tmp_path / "liar-00001-of-00003.gguf"
    path.write_bytes(tiny.gguf([*tiny.default_values(), *(tiny.number_value(*value) for value in values)]))
    with pytest.raises(BadModelFile, match=r"that cannot be|keep the parts in one folder|is missing beside"):
        store.import_file(path, "liar:1")
    with pytest.raises(BadModelFile, match=r"that cannot be|among 1 weights files"):
        in_order([read_header(path)])


def test_part_later_than_the_first_needs_no_architecture_but_others_do(tmp_path: Path, parts: list[Path]) -> None:
    assert read_header(parts[1]).architecture == ""
    for number, count in ((0, 3), (0, 0), (1, 0)):  # merged files say 0
        values = [("split.no", number), ("split.count", count), ("split.tensors.count", 1)]
        path = tmp_path / "nameless.gguf"
        path.write_bytes(tiny.gguf([tiny.number_value(*value) for value in values]))
        with pytest.raises(BadModelFile, match=r"general\.architecture is missing"):
            read_header(path)


def test_split_model_in_the_cache_of_llama_cpp_is_one_model(tmp_path: Path, store: ModelStore) -> None:
    cache = tmp_path / ".cache" / "llama.cpp"
    cache.mkdir(parents=True)
    files = split(a_model(tmp_path), cache, "big_model", 3)
    (found,) = neighbours(tmp_path)
    assert (found.name, found.size_bytes) == ("big-model:latest", sum(file.stat().st_size for file in files))
    assert len(store.import_file(found.path, found.name).more_paths) == 2
