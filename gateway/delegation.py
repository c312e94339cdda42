"""The tool `delegate`: a local model works on a task with the caller's tools, and only its answer goes back.

Knows the door and the loop; what each call of the model meets there is what any call of this caller meets."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict
from typing import Annotated, Any, Final

import msgspec
from anyio import to_thread
from msgspec import Meta

from engine import EngineError
from engine.agent import Budget, GenerateChunks, ToolOutcome
from engine.conversation import key_of
from engine.definition import Spending
from engine.events import Answered, StepStarted, Stopped, ToolCalled, ToolReturned
from engine.transcript import Header, Transcript, new_id
from gateway import errors
from gateway.agentrun import NoSuchTool, Tool, carry_out, function_of, is_small, outcome_of, selected
from gateway.agentuse import AgentUses
from gateway.bridge import InputRequired
from gateway.caller import Caller
from gateway.chatstream import RemoteModel, is_elsewhere
from gateway.door import Door
from gateway.inner import Progress, ToolArgumentsInvalid
from gateway.models import Models
from gateway.settings import Settings
from gateway.upstream import Notice
from gateway.wire import envelope
from gateway.wire.envelope import WireError

CLIENT: Final = "lockgate delegate"
MAX_AT_ONCE: Final = 8
MAX_AT_ONCE_OF_ONE: Final = 4
"""Runs under way: of all principals, and of one."""
NEEDS_AN_ANSWER: Final = "The tool asked a question that only a person could answer, so it was given up."


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The arguments of the tool."""

    task: Annotated[str, Meta(min_length=1, max_length=20_000)]
    tools: Annotated[list[Annotated[str, Meta(max_length=128)]], Meta(max_length=200)] = []
    budget: Spending = Spending()
    schema: dict[str, Any] | None = None


DEFINITION: Final[Mapping[str, Any]] = {
    "name": "delegate",
    "title": "Delegate a task",
    "description": (
        "Let a model on this machine work on a task with the tools you have here. What the tools return stays here: "
        "you get the answer, and a receipt that names the calls that were made."
    ),
    "inputSchema": {
        "type": "object",
        "properties": {
            "task": {"type": "string", "description": "What to do, in plain words, with all that must be known"},
            "tools": {
                "type": "array",
                "items": {"type": "string"},
                "description": "Names or patterns (git__*) of the tools it may use; all of yours if left out",
            },
            "budget": {
                "type": "object",
                "properties": {
                    "steps": {"type": "integer", "minimum": 1},
                    "tokens": {"type": "integer", "minimum": 1},
                    "seconds": {"type": "number", "exclusiveMinimum": 0},
                    "calls": {"type": "integer", "minimum": 1},
                },
                "additionalProperties": False,
            },
            "schema": {"type": "object", "description": "A JSON Schema that the answer shall fit"},
        },
        "required": ["task"],
        "additionalProperties": False,
    },
    "annotations": {"title": "Delegate a task", "readOnlyHint": False, "openWorldHint": True},
}


