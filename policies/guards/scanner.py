"""One look at a payload: which guards find something in it, and what is left when each did its work.

A payload is JSON, and most hold nothing: a look at its bytes says so without reading it. Only what may hold something
is decoded, and each of its texts is read the way its reader will have it, whatever escapes it was written with."""

import base64
import binascii
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain, islice
from typing import Any, Final, TypeVar

import msgspec
from ahocorasick_rs import BytesAhoCorasick, Implementation

from policies.guards import credentials, markup, personal, unseen
from policies.guards.modes import Guard, Guards, Mode

_NEEDLES: Final[tuple[tuple[Guard, bytes], ...]] = (
    *(("secrets", needle.encode()) for needle in credentials.PATTERNS.needles),
    *(("hidden", needle) for needle in unseen.hidden_in_utf8()),
)
_MIME: Final = b"mimeType"
_BLOB: Final = b'blob"'
"""The name of a member with base64, in which no search finds anything."""
_MARKUP: Final = (b"svg", b"SVG", b"html", b"HTML")
_OWN: Final = frozenset(("requestState", "taskId", "nextCursor"))
"""Members of a result that go back to the server as they came, and that no model reads."""
MAX_KINDS: Final = 8
MAX_DEPTH: Final = 200
MAX_COUNTED: Final = 1000
"""Findings of one guard in one payload from which on it looks no further, where nothing is to be replaced."""

_T = TypeVar("_T")
_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder().decode


@dataclass(slots=True)
class Scan:
    """What was found in one payload."""

    payload: bytes
    """As it may go on; the very same object if nothing was changed."""
    counts: Counter[Guard] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    blocked: Guard | None = None
    structure_changed: bool = False
    """Whether a text of `structuredContent` was replaced."""
    keys_changed: bool = False
    """Whether the name of a member was replaced, anywhere."""


class Scanner:
    """The guards of one side of one server, ready for use. Holds no state between payloads."""

    def __init__(self, guards: Guards) -> None:
        self.guards = guards
        self._modes: dict[Guard, Mode] = dict(guards.modes)
        on = self._modes.keys()
        self._secrets, self._personal = "secrets" in on, "personal" in on
        self._hidden, self._escapes, self._markup = "hidden" in on, "escapes" in on, "markup" in on
        self._size = "size" in on
        needles = [(guard, needle) for guard, needle in _NEEDLES if guard in on]
        self._owners = [guard for guard, _ in needles]
        self._search = BytesAhoCorasick(
            [needle for _, needle in needles] or [b"\xff"], implementation=Implementation.DFA
        )
        self.is_off = not on

    def suspects(self, payload: bytes) -> set[Guard]:
        """The guards that may find something; an empty set is the word that there is nothing."""
        hits = self._search.find_matches_as_indexes(payload, overlapping=True)
        found = {self._owners[number] for number, _, _ in hits} if hits else set[Guard]()
        # A character can be spelled in a way that hides it from the search.
        spelled = b"\\" in payload and (b"\\u" in payload or b"\\/" in payload)
        if spelled or _BLOB in payload:
            found |= self._modes.keys() & {"secrets", "personal", "hidden", "markup"}
        if self._personal and (b"@" in payload or personal.NUMBERS.may_be_in(payload)):
            found.add("personal")
        if self._escapes and (_BLOB in payload or unseen.may_control(payload)):
            found.add("escapes")
        if self._markup and _MIME in payload and any(needle in payload for needle in _MARKUP):
            found.add("markup")
        if self._size and (len(payload) > self.guards.max_bytes or payload.count(b"{") > self.guards.max_items):
            found.add("size")
        return found

    def scan(self, payload: bytes, known: Callable[[bytes], bytes] | None = None) -> Scan | None:
        """None for a payload in which there is nothing; it must be JSON. `known` takes secrets out of bytes that are
        known by their value.

        Raises:
            msgspec.DecodeError: it is no JSON, or nested too deeply.
        """
        if self.is_off:
            return None
        done = Scan(payload)
        if known is not None and self._secrets and (cleaned := known(payload)) is not payload:
            done.counts["secrets"] += 1
            done.kinds["known secret"] += 1
            if self._acts("secrets", done):
                done.payload = payload = cleaned
        suspects = self.suspects(payload)
        if suspects:
            try:
                value = _decode(payload)
                changed = _Walk(self._modes, suspects, done).through(value, 0)
                is_cut = "size" in suspects and self._cuts(value if changed is None else changed, len(payload), done)
            except RecursionError as exc:
                raise msgspec.DecodeError("nested too deeply") from exc
            if changed is not None or is_cut:
                done.payload = _encode(value if changed is None else changed)
        return done if done.counts else None

    def _acts(self, guard: Guard, done: Scan) -> bool:
        """Whether what was found is to be replaced."""
        mode = self._modes[guard]
        if mode == "block":
            done.blocked = guard
        return mode == "redact"

    def _cuts(self, value: Any, size: int, done: Scan) -> bool:
        """Cut off the end of a result that is over the limits; whether there was anything to cut."""
        lists = [name for name in ("content", "contents", "messages") if isinstance(value.get(name), list)]
        too_many = any(len(value[name]) > self.guards.max_items for name in lists)
        if size <= self.guards.max_bytes and not too_many:
            return False
        done.counts["size"] += 1
        done.kinds["too many items" if too_many else "too many bytes"] += 1
        if not self._acts("size", done):
            return False
        if "structuredContent" in value or not lists:
            done.blocked = "size"  # what has a schema would break it, and anything else has no end to cut off
            return False
        left = self.guards.max_bytes
        for name in lists:
            value[name], left = _cut(value[name], left, self.guards.max_items, size, name)
        return True


