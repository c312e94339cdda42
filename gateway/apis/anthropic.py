"""The Anthropic-compatible API over chat completions.

Knows Anthropic's shapes; the chat itself is the engine's. Content is text: nothing is fetched."""

from __future__ import annotations

import json
import secrets
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from engine import EngineError
from engine.errors import BadRequest
from gateway.apis.bodies import CallerOf, convert, event, guarded, read_object, status_of, streamed, told
from gateway.models import Models

_KINDS: Final = {
    400: "invalid_request_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_NOT_TEXT: Final = ("tool_use", "thinking", "redacted_thinking")
_REASONS: Final = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class _Block(msgspec.Struct):
    """A content block of any type; which members it has depends on it."""

    type: str
    text: str = ""
    id: str = ""
    name: str = ""
    input: dict[str, Any] | None = None
    tool_use_id: str = ""
    content: Any = None


class _Message(msgspec.Struct):
    role: Literal["user", "assistant"]
    content: str | list[_Block]


class _Tool(msgspec.Struct):
    name: str
    input_schema: dict[str, Any]
    description: str | None = None


class _Choice(msgspec.Struct):
    type: Literal["auto", "any", "tool", "none"]
    name: str = ""
    disable_parallel_tool_use: bool = False


class _Format(msgspec.Struct):
    type: Literal["json_schema"]
    schema: dict[str, Any]


class _Output(msgspec.Struct):
    format: _Format | None = None
    effort: str | None = None


class MessagesRequest(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The body of a request. Fields after `stream` are accepted and have no effect."""

    messages: Annotated[list[_Message], Meta(min_length=1)]
    model: str | None = None
    system: str | list[_Block] | None = None
    tools: list[_Tool] | None = None
    tool_choice: _Choice | None = None
    max_tokens: Annotated[int, Meta(ge=1)]
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[str] | None = None
    output_config: _Output | None = None
    stream: bool | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    thinking: dict[str, Any] | None = None
    cache_control: dict[str, Any] | None = None


def routes(models: Models, caller_of: CallerOf) -> list[Route]:
    api = AnthropicApi(models, caller_of)
    return [
        Route("/v1/messages", guarded(api.messages, error), methods=["POST"]),
        Route("/v1/messages/count_tokens", guarded(api.count_tokens, error), methods=["POST"]),
    ]


def error(status: int, message: str, kind: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": _KINDS.get(status, "api_error"), "message": message}}


class AnthropicApi:
    """The handlers, over the gateway's models."""

    def __init__(self, models: Models, caller_of: CallerOf) -> None:
        self._models = models
        self._caller_of = caller_of

    async def messages(self, request: Request) -> Response:
        asked = convert(await read_object(request), MessagesRequest)
        chat = chat_request(asked)
        by = self._caller_of(request)
        made = _Made(asked.model or self._models.default)
        if asked.stream:
            chunks = self._models.chat(chat, by=by)
            return await streamed(told(made, chunks), "text/event-stream", _failed)
        return JSONResponse(made.whole(await self._models.complete(chat, by=by)))

    async def count_tokens(self, request: Request) -> Response:
        body = await read_object(request)
        chat = chat_request(convert({**body, "max_tokens": 1}, MessagesRequest))
        async with self._models.use(chat["model"], by=self._caller_of(request)) as model:
            return JSONResponse({"input_tokens": await model.count_tokens(chat)})


def chat_request(asked: MessagesRequest) -> dict[str, Any]:
    """The same as a chat completion request. Raises: BadRequest for content that is not understood."""
    messages: list[dict[str, Any]] = []
    if asked.system:
        messages.append({"role": "system", "content": _text(asked.system)})
    for message in asked.messages:
        messages += _user(message) if message.role == "user" else [_assistant(message)]
    chat: dict[str, Any] = {
        "model": asked.model,
        "messages": messages,
        "max_tokens": asked.max_tokens,
        "stream_options": {"include_usage": True},
    }
    for name in ("temperature", "top_p", "top_k"):
        if (value := getattr(asked, name)) is not None:
            chat[name] = value
    if asked.stop_sequences:
        chat["stop"] = asked.stop_sequences
    if asked.output_config and asked.output_config.format:
        schema = {"name": "answer", "schema": asked.output_config.format.schema}
        chat["response_format"] = {"type": "json_schema", "json_schema": schema}
    if asked.tools:
        chat["tools"] = [_tool(tool) for tool in asked.tools]
    if asked.tool_choice:
        choice = asked.tool_choice
        named = {"type": "function", "function": {"name": choice.name}}
        chat["tool_choice"] = {"any": "required", "tool": named}.get(choice.type, choice.type)
        chat["parallel_tool_calls"] = not choice.disable_parallel_tool_use
    return chat


def _tool(tool: _Tool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.input_schema}
    return {"type": "function", "function": function}


def _user(message: _Message) -> list[dict[str, Any]]:
    """A user's message: results of calls come first, as messages of their own."""
    if isinstance(message.content, str):
        return [{"role": "user", "content": message.content}]
    results = [
        {"role": "tool", "tool_call_id": block.tool_use_id, "content": _result(block)}
        for block in message.content
        if block.type == "tool_result"
    ]
    rest = [block for block in message.content if block.type != "tool_result"]
    return [*results, {"role": "user", "content": _text(rest)}] if rest else results


def _assistant(message: _Message) -> dict[str, Any]:
    if isinstance(message.content, str):
        return {"role": "assistant", "content": message.content}
    calls = [
        {"id": use.id, "type": "function", "function": {"name": use.name, "arguments": json.dumps(use.input or {})}}
        for use in message.content
        if use.type == "tool_use"
    ]
    text = _text([block for block in message.content if block.type not in _NOT_TEXT])
    return {"role": "assistant", "content": text, **({"tool_calls": calls} if calls else {})}


def _result(block: _Block) -> str:
    if isinstance(block.content, list):
        return _text(convert({"blocks": block.content}, _Blocks).blocks)
    return str(block.content or "")


class _Blocks(msgspec.Struct):
    blocks: list[_Block]


def _text(content: str | list[_Block]) -> str:
    if isinstance(content, str):
        return content
    for block in content:
        if block.type != "text":
            raise BadRequest(f"content of the type {block.type[:40]!r} is not read here, only text is")
    return "\n".join(block.text for block in content)


class _Made:
    """A message as it comes into being."""

    def __init__(self, ref: str) -> None:
        self._message: dict[str, Any] = {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": ref,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": 0, "output_tokens": 0},
        }
        self._open = ""
        self._index = -1

    def whole(self, completion: dict[str, Any]) -> dict[str, Any]:
        choice = completion["choices"][0]
        content: list[dict[str, Any]] = []
        if choice["message"]["content"]:
            content.append({"type": "text", "text": choice["message"]["content"]})
        for call in choice["message"].get("tool_calls", ()):
            content.append({**_use(call), "input": json.loads(call["function"]["arguments"])})
        reason = _REASONS[choice["finish_reason"]]
        return {**self._message, "content": content, "stop_reason": reason, "usage": _usage(completion["usage"])}

    def begin(self) -> list[bytes]:
        return [event({"type": "message_start", "message": self._message}, "message_start")]

    def take(self, chunk: dict[str, Any]) -> list[bytes]:
        events = []
        for choice in chunk["choices"]:
            if text := choice["delta"].get("content"):
                if self._open != "text":
                    events += self._start("text", {"type": "text", "text": ""})
                events.append(self._delta({"type": "text_delta", "text": text}))
            for call in choice["delta"].get("tool_calls", ()):
                events += self._start("tool_use", {**_use(call), "input": {}})
                arguments = {"type": "input_json_delta", "partial_json": call["function"]["arguments"]}
                events.append(self._delta(arguments))
            if choice["finish_reason"]:
                self._message["stop_reason"] = _REASONS[choice["finish_reason"]]
        if usage := chunk.get("usage"):
            self._message["usage"] = _usage(usage)
        return events

    def finish(self) -> list[bytes]:
        delta = {"stop_reason": self._message["stop_reason"], "stop_sequence": None}
        told = {"type": "message_delta", "delta": delta, "usage": self._message["usage"]}
        return [*self._stop(), event(told, "message_delta"), event({"type": "message_stop"}, "message_stop")]

    def _start(self, kind: str, block: dict[str, Any]) -> list[bytes]:
        events = self._stop()
        self._open = kind
        self._index += 1
        told = {"type": "content_block_start", "index": self._index, "content_block": block}
        return [*events, event(told, "content_block_start")]

    def _delta(self, delta: dict[str, Any]) -> bytes:
        told = {"type": "content_block_delta", "index": self._index, "delta": delta}
        return event(told, "content_block_delta")

    def _stop(self) -> list[bytes]:
        if not self._open:
            return []
        self._open = ""
        return [event({"type": "content_block_stop", "index": self._index}, "content_block_stop")]


def _use(call: dict[str, Any]) -> dict[str, Any]:
    return {"type": "tool_use", "id": call["id"], "name": call["function"]["name"]}


def _usage(usage: dict[str, Any]) -> dict[str, Any]:
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    return {
        "input_tokens": usage["prompt_tokens"] - cached,
        "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage["completion_tokens"],
    }


def _failed(exc: EngineError) -> bytes:
    status, kind = status_of(exc)
    return event(error(status, str(exc), kind), "error")
