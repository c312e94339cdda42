"""Redaction: known secret values taken out of what a server says, in the forms in which they usually turn up.

Knows values and bytes; not where they came from nor who would have read them."""

from __future__ import annotations

import base64
import json
import logging
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final
from urllib.parse import quote, quote_plus

from ahocorasick_rs import BytesAhoCorasick, MatchKind

from gateway.secrets import SecretValue

MARK: Final = b"[hidden secret: "
NESTED: Final = 3
"""How deep JSON inside of JSON text is recognised: a result is JSON whose text often is JSON again."""
MAX_KNOWN: Final = 1000
MIN_HIDDEN_BYTES: Final = 8
"""Shorter values would be found in innocent text; they are not hidden, and the server's log says so once."""


class Redactor:
    """Replaces the values by `[hidden secret: NAME]`, in whatever form: raw, JSON-escaped, base64, hex, URL-encoded."""

    def __init__(self, secrets: Iterable[SecretValue]) -> None:
        names: dict[bytes, bytes] = {}
        self.too_short: list[str] = []
        for secret in secrets:
            if not (found := _named_forms(secret)):
                self.too_short.append(secret.name)
            _add(names, found)
        self._find(names)

    @classmethod
    def of_forms(cls, names: Mapping[bytes, bytes]) -> Redactor:
        """One that hides these forms, each with the name of its secret."""
        one = cls(())
        one._find(names)
        return one

    def _find(self, names: Mapping[bytes, bytes]) -> None:
        self._names = list(names.values())
        self.longest = max(map(len, names), default=0)
        self._forms = BytesAhoCorasick(list(names), matchkind=MatchKind.LeftmostLongest) if names else None

    def __repr__(self) -> str:
        return f"Redactor({len(self._names)} forms)"

    def clean(self, data: bytes) -> bytes:
        """The data without the values; the very same object if there are none in it."""
        if self._forms is None or not (found := self._forms.find_matches_as_indexes(data)):
            return data
        parts: list[bytes] = []
        end = 0
        for number, start, after in found:
            parts += (data[end:start], MARK, self._names[number], b"]")
            end = after
        parts.append(data[end:])
        return b"".join(parts)


class KnownValues:
    """Every value that was handed to a server since the gateway started, to be kept out of what the gateway itself
    writes: its log and the audit file. Added to from worker threads."""

    def __init__(self) -> None:
        self._values: OrderedDict[bytes, dict[bytes, bytes]] = OrderedDict()
        """The forms of each value, which take longer to find than to look for, with the name of the secret."""
        self._redactor: Redactor | None = None

    def add(self, secrets: Iterable[SecretValue]) -> None:
        for secret in secrets:
            value = secret.reveal()
            if value not in self._values:
                self._values[value] = _named_forms(secret)
                if len(self._values) > MAX_KNOWN:
                    self._values.popitem(last=False)
                self._redactor = None

    def clean(self, data: bytes) -> bytes:
        if not self._values:
            return data
        redactor = self._redactor
        if redactor is None:
            names: dict[bytes, bytes] = {}
            for known in list(self._values.values()):
                _add(names, known)
            redactor = self._redactor = Redactor.of_forms(names)
        return redactor.clean(data)

    def clean_text(self, text: str) -> str:
        if not self._values:
            return text
        return self.clean(text.encode("utf-8", "surrogatepass")).decode("utf-8", "replace")


class LogFilter(logging.Filter):
    """Takes known values out of log records, tracebacks too."""

    def __init__(self, known: KnownValues) -> None:
        super().__init__()
        self._known = known

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = self._known.clean_text(record.getMessage()), ()
        if record.exc_info and not record.exc_text:
            record.exc_text = self._known.clean_text(logging.Formatter().formatException(record.exc_info))
        return True


@contextmanager
def hidden_in_logs(known: KnownValues) -> Iterator[None]:
    """For the length of the body no handler of the root logger writes a known value."""
    one, handlers = LogFilter(known), list(logging.getLogger().handlers)
    for handler in handlers:
        handler.addFilter(one)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(one)


def _named_forms(secret: SecretValue) -> dict[bytes, bytes]:
    """The forms in which a secret is recognised, with its name; none if it is too short to be hidden."""
    value = secret.reveal()
    return dict.fromkeys(forms(value), secret.name.encode()) if len(value) >= MIN_HIDDEN_BYTES else {}


def _add(names: dict[bytes, bytes], more: Mapping[bytes, bytes]) -> None:
    """Of secrets with a form in common, the first names it."""
    for form, name in more.items():
        names.setdefault(form, name)


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
