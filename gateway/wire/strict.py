"""What a client's message must be beyond valid JSON: one reading only, whoever parses it, and a bounded amount of work.

Knows no JSON-RPC; a server's messages do not come here, for what they say decides nothing."""

from __future__ import annotations

import json
import re
from math import isinf
from typing import Final

import msgspec

MAX_DEPTH: Final = 128
"""Objects and arrays inside each other. Parsers differ in what they survive; no tool needs as many."""
MAX_VALUES: Final = 100_000
"""Members and items of one message: what a parser builds costs far more than the bytes it is built from."""
MAX_COMPARED_BYTES: Final = 64 * 1024
"""Writing a longer message again, to compare it, would hold a second copy of it."""
MAX_DIGITS: Final = 300
"""A number of fewer digits is smaller than the largest double."""

_NO_DIGITS: Final = bytes(set(range(256)) - set(b"0123456789"))
_decode: Final = msgspec.json.Decoder().decode
_encode: Final = msgspec.json.Encoder().encode
_STRING: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')
_BRACKETS: Final = re.compile(rb"[\[{]+|[\]}]+")


class Ambiguous(ValueError):
    """Parsers may read this JSON differently, or fail on it."""


def check(data: bytes) -> None:
    """Refuse JSON that two parsers could read in two ways: what policy decides on must be what the server gets.

    `data` is valid JSON in UTF-8. The work is in proportion to its size, and what is built bounded.

    Raises:
        Ambiguous: a repeated key, a number no double can hold, or too deep or too many values.
    """
    check_size(data)
    if len(data) <= MAX_COMPARED_BYTES and _is_written_once(data):
        return
    text = data.decode()
    try:
        _scan(text, len(text) - len(text.lstrip(" \t\r\n")))
    except RecursionError as exc:  # counted above; whoever called us may be deep already
        raise Ambiguous("nested too deeply") from exc


def _is_written_once(data: bytes) -> bool:
    """Whether these are the very bytes that its values are written as: what most clients send is, and that is soon
    seen. A repeated key would not have come back, nor a fraction that no double holds."""
    if len(data.translate(None, _NO_DIGITS)) >= MAX_DIGITS:
        return False  # an integer that no double holds would
    try:
        return _encode(_decode(data)) == data
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError):
        return False


def check_size(data: bytes) -> None:
    """Refuse what is too deep or holds too many values, before anything is built from it. `data` may be no JSON at all.

    Raises:
        Ambiguous: it is, or it does.
    """
    n_containers = data.count(b"{") + data.count(b"[")
    if n_containers > MAX_DEPTH or n_containers + data.count(b",") > MAX_VALUES:
        _check_shape(data)


def _check_shape(data: bytes) -> None:
    """Count brackets and commas outside strings."""
    too_many = Ambiguous(f"more than {MAX_VALUES} values in one message")
    bare = bytearray()
    end = 0
    for n_strings, string in enumerate(_STRING.finditer(data)):
        if n_strings > 2 * MAX_VALUES:
            raise too_many
        bare += data[end : string.start()]
        end = string.end()
    bare += data[end:]
    if bare.count(b"{") + bare.count(b"[") + bare.count(b",") > MAX_VALUES:
        raise too_many
    depth = 0
    for run in _BRACKETS.finditer(bare):
        length = run.end() - run.start()
        depth += length if bare[run.start()] in b"[{" else -length
        if depth > MAX_DEPTH:
            raise Ambiguous(f"nested deeper than {MAX_DEPTH}")


def _object(members: list[tuple[str, object]]) -> None:
    if len(members) > 1 and len(dict(members)) != len(members):
        raise Ambiguous("a key is repeated in an object")


def _number(text: str) -> None:
    if isinf(float(text)):
        raise Ambiguous("a number is too large")


_scan: Final = json.JSONDecoder(object_pairs_hook=_object, parse_int=_number, parse_float=_number).scan_once  # type: ignore[attr-defined]  # not in typeshed
