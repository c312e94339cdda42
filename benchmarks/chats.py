"""Streamed chats with whoever speaks the OpenAI protocol: sent together, timed token by token.

Knows the protocol and the clock; not who answers."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.processes import tree
from gateway.wire.http_client import HttpFailure, HttpOrigin
from gateway.wire.sse import EventReader


@dataclass
class Chat:
    """One answered request; times in seconds of the monotonic clock."""

    sent_at: float
    pieces_at: list[float] = field(default_factory=list)
    n_prompt: int = 0
    n_completion: int = 0
    text: str = ""

    @property
    def first_s(self) -> float:
        return self.pieces_at[0] - self.sent_at

    @property
    def gaps_s(self) -> list[float]:
        return [b - a for a, b in zip(self.pieces_at, self.pieces_at[1:], strict=False)]


class _Sink:
    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self._events = EventReader()
        self._status = 0
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def head(self, status: int, headers: dict[str, str]) -> None:
        self._status = status

    def body(self, data: bytes) -> None:
        if self._status != 200:
            raise RuntimeError(f"HTTP {self._status}: {data[:300]!r}")
        now = time.monotonic()
        for event in self._events.feed(data):
            if event.data == b"[DONE]":
                continue
            chunk: dict[str, Any] = msgspec.json.decode(event.data)
            if "error" in chunk:
                raise RuntimeError(str(chunk["error"]))
            if text := "".join(choice["delta"].get("content") or "" for choice in chunk["choices"]):
                self._chat.pieces_at.append(now)
                self._chat.text += text
            if usage := chunk.get("usage"):
                self._chat.n_prompt = usage["prompt_tokens"]
                self._chat.n_completion = usage["completion_tokens"]

    def done(self) -> None:
        self.ended.set_result(None)

    def failed(self, failure: HttpFailure) -> None:
        self.ended.set_exception(failure)


async def chat(url: str, messages: Sequence[dict[str, str]], max_tokens: int, model: str = "") -> Chat:
    """One request, to its end."""
    origin = HttpOrigin(url)
    body = {
        "model": model,
        "messages": list(messages),
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    found = Chat(time.monotonic())
    sink = _Sink(found)
    head = b"Content-Type: application/json\r\n"
    origin.request("POST", "/v1/chat/completions", head, msgspec.json.encode(body), sink)
    try:
        await sink.ended
    finally:
        await origin.aclose()
    return found


@dataclass(frozen=True)
class Load:
    """So many chats at once: their tokens a second, and the CPU time of the server for each."""

    tokens_per_s: float
    cpu_ms: float
    chats: tuple[Chat, ...]


async def together(url: str, pid: int, prompts: Sequence[str], max_tokens: int, model: str) -> Load:
    """All prompts at once."""
    cpu_before, began = cpu_s(pid), time.monotonic()
    chats = await asyncio.gather(
        *(chat(url, [{"role": "user", "content": prompt}], max_tokens, model) for prompt in prompts)
    )
    took_s, used_s = time.monotonic() - began, cpu_s(pid) - cpu_before
    n_tokens = sum(one.n_completion for one in chats)
    return Load(n_tokens / took_s, 1000 * used_s / n_tokens, tuple(chats))


async def conversations(url: str, callers: Sequence[Sequence[str]], max_tokens: int, model: str) -> float:
    """Callers whose every question follows the answer to the one before; tokens a second of all."""

    async def talk(turns: Sequence[str]) -> int:
        messages: list[dict[str, str]] = []
        n_tokens = 0
        for turn in turns:
            messages.append({"role": "user", "content": turn})
            answer = await chat(url, messages, max_tokens, model)
            messages.append({"role": "assistant", "content": answer.text})
            n_tokens += answer.n_completion
        return n_tokens

    began = time.monotonic()
    counts = await asyncio.gather(*map(talk, callers))
    return sum(counts) / (time.monotonic() - began)


def cpu_s(pid: int) -> float:
    """CPU time of a process and all below it."""
    total = 0
    for one in tree(pid):
        fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")
