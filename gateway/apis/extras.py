"""What the model APIs of other servers have beside the families: reranking, tokens, and figures for monitoring.

Knows their shapes; vectors and tokens are the engine's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from engine import LoadedModel
from gateway.apis.bodies import CallerOf, convert, guarded, read_object
from gateway.apis.openai import error
from gateway.models import Models

_Texts = Annotated[list[str], Meta(min_length=1, max_length=255)]


class RerankRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a rerank request, as llama.cpp's and others' servers take it."""

    query: str
    documents: _Texts
    model: str | None = None
    top_n: Annotated[int, Meta(ge=1)] | None = None
    return_documents: bool = False


class TokenizeRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a tokenize request."""

    content: str
    model: str | None = None
    parse_special: bool = True


class DetokenizeRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a detokenize request."""

    tokens: Annotated[list[int], Meta(max_length=1 << 20)]
    model: str | None = None


def routes(models: Models, caller_of: CallerOf) -> list[Route]:
    api = ExtrasApi(models, caller_of)
    found = [Route(path, guarded(api.rerank, error), methods=["POST"]) for path in ("/v1/rerank", "/rerank")]
    return [
        *found,
        Route("/tokenize", guarded(api.tokenize, error), methods=["POST"]),
        Route("/detokenize", guarded(api.detokenize, error), methods=["POST"]),
        Route("/v1/metrics", api.metrics),
    ]


class ExtrasApi:
    """The handlers, over the gateway's models."""

    def __init__(self, models: Models, caller_of: CallerOf) -> None:
        self._models = models
        self._caller_of = caller_of

    async def rerank(self, request: Request) -> Response:
        """By the likeness of vectors: the model reads query and documents, not the pair."""
        asked = convert(await read_object(request), RerankRequest)
        texts = [asked.query, *asked.documents]
        ref, found = await self._models.embed(asked.model, texts, by=self._caller_of(request))
        query, *documents = found.vectors
        scores = [sum(a * b for a, b in zip(query, document, strict=True)) for document in documents]
        order = sorted(range(len(scores)), key=lambda index: -scores[index])[: asked.top_n]
        results: list[dict[str, Any]] = [{"index": index, "relevance_score": scores[index]} for index in order]
        if asked.return_documents:
            results = [{**one, "document": {"text": asked.documents[one["index"]]}} for one in results]
        usage = {"prompt_tokens": found.n_tokens, "total_tokens": found.n_tokens}
        return JSONResponse({"object": "list", "model": ref, "results": results, "usage": usage})

    async def tokenize(self, request: Request) -> Response:
        asked = convert(await read_object(request), TokenizeRequest)
        async with self._models.use(asked.model, by=self._caller_of(request)) as model:
            return JSONResponse({"tokens": await model.tokenize(asked.content, has_special=asked.parse_special)})

    async def detokenize(self, request: Request) -> Response:
        asked = convert(await read_object(request), DetokenizeRequest)
        async with self._models.use(asked.model, by=self._caller_of(request)) as model:
            return JSONResponse({"content": await model.detokenize(asked.tokens)})

    async def metrics(self, request: Request) -> Response:
        """Figures of the loaded models in the text format that Prometheus reads."""
        loaded = self._models.loaded_for(self._caller_of(request))
        lines = []
        for name, kind, text, of in _FIGURES:
            lines += [f"# HELP lockgate_model_{name} {text}", f"# TYPE lockgate_model_{name} {kind}"]
            lines += [f'lockgate_model_{name}{{model="{one.ref}"}} {of(one):g}' for one in loaded]
        return PlainTextResponse("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")


_FIGURES: list[tuple[str, str, str, Callable[[LoadedModel], float]]] = [
    ("requests_total", "counter", "Requests since the model was loaded.", lambda one: one.model.statistics.n_requests),
    ("failed_total", "counter", "Requests that ended in an error.", lambda one: one.model.statistics.n_failed),
    ("waiting", "gauge", "Requests without a first token yet.", lambda one: one.model.statistics.n_waiting),
    ("writing", "gauge", "Requests whose answer is being written.", lambda one: one.model.statistics.n_writing),
    ("prompt_tokens_total", "counter", "Tokens of prompts.", lambda one: one.model.statistics.n_prompt),
    ("cached_tokens_total", "counter", "Of them found in the cache.", lambda one: one.model.statistics.n_cached),
    ("completion_tokens_total", "counter", "Tokens written.", lambda one: one.model.statistics.n_completion),
    ("embedded_tokens_total", "counter", "Tokens of embedded texts.", lambda one: one.model.statistics.n_embedded),
    ("tokens_per_second", "gauge", "Of one answer, on average.", lambda one: one.model.statistics.tokens_per_s),
    ("first_token_seconds_total", "counter", "Until the first token.", lambda one: one.model.statistics.first_token_s),
    ("memory_bytes", "gauge", "Estimate of the memory in use.", lambda one: one.needed_bytes),
    ("worker_up", "gauge", "Whether the worker process runs.", lambda one: one.model.worker_pid is not None),
]
