"""What the first bytes of a connection say about where it wants to go: TLS by its server name, HTTP by its Host.

Pure: reads bytes, decides nothing. TLS as in RFC 8446 and RFC 6066, HTTP/1.1 as in RFC 9112, each read strictly."""

from __future__ import annotations

import re
from typing import NamedTuple

HANDSHAKE = 0x16
CLIENT_HELLO = 1
SERVER_NAME = 0
HOST_NAME = 0
RECORD_HEADER_BYTES = 5
MAX_HELLO_BYTES = 64 * 1024
MAX_HEAD_BYTES = 64 * 1024
_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_REQUEST = re.compile(rb"(" + _TOKEN + rb") ([\x21-\x7e]+) HTTP/1\.[01]")
_FIELD = re.compile(rb"(" + _TOKEN + rb"):[ \t]*([\x20-\x7e\x80-\xff\t]*?)[ \t]*")
_AUTHORITY = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")
HOP_BY_HOP = frozenset(
    b"connection proxy-connection keep-alive upgrade te trailer proxy-authorization http2-settings".split()
)


class Unclear(Exception):
    """The bytes say nothing that could be relied on; says what is wrong."""


class NeedMore(Exception):
    """So far nothing is wrong, but it is not all there."""


def server_name(data: bytes) -> str:
    """The server name of the ClientHello at the beginning of the data.

    Raises:
        NeedMore: it is not complete.
        Unclear: it is malformed, or has no server name.
    """
    hello = _hello(data)
    at = 2 + 32  # version, random
    at += 1 + _number(hello, at, 1)  # session id
    at += 2 + _number(hello, at, 2)  # cipher suites
    at += 1 + _number(hello, at, 1)  # compression methods
    end = at + 2 + _number(hello, at, 2)
    at += 2
    if end != len(hello):
        raise Unclear("its TLS handshake is malformed")
    found: list[str] = []
    while at < end:
        kind, length = _number(hello, at, 2), _number(hello, at + 2, 2)
        body = hello[at + 4 : at + 4 + length]
        if len(body) != length:
            raise Unclear("its TLS handshake is malformed")
        if kind == SERVER_NAME:
            found.append(_host_name(body))
        at += 4 + length
    if len(found) != 1:
        raise Unclear("its TLS handshake names no server")
    return found[0]


def _hello(data: bytes) -> bytes:
    """The body of the ClientHello, which may be spread over several records."""
    message, at = bytearray(), 0
    while True:
        if len(message) >= 4:
            if message[0] != CLIENT_HELLO:
                raise Unclear("its TLS handshake does not begin with a ClientHello")
            wanted = 4 + int.from_bytes(message[1:4], "big")
            if wanted > MAX_HELLO_BYTES:
                raise Unclear("its TLS handshake is too long")
            if len(message) >= wanted:
                return bytes(message[4:wanted])
        if len(data) < at + RECORD_HEADER_BYTES:
            raise NeedMore
        if data[at] != HANDSHAKE or data[at + 1] != 3:
            raise Unclear("it is no TLS handshake")
        length = int.from_bytes(data[at + 3 : at + 5], "big")
        if not 0 < length <= 2**14:
            raise Unclear("its TLS handshake is malformed")
        if len(data) < at + RECORD_HEADER_BYTES + length:
            raise NeedMore
        message += data[at + RECORD_HEADER_BYTES : at + RECORD_HEADER_BYTES + length]
        at += RECORD_HEADER_BYTES + length


def _host_name(body: bytes) -> str:
    if _number(body, 0, 2) != len(body) - 2 or _number(body, 2, 1) != HOST_NAME:
        raise Unclear("its TLS handshake names the server in no known way")
    length = _number(body, 3, 2)
    if length != len(body) - 5:
        raise Unclear("its TLS handshake names more than one server")
    try:
        return body[5:].decode("ascii")
    except UnicodeDecodeError:
        raise Unclear("its TLS handshake is malformed") from None


def _number(data: bytes, at: int, size: int) -> int:
    if at + size > len(data):
        raise Unclear("its TLS handshake is malformed")
    return int.from_bytes(data[at : at + size], "big")


class Head(NamedTuple):
    """One HTTP request. `length` is that of its body, None if that comes in chunks; `rest` is what follows the head."""

    method: bytes
    host: str
    port: int | None
    forwarded: bytes
    """The head as it is sent on: to the origin, and without what belongs to one hop."""
    length: int | None
    rest: bytes


def request(data: bytes) -> Head:
    """The HTTP request at the beginning of the data.

    Raises:
        NeedMore: its head is not complete.
        Unclear: it is no request that everybody reads in the same way.
    """
    end = data.find(b"\r\n\r\n")
    if end < 0:
        if len(data) > MAX_HEAD_BYTES:
            raise Unclear("its HTTP request is too long")
        if len(data) > 20 and not re.match(_TOKEN + rb"(?: |$)", data[:64]):
            raise Unclear("it is neither TLS nor HTTP")
        raise NeedMore
    first, *lines = data[:end].split(b"\r\n")
    parts = _REQUEST.fullmatch(first)
    if parts is None:
        raise Unclear("it is neither TLS nor HTTP")
    method, target = parts[1], parts[2]
    fields: list[tuple[bytes, bytes]] = []
    for line in lines:
        field = _FIELD.fullmatch(line)
        if field is None:
            raise Unclear("its HTTP request is malformed")
        fields.append((field[1].lower(), field[2]))
    named = dict(fields)
    for name in (b"host", b"content-length", b"transfer-encoding"):
        if sum(one == name for one, _ in fields) > 1:
            raise Unclear(f"its HTTP request repeats {name.decode()}")
    host, port, path = _where(method, target, named.get(b"host", b""))
    kept = [line for line, (name, _) in zip(lines, fields, strict=True) if name not in HOP_BY_HOP]
    forwarded = b"\r\n".join([b"%b %b HTTP/1.1" % (method, path), *kept, b"Connection: close", b"", b""])
    return Head(method, host, port, forwarded, _length(named), data[end + 4 :])


def _where(method: bytes, target: bytes, host: bytes) -> tuple[str, int | None, bytes]:
    """Host, port and origin-form target. A proxy request must say the same in its Host."""
    if method == b"CONNECT":
        found = _AUTHORITY.fullmatch(target)
        if found is None or found[2] is None:
            raise Unclear("its HTTP request is malformed")
        return found[1].decode(), int(found[2]), target
    named = _AUTHORITY.fullmatch(host)
    if named is None:
        raise Unclear("its HTTP request names no host")
    if target[:7].lower() == b"http://":
        authority, slash, path = target[7:].partition(b"/")
        if authority.lower() != host.lower():
            raise Unclear("its HTTP request names two hosts")
        target = slash + path or b"/"
    elif not target.startswith(b"/") and target != b"*":
        raise Unclear("its HTTP request is malformed")
    return named[1].decode(), int(named[2]) if named[2] else None, target


def _length(named: dict[bytes, bytes]) -> int | None:
    coding, length = named.get(b"transfer-encoding"), named.get(b"content-length")
    if coding is not None:
        if length is not None or coding.lower() != b"chunked":
            raise Unclear("its HTTP request can be read in two ways")
        return None
    if length is None:
        return 0
    if not re.fullmatch(rb"[0-9]{1,18}", length):
        raise Unclear("its HTTP request is malformed")
    return int(length)
