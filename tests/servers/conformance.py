"""The server that the MCP conformance suite asks for, in one protocol era or both, over stdio or HTTP.

Knows the names and answers the suite expects and nothing of what stands in front of it; imports only `mcp`, so that
it can also be packed into a wheel and run from there.

A tool is written once. When it needs something from the user it awaits `Call.ask`, which in the legacy era sends
requests to the client and in the modern era (MCP 2026-07-28) ends the call with `input_required`: the client repeats
the call, the tool runs again from its first line, and `ask` finds the answers.

    python conformance.py --transport http --era legacy --port 4000
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import hashlib
import hmac
import json
import secrets
import sys
import time
import uuid
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

import anyio
import mcp_types as types
import uvicorn
from mcp.server import Server

# Private, but the only way in that does not take a request without the version header for one of the legacy era.
from mcp.server._streamable_http_modern import handle_modern_request
from mcp.server.caching import CacheHint
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.server.lowlevel.server import NotificationOptions
from mcp.server.models import InitializationOptions
from mcp.server.runner import serve_loop
from mcp.server.stdio import stdio_server
from mcp.server.streamable_http import EventCallback, EventMessage, EventStore
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.subscriptions import (
    InMemorySubscriptionBus,
    ListenHandler,
    PromptsListChanged,
    ResourceUpdated,
    ServerEvent,
    ToolsListChanged,
)
from mcp.server.transport_security import TransportSecuritySettings
from mcp.shared.exceptions import MCPDeprecationWarning, MCPError
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS, MODERN_PROTOCOL_VERSIONS
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

Era = Literal["legacy", "modern", "both"]
Json = dict[str, Any]

LOG_PAUSE_S: Final = 0.05
RECONNECT_PAUSE_S: Final = 0.2
"""How long `test_reconnection` goes on working after it has closed the stream of its call."""
RETRY_MS: Final = 100
TASKS: Final = "io.modelcontextprotocol/tasks"
CAPABILITIES: Final = "io.modelcontextprotocol/clientCapabilities"
TASK_TTL_MS: Final = 600_000
TASK_POLL_MS: Final = 200
JOB_S: Final = 1.5
"""How long jobs work at least: longer than a gateway waits before it makes a task of a call to a legacy server."""
HEADER_MISMATCH: Final = -32020
LEGACY_NOT_FOUND: Final = -32002
"""What servers of the legacy era answer for an unknown resource; the modern era uses -32602."""

PNG: Final = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
WAV: Final = base64.b64encode(
    b"RIFF" + (38).to_bytes(4, "little") + b"WAVEfmt " + (16).to_bytes(4, "little") + b"\1\0\1\0"
    + (8000).to_bytes(4, "little") + (8000).to_bytes(4, "little") + b"\1\0\x08\0data"
    + (2).to_bytes(4, "little") + b"\x80\x80"
).decode()  # fmt: skip
WATCHED: Final = "test://watched-resource"


# -- questions to the client -------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """A request to the client, and the capability the client must have declared to get it."""

    method: str
    params: Json
    capability: Literal["elicitation", "sampling", "roots"]


def elicit(message: str, properties: Json, required: list[str] | None = None) -> Question:
    wanted = list(properties) if required is None else required
    schema = {"type": "object", "properties": properties, "required": wanted}
    return Question("elicitation/create", {"message": message, "requestedSchema": schema}, "elicitation")


def sample(prompt: str, max_tokens: int = 100) -> Question:
    message = {"role": "user", "content": {"type": "text", "text": prompt}}
    return Question("sampling/createMessage", {"messages": [message], "maxTokens": max_tokens}, "sampling")


ROOTS: Final = Question("roots/list", {}, "roots")


class InputRequired(Exception):
    """The modern era's way to ask: ends the call with what is still to be answered."""

    def __init__(self, questions: Mapping[str, Question], state: str) -> None:
        self.result = {
            "resultType": "input_required",
            "inputRequests": {key: {"method": q.method, "params": q.params} for key, q in questions.items()},
            "requestState": state,
        }


class ToolFailed(Exception):
    """The tool could not do it; the caller's model reads why."""


class JobBroke(MCPError):
    """An error of the protocol, whatever the era."""


