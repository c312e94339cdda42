"""A server's `sampling/createMessage` as a chat completion request, and the completion as its result.

Knows both shapes; not who asks, what it may cost, or which model answers. Text and calls of tools only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from gateway.wire import envelope

MAX_MESSAGES: Final = 1000
MAX_HINTS: Final = 32
MAX_TEMPERATURE: Final = 2.0
REJECTED: Final = -1
"""The code with which a client says that it will not (MCP client/sampling, "Error Handling")."""
NOT_TEXT: Final = ("image", "audio")
REASONS: Final = {"stop": "endTurn", "length": "maxTokens", "tool_calls": "toolUse"}


class Unanswered(Exception):
    """A request that gets an error in place of an answer; the message is for the server that made it."""

    def __init__(self, message: str, code: int = envelope.INVALID_PARAMS) -> None:
        super().__init__(message)
        self.code = code

    def error(self) -> bytes:
        return envelope.encode({"code": self.code, "message": str(self)})


class _Block(msgspec.Struct):
    """A content block of any type; which members it has depends on it."""

    type: str
    text: str = ""
    id: str = ""
    name: str = ""
    input: dict[str, Any] = {}
    toolUseId: str = ""
    content: list[Any] = []
    isError: bool = False
    structuredContent: Any = None


class _Message(msgspec.Struct):
    role: Literal["user", "assistant"]
    content: _Block | list[_Block]

    @property
    def blocks(self) -> list[_Block]:
        return self.content if isinstance(self.content, list) else [self.content]


class _Tool(msgspec.Struct):
    name: str
    inputSchema: dict[str, Any]
    description: str | None = None


class _Choice(msgspec.Struct):
    mode: Literal["auto", "required", "none"] = "auto"


class _Hint(msgspec.Struct):
    name: str = ""


class Preferences(msgspec.Struct):
    """What kind of model the server would like; nobody is bound by it."""

    hints: Annotated[list[_Hint], Meta(max_length=MAX_HINTS)] = []
    costPriority: float = 0.0
    speedPriority: float = 0.0
    intelligencePriority: float = 0.0


class CreateMessage(msgspec.Struct):
    """The params of a request. `includeContext` has no effect, as a client may choose; other members have none
    either."""

    messages: Annotated[list[_Message], Meta(min_length=1, max_length=MAX_MESSAGES)]
    maxTokens: Annotated[int, Meta(ge=1)]
    systemPrompt: str = ""
    temperature: Annotated[float, Meta(ge=0)] | None = None
    stopSequences: list[str] = []
    tools: list[_Tool] = []
    toolChoice: _Choice = msgspec.field(default_factory=_Choice)
    modelPreferences: Preferences = msgspec.field(default_factory=Preferences)


def read(params: bytes) -> CreateMessage:
    """
    Raises:
        Unanswered: the params are not valid.
    """
    try:
        return msgspec.json.decode(params or b"{}", type=CreateMessage)
    except (msgspec.DecodeError, RecursionError) as exc:
        raise Unanswered(f"the request is not valid: {exc}") from exc


def chat_request(asked: CreateMessage, model: str, max_tokens: int) -> dict[str, Any]:
    """
    Raises:
        Unanswered: it holds what no model here can read, or results that belong to no call.
    """
    messages: list[dict[str, Any]] = []
    if asked.systemPrompt:
        messages.append({"role": "system", "content": asked.systemPrompt})
    _check_results(asked.messages)
    for message in asked.messages:
        messages += _of_user(message.blocks) if message.role == "user" else [_of_assistant(message.blocks)]
    chat: dict[str, Any] = {"model": model, "messages": messages, "max_tokens": min(asked.maxTokens, max_tokens)}
    if asked.temperature is not None:
        chat["temperature"] = min(asked.temperature, MAX_TEMPERATURE)
    if asked.stopSequences:
        chat["stop"] = asked.stopSequences
    if asked.tools:
        chat["tools"] = [_function(tool) for tool in asked.tools]
        chat["tool_choice"] = asked.toolChoice.mode
    return chat


def result(completion: dict[str, Any]) -> dict[str, Any]:
    """The result of a request, of its answer."""
    choice = completion["choices"][0]
    message = choice["message"]
    text = {"type": "text", "text": message.get("content") or ""}
    content: Any = text
    if calls := message.get("tool_calls"):
        content = [text] if text["text"] else []
        content += [_use(call["id"], **call["function"]) for call in calls]
    reason = REASONS.get(choice["finish_reason"], choice["finish_reason"])
    return {"role": "assistant", "content": content, "model": completion["model"], "stopReason": reason}


def _use(id: str, name: str, arguments: str) -> dict[str, Any]:
    return {"type": "tool_use", "id": id, "name": name, "input": msgspec.json.decode(arguments or "{}")}


def _function(tool: _Tool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.inputSchema}
    return {"type": "function", "function": function}


def _of_user(blocks: Sequence[_Block]) -> Iterator[dict[str, Any]]:
    results = [block for block in blocks if block.type == "tool_result"]
    if results and len(results) != len(blocks):
        raise Unanswered("Tool results mixed with other content")
    for block in results:
        yield {"role": "tool", "tool_call_id": block.toolUseId, "content": _told(block)}
    if not results:
        yield {"role": "user", "content": _text(blocks)}


def _of_assistant(blocks: Sequence[_Block]) -> dict[str, Any]:
    calls = [
        {
            "id": block.id,
            "type": "function",
            "function": {"name": block.name, "arguments": envelope.encode(block.input).decode()},
        }
        for block in blocks
        if block.type == "tool_use"
    ]
    text = _text([block for block in blocks if block.type != "tool_use"])
    return {"role": "assistant", "content": text, **({"tool_calls": calls} if calls else {})}


def _told(block: _Block) -> str:
    """The result of a tool as text."""
    try:
        text = _text(msgspec.convert(block.content, list[_Block]))
    except msgspec.ValidationError as exc:
        raise Unanswered(f"a tool result is not valid: {exc}") from exc
    if not text and block.structuredContent is not None:
        text = envelope.encode(block.structuredContent).decode()
    return f"error: {text}" if block.isError else text


def _text(blocks: Sequence[_Block]) -> str:
    for block in blocks:
        if block.type in NOT_TEXT:
            raise Unanswered(f"the models here read text only, and a message holds {block.type} content")
        if block.type != "text":
            raise Unanswered(f"a message holds content of the type {block.type[:64]}, which has no place there")
    return "\n".join(block.text for block in blocks)


def _check_results(messages: Sequence[_Message]) -> None:
    """Calls of tools are answered at once, by a message of results alone (MCP client/sampling)."""
    open_calls = set[str]()
    for message in messages:
        results = {block.toolUseId for block in message.blocks if block.type == "tool_result"}
        if message.role == "assistant" and (results or open_calls):
            raise Unanswered("Tool result missing in request" if open_calls else "Tool results are a user's to give")
        if message.role == "user" and results != open_calls:
            raise Unanswered("Tool result missing in request" if open_calls - results else "Tool result without a call")
        open_calls = {block.id for block in message.blocks if block.type == "tool_use"}
        if open_calls and message.role == "user":
            raise Unanswered("Calls of tools are an assistant's to make")
    if open_calls:
        raise Unanswered("Tool result missing in request")
