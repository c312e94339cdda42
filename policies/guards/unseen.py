"""Characters that a reader does not see, and those that move the cursor of a terminal.

Joiners within words of scripts that need them, marks of direction and the selectors of emoji are how people write;
they count where they cannot have that sense: between Latin letters, or several in a row."""

import re
from collections.abc import Iterable, Iterator
from typing import Final

from ahocorasick_rs import AhoCorasick, Implementation

_ALWAYS: Final = (
    "\u202a-\u202e\u2066-\u2069"  # direction
    "\u200b\u2060-\u2065\u206a-\u206f\u180e\u115f\u1160\u3164\uffa0\ufff9-\ufffb"  # nothing to see at all
)
_TAGS: Final = "\U000e0000-\U000e007f"
_SELECTORS: Final = "\ufe00-\ufe0f\U000e0100-\U000e01ef"
_JOINERS: Final = "\u200c\u200d\u200e\u200f\u00ad\u034f\ufeff"
_RUN: Final = re.compile(f"[{_ALWAYS}{_TAGS}{_SELECTORS}{_JOINERS}]+")
_PLAIN: Final = re.compile(f"[{_SELECTORS}{_JOINERS}]|\ufe0f\u200d")
"""What may stand alone; the two together join emoji."""
_SPLITS: Final = frozenset("\u200c\u200d\u034f\ufeff")
"""What has no business between two ASCII characters."""
_FLAG: Final = re.compile("[\U000e0020-\U000e007e]{2,6}\U000e007f")
"""Behind a black flag: that of a region, the one use of tags (Unicode Technical Standard 51, annex C)."""
_BLACK_FLAG: Final = "\U0001f3f4"

_RANGES: Final = (
    (0x202A, 0x202E), (0x2066, 0x2069), (0x200B, 0x200F), (0x2060, 0x206F), (0x180E, 0x180E), (0x115F, 0x1160),
    (0x3164, 0x3164), (0xFFA0, 0xFFA0), (0xFFF9, 0xFFFB), (0xFE00, 0xFE0F), (0xAD, 0xAD), (0x34F, 0x34F),
    (0xFEFF, 0xFEFF), (0xE0000, 0xE007F), (0xE0100, 0xE01EF),
)  # fmt: skip
CHARACTERS: Final = tuple(chr(code) for first, last in _RANGES for code in range(first, last + 1))
_ANY: Final = AhoCorasick(list(CHARACTERS), implementation=Implementation.DFA)
"""Finds the first of a run many times faster than the expression does."""

_CONTROLS: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_ESCAPED: Final = re.compile(rb"\\(?:u00(?:[01]|7[fF]|[89])|[bf]|r(?!\\n))")
_RAW: Final = re.compile(rb"\xc2[\x80-\x9f]")


def hidden(text: str) -> Iterator[tuple[int, int]]:
    """Where hidden characters are, as spans."""
    at = 0
    for _, begins, _ in _ANY.find_matches_as_indexes(text):
        if begins < at or (found := _RUN.match(text, begins)) is None:
            continue
        at = found.end()
        run, start, end = found[0], *found.span()
        if _PLAIN.fullmatch(run):
            around = text[start - 1 : start] + text[end : end + 1]
            if run not in _SPLITS or len(around) < 2 or not around.isascii() or not around.isprintable():
                continue
        elif start and text[start - 1] == _BLACK_FLAG and _FLAG.fullmatch(run):
            continue
        yield start, end


def controls(text: str) -> Iterator[tuple[int, int]]:
    """Where control characters are; a carriage return at the end of a line is none."""
    for found in _CONTROLS.finditer(text):
        if found[0] != "\r" or text[found.end() : found.end() + 1] not in ("\n", ""):
            yield found.span()


def hidden_in_utf8() -> Iterable[bytes]:
    """What payloads with hidden characters contain."""
    plain = {c.encode() for c in CHARACTERS if ord(c) < 0x10000}
    return [*sorted(plain), "\U000e0000".encode()[:2]]


def may_control(payload: bytes) -> bool:
    """Whether JSON could hold control characters, which it can write as escapes only, but for those past ASCII."""
    if b"\\" in payload and _ESCAPED.search(payload) is not None:
        return True
    return b"\x7f" in payload or (not payload.isascii() and _RAW.search(payload) is not None)


def picture(text: str) -> str:
    """How a control character is shown."""
    code = ord(text)
    return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else f"[U+{code:04X}]"


def named(text: str) -> str:
    """How hidden characters are shown."""
    return f"[U+{ord(text):04X}]" if len(text) == 1 else f"[{len(text)} hidden characters]"
