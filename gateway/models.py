"""The local models as the gateway uses them: one store, one model loaded at a time, on first use.

Knows no HTTP and nothing of how a model runs (engine does)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any, Self

import anyio
from anyio import to_thread

from engine import ChatModel, ModelBusy, ModelStore, StoredModel
from gateway.settings import Settings


class _Loaded:
    """One loaded model and the task that owns it."""

    def __init__(self, ref: str, model: ChatModel) -> None:
        self.ref = ref
        self.model = model
        self.users = 0
        self._ready = asyncio.Event()
        self._stop = asyncio.Event()
        self._gone = asyncio.Event()

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


class Models:
    """Owns the loaded model. Switching to another stored model waits until nobody uses the first."""

    def __init__(self, settings: Settings) -> None:
        self.default = settings.model
        self.store = ModelStore(settings.cache_dir / "models")
        self._n_ctx = settings.context_tokens
        self._switching = asyncio.Lock()
        self._loaded: _Loaded | None = None
        self._tasks = anyio.create_task_group()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._tasks.cancel_scope.cancel()
        await self._tasks.__aexit__(None, None, None)

    def stored(self) -> list[StoredModel]:
        return list(self.store.list())

    @asynccontextmanager
    async def use(self, ref: str) -> AsyncIterator[ChatModel]:
        """The loaded model for one request; loads it first if need be.

        Raises:
            ModelNotFound: not in the store; says how to fetch it.
            ModelBusy: another model is in use.
        """
        loaded = await self._load(ref or self.default)
        loaded.users += 1
        try:
            yield loaded.model
        finally:
            loaded.users -= 1

    async def _load(self, ref: str) -> _Loaded:
        async with self._switching:
            current = self._loaded
            if current is not None and current.ref == ref:
                return current
            stored = await to_thread.run_sync(self.store.get, ref)
            if current is not None:
                if current.users:
                    raise ModelBusy(f"model {current.ref} is in use; try again when its requests are done")
                self._loaded = None
                await current.close()
            fresh = _Loaded(ref, ChatModel(stored, n_ctx=self._n_ctx))
            self._tasks.start_soon(fresh.own, name=f"model {ref}")
            await fresh.ready()
            self._loaded = fresh
            return fresh

    async def chat(self, request: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        """Stream OpenAI chat.completion.chunk objects; closing the iterator cancels."""
        async with self.use(str(request.get("model") or "")) as model, aclosing(model.chat(request)) as stream:
            async for chunk in stream:
                yield chunk

    async def complete(self, request: dict[str, Any]) -> dict[str, Any]:
        """One OpenAI chat.completion object."""
        async with self.use(str(request.get("model") or "")) as model:
            return await model.complete(request)
