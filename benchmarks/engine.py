"""The engine benchmark: the same chats with the gateway's model and with llama-server of the same llama.cpp.

Knows in which order what is compared; who answers and how it is timed is in the modules beside it.

    python -m benchmarks.engine PROGRAMS [--quick]

PROGRAMS is the folder that `.ci/llama-server` prints. The last line printed is the summary; docs/benchmarks.md explains
the figures."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import msgspec

from benchmarks.chats import Chat, Load, chat, together
from benchmarks.gateways import ROOT
from benchmarks.model_servers import Server, llama_bench, llama_server, locked, lockgate
from engine import ModelStore, StoredModel
from engine.threads import default_threads
from gateway.settings import read_settings

RESULTS: Final = ROOT / "benchmarks" / "results" / "engine.json"
CALLERS: Final = (1, 4, 8, 16)
BUSY: Final = 0.7
TOPICS: Final = (
    *("rivers", "clocks", "bread", "glass", "ships", "paper", "music", "maps", "salt", "bees", "roads", "coins"),
    *("bridges", "kites", "lamps", "wells"),
)
GENTLE_GAP: Final = 3.0
"""Times the median: the longest pause of a stream while a long prompt is read beside it."""


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    models: tuple[str, ...]
    rounds: int
    n_tokens: int
    prefix_words: int


FULL: Final = Plan(("smollm2:135m", "qwen2.5-coder:0.5b"), rounds=5, n_tokens=96, prefix_words=1_450)
QUICK: Final = Plan(("smollm2:135m",), rounds=1, n_tokens=48, prefix_words=700)


def stories(number: int, n: int) -> list[str]:
    """Prompts no two of which are the same in one run."""
    return [f"Round {number}. Write a long story about the history of {TOPICS[index]}." for index in range(n)]


def long_text(seed: int, n_words: int) -> str:
    """About 1.4 tokens a word for these models; no two texts begin alike."""
    words = (f"{TOPICS[(seed + n * 7) % len(TOPICS)]} {n}" for n in range(n_words // 2))
    return f"{seed} of {seed * seed}: {' '.join(words)}"


async def throughput(servers: Sequence[Server], plan: Plan, model: str) -> dict[int, list[dict[str, Load]]]:
    """All rounds; who goes first takes turns."""
    found: dict[int, list[dict[str, Load]]] = {}
    for number in range(plan.rounds):
        for callers in CALLERS:
            loads = {}
            for server in servers if number % 2 else reversed(servers):
                prompts = stories(number, callers)
                loads[server.name] = await together(server.url, server.pid, prompts, plan.n_tokens, model)
            found.setdefault(callers, []).append(loads)
            rates = ", ".join(f"{name} {load.tokens_per_s:.1f}" for name, load in loads.items())
            print(f"{model}, round {number + 1}, {callers} callers, tokens/s: {rates}", file=sys.stderr)
    return found


async def first_tokens(server: Server, plan: Plan, model: str, seed: int) -> tuple[Chat, Chat]:
    """A question behind a long shared beginning: the first time, and another one afterwards."""
    text = long_text(seed, plan.prefix_words)

    async def question(last: str) -> Chat:
        messages = [{"role": "system", "content": text}, {"role": "user", "content": last}]
        return await chat(server.url, messages, 8, model)

    return await question("What is this about?"), await question("Which word comes first?")


async def gap(server: Server, plan: Plan, model: str) -> tuple[float, float]:
    """Seven streams, then a long prompt beside them: their longest pause and their median one, in seconds."""
    prompts = stories(90, 7)
    streams = [
        asyncio.create_task(chat(server.url, [{"role": "user", "content": prompt}], 2 * plan.n_tokens, model))
        for prompt in prompts
    ]
    alone = await chat(server.url, [{"role": "user", "content": "Say yes."}], 4, model)
    words = long_text(91, plan.prefix_words // 2)
    book = await chat(server.url, [{"role": "user", "content": f"Summarise: {words}"}], 4, model)
    chats = await asyncio.gather(*streams)
    # From when all of them write: what came before are their own prompts.
    begun_at = max(*(one.pieces_at[0] for one in chats), alone.pieces_at[-1])
    ended_at = min(*(one.pieces_at[-1] for one in chats), book.pieces_at[0])
    gaps = [
        b - a
        for one in chats
        for a, b in zip(one.pieces_at, one.pieces_at[1:], strict=False)
        if a >= begun_at and (b <= ended_at or a <= book.sent_at)
    ]
    return max(gaps), median(gaps)


async def eight_prompts(server: Server, plan: Plan, model: str) -> tuple[float, float]:
    """Eight different long prompts at once: seconds until the last one's answer begins, and of eight in turn."""
    n_words = plan.prefix_words // 4

    async def ask(seed: int) -> Chat:
        return await chat(server.url, [{"role": "user", "content": long_text(seed, n_words)}], 1, model)

    began = time.monotonic()
    for seed in range(8):
        await ask(200 + 3 * seed)
    in_turn_s = time.monotonic() - began
    began = time.monotonic()
    chats = await asyncio.gather(*(ask(201 + 3 * seed) for seed in range(8)))
    return max(one.pieces_at[0] if one.pieces_at else time.monotonic() for one in chats) - began, in_turn_s


