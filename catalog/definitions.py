"""A tool's definition in one canonical form: hashed to be pinned, and compared so that a person can judge a change.

Does not know which servers there are, nor who decides.
"""

import difflib
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

PINNED: Final = ("name", "title", "description", "inputSchema", "outputSchema", "annotations", "icons")
"""What a client or a model acts upon. `_meta` and unknown members are the server's own and may vary from day to day."""
WIDTH: Final = 110


def canonical(definition: Mapping[str, Any]) -> dict[str, Any]:
    """Return the pinned members; what is absent and what is null are the same."""
    return {key: definition[key] for key in PINNED if definition.get(key) is not None}


def digest(definition: Mapping[str, Any]) -> str:
    """Return the hash of a definition, "sha256:" and 64 hexadecimal digits; the order of members does not matter."""
    text = json.dumps(canonical(definition), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return f"sha256:{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()}"


def difference(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> list[str]:
    """Return the lines that changed, as a unified diff of both definitions in readable form.

    Characters that do not show are written as their code points, so that nothing changes unseen.
    """
    old = readable(before) if before is not None else []
    new = readable(after)
    return list(difflib.unified_diff(old, new, "approved", "now", lineterm="", n=1))


def readable(definition: Mapping[str, Any]) -> list[str]:
    """Return a definition as lines: long texts folded at words, everything invisible made visible."""
    lines: list[str] = []
    for key, value in canonical(definition).items():
        if isinstance(value, str):
            lines += [f"{key}:", *(f"  {line}" for line in _folded(value))]
        else:
            text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
            lines += [f"{key}:", *(f"  {_shown(line)}" for line in text.split("\n"))]
    return lines


def _folded(text: str) -> list[str]:
    lines: list[str] = []
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split(" "):
            if line and len(line) + len(word) >= WIDTH:
                lines.append(_shown(line))
                line = word
            else:
                line = f"{line} {word}" if line else word
        lines.append(_shown(line))
    return lines


def _shown(text: str) -> str:
    return "".join(c if c.isprintable() or c == "\t" else f"⟨U+{ord(c):04X}⟩" for c in text)
