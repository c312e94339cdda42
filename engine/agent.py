"""The agent loop: a task, a model that may call tools, and an end in sight.

Knows only two callables: `generate`, which answers OpenAI chat requests with chunks, and `call_tool`."""

import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import anyio

from engine.narrow import DEFAULT_KEPT, compact, narrow

INSTRUCTIONS: Final = (
    "You are a helpful assistant with access to functions. Call a function whenever it can do what the user asks; "
    "never guess its result. When you have the result, answer the user in one or two sentences."
)
CLOSING: Final = (
    "Answer the user's question in one or two sentences from the information below. It is complete and up to date."
)
REMINDER: Final = "Tell me the result in one or two sentences, or call another function if something is missing."
MAX_STEP_TOKENS: Final = 1_024  # of one model query
MAX_RESULT_CHARS: Final = 4_000  # of one tool result shown to the model
MAX_HISTORY_CHARS: Final = 16_000  # of all messages; older results are shortened above it
SHORTENED_CHARS: Final = 300

StopReason = Literal["answered", "no_answer", "steps", "tokens", "seconds", "calls", "repetition"]


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


@dataclass(frozen=True, slots=True)
class StepStarted:
    """The model is asked, for the `step`th time."""

    step: int
    offered: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TextWritten:
    """Some more text of the model."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCalled:
    """The model calls a tool."""

    id: str
    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ToolReturned:
    """The call's result, in full."""

    id: str
    name: str
    text: str
    is_error: bool


@dataclass(frozen=True, slots=True)
class Answered:
    """The model's answer to the task."""

    text: str


@dataclass(frozen=True, slots=True)
class Stopped:
    """The run is over; always the last event."""

    reason: StopReason
    steps: int
    calls: int
    tokens: int


Event = StepStarted | TextWritten | ToolCalled | ToolReturned | Answered | Stopped
GenerateChunks = Callable[[dict[str, Any]], AsyncIterator[dict[str, Any]]]
CallTool = Callable[[str, dict[str, Any]], Awaitable[ToolOutcome]]


class _OutOfTime(Exception):
    """The seconds of the budget are used up."""


@dataclass
class _Turn:
    """What the model wrote in one step."""

    text: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)


