"""The OpenAI chat request as this engine understands it: known fields, checked types, limits.

Knows nothing of models or templates. A field it does not know is refused, not ignored."""

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from engine.errors import BadRequest

MAX_MESSAGES: Final = 4_096
MAX_TOOLS: Final = 512
MAX_STOPS: Final = 8
MAX_TEXT_CHARS: Final = 4 << 20  # all messages and tools together
MAX_TOKENS: Final = 1 << 20
MAX_ANSWERS: Final = 16  # of one request
MAX_TOP_LOGPROBS: Final = 20
MAX_PROMPTS: Final = 64
MAX_TEXTS: Final = 256  # to embed in one request

_Name = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_-]+$")]
_Unit = Annotated[float, Meta(ge=0, le=1)]
_Penalty = Annotated[float, Meta(ge=-2, le=2)]
_Count = Annotated[int, Meta(ge=1, le=MAX_TOKENS)]
_Answers = Annotated[int, Meta(ge=1, le=MAX_ANSWERS)]
_Top = Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)]
_Stop = Annotated[str, Meta(min_length=1, max_length=256)]


class TextPart(msgspec.Struct, tag="text", tag_field="type"):
    """The only kind of content part: nothing is fetched, nothing but text is read."""

    text: str


Content = str | list[TextPart]


class FunctionCall(msgspec.Struct):
    """A call the model made; `arguments` is JSON text."""

    name: str
    arguments: str = "{}"


class ToolCall(msgspec.Struct):
    """A call in an assistant message."""

    function: FunctionCall
    id: str = ""
    type: Literal["function"] = "function"


class SystemMessage(msgspec.Struct, tag="system", tag_field="role"):
    """Instructions."""

    content: Content


class DeveloperMessage(msgspec.Struct, tag="developer", tag_field="role"):
    """Instructions, by their newer name."""

    content: Content


class UserMessage(msgspec.Struct, tag="user", tag_field="role"):
    """What the person wrote."""

    content: Content


class AssistantMessage(msgspec.Struct, tag="assistant", tag_field="role"):
    """What the model answered, and the calls it made."""

    content: Content | None = None
    tool_calls: list[ToolCall] | None = None


class ToolMessage(msgspec.Struct, tag="tool", tag_field="role"):
    """The result of a call."""

    content: Content
    tool_call_id: str = ""


Message = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage


class Function(msgspec.Struct):
    """A function the model may call; `parameters` is a JSON Schema."""

    name: _Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct):
    """A tool on offer."""

    function: Function
    type: Literal["function"] = "function"


class NamedFunction(msgspec.Struct, forbid_unknown_fields=True):
    """The name in a tool choice."""

    name: str


class NamedChoice(msgspec.Struct, forbid_unknown_fields=True):
    """A tool choice that names the function to call."""

    function: NamedFunction
    type: Literal["function"] = "function"


class JsonSchema(msgspec.Struct):
    """A schema for the answer."""

    name: str
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class TextFormat(msgspec.Struct, tag="text", tag_field="type"):
    """Free text."""


class ObjectFormat(msgspec.Struct, tag="json_object", tag_field="type"):
    """Any JSON object."""


class SchemaFormat(msgspec.Struct, tag="json_schema", tag_field="type"):
    """JSON that fits a schema."""

    json_schema: JsonSchema


class StreamOptions(msgspec.Struct):
    """How chunks are sent."""

    include_usage: bool = False


class SamplingFields(msgspec.Struct):
    """How tokens are chosen, in both kinds of request."""

    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: _Unit | None = None
    top_k: Annotated[int, Meta(ge=0, le=1_000)] | None = None
    min_p: _Unit | None = None
    repeat_penalty: Annotated[float, Meta(gt=0, le=4)] | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    seed: int | None = None