class Delegate:
    """The tool, over the door and the models."""

    definition = DEFINITION

    def __init__(self, settings: Settings, door: Door, models: Models, uses: AgentUses) -> None:
        self._settings = settings
        self._door = door
        self._models = models
        self._uses = uses
        self._running: Counter[str] = Counter()

    async def call(self, caller: Caller, arguments: Mapping[str, Any], progress: Progress) -> Mapping[str, Any]:
        try:
            order = msgspec.convert(dict(arguments), Order)
        except (msgspec.ValidationError, RecursionError) as exc:
            raise ToolArgumentsInvalid(f"delegate: {exc}") from exc
        who = caller.principal.id
        if self._running.total() >= MAX_AT_ONCE or self._running[who] >= MAX_AT_ONCE_OF_ONE:
            return _refusal("too many tasks are being worked on; try again later. A retry is safe.")
        self._running[who] += 1
        try:
            return await self._work(caller, order, progress)
        except (EngineError, errors.GatewayError) as exc:
            return _refusal(str(exc))
        finally:
            self._running[who] -= 1
            if not self._running[who]:
                del self._running[who]

    async def _work(self, caller: Caller, order: Order, progress: Progress) -> Mapping[str, Any]:
        # A caller of its own: it takes no tasks, answers no questions, waits for no approval, and has the same rights.
        own = Caller(caller.principal, caller.profile, CLIENT)
        own.waits = False
        tools = await self._tools(own, order.tools)
        budget = order.budget.budget()
        header = Header(
            run=new_id(),
            at=time.time(),
            task=order.task,
            model=self._settings.model,
            profile=caller.profile.name,
            budget=asdict(budget),
            tools=order.tools,
            functions=[function_of(tool) for tool in tools],
            schema=order.schema,
            agent="delegate",
            insist=await to_thread.run_sync(is_small, self._models.store, self._settings.model),
        )

        async def call_tool(name: str, arguments: dict[str, Any]) -> ToolOutcome:
            return await self._call(own, name, arguments)

        receipt = _Receipt(header, budget, progress)
        with (
            self._uses.run(own, header) as tally,
            await to_thread.run_sync(Transcript.create, self._settings.transcripts_dir, header) as transcript,
        ):
            async with (
                self._model(own, header.model) as generate,
                aclosing(carry_out(header, transcript, generate, call_tool)) as events,
            ):
                async for event in events:
                    receipt.note(event)
                    tally.note(event)
        return receipt.result()

    @asynccontextmanager
    async def _model(self, caller: Caller, ref: str) -> AsyncIterator[GenerateChunks]:
        if is_elsewhere(ref):
            async with RemoteModel(ref) as remote:
                yield lambda request: self._models.elsewhere(ref, request, remote.chat, by=caller)
            return

        def generate(request: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
            return self._models.chat({**request, "model": ref}, by=caller)

        yield generate

    async def _tools(self, caller: Caller, patterns: Sequence[str]) -> list[Tool]:
        """What the caller may see here, without the gateway's own tools: a task is not handed on for ever."""
        if self._door.admits(caller):
            await self._door.learn(caller.profile.names, caller=caller)
        view = self._door.surface(caller)
        servers = self._door.pool.servers
        inner = {name for name, target in view.tools.items() if servers[target.server].entry.built_in}
        # With a budget the list is short, and has tools that call any other, also this one.
        definitions = view.pages["tools/list"].raw if view.shelf is None else view.shelf.definitions.values()
        listed: list[Tool] = [envelope.value(raw) for raw in definitions]
        try:
            return selected((tool for tool in listed if tool["name"] not in inner), patterns)
        except NoSuchTool as exc:
            raise errors.UnknownName(f"you have no tool that {exc.pattern} names") from exc

    async def _call(self, caller: Caller, name: str, arguments: dict[str, Any]) -> ToolOutcome:
        params = envelope.encode({"name": envelope.raw(name), "arguments": envelope.raw(arguments)})
        try:
            outcome = await self._door.call(caller, "tools/call", params, _silent)
        except (errors.DoorError, errors.UpstreamError, WireError) as exc:
            return ToolOutcome(str(exc), is_error=True)
        if isinstance(outcome, InputRequired):
            self._door.give_up(outcome)
            return ToolOutcome(NEEDS_AN_ANSWER, is_error=True)
        if outcome.result is None:
            return ToolOutcome(str(envelope.value(outcome.error or b"{}").get("message", "refused")), is_error=True)
        return outcome_of(envelope.value(outcome.result))


class _Receipt:
    """What the caller learns of a run: the answer, which calls were made and how they went, what it cost."""

    def __init__(self, header: Header, budget: Budget, progress: Progress) -> None:
        self._header = header
        self._budget = budget
        self._progress = progress
        self._step = 0
        self._calls: dict[str, dict[str, Any]] = {}
        self._answer: Answered | None = None
        self._stopped: Stopped | None = None

    def note(self, event: object) -> None:
        match event:
            case StepStarted():
                self._step = event.step
                self._tell("thinking")
            case ToolCalled():
                digest = hashlib.sha256("\0".join(key_of(event.name, event.arguments)).encode()).hexdigest()
                self._calls[f"{self._step} {event.id}"] = {"tool": event.name, "sha256": digest, "outcome": "open"}
                self._tell(f"calls {event.name}")
            case ToolReturned():
                self._calls[f"{self._step} {event.id}"]["outcome"] = "error" if event.is_error else "ok"
            case Answered():
                self._answer = event
            case Stopped():
                self._stopped = event

    def _tell(self, text: str) -> None:
        """Progress must grow with each notification (MCP, basic/utilities/progress)."""
        self._progress(self._step + len(self._calls) / 1_000, self._budget.steps, text)

    def result(self) -> Mapping[str, Any]:
        stopped, answer = self._stopped, self._answer
        receipt = {
            "run": self._header.run,
            "model": self._header.model,
            "calls": list(self._calls.values()),
            "steps": stopped.steps if stopped else self._step,
            "tokens": stopped.tokens if stopped else 0,
            "seconds": round(time.time() - self._header.at, 3),
            "stopped": stopped.reason if stopped else "cancelled",
        }
        if answer is None:
            text = f"no answer: stopped for {receipt['stopped']} after {receipt['steps']} steps"
            return {**_refusal(text), "structuredContent": {"receipt": receipt}}
        told: dict[str, Any] = {"answer": answer.text, "receipt": receipt}
        if self._header.schema is not None:
            told["value"] = answer.value
        return {"content": [{"type": "text", "text": answer.text}], "structuredContent": told}


def _refusal(text: str) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": text}], "isError": True}


async def _silent(notice: Notice) -> None:
    """Progress of a tool is not the caller's: it is not told what the tools say."""