async def measure(programs: Path, folder: Path, model: StoredModel, plan: Plan) -> dict[str, Any]:
    n_threads = default_threads()
    prompt_rate, write_rate = llama_bench(programs, model, n_threads)
    with lockgate(folder) as ours, llama_server(programs, model, n_threads) as theirs:
        servers = (ours, theirs)
        for server in servers:
            await chat(server.url, [{"role": "user", "content": "Hi"}], 2, model.ref)
        rounds = await throughput(servers, plan, model.ref)
        firsts = {
            server.name: [await first_tokens(server, plan, model.ref, 17 * n) for n in range(plan.rounds)]
            for server in servers
        }
        gaps = {server.name: await gap(server, plan, model.ref) for server in servers}
        eight = {server.name: await eight_prompts(server, plan, model.ref) for server in servers}
        memory = {server.name: server.memory_mb() for server in servers}
    alone = locked(model, n_threads, plan.n_tokens, stories(0, 8))
    return {
        "model": model.ref,
        "llama_bench": {"prompt_tokens_per_s": prompt_rate, "tokens_per_s": write_rate},
        "locked_tokens_per_s": alone,
        "callers": {
            n: {
                "ratio": median(one[ours.name].tokens_per_s / one[theirs.name].tokens_per_s for one in loads),
                "cpu_ratio": median(one[ours.name].cpu_ms / one[theirs.name].cpu_ms for one in loads),
                **{
                    server.name: {
                        "tokens_per_s": median(one[server.name].tokens_per_s for one in loads),
                        "cpu_ms_per_token": median(one[server.name].cpu_ms for one in loads),
                    }
                    for server in servers
                },
            }
            for n, loads in rounds.items()
        },
        "first_token": {
            name: {
                "prompt_tokens": pairs[0][0].n_prompt,
                "prompt_tokens_per_s": median(cold.n_prompt / cold.first_s for cold, _ in pairs),
                "cold_s": median(cold.first_s for cold, _ in pairs),
                "shared_s": median(shared.first_s for _, shared in pairs),
                "ratio": median(shared.first_s / cold.first_s for cold, shared in pairs),
            }
            for name, pairs in firsts.items()
        },
        "gap": {name: {"worst_s": worst, "median_s": usual} for name, (worst, usual) in gaps.items()},
        "eight_prompts": {name: {"last_s": last, "in_turn_s": turn} for name, (last, turn) in eight.items()},
        "memory_mb": memory,
    }


def table(found: dict[str, Any]) -> str:
    bench = found["llama_bench"]
    lines = [
        f"\n{found['model']}   llama-bench: prompt {bench['prompt_tokens_per_s']:.0f}, "
        f"writing {bench['tokens_per_s']:.1f} tokens/s; the package's own API, 8 callers, locked: "
        f"{found['locked_tokens_per_s']:.1f} tokens/s",
        "callers   tokens/s: lockgate  llama-server  ratio   CPU ms/token: lockgate  llama-server  ratio",
    ]
    for callers, row in found["callers"].items():
        ours, theirs = row["lockgate"], row["llama-server"]
        lines.append(
            f"{callers:7d} {ours['tokens_per_s']:19.1f} {theirs['tokens_per_s']:13.1f} {row['ratio']:6.2f} "
            f"{ours['cpu_ms_per_token']:23.2f} {theirs['cpu_ms_per_token']:13.2f} {row['cpu_ratio']:6.2f}"
        )
    lines.append(
        "              prompt  tokens/s  first token: cold  shared  ratio  longest/median gap  8 prompts     MB"
    )
    for name, row in found["first_token"].items():
        pause, eight = found["gap"][name], found["eight_prompts"][name]
        lines.append(
            f"{name:13} {row['prompt_tokens']:6d} {row['prompt_tokens_per_s']:9.0f} {row['cold_s']:15.2f} s "
            f"{row['shared_s']:5.2f} s {row['ratio']:6.2f} {pause['worst_s'] / pause['median_s']:20.2f} "
            f"{eight['last_s'] / eight['in_turn_s']:11.2f} {found['memory_mb'][name]:6.0f}"
        )
    return "\n".join(lines)


def summary(found: Sequence[dict[str, Any]]) -> str:
    """The worst of all models, for each figure."""
    ratios = [f"c{n}={min(one['callers'][n]['ratio'] for one in found):.2f}" for n in CALLERS]
    return f"engine: {' '.join(ratios)} ttft={max(one['first_token']['lockgate']['ratio'] for one in found):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Chats with the gateway's model against chats with llama-server.")
    parser.add_argument("programs", type=Path, help="the folder with llama-server and llama-bench")
    parser.add_argument("--quick", action="store_true", help="the small model only, one round")
    given = parser.parse_args()
    plan = QUICK if given.quick else FULL
    busy_before = os.getloadavg()[0]
    store = ModelStore(read_settings(os.environ).cache_dir / "models")
    found = []
    for ref in plan.models:
        model = store.pull(ref, print)
        with tempfile.TemporaryDirectory(prefix="lockgate-benchmark-") as folder:
            found.append(asyncio.run(measure(given.programs, Path(folder), model, plan)))
        print(table(found[-1]))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
    if busy_before > BUSY:
        print(f"Something else was using this machine (load average {busy_before:.1f}): do not quote these figures.")
    print(summary(found))


if __name__ == "__main__":
    main()
