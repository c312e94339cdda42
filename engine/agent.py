"""The agent loop: a task, a model that may call tools, and an end in sight.

Knows only two callables: `generate`, which answers OpenAI chat requests with chunks, and `call_tool`."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final, Literal

import anyio

from engine.conversation import MAX_FRUITLESS, READ_RESULT, READ_RESULT_TOOL, Conversation, key_of
from engine.events import (
    Answered,
    Event,
    StepStarted,
    Stopped,
    StopReason,
    TextWritten,
    ToolCalled,
    ToolRefused,
    ToolReturned,
    Turned,
)
from engine.narrow import DEFAULT_KEPT, compact, fits, narrow

INSTRUCTIONS: Final = (
    "You are a helpful assistant with access to functions. Call a function whenever it can do what the user asks; "
    "never guess its result. When you have the result, answer the user in one or two sentences."
)
MAX_STEP_TOKENS: Final = 1_024  # of one model query
MAX_AT_ONCE: Final = 8  # calls of one turn
INTERRUPTED: Final = (
    "The run was interrupted during this call: whether it was carried out is not known. Find out before you repeat it."
)


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits of one run: model queries, generated tokens, wall-clock seconds, tool calls."""

    steps: int = 8
    tokens: int = 4_096
    seconds: float = 300.0
    calls: int = 16


@dataclass(frozen=True, slots=True)
class ToolOutcome:
    """What a tool answered, as text for the model."""

    text: str
    is_error: bool = False


GenerateChunks = Callable[[dict[str, Any]], AsyncIterator[dict[str, Any]]]
CallTool = Callable[[str, dict[str, Any]], Awaitable[ToolOutcome]]


class _OutOfTime(Exception):
    """The seconds of the budget are used up."""


async def run_agent(
    task: str,
    *,
    generate: GenerateChunks,
    call_tool: CallTool,
    tools: Sequence[Mapping[str, Any]],
    budget: Budget = Budget(),  # frozen
    instructions: str = INSTRUCTIONS,
    schema: Mapping[str, Any] | None = None,
    kept: int = DEFAULT_KEPT,
    insist: bool = False,
    history: Iterable[Event] = (),
    clock: Callable[[], float] = time.monotonic,
) -> AsyncGenerator[Event]:
    """Work on `task` until the model answers or the budget ends; yields events as they happen.

    The model sees the `kept` tools that fit the task best. With a `schema` the answer is a JSON value, too, that fits
    it. With `insist` a small model that answered from nothing is asked again. `history` are the events of the same run
    before it was interrupted. Closing the iterator cancels what is running. Errors of `generate` reach the caller;
    errors of tools are told to the model.
    """
    run = _Run(task, generate, call_tool, tools, budget, instructions, schema, kept, insist, clock)
    said = run.said
    for event in history:
        said.apply(event)
    reason: StopReason = "seconds"
    try:
        while True:
            async with aclosing(run.act()) as events:  # what a run that goes on had left undone, or nothing
                async for event in events:
                    yield event
            if stop := run.exhausted():
                reason = stop
                break
            yield run.note(StepStarted(said.steps + 1, run.offered()))
            async with aclosing(run.ask()) as pieces:
                async for piece in pieces:
                    yield piece
            if said.calls or said.asks_again:
                continue
            if schema is not None and said.is_shaping and not run.is_shaped:
                run.is_shaped = True
                continue
            if answer := run.answer():
                yield run.note(answer)
            reason = "answered" if answer else "no_answer"
            break
    except _OutOfTime:
        pass
    yield Stopped(reason, said.steps, said.n_calls, said.n_tokens)