async def run_agent(
    task: str,
    *,
    generate: GenerateChunks,
    call_tool: CallTool,
    tools: Sequence[Mapping[str, Any]],
    budget: Budget = Budget(),  # frozen
    instructions: str = INSTRUCTIONS,
    kept: int = DEFAULT_KEPT,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncGenerator[Event]:
    """Work on `task` until the model answers or the budget ends; yields events as they happen.

    The model sees the `kept` tools that fit the task best. Closing the iterator cancels what is running. Errors of
    `generate` reach the caller; errors of tools are told to the model.
    """
    run = _Run(task, generate, call_tool, tools, budget, instructions, kept, clock)
    reason: StopReason = "seconds"
    try:
        while True:
            if limit := run.exhausted():
                reason = limit
                break
            run.steps += 1
            yield StepStarted(run.steps, run.offered)
            turn = _Turn()
            async with aclosing(run.ask(turn)) as pieces:
                async for piece in pieces:
                    yield piece
            if turn.calls:
                async with aclosing(run.act(turn)) as events:
                    async for event in events:
                        yield event
                if run.n_repeated > 1:
                    reason = "repetition"
                    break
            elif run.may_retry(turn):
                run.choice = "required"
            elif turn.text.strip():
                yield Answered(turn.text.strip())
                reason = "answered"
                break
            else:
                reason = "no_answer"
                break
    except _OutOfTime:
        pass
    yield Stopped(reason, run.steps, run.n_calls, run.n_tokens)


class _Run:
    """The state of one run, owned by `run_agent`."""

    def __init__(
        self,
        task: str,
        generate: GenerateChunks,
        call_tool: CallTool,
        tools: Sequence[Mapping[str, Any]],
        budget: Budget,
        instructions: str,
        kept: int,
        clock: Callable[[], float],
    ) -> None:
        self._generate = generate
        self._call_tool = call_tool
        self._budget = budget
        self._clock = clock
        self._deadline = clock() + budget.seconds
        self._tools = [compact(tool, task if len(tools) > kept else None) for tool in narrow(task, tools, kept)]
        self._names = {str(tool["function"]["name"]) for tool in tools}
        self._messages: list[dict[str, Any]] = [
            {"role": "system", "content": instructions},
            {"role": "user", "content": task},
        ]
        self._done: set[tuple[str, str]] = set()
        self._results: list[tuple[str, str]] = []
        self._has_retried = False
        self.is_closing = False
        self.offered = tuple(tool["function"]["name"] for tool in self._tools)
        self.choice: Literal["auto", "required"] = "auto"
        self.steps = self.n_calls = self.n_tokens = self.n_repeated = 0

    def exhausted(self) -> StopReason | None:
        if self.steps >= self._budget.steps:
            return "steps"
        if self.n_tokens >= self._budget.tokens:
            return "tokens"
        if self.n_calls >= self._budget.calls:
            return "calls"
        return "seconds" if self._clock() >= self._deadline else None

    async def ask(self, turn: _Turn) -> AsyncGenerator[TextWritten]:
        """Query the model into `turn`. Raises: _OutOfTime."""
        self._shorten()
        request: dict[str, Any] = {
            "messages": [*self._messages, *self._reminder()],
            "temperature": 0,
            "max_tokens": min(MAX_STEP_TOKENS, self._budget.tokens - self.n_tokens),
            "stream_options": {"include_usage": True},
        }
        if self.is_closing:
            request["messages"] = self._closing_messages()
        elif self._tools:
            request |= {"tools": self._tools, "tool_choice": self.choice}
        self.choice = "auto"
        chunks = self._generate(request)
        try:
            while (chunk := await self._in_time(anext(chunks, None))) is not None:
                self.n_tokens += (chunk.get("usage") or {}).get("completion_tokens", 0)
                for choice in chunk["choices"]:
                    turn.calls += choice["delta"].get("tool_calls") or ()
                    if text := choice["delta"].get("content"):
                        turn.text += text
                        yield TextWritten(text)
        finally:
            if isinstance(chunks, AsyncGenerator):
                await chunks.aclose()

    def _reminder(self) -> list[dict[str, Any]]:
        """What the model is asked after results: small models otherwise make the same call again."""
        return [{"role": "user", "content": REMINDER}] if self._messages[-1]["role"] == "tool" else []

    async def act(self, turn: _Turn) -> AsyncGenerator[ToolCalled | ToolReturned]:
        """Make the calls of `turn` and tell the model what came back. Raises: _OutOfTime."""
        calls = turn.calls[: max(1, self._budget.calls - self.n_calls)]
        self._messages.append({"role": "assistant", "content": turn.text or None, "tool_calls": _without_index(calls)})
        is_repeated = False
        for call in calls:
            name, text = call["function"]["name"], call["function"]["arguments"]
            arguments = _parsed(text)
            key = (name, json.dumps(arguments, sort_keys=True))
            self.n_calls += 1
            if arguments is None:
                outcome = ToolOutcome(f"Error: the arguments of {name} are not a JSON object.", is_error=True)
            elif name not in self._names:
                outcome = ToolOutcome(f"Error: there is no function {name}. Use one of those listed.", is_error=True)
            elif key in self._done:
                is_repeated = True
                outcome = ToolOutcome("You have already made this call; its result is above. Answer the user now.")
            else:
                self._done.add(key)
                yield ToolCalled(call["id"], name, arguments)
                outcome = await self._in_time(self._call_tool(name, arguments))
                yield ToolReturned(call["id"], name, outcome.text, outcome.is_error)
                self._results.append((name, f"Error: {outcome.text}" if outcome.is_error else outcome.text))
            shown = (
                f"Error: {outcome.text}" if outcome.is_error and "error" not in outcome.text.lower() else outcome.text
            )
            self._messages.append(
                {"role": "tool", "tool_call_id": call["id"], "content": trim(shown, MAX_RESULT_CHARS)}
            )
        if is_repeated:
            self.n_repeated += 1
            self.is_closing = True

    def may_retry(self, turn: _Turn) -> bool:
        """Whether `turn` looks like a call gone wrong and none has been retried yet."""
        looks_like_call = not turn.text.strip() or (
            "{" in turn.text and any(name in turn.text for name in self.offered)
        )
        if self.is_closing or self._has_retried or not looks_like_call or not self._tools:
            return False
        self._has_retried = True
        return True

    def _closing_messages(self) -> list[dict[str, Any]]:
        """The task and what was found out, without tools and without the calls: small models that make the same call
        over and over answer this."""
        found = "\n\n".join(f"{name} returned:\n{trim(text, MAX_RESULT_CHARS)}" for name, text in self._results)
        return [
            {"role": "system", "content": CLOSING},
            {"role": "user", "content": f"{self._messages[1]['content']}\n\nInformation:\n{found}"},
        ]

    async def _in_time(self, awaitable: Awaitable[Any]) -> Any:
        with anyio.move_on_after(max(0.0, self._deadline - self._clock())):
            return await awaitable
        raise _OutOfTime

    def _shorten(self) -> None:
        """Cut the oldest results down while the conversation is too long for a small context."""
        for message in self._messages:
            if sum(len(m["content"] or "") for m in self._messages) <= MAX_HISTORY_CHARS:
                return
            if message["role"] == "tool":
                message["content"] = trim(message["content"], SHORTENED_CHARS)


def trim(text: str, limit: int) -> str:
    """`text` within about `limit` characters: its beginning, its end, and how much is missing between."""
    if len(text) <= limit:
        return text
    head, tail = limit * 3 // 4, limit // 4
    return f"{text[:head]}\n[{len(text) - head - tail} characters left out]\n{text[-tail:]}"


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text or "{}")
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _without_index(calls: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in call.items() if key != "index"} for call in calls]
