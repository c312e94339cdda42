"""A model's own chat template, rendered in a sandbox with bounded output.

Knows nothing of tokens. Time and memory are bounded by the worker process around it, not here."""

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, NoReturn

from jinja2 import TemplateError
from jinja2.exceptions import SecurityError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from engine.errors import BadModelFile, BadRequest

MAX_SOURCE_CHARS: Final = 128 * 1024  # the longest public templates have about 25,000
MAX_OUTPUT_CHARS: Final = 8 << 20
MAX_PRODUCT: Final = 1 << 20  # items of a repeated sequence, or the value of a product
_FILTERS: Final = {
    "abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "int", "items",
    "join", "last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "replace", "reverse",
    "round", "safe", "select", "selectattr", "sort", "string", "title", "trim", "unique", "upper",
}  # fmt: skip
_PADDING: Final = {"center", "ljust", "rjust", "zfill", "expandtabs", "format", "format_map"}
CUT: Final = "\ufdd0"  # a noncharacter: marks where text must be split before it is tokenized


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's immutable sandbox without the ways to make something huge out of something small."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" or (operator == "%" and isinstance(left, str)):
            raise SecurityError(f"the operator {operator} is not available to chat templates")
        if operator == "*":
            size = _extent(left) * _extent(right)
            if size > MAX_PRODUCT:
                raise SecurityError("a product in the chat template is too large")
        return super().call_binop(context, operator, left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return attr not in _PADDING and super().is_safe_attribute(obj, attr, value)


def _extent(value: Any) -> int:
    if isinstance(value, (str, bytes, list, tuple)):
        return max(len(value), 1)
    return abs(int(value)) if isinstance(value, (int, float)) and abs(value) < MAX_PRODUCT else MAX_PRODUCT + 1


class ChatTemplate:
    """A compiled template. Raises on construction: BadModelFile if it is too long or not valid Jinja."""

    def __init__(self, source: str, *, bos: str, eos: str) -> None:
        if len(source) > MAX_SOURCE_CHARS:
            raise BadModelFile(
                f"the chat template has {len(source)} characters; at most {MAX_SOURCE_CHARS} are allowed"
            )
        environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, autoescape=False, extensions=[loopcontrols])
        environment.filters = {name: f for name, f in environment.filters.items() if name in _FILTERS}
        environment.filters["tojson"] = _to_json
        environment.globals = {
            "dict": dict,
            "namespace": environment.globals["namespace"],
            "range": environment.globals["range"],
            "raise_exception": _refuse,
            "strftime_now": _strftime_now,
        }
        try:
            self._template = environment.from_string(source)
        except (TemplateError, RecursionError) as exc:
            raise BadModelFile(f"the model's chat template is not valid: {exc}") from exc
        self._texts = {"bos_token": bos, "eos_token": eos}

    def render(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None) -> str:
        """The prompt up to where the answer begins.

        Raises: BadRequest if the template refuses the conversation, fails on it or writes too much.
        """
        parts: list[str] = []
        n_chars = 0
        try:
            for part in self._template.generate(
                messages=messages, tools=tools or None, add_generation_prompt=True, **self._texts
            ):
                n_chars += len(part)
                if n_chars > MAX_OUTPUT_CHARS:
                    raise BadRequest(f"the chat template writes more than {MAX_OUTPUT_CHARS} characters")
                parts.append(part)
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as exc:
            raise BadRequest(f"the model's chat template cannot render this conversation: {exc}") from exc
        except (RecursionError, MemoryError) as exc:
            raise BadRequest("the model's chat template needs too much memory for this conversation") from exc
        return "".join(parts)


def _refuse(message: object) -> NoReturn:
    raise TemplateError(str(message)[:1000])


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().astimezone().strftime(str(pattern)[:100])


def _to_json(value: Any, indent: int | None = None, ensure_ascii: bool = False, sort_keys: bool = False) -> str:
    # Jinja's own filter escapes < and > for HTML, which no model has seen in training.
    if indent is not None and not 0 <= indent <= 8:
        raise SecurityError("tojson takes an indent from 0 to 8")
    return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, sort_keys=sort_keys)


class Defuser:
    """Marks special-token text in what users and tools wrote, so that it is tokenized as plain text.

    `CUT` goes inside each occurrence, and at an edge where text could join its neighbour to form one; the rendered
    prompt is split at `CUT` and the pieces are tokenized on their own.
    """

    def __init__(self, specials: Sequence[str]) -> None:
        self._specials = [text for text in specials if len(text) > 1]
        self._heads = {text[:n] for text in self._specials for n in range(1, len(text))}
        self._tails = {text[n:] for text in self._specials for n in range(1, len(text))}
        self._longest = max(map(len, self._specials), default=1)

    def text(self, value: str) -> str:
        value = value.replace(CUT, "\ufffd")
        for special in self._specials:
            while special in value:
                value = value.replace(special, special[0] + CUT + special[1:])
        if any(value[:n] in self._tails for n in range(1, min(self._longest, len(value) + 1))):
            value = CUT + value
        if any(value[-n:] in self._heads for n in range(1, min(self._longest, len(value) + 1))):
            value += CUT
        return value

    def value(self, value: Any) -> Any:
        """The same structure with every string, keys too, defused."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self.value(item) for item in value]
        if isinstance(value, dict):
            return {self.text(str(key)): self.value(item) for key, item in value.items()}
        return value
