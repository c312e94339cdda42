"""JSON-RPC 2.0 envelopes, read and written without touching the payload.

Knows no method and no protocol revision: payloads stay the bytes they were received as."""

from __future__ import annotations

from typing import Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Raw

from gateway.wire import strict

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603
REQUEST_CANCELLED: Final = -32800
"""Not in the MCP specification; what deployed SDKs answer on a stream whose request was cancelled."""
LIMIT_REACHED: Final = -32050
"""Not in the MCP specification: a limit of the gateway's own (docs/limits.md); `data` has `limit` and `retryAfterS`."""
RESOURCE_NOT_FOUND: Final = -32002
"""MCP 2025-11-25, server/resources, "Error Handling"."""
HEADER_MISMATCH: Final = -32020
"""MCP 2026-07-28: a header does not repeat the body."""
MISSING_CAPABILITY: Final = -32021
"""MCP 2026-07-28: the client did not declare a capability the request needs."""
UNSUPPORTED_PROTOCOL_VERSION: Final = -32022
"""MCP 2026-07-28; the error's data carries `supported` and `requested`."""

Fields: TypeAlias = dict[str, Raw]
"""One JSON object whose values stay undecoded."""

ABSENT: Final = Raw(b"")
MAX_OWN_DIGITS: Final = 18
"""Of ids given by this gateway, which counts from 1. Reading longer ones costs time, and Python refuses 4300 digits."""


class WireError(Exception):
    """A message is not acceptable JSON-RPC; whoever sent it must fix it.

    `code` is the JSON-RPC error code to answer with, `id` the raw id to answer to (`null` if unknown)."""

    def __init__(self, code: int, message: str, id: bytes = b"null") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.id = id


class Envelope(msgspec.Struct, gc=False):
    """One decoded message. Raw members are views into the received buffer; absent ones are empty."""

    jsonrpc: Literal["2.0"]
    id: Raw = ABSENT
    method: str = ""
    params: Raw = ABSENT
    result: Raw = ABSENT
    error: Raw = ABSENT

    @property
    def kind(self) -> Literal["request", "notification", "response"]:
        if self.method:
            return "request" if bytes(self.id) else "notification"
        return "response"


_envelope: Final = msgspec.json.Decoder(Envelope)
_batch: Final = msgspec.json.Decoder(list[Raw])
_fields: Final = msgspec.json.Decoder(Fields)
_items: Final = msgspec.json.Decoder(list[Raw])
_text: Final = msgspec.json.Decoder(str)
_value: Final = msgspec.json.Decoder()
_encoder: Final = msgspec.json.Encoder()


def decode(message: bytes | Raw) -> Envelope:
    """Read one message.

    Raises:
        WireError: not JSON, not UTF-8, not JSON-RPC 2.0, or neither request, notification nor response.
    """
    data = message if isinstance(message, bytes) else bytes(message)
    if not data.isascii():
        try:
            data.decode()
        except UnicodeDecodeError as exc:
            raise WireError(PARSE_ERROR, f"message is not valid UTF-8 (byte {exc.start})") from exc
    try:
        envelope = _envelope.decode(data)
    except msgspec.ValidationError as exc:
        raise WireError(INVALID_REQUEST, f"not a JSON-RPC 2.0 message: {exc}") from exc
    except (msgspec.DecodeError, RecursionError) as exc:
        raise WireError(PARSE_ERROR, f"not JSON: {exc}") from exc
    identifier = bytes(envelope.id)
    # Ids are strings or integers (MCP base protocol); null is only legal in an error answer.
    if identifier and not _is_id(identifier) and not (identifier == b"null" and bytes(envelope.error)):
        raise WireError(INVALID_REQUEST, "id must be a string or an integer")
    if not envelope.method and not (bytes(envelope.result) or bytes(envelope.error)):
        where = identifier if _is_id(identifier) else b"null"
        raise WireError(INVALID_REQUEST, "message has neither method, result nor error", where)
    params = bytes(envelope.params)[:1]
    if params not in (b"", b"{"):
        raise WireError(INVALID_REQUEST, "params must be an object", identifier or b"null")
    return envelope


def decode_from_client(message: bytes | Raw) -> Envelope:
    """Read one message of a client's, which must leave no parser a choice.

    Raises:
        WireError: as `decode`, or JSON that parsers may read differently.
    """
    envelope = decode(message)
    try:
        strict.check(bytes(message))
    except strict.Ambiguous as exc:
        raise WireError(PARSE_ERROR, f"JSON that parsers may read differently: {exc}") from exc
    return envelope


