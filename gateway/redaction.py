"""Redaction: known secret values taken out of what a server says, in the forms in which they usually turn up.

Knows values and bytes; not where they came from nor who would have read them."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator
from typing import Final
from urllib.parse import quote, quote_plus

from gateway.secrets import SecretValue

MARK: Final = b"[hidden secret: "
NESTED: Final = 3
"""How deep JSON inside of JSON text is recognised: a result is JSON whose text often is JSON again."""
MIN_HIDDEN_BYTES: Final = 8
"""Shorter values would be found in innocent text; they are not hidden, and the server's log says so once."""


class Redactor:
    """Replaces the values by `[hidden secret: NAME]`, in whatever form: raw, JSON-escaped, base64, hex, URL-encoded."""

    def __init__(self, secrets: Iterable[SecretValue]) -> None:
        self._names: dict[bytes, bytes] = {}
        self.too_short: list[str] = []
        for secret in secrets:
            value = secret.reveal()
            if len(value) < MIN_HIDDEN_BYTES:
                self.too_short.append(secret.name)
                continue
            for form in forms(value):
                self._names.setdefault(form, secret.name.encode())
        self.longest = max(map(len, self._names), default=0)
        longest_first = sorted(self._names, key=len, reverse=True)
        self._pattern = re.compile(b"|".join(map(re.escape, longest_first))) if longest_first else None

    def __repr__(self) -> str:
        return f"Redactor({len(self._names)} forms)"

    def clean(self, data: bytes) -> bytes:
        """The data without the values; the very same object if there are none in it."""
        if self._pattern is None or self._pattern.search(data) is None:
            return data
        return self._pattern.sub(lambda found: MARK + self._names[found[0]] + b"]", data)


def forms(value: bytes) -> Iterator[bytes]:
    """Each form in which the value is recognised. Each line of a value of several lines counts by itself, too."""
    parts = [value, *(line for line in value.splitlines() if len(line) >= MIN_HIDDEN_BYTES)]
    for part in dict.fromkeys(parts):
        yield from _plain(part)
        for one in (*_base64(part), part.hex().encode(), part.hex().upper().encode()):
            yield from _plain(one)


def _plain(part: bytes) -> Iterator[bytes]:
    yield part
    level = {part.decode("utf-8", "surrogateescape")}
    for _ in range(NESTED):
        level = {json.dumps(text, ensure_ascii=ascii)[1:-1] for text in level for ascii in (True, False)}
        for text in level:
            body = text.encode("utf-8", "surrogateescape")
            yield body
            yield body.replace(b"/", b"\\/")
    yield quote(part, safe="").encode()
    yield quote(part).encode()
    yield quote_plus(part).encode()


def _base64(part: bytes) -> Iterator[bytes]:
    """The characters that are the same whatever stands before and after the value: one form for each alignment."""
    for before in range(3):
        whole = base64.b64encode(b"\0" * before + part)
        usable = (before + len(part)) * 8 // 6  # characters that depend on nothing behind the value
        start = -(-before * 8 // 6)
        one = whole[start:usable]
        if len(one) >= MIN_HIDDEN_BYTES:
            yield one
            yield one.translate(bytes.maketrans(b"+/", b"-_"))
