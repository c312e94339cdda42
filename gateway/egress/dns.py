"""Answers to name queries: every listed name is the filter itself, and no other name exists (RFC 1035).

Pure: asks nobody, so that a name carries nothing out."""

from __future__ import annotations

import ipaddress
from typing import NamedTuple

HEADER_BYTES = 12
A, ANY = 1, 255
IN = 1
NXDOMAIN, REFUSED, FORMERR, NOTIMP = 3, 5, 1, 4
TTL_S = 30
MAX_LABEL = 63


class Query(NamedTuple):
    """One question: the bytes that are repeated in the answer, and what they say."""

    id: bytes
    flags: int
    question: bytes
    name: str
    kind: int


def read(packet: bytes) -> Query | None:
    """The query in a packet; None for anything else."""
    if len(packet) < HEADER_BYTES or packet[2] & 0x80:
        return None
    if int.from_bytes(packet[4:6], "big") != 1 or (packet[2] >> 3) & 0xF:
        return None
    labels, at = [], HEADER_BYTES
    while True:
        if at >= len(packet):
            return None
        length = packet[at]
        if length == 0:
            break
        if length > MAX_LABEL or at + 1 + length > len(packet):
            return None
        labels.append(packet[at + 1 : at + 1 + length])
        at += 1 + length
    end = at + 5
    if end > len(packet):
        return None
    name = b".".join(labels).decode("latin-1")
    kind, klass = int.from_bytes(packet[at + 1 : at + 3], "big"), int.from_bytes(packet[at + 3 : end], "big")
    if klass != IN:
        return None
    return Query(packet[:2], int.from_bytes(packet[2:4], "big"), packet[HEADER_BYTES:end], name, kind)


def answer(query: Query, address: str | None) -> bytes:
    """The answer: this address, or that there is no such name. Other kinds of records do not exist."""
    recursion = query.flags & 0x0100
    code = 0 if address is not None else NXDOMAIN
    records = b""
    if address is not None and query.kind in (A, ANY):
        packed = ipaddress.IPv4Address(address).packed
        records = b"\xc0\x0c" + A.to_bytes(2, "big") + IN.to_bytes(2, "big") + TTL_S.to_bytes(4, "big")
        records += len(packed).to_bytes(2, "big") + packed
    flags = 0x8000 | 0x0400 | 0x0080 | recursion | code
    counts = (1, 1 if records else 0, 0, 0)
    head = query.id + flags.to_bytes(2, "big") + b"".join(count.to_bytes(2, "big") for count in counts)
    return head + query.question + records