def _is_id(raw: bytes) -> bool:
    return raw.isdigit() or raw[:1] == b'"' or (raw[:1] in b"-0123456789" and raw.lstrip(b"-").isdigit())


def decode_batch(message: bytes) -> list[Raw]:
    """The members of a JSON-RPC batch (only revision 2025-03-26 has batches).

    Raises:
        WireError: not a JSON array, or one of more values than a message may hold.
    """
    try:
        strict.check_size(message)
        return _batch.decode(message)
    except strict.Ambiguous as exc:
        raise WireError(PARSE_ERROR, f"not a JSON-RPC batch: {exc}") from exc
    except (msgspec.DecodeError, RecursionError) as exc:
        raise WireError(PARSE_ERROR, f"not a JSON-RPC batch: {exc}") from exc


def fields(payload: bytes | Raw) -> Fields:
    """The members of one JSON object, values undecoded; empty for an absent payload.

    Raises:
        WireError: not an object.
    """
    if not bytes(payload):
        return {}
    try:
        return _fields.decode(payload)
    except (msgspec.DecodeError, RecursionError) as exc:
        raise WireError(INVALID_PARAMS, f"expected an object: {exc}") from exc


def items(payload: bytes | Raw) -> list[Raw]:
    """The members of one JSON array, undecoded.

    Raises:
        WireError: not an array.
    """
    try:
        return _items.decode(payload)
    except (msgspec.DecodeError, RecursionError) as exc:
        raise WireError(INVALID_PARAMS, f"expected an array: {exc}") from exc


def text(raw: Raw, what: str) -> str:
    """One JSON string.

    Raises:
        WireError: absent or not a string; `what` names the member in the message.
    """
    try:
        return _text.decode(raw)
    except msgspec.DecodeError as exc:
        raise WireError(INVALID_PARAMS, f"{what} must be a string") from exc


def number(raw: bytes | Raw) -> int | None:
    """The integer in an id or token that this gateway may have given; None for anything it never gives."""
    data = bytes(raw)
    return int(data) if len(data) <= MAX_OWN_DIGITS and data.isdigit() else None


def value(raw: bytes | Raw) -> Any:
    """Any JSON value, decoded.

    Raises:
        WireError: not JSON.
    """
    try:
        return _value.decode(raw)
    except (msgspec.DecodeError, RecursionError) as exc:
        raise WireError(PARSE_ERROR, f"not JSON: {exc}") from exc


def encode(payload: object) -> bytes:
    """Compact JSON; `Raw` members are copied through."""
    return _encoder.encode(payload)


def raw(payload: object) -> Raw:
    """Compact JSON as an undecoded value, to place inside `Fields`."""
    return Raw(_encoder.encode(payload))


def one_line(payload: bytes) -> bytes:
    """The same JSON without line breaks, as newline-delimited framing and SSE need it.

    Between JSON tokens a space is as good as a line break, and within a string there can be none (RFC 8259, section 7).
    """
    if b"\n" in payload or b"\r" in payload:
        return payload.replace(b"\n", b" ").replace(b"\r", b" ")
    return payload


def request(id: bytes, method: str, params: bytes) -> bytes:
    """A request with a raw id (already JSON) and raw params; empty params are left out."""
    if params:
        return b'{"jsonrpc":"2.0","id":%b,"method":%b,"params":%b}' % (id, encode(method), params)
    return b'{"jsonrpc":"2.0","id":%b,"method":%b}' % (id, encode(method))


def notification(method: str, params: bytes = b"") -> bytes:
    """A notification with raw params; empty params are left out."""
    if params:
        return b'{"jsonrpc":"2.0","method":%b,"params":%b}' % (encode(method), params)
    return b'{"jsonrpc":"2.0","method":%b}' % encode(method)


def result(id: bytes, payload: bytes) -> bytes:
    """A successful answer."""
    return b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (id, payload)


def error(id: bytes, code: int, message: str, data: object = None) -> bytes:
    """An error answer."""
    body: dict[str, object] = {"code": code, "message": message}
    if data is not None:
        body["data"] = data
    return error_raw(id, encode(body))


def error_raw(id: bytes, payload: bytes) -> bytes:
    """An error answer whose error object is already JSON."""
    return b'{"jsonrpc":"2.0","id":%b,"error":%b}' % (id, payload)
