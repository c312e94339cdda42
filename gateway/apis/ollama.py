"""The Ollama-compatible API over chat completions: chat, generate, embed, and what models there are.

Knows Ollama's shapes (one JSON object a line, durations in nanoseconds); the chat itself is the engine's."""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from math import isfinite
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from engine import EngineError, StoredModel
from engine.errors import BadRequest
from gateway import __version__
from gateway.apis.bodies import CallerOf, convert, guarded, read_object, streamed
from gateway.models import Models

_MEDIA_TYPE: Final = "application/x-ndjson"
_OPTIONS: Final = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "seed": "seed",
    "stop": "stop",
    "num_predict": "max_tokens",
    "repeat_penalty": "repeat_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}
"""Options that have a counterpart; others are about how Ollama runs a model and have no effect."""
_UNITS_S: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION: Final = re.compile(r"([0-9.]+)(ns|us|µs|ms|s|m|h)")


class _Called(msgspec.Struct):
    name: str
    arguments: dict[str, Any] | None = None


class _Call(msgspec.Struct):
    function: _Called


class _Message(msgspec.Struct):
    role: str
    content: str = ""
    tool_calls: list[_Call] | None = None
    images: list[Any] | None = None
    tool_name: str | None = None


class _Common(msgspec.Struct, kw_only=True):
    model: str
    stream: bool = True
    format: str | dict[str, Any] | None = None
    options: dict[str, Any] | None = None
    keep_alive: float | str | None = None
    think: Any = None


class ChatRequest(_Common, forbid_unknown_fields=True, kw_only=True):
    """The body of a chat request."""

    messages: list[_Message] = []
    tools: list[dict[str, Any]] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


class GenerateRequest(_Common, forbid_unknown_fields=True, kw_only=True):
    """The body of a generate request."""

    prompt: str = ""
    system: str | None = None
    raw: bool = False
    suffix: str | None = None
    template: str | None = None
    images: list[Any] | None = None
    context: list[int] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


class EmbedRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of an embed request."""

    model: str
    input: str | list[str]
    truncate: bool | None = None
    dimensions: int | None = None
    keep_alive: float | str | None = None
    options: dict[str, Any] | None = None


class ShowRequest(msgspec.Struct):
    """The body of a show request; older clients say `name`."""

    model: str = ""
    name: str = ""
    verbose: bool | None = None


def routes(models: Models, caller_of: CallerOf) -> list[Route]:
    api = OllamaApi(models, caller_of)
    return [
        Route("/api/version", guarded(api.version, error)),
        Route("/api/tags", guarded(api.tags, error)),
        Route("/api/ps", guarded(api.ps, error)),
        Route("/api/show", guarded(api.show, error), methods=["POST"]),
        Route("/api/chat", guarded(api.chat, error), methods=["POST"]),
        Route("/api/generate", guarded(api.generate, error), methods=["POST"]),
        Route("/api/embed", guarded(api.embed, error), methods=["POST"]),
    ]


def error(status: int, message: str, kind: str) -> dict[str, Any]:
    return {"error": message}


class OllamaApi:
    """The handlers, over the gateway's models."""

    def __init__(self, models: Models, caller_of: CallerOf) -> None:
        self._models = models
        self._caller_of = caller_of

    async def version(self, request: Request) -> Response:
        return JSONResponse({"version": __version__})

    async def tags(self, request: Request) -> Response:
        stored = await self._models.stored_for(self._caller_of(request))
        return JSONResponse({"models": [_listed(model) for model in stored]})

    async def ps(self, request: Request) -> Response:
        found = []
        for one in self._models.loaded_for(self._caller_of(request)):
            left = timedelta(seconds=one.kept_s - one.idle_s if isfinite(one.kept_s) else 10 * 365 * 86_400)
            expires = {"expires_at": (datetime.now(UTC) + left).isoformat(), "size_vram": 0}
            found.append({**_listed(one.model.model), **expires, "context_length": one.model.n_ctx})
        return JSONResponse({"models": found})

    async def show(self, request: Request) -> Response:
        asked = convert(await read_object(request), ShowRequest)
        model = await self._models.get(asked.model or asked.name, self._caller_of(request))
        template = model.chat_template or ""
        abilities = ["completion", "embedding", *(["tools"] if template else [])]
        return JSONResponse(
            {
                "license": model.license or "",
                "modelfile": f"FROM {model.ref}\n",
                "parameters": "",
                "template": template,
                "details": _details(model),
                "model_info": dict(model.metadata),
                "capabilities": abilities,
                "modified_at": _modified(model),
            }
        )

    async def chat(self, request: Request) -> Response:
        asked = convert(await read_object(request), ChatRequest)
        if not asked.messages:  # how a client loads or unloads a model
            return await self._loaded(request, asked)
        body = {**_common(asked), "messages": [_message(message) for message in asked.messages]}
        if asked.tools:
            body["tools"] = [{"type": "function", **tool} for tool in asked.tools]
        return await self._answer(request, asked, body, _Made(asked.model, is_chat=True))

    async def generate(self, request: Request) -> Response:
        asked = convert(await read_object(request), GenerateRequest)
        if asked.images or asked.suffix or asked.template or asked.context:
            raise BadRequest("images, suffix, template and context are not supported")
        if not asked.prompt:
            return await self._loaded(request, asked)
        if asked.raw:
            raise BadRequest("raw prompts are completed at /v1/completions")
        messages = [{"role": "system", "content": asked.system}] if asked.system else []
        body = {**_common(asked), "messages": [*messages, {"role": "user", "content": asked.prompt}]}
        return await self._answer(request, asked, body, _Made(asked.model, is_chat=False))

    async def embed(self, request: Request) -> Response:
        asked = convert(await read_object(request), EmbedRequest)
        began = time.monotonic()
        texts = [asked.input] if isinstance(asked.input, str) else asked.input
        by, kept_s = self._caller_of(request), _kept_s(asked.keep_alive)
        _, found = await self._models.embed(asked.model, texts, by=by, kept_s=kept_s)
        return JSONResponse(
            {
                "model": asked.model,
                "embeddings": [list(vector) for vector in found.vectors],
                "total_duration": _ns(time.monotonic() - began),
                "load_duration": 0,
                "prompt_eval_count": found.n_tokens,
            }
        )

    async def _answer(self, request: Request, asked: _Common, body: dict[str, Any], made: _Made) -> Response:
        by, kept_s = self._caller_of(request), _kept_s(asked.keep_alive)
        chunks = self._models.chat(body, by=by, kept_s=kept_s)
        if asked.stream:
            return await streamed(_lines(made, chunks), _MEDIA_TYPE, _failed)
        whole: dict[str, Any] = {}
        async with aclosing(chunks):
            async for chunk in chunks:
                for part in made.take(chunk):
                    made.join(whole, part)
        made.join(whole, made.last())
        return JSONResponse(whole)

    async def _loaded(self, request: Request, asked: _Common) -> Response:
        kept_s = _kept_s(asked.keep_alive)
        await self._models.load(asked.model, by=self._caller_of(request), kept_s=kept_s)
        told = {"model": asked.model, "created_at": _now(), "done": True}
        told["done_reason"] = "unload" if kept_s == 0 else "load"
        is_chat = isinstance(asked, ChatRequest)
        return JSONResponse(told | ({"message": {"role": "assistant", "content": ""}} if is_chat else {"response": ""}))


def _common(asked: ChatRequest | GenerateRequest) -> dict[str, Any]:
    options = asked.options or {}
    body = {ours: options[theirs] for theirs, ours in _OPTIONS.items() if options.get(theirs) is not None}
    if body.get("max_tokens", 1) < 1:  # -1 and -2 mean no limit
        del body["max_tokens"]
    if asked.format == "json":
        body["response_format"] = {"type": "json_object"}
    elif isinstance(asked.format, dict):
        schema = {"name": "answer", "schema": asked.format}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    if asked.logprobs:
        body |= {"logprobs": True, "top_logprobs": asked.top_logprobs or 0}
    return {**body, "model": asked.model, "stream_options": {"include_usage": True}}


def _message(message: _Message) -> dict[str, Any]:
    if message.images:
        raise BadRequest("images are not read here, only text is")
    found: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        found["tool_calls"] = [
            {"function": {"name": call.function.name, "arguments": json.dumps(call.function.arguments or {})}}
            for call in message.tool_calls
        ]
    return found


