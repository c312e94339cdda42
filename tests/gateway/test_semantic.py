"""Finding entries by meaning: what is kept of a model's vectors, and what a real model finds."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from catalog import Catalog, find_shipped_catalog, load_catalog
from engine import EngineError, ModelNotFound, StoredModel
from gateway.cli import app
from gateway.errors import SettingsError
from gateway.semantic import FOLDER, Meanings, learn, stored_model
from gateway.settings import Settings
from gateway.vectorcache import MAX_KEPT, VectorCache
from tests.catalog.files import BOX, document, load
from tests.engine.conftest import cache_folder, model_store, smollm2  # noqa: F401  # fixtures

pytestmark = pytest.mark.anyio
WEATHER = BOX.replace("Keeps things in a box.", "Tells the weather of the coming days.")
MUSIC = BOX.replace("Keeps things in a box.", "Plays songs.")
MODEL = "smollm2:135m"
WIDTH = 8


class Embedding:
    """Vectors that depend on the text alone, and a count of the texts: what is kept does not depend on their worth."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    async def __call__(self, texts: list[str]) -> Sequence[Sequence[float]]:
        self.texts += texts
        return [[float(ord(text[-1 - place])) for place in range(WIDTH)] for text in texts]


@pytest.fixture
def box(tmp_path: Path) -> Catalog:
    return load(tmp_path, document({"box": BOX, "weather": WEATHER}))


@pytest.fixture
def cached(tmp_path: Path) -> Settings:
    return Settings(state_dir=tmp_path / "state", cache_dir=tmp_path / "cache")


def model_of(digest: str) -> StoredModel:
    return StoredModel("m:1", Path("m"), f"sha256:{digest}", "sha256:0", 1, "llama", "", "", 512, None, None)


def silent(done: int, total: int) -> None:
    """Nobody watches."""


async def texts_asked(settings: Settings, catalog: Catalog, digest: str = "a") -> int:
    """How many texts the model was asked about."""
    embed = Embedding()
    await learn(settings, catalog, model_of(digest), embed, silent)
    return len(embed.texts)


async def test_vectors_are_made_once(cached: Settings, box: Catalog) -> None:
    assert await texts_asked(cached, box) == 2
    assert await texts_asked(cached, box) == 0


async def test_kept_vectors_rank_as_the_new_ones_did(cached: Settings, box: Catalog) -> None:
    embed = Embedding()
    for _ in range(2):
        meanings = await learn(cached, box, model_of("a"), embed, silent)
        (question,) = await embed(["Box. Tells the weather of the coming days."])
        assert [entry.id for entry in meanings.rank(question)] == ["weather", "box"]


async def test_another_model_and_another_catalog_need_new_vectors(
    cached: Settings, box: Catalog, tmp_path: Path
) -> None:
    assert await texts_asked(cached, box, "a") == 2
    assert await texts_asked(cached, box, "b") == 2
    changed = load(tmp_path, document({"box": BOX.replace("Keeps", "Hides"), "weather": WEATHER}))
    assert await texts_asked(cached, changed, "a") == 2
    for catalog, digest in ((box, "a"), (box, "b"), (changed, "a")):
        assert await texts_asked(cached, catalog, digest) == 0


@pytest.mark.parametrize("damage", ["cut", "empty", "changed", "another form"])
async def test_damaged_file_is_made_anew(cached: Settings, box: Catalog, damage: str) -> None:
    assert await texts_asked(cached, box) == 2
    (file,) = (cached.cache_dir / FOLDER).iterdir()
    content = file.read_bytes()
    assert file.stat().st_size > WIDTH * 2 * 4
    changed = {
        "cut": content[:-1],
        "empty": b"",
        "changed": content[:-1] + bytes([content[-1] ^ 1]),
        "another form": b"{}",
    }
    file.write_bytes(changed[damage])
    assert await texts_asked(cached, box) == 2
    assert file.read_bytes() == content
    assert await texts_asked(cached, box) == 0


