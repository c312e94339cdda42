"""The engine benchmark: the same chats with the gateway's model and with llama-server of the same llama.cpp.

Knows in which order what is compared; who answers and how it is timed is in the modules beside it.

    python -m benchmarks.engine PROGRAMS [--quick] [--model REF] [--part PART]

PROGRAMS is the folder that `.ci/llama-server` prints. A part alone takes a few minutes; its figures go beside those of
the other parts, and the last line printed is the summary of all there are. docs/benchmarks.md explains the figures."""

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

from benchmarks.chats import Chat, Load, chat, conversations, together
from benchmarks.gateways import ROOT
from benchmarks.model_servers import Server, llama_bench, llama_server, locked, lockgate
from engine import StoredModel
from engine.threads import default_threads
from gateway.modellist import open_store
from gateway.settings import read_settings

RESULTS: Final = ROOT / "benchmarks" / "results" / "engine.json"
CALLERS: Final = (1, 4, 8, 16)
BUSY: Final = 0.7
TOPICS: Final = (
    *("rivers", "clocks", "bread", "glass", "ships", "paper", "music", "maps", "salt", "bees", "roads", "coins"),
    *("bridges", "kites", "lamps", "wells"),
)
GAP_TOKENS: Final = 160
"""Of each stream beside the long prompt: it must still be written when the prompt has been read."""


PARTS: Final = ("writing", "first", "beside", "locked")


@dataclass(frozen=True)
class Plan:
    """How much is measured of one model."""

    rounds: int
    n_tokens: int
    prefix_words: int
    """Of the shared beginning; about 1.4 tokens each."""
    n_turns: int
    """Of each conversation."""
    talk_words: int
    """Of the text that a conversation is about."""
    talk_tokens: int
    """Of each of its answers."""


