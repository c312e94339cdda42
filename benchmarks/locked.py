"""Conversations with the package's own high-level interface, behind a lock: run as a program of its own.

Knows nothing of the engine. Reads the order as JSON from stdin; prints the tokens written and the seconds that took.
Who waits longest is next, as in the package's own server."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

from llama_cpp import Llama


async def talk(llama: Llama, lock: asyncio.Lock, turns: list[str], max_tokens: int) -> int:
    """One caller: each question follows the answer to the one before. The tokens of all answers."""
    messages: list[Any] = []
    n_tokens = 0
    for turn in turns:
        messages.append({"role": "user", "content": turn})
        async with lock:
            found: Any = await asyncio.to_thread(
                llama.create_chat_completion, messages, max_tokens=max_tokens, temperature=0
            )
        messages.append({"role": "assistant", "content": found["choices"][0]["message"]["content"]})
        n_tokens += found["usage"]["completion_tokens"]
    return n_tokens


async def main() -> None:
    order = json.load(sys.stdin)
    llama = Llama(order["path"], n_ctx=order["n_ctx"], n_threads=order["n_threads"], verbose=False)
    lock = asyncio.Lock()
    began = time.monotonic()
    counts = await asyncio.gather(*(talk(llama, lock, turns, order["max_tokens"]) for turns in order["callers"]))
    json.dump({"n_tokens": sum(counts), "took_s": time.monotonic() - began}, sys.stdout)


if __name__ == "__main__":
    asyncio.run(main())