class StateSeal:
    """Signs what the modern era keeps at the client between two rounds: the answers so far."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def close(self, answers: Json) -> str:
        text = base64.urlsafe_b64encode(json.dumps(answers, sort_keys=True).encode()).decode()
        return f"{text}.{self._signature(text)}"

    def open(self, state: str) -> Json:
        text, _, signature = state.partition(".")
        if not hmac.compare_digest(signature.encode(), self._signature(text).encode()):
            raise MCPError(types.INVALID_PARAMS, "requestState was altered or is not from this server")
        answers: Json = json.loads(base64.urlsafe_b64decode(text))
        return answers

    def _signature(self, text: str) -> str:
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()


@dataclass
class Call:
    """One tools/call or prompts/get, as the tool sees it."""

    fixture: Fixture
    ctx: ServerRequestContext[Any, Any]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    answers: Json = field(default_factory=dict)
    """Modern era: what the client has answered, in this round or an earlier one."""
    task: Task | None = None
    """Modern era, for a client that takes tasks: what this call may become."""

    @property
    def is_modern(self) -> bool:
        return self.ctx.protocol_version in MODERN_PROTOCOL_VERSIONS

    def declares(self, capability: str) -> bool:
        declared = self.ctx.session.client_capabilities
        return declared is not None and getattr(declared, capability) is not None

    def becomes_task(self) -> None:
        """From here on the call takes long: a client that takes tasks gets one now."""
        if self.task is not None:
            self.task.begun.set()

    async def ask(self, questions: Mapping[str, Question]) -> Json:
        """The answers by key; in the legacy era all questions are in flight at once.

        Raises:
            MCPError: the client answered a question with an error, or (modern era) lacks a capability.
            ToolFailed: the client lacks a capability, for which the legacy era has no error of its own.
        """
        if missing := sorted({q.capability for q in questions.values() if not self.declares(q.capability)}):
            raise missing_capability(*missing) if self.is_modern else ToolFailed(f"the client lacks {missing}")
        if self.task is not None and self.task.begun.is_set():
            return await self.task.ask(questions)
        if self.is_modern:
            if open_questions := {key: q for key, q in questions.items() if key not in self.answers}:
                raise InputRequired(open_questions, self.fixture.seal.close(self.answers))
            return {key: self.answers[key] for key in questions}
        answers: Json = {}
        refusals: list[MCPError] = []

        async def one(key: str, question: Question) -> None:
            try:
                answers[key] = await self._request(key, question)
            except MCPError as exc:
                refusals.append(exc)

        async with anyio.create_task_group() as tasks:
            for key, question in questions.items():
                tasks.start_soon(one, key, question)
        if refusals:
            raise refusals[0]
        return answers

    async def _request(self, key: str, question: Question) -> Json:
        """A request on the stream of this call. Its id is the question's key, so that a bridge may keep the name."""
        channel = self.ctx.session._request_outbound  # no public way to choose the id
        try:
            return await channel.send_raw_request(question.method, question.params, {"request_id": key})
        except ValueError:  # the id is in flight: another call on this connection waits for the same answer
            return await channel.send_raw_request(
                question.method, question.params, {"request_id": f"{key}-{secrets.token_hex(4)}"}
            )

    async def log(self, text: str) -> None:
        await self.ctx.session.send_log_message("info", text, related_request_id=self.ctx.request_id)

    async def announce(self, event: ServerEvent) -> None:
        """Tell this connection (legacy era) and every listening stream (modern era)."""
        await self.fixture.bus.publish(event)
        if not self.is_modern:
            match event:
                case ToolsListChanged():
                    await self.ctx.session.send_tool_list_changed()
                case PromptsListChanged():
                    await self.ctx.session.send_prompt_list_changed()
                case ResourceUpdated(uri) if uri in self.fixture.subscribed.get(id(self.ctx.session._connection), ()):
                    await self.ctx.session.send_resource_updated(uri)


class Task:
    """A call of the modern era that goes on after the client was told so (io.modelcontextprotocol/tasks)."""

    def __init__(self) -> None:
        self.id = secrets.token_hex(16)
        self.begun = asyncio.Event()
        self.work: asyncio.Task[Json] | None = None
        self.is_cancelled = False
        self._questions: dict[str, Question] = {}
        self._answers: Json = {}
        self._answered = asyncio.Event()
        self._created = datetime.now(UTC).isoformat()

    async def ask(self, questions: Mapping[str, Question]) -> Json:
        self._questions, self._answers = dict(questions), {}
        self._answered.clear()
        await self._answered.wait()
        return self._answers

    def update(self, answers: Json) -> None:
        for key in [key for key in answers if key in self._questions]:
            self._answers[key] = answers[key]
            del self._questions[key]
        if not self._questions:
            self._answered.set()

    def cancel(self) -> None:
        if self.work is not None and not self.work.done():
            self.is_cancelled = True
            self.work.cancel()

    def state(self) -> Json:
        times = {"createdAt": self._created, "lastUpdatedAt": datetime.now(UTC).isoformat()}
        return {"taskId": self.id, "status": "working", **times, "ttlMs": TASK_TTL_MS, "pollIntervalMs": TASK_POLL_MS}

    def detailed(self) -> Json:
        state = {"resultType": "complete", **self.state()}
        if self.is_cancelled:
            return state | {"status": "cancelled"}
        if self._questions:
            requests = {key: {"method": q.method, "params": q.params} for key, q in self._questions.items()}
            return state | {"status": "input_required", "inputRequests": requests}
        if self.work is None or not self.work.done():
            return state
        if isinstance(failure := self.work.exception(), MCPError):
            return state | {"status": "failed", "error": {"code": failure.code, "message": failure.message}}
        return state | {"status": "completed", "result": self.work.result()}


def missing_capability(*names: str) -> MCPError:
    return MCPError(
        types.MISSING_REQUIRED_CLIENT_CAPABILITY,
        f"this needs a client that declares {', '.join(names)}",
        {"requiredCapabilities": {name: {} for name in names}},
    )


def missing_extension() -> MCPError:
    needed = {"requiredCapabilities": {"extensions": {TASKS: {}}}}
    return MCPError(types.MISSING_REQUIRED_CLIENT_CAPABILITY, "this needs a client that takes tasks", needed)


