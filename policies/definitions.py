"""Judging what a server says about its own tools: text for the model that gives orders, hides, or borrows names.

Pure: no input, no output, no network. It finds what people should look at before a tool is offered; it does not know
locks or listings. A finding is a reason to ask, not a proof.

The rules are layered. Characters that no reader sees, and markup that imitates another speaker, count by themselves.
Words count by what they ask for together: to set aside other instructions, to keep something from the user, to act
without consent, to hand over what no such argument needs, or to change how another server's tools are used.
"""

import base64
import binascii
import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from policies.orders import GENERAL
from policies.wording import RULES as WORDINGS
from policies.wording import Kind

RULES: Final = (*WORDINGS, *GENERAL)
MAX_TEXT: Final = 65_536
"""Characters of one text that are read; a longer one is a finding of its own."""
MAX_TEXTS: Final = 5000
MAX_DEPTH: Final = 40
LONG_BLANK: Final = 80
"""Blanks in a row that push what follows out of sight."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to look at."""

    kind: Kind
    where: str
    """The place in the definition: "description", "inputSchema.properties.path.description"."""
    excerpt: str
    """The text around it, printable and short."""

    def __str__(self) -> str:
        return f"{self.kind} in {self.where}: {self.excerpt}"


def inspect(definition: Mapping[str, Any], foreign_tools: Collection[str] = ()) -> list[Finding]:
    """Return what is to be looked at in a tool, prompt or resource definition; an empty list is a clean one.

    Args:
        definition: as the server listed it: name, title, description, schemas, annotations, decoded from JSON.
        foreign_tools: names of other servers' tools, whose mention is noted.
    """
    findings: dict[tuple[Kind, str], Finding] = {}
    name = str(definition.get("name", ""))
    if not _plain_name(name):
        findings["misleading name", "name"] = Finding("misleading name", "name", _shown(name))
    foreign = _named(foreign_tools)
    for number, (where, text) in enumerate(_texts(definition, "", 0)):
        if number >= MAX_TEXTS:
            findings["hidden text", where] = Finding("hidden text", where, f"more than {MAX_TEXTS} texts")
            break
        for kind, excerpt in _judge(text, where, foreign):
            findings.setdefault((kind, where), Finding(kind, where, excerpt))
    return list(findings.values())


def inspect_text(text: str) -> list[Finding]:
    """The same for a lone text, such as a server's instructions."""
    return [Finding(kind, "text", excerpt) for kind, excerpt in _judge(text, "text", None)]


def _texts(value: Any, where: str, depth: int) -> Iterator[tuple[str, str]]:
    """Yield every text in a definition, with member names where they can speak (names of properties)."""
    if depth > MAX_DEPTH:
        yield where, " " * (LONG_BLANK + 1)  # nested out of sight
    elif isinstance(value, str):
        yield where, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            place = f"{where}.{key}" if where else str(key)
            if where.endswith("properties"):
                yield f"{place} (name)", str(key).replace("_", " ")
            yield from _texts(inner, place, depth + 1)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _texts(inner, f"{where}[{index}]", depth + 1)


def _judge(text: str, where: str, foreign: re.Pattern[str] | None) -> Iterator[tuple[Kind, str]]:
    if len(text) > MAX_TEXT:
        yield "hidden text", f"{len(text)} characters"
        text = text[:MAX_TEXT]
    if (at := _hidden(text)) is not None:
        yield "hidden text", _around(text, at)
    plain = _normalised(text)
    for kind, pattern in RULES:
        if (found := pattern.search(plain)) is not None:
            yield kind, _around(plain, found.start())
    yield from _encoded(plain)
    if foreign is not None and where != "name" and (found := foreign.search(plain)) is not None:
        yield "other tools", _around(plain, found.start())


# -- characters --------------------------------------------------------------------------------

_BLANK_LETTERS: Final = "\u115f\u1160\u3164\uffa0\u2800"
_RUN_OF_BLANKS: Final = re.compile(rf"[ \t\u00a0]{{{LONG_BLANK},}}|(?:[ \t]*\n){{40,}}")


def _hidden(text: str) -> int | None:
    """Where the first character stands that a reader does not see; None if there is none."""
    if text.isascii():
        bad = re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", text)
        return bad.start() if bad else _blanks(text)
    for at, c in enumerate(text):
        if c < "\x7f" and (c >= " " or c in "\t\n\r"):
            continue
        if _unseen(text, at, c):
            return at
    return _blanks(text)