def _kept_s(value: float | str | None) -> float | None:
    """Seconds; below 0 is for ever. Raises: BadRequest if it is no duration."""
    if value is None or isinstance(value, (int, float)):
        return value
    text = value.strip().lstrip("-")
    parts = _DURATION.findall(text)
    try:
        found = float(text) if not parts else sum(float(number) * _UNITS_S[unit] for number, unit in parts)
    except ValueError as exc:
        raise BadRequest(f"keep_alive is not a duration such as 5m: {value[:40]!r}") from exc
    return -found if value.strip().startswith("-") else found


class _Made:
    """An answer as it comes into being."""

    def __init__(self, ref: str, *, is_chat: bool) -> None:
        self._ref = ref
        self._is_chat = is_chat
        self._began = time.monotonic()
        self._first: float | None = None
        self._reason = "stop"
        self._usage: dict[str, Any] = {"prompt_tokens": 0, "completion_tokens": 0}

    def take(self, chunk: dict[str, Any]) -> list[dict[str, Any]]:
        """The lines that a chunk of the chat makes."""
        lines = []
        self._usage = chunk.get("usage") or self._usage
        for choice in chunk["choices"]:
            delta = choice["delta"]
            calls = [call["function"] for call in delta.get("tool_calls", ())]
            if delta.get("content") or calls or choice["logprobs"]:
                self._first = self._first or time.monotonic()
                lines.append(self._line(delta.get("content") or "", calls, choice["logprobs"]))
            if choice["finish_reason"] == "length":
                self._reason = "length"
        return lines

    def last(self) -> dict[str, Any]:
        ended = time.monotonic()
        first = self._first or ended
        return {
            **self._line("", [], None),
            "done": True,
            "done_reason": self._reason,
            "total_duration": _ns(ended - self._began),
            "load_duration": 0,
            "prompt_eval_count": self._usage["prompt_tokens"],
            "prompt_eval_duration": _ns(first - self._began),
            "eval_count": self._usage["completion_tokens"],
            "eval_duration": _ns(ended - first),
        }

    def join(self, whole: dict[str, Any], line: dict[str, Any]) -> None:
        """Add a line to those before it."""
        message, response = dict(whole.get("message", {})), whole.get("response", "")
        logprobs = [*whole.get("logprobs", ()), *line.get("logprobs", ())]
        whole.update(line)
        if self._is_chat:
            calls = [*message.get("tool_calls", ()), *line["message"].get("tool_calls", ())]
            content = message.get("content", "") + line["message"]["content"]
            whole["message"] = {"role": "assistant", "content": content, **({"tool_calls": calls} if calls else {})}
        else:
            whole["response"] = response + line["response"]
        if logprobs:
            whole["logprobs"] = logprobs

    def _line(self, text: str, calls: list[dict[str, Any]], logprobs: dict[str, Any] | None) -> dict[str, Any]:
        line: dict[str, Any] = {"model": self._ref, "created_at": _now(), "done": False}
        if self._is_chat:
            line["message"] = {"role": "assistant", "content": text}
            if calls:
                line["message"]["tool_calls"] = [
                    {"function": {"name": call["name"], "arguments": json.loads(call["arguments"])}} for call in calls
                ]
        else:
            line["response"] = text
        if logprobs:
            line["logprobs"] = logprobs["content"]
        return line


async def _lines(made: _Made, chunks: AsyncGenerator[dict[str, Any]]) -> AsyncGenerator[bytes]:
    async with aclosing(chunks):
        async for chunk in chunks:
            for line in made.take(chunk):
                yield msgspec.json.encode(line) + b"\n"
        yield msgspec.json.encode(made.last()) + b"\n"


def _failed(exc: EngineError) -> bytes:
    return msgspec.json.encode({"error": str(exc)}) + b"\n"


def _listed(model: StoredModel) -> dict[str, Any]:
    return {
        "name": model.ref,
        "model": model.ref,
        "modified_at": _modified(model),
        "size": model.size_bytes,
        "digest": model.manifest_digest.removeprefix("sha256:"),
        "details": _details(model),
    }


def _details(model: StoredModel) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "gguf",
        "family": model.architecture,
        "families": [model.architecture],
        "parameter_size": model.parameters,
        "quantization_level": model.quantization,
    }


def _modified(model: StoredModel) -> str:
    return datetime.fromtimestamp(model.path.stat().st_mtime, UTC).isoformat()


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
