"""How tools are shown to a model and how its calls are written: in its own template, or in a preamble of ours.

Knows nothing of sampling or streams. Calls are JSON objects between `<tool_call>` tags in both."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from engine.grammar import GrammarBuilder, literal
from engine.pipe import Trigger
from engine.requests import (
    AssistantMessage,
    ChatRequest,
    CompletionRequest,
    DeveloperMessage,
    Function,
    NamedChoice,
    ObjectFormat,
    SchemaFormat,
    SystemMessage,
    ToolCall,
    ToolMessage,
    UserMessage,
    text_of,
)

OPEN: Final = "<tool_call>"
CLOSE: Final = "</tool_call>"
MAX_CALLS: Final = 8  # in one answer
_PREAMBLE: Final = """\
You can call functions. These are the functions, each as a JSON object:
{tools}

To call a function, answer with its name and arguments as JSON between tags, and nothing else:
<tool_call>
{{"name": "function_name", "arguments": {{"argument": "value"}}}}
</tool_call>
The result comes back between <tool_response> tags."""

# Small models write calls without tags or in a code fence, whatever the template asks for.
_ARGUMENTS: Final = literal('"arguments":')
_BARE_CALL: Final = r'(?:^|[\n>\[])\s*\{\s*"name"\s*:\s*"'

Rendered = tuple[list[dict[str, Any]], list[dict[str, Any]] | None]


@dataclass(frozen=True, slots=True)
class Constraint:
    """How an answer begins, and the grammars it follows: from the start, or from where a trigger was written."""

    prefill: str = ""
    grammar: str | None = None
    triggers: Sequence[Trigger] = ()


def offered(request: ChatRequest) -> list[Function]:
    """The functions the model may call."""
    return [tool.function for tool in request.tools or () if request.tool_choice != "none"]


def for_template(request: ChatRequest, *, has_native_tools: bool) -> Rendered:
    """The messages and tools to hand to the model's template."""
    functions = offered(request)
    if has_native_tools:
        return [_native(message) for message in request.messages], [_tool(f) for f in functions] or None
    messages = [_plain(message) for message in request.messages]
    messages = _joined(messages)
    if functions:
        tools = "\n".join(json.dumps(_tool(f)["function"], ensure_ascii=False) for f in functions)
        preamble = _PREAMBLE.format(tools=tools)
        if messages[0]["role"] == "system":
            messages[0] = {"role": "system", "content": f"{messages[0]['content']}\n\n{preamble}"}
        else:
            messages.insert(0, {"role": "system", "content": preamble})
    return messages, None


def constraint(request: ChatRequest | CompletionRequest) -> Constraint:
    """What makes the answer what the request asks for."""
    builder = GrammarBuilder()
    functions = offered(request) if isinstance(request, ChatRequest) else []
    answer = None
    if isinstance(request.response_format, SchemaFormat):
        answer = builder.add_schema(request.response_format.json_schema.schema or {"type": "object"}, "answer")
    elif isinstance(request.response_format, ObjectFormat):
        answer = "object"
    if not functions or not isinstance(request, ChatRequest):
        return Constraint(grammar=builder.text(answer) if answer else None)
    choice = request.tool_choice
    if isinstance(choice, NamedChoice):
        chosen = next(function for function in functions if function.name == choice.function.name)
        body = _arguments(builder, chosen, 0)
        prefill = f'{OPEN}\n{{"name": {json.dumps(chosen.name)}, "arguments":'
        return Constraint(prefill, builder.text(f'" "? {body} "}}" "\\n"? {literal(CLOSE)}'))
    builder.add_rule("gap", "[ \\n]{0,12}")
    bodies = []
    for index, function in enumerate(functions):
        opening = json.dumps(function.name)[1:] + ","
        bodies.append(f"{literal(opening)} gap {_ARGUMENTS} gap {_arguments(builder, function, index)} gap")
    # `named` is a call from its name on, without the opening quotation mark and the closing brace.
    named = builder.add_rule("named", " | ".join(bodies))
    opening = '{"name": "'
    call = builder.add_rule("call", f'{literal(opening)} {named} "}}"')
    more = builder.add_rule("more", f'"\\n"? {literal(OPEN)} "\\n"? {call} "\\n"? {literal(CLOSE)}')
    rest = f'"\\n"? {literal(CLOSE)}'
    if request.parallel_tool_calls is not False:
        rest += f" {more}{{0,{MAX_CALLS - 1}}}"
    if choice == "required":
        return Constraint(f"{OPEN}\n{opening}", builder.text(f'{named} "}}" {rest}'))
    if answer:
        return Constraint(grammar=builder.text(f'{literal(OPEN)} "\\n"? {call} {rest} | {answer}'))
    tagged = Trigger(re.escape(OPEN), builder.text(f'"\\n"? {call} {rest}'))
    bare = Trigger(_BARE_CALL, builder.text(f'{named} "}}" ("\\n"? "```")?'), is_tentative=True)
    return Constraint(triggers=[tagged, bare])


def _arguments(builder: GrammarBuilder, function: Function, index: int) -> str:
    # Arguments nobody declared cannot be known to the model: without properties the object stays empty.
    schema = {"type": "object", "additionalProperties": False, **(function.parameters or {})}
    name = builder.add_schema(schema, f"t{index}")
    return "object" if name == "value" else name


def _tool(function: Function) -> dict[str, Any]:
    shown: dict[str, Any] = {"name": function.name}
    if function.description:
        shown["description"] = function.description
    shown["parameters"] = function.parameters or {"type": "object", "properties": {}}
    return {"type": "function", "function": shown}


Message = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage


def _native(message: Message) -> dict[str, Any]:
    match message:
        case SystemMessage() | DeveloperMessage():
            return {"role": "system", "content": text_of(message.content)}
        case UserMessage():
            return {"role": "user", "content": text_of(message.content)}
        case ToolMessage():
            return {"role": "tool", "content": text_of(message.content)}
        case AssistantMessage():
            shown: dict[str, Any] = {"role": "assistant", "content": text_of(message.content)}
            if message.tool_calls:
                shown["tool_calls"] = [{"type": "function", "function": _call(call)} for call in message.tool_calls]
            return shown


def _plain(message: Message) -> dict[str, Any]:
    shown = _native(message)
    if shown["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{shown['content']}\n</tool_response>"}
    calls: Sequence[Mapping[str, Any]] = shown.pop("tool_calls", ())
    written = [f"{OPEN}\n{json.dumps(call['function'], ensure_ascii=False)}\n{CLOSE}" for call in calls]
    return {**shown, "content": "\n".join(filter(None, [shown["content"], *written]))}


def _joined(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Neighbouring user messages as one: several results follow each other, but templates expect turns."""
    joined: list[dict[str, Any]] = []
    for message in messages:
        if joined and message["role"] == joined[-1]["role"] == "user":
            joined[-1] = {"role": "user", "content": f"{joined[-1]['content']}\n{message['content']}"}
        else:
            joined.append(message)
    return joined


def _call(call: ToolCall) -> dict[str, Any]:
    try:
        arguments = json.loads(call.function.arguments or "{}")
    except ValueError:
        arguments = call.function.arguments
    return {"name": call.function.name, "arguments": arguments}