def _blanks(text: str) -> int | None:
    found = _RUN_OF_BLANKS.search(text)
    return found.start() if found is not None and text[found.end() :].strip() else None


def _unseen(text: str, at: int, c: str) -> bool:
    match unicodedata.category(c):
        case "Cc" | "Co" | "Cs" | "Zl" | "Zp":
            return c not in "\t\n\r"
        case "Cf":
            # A zero-width joiner within an emoji, and the flags made of tags, are how emoji are written.
            return not (c == "\u200d" and at and _is_emoji(text[at - 1]))
        case "Mn":
            # One selector behind a symbol chooses its look; several, or one behind a letter, carry bytes.
            return (0xFE00 <= ord(c) <= 0xFE0F and not (at and _is_emoji(text[at - 1]))) or 0xE0100 <= ord(c) <= 0xE01EF
        case _:
            return c in _BLANK_LETTERS


def _is_emoji(c: str) -> bool:
    return (
        unicodedata.category(c) in ("So", "Sk", "Po", "Nd", "Mn") and not 0xFE00 <= ord(c) <= 0xFE0E
    ) or c == "\ufe0f"


def _plain_name(name: str) -> bool:
    return bool(re.fullmatch(r"[A-Za-z0-9_./: -]{1,256}", name))


# -- words -------------------------------------------------------------------------------------

_LEET: Final = str.maketrans("013457@$", "oieastas")
_SPELT_OUT: Final = re.compile(r"\b(?:[A-Za-z][-.*_ ]){3,}[A-Za-z]\b")


def _normalised(text: str) -> str:
    """The text as its words are read: compatibility forms and marks folded, unseen characters and line breaks gone."""
    folded = unicodedata.normalize("NFKC", text)
    seen = "".join(c for c in folded if unicodedata.category(c) not in ("Cf", "Co", "Cc") or c in "\t\n\r")
    joined = _SPELT_OUT.sub(lambda match: re.sub(r"[-.*_ ]", "", match.group()), seen)
    return " ".join(joined.split())


def _named(tools: Collection[str]) -> re.Pattern[str] | None:
    """A pattern of other servers' tool names that are no ordinary words."""
    names = sorted(
        (re.escape(name) for name in tools if len(name) >= 8 and re.search(r"[_-]|[a-z][A-Z]", name)), key=len
    )
    return re.compile(rf"(?<![\w-])(?:{'|'.join(reversed(names))})(?![\w-])") if names else None


# -- encodings ---------------------------------------------------------------------------------

_BASE64: Final = re.compile(r"(?<![A-Za-z0-9+/=])[A-Za-z0-9+/]{24,}={0,2}(?![A-Za-z0-9+/=])")
_HEX: Final = re.compile(r"(?<![0-9A-Za-z])(?:[0-9a-fA-F]{2}){16,}(?![0-9A-Za-z])")


def _encoded(plain: str) -> Iterator[tuple[Kind, str]]:
    """Look behind encodings that a model reads and a person does not."""
    for found in _BASE64.finditer(plain):
        with_padding = found.group() + "=" * (-len(found.group()) % 4)
        try:
            inner = base64.b64decode(with_padding, validate=True)
        except (binascii.Error, ValueError):
            continue
        if _reads_as_words(inner):
            yield "encoded text", _around(plain, found.start())
    for found in _HEX.finditer(plain):
        if _reads_as_words(bytes.fromhex(found.group())):
            yield "encoded text", _around(plain, found.start())
    for turned in (plain[::-1], plain.translate(_LEET)):
        if turned != plain and any(pattern.search(turned) for _, pattern in _ORDERS):
            yield "encoded text", _around(plain, 0)
            return


_ORDERS: Final = tuple(rule for rule in RULES if rule[0] in ("order to the model", "secrecy"))


def _reads_as_words(data: bytes) -> bool:
    """Whether bytes are English-looking text: letters, and blanks between them."""
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError:
        return False
    letters = sum(c.isalpha() for c in text)
    return text.isprintable() and " " in text and letters >= 0.7 * len(text)


def _around(text: str, at: int) -> str:
    return _shown(text[max(at - 20, 0) : at + 100])


def _shown(text: str) -> str:
    """Printable, with what is not as its code point."""
    return "".join(c if c.isprintable() else f"⟨U+{ord(c):04X}⟩" for c in " ".join(text.split(" ")))[:200]
