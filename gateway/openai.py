"""The OpenAI-compatible API of the local model: /v1/models and /v1/chat/completions.

Knows HTTP and the error shape; prompts, sampling and tool grammars are the engine's."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, Final

import msgspec
from anyio import to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from engine import EngineError, ModelBusy, ModelNotFound
from engine.errors import BadRequest
from gateway.models import Models

MAX_BODY_BYTES: Final = 8 * 1024 * 1024
RETRY_AFTER_S: Final = 2


def error(status: int, message: str, kind: str) -> JSONResponse:
    headers = {"Retry-After": str(RETRY_AFTER_S)} if status == 503 else None
    return JSONResponse({"error": {"message": message, "type": kind, "code": status}}, status, headers)


def _engine_error(exc: EngineError) -> JSONResponse:
    match exc:
        case ModelBusy():
            return error(503, str(exc), "server_busy")
        case ModelNotFound():
            return error(404, str(exc), "model_not_found")
        case BadRequest():
            return error(400, str(exc), "invalid_request_error")
        case _:
            return error(500, str(exc), "engine_error")


class OpenAiApi:
    """The handlers, over the gateway's models."""

    def __init__(self, models: Models) -> None:
        self._models = models

    async def list_models(self, request: Request) -> Response:
        stored = await to_thread.run_sync(self._models.stored)
        data = [{"id": model.ref, "object": "model", "created": 0, "owned_by": "local"} for model in stored]
        return JSONResponse({"object": "list", "data": data})

    async def chat_completions(self, request: Request) -> Response:
        # A page in a browser can send text/plain across origins without asking; JSON it cannot.
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return error(415, "Content-Type must be application/json", "invalid_request_error")
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > MAX_BODY_BYTES:
                return error(413, f"body over {MAX_BODY_BYTES} bytes", "invalid_request_error")
        try:
            asked: dict[str, Any] = msgspec.json.decode(bytes(body), type=dict[str, Any])
        except (msgspec.DecodeError, RecursionError) as exc:
            return error(400, f"the body is not a JSON object: {exc}", "invalid_request_error")
        try:
            if not asked.get("stream"):
                return JSONResponse(await self._models.complete(asked))
            chunks = self._models.chat(asked)
            # The first chunk decides the status: until then an error can still be a proper one.
            first = await anext(chunks)
        except EngineError as exc:
            return _engine_error(exc)
        return StreamingResponse(_events(first, chunks), media_type="text/event-stream")


async def _events(first: dict[str, Any], chunks: AsyncGenerator[dict[str, Any]]) -> AsyncIterator[bytes]:
    async with aclosing(chunks):
        try:
            yield b"data: %b\n\n" % msgspec.json.encode(first)
            async for chunk in chunks:
                yield b"data: %b\n\n" % msgspec.json.encode(chunk)
            yield b"data: [DONE]\n\n"
        except EngineError as exc:
            failure = {"error": {"message": str(exc), "type": "engine_error"}}
            yield b"data: %b\n\n" % msgspec.json.encode(failure)
