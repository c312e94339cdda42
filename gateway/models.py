"""The local models as the gateway uses them: the store in the cache folder, and the models loaded from it.

Knows no HTTP and nothing of how a model runs (engine does)."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any, Final, Self

from engine import ChatModel, EngineError, ModelOptions, ModelPool, StoredModel
from engine.memory import available_bytes
from gateway.modellist import listed_models, open_store
from gateway.settings import Settings

_log: Final = logging.getLogger(__name__)


class Models:
    """The gateway's model pool, and the model that requests without a name mean."""

    def __init__(self, settings: Settings) -> None:
        self.default = settings.model
        self._listed = listed_models(settings)
        self.store = open_store(settings)
        budget_bytes = settings.model_memory_mb << 20 if settings.model_memory_mb else available_bytes()
        self.pool = ModelPool(
            self.store,
            budget_bytes=budget_bytes,
            n_ctx=settings.context_tokens,
            n_gpu_layers=settings.gpu_layers,
            options={
                name: ModelOptions(one.context_tokens, one.gpu_layers, one.temperature, one.top_p)
                for name, one in self._listed.items()
            },
            kept_s=settings.model_idle_s,
        )

    async def __aenter__(self) -> Self:
        await self.pool.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.pool.__aexit__(*exc)

    async def preload(self) -> None:
        """Load the models that the catalogue names for it, and keep them; what fails costs that one."""
        for name in (name for name, one in self._listed.items() if one.preload):
            try:
                await self.pool.load(name, kept_s=-1)
            except EngineError as exc:
                _log.warning("the model %s is not loaded at the start: %s", name, exc)

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
