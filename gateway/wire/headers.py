"""The HTTP headers that mirror a modern request's body (MCP 2026-07-28, basic/transports): written and compared.

Knows values and schemas; not requests or connections. Policy never reads a header, always the body."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, Final

ANNOTATION: Final = "x-mcp-header"
PARAM_PREFIX: Final = "mcp-param-"
NAME_OF: Final[Mapping[str, str]] = {
    "tools/call": "name",
    "prompts/get": "name",
    "resources/read": "uri",
    "tasks/get": "taskId",
    "tasks/update": "taskId",
    "tasks/cancel": "taskId",
}
"""The params member that `Mcp-Name` repeats, by method."""
MAX_SCHEMA_NODES: Final = 20_000
MAX_REMEMBERED_BYTES: Final = 256

_SENTINEL: Final = re.compile(r"=\?base64\?(.*)\?=")
_PLAIN: Final = re.compile(r"[\x20-\x7e]*")
_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_DECIMAL: Final = re.compile(r"-?[0-9]+(\.0+)?")
_NESTED: Final = frozenset(
    {
        *("items", "contains", "unevaluatedItems", "additionalProperties", "propertyNames"),
        *("unevaluatedProperties", "not", "if", "then", "else", "contentSchema"),
    }
)
_NESTED_LISTS: Final = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_NESTED_MAPS: Final = frozenset({"patternProperties", "dependentSchemas", "$defs", "definitions"})

Path = tuple[str, ...]


def encode(value: str) -> str:
    """A header value that survives any HTTP peer: base64 in the sentinel form where plain text would not."""
    if _PLAIN.fullmatch(value) and value == value.strip() and not _SENTINEL.fullmatch(value):
        return value
    return f"=?base64?{base64.b64encode(value.encode()).decode()}?="


def decode(value: str) -> str | None:
    """The value behind a header; None for a malformed sentinel, which then equals nothing."""
    found = _SENTINEL.fullmatch(value) if value[:1] == "=" else None
    if found is None:
        return value
    try:
        data = base64.b64decode(found[1], validate=True)
        return data.decode() if base64.b64encode(data).decode() == found[1] else None
    except (binascii.Error, UnicodeDecodeError):
        return None


@lru_cache(1024)
def _says(header: bytes, value: str) -> bool:
    return decode(header.decode("latin-1").strip()) == value


def says(header: bytes, value: str) -> bool:
    """Whether a header, as it came, stands for this value; remembered if short: clients call the same tools again."""
    short = len(header) <= MAX_REMEMBERED_BYTES and len(value) <= MAX_REMEMBERED_BYTES
    return _says(header, value) if short else _says.__wrapped__(header, value)


def _positions(schema: object) -> Iterator[tuple[Path | None, dict[str, Any]]]:
    """Every schema inside a JSON Schema, with its path of `properties` keys, or None off that path. No `$ref` is
    followed and no data keyword entered, so any finite schema ends; a giant one ends early."""
    stack: list[tuple[Path | None, object]] = [((), schema)]
    seen = 0
    while stack and seen < MAX_SCHEMA_NODES:
        path, node = stack.pop()
        if not isinstance(node, dict):
            continue
        seen += 1
        yield path, node
        for keyword, value in node.items():
            if keyword == "properties" and isinstance(value, dict):
                stack += [((*path, name) if path is not None else None, sub) for name, sub in value.items()]
            elif keyword in _NESTED:
                stack.append((None, value))
            elif keyword in _NESTED_LISTS and isinstance(value, list):
                stack += [(None, sub) for sub in value]
            elif keyword in _NESTED_MAPS and isinstance(value, dict):
                stack += [(None, sub) for sub in value.values()]


def annotated(schema: object) -> dict[Path, tuple[str, str]]:
    """The parameters a tool wants mirrored: path -> (header token, JSON type).

    Raises:
        ValueError: an annotation is not allowed there; such a tool must not be offered.
    """
    found: dict[Path, tuple[str, str]] = {}
    tokens: set[str] = set()
    for path, node in _positions(schema):
        if ANNOTATION not in node:
            continue
        token, kind = node[ANNOTATION], node.get("type")
        if not path:
            raise ValueError(f"{ANNOTATION} where no plain chain of properties leads")
        if not isinstance(token, str) or not _TOKEN.fullmatch(token):
            raise ValueError(f"{ANNOTATION} of {'.'.join(path)} is not a header token")
        if kind not in ("string", "integer", "boolean"):
            raise ValueError(f"{ANNOTATION} of {'.'.join(path)} on a {kind!r} property")
        if node.get("writeOnly") is True or node.get("format") == "password":
            raise ValueError(f"{ANNOTATION} of {'.'.join(path)} would put a secret into a header")
        if token.lower() in tokens:
            raise ValueError(f"{ANNOTATION} {token} is used twice")
        tokens.add(token.lower())
        found[path] = (token, kind)
    return found


def _at(arguments: object, path: Path) -> object:
    for key in path:
        if not isinstance(arguments, dict):
            return None
        arguments = arguments.get(key)
    return arguments


def _rendered(value: object) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, str | int | float) else None


def mirrored(parameters: Mapping[Path, tuple[str, str]], arguments: object) -> dict[str, str]:
    """The `Mcp-Param-*` headers of one call; absent and null arguments have none."""
    out = {}
    for path, (token, _) in parameters.items():
        text = _rendered(_at(arguments, path))
        if text is not None:
            out[f"Mcp-Param-{token}"] = encode(text)
    return out


def mismatch(
    parameters: Mapping[Path, tuple[str, str]], arguments: object, headers: Mapping[bytes, list[bytes]]
) -> str | None:
    """Why the `Mcp-Param-*` headers of a request do not repeat its arguments; None if they do.

    `headers` maps lower-case names to every value given.
    """
    for path, (token, kind) in parameters.items():
        given = headers.get((PARAM_PREFIX + token.lower()).encode(), [])
        name, where = f"Mcp-Param-{token}", ".".join(path)
        value = _at(arguments, path)
        text = _rendered(value)
        if len(given) > 1:
            return f"{name} is given more than once"
        if text is None:
            if given:
                return f"{name} is given, but argument {where} is not"
            continue
        if not given:
            return f"{name} is missing, but argument {where} is given"
        decoded = decode(given[0].decode("latin-1"))
        if decoded is None:
            return f"{name} is not valid base64"
        if decoded != text and not (kind == "integer" and _same_integer(value, decoded)):
            return f"{name} does not equal argument {where}"
    return None


def _same_integer(value: object, text: str) -> bool:
    """42, 42.0 and "42.0" are one integer."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not _DECIMAL.fullmatch(text):
        return False
    return value == int(text.partition(".")[0])
