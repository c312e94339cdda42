"""One run of an agent: a model here or elsewhere, the tools of a profile through the gateway, a transcript.

Knows no terminal; the loop is the engine's, and every call passes the gateway like any client's."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Final, Literal

from anyio import to_thread

from engine import ModelStore
from engine.agent import INSTRUCTIONS, Budget, CallTool, GenerateChunks, ToolOutcome, run_agent
from engine.conversation import key_of
from engine.definition import selects
from engine.events import Event, TextWritten, ToolCalled, ToolReturned
from engine.transcript import Header, Record, Transcript
from gateway.chatstream import GatewayRefused

Approve = Literal["ask", "policy", "never"]
"""Who agrees to a call: a person at the terminal, the policy alone, or nobody, so that only tools that say they change
nothing are called."""
Ask = Callable[[str, Mapping[str, Any]], Awaitable[bool]]
Tool = dict[str, Any]
SMALL_BYTES: Final = 800_000_000
"""Weights of about a billion parameters, quantized."""
NOT_RECORDED: Final = "The record has no such call, so its result is not known."
REFUSED: Final = "The user did not agree to this call. Do not try it again; go on without it, or say what is missing."
READ_ONLY: Final = "This call could change something and nobody is there to agree to it. Go on without it."


class NoSuchTool(GatewayRefused):
    """A name or pattern that no tool has."""

    def __init__(self, pattern: str) -> None:
        super().__init__(f"--tools {pattern}: no tool of the profile has such a name; see `lockgate tools list`")
        self.pattern = pattern


def selected(tools: Iterable[Tool], patterns: Sequence[str]) -> list[Tool]:
    """
    Raises:
        NoSuchTool: a pattern names no tool there is.
    """
    tools = list(tools)
    found = [tool for tool in tools if selects(patterns, tool["name"])]
    for pattern in patterns:
        if not any(selects([pattern], tool["name"]) for tool in found):
            raise NoSuchTool(pattern)
    return found


def function_of(tool: Mapping[str, Any]) -> dict[str, Any]:
    """An MCP tool as an OpenAI function."""
    return {
        "type": "function",
        "function": {
            "name": tool["name"],
            "description": tool.get("description") or "",
            "parameters": tool.get("inputSchema") or {"type": "object"},
        },
    }


def outcome_of(result: Mapping[str, Any]) -> ToolOutcome:
    """A tool result as text for a model that reads only text."""
    parts = []
    for block in result.get("content", []):
        if block.get("type") == "text":
            parts.append(str(block.get("text", "")))
        elif block.get("type") == "resource":
            resource = block.get("resource", {})
            parts.append(str(resource.get("text") or f"[resource {resource.get('uri')}]"))
        else:
            parts.append(f"[{block.get('type')} {block.get('uri') or block.get('mimeType') or ''}]")
    if not parts and "structuredContent" in result:
        parts.append(json.dumps(result["structuredContent"], ensure_ascii=False))
    return ToolOutcome("\n".join(parts), bool(result.get("isError")))


def through_gateway(
    call: Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]],
    tools: Iterable[Tool],
    approve: Approve,
    ask: Ask,
) -> CallTool:
    """Calls that somebody agreed to; what the gateway refuses is told to the model."""
    harmless = {tool["name"] for tool in tools if (tool.get("annotations") or {}).get("readOnlyHint") is True}

    async def call_tool(name: str, arguments: dict[str, Any]) -> ToolOutcome:
        if approve == "never" and name not in harmless:
            return ToolOutcome(READ_ONLY, is_error=True)
        if approve == "ask" and not await ask(name, arguments):
            return ToolOutcome(REFUSED, is_error=True)
        try:
            return outcome_of(await call(name, arguments))
        except GatewayRefused as exc:
            return ToolOutcome(str(exc), is_error=True)

    return call_tool


def is_small(store: ModelStore, ref: str) -> bool:
    """Whether a stored model is so small that it often answers without looking."""
    return any(model.ref == ref and model.size_bytes < SMALL_BYTES for model in store.list())


class Recorded:
    """The tools of a run that is over: each call gives what it gave then."""

    def __init__(self, record: Record) -> None:
        self.strange = 0
        """Calls that were not in the record."""
        self._results: dict[tuple[str, str], list[ToolOutcome]] = {}
        calls: dict[str, tuple[str, str]] = {}
        for _, event in record.events:
            if isinstance(event, ToolCalled):
                calls[event.id] = key_of(event.name, event.arguments)
            elif isinstance(event, ToolReturned) and event.id in calls:
                outcome = ToolOutcome(event.text, event.is_error)
                self._results.setdefault(calls[event.id], []).append(outcome)

    async def call(self, name: str, arguments: dict[str, Any]) -> ToolOutcome:
        results = self._results.get(key_of(name, arguments))
        if not results:
            self.strange += 1
            return ToolOutcome(NOT_RECORDED, is_error=True)
        return results.pop(0) if len(results) > 1 else results[0]


async def carry_out(
    header: Header,
    transcript: Transcript | None,
    generate: GenerateChunks,
    call_tool: CallTool,
    history: Sequence[Event] = (),
) -> AsyncGenerator[Event]:
    """Run to the end; each event is in the transcript before it is yielded.

    Raises:
        TranscriptError: it cannot be kept, so the run does not go on.
        GatewayRefused: the model's server says no.
    """
    steps = run_agent(
        header.task,
        generate=generate,
        call_tool=call_tool,
        tools=header.functions,
        budget=Budget(**header.budget),
        instructions=header.instructions or INSTRUCTIONS,
        schema=header.schema,
        insist=header.insist,
        history=history,
    )
    async with aclosing(steps):
        async for event in steps:
            if transcript is not None and not isinstance(event, TextWritten):
                await to_thread.run_sync(transcript.add, event)  # it waits for the disk, and others share this loop
            yield event
