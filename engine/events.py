"""What happens in an agent's run, in order: enough to show it, to keep it, and to go on with it after a crash.

Knows no loop and no file; each event is one JSON object whose `event` names it."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

StopReason = Literal[
    "answered", "no_answer", "steps", "tokens", "seconds", "calls", "repetition", "no_progress", "cancelled"
]


class _Event(msgspec.Struct, frozen=True, tag_field="event", tag=True):
    """One event."""


class StepStarted(_Event, frozen=True, tag=True):
    """The model is asked, for the `step`th time; `offered` are the names of the tools it may call."""

    step: int
    offered: tuple[str, ...]


class TextWritten(_Event, frozen=True, tag=True):
    """Some more text of the model."""

    text: str


class Turned(_Event, frozen=True, tag=True):
    """What the model wrote in the step, whole: text, calls as in an OpenAI assistant message, and what it cost."""

    text: str
    calls: tuple[dict[str, Any], ...] = ()
    tokens: int = 0
    """Generated."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Of the prompt, those that were not evaluated again."""


class ToolCalled(_Event, frozen=True, tag=True):
    """A call is made."""

    id: str
    name: str
    arguments: dict[str, Any]


class ToolRefused(_Event, frozen=True, tag=True):
    """A call of the model that was not made, and what the model is told."""

    id: str
    name: str
    why: Literal["arguments", "unknown", "repeated", "budget"]
    text: str


class ToolReturned(_Event, frozen=True, tag=True):
    """The call's result, in full."""

    id: str
    name: str
    text: str
    is_error: bool


class Answered(_Event, frozen=True, tag=True):
    """The model's answer to the task; `value` is the JSON value where a schema was asked for."""

    text: str
    value: Any = None


class Stopped(_Event, frozen=True, tag=True):
    """The run is over; always the last event."""

    reason: StopReason
    steps: int
    calls: int
    tokens: int


Event = StepStarted | TextWritten | Turned | ToolCalled | ToolRefused | ToolReturned | Answered | Stopped
