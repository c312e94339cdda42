"""Tool calls found in what a model writes, piece by piece, without letting their markup through as text.

Knows nothing of grammars: it also understands calls in code fences and bare JSON, and leaves other JSON alone."""

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Final

_TAGS: Final = {"<tool_call>": "</tool_call>", "<tools>": "</tools>", "<function_call>": "</function_call>"}
_FENCE: Final = "```"
_CALL_KEYS: Final = ("arguments", "parameters")


@dataclass(frozen=True, slots=True)
class Text:
    """Text for the reader."""

    text: str


@dataclass(frozen=True, slots=True)
class Call:
    """A complete call; `arguments` is the text of a JSON object."""

    name: str
    arguments: str


class CallParser:
    """Fed with pieces of an answer, gives text and calls in order.

    Text is held back while it may turn out to be a call: from an opening tag, or from a code fence or a brace at the
    beginning of a line.
    """

    def __init__(self, tool_names: Collection[str]) -> None:
        self._names = tool_names
        self._held = ""
        self._is_line_start = True
        self._space = ""  # white space that is only shown if more text follows
        self._has_calls = False
        self.is_malformed = False

    def feed(self, piece: str) -> Iterator[Text | Call]:
        self._held += piece
        yield from self._advance(is_final=False)

    def finish(self) -> Iterator[Text | Call]:
        """What is left at the end; a tag left open is a malformed call and is not shown."""
        yield from self._advance(is_final=True)

    def _advance(self, *, is_final: bool) -> Iterator[Text | Call]:
        while self._held:
            start, opener = self._find_opener()
            if start > 0:
                yield from self._show(self._held[:start])
                self._held = self._held[start:]
                continue
            if not opener:
                if is_final:
                    if not self._has_calls:  # after a call it is the beginning of another that was cut off
                        yield from self._show(self._held)
                    self._held = ""
                return
            end, body = self._find_end(opener, is_final=is_final)
            if end is None:
                return
            calls = self._calls(body, is_tagged=opener in _TAGS)
            if calls:
                yield from calls
                self._has_calls = True
                self._space = ""
            elif opener in _TAGS:
                self.is_malformed = True
            else:
                yield from self._show(self._held[:end])
            self._held = self._held[end:]

    def _find_opener(self) -> tuple[int, str]:
        """Where the held text may begin a call, and with what; (length, "") if nowhere, (0, "") to wait for more."""
        text = self._held
        best, opener = len(text), ""
        for tag in _TAGS:
            at = text.find(tag)
            if 0 <= at < best:
                best, opener = at, tag
        for mark in (_FENCE, "{", "["):
            at = self._at_line_start(mark)
            if 0 <= at < best:
                best, opener = at, mark
        for at in range(max(0, len(text) - 16), best):
            rest = text[at:]
            if any(tag.startswith(rest) for tag in _TAGS) or (
                _FENCE.startswith(rest) and not text[:at].rpartition("\n")[2].strip() and self._begins_line(at)
            ):
                return at, ""
        return best, opener

    def _begins_line(self, at: int) -> bool:
        return "\n" in self._held[:at] or self._is_line_start

    def _at_line_start(self, mark: str) -> int:
        at = self._held.find(mark)
        while at >= 0:
            if not self._held[:at].rpartition("\n")[2].strip() and self._begins_line(at):
                return at
            at = self._held.find(mark, at + 1)
        return -1

    def _find_end(self, opener: str, *, is_final: bool) -> tuple[int | None, str]:
        """The end of what `opener` began and its inside; None while more is needed."""
        text = self._held
        if opener in _TAGS:
            close = _TAGS[opener]
            ends = [found.start() for found in re.finditer(re.escape(close), text)]
            bodies = [(at + len(close), text[len(opener) : at]) for at in ends]
            if whole := next((b for b in bodies if _values(b[1]) is not None), None):
                return whole  # a closing tag before it stands inside a string
            if not is_final:
                return None, ""
            return bodies[0] if bodies else (len(text), text[len(opener) :])
        if opener == _FENCE:
            at = text.find(f"\n{_FENCE}", len(_FENCE))
            if at >= 0:
                return at + 1 + len(_FENCE), text[len(_FENCE) : at].partition("\n")[2]
            return (len(text), text[len(_FENCE) :].partition("\n")[2]) if is_final else (None, "")
        try:
            _, end = json.JSONDecoder().raw_decode(text)
        except ValueError as exc:
            is_cut = isinstance(exc, json.JSONDecodeError) and (exc.pos >= len(text.rstrip()) - 1 or _is_open(exc))
            if is_cut and not is_final:
                return None, ""
            return len(text) if is_final else len(opener), ""
        except RecursionError:
            return len(text), ""
        return end, text[:end]

    def _show(self, text: str) -> Iterator[Text]:
        shown = (self._space + text).rstrip()
        self._space = (self._space + text)[len(shown) :]
        if text:
            self._is_line_start = not text.rpartition("\n")[2].strip() and ("\n" in text or self._is_line_start)
        if shown:
            yield Text(shown)

    def _calls(self, body: str, *, is_tagged: bool) -> list[Call]:
        """The calls in `body`: one object, a list of them, or one on each line."""
        calls = [self._call(value, is_tagged=is_tagged) for value in _values(body) or ()]
        return [call for call in calls if call] if all(calls) else []

    def _call(self, value: Any, *, is_tagged: bool) -> Call | None:
        if isinstance(value, dict) and isinstance(value.get("function"), dict):
            value = value["function"]
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            return None
        name = value["name"].strip()
        given: Any = next((value[key] for key in _CALL_KEYS if key in value), {} if is_tagged else None)
        if isinstance(given, str):
            try:
                given = json.loads(given or "{}")
            except (ValueError, RecursionError):
                return None
        if name not in self._names or not isinstance(given, dict):
            return None
        return Call(name, json.dumps(given, ensure_ascii=False))


def _values(body: str) -> list[Any] | None:
    """The JSON values of `body`: one, the items of a list, or one on each line; None if it is not JSON."""
    for texts in ([body], [line for line in body.splitlines() if line.strip()]):
        try:
            values = [json.loads(text) for text in texts]
        except (ValueError, RecursionError):
            continue
        return [item for value in values for item in (value if isinstance(value, list) else [value])]
    return None


def _is_open(error: json.JSONDecodeError) -> bool:
    """Whether more text could still make the JSON valid."""
    return error.msg.startswith(("Unterminated string", "Invalid control")) and "\n" not in error.doc[error.pos :]
