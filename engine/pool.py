"""The loaded models: as many at once as the memory for them allows, loaded by their first use, gone after a pause.

Knows no HTTP and reads no environment; how much memory there is, it is told. One task owns each loaded model."""

import math
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Self

import anyio
import anyio.abc
from anyio import to_thread

from engine.chat import DEFAULT_N_CTX, ChatModel
from engine.errors import ModelBusy, ModelNotFound, NoMemory
from engine.store import ModelStore, full_ref

KEPT_S: Final = 300.0  # a model stays loaded after its last request
LOOK_S: Final = 5.0  # between looks for models that nobody has used for long


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """How one model is run, where that is another way than all the others."""

    n_ctx: int | None = None
    n_gpu_layers: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    """These two are for requests that name none."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """What is known of a model that is loaded."""

    ref: str
    model: ChatModel
    needed_bytes: int
    n_users: int
    idle_s: float
    kept_s: float
    """How long it stays after its last request; infinity is until it is unloaded."""


class _Loaded:
    """One loaded model and the task that owns it."""

    def __init__(self, ref: str, model: ChatModel, kept_s: float) -> None:
        self.ref = ref
        self.model = model
        self.needed_bytes = model.needed_bytes
        self.kept_s = kept_s
        self.n_users = 0
        self.last_used = time.monotonic()
        self._ready = anyio.Event()
        self._stop = anyio.Event()
        self._gone = anyio.Event()

    async def own(self) -> None:
        """Enter and leave the model in this one task, as its task group wants."""
        try:
            async with self.model:
                self._ready.set()
                await self._stop.wait()
        finally:
            self._gone.set()

    async def ready(self) -> None:
        await self._ready.wait()

    async def close(self) -> None:
        self._stop.set()
        await self._gone.wait()

    def touch(self) -> None:
        self.last_used = time.monotonic()

    @property
    def is_overdue(self) -> bool:
        return not self.n_users and time.monotonic() - self.last_used >= self.kept_s


class ModelPool:
    """Loads models of one store. To make room the one that was used longest ago goes, if nobody uses it."""

    def __init__(
        self,
        store: ModelStore,
        *,
        budget_bytes: int,
        n_ctx: int = DEFAULT_N_CTX,
        n_gpu_layers: int = -1,
        options: Mapping[str, ModelOptions] | None = None,
        kept_s: float = KEPT_S,
        look_s: float = LOOK_S,
    ) -> None:
        self.store = store
        self.budget_bytes = budget_bytes
        self._n_ctx = n_ctx
        self._n_gpu_layers = n_gpu_layers
        self._options = options or {}
        self._kept_s = kept_s
        self._look_s = look_s
        self._changing = anyio.Lock()
        self._loaded: dict[str, _Loaded] = {}  # changed under `_changing` only
        self._tasks = anyio.create_task_group()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._watch)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._tasks.cancel_scope.cancel()
        await self._tasks.__aexit__(None, None, None)

    def loaded(self) -> Sequence[LoadedModel]:
        """All loaded models, the one used last first."""
        now = time.monotonic()
        found = sorted(self._loaded.values(), key=lambda one: -one.last_used)
        return [
            LoadedModel(one.ref, one.model, one.needed_bytes, one.n_users, now - one.last_used, one.kept_s)
            for one in found
        ]

    @asynccontextmanager
    async def use(self, ref: str, *, kept_s: float | None = None) -> AsyncIterator[ChatModel]:
        """The loaded model for one request; loads it first if need be. `kept_s` replaces how long it stays.

        Raises: ModelNotFound, BadModelFile, NoMemory, or ModelBusy while others fill the memory.
        """
        loaded = await self._get(full_ref(ref), kept_s)
        try:
            yield loaded.model
        finally:
            loaded.n_users -= 1
            loaded.touch()
            if loaded.is_overdue:
                self._tasks.start_soon(self._sweep)

    async def load(self, ref: str, *, kept_s: float | None = None) -> ChatModel:
        """Have the model loaded now. Raises: as `use`, or WorkerFailed."""
        async with self.use(ref, kept_s=kept_s) as model:
            await model.load()
            return model

    async def unload(self, ref: str) -> None:
        """End the model's worker; its requests fail. Raises: ModelNotFound if it is not loaded."""
        wanted = full_ref(ref)
        async with self._changing:
            loaded = self._loaded.pop(wanted, None)
            if loaded is None:
                raise ModelNotFound(f"the model {wanted} is not loaded")
            await loaded.close()

    async def _get(self, ref: str, kept_s: float | None) -> _Loaded:
        async with self._changing:
            loaded = self._loaded.get(ref)
            if loaded is None:
                stored = await to_thread.run_sync(self.store.get, ref)
                own = self._options.get(ref, ModelOptions())
                model = ChatModel(
                    stored,
                    n_ctx=own.n_ctx or self._n_ctx,
                    n_gpu_layers=self._n_gpu_layers if own.n_gpu_layers is None else own.n_gpu_layers,
                    defaults={"temperature": own.temperature, "top_p": own.top_p},
                )
                loaded = _Loaded(ref, model, self._kept_s)
                await self._make_room(loaded)
                self._tasks.start_soon(loaded.own, name=f"model {ref}")
                await loaded.ready()
                self._loaded[ref] = loaded
            if kept_s is not None:
                loaded.kept_s = kept_s if kept_s >= 0 else math.inf
            loaded.n_users += 1
            return loaded

    async def _make_room(self, wanted: _Loaded) -> None:
        if wanted.needed_bytes > self.budget_bytes:
            raise NoMemory(
                f"{wanted.ref} needs about {wanted.needed_bytes / 1e6:.0f} MB with a context of {wanted.model.n_ctx} "
                f"tokens; models may use {self.budget_bytes / 1e6:.0f} MB: take a smaller model or context"
            )
        left = self.budget_bytes - sum(one.needed_bytes for one in self._loaded.values())
        idle = sorted((one for one in self._loaded.values() if not one.n_users), key=lambda one: one.last_used)
        if left + sum(one.needed_bytes for one in idle) < wanted.needed_bytes:
            names = ", ".join(sorted(one.ref for one in self._loaded.values() if one.n_users))
            raise ModelBusy(f"there is no memory for {wanted.ref} while {names} is in use; try again later")
        for one in idle:
            if left >= wanted.needed_bytes:
                break
            del self._loaded[one.ref]
            await one.close()
            left += one.needed_bytes

    async def _watch(self) -> None:
        while True:
            await anyio.sleep(self._look_s)
            await self._sweep()

    async def _sweep(self) -> None:
        """Unload what nobody has used for long."""
        async with self._changing:
            for ref, one in list(self._loaded.items()):
                if one.is_overdue:
                    del self._loaded[ref]
                    await one.close()