# -- tools -------------------------------------------------------------------------------------------

Content = list[Json]
Handler = Callable[[Call], Awaitable[Content]]
ONLY_AS_TASK: Final = ("failing_job", "test_tool_with_task")
"""Jobs the modern era refuses to clients that take no tasks. In the legacy era only a gateway can refuse them."""
TOOLS: dict[str, tuple[Json, Handler]] = {}


def tool(schema: Json | None = None) -> Callable[[Handler], Handler]:
    """Add a tool under its function's name, described by its docstring."""

    def add(handler: Handler) -> Handler:
        input_schema = {"type": "object", "properties": {}} if schema is None else schema
        name = handler.__name__
        TOOLS[name] = ({"name": name, "description": handler.__doc__, "inputSchema": input_schema}, handler)
        return handler

    return add


def text(value: str) -> Json:
    return {"type": "text", "text": value}


def image() -> Json:
    return {"type": "image", "data": PNG, "mimeType": "image/png"}


def resource(uri: str, mime: str, value: str) -> Json:
    return {"type": "resource", "resource": {"uri": uri, "mimeType": mime, "text": value}}


def strings(**descriptions: str) -> Json:
    properties = {name: {"type": "string", "description": words} for name, words in descriptions.items()}
    return {"type": "object", "properties": properties, "required": list(descriptions)}


@tool()
async def test_simple_text(call: Call) -> Content:
    """Answer with text."""
    return [text("This is a simple text response for testing.")]


@tool()
async def test_image_content(call: Call) -> Content:
    """Answer with a picture."""
    return [image()]


@tool()
async def test_audio_content(call: Call) -> Content:
    """Answer with sound."""
    return [{"type": "audio", "data": WAV, "mimeType": "audio/wav"}]


@tool()
async def test_embedded_resource(call: Call) -> Content:
    """Answer with an embedded resource."""
    return [resource("test://embedded-resource", "text/plain", "This is an embedded resource content.")]


@tool()
async def test_multiple_content_types(call: Call) -> Content:
    """Answer with text, a picture and a resource."""
    mixed = resource("test://mixed-content-resource", "application/json", '{"test":"data","value":123}')
    return [text("Multiple content types test:"), image(), mixed]


@tool()
async def test_error_handling(call: Call) -> Content:
    """Fail."""
    raise ToolFailed("This tool intentionally returns an error for testing")


@tool()
async def test_tool_with_logging(call: Call) -> Content:
    """Log three times while working."""
    for line in ("Tool execution started", "Tool processing data", "Tool execution completed"):
        await call.log(line)
        await asyncio.sleep(LOG_PAUSE_S)
    return [text("logged three times")]


@tool()
async def test_logging_tool(call: Call) -> Content:
    """Log once; a modern client that asked for no log must see nothing of it."""
    await call.log("test_logging_tool at work")
    return [text("logged once")]


@tool()
async def test_tool_with_progress(call: Call) -> Content:
    """Report progress three times."""
    for done in (0, 50, 100):
        await call.ctx.session.report_progress(done, 100, f"{done} of 100")
        await asyncio.sleep(LOG_PAUSE_S)
    return [text("done")]


@tool()
async def test_reconnection(call: Call) -> Content:
    """Close the event stream of this call before the answer; the client comes back for it with Last-Event-ID."""
    if call.ctx.close_sse_stream is not None:
        await call.ctx.close_sse_stream()
        await asyncio.sleep(RECONNECT_PAUSE_S)
    return [text("Reconnection test completed")]


@tool(strings(prompt="What to ask the model"))
async def test_sampling(call: Call) -> Content:
    """Ask the client's model."""
    answers = await call.ask({"sampling": sample(call.arguments["prompt"])})
    return [text(f"LLM response: {json.dumps(answers['sampling'].get('content'))}")]


@tool(strings(message="What to ask the user"))
async def test_elicitation(call: Call) -> Content:
    """Ask the user for two words."""
    fields = {name: {"type": "string", "description": name} for name in ("username", "email")}
    answers = await call.ask({"elicitation": elicit(call.arguments["message"], fields)})
    return [text(f"User response: {json.dumps(answers['elicitation'])}")]


