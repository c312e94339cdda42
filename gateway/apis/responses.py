"""OpenAI's Responses API over chat completions: input items in, output items or their events out.

Keeps nothing: `store` and `previous_response_id` are for servers that do, and the latter is refused."""

from __future__ import annotations

import secrets
import time
from contextlib import aclosing
from typing import Any, Final, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from engine import EngineError
from engine.errors import BadRequest
from gateway.apis.bodies import CallerOf, convert, event, read_object, status_of, streamed, told
from gateway.models import Models

_PASSED: Final = ("temperature", "top_p", "user", "parallel_tool_calls")


class _Reasoning(msgspec.Struct):
    effort: str | None = None


class _Text(msgspec.Struct):
    format: dict[str, Any] | None = None
    verbosity: str | None = None


class ResponseRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a request for a response. Fields after `stream` are accepted and have no effect."""

    input: str | list[dict[str, Any]]
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    text: _Text | None = None
    stream: bool | None = None
    user: str | None = None
    store: bool | None = None
    metadata: dict[str, str] | None = None
    reasoning: _Reasoning | None = None
    include: list[str] | None = None
    truncation: Literal["disabled", "auto"] | None = None
    service_tier: str | None = None
    stream_options: dict[str, Any] | None = None
    previous_response_id: Literal[None] = None
    background: Literal[False] | None = None


class ResponsesApi:
    """The one handler, over the gateway's models."""

    def __init__(self, models: Models, caller_of: CallerOf) -> None:
        self._models = models
        self._caller_of = caller_of

    async def create(self, request: Request) -> Response:
        asked = convert(await read_object(request), ResponseRequest)
        chat = chat_request(asked)
        by = self._caller_of(request)
        made = _Made(asked, asked.model or self._models.default)
        chunks = self._models.chat(chat, by=by)
        if asked.stream:
            return await streamed(told(made, chunks), "text/event-stream", made.failed)
        async with aclosing(chunks):
            async for chunk in chunks:
                list(made.take(chunk))
        list(made.finish())
        return JSONResponse(made.response())


def chat_request(asked: ResponseRequest) -> dict[str, Any]:
    """The same as a chat completion request. Raises: BadRequest for an item that is not understood."""
    chat: dict[str, Any] = {"model": asked.model, "messages": _messages(asked)}
    chat["stream_options"] = {"include_usage": True}
    chat |= {name: value for name in _PASSED if (value := getattr(asked, name)) is not None}
    if asked.max_output_tokens is not None:
        chat["max_tokens"] = asked.max_output_tokens
    if asked.tools:
        chat["tools"] = [_tool(tool) for tool in asked.tools]
    if isinstance(asked.tool_choice, dict):
        chat["tool_choice"] = {"type": "function", "function": {"name": asked.tool_choice.get("name")}}
    elif asked.tool_choice is not None:
        chat["tool_choice"] = asked.tool_choice
    if asked.text and asked.text.format:
        form = dict(asked.text.format)
        kind = form.pop("type", "text")
        chat["response_format"] = {"type": kind, **({"json_schema": form} if kind == "json_schema" else {})}
    return chat


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise BadRequest(f"tools of the type {str(tool.get('type'))[:40]!r} are not offered here; functions are")
    return {"type": "function", "function": {key: value for key, value in tool.items() if key != "type"}}


def _messages(asked: ResponseRequest) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if asked.instructions:
        messages.append({"role": "system", "content": asked.instructions})
    if isinstance(asked.input, str):
        return [*messages, {"role": "user", "content": asked.input}]
    for item in asked.input:
        match item.get("type", "message"):
            case "message":
                messages.append({"role": item.get("role"), "content": _content(item.get("content"))})
            case "function_call":
                call = {"name": item.get("name"), "arguments": item.get("arguments")}
                made = {"id": item.get("call_id", ""), "type": "function", "function": call}
                if messages and messages[-1]["role"] == "assistant":
                    messages[-1].setdefault("tool_calls", []).append(made)
                else:
                    messages.append({"role": "assistant", "content": None, "tool_calls": [made]})
            case "function_call_output":
                result = {"role": "tool", "tool_call_id": item.get("call_id", "")}
                messages.append({**result, "content": _content(item.get("output"))})
            case "reasoning":
                continue
            case other:
                raise BadRequest(f"input items of the type {str(other)[:40]!r} are not understood here")
    return messages


def _content(content: object) -> object:
    if not isinstance(content, list):
        return content
    for part in content:
        if not isinstance(part, dict) or part.get("type") not in ("input_text", "output_text", "text"):
            raise BadRequest("content is text: nothing else is read, and nothing is fetched")
    return [{"type": "text", "text": part.get("text")} for part in content]