def _cut(items: list[Any], left: int, most: int, size: int, name: str) -> tuple[list[Any], int]:
    """The first items that fit, then a note of how much is missing."""
    kept: list[Any] = []
    for item in items[:most]:
        length = len(_encode(item))
        if length > left:
            text = item.get("text") if isinstance(item, dict) else None
            if isinstance(text, str) and left > 0:
                kept.append({**item, "text": text.encode()[:left].decode("utf-8", "ignore")})
                left = 0
            break
        kept.append(item)
        left -= length
    if len(kept) == len(items) and left > 0:
        return kept, left
    note = f"[cut here: {len(items)} items of {size} bytes in all were sent]"
    if name == "content":
        kept.append({"type": "text", "text": note})
    elif name == "messages":
        kept.append({"role": "user", "content": {"type": "text", "text": note}})
    elif kept and isinstance(kept[-1].get("text"), str):
        kept[-1]["text"] += f"\n{note}"
    return kept, left


class _Walk:
    """Through one decoded payload."""

    def __init__(self, modes: dict[Guard, Mode], suspects: set[Guard], done: Scan) -> None:
        self._modes = modes
        self._done = done
        self._secrets = "secrets" in suspects
        self._personal = "personal" in suspects
        self._hidden, self._escapes = "hidden" in suspects, "escapes" in suspects
        self._markup = "markup" in suspects
        self._texts = self._secrets or self._personal or self._hidden or self._escapes

    def through(self, value: Any, depth: int) -> Any:
        """The value with its texts replaced, or None if there was nothing to replace. Lists and objects are changed in
        place."""
        if depth > MAX_DEPTH:
            raise RecursionError
        if isinstance(value, str):
            return self._text(value) if self._texts else None
        if isinstance(value, list):
            changed = False
            for at, item in enumerate(value):
                if (new := self.through(item, depth + 1)) is not None:
                    value[at], changed = new, True
            return value if changed else None
        if isinstance(value, dict):
            return self._object(value, depth)
        return None

    def _object(self, value: dict[str, Any], depth: int) -> Any:
        changed = False
        opaque = self._opaque(value)
        if self._markup and (kind := markup.media(value.get("mimeType"))):
            changed = self._shown(value, kind)
        for key, item in list(value.items()):
            if depth == 0 and key in _OWN:
                continue
            if key == opaque:
                changed |= self._blob(value, key)
                continue
            if (new := self.through(item, depth + 1)) is not None:
                value[key], changed = new, True
                self._done.structure_changed |= key == "structuredContent"
            if self._texts and (renamed := self._text(key)) is not None:
                while renamed in value:
                    renamed += "_"
                value[renamed], changed = value.pop(key), True
                self._done.keys_changed = True
        return value if changed else None

    @staticmethod
    def _opaque(value: dict[str, Any]) -> str | None:
        """The member that holds base64 (MCP server/tools and server/resources), which no text pattern is meant for."""
        if value.get("type") in ("image", "audio") and isinstance(value.get("data"), str):
            return "data"
        return "blob" if isinstance(value.get("blob"), str) and "uri" in value else None

    def _blob(self, value: dict[str, Any], key: str) -> bool:
        """Look into base64 that is text; whether it was changed."""
        mime = str(value.get("mimeType", "")).lower()
        if not self._texts or not (mime.startswith("text/") or mime.split(";")[0].endswith(("json", "xml", "yaml"))):
            return False
        text = _decoded(value[key])
        if text is None or (new := self._text(text)) is None:
            return False
        value[key] = base64.b64encode(new.encode()).decode()
        return True

    def _shown(self, value: dict[str, Any], kind: str) -> bool:
        """Look at what a client would show; whether it was replaced."""
        key = next((name for name in ("text", "blob", "data") if isinstance(value.get(name), str)), None)
        if key is None:
            return False
        text = value[key] if key == "text" else _decoded(value[key])
        found = markup.inspect(text, kind, markup.hosts(value.get("_meta"))) if text is not None else ["no text"]
        if not found:
            return False
        self._count("markup", found)
        if not self._redacts("markup"):
            return False
        note = f"[removed by the gateway: {', '.join(found[:MAX_KINDS])}]"
        if value.get("type") == "image":
            value.clear()
            value.update(type="text", text=note)
            return True
        value.pop("blob", None)
        value.update(text=note, mimeType="text/plain")
        return True

    def _count(self, guard: Guard, kinds: Iterable[str]) -> None:
        for kind in kinds:
            self._done.counts[guard] += 1
            if kind in self._done.kinds or len(self._done.kinds) < MAX_KINDS:
                self._done.kinds[kind] += 1
        if self._done.counts[guard] and self._modes[guard] == "block":
            self._done.blocked = guard

    def _text(self, text: str) -> str | None:
        """The text after all guards; None if it is the same."""
        new = text
        # Hidden characters first: taken out, what they split is found by the others.
        if self._hidden and not new.isascii() and self._goes_on("hidden"):
            new = self._each("hidden", new, unseen.hidden(new), unseen.named)
        if self._escapes and self._goes_on("escapes"):
            new = self._each("escapes", new, unseen.controls(new), unseen.picture)
        if self._secrets and self._goes_on("secrets"):
            new = self._replaced("secrets", new, credentials.PATTERNS.find(new))
        if self._personal and self._goes_on("personal"):
            mails = ((start, end, "mail address") for start, end in personal.mails(new))
            new = self._replaced("personal", new, chain(mails, personal.NUMBERS.find(new)))
        return new if new != text else None

    def _each(self, guard: Guard, text: str, found: Iterable[tuple[int, int]], shown: Callable[[str], str]) -> str:
        spans = list(self._most(guard, found))
        if not spans:
            return text
        self._count(guard, ["hidden characters" if guard == "hidden" else "control characters"] * len(spans))
        return _spliced(text, ((*span, shown(text[slice(*span)])) for span in spans)) if self._redacts(guard) else text

    def _replaced(self, guard: Guard, text: str, found: Iterable[tuple[int, int, str]]) -> str:
        spans, at = list[tuple[int, int, str]](), 0
        for start, end, kind in sorted(self._most(guard, found)):
            if start < at:
                spans[-1] = (spans[-1][0], max(at, end), spans[-1][2])  # one secret within or beside another
            else:
                spans.append((start, end, f"[{kind} removed]"))
                self._count(guard, (kind,))
            at = max(at, end)
        return _spliced(text, spans) if spans and self._redacts(guard) else text

    def _goes_on(self, guard: Guard) -> bool:
        return self._done.counts[guard] < MAX_COUNTED or self._redacts(guard)

    def _most(self, guard: Guard, found: Iterable[_T]) -> Iterable[_T]:
        """All that is to be replaced, or else as many as are counted."""
        return found if self._redacts(guard) else islice(found, MAX_COUNTED - self._done.counts[guard])

    def _redacts(self, guard: Guard) -> bool:
        return self._modes[guard] == "redact"


def _spliced(text: str, spans: Iterable[tuple[int, int, str]]) -> str:
    """The text with each span replaced; they are in order and do not overlap."""
    parts, at = list[str](), 0
    for start, end, new in spans:
        parts += (text[at:start], new)
        at = end
    return "".join((*parts, text[at:]))


def _decoded(blob: str) -> str | None:
    try:
        return base64.b64decode(blob, validate=False).decode("utf-8", "replace")
    except (binascii.Error, ValueError):
        return None


@lru_cache(maxsize=1024)
def scanner(guards: Guards) -> Scanner:
    """The scanner for these modes; servers with the same modes share one."""
    return Scanner(guards)