FULL: Final = {
    "smollm2:135m": Plan(rounds=5, n_tokens=96, prefix_words=1_450, n_turns=6, talk_words=500, talk_tokens=16),
    "qwen2.5-coder:0.5b": Plan(rounds=3, n_tokens=32, prefix_words=1_450, n_turns=6, talk_words=150, talk_tokens=8),
}
QUICK: Final = {
    "smollm2:135m": Plan(rounds=1, n_tokens=48, prefix_words=700, n_turns=3, talk_words=200, talk_tokens=16)
}


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
        asyncio.create_task(chat(server.url, [{"role": "user", "content": prompt}], GAP_TOKENS, model))
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
    n_words = min(plan.prefix_words // 4, plan.talk_words)

    async def ask(seed: int) -> Chat:
        return await chat(server.url, [{"role": "user", "content": long_text(seed, n_words)}], 1, model)

    began = time.monotonic()
    for seed in range(8):
        await ask(200 + 3 * seed)
    in_turn_s = time.monotonic() - began
    began = time.monotonic()
    chats = await asyncio.gather(*(ask(201 + 3 * seed) for seed in range(8)))
    return max(one.pieces_at[0] if one.pieces_at else time.monotonic() for one in chats) - began, in_turn_s


def talks(plan: Plan) -> list[list[str]]:
    """Eight callers, each with a text of its own and several questions about it."""
    questions = [f"Which words come after number {20 * n}?" for n in range(1, plan.n_turns)]
    return [[f"{long_text(300 + 7 * n, plan.talk_words)}. Summarise it.", *questions] for n in range(8)]


async def writing(servers: Sequence[Server], plan: Plan, model: str) -> dict[str, Any]:
    rounds = await throughput(servers, plan, model)
    ours, theirs = (server.name for server in servers)
    return {
        str(n): {
            "ratio": median(one[ours].tokens_per_s / one[theirs].tokens_per_s for one in loads),
            "cpu_ratio": median(one[ours].cpu_ms / one[theirs].cpu_ms for one in loads),
            **{
                server.name: {
                    "tokens_per_s": median(one[server.name].tokens_per_s for one in loads),
                    "cpu_ms_per_token": median(one[server.name].cpu_ms for one in loads),
                }
                for server in servers
            },
        }
        for n, loads in rounds.items()
    }


async def first(servers: Sequence[Server], plan: Plan, model: str) -> dict[str, Any]:
    n_rounds = min(plan.rounds, 3)
    found = {}
    for server in servers:
        pairs = [await first_tokens(server, plan, model, 17 * n) for n in range(n_rounds)]
        found[server.name] = {
            "prompt_tokens": pairs[0][0].n_prompt,
            "prompt_tokens_per_s": median(cold.n_prompt / cold.first_s for cold, _ in pairs),
            "cold_s": median(cold.first_s for cold, _ in pairs),
            "shared_s": median(shared.first_s for _, shared in pairs),
            "ratio": median(shared.first_s / cold.first_s for cold, shared in pairs),
        }
    return found


async def beside(servers: Sequence[Server], plan: Plan, model: str) -> dict[str, Any]:
    found = {}
    for server in servers:
        worst, usual = await gap(server, plan, model)
        last, turn = await eight_prompts(server, plan, model)
        found[server.name] = {"worst_s": worst, "median_s": usual, "last_s": last, "in_turn_s": turn}
    return found


async def measure(programs: Path, folder: Path, model: StoredModel, plan: Plan, parts: Sequence[str]) -> dict[str, Any]:
    """The parts asked for, each with what it is compared with in the same run."""
    n_threads = default_threads()
    found: dict[str, Any] = {}
    if "writing" in parts:
        prompt_rate, write_rate = llama_bench(programs, model, n_threads)
        found["llama_bench"] = {"prompt_tokens_per_s": prompt_rate, "tokens_per_s": write_rate}
    with lockgate(folder) as ours, llama_server(programs, model, n_threads) as theirs:
        servers = (ours, theirs)
        for server in servers:
            await chat(server.url, [{"role": "user", "content": "Hi"}], 2, model.ref)
        for name, part in (("writing", writing), ("first", first), ("beside", beside)):
            if name in parts:
                found[name] = await part(servers, plan, model.ref)
        if "first" in parts:
            found["memory_mb"] = {server.name: server.memory_mb() for server in servers}
        if "locked" in parts:
            rates = {
                server.name: await conversations(server.url, talks(plan), plan.talk_tokens, model.ref)
                for server in servers
            }
            short = await together(ours.url, ours.pid, stories(70, 8), plan.n_tokens, model.ref)
    if "locked" in parts:  # when nobody else holds the model
        alone = locked(model, n_threads, plan.talk_tokens, talks(plan))
        stories_alone = locked(model, n_threads, plan.n_tokens, [[one] for one in stories(70, 8)])
        found["locked"] = {
            "conversations": {**rates, "locked": alone, "ratio": rates["lockgate"] / alone},
            "stories": {
                "lockgate": short.tokens_per_s,
                "locked": stories_alone,
                "ratio": short.tokens_per_s / stories_alone,
            },
        }
    return found


def table(ref: str, found: dict[str, Any]) -> str:
    lines = [f"\n{ref}"]
    if bench := found.get("llama_bench"):
        rates = f"prompt {bench['prompt_tokens_per_s']:.0f}, writing {bench['tokens_per_s']:.1f} tokens/s"
        lines.append(f"llama-bench, one sequence, no server: {rates}")
    if "writing" in found:
        lines.append("callers   tokens/s: lockgate  llama-server  ratio   CPU ms/token: lockgate  llama-server  ratio")
    for callers, row in found.get("writing", {}).items():
        ours, theirs = row["lockgate"], row["llama-server"]
        lines.append(
            f"{callers:>7} {ours['tokens_per_s']:19.1f} {theirs['tokens_per_s']:13.1f} {row['ratio']:6.2f} "
            f"{ours['cpu_ms_per_token']:23.2f} {theirs['cpu_ms_per_token']:13.2f} {row['cpu_ratio']:6.2f}"
        )
    if "first" in found:
        lines.append("              prompt  tokens/s  first token: cold  shared  ratio     MB")
    for name, row in found.get("first", {}).items():
        lines.append(
            f"{name:13} {row['prompt_tokens']:6d} {row['prompt_tokens_per_s']:9.0f} {row['cold_s']:15.2f} s "
            f"{row['shared_s']:5.2f} s {row['ratio']:6.3f} {found['memory_mb'][name]:6.0f}"
        )
    if "beside" in found:
        lines.append("              longest/median gap   eight prompts at once: last first token/total prompt time")
    for name, row in found.get("beside", {}).items():
        pause, eight = row["worst_s"] / row["median_s"], row["last_s"] / row["in_turn_s"]
        lines.append(f"{name:13} {pause:19.2f} {eight:15.2f}  ({row['last_s']:.1f} s / {row['in_turn_s']:.1f} s)")
    for name, row in found.get("locked", {}).items():
        rates = ", ".join(f"{who} {rate:.1f}" for who, rate in row.items() if who != "ratio")
        lines.append(f"8 callers, {name}, tokens/s: {rates}; lockgate/locked {row['ratio']:.2f}")
    return "\n".join(lines)


def summary(found: Sequence[dict[str, Any]]) -> str:
    """The worst of all models, for each figure; n/a where that part has not been measured."""
    writing = [one["writing"] for one in found if "writing" in one]
    firsts = [one["first"]["lockgate"]["ratio"] for one in found if "first" in one]
    worst = {n: f"{min(one[str(n)]['ratio'] for one in writing):.2f}" if writing else "n/a" for n in CALLERS}
    ratios = " ".join(f"c{n}={ratio}" for n, ratio in worst.items())
    return f"engine: {ratios} ttft={f'{max(firsts):.3f}' if firsts else 'n/a'}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Chats with the gateway's model against chats with llama-server.")
    parser.add_argument("programs", type=Path, help="the folder with llama-server and llama-bench")
    parser.add_argument("--quick", action="store_true", help="the small model only, one round")
    parser.add_argument("--part", choices=PARTS, help="this part only")
    parser.add_argument("--model", choices=FULL, help="this model only")
    given = parser.parse_args()
    plans = QUICK if given.quick else FULL
    busy_before = os.getloadavg()[0]
    store = open_store(read_settings(os.environ))
    is_part = given.part is not None or given.model is not None
    kept = msgspec.json.decode(RESULTS.read_bytes()) if is_part and RESULTS.exists() else {}
    parts = PARTS if given.part is None else (given.part,)
    for ref, plan in plans.items():
        if given.model not in (None, ref):
            continue
        model = store.pull(ref, lambda line: print(line, file=sys.stderr))
        with tempfile.TemporaryDirectory(prefix="lockgate-benchmark-") as folder:
            found = asyncio.run(measure(given.programs, Path(folder), model, plan, parts))
        print(table(ref, found))
        kept[ref] = {**kept.get(ref, {}), **found}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_bytes(msgspec.json.format(msgspec.json.encode(kept), indent=1) + b"\n")
    if busy_before > BUSY:
        print(f"Something else was using this machine (load average {busy_before:.1f}): do not quote these figures.")
    print(summary(list(kept.values())))


if __name__ == "__main__":
    main()