def test_matrix_of_another_size_or_kind_is_not_taken(tmp_path: Path) -> None:
    cache = VectorCache(tmp_path)
    cache.save("key", np.ones((3, WIDTH), dtype=np.float32))
    assert cache.load("key", 3) is not None
    assert cache.load("key", 2) is None
    cache.save("key", np.ones((3, WIDTH)))  # type: ignore[arg-type]  # what another version might have written
    assert cache.load("key", 3) is None


def test_only_the_latest_matrices_are_kept(tmp_path: Path) -> None:
    cache = VectorCache(tmp_path / "vectors")
    for number in range(MAX_KEPT + 3):
        cache.save(str(number), np.ones((1, WIDTH), dtype=np.float32))
    assert len(list((tmp_path / "vectors").iterdir())) == MAX_KEPT


async def test_cache_that_cannot_be_written_is_no_error(cached: Settings, box: Catalog) -> None:
    cached.cache_dir.write_text("")
    assert await texts_asked(cached, box) == 2


def test_entries_with_equal_vectors_keep_their_order_and_another_model_is_noticed(box: Catalog) -> None:
    entries = list(box.entries.values())
    meanings = Meanings(entries, np.ones((2, WIDTH), dtype=np.float32))
    assert meanings.rank([1.0] * WIDTH) == entries
    with pytest.raises(EngineError, match="another model of this name"):
        meanings.rank([1.0] * (WIDTH + 1))


def test_model_that_is_not_stored_is_named_with_what_to_do(cached: Settings) -> None:
    for ref, pull in (("smollm2:135m", "smollm2:135m"), ("nobody", "qwen2.5-coder"), ("http://127.0.0.1:9#m", "qwen")):
        with pytest.raises(ModelNotFound, match=f"lockgate model pull {pull}"):
            stored_model(cached, ref)


def command(environ: dict[str, str], *words: str) -> str:
    done = CliRunner(env=environ).invoke(app, ["catalog", "search", *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_model_without_semantic_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="add --semantic"):
        command({"XDG_CACHE_HOME": str(tmp_path)}, "time", "--model", "smollm2:135m")


def test_id_is_found_without_a_model_and_a_question_is_not(cached: Settings) -> None:
    environ = {"LOCKGATE_CACHE_DIR": str(cached.cache_dir), "LOCKGATE_STATE_DIR": str(cached.state_dir)}
    found = json.loads(command(environ, "time", "--semantic", "--json"))
    assert [entry["id"] for entry in found] == [
        entry.id for entry in load_catalog(find_shipped_catalog()).search("time")[:15]
    ]
    with pytest.raises(ModelNotFound, match="lockgate model pull"):
        command(environ, "time", "zones", "--semantic")


@pytest.mark.model
@pytest.mark.usefixtures("smollm2")
def test_real_model_finds_what_no_word_does(cached: Settings, tmp_path: Path) -> None:
    """The worker is started by the command itself: no gateway runs on this state folder."""
    cached.cache_dir.mkdir()
    (cached.cache_dir / "models").symlink_to(cache_folder() / "models")
    (tmp_path / "c.yaml").write_text(document({"box": BOX, "music": MUSIC, "weather": WEATHER}))
    environ = {
        "LOCKGATE_CACHE_DIR": str(cached.cache_dir),
        "LOCKGATE_STATE_DIR": str(cached.state_dir),
        "LOCKGATE_CATALOG": str(tmp_path / "c.yaml"),
    }
    question = ("will", "it", "rain", "tomorrow", "--json")
    semantic = (*question, "--semantic", "--model", MODEL)
    assert json.loads(command(environ, *question)) == []
    first = command(environ, *semantic)
    assert json.loads(first)[0]["id"] == "weather"
    assert {entry["id"] for entry in json.loads(first)} == {"box", "music", "weather"}
    (file,) = (cached.cache_dir / FOLDER).iterdir()
    made = file.stat().st_mtime_ns
    assert command(environ, *semantic) == first
    assert file.stat().st_mtime_ns == made
