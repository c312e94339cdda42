"""Models that the catalogue names for it are loaded when the gateway starts, each in its own way."""

import math
from pathlib import Path

import pytest

from catalog import find_shipped_catalog, load_catalog
from catalog.writing import write_catalog
from engine import StoredModel
from gateway.models import Models
from gateway.settings import Settings
from tests.engine.conftest import cache_folder, model_store, smollm2  # noqa: F401  # fixtures

pytestmark = [pytest.mark.anyio, pytest.mark.model]


async def test_listed_models_are_loaded_at_the_start_with_their_own_context(
    smollm2: StoredModel,  # noqa: F811
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    shipped = load_catalog(find_shipped_catalog()).models
    wanted = shipped[smollm2.ref].model_copy(
        update={"preload": True, "context_tokens": 600, "temperature": 0.0, "gpu_layers": 99}
    )
    missing = shipped[smollm2.ref].model_copy(update={"preload": True, "name": "nobody:1"})
    catalog = tmp_path / "catalog.yaml"
    catalog.write_text(write_catalog((), models=[missing, wanted]))
    settings = Settings(state_dir=tmp_path, cache_dir=cache_folder(), catalog=catalog)
    async with Models(settings) as models:
        await models.preload()
        (loaded,) = models.pool.loaded()
        assert (loaded.ref, loaded.model.n_ctx, loaded.kept_s) == (smollm2.ref, 600, math.inf)
        assert loaded.model.worker_pid
        ask = {"model": smollm2.ref, "messages": [{"role": "user", "content": "Name a colour."}], "max_tokens": 8}
        answers = {str((await models.complete(ask))["choices"][0]["message"]["content"]) for _ in range(3)}
        assert len(answers) == 1, "the temperature of the catalogue holds where a request names none"
    assert "the model nobody:1 is not loaded at the start: the model nobody:1 is not in the store" in caplog.text
    assert f"{smollm2.path.name}: 99 layers are wanted on a GPU" in caplog.text
