"""What a run of an agent has come to.

Knows events and counts them; not who runs it."""

from __future__ import annotations

from engine.events import Event, StepStarted, Stopped, ToolCalled


class Tally:
    """What one run has come to so far, told event by event."""

    def __init__(self) -> None:
        self.steps = self.calls = self.tokens = 0
        self.stopped = "cancelled"

    def note(self, event: Event) -> None:
        match event:
            case StepStarted():
                self.steps = event.step
            case ToolCalled():
                self.calls += 1
            case Stopped():
                self.steps, self.calls, self.tokens = event.steps, event.calls, event.tokens
                self.stopped = event.reason
