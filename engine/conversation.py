"""What the model has been told so far, made from the events of a run and from nothing else.

Knows no model and no tool: applying the same events gives the same messages, so a run can be taken up again."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from engine.events import Event, StepStarted, ToolCalled, ToolRefused, ToolReturned, Turned

CLOSING: Final = (
    "Answer the user's question in one or two sentences from the information below. It is complete and up to date. "
    "What it tells has been done: say the result, not how to get it."
)
REMINDER: Final = "Tell me the result in one or two sentences, or call another function if something is missing."
SHAPING: Final = "Give that answer as JSON."
MAX_RESULT_CHARS: Final = 4_000  # of one tool result shown to the model
MAX_HISTORY_CHARS: Final = 16_000  # of all messages; older results are shortened above it
ROOM: Final = 0.6  # of that is left by shortening, so that it is seldom done: what follows is evaluated anew
SHORTENED_CHARS: Final = 300
MAX_FRUITLESS: Final = 3  # turns in a row without one call that succeeded
QUOTED_CHARS: Final = 1_500  # of a result that takes the place of an answer
HOW_TO: Final = re.compile(r"To \w+ [^.\n]*\byou (?:can|could|need|should|would|must|have to)\b")
ABBREVIATION: Final = re.compile(r"(?<![A-Za-z0-9_])[A-Z]{2,5}(?![A-Za-z0-9_])")
USUAL: Final = frozenset(("AM", "PM", "OK", "ID", "URL", "URI", "JSON", "SQL", "HTML", "XML", "CSV", "API"))
CLOCK: Final = re.compile(r"(?<![\d:.])(\d{1,2}):([0-5]\d)(?!\d)(?::[0-5]\d)?(?:\s?([AaPp])\.?[Mm]\b)?")
HALF_DAY: Final = 12
READ_RESULT: Final = "read_result"
READ_CHARS: Final = 3_500


class Conversation:
    """The messages and counts of one run; changed by `apply` alone."""

    def __init__(
        self,
        task: str,
        instructions: str,
        tool_names: Sequence[str],
        *,
        has_schema: bool = False,
        insists: bool = False,
    ) -> None:
        """`insists` has the model try again where it answers without a call, or with nothing of what calls returned."""
        self.task = task
        self.steps = self.n_calls = self.n_tokens = self.n_repeated = self.n_fruitless = 0
        self.done: set[tuple[str, str]] = set()
        """Calls that were made, as name and canonical arguments."""
        self.calls: list[dict[str, Any]] = []
        """Those of the last turn that have no result yet."""
        self.interrupted: set[str] = set()
        """Ids of those among them that were begun."""
        self.answer = ""
        """What the last turn said in place of calls."""
        self.must_call = False
        """Whether the last turn was a call gone wrong, to be tried once more."""
        self.is_closing = False
        """Whether calls have stopped leading anywhere: the model is asked to answer from what it has."""
        self.asks_again = False
        """Whether the last turn was no answer after all, so that the model is asked once more."""
        self.is_shaping = False
        """Whether the answer is there and only its JSON form is wanted."""
        self.is_trimmed = False
        """Whether there is more of some result than the model was shown."""
        self._names = tool_names
        self._has_schema = has_schema
        self._has_retried = False
        self._insists = self._checks = insists
        self._results: list[tuple[str, str]] = []
        self._good: list[tuple[str, str]] = []
        self._told: dict[str, str] = {}
        self._turn: tuple[dict[str, Any], ...] = ()
        self._is_repeated = self._is_fruitful = False
        self._messages: list[dict[str, Any]] = [
            {"role": "system", "content": instructions},
            {"role": "user", "content": task},
        ]

    def apply(self, event: Event) -> None:
        match event:
            case StepStarted():
                self.steps += 1
            case Turned():
                self._turned(event)
            case ToolCalled():
                self.n_calls += 1
                self.done.add(key_of(event.name, event.arguments))
                self.interrupted.add(event.id)
            case ToolRefused():
                self.n_calls += event.why != "budget"
                self._is_repeated |= event.why == "repeated"
                self._tell(event.id, event.text)
            case ToolReturned():
                self._returned(event)

    # -- what happened -------------------------------------------------------------------------

    def _turned(self, turn: Turned) -> None:
        self.n_tokens += turn.tokens
        self.must_call = self.asks_again = False
        self.answer = "" if turn.calls else turn.text.strip()
        if not turn.calls:
            if self._may_retry(turn.text):
                self._has_retried = self.must_call = self.asks_again = True
            elif self._insists and not self.is_closing and self._ignores_results():
                self._insists, self.is_closing, self.asks_again = False, True, True
            else:
                if self._checks and self._ignores_results():
                    self.answer = self._quoted()
                if self._has_schema and self.answer and not self.is_shaping:
                    self.is_shaping = True
            return
        self._turn = turn.calls
        self.calls = list(turn.calls)
        self._is_repeated = self._is_fruitful = False
        self._messages.append({
            "role": "assistant",
            "content": turn.text or None,
            "tool_calls": [{name: value for name, value in call.items() if name != "index"} for call in turn.calls],
        })  # fmt: skip

    def _may_retry(self, text: str) -> bool:
        """Whether this is a call gone wrong, or an answer from nothing."""
        named = any(name in text for name in self._names) or ('"name"' in text and '"arguments"' in text)
        looks_like_call = not text.strip() or ("{" in text and named)
        may = not (self.is_closing or self.is_shaping or self._has_retried)
        return may and (looks_like_call or (self._insists and not self.n_calls)) and bool(self._names)

    def _ignores_results(self) -> bool:
        """Whether the answer has no word or number that only the results could have told, says how to do what is done
        already, or has an abbreviation or a time of day out of nowhere: a unit, a time zone or an hour that the model
        made up."""
        if self.is_shaping:
            return False
        known = _words(self.task)
        told = {word for _, text in self._good for word in _words(_values(text))} - known
        if not told:
            return False
        given = " ".join((self.task, *self._names, *(f"{name} {text}" for name, text in self._good)))
        made_up = set(ABBREVIATION.findall(self.answer)) - set(ABBREVIATION.findall(given)) - USUAL
        known_times = set().union(*_times(given.replace("T", " ")))
        is_off = bool(made_up) or any(known_times.isdisjoint(time) for time in _times(self.answer))
        return told.isdisjoint(_words(self.answer)) or bool(HOW_TO.match(self.answer)) or is_off

    def _quoted(self) -> str:
        """What the last call that succeeded returned, in place of an answer that has nothing of it."""
        name, text = self._good[-1]
        return f"{name} returned: {trim(text, QUOTED_CHARS)}"

    def _returned(self, event: ToolReturned) -> None:
        text = event.text
        if event.name == READ_RESULT:
            self._is_fruitful = True  # a piece that was asked for is shown as it is
            self._tell(event.id, text)
            return
        if event.is_error:
            text = text if "error" in text.lower() else f"Error: {text}"
        else:
            self._is_fruitful = True
            self._good.append((event.name, text))
        self._results.append((event.name, text))
        self._tell(event.id, self._trimmed(len(self._results), MAX_RESULT_CHARS))

    def _trimmed(self, number: int, limit: int) -> str:
        text = self._results[number - 1][1]
        self.is_trimmed |= len(text) > limit
        return trim(text, limit, f"r{number}")

    def _tell(self, id: str, text: str) -> None:
        """The answers of a turn go to the model together, in the order of its calls."""
        self._told[id] = text
        self.interrupted.discard(id)
        self.calls = [call for call in self.calls if call["id"] != id]
        if self.calls:
            return
        for call in self._turn:
            message = {"role": "tool", "tool_call_id": call["id"], "content": self._told[call["id"]]}
            self._messages.append(message)
        self._told = {}
        self._messages.append({"role": "user", "content": REMINDER})
        self.n_repeated += self._is_repeated
        self.n_fruitless = 0 if self._is_fruitful else self.n_fruitless + 1
        self.is_closing |= self._is_repeated or self.n_fruitless >= MAX_FRUITLESS

    # -- what the model sees -------------------------------------------------------------------

    def messages(self) -> list[dict[str, Any]]:
        """For the next question. They only grow at the end, so nothing is evaluated twice, until they are too long."""
        if self.is_closing and not self.is_shaping:
            return self._closing()
        self._shorten()
        if self.is_shaping:
            tail = [{"role": "assistant", "content": self.answer}, {"role": "user", "content": SHAPING}]
            return [*self._messages, *tail]
        return list(self._messages)

    def _closing(self) -> list[dict[str, Any]]:
        """The task and what was found out, without tools and without the calls: small models that make the same call
        over and over answer this."""
        results = self._good or self._results  # what went wrong is no information, if there is any
        found = "\n\n".join(f"{name} returned:\n{trim(text, MAX_RESULT_CHARS)}" for name, text in results)
        return [
            {"role": "system", "content": CLOSING},
            {"role": "user", "content": f"{self.task}\n\nInformation:\n{trim(found, MAX_HISTORY_CHARS)}"},
        ]

    def _shorten(self) -> None:
        """Cut the oldest results down once the conversation is too long for a small context."""
        if sum(len(message["content"] or "") for message in self._messages) <= MAX_HISTORY_CHARS:
            return
        for message in self._messages:
            if sum(len(m["content"] or "") for m in self._messages) <= MAX_HISTORY_CHARS * ROOM:
                return
            if message["role"] == "tool":
                message["content"] = trim(message["content"], SHORTENED_CHARS)

    def read(self, arguments: Mapping[str, Any]) -> str | None:
        """A piece of a result by its handle; None if there is no such result."""
        handle, start = str(arguments.get("handle", "")), arguments.get("start", 0)
        number = handle.removeprefix("r")
        known = number.isascii() and number.isdigit() and 1 <= int(number) <= len(self._results)
        if not known or not isinstance(start, int) or isinstance(start, bool) or start < 0:
            return None
        text = self._results[int(number) - 1][1]
        piece = text[start : start + READ_CHARS]
        left = len(text) - start - len(piece)
        return f"{piece}\n[{left} more characters from {start + len(piece)}]" if left > 0 else piece


READ_RESULT_TOOL: Final[Mapping[str, Any]] = {
    "type": "function",
    "function": {
        "name": READ_RESULT,
        "description": "Read the part of an earlier result that was left out.",
        "parameters": {
            "type": "object",
            "properties": {
                "handle": {"type": "string", "description": "The result, such as r1"},
                "start": {"type": "integer", "minimum": 0, "description": "The first character to show"},
            },
            "required": ["handle", "start"],
        },
    },
}


def _words(text: str) -> set[str]:
    """Numbers, and words of four letters and more."""
    return {word for word in re.findall(r"\w+", text.lower()) if len(word) >= 4 or word.isdigit()}


def _times(text: str) -> list[set[int]]:
    """The times of day in a text, each as the minutes of the day that it can mean: `7:30` is in the morning or in the
    evening, `07:30` and `7:30 AM` in the morning, `15:33 AM` never."""
    found = []
    for written, minute, half in CLOCK.findall(text):
        hour = int(written)
        if half:
            hours = {hour % HALF_DAY + HALF_DAY * (half in "Pp")} if 1 <= hour <= HALF_DAY or half in "Pp" else set()
        else:
            hours = {hour, (hour + HALF_DAY) % (2 * HALF_DAY)} if len(written) == 1 and hour else {hour}
        found.append({60 * one + int(minute) for one in hours})
    return found


def _values(text: str) -> str:
    """`text` without the names of members, if it is JSON: they are known before a call is made."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    found, left = [], [value]
    while left:
        match left.pop():
            case dict() as members:
                left += members.values()
            case list() as items:
                left += items
            case other:
                found.append(str(other))
    return " ".join(found)


def key_of(name: str, arguments: Mapping[str, Any]) -> tuple[str, str]:
    """What makes two calls the same."""
    return name, json.dumps(arguments, sort_keys=True)


def trim(text: str, limit: int, handle: str = "") -> str:
    """`text` within about `limit` characters: its beginning, its end, and how much is missing between; with a `handle`,
    also how to read that."""
    if len(text) <= limit:
        return text
    head, tail = limit * 3 // 4, limit // 4
    more = f"; {READ_RESULT} with handle {handle} and start {head} shows them" if handle else ""
    return f"{text[:head]}\n[{len(text) - head - tail} characters left out{more}]\n{text[-tail:]}"
