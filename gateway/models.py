"""The local models as the gateway uses them: one store, one model loaded at a time, on first use.

Knows no HTTP and nothing of how a model runs (engine does)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Self

from anyio import to_thread

from engine import ChatModel, ModelBusy, ModelNotFound, ModelStore, StoredModel, known_models
from gateway.settings import Settings


class Models:
    """Owns the loaded model. Switching to another stored model waits until nobody uses the first."""

    def __init__(self, settings: Settings) -> None:
        self.default = settings.model
        self.store = ModelStore(settings.cache_dir / "models")
        self._n_ctx = settings.context_tokens
        self._loading = asyncio.Lock()
        self._loaded: ChatModel | None = None
        self._loaded_ref = ""
        self._users = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._unload()

    async def _unload(self) -> None:
        if self._loaded is not None:
            model, self._loaded, self._loaded_ref = self._loaded, None, ""
            await model.__aexit__(None, None, None)

    def stored(self) -> list[StoredModel]:
        return list(self.store.list())

    @asynccontextmanager
    async def use(self, ref: str) -> AsyncIterator[ChatModel]:
        """The loaded model for one request; loads it first if need be.

        Raises:
            ModelNotFound: not in the store; says how to fetch it.
            ModelBusy: another model is in use.
            EngineError: it cannot be loaded.
        """
        model = await self._load(ref or self.default)
        self._users += 1
        try:
            yield model
        finally:
            self._users -= 1

    async def _load(self, ref: str) -> ChatModel:
        async with self._loading:
            if self._loaded is not None and self._loaded_ref == ref:
                return self._loaded
            stored = await to_thread.run_sync(self.store.get, ref)
            if self._users:
                raise ModelBusy(f"model {self._loaded_ref} is in use; try again when its requests are done")
            await self._unload()
            model = ChatModel(stored, n_ctx=self._n_ctx)
            await model.__aenter__()
            self._loaded, self._loaded_ref = model, ref
            return model

    async def chat(self, request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Stream OpenAI chat.completion.chunk objects; closing the iterator cancels."""
        async with self.use(str(request.get("model") or "")) as model:
            stream = model.chat(request)
            try:
                async for chunk in stream:
                    yield chunk
            finally:
                await stream.aclose()  # type: ignore[attr-defined]  # an async generator

    async def complete(self, request: dict[str, Any]) -> dict[str, Any]:
        """One OpenAI chat.completion object."""
        async with self.use(str(request.get("model") or "")) as model:
            return await model.complete(request)


__all__ = ["ModelBusy", "ModelNotFound", "Models", "known_models"]
