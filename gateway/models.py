"""The local models as the gateway uses them: the store in the cache folder, and the models loaded from it.

Knows no HTTP and nothing of how a model runs (engine does)."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any, Final, Self

import msgspec
from anyio import to_thread

from engine import ChatModel, EngineError, LoadedModel, ModelNotFound, ModelOptions, ModelPool, Spent, StoredModel
from engine.chat import Vectors
from engine.memory import available_bytes
from engine.store import full_ref
from gateway.caller import Caller
from gateway.chatstream import is_elsewhere
from gateway.modellist import listed_models, open_store
from gateway.modeluse import ModelDenied, ModelUses, Usage
from gateway.settings import Settings
from gateway.tokenquotas import TokenQuotas
from policies import Principal

Chat = Callable[[dict[str, Any]], AsyncGenerator[dict[str, Any]]]
GATEWAY: Final = Principal("gateway")
"""Whose requests are those that nobody made."""
_log: Final = logging.getLogger(__name__)


class TooManyTokens(EngineError):
    """A request does not fit what it may use."""


class Models:
    """The gateway's model pool, and the model that requests without a name mean.

    With `uses` each request says who makes it, and is decided and recorded; without, these are a command's own.
    """

    def __init__(self, settings: Settings, uses: ModelUses | None = None) -> None:
        self.uses = uses
        self.quotas: TokenQuotas | None = None
        """Where there are any; every request that makes a model work is counted here."""
        self.default = settings.model
        self._listed = listed_models(settings)
        self.store = open_store(settings, self._listed)
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

    async def stored_for(self, by: Caller) -> list[StoredModel]:
        """The models in the store that the caller may use."""
        stored = await to_thread.run_sync(self.stored)
        return self.uses.allows(by, stored) if self.uses is not None else stored

    def loaded_for(self, by: Caller) -> list[LoadedModel]:
        """The models in memory that the caller may use."""
        loaded = list(self.pool.loaded())
        if self.uses is None:
            return loaded
        names = {model.ref for model in self.uses.allows(by, [one.model.model for one in loaded])}
        return [one for one in loaded if one.ref in names]

    async def get(self, ref: str, by: Caller) -> StoredModel:
        """Raises: as `ModelStore.get`; a model that the caller may not use is not found."""
        found = await to_thread.run_sync(self.store.get, ref)
        if self.uses is not None and not self.uses.allows(by, [found]):
            raise ModelNotFound(f"the model {found.ref} is not in the store")
        return found

    @asynccontextmanager
    async def use(self, ref: object, *, by: Caller | None = None) -> AsyncIterator[ChatModel]:
        """The model for one request that makes it no work; one without a name means the default. Raises: as `using`."""
        async with self.using(ref, by), self.pool.use(str(ref or self.default)) as model:
            yield model

    @asynccontextmanager
    async def using(self, ref: object, by: Caller | None) -> AsyncIterator[Usage]:
        """Every request of a model passes here.

        Raises:
            ModelDenied, UseUnrecorded: as `ModelUses.use`.
            ModelNotFound: there is no such name.
        """
        if self.uses is None:
            yield Usage()
            return
        name = str(ref or self.default)
        known = None if is_elsewhere(name) else await self._known(name := full_ref(name))
        if by is None:
            raise ModelDenied(f"nobody says who uses the model {name}")
        async with self.uses.use(by, name, known) as usage:
            yield usage

    async def _known(self, name: str) -> StoredModel | None:
        for one in self.pool.loaded():
            if one.ref == name:
                return one.model.model
        with suppress(EngineError):  # what is wrong with it is told to whoever may use it
            return await to_thread.run_sync(self.store.get, name)
        return None

    @asynccontextmanager
    async def _working(
        self, ref: object, by: Caller | None, kept_s: float | None, most: Callable[[ChatModel], Awaitable[int]]
    ) -> AsyncIterator[tuple[ChatModel, Spent]]:
        """The model for one request that makes it work, decided, recorded and counted from before it begins to after
        its end."""
        async with (
            self.using(ref, by) as usage,
            self.pool.use(str(ref or self.default), kept_s=kept_s) as model,
            self._spending(by, model.model.ref, lambda: most(model)) as spent,
        ):
            usage.spent = spent
            yield model, spent

    @asynccontextmanager
    async def _spending(self, by: Caller | None, ref: str, most: Callable[[], Awaitable[int]]) -> AsyncIterator[Spent]:
        if self.quotas is None:
            yield Spent()
            return
        async with self.quotas.spending(_who(by), ref, most) as spent:
            yield spent

    async def load(self, ref: str, *, by: Caller, kept_s: float | None = None) -> None:
        """Have the model loaded now; with `kept_s` of 0, have it unloaded. Raises: as `using` and `ModelPool.load`."""
        async with self.using(ref, by):
            if kept_s != 0:
                await self.pool.load(ref, kept_s=kept_s)
            elif ref in {one.ref for one in self.pool.loaded()}:
                await self.pool.unload(ref)

    async def chat(
        self, request: dict[str, Any], *, by: Caller | None = None, kept_s: float | None = None
    ) -> AsyncGenerator[dict[str, Any]]:
        """Stream OpenAI chat.completion.chunk objects; closing the iterator cancels.

        Raises, as all that make a model work:
            ModelDenied, UseUnrecorded: as `using`.
            LimitReached: a quota of tokens has no room for the request.
        """
        async with (
            self._working(request.get("model"), by, kept_s, lambda one: one.most_of_chat(request)) as (model, spent),
            aclosing(model.chat(request, owner=_who(by).id, spent=spent)) as chunks,
        ):
            async for chunk in chunks:
                yield chunk

    async def complete(
        self, request: dict[str, Any], *, by: Caller | None = None, kept_s: float | None = None
    ) -> dict[str, Any]:
        """One OpenAI chat.completion object."""
        working = self._working(request.get("model"), by, kept_s, lambda one: one.most_of_chat(request))
        async with working as (model, spent):
            return await model.complete(request, owner=_who(by).id, spent=spent)

    async def complete_within(self, request: dict[str, Any], tokens: int, *, by: Caller) -> dict[str, Any]:
        """The same in no more than so many tokens, those of the prompt with them.

        Raises:
            TooManyTokens: the prompt leaves none for an answer.
        """
        working = self._working(request.get("model"), by, None, lambda one: one.most_of_chat(request))
        async with working as (model, spent):
            left = tokens - await model.most_of_chat({**request, "max_tokens": 1}) + 1
            if left < 1:
                raise TooManyTokens(f"the prompt leaves none of {tokens} tokens for an answer")
            most = min(left, request["max_tokens"])
            return await model.complete({**request, "max_tokens": most}, owner=by.principal.id, spent=spent)

    async def continue_text(
        self, request: dict[str, Any], *, by: Caller | None = None
    ) -> AsyncGenerator[dict[str, Any]]:
        """Stream OpenAI text_completion chunks; closing the iterator cancels."""
        async with (
            self._working(request.get("model"), by, None, lambda one: one.most_of_text(request)) as (model, spent),
            aclosing(model.continue_text(request, owner=_who(by).id, spent=spent)) as found,
        ):
            async for chunk in found:
                yield chunk

    async def complete_text(self, request: dict[str, Any], *, by: Caller | None = None) -> dict[str, Any]:
        """One OpenAI text_completion object."""
        working = self._working(request.get("model"), by, None, lambda one: one.most_of_text(request))
        async with working as (model, spent):
            return await model.complete_text(request, owner=_who(by).id, spent=spent)

    async def embed(
        self, ref: object, texts: Sequence[str], *, by: Caller | None = None, kept_s: float | None = None
    ) -> tuple[str, Vectors]:
        """The model's name and one vector for each text."""
        async with self._working(ref, by, kept_s, lambda one: one.most_of_embedding(texts)) as (model, spent):
            found = await model.embed(texts)
            spent.n_prompt = found.n_tokens
            return model.model.ref, found

    async def elsewhere(
        self, ref: str, request: dict[str, Any], chat: Chat, *, by: Caller
    ) -> AsyncGenerator[dict[str, Any]]:
        """The chunks of a model that another server runs, decided, recorded and counted as those of the models here.

        How its prompt splits into tokens is not known here; it has no more of them than bytes.
        """

        async def most() -> int:
            return len(msgspec.json.encode(request)) + int(request["max_tokens"])

        async with (
            self.using(ref, by) as usage,
            self._spending(by, ref, most) as spent,
            aclosing(chat(request)) as chunks,
        ):
            usage.spent = spent
            if self.quotas is not None:
                spent.n_prompt = await most()  # all of it, unless it says what it used
            async for chunk in chunks:
                if told := chunk.get("usage"):
                    spent.n_prompt, spent.n_completion = told["prompt_tokens"], told["completion_tokens"]
                yield chunk


def _who(by: Caller | None) -> Principal:
    """Whose tokens are counted; what is cached for one is not used for another."""
    return by.principal if by is not None else GATEWAY
