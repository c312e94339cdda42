"""The OpenAI-compatible API: models, chat completions, completions and embeddings.

Knows HTTP and the error shape; prompts, sampling and tool grammars are the engine's."""

from __future__ import annotations

import base64
from array import array
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from engine import EngineError
from gateway.apis import responses
from gateway.apis.bodies import CallerOf, Refused, convert, event, guarded, read_object, status_of, streamed
from gateway.models import Models

PREFIXES: Final = ("/v1", "/engines/v1", "/engines/llama.cpp/v1")
"""The API answers at each: the latter two are where Docker Model Runner's clients look."""


class EmbeddingRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of an embeddings request. Only vectors of the model's own length are given."""

    input: str | Annotated[list[str], Meta(min_length=1, max_length=256)]
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    user: str | None = None


def routes(models: Models, caller_of: CallerOf) -> list[Route]:
    api = OpenAiApi(models, caller_of)
    answer = responses.ResponsesApi(models, caller_of)
    found = []
    for prefix in PREFIXES:
        found += [
            Route(f"{prefix}/models", guarded(api.list_models, error)),
            Route(f"{prefix}/models/{{ref:path}}", guarded(api.show_model, error)),
            Route(f"{prefix}/chat/completions", guarded(api.chat_completions, error), methods=["POST"]),
            Route(f"{prefix}/completions", guarded(api.completions, error), methods=["POST"]),
            Route(f"{prefix}/embeddings", guarded(api.embeddings, error), methods=["POST"]),
            Route(f"{prefix}/responses", guarded(answer.create, error), methods=["POST"]),
        ]
    return found


def error(status: int, message: str, kind: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "code": status, "param": None}}


class OpenAiApi:
    """The handlers, over the gateway's models."""

    def __init__(self, models: Models, caller_of: CallerOf) -> None:
        self._models = models
        self._caller_of = caller_of

    async def list_models(self, request: Request) -> Response:
        stored = await self._models.stored_for(self._caller_of(request))
        return JSONResponse({"object": "list", "data": [_model(model.ref) for model in stored]})

    async def show_model(self, request: Request) -> Response:
        stored = await self._models.get(request.path_params["ref"], self._caller_of(request))
        return JSONResponse(_model(stored.ref))

    async def chat_completions(self, request: Request) -> Response:
        asked = await read_object(request)
        by = self._caller_of(request)
        if not asked.get("stream"):
            return JSONResponse(await self._models.complete(asked, by=by))
        return await streamed(_events(self._models.chat(asked, by=by)), "text/event-stream", _failed)

    async def completions(self, request: Request) -> Response:
        asked = await read_object(request)
        by = self._caller_of(request)
        if not asked.get("stream"):
            return JSONResponse(await self._models.complete_text(asked, by=by))
        return await streamed(_events(self._models.continue_text(asked, by=by)), "text/event-stream", _failed)

    async def embeddings(self, request: Request) -> Response:
        asked = convert(await read_object(request), EmbeddingRequest)
        texts = [asked.input] if isinstance(asked.input, str) else asked.input
        ref, found = await self._models.embed(asked.model, texts, by=self._caller_of(request))
        width = len(found.vectors[0])
        if asked.dimensions not in (None, width):
            raise Refused(400, f"this model's vectors have {width} dimensions, and only these are given")
        data = [
            {"object": "embedding", "index": index, "embedding": _vector(vector, asked.encoding_format)}
            for index, vector in enumerate(found.vectors)
        ]
        usage = {"prompt_tokens": found.n_tokens, "total_tokens": found.n_tokens}
        return JSONResponse({"object": "list", "data": data, "model": ref, "usage": usage})


def _model(ref: str) -> dict[str, Any]:
    return {"id": ref, "object": "model", "created": 0, "owned_by": "local"}


def _vector(vector: Sequence[float], kind: str | None) -> list[float] | str:
    return base64.b64encode(array("f", vector).tobytes()).decode() if kind == "base64" else list(vector)


async def _events(chunks: AsyncGenerator[dict[str, Any]]) -> AsyncGenerator[bytes]:
    async with aclosing(chunks):
        async for chunk in chunks:
            yield event(chunk)
        yield b"data: [DONE]\n\n"


def _failed(exc: EngineError) -> bytes:
    status, kind = status_of(exc)
    return event(error(status, str(exc), kind))