class _Made:
    """A response as it comes into being; gives the events that tell of it."""

    def __init__(self, asked: ResponseRequest, ref: str) -> None:
        self._asked = asked
        self._ref = ref
        self._id = f"resp_{secrets.token_hex(16)}"
        self._created = int(time.time())
        self._output: list[dict[str, Any]] = []
        self._usage: dict[str, Any] | None = None
        self._status = "in_progress"
        self._incomplete: dict[str, str] | None = None
        self._sequence = 0

    def response(self) -> dict[str, Any]:
        asked = self._asked
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": self._status,
            "error": None,
            "incomplete_details": self._incomplete,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "model": self._ref,
            "output": [dict(item) for item in self._output],
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "previous_response_id": None,
            "store": False,
            "temperature": asked.temperature,
            "text": {"format": (asked.text and asked.text.format) or {"type": "text"}},
            "tool_choice": asked.tool_choice or "auto",
            "tools": asked.tools or [],
            "top_p": asked.top_p,
            "truncation": "disabled",
            "usage": self._usage,
            "metadata": asked.metadata or {},
        }

    def begin(self) -> list[bytes]:
        return [self._event("response.created", response=self.response())]

    def take(self, chunk: dict[str, Any]) -> list[bytes]:
        """The events that a chunk of the chat makes."""
        events = []
        if usage := chunk.get("usage"):
            cached = usage["prompt_tokens_details"]["cached_tokens"]
            self._usage = {
                "input_tokens": usage["prompt_tokens"],
                "input_tokens_details": {"cached_tokens": cached},
                "output_tokens": usage["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage["total_tokens"],
            }
        for choice in chunk["choices"]:
            if choice["finish_reason"] == "length":
                self._incomplete = {"reason": "max_output_tokens"}
            if text := choice["delta"].get("content"):
                events += self._text(text)
            for call in choice["delta"].get("tool_calls", ()):
                events += self._call(call)
        return events

    def finish(self) -> list[bytes]:
        events = self._close()
        self._status = "incomplete" if self._incomplete else "completed"
        return [*events, self._event(f"response.{self._status}", response=self.response())]

    def failed(self, exc: EngineError) -> bytes:
        _, kind = status_of(exc)
        self._status = "failed"
        told = {**self.response(), "error": {"code": kind, "message": str(exc)}}
        return self._event("response.failed", response=told)

    def _text(self, text: str) -> list[bytes]:
        events = []
        if not self._output or self._output[-1]["type"] != "message":
            events += self._close()
            item = {"id": f"msg_{secrets.token_hex(16)}", "type": "message", "role": "assistant"}
            self._output.append({**item, "status": "in_progress", "content": []})
            events.append(self._event("response.output_item.added", **self._at(), item=dict(self._output[-1])))
            part = {"type": "output_text", "text": "", "annotations": []}
            self._output[-1]["content"].append(part)
            events.append(self._event("response.content_part.added", **self._in(), part=dict(part)))
        self._output[-1]["content"][0]["text"] += text
        return [*events, self._event("response.output_text.delta", **self._in(), delta=text, logprobs=[])]

    def _call(self, call: dict[str, Any]) -> list[bytes]:
        events = self._close()
        function = call["function"]
        item = {
            "id": f"fc_{secrets.token_hex(16)}",
            "type": "function_call",
            "status": "in_progress",
            "call_id": call["id"],
            "name": function["name"],
            "arguments": "",
        }
        self._output.append(item)
        at = {**self._at(), "item_id": item["id"]}
        events.append(self._event("response.output_item.added", **self._at(), item=dict(item)))
        item["arguments"] = function["arguments"]
        events.append(self._event("response.function_call_arguments.delta", **at, delta=item["arguments"]))
        done = {"arguments": item["arguments"], "name": item["name"]}
        events.append(self._event("response.function_call_arguments.done", **at, **done))
        return events

    def _close(self) -> list[bytes]:
        """End the item that is open."""
        if not self._output or self._output[-1]["status"] != "in_progress":
            return []
        item, events = self._output[-1], []
        item["status"] = "completed"
        if item["type"] == "message":
            part = item["content"][0]
            events.append(self._event("response.output_text.done", **self._in(), text=part["text"], logprobs=[]))
            events.append(self._event("response.content_part.done", **self._in(), part=dict(part)))
        return [*events, self._event("response.output_item.done", **self._at(), item=dict(item))]

    def _at(self) -> dict[str, Any]:
        return {"output_index": len(self._output) - 1}

    def _in(self) -> dict[str, Any]:
        return {**self._at(), "item_id": self._output[-1]["id"], "content_index": 0}

    def _event(self, kind: str, **members: Any) -> bytes:
        self._sequence += 1
        return event({"type": kind, "sequence_number": self._sequence - 1, **members}, kind)
