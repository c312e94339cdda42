"""Answers on their way out as chunks of the OpenAI protocol, and chunks put together into whole ones.

Knows nothing of workers; what it is fed are the events of one answer."""

import itertools
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from engine.calls import Call, CallParser, Text
from engine.pipe import Done, Piece, TokenChance

Chunk = dict[str, Any]


class _Choice:
    """What every choice of a completion has: its number, and the counts for its usage."""

    prefix: str
    object: str
    is_circling = False
    """It makes the same call again: a small model that has lost its way, and would go on."""

    def __init__(self, head: Chunk, number: int) -> None:
        self._head = head
        self._number = number
        self.n_prompt = 0
        self.n_cached = 0
        self.n_completion = 0

    @classmethod
    def head(cls, ref: str) -> Chunk:
        return {
            "id": f"{cls.prefix}-{secrets.token_hex(12)}",
            "object": cls.object,
            "created": int(time.time()),
            "model": ref,
        }


class Answer(_Choice):
    """One choice of a chat completion."""

    prefix, object = "chatcmpl", "chat.completion.chunk"

    def __init__(self, head: Chunk, number: int, tool_names: Sequence[str]) -> None:
        super().__init__(head, number)
        self._parser = CallParser(tool_names) if tool_names else None
        self._call_numbers = itertools.count()
        self._calls: set[Call] = set()
        self._is_begun = False

    def begin(self) -> Iterator[Chunk]:
        if not self._is_begun:
            self._is_begun = True
            yield self._chunk({"role": "assistant", "content": ""})

    def add(self, piece: Piece) -> Iterator[Chunk]:
        if self._parser is None:
            yield self._chunk({"content": piece.text}, chances=piece.chances)
            return
        chances = piece.chances
        for found in self._parser.feed(piece.text):
            for chunk in self._shown(found):
                yield _with_chances(chunk, chances)
                chances = []
        if chances:
            yield self._chunk({}, chances=chances)

    def finish(self, done: Done) -> Iterator[Chunk]:
        self.n_completion = done.n_completion
        if self._parser is not None:
            for found in self._parser.finish():
                yield from self._shown(found)
        reason: str = done.reason
        if self._calls and reason == "stop":
            reason = "tool_calls"
        yield self._chunk({}, reason)

    def _shown(self, found: Text | Call) -> Iterator[Chunk]:
        if isinstance(found, Text):
            yield self._chunk({"content": found.text})
            return
        if self.is_circling or found in self._calls:
            self.is_circling = True
            return
        self._calls.add(found)
        call = {
            "index": next(self._call_numbers),
            "id": f"call_{secrets.token_hex(12)}",
            "type": "function",
            "function": {"name": found.name, "arguments": found.arguments},
        }
        yield self._chunk({"tool_calls": [call]})

    def _chunk(
        self, delta: dict[str, Any], finish_reason: str | None = None, chances: Sequence[TokenChance] = ()
    ) -> Chunk:
        choice = {"index": self._number, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return _with_chances({**self._head, "choices": [choice]}, chances)


def _with_chances(chunk: Chunk, chances: Sequence[TokenChance]) -> Chunk:
    if chances:
        chunk["choices"][0]["logprobs"] = {"content": [_chance(one) for one in chances], "refusal": None}
    return chunk


def _chance(chance: TokenChance) -> dict[str, Any]:
    top = [_token(token, logprob) for token, logprob in chance.top]
    return {**_token(chance.token, chance.logprob), "top_logprobs": top}


def _token(token: bytes, logprob: float) -> dict[str, Any]:
    return {"token": token.decode(errors="replace"), "logprob": logprob, "bytes": list(token)}


class TextAnswer(_Choice):
    """One choice of a text completion."""

    prefix, object = "cmpl", "text_completion"

    def __init__(self, head: Chunk, number: int, echo: str) -> None:
        super().__init__(head, number)
        self._echo = echo
        self._n_chars = 0

    def begin(self) -> Iterator[Chunk]:
        if self._echo:
            yield self._chunk(self._echo)
            self._n_chars, self._echo = len(self._echo), ""

    def add(self, piece: Piece) -> Iterator[Chunk]:
        yield self._chunk(piece.text, chances=piece.chances)

    def finish(self, done: Done) -> Iterator[Chunk]:
        self.n_completion = done.n_completion
        yield self._chunk("", done.reason)

    def _chunk(self, text: str, finish_reason: str | None = None, chances: Sequence[TokenChance] = ()) -> Chunk:
        choice = {
            "index": self._number,
            "text": text,
            "logprobs": self._logprobs(chances) if chances else None,
            "finish_reason": finish_reason,
        }
        return {**self._head, "choices": [choice]}

    def _logprobs(self, chances: Sequence[TokenChance]) -> dict[str, Any]:
        tokens = [chance.token.decode(errors="replace") for chance in chances]
        offsets = []
        for token in tokens:
            offsets.append(self._n_chars)
            self._n_chars += len(token)
        return {
            "tokens": tokens,
            "token_logprobs": [chance.logprob for chance in chances],
            "top_logprobs": [{token.decode(errors="replace"): p for token, p in chance.top} for chance in chances],
            "text_offset": offsets,
        }


def usage(answers: Sequence[Answer | TextAnswer]) -> Chunk:
    """The last chunk: the tokens of all answers, each different prompt counted once."""
    head = answers[0]._head  # of this module
    n_prompt = max(answer.n_prompt for answer in answers) if isinstance(answers[0], Answer) else 0
    n_prompt = n_prompt or sum(answer.n_prompt for answer in answers)
    n_completion = sum(answer.n_completion for answer in answers)
    counted = {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_completion,
        "total_tokens": n_prompt + n_completion,
        "prompt_tokens_details": {"cached_tokens": answers[0].n_cached},
    }
    return {**head, "choices": [], "usage": counted}


async def collect(chunks: AsyncIterator[Chunk]) -> dict[str, Any]:
    """Put chunks together into one chat.completion object."""
    completion: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    async for chunk in chunks:
        completion.update({key: chunk[key] for key in ("id", "created", "model", "usage") if key in chunk})
        for part in chunk["choices"]:
            empty = {"role": "assistant", "content": None}
            choice = choices.setdefault(part["index"], {"index": part["index"], "message": empty, "logprobs": None})
            message, delta = choice["message"], part["delta"]
            if delta.get("content"):
                message["content"] = (message["content"] or "") + delta["content"]
            for call in delta.get("tool_calls", ()):
                listed = {key: value for key, value in call.items() if key != "index"}
                message.setdefault("tool_calls", []).append(listed)
            if part["logprobs"]:
                choice["logprobs"] = choice["logprobs"] or {"content": [], "refusal": None}
                choice["logprobs"]["content"] += part["logprobs"]["content"]
            choice["finish_reason"] = part["finish_reason"] or choice.get("finish_reason")
    return {"object": "chat.completion", **completion, "choices": [choices[index] for index in sorted(choices)]}


async def collect_text(chunks: AsyncIterator[Chunk]) -> dict[str, Any]:
    """Put chunks together into one text_completion object."""
    completion: dict[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    async for chunk in chunks:
        completion.update({key: value for key, value in chunk.items() if key != "choices"})
        for part in chunk["choices"]:
            choice = choices.setdefault(part["index"], {"index": part["index"], "text": "", "logprobs": None})
            choice["text"] += part["text"]
            if part["logprobs"]:
                choice["logprobs"] = choice["logprobs"] or {key: [] for key in part["logprobs"]}
                for key, values in part["logprobs"].items():
                    choice["logprobs"][key] += values
            choice["finish_reason"] = part["finish_reason"] or choice.get("finish_reason")
    return {**completion, "choices": [choices[index] for index in sorted(choices)]}