class ChatRequest(SamplingFields, forbid_unknown_fields=True, kw_only=True):
    """The body of a chat completion request. Fields after `stream` are accepted and have no effect."""

    messages: Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)]
    model: str | None = None
    tools: Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["auto", "none", "required"] | NamedChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: TextFormat | ObjectFormat | SchemaFormat | None = None
    max_tokens: _Count | None = None
    max_completion_tokens: _Count | None = None
    stop: _Stop | Annotated[list[_Stop], Meta(max_length=MAX_STOPS)] | None = None
    n: _Answers | None = None
    logprobs: bool | None = None
    top_logprobs: _Top | None = None
    stream_options: StreamOptions | None = None
    stream: bool | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None


class CompletionRequest(SamplingFields, forbid_unknown_fields=True, kw_only=True):
    """The body of a text completion request. Fields after `stream` are accepted and have no effect."""

    prompt: str | Annotated[list[str], Meta(min_length=1, max_length=MAX_PROMPTS)]
    model: str | None = None
    max_tokens: _Count | None = None
    stop: _Stop | Annotated[list[_Stop], Meta(max_length=MAX_STOPS)] | None = None
    n: _Answers | None = None
    best_of: Literal[1] | None = None
    logprobs: _Top | None = None
    echo: bool | None = None
    suffix: Literal[""] | None = None
    response_format: TextFormat | ObjectFormat | SchemaFormat | None = None
    stream_options: StreamOptions | None = None
    stream: bool | None = None
    user: str | None = None

    @property
    def prompts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


def parse_completion(body: dict[str, Any]) -> CompletionRequest:
    """Raises: BadRequest naming the field and what is wrong with it."""
    try:
        request = msgspec.convert(body, CompletionRequest)
    except (msgspec.ValidationError, RecursionError) as exc:
        raise BadRequest(f"the completion request is not valid: {exc}") from exc
    check_texts(request.prompts, MAX_PROMPTS)
    if len(request.prompts) * (request.n or 1) > MAX_PROMPTS:
        raise BadRequest(f"a request may ask for {MAX_PROMPTS} answers in all")
    return request


def check_texts(texts: Sequence[str], most: int = MAX_TEXTS) -> None:
    """Raises: BadRequest for too many texts, or too much text."""
    if not 1 <= len(texts) <= most:
        raise BadRequest(f"1 to {most} texts are accepted, not {len(texts)}")
    n_chars = sum(map(len, texts))
    if n_chars > MAX_TEXT_CHARS:
        raise BadRequest(f"the texts have {n_chars} characters; at most {MAX_TEXT_CHARS} are accepted")


def stops_of(request: ChatRequest | CompletionRequest) -> list[str]:
    return [request.stop] if isinstance(request.stop, str) else request.stop or []


def parse_request(body: dict[str, Any]) -> ChatRequest:
    """Raises: BadRequest naming the field and what is wrong with it."""
    try:
        request = msgspec.convert(body, ChatRequest)
    except (msgspec.ValidationError, RecursionError) as exc:
        raise BadRequest(f"the chat request is not valid: {exc}") from exc
    n_chars = _count(body.get("messages")) + _count(body.get("tools"))
    if n_chars > MAX_TEXT_CHARS:
        raise BadRequest(f"messages and tools have {n_chars} characters; at most {MAX_TEXT_CHARS} are accepted")
    names = [tool.function.name for tool in request.tools or ()]
    if len(set(names)) != len(names):
        raise BadRequest("two tools have the same name")
    if request.top_logprobs is not None and not request.logprobs:
        raise BadRequest("top_logprobs needs logprobs to be true")
    choice = request.tool_choice
    if isinstance(choice, NamedChoice) and choice.function.name not in names:
        raise BadRequest(f"tool_choice names {choice.function.name!r}, which is not among the tools")
    if choice == "required" and not names:
        raise BadRequest('tool_choice is "required" but there are no tools')
    return request


def text_of(content: Content | None) -> str:
    """The text of a message."""
    if isinstance(content, list):
        return "\n".join(part.text for part in content)
    return content or ""


def _count(value: object) -> int:
    """Characters in all strings of a JSON value, without recursion."""
    total, stack = 0, [value]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            total += len(item)
        elif isinstance(item, list):
            total += len(item)
            stack.extend(item)
        elif isinstance(item, dict):
            total += sum(map(len, item))
            stack.extend(item.values())
    return total
