"""The local models as the gateway uses them: the store in the cache folder, and the models loaded from it.

Knows no HTTP and nothing of how a model runs (engine does)."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any, Self

from engine import ChatModel, ModelPool, ModelStore, StoredModel
from engine.memory import available_bytes
from gateway.settings import Settings


class Models:
    """The gateway's model pool, and the model that requests without a name mean."""

    def __init__(self, settings: Settings) -> None:
        self.default = settings.model
        self.store = ModelStore(settings.models_dir)
        budget_bytes = settings.model_memory_mb << 20 if settings.model_memory_mb else available_bytes()
        self.pool = ModelPool(
            self.store,
            budget_bytes=budget_bytes,
            n_ctx=settings.context_tokens,
            n_gpu_layers=settings.gpu_layers,
            kept_s=settings.model_idle_s,
        )

    async def __aenter__(self) -> Self:
        await self.pool.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.pool.__aexit__(*exc)

    def stored(self) -> list[StoredModel]:
        return list(self.store.list())

    def use(self, ref: object, *, kept_s: float | None = None) -> AbstractAsyncContextManager[ChatModel]:
        """The model for one request; one without a name means the default. Raises: as `ModelPool.use`."""
        return self.pool.use(str(ref or self.default), kept_s=kept_s)

    async def chat(
        self, request: dict[str, Any], *, owner: str = "", kept_s: float | None = None
    ) -> AsyncGenerator[dict[str, Any]]:
        """Stream OpenAI chat.completion.chunk objects; closing the iterator cancels."""
        async with (
            self.use(request.get("model"), kept_s=kept_s) as model,
            aclosing(model.chat(request, owner=owner)) as s,
        ):
            async for chunk in s:
                yield chunk

    async def complete(
        self, request: dict[str, Any], *, owner: str = "", kept_s: float | None = None
    ) -> dict[str, Any]:
        """One OpenAI chat.completion object."""
        async with self.use(request.get("model"), kept_s=kept_s) as model:
            return await model.complete(request, owner=owner)

    async def continue_text(self, request: dict[str, Any], *, owner: str = "") -> AsyncGenerator[dict[str, Any]]:
        """Stream OpenAI text_completion chunks; closing the iterator cancels."""
        async with (
            self.use(request.get("model")) as model,
            aclosing(model.continue_text(request, owner=owner)) as found,
        ):
            async for chunk in found:
                yield chunk

    async def complete_text(
        self, request: dict[str, Any], *, owner: str = "", kept_s: float | None = None
    ) -> dict[str, Any]:
        """One OpenAI text_completion object."""
        async with self.use(request.get("model"), kept_s=kept_s) as model:
            return await model.complete_text(request, owner=owner)
