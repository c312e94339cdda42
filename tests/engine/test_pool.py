"""Several models loaded at once, within a budget of memory."""

import math
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import anyio
import pytest

from engine import ChatModel, ModelBusy, ModelNotFound, ModelPool, ModelStore, NoMemory, StoredModel
from engine.memory import available_bytes, cache_bytes
from tests.engine.test_chat import ask, text_of

pytestmark = [pytest.mark.anyio, pytest.mark.model]
N_CTX = 256
DEADLINE_S = 120


@pytest.fixture
def store(smollm2: StoredModel, tmp_path: Path) -> ModelStore:
    """The same weights under three names."""
    store = ModelStore(tmp_path / "models")
    for name in ("one:1", "two:1", "three:1"):
        store.import_file(smollm2.path, name)
    return store


@asynccontextmanager
async def pool_of(store: ModelStore, *, models: int, kept_s: float = 600.0) -> AsyncIterator[ModelPool]:
    """Room for so many of the models."""
    each = ChatModel(store.get("one:1"), n_ctx=N_CTX).needed_bytes
    budget_bytes = int(each * (models + 0.5))
    async with ModelPool(store, budget_bytes=budget_bytes, n_ctx=N_CTX, kept_s=kept_s, look_s=0.05) as pool:
        yield pool


def names(pool: ModelPool) -> set[str]:
    return {one.ref for one in pool.loaded()}


async def test_models_work_side_by_side_and_the_one_unused_for_longest_goes(store: ModelStore) -> None:
    async with pool_of(store, models=2) as pool:
        answers = []

        async def answer(ref: str) -> None:
            async with pool.use(ref) as model:
                answers.append(text_of(await model.complete(ask("Hi", max_tokens=4))))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(answer, "one:1")
            tasks.start_soon(answer, "two:1")
        assert len(answers) == 2
        assert names(pool) == {"one:1", "two:1"}
        pids = {one.ref: one.model.worker_pid for one in pool.loaded()}
        assert len(set(pids.values())) == 2
        await answer("one:1")
        await answer("three:1")
        assert names(pool) == {"one:1", "three:1"}
        assert not Path(f"/proc/{pids['two:1']}").exists()
        assert next(one for one in pool.loaded() if one.ref == "one:1").model.worker_pid == pids["one:1"]


async def test_model_in_use_is_not_evicted(store: ModelStore) -> None:
    async with (
        pool_of(store, models=1) as pool,
        pool.use("one:1") as model,
        aclosing(model.chat(ask("Write a story.", max_tokens=64))) as stream,
    ):
        await anext(stream)
        with pytest.raises(ModelBusy, match="no memory for two:1 while one:1 is in use"):
            await pool.load("two:1")
        assert [chunk async for chunk in stream]


async def test_model_larger_than_the_budget_is_refused_with_figures(store: ModelStore) -> None:
    async with ModelPool(store, budget_bytes=50 << 20, n_ctx=N_CTX) as pool:
        with pytest.raises(NoMemory, match=r"one:1 needs about \d+ MB with a context of 256 tokens; models may use 52"):
            await pool.load("one:1")
        assert not pool.loaded()


async def test_model_goes_when_nobody_used_it_for_long_and_comes_back(store: ModelStore) -> None:
    async with pool_of(store, models=1, kept_s=0.2) as pool:
        model = await pool.load("one:1")
        pid = model.worker_pid
        with anyio.fail_after(DEADLINE_S):
            while pool.loaded() or Path(f"/proc/{pid}").exists():
                await anyio.sleep(0.05)
        async with pool.use("one:1") as model:
            assert text_of(await model.complete(ask("Hi", max_tokens=2)))


async def test_how_long_a_model_stays_can_be_said_with_a_request(store: ModelStore) -> None:
    async with pool_of(store, models=2) as pool:
        await pool.load("one:1", kept_s=-1)
        assert pool.loaded()[0].kept_s == math.inf
        await pool.load("two:1", kept_s=0)
        with anyio.fail_after(DEADLINE_S):
            while "two:1" in names(pool):
                await anyio.sleep(0.05)
        assert names(pool) == {"one:1"}


async def test_unloading_ends_the_worker(store: ModelStore) -> None:
    async with pool_of(store, models=1) as pool:
        model = await pool.load("one:1")
        pid = model.worker_pid
        await pool.unload("one:1")
        assert not Path(f"/proc/{pid}").exists()
        with pytest.raises(ModelNotFound, match="is not loaded"):
            await pool.unload("one:1")


def test_estimate_grows_with_the_context_and_follows_the_file(smollm2: StoredModel) -> None:
    # 30 layers, 3 heads of 64 numbers for keys and for values, two bytes each
    assert cache_bytes(smollm2.metadata, 1_000) == 30 * 3 * (64 + 64) * 2 * 1_000
    assert cache_bytes({}, 1) > cache_bytes(smollm2.metadata, 1)
    assert ChatModel(smollm2, n_ctx=4096).needed_bytes > ChatModel(smollm2, n_ctx=1024).needed_bytes
    assert available_bytes() > 0
