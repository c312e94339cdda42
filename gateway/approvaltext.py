"""Arguments of a call as a person may safely look at them: in a terminal, a page, or a client's dialogue.

Knows text only: what cannot be seen is written out, and what should not be seen is hidden.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, Final

MAX_DEPTH: Final = 40
HIDDEN: Final = "[hidden]"
_SECRET_NAME: Final = re.compile(
    r"passw(?:or)?d|passphrase|secret|token|api[_-]?key|private[_-]?key|credential|authorization|cookie", re.IGNORECASE
)
_BLANK: Final = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
"""Letters and marks that show nothing."""


def visible(text: str) -> str:
    """The text on one line, with everything written out that could not be seen or would drive a terminal."""
    return "".join(char if _is_seen(char) else f"\\u{{{ord(char):x}}}" for char in text)


def _is_seen(char: str) -> bool:
    if char in _BLANK or not char.isprintable():
        return False
    # Variation selectors are invisible, and letters could be hidden in them.
    return not ("\ufe00" <= char <= "\ufe0f" or "\U000e0100" <= char <= "\U000e01ef" or "\u180b" <= char <= "\u180f")


def shown_arguments(raw: bytes, clean: Callable[[bytes], bytes], limit: int | None) -> tuple[str, int]:
    """JSON text, and how many characters of it were left out. `clean` takes known secrets out."""
    try:
        value = json.loads(clean(raw)) if raw else {}
        text = json.dumps(_without_secrets(value, 0), ensure_ascii=False)
    except (ValueError, RecursionError):
        text = clean(raw).decode("utf-8", "replace")
    text = visible(text)
    if limit is None or len(text) <= limit:
        return text, 0
    # The end is where something is put that nobody shall read, so it is shown, too.
    head, tail = limit * 3 // 4, limit // 4
    return f"{text[:head]} … {text[-tail:]}", len(text) - head - tail


def _without_secrets(value: Any, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise ValueError("nested too deeply")
    if isinstance(value, dict):
        return {
            name: HIDDEN if _SECRET_NAME.search(name) and isinstance(inner, str) else _without_secrets(inner, depth + 1)
            for name, inner in value.items()
        }
    if isinstance(value, list):
        return [_without_secrets(inner, depth + 1) for inner in value]
    return value
