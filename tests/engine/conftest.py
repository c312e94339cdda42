"""Models for the engine's tests: the real ones, from the cache they share with the gateway or pulled into it.

Knows the cache folder's rule, which the engine itself must not."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from catalog import find_shipped_catalog, load_catalog
from engine import ChatModel, ModelStore, StoredModel
from gateway.modellist import known_model


def cache_folder() -> Path:
    """$LOCKGATE_CACHE_DIR, else lockgate under $XDG_CACHE_HOME or ~/.cache."""
    if named := os.environ.get("LOCKGATE_CACHE_DIR"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lockgate"


@pytest.fixture(scope="session")
def model_store() -> ModelStore:
    models = load_catalog(find_shipped_catalog()).models
    return ModelStore(cache_folder() / "models", {name: known_model(model) for name, model in models.items()})


@pytest.fixture(scope="session")
def smollm2(model_store: ModelStore) -> StoredModel:
    return model_store.pull("smollm2:135m", print)


@pytest.fixture(scope="session")
def qwen(model_store: ModelStore) -> StoredModel:
    return model_store.pull("qwen2.5-coder:0.5b", print)


@pytest.fixture(scope="session")
async def small_chat(smollm2: StoredModel) -> AsyncIterator[ChatModel]:
    """SmolLM2, for everything but judgement: fast, with a context that is easily filled."""
    async with ChatModel(smollm2, n_ctx=1024) as model:
        yield model


@pytest.fixture(scope="session")
async def starter_chat(qwen: StoredModel) -> AsyncIterator[ChatModel]:
    """The starter model, for tool calls."""
    async with ChatModel(qwen, n_ctx=4096) as model:
        yield model
