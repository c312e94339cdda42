"""The local models as the gateway uses them: the store in the cache folder, and the models loaded from it.

Knows no HTTP and nothing of how a model runs (engine does)."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Any, Final, Self

import msgspec

from engine import ChatModel, EngineError, ModelOptions, ModelPool, Spent, StoredModel
from engine.chat import Vectors
from engine.memory import available_bytes
from gateway.modellist import listed_models, open_store
from gateway.settings import Settings
from gateway.tokenquotas import TokenQuotas
from policies import Principal

Chat = Callable[[dict[str, Any]], AsyncGenerator[dict[str, Any]]]
GATEWAY: Final = Principal("gateway")
"""Whose requests are those that nobody made."""
_log: Final = logging.getLogger(__name__)


class Models:
    """The gateway's model pool, and the model that requests without a name mean."""

    def __init__(self, settings: Settings) -> None:
        self.quotas: TokenQuotas | None = None
        """Where there are any; every request that makes a model work is counted here."""
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
        self, request: dict[str, Any], *, who: Principal = GATEWAY, kept_s: float | None = None
    ) -> AsyncGenerator[dict[str, Any]]:
        """Stream OpenAI chat.completion.chunk objects; closing the iterator cancels.

        Raises, as all that make a model work:
            LimitReached: a quota of tokens has no room for the request.
        """
        async with (
            self.use(request.get("model"), kept_s=kept_s) as model,
            self._spending(who, model, lambda: model.most_of_chat(request)) as spent,
            aclosing(model.chat(request, owner=who.id, spent=spent)) as chunks,
        ):
            async for chunk in chunks:
                yield chunk

    async def complete(
        self, request: dict[str, Any], *, who: Principal = GATEWAY, kept_s: float | None = None
    ) -> dict[str, Any]:
        """One OpenAI chat.completion object."""
        async with (
            self.use(request.get("model"), kept_s=kept_s) as model,
            self._spending(who, model, lambda: model.most_of_chat(request)) as spent,
        ):
            return await model.complete(request, owner=who.id, spent=spent)

    async def continue_text(
        self, request: dict[str, Any], *, who: Principal = GATEWAY
    ) -> AsyncGenerator[dict[str, Any]]:
        """Stream OpenAI text_completion chunks; closing the iterator cancels."""
        async with (
            self.use(request.get("model")) as model,
            self._spending(who, model, lambda: model.most_of_text(request)) as spent,
            aclosing(model.continue_text(request, owner=who.id, spent=spent)) as found,
        ):
            async for chunk in found:
                yield chunk

    async def complete_text(
        self, request: dict[str, Any], *, who: Principal = GATEWAY, kept_s: float | None = None
    ) -> dict[str, Any]:
        """One OpenAI text_completion object."""
        async with (
            self.use(request.get("model"), kept_s=kept_s) as model,
            self._spending(who, model, lambda: model.most_of_text(request)) as spent,
        ):
            return await model.complete_text(request, owner=who.id, spent=spent)

    async def embed(
        self, ref: object, texts: Sequence[str], *, who: Principal = GATEWAY, kept_s: float | None = None
    ) -> tuple[str, Vectors]:
        """The model's name and one vector for each text."""
        async with (
            self.use(ref, kept_s=kept_s) as model,
            self._spending(who, model, lambda: model.most_of_embedding(texts)) as spent,
        ):
            found = await model.embed(texts)
            spent.n_prompt = found.n_tokens
            return model.model.ref, found

    async def elsewhere(
        self, ref: str, request: dict[str, Any], chat: Chat, *, who: Principal
    ) -> AsyncGenerator[dict[str, Any]]:
        """The chunks of a model that another server runs, counted as those of the models here.

        How its prompt splits into tokens is not known here; it has no more of them than bytes.
        """
        if self.quotas is None:
            async with aclosing(chat(request)) as chunks:
                async for chunk in chunks:
                    yield chunk
            return

        async def most() -> int:
            return len(msgspec.json.encode(request)) + int(request["max_tokens"])

        async with self.quotas.spending(who, ref, most) as spent, aclosing(chat(request)) as chunks:
            spent.n_prompt = await most()  # all of it, unless it says what it used
            async for chunk in chunks:
                if usage := chunk.get("usage"):
                    spent.n_prompt, spent.n_completion = usage["prompt_tokens"], usage["completion_tokens"]
                yield chunk

    @asynccontextmanager
    async def _spending(
        self, who: Principal, model: ChatModel, most: Callable[[], Awaitable[int]]
    ) -> AsyncIterator[Spent]:
        """One request that makes a model work, from before it begins to after its end."""
        if self.quotas is None:
            yield Spent()
            return
        async with self.quotas.spending(who, model.model.ref, most) as spent:
            yield spent