@tool()
async def test_elicitation_sep1034_defaults(call: Call) -> Content:
    """Ask with a default for every primitive type."""
    fields = {
        "name": {"type": "string", "description": "User name", "default": "John Doe"},
        "age": {"type": "integer", "description": "User age", "default": 30},
        "score": {"type": "number", "description": "User score", "default": 95.5},
        "status": {"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
        "verified": {"type": "boolean", "description": "Verified", "default": True},
    }
    answers = await call.ask({"defaults": elicit("Please check these values", fields, required=[])})
    return [text(f"Elicitation completed: {json.dumps(answers['defaults'])}")]


@tool()
async def test_elicitation_sep1330_enums(call: Call) -> Content:
    """Ask with every form an enumeration may take."""
    options = ["option1", "option2", "option3"]
    titled = [{"const": f"value{n}", "title": f"{word} Option"} for n, word in enumerate(("First", "Second", "Third"))]
    fields = {
        "untitledSingle": {"type": "string", "enum": options},
        "titledSingle": {"type": "string", "oneOf": titled},
        "legacyEnum": {"type": "string", "enum": options, "enumNames": ["Option One", "Option Two", "Option Three"]},
        "untitledMulti": {"type": "array", "items": {"type": "string", "enum": options}},
        "titledMulti": {"type": "array", "items": {"anyOf": titled}},
    }
    answers = await call.ask({"enums": elicit("Please choose", fields, required=[])})
    return [text(f"Elicitation completed: {json.dumps(answers['enums'])}")]


@tool()
async def test_streaming_elicitation(call: Call) -> Content:
    """Ask, on a stream the suite reads for requests that must not be there."""
    if not call.declares("elicitation"):
        return [text("nobody to ask")]
    await call.ask({"confirmation": elicit("Please confirm", {"ok": {"type": "boolean"}})})
    return [text("confirmed")]


@tool()
async def test_missing_capability(call: Call) -> Content:
    """Need sampling, and say so in the protocol's own words when the client has none."""
    try:
        await call.ask({"sampling": sample("Are you there?")})
    except (MCPError, ToolFailed) as exc:
        raise missing_capability("sampling") from exc
    return [text("the client can sample")]


@tool(
    {
        "type": "object",
        "properties": {"region": {"type": "string", "description": "Where", "x-mcp-header": "Region"}},
        "required": ["region"],
    }
)
async def test_x_mcp_header(call: Call) -> Content:
    """Take an argument that HTTP clients repeat in a header."""
    return [text(f"region: {call.arguments['region']}")]


@tool(
    {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "$defs": {
            "address": {
                "$anchor": "addressDef",
                "type": "object",
                "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
            }
        },
        "properties": {
            "name": {"type": "string"},
            "address": {"$ref": "#/$defs/address"},
            "contactMethod": {"type": "string", "enum": ["phone", "email"]},
            "phone": {"type": "string"},
            "email": {"type": "string"},
        },
        "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
        "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
        "then": {"required": ["phone"]},
        "else": {"required": ["email"]},
        "additionalProperties": False,
    }
)
async def json_schema_2020_12_tool(call: Call) -> Content:
    """Show a schema with the vocabulary of JSON Schema 2020-12."""
    return [text(json.dumps(dict(call.arguments)))]


@tool()
async def test_trigger_tool_change(call: Call) -> Content:
    """Add a tool and take it away again, saying so both times."""
    call.fixture.has_temporary_tool = True
    await call.announce(ToolsListChanged())
    call.fixture.has_temporary_tool = False
    await call.announce(ToolsListChanged())
    return [text("the tools changed twice")]


@tool()
async def test_trigger_prompt_change(call: Call) -> Content:
    """Say that the prompts changed."""
    await call.announce(PromptsListChanged())
    return [text("the prompts changed")]


@tool()
async def test_trigger_resource_update(call: Call) -> Content:
    """Change the watched resource and tell who subscribed to it."""
    call.fixture.watched_revision += 1
    await call.announce(ResourceUpdated(WATCHED))
    return [text(f"revision {call.fixture.watched_revision}")]


# -- tools that need input (the suite's input-required-result scenarios) -------------------------------

NAME_FIELD: Final = {"name": {"type": "string"}}


@tool()
async def test_input_required_result_elicitation(call: Call) -> Content:
    """Ask for a name and greet it."""
    answer = (await call.ask({"user_name": elicit("What is your name?", NAME_FIELD)}))["user_name"]
    name = answer["content"].get("name") if answer.get("action") == "accept" else None
    return [text(f"Hello, {name or 'whoever you are'}!")]


@tool()
async def test_input_required_result_sampling(call: Call) -> Content:
    """Ask the client's model one question."""
    answers = await call.ask({"capital_question": sample("What is the capital of France?")})
    return [text(f"The model says: {json.dumps(answers['capital_question'].get('content'))}")]


@tool()
async def test_input_required_result_list_roots(call: Call) -> Content:
    """Ask for the client's roots."""
    answers = await call.ask({"client_roots": ROOTS})
    return [text(f"Roots: {', '.join(root['uri'] for root in answers['client_roots']['roots'])}")]


@tool()
async def test_input_required_result_request_state(call: Call) -> Content:
    """Ask for a confirmation, with state that has to come back."""
    await call.ask({"confirm": elicit("Please confirm", {"ok": {"type": "boolean"}})})
    return [text("state-ok")]


@tool()
async def test_input_required_result_tampered_state(call: Call) -> Content:
    """The same, for the client that alters the state."""
    await call.ask({"confirm": elicit("Please confirm", {"ok": {"type": "boolean"}})})
    return [text("state-ok")]


@tool()
async def test_input_required_result_multiple_inputs(call: Call) -> Content:
    """Ask three things at once."""
    answers = await call.ask(
        {
            "user_name": elicit("What is your name?", NAME_FIELD),
            "greeting": sample("Generate a greeting", 50),
            "client_roots": ROOTS,
        }
    )
    return [text(f"Received: {', '.join(sorted(answers))}")]


@tool()
async def test_input_required_result_multi_round(call: Call) -> Content:
    """Ask one thing, and after its answer another."""
    first = await call.ask({"step1": elicit("Step 1: What is your name?", NAME_FIELD)})
    second = await call.ask({"step2": elicit("Step 2: What is your favorite color?", {"color": {"type": "string"}})})
    return [text(f"{json.dumps(first['step1'])} likes {json.dumps(second['step2'])}")]


@tool()
async def test_input_required_result_capabilities(call: Call) -> Content:
    """Ask whatever this client can answer, and go on without the rest."""
    offered = {
        "user_name": elicit("What is your name?", NAME_FIELD),
        "capital_question": sample("What is the capital of France?"),
        "client_roots": ROOTS,
    }
    questions = {key: question for key, question in offered.items() if call.declares(question.capability)}
    if call.is_modern:
        return [text(f"answered: {', '.join(await call.ask(questions))}")]
    answered: list[str] = []

    async def one(key: str, question: Question) -> None:
        try:
            await call.ask({key: question})
            answered.append(key)
        except MCPError:  # a bridge that declared more for all its clients than this one can do
            pass

    async with anyio.create_task_group() as tasks:
        for key, question in questions.items():
            tasks.start_soon(one, key, question)
    return [text(f"answered: {', '.join(answered)}")]


# -- tools that may become tasks (the suite's tasks scenarios) -----------------------------------------


@tool(strings(name="Whom to greet"))
async def greet(call: Call) -> Content:
    """Greet at once."""
    return [text(f"Hello, {call.arguments['name']}!")]


@tool({"type": "object", "properties": {"seconds": {"type": "number"}, "label": {"type": "string"}}})
async def slow_compute(call: Call) -> Content:
    """Take some seconds; none means at once."""
    if seconds := call.arguments.get("seconds", 0):
        call.becomes_task()
        await asyncio.sleep(max(seconds, JOB_S))
    return [text(f"computed {call.arguments.get('label', '')}")]


@tool()
async def failing_job(call: Call) -> Content:
    """Work for a while and fail."""
    call.becomes_task()
    await asyncio.sleep(JOB_S)
    raise ToolFailed("This job always fails")


@tool()
async def protocol_error_job(call: Call) -> Content:
    """Work for a while and end with an error of the protocol."""
    call.becomes_task()
    await asyncio.sleep(JOB_S)
    raise JobBroke(types.INTERNAL_ERROR, "the job broke")


@tool(strings(filename="What to delete"))
async def confirm_delete(call: Call) -> Content:
    """Look for a file, and ask before it is deleted."""
    call.becomes_task()
    await asyncio.sleep(JOB_S)
    answers = await call.ask({"confirmation": elicit("Really delete it?", {"confirm": {"type": "boolean"}})})
    return [text(f"confirmed: {json.dumps(answers['confirmation'])}")]


@tool()
async def multi_input(call: Call) -> Content:
    """Work for a while, and ask two things at once."""
    call.becomes_task()
    await asyncio.sleep(JOB_S)
    first, second = (elicit(question, NAME_FIELD) for question in ("What is your name?", "And your dog's?"))
    answers = await call.ask({"own_name": first, "dog_name": second})
    return [text(f"answered: {', '.join(sorted(answers))}")]


@tool()
async def test_tool_with_task(call: Call) -> Content:
    """Ask first, and work for a while after."""
    answers = await call.ask({"user_name": elicit("What is your name?", NAME_FIELD)})
    call.becomes_task()
    await asyncio.sleep(JOB_S)
    return [text(f"Worked for {answers['user_name']['content'].get('name')}")]


# -- prompts and resources ---------------------------------------------------------------------------


def prompt(name: str, description: str, **arguments: str) -> Json:
    wanted = [{"name": key, "description": words, "required": True} for key, words in arguments.items()]
    return {"name": name, "description": description} | ({"arguments": wanted} if wanted else {})


PROMPTS: Final = [
    prompt("test_simple_prompt", "A prompt without arguments"),
    prompt("test_prompt_with_arguments", "A prompt with two arguments", arg1="First", arg2="Second"),
    prompt("test_prompt_with_embedded_resource", "A prompt with a resource in it", resourceUri="Which resource"),
    prompt("test_prompt_with_image", "A prompt with a picture in it"),
    prompt("test_input_required_result_prompt", "A prompt that first asks the user"),
]


async def prompt_contents(name: str, call: Call) -> Content:
    given = call.arguments
    match name:
        case "test_simple_prompt":
            return [text("This is a simple prompt for testing.")]
        case "test_prompt_with_arguments":
            return [text(f"Prompt with arguments: arg1='{given.get('arg1')}', arg2='{given.get('arg2')}'")]
        case "test_prompt_with_embedded_resource":
            embedded = resource(str(given.get("resourceUri")), "text/plain", "Embedded resource content for testing.")
            return [embedded, text("Please process the embedded resource above.")]
        case "test_prompt_with_image":
            return [image(), text("Please analyze the image above.")]
        case "test_input_required_result_prompt":
            fields = {"context": {"type": "string"}}
            answers = await call.ask({"user_context": elicit("What context should the prompt use?", fields)})
            return [text(f"Use this context: {json.dumps(answers['user_context'].get('content'))}")]
        case _:
            raise MCPError(types.INVALID_PARAMS, f"no prompt is named {name!r}")


RESOURCES: Final = [
    {"uri": "test://static-text", "name": "static-text", "description": "Text", "mimeType": "text/plain"},
    {"uri": "test://static-binary", "name": "static-binary", "description": "A picture", "mimeType": "image/png"},
    {"uri": WATCHED, "name": "watched-resource", "description": "It changes", "mimeType": "text/plain"},
]
TEMPLATE: Final = {
    "uriTemplate": "test://template/{id}/data",
    "name": "template",
    "description": "Data of one id",
    "mimeType": "application/json",
}


# -- the server --------------------------------------------------------------------------------------


class _FixtureServer(Server[Json]):
    """Announces changes also in the legacy era, which the HTTP session manager would not."""

    def create_initialization_options(
        self, notification_options: NotificationOptions | None = None, *args: Any, **kwargs: Any
    ) -> InitializationOptions:
        return super().create_initialization_options(
            notification_options or NotificationOptions(True, True, True), *args, **kwargs
        )


class Fixture:
    """The server's state and handlers; `server` is what the transports run."""

    def __init__(self, era: Era) -> None:
        self.era = era
        self.seal = StateSeal()
        self.bus = InMemorySubscriptionBus()
        self.subscribed: dict[int, set[str]] = {}
        """Legacy era: connection to the URIs it subscribed to."""
        self.has_temporary_tool = False
        self.watched_revision = 1
        hints = ("tools/list", "prompts/list", "resources/list", "resources/templates/list", "resources/read")
        self.server = _FixtureServer(
            "lockgate-conformance-fixture",
            version="1.0.0",
            cache_hints={method: CacheHint(1000, "public") for method in (*hints, "server/discover")},  # type: ignore[misc]  # literals all
            get_tool_input_schema=lambda name: TOOLS[name][0]["inputSchema"] if name in TOOLS else None,
        )
        self.server.middleware[:] = [self._right_era, self._with_tasks]
        self.tasks: dict[str, Task] = {}
        if era != "legacy":
            self.server.extensions[TASKS] = {}
        add = self.server.add_request_handler
        add("tools/list", types.PaginatedRequestParams, self._list_tools)
        add("tools/call", types.CallToolRequestParams, self._call_tool)
        add("prompts/list", types.PaginatedRequestParams, self._list_prompts)
        add("prompts/get", types.GetPromptRequestParams, self._get_prompt)
        add("resources/list", types.PaginatedRequestParams, self._list_resources)
        add("resources/templates/list", types.PaginatedRequestParams, self._list_templates)
        add("resources/read", types.ReadResourceRequestParams, self._read_resource)
        add("resources/subscribe", types.SubscribeRequestParams, self._subscribe)
        add("resources/unsubscribe", types.UnsubscribeRequestParams, self._unsubscribe)
        add("completion/complete", types.CompleteRequestParams, self._complete)
        add("logging/setLevel", types.SetLevelRequestParams, self._nothing)
        add("subscriptions/listen", types.SubscriptionsListenRequestParams, ListenHandler(self.bus))

    async def _right_era(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        if self.era == "modern" and ctx.protocol_version not in MODERN_PROTOCOL_VERSIONS:
            raise _wrong_era((ctx.params or {}).get("protocolVersion"))
        return await call_next(ctx)

    async def _with_tasks(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        """The tasks extension, before the SDK: it knows no result of that type and none of the methods."""
        params = dict(ctx.params or {})
        if ctx.protocol_version not in MODERN_PROTOCOL_VERSIONS:
            return await call_next(ctx)
        declared = TASKS in params.get("_meta", {}).get(CAPABILITIES, {}).get("extensions", {})
        if ctx.method == "tools/call":
            if declared and params.get("name") in TOOLS:
                return await self._task_or_result(ctx, types.CallToolRequestParams.model_validate(params))
            if not declared and params.get("name") in ONLY_AS_TASK:
                raise missing_extension()
        if ctx.method not in ("tasks/get", "tasks/update", "tasks/cancel"):
            return await call_next(ctx)
        if ctx.request is not None and ctx.request.headers.get("mcp-name") != params.get("taskId"):
            raise MCPError(HEADER_MISMATCH, "Mcp-Name does not repeat the task's id")
        if not declared:
            raise missing_extension()
        task = self.tasks.get(str(params.get("taskId")))
        if task is None:
            raise MCPError(types.INVALID_PARAMS, "Task not found")
        if ctx.method == "tasks/get":
            return task.detailed()
        if ctx.method == "tasks/update":
            task.update(params.get("inputResponses", {}))
        else:
            task.cancel()
        return {"resultType": "complete"}

    async def _task_or_result(
        self, ctx: ServerRequestContext[Any, Any], params: types.CallToolRequestParams
    ) -> HandlerResult:
        task = Task()
        task.work = asyncio.create_task(self._call_tool(ctx, params, task))
        begun = asyncio.create_task(task.begun.wait())
        await asyncio.wait({task.work, begun}, return_when=asyncio.FIRST_COMPLETED)
        begun.cancel()
        if not task.begun.is_set():
            return await task.work
        self.tasks[task.id] = task
        return {"resultType": "task", **task.state()}

    async def _list_tools(self, ctx: Any, params: types.PaginatedRequestParams) -> Json:
        tools = [description for description, _ in TOOLS.values()]
        if self.has_temporary_tool:
            tools.append(dict(tools[0], name="test_temporary_tool"))
        return {"resultType": "complete", "tools": tools}

    async def _call_tool(
        self, ctx: ServerRequestContext[Any, Any], params: types.CallToolRequestParams, task: Task | None = None
    ) -> Json:
        if params.name not in TOOLS:
            raise MCPError(types.INVALID_PARAMS, f"no tool is named {params.name!r}")
        call = self._call(ctx, params.arguments)
        call.task = task
        try:
            content = await TOOLS[params.name][1](call)
        except InputRequired as exc:
            return exc.result
        except ToolFailed as exc:
            return {"resultType": "complete", "content": [text(str(exc))], "isError": True}
        except MCPError as exc:
            if call.is_modern or isinstance(exc, JobBroke) or exc.code == types.MISSING_REQUIRED_CLIENT_CAPABILITY:
                raise
            return {"content": [text(f"the client refused: {exc.message}")], "isError": True}
        return {"resultType": "complete", "content": content}

    def _call(self, ctx: ServerRequestContext[Any, Any], arguments: Mapping[str, Any] | None) -> Call:
        """The request with the answers it brings; the SDK has checked their form but not whose state it is."""
        raw = ctx.params or {}
        answers: Json = {}
        if ctx.protocol_version in MODERN_PROTOCOL_VERSIONS:
            if isinstance(state := raw.get("requestState"), str):
                answers |= self.seal.open(state)
            if "inputResponses" in raw:
                if not isinstance(given := raw["inputResponses"], dict):
                    raise MCPError(types.INVALID_PARAMS, "inputResponses must be an object")
                answers |= given
        return Call(self, ctx, arguments or {}, answers)

    async def _list_prompts(self, ctx: Any, params: types.PaginatedRequestParams) -> Json:
        return {"resultType": "complete", "prompts": PROMPTS}

    async def _get_prompt(self, ctx: ServerRequestContext[Any, Any], params: types.GetPromptRequestParams) -> Json:
        try:
            contents = await prompt_contents(params.name, self._call(ctx, params.arguments))
        except InputRequired as exc:
            return exc.result
        except ToolFailed as exc:
            raise MCPError(types.INVALID_REQUEST, str(exc)) from exc
        messages = [{"role": "user", "content": content} for content in contents]
        return {"resultType": "complete", "messages": messages}

    async def _list_resources(self, ctx: Any, params: types.PaginatedRequestParams) -> Json:
        return {"resultType": "complete", "resources": RESOURCES}

    async def _list_templates(self, ctx: Any, params: types.PaginatedRequestParams) -> Json:
        return {"resultType": "complete", "resourceTemplates": [TEMPLATE]}

    async def _read_resource(
        self, ctx: ServerRequestContext[Any, Any], params: types.ReadResourceRequestParams
    ) -> Json:
        uri = str(params.uri)
        if uri == "test://static-text":
            found: Json = {"mimeType": "text/plain", "text": "This is the content of the static text resource."}
        elif uri == "test://static-binary":
            found = {"mimeType": "image/png", "blob": PNG}
        elif uri == WATCHED:
            found = {"mimeType": "text/plain", "text": f"Watched resource, revision {self.watched_revision}"}
        elif uri.startswith("test://template/") and uri.endswith("/data"):
            which = uri.removeprefix("test://template/").removesuffix("/data")
            found = {"mimeType": "application/json", "text": json.dumps({"id": which, "data": f"Data for {which}"})}
        else:
            modern = ctx.protocol_version in MODERN_PROTOCOL_VERSIONS
            code = types.INVALID_PARAMS if modern else LEGACY_NOT_FOUND
            raise MCPError(code, "Resource not found", {"uri": uri})
        return {"resultType": "complete", "contents": [{"uri": uri, **found}]}

    async def _subscribe(self, ctx: ServerRequestContext[Any, Any], params: types.SubscribeRequestParams) -> Json:
        self.subscribed.setdefault(id(ctx.session._connection), set()).add(str(params.uri))
        return {}

    async def _unsubscribe(self, ctx: ServerRequestContext[Any, Any], params: types.UnsubscribeRequestParams) -> Json:
        self.subscribed.get(id(ctx.session._connection), set()).discard(str(params.uri))
        return {}

    async def _complete(self, ctx: Any, params: types.CompleteRequestParams) -> Json:
        values = [word for word in ("paris", "park", "party") if word.startswith(params.argument.value)]
        completion = {"values": values, "total": len(values), "hasMore": False}
        return {"resultType": "complete", "completion": completion}

    async def _nothing(self, ctx: Any, params: types.SetLevelRequestParams) -> Json:
        return {}


def _wrong_era(requested: object) -> MCPError:
    data = {"supported": list(MODERN_PROTOCOL_VERSIONS), "requested": str(requested)}
    return MCPError(types.UNSUPPORTED_PROTOCOL_VERSION, "this server speaks the modern era only", data)


# -- transports --------------------------------------------------------------------------------------


class Events(EventStore):
    """Every event of every stream, for clients that come back with Last-Event-ID."""

    def __init__(self) -> None:
        self._events: list[tuple[str, types.JSONRPCMessage | None]] = []

    async def store_event(self, stream_id: str, message: types.JSONRPCMessage | None) -> str:
        self._events.append((stream_id, message))
        return str(len(self._events))

    async def replay_events_after(self, last_event_id: str, send_callback: EventCallback) -> str | None:
        if not last_event_id.isdecimal() or not 0 < int(last_event_id) <= len(self._events):
            return None
        last = int(last_event_id)
        stream = self._events[last - 1][0]
        for number, (of, message) in enumerate(self._events[last:], last + 1):
            if of == stream and message is not None:
                await send_callback(EventMessage(message, str(number)))
        return stream


def http_app(fixture: Fixture) -> Starlette:
    security = TransportSecuritySettings(
        enable_dns_rebinding_protection=True,
        allowed_hosts=["127.0.0.1:*", "localhost:*"],
        allowed_origins=["http://127.0.0.1:*", "http://localhost:*"],
    )
    manager = StreamableHTTPSessionManager(
        fixture.server, event_store=Events(), retry_interval=RETRY_MS, security_settings=security
    )

    async def legacy(scope: Scope, receive: Receive, send: Send) -> None:
        version = _version(scope)
        if version is None or version in HANDSHAKE_PROTOCOL_VERSIONS:
            await manager.handle_request(scope, receive, send)
            return
        # Word for word what servers of the era say, with no sign that there is another.
        known = ", ".join(HANDSHAKE_PROTOCOL_VERSIONS)
        message = f"Bad Request: Unsupported protocol version: {version}. Supported versions: {known}"
        error = {"jsonrpc": "2.0", "id": "server-error", "error": {"code": types.INVALID_REQUEST, "message": message}}
        await JSONResponse(error, 400)(scope, receive, send)

    async def modern(scope: Scope, receive: Receive, send: Send) -> None:
        await handle_modern_request(fixture.server, security, False, {}, scope, receive, send)

    apps = {"legacy": legacy, "modern": modern, "both": manager.handle_request}

    @asynccontextmanager
    async def lifespan(_: Starlette) -> Any:
        async with manager.run():
            yield

    return Starlette(routes=[Route("/mcp", _Raw(apps[fixture.era]))], lifespan=lifespan)


class _Raw:
    """An ASGI application as a route: Starlette would take a function for a handler of requests."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


def _version(scope: Scope) -> str | None:
    return next((value.decode() for name, value in scope["headers"] if name == b"mcp-protocol-version"), None)


class _Recorded:
    """Lines of a standard stream, each also written to the record with its time."""

    def __init__(self, lines: Any, way: Literal["in", "out"], record: Path) -> None:
        self._lines = anyio.wrap_file(lines)
        self._way = way
        self._record = record

    def _keep(self, line: str) -> None:
        with self._record.open("a") as record:
            record.write(json.dumps({"at": time.time(), "way": self._way, "line": line}) + "\n")

    async def __aiter__(self) -> AsyncIterator[str]:
        async for line in self._lines:
            self._keep(line)
            yield line

    async def write(self, line: str) -> None:
        self._keep(line)
        await self._lines.write(line)

    async def flush(self) -> None:
        await self._lines.flush()


def _recorded(folder: Path) -> tuple[Any, Any]:
    """Standard input and output; each process has a record of its own."""
    record = folder / f"{uuid.uuid4().hex}.jsonl"
    for stream in (sys.stdin, sys.stdout):
        stream.reconfigure(encoding="utf-8")
    return _Recorded(sys.stdin, "in", record), _Recorded(sys.stdout, "out", record)


async def serve_stdio(fixture: Fixture, record: Path | None) -> None:
    options = fixture.server.create_initialization_options()
    stdin, stdout = _recorded(record) if record else (None, None)
    async with stdio_server(stdin, stdout) as (read, write):
        if fixture.era == "legacy":
            await serve_loop(fixture.server, read, write, lifespan_state={}, init_options=options)
        else:
            await fixture.server.run(read, write, options)


def main() -> None:
    parser = argparse.ArgumentParser(description="The server the MCP conformance suite asks for.")
    parser.add_argument("--transport", choices=["stdio", "http"], required=True)
    parser.add_argument("--era", choices=["legacy", "modern", "both"], required=True)
    parser.add_argument("--port", type=int, default=0, help="HTTP only; printed as PORT=n when it accepts connections")
    parser.add_argument("--record", type=Path, help="stdio only: a folder in which to keep every line of both ways")
    given = parser.parse_args()
    warnings.simplefilter("ignore", MCPDeprecationWarning)  # it is here to do what is deprecated
    fixture = Fixture(given.era)
    if given.transport == "stdio":
        anyio.run(serve_stdio, fixture, given.record)
        return
    # h11 strips the blanks after a header's value, which httptools leaves to the application.
    server = _Announcing(uvicorn.Config(http_app(fixture), port=given.port, http="h11", log_level="warning", ws="none"))
    server.run()


class _Announcing(uvicorn.Server):
    """Prints the port once it is bound."""

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        if self.started:
            print(f"PORT={self.servers[0].sockets[0].getsockname()[1]}", flush=True)


if __name__ == "__main__":
    main()