class _Run:
    """What one run works with; what it knows is in `said`."""

    def __init__(
        self,
        task: str,
        generate: GenerateChunks,
        call_tool: CallTool,
        tools: Sequence[Mapping[str, Any]],
        budget: Budget,
        instructions: str,
        schema: Mapping[str, Any] | None,
        kept: int,
        insist: bool,
        clock: Callable[[], float],
    ) -> None:
        self._generate = generate
        self._call_tool = call_tool
        self._budget = budget
        self._schema = schema
        self._clock = clock
        self._deadline = clock() + budget.seconds
        self._tools = [compact(tool, task if len(tools) > kept else None) for tool in narrow(task, tools, kept)]
        self._names = {str(tool["function"]["name"]) for tool in tools}
        names = [tool["function"]["name"] for tool in self._tools]
        insists = insist and fits(task, tools)
        self.said = Conversation(task, instructions, names, has_schema=schema is not None, insists=insists)
        self.is_shaped = False

    def note(self, event: Event) -> Event:
        self.said.apply(event)
        return event

    def exhausted(self) -> StopReason | None:
        said, budget = self.said, self._budget
        if said.n_repeated > 1:
            return "repetition"
        if said.n_fruitless > MAX_FRUITLESS:
            return "no_progress"
        if said.steps >= budget.steps and not said.is_shaping:
            return "steps"
        if said.n_tokens >= budget.tokens:
            return "tokens"
        if said.n_calls >= budget.calls and not said.is_shaping:
            return "calls"
        return "seconds" if self._clock() >= self._deadline else None

    def offered(self) -> tuple[str, ...]:
        return tuple(tool["function"]["name"] for tool in self._offered())

    def _offered(self) -> list[Mapping[str, Any]]:
        if self.said.is_closing or self.said.is_shaping:
            return []
        return [*self._tools, READ_RESULT_TOOL] if self._tools and self.said.is_trimmed else list(self._tools)

    def answer(self) -> Answered | None:
        text = self.said.answer
        if self._schema is None or not text:
            return Answered(text) if text else None
        try:
            return Answered(text, json.loads(text))
        except ValueError:
            return None  # cut off by the budget of tokens

    async def ask(self) -> AsyncGenerator[Event]:
        """Query the model once. Raises: _OutOfTime."""
        said = self.said
        request: dict[str, Any] = {
            "messages": said.messages(),
            "temperature": 0,
            "max_tokens": max(1, min(MAX_STEP_TOKENS, self._budget.tokens - said.n_tokens)),
            "stream_options": {"include_usage": True},
        }
        if said.is_shaping:
            named = {"name": "answer", "schema": self._schema, "strict": True}
            request["response_format"] = {"type": "json_schema", "json_schema": named}
        elif tools := self._offered():
            choice: Literal["auto", "required"] = "required" if said.must_call else "auto"
            request |= {"tools": tools, "tool_choice": choice}
        text, calls, usage = "", list[dict[str, Any]](), dict[str, Any]()
        chunks = self._generate(request)
        try:
            while (chunk := await self._in_time(anext(chunks, None))) is not None:
                usage = chunk.get("usage") or usage
                for choice_made in chunk["choices"]:
                    _gather(calls, choice_made["delta"].get("tool_calls") or ())
                    if piece := choice_made["delta"].get("content"):
                        text += piece
                        yield TextWritten(piece)
        finally:
            if isinstance(chunks, AsyncGenerator):
                await chunks.aclose()
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        spent = usage.get("completion_tokens", 0), usage.get("prompt_tokens", 0), cached
        yield self.note(Turned(text, tuple(calls), *spent))

    async def act(self) -> AsyncGenerator[Event]:
        """Make the calls that wait, all at once, and tell the model what came back. Raises: _OutOfTime."""
        waiting: dict[asyncio.Future[ToolOutcome], ToolCalled] = {}
        try:
            for call in list(self.said.calls):
                event = self._begun(call)
                yield self.note(event)
                if isinstance(event, ToolCalled):
                    waiting[asyncio.ensure_future(self._outcome(event))] = event
                if len(waiting) >= MAX_AT_ONCE:
                    for returned in await self._returned(waiting):
                        yield self.note(returned)
            while waiting:
                for returned in await self._returned(waiting):
                    yield self.note(returned)
        finally:
            for future in waiting:
                future.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def _returned(self, waiting: dict[asyncio.Future[ToolOutcome], ToolCalled]) -> list[ToolReturned]:
        """Wait for one of the calls at least; those that are done leave `waiting`."""
        await self._in_time(asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED))
        returned = []
        for future in [future for future in waiting if future.done()]:
            call, outcome = waiting.pop(future), future.result()
            returned.append(ToolReturned(call.id, call.name, outcome.text, outcome.is_error))
        return returned

    def _begun(self, call: Mapping[str, Any]) -> ToolCalled | ToolRefused | ToolReturned:
        """What becomes of a call of the model."""
        id, name, text = call["id"], call["function"]["name"], call["function"]["arguments"]
        arguments = _parsed(text)
        said = self.said
        if id in said.interrupted:
            return ToolReturned(id, name, INTERRUPTED, is_error=True)
        if said.n_calls >= self._budget.calls:
            return ToolRefused(id, name, "budget", "Error: no more calls are allowed. Answer the user now.")
        if arguments is None:
            return ToolRefused(id, name, "arguments", f"Error: the arguments of {name} are not a JSON object.")
        if name not in self._names and not (name == READ_RESULT and said.is_trimmed):
            return ToolRefused(id, name, "unknown", f"Error: there is no function {name}. Use one of those listed.")
        if key_of(name, arguments) in said.done:
            told = "You have already made this call; its result is above. Answer the user now."
            return ToolRefused(id, name, "repeated", told)
        return ToolCalled(id, name, arguments)

    async def _outcome(self, call: ToolCalled) -> ToolOutcome:
        if call.name == READ_RESULT and call.name not in self._names:
            piece = self.said.read(call.arguments)
            return ToolOutcome("there is no such result", True) if piece is None else ToolOutcome(piece)
        return await self._call_tool(call.name, dict(call.arguments))

    async def _in_time(self, awaitable: Awaitable[Any]) -> Any:
        with anyio.move_on_after(max(0.0, self._deadline - self._clock())):
            return await awaitable
        raise _OutOfTime


def _gather(calls: list[dict[str, Any]], pieces: Iterable[Mapping[str, Any]]) -> None:
    """Put the pieces of streamed calls together: a piece with a new index begins a call, others add arguments."""
    for piece in pieces:
        index = piece.get("index", len(calls))
        known = next((call for call in calls if call["index"] == index), None)
        function = piece.get("function") or {}
        if known is None:
            id = piece.get("id") or f"call_{index}"
            if any(call["id"] == id for call in calls):
                id = f"{id}_{index}"
            given = {"name": function.get("name") or "", "arguments": function.get("arguments") or ""}
            calls.append({"index": index, "id": id, "type": "function", "function": given})
        else:
            known["function"]["name"] += function.get("name") or ""
            known["function"]["arguments"] += function.get("arguments") or ""


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
