"""What an agent's run costs beside the model: time of a step, and prompt tokens that are evaluated again.

    .venv/bin/python -m benchmarks.agent

The steps are those of `lockgate agent run`: the loop, a transcript on disk, each call over HTTP through a gateway with
policy and audit. The model of the first part answers at once from a script; the floor is the same call, made by the
same client without an agent. The second part is a real model.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from benchmarks.servers.running import python_server, running
from engine import ChatModel, ModelStore
from engine.agent import Budget, GenerateChunks, ToolOutcome
from engine.events import StepStarted, Turned
from engine.transcript import Header, Transcript, new_id
from gateway.agentrun import carry_out, function_of, through_gateway
from gateway.client import gateway_client
from gateway.commands.running import settings

GOAL_MS: Final = 5.0
CALLED: Final = "bench__echo"
WARM_UP: Final = 10
STEPS_OF_RUN: Final = 8


def _header(task: str, functions: list[dict[str, Any]], steps: int) -> Header:
    budget = asdict(Budget(steps=steps, tokens=1_000_000, seconds=900.0, calls=steps))
    return Header(new_id(), time.time(), task, "none", "", budget, functions=functions)


def _from_script(n_calls: int, step_ends: list[float]) -> GenerateChunks:
    """One call in each turn, each with other arguments, then an answer; notes when it is asked."""

    async def generate(request: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        number = len(step_ends)
        step_ends.append(time.perf_counter())
        function = {"name": CALLED, "arguments": json.dumps({"message": f"message {number}"})}
        call = {"index": 0, "id": f"call_{number}", "type": "function", "function": function}
        delta = {"tool_calls": [call]} if number < n_calls else {"content": "Done."}
        yield {"choices": [{"index": 0, "delta": delta, "finish_reason": "stop"}]}
        yield {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}

    return generate


async def measure_steps(folder: Path, n_steps: int) -> tuple[float, float]:
    """Medians in milliseconds: a step with its call, and the call alone."""
    with running(python_server("lean.py")) as (port, _):
        entry = {"title": "Bench", "description": "Answers.", "remote": {"url": f"http://127.0.0.1:{port}/mcp"}}
        profile = {"title": "Bench", "servers": ["bench"]}
        catalog = folder / "catalog.yaml"  # JSON is YAML
        catalog.write_text(json.dumps({"version": 1, "servers": {"bench": entry}, "profiles": {"bench": profile}}))
        wanted = replace(settings(), state_dir=folder / "state", catalog=catalog, port=0, profile="bench")
        async with gateway_client(wanted) as client:
            tools = await client.list_tools()

            async def agree(name: str, arguments: Any) -> bool:
                return True

            alone = []
            for number in range(WARM_UP + n_steps):
                began = time.perf_counter()
                await client.call_tool(CALLED, {"message": f"floor {number}"})
                alone.append(time.perf_counter() - began)
            steps: list[float] = []
            call_tool = through_gateway(client.call_tool, tools, "policy", agree)
            while len(steps) < n_steps:
                ends: list[float] = []
                header = _header("Echo.", [function_of(tool) for tool in tools], STEPS_OF_RUN + 1)
                with Transcript.create(folder / "transcripts", header) as transcript:
                    events = carry_out(header, transcript, _from_script(STEPS_OF_RUN, ends), call_tool)
                    async with aclosing(events):
                        async for _ in events:
                            pass
                steps += [after - before for before, after in itertools.pairwise(ends)]
    return statistics.median(steps) * 1_000, statistics.median(alone[WARM_UP:]) * 1_000


def flush_ms(folder: Path) -> float:
    """The median time until a line of a transcript is on this disk, which a step waits for once."""
    found = []
    with (folder / "flushed").open("ab", buffering=0) as file:
        for _ in range(50):
            file.write(b"x" * 300)
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            found.append(time.perf_counter() - began)
    return statistics.median(found) * 1_000


async def measure_prompts(model_ref: str, n_turns: int) -> list[tuple[int, int, int]]:
    """For each turn after the first: the tokens of its prompt, those that came since the turn before (what the model
    itself wrote among them), and those that were evaluated."""
    store = ModelStore(settings().cache_dir / "models")
    stored = store.pull(model_ref, lambda line: print(line, file=sys.stderr))
    properties = {"number": {"type": "integer"}}
    parameters = {"type": "object", "properties": properties, "required": ["number"]}
    read = {"name": "read_page", "description": "Read one page of the book.", "parameters": parameters}
    turns: list[Turned] = []

    async def call_tool(name: str, arguments: dict[str, Any]) -> ToolOutcome:
        number = int(arguments["number"])
        told = f"Page {number} of 99: ship {number} left the harbour. The story goes on at page {number + 1}."
        return ToolOutcome(told)

    async with ChatModel(stored, n_ctx=8_192) as model:

        async def generate(request: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
            must = {"tool_choice": "required"} if "tools" in request else {}
            async for chunk in model.chat({**request, **must}):
                yield chunk

        task = "Read the book page by page: first page 1, then page 2, then page 3, and so on to page 99."
        header = _header(task, [{"type": "function", "function": read}], n_turns)
        async with aclosing(carry_out(header, None, generate, call_tool)) as events:
            async for event in events:
                if isinstance(event, StepStarted) and not event.offered:
                    break  # asked to close, by a prompt of its own
                if isinstance(event, Turned):
                    turns.append(event)
    return [
        (now.prompt_tokens, now.prompt_tokens - before.prompt_tokens, now.prompt_tokens - now.cached_tokens)
        for before, now in itertools.pairwise(turns)
    ]


async def measure(model: str, n_steps: int, n_turns: int) -> bool:
    """Print the figures; whether the goals are met."""
    with tempfile.TemporaryDirectory(prefix="lockgate-bench-agent-") as folder:
        disk = flush_ms(Path(folder))
        step, alone = await measure_steps(Path(folder), n_steps)
    print(
        f"a step with its call {step:6.2f} ms   the call alone {alone:6.2f} ms   added {step - alone:6.2f} ms"
        f"   of that one flush of the disk {disk:6.2f} ms"
    )
    turns = await measure_prompts(model, n_turns)
    for number, (prompt, new, evaluated) in enumerate(turns, 2):
        print(f"turn {number:2}   prompt {prompt:5} tokens   new {new:4}   evaluated {evaluated:4}")
    again = sum(max(0, evaluated - new) for _, new, evaluated in turns)
    print(f"agent: step_added_ms={step - alone:.2f} turns={len(turns) + 1} evaluated_again={again}")
    return step - alone < GOAL_MS and again == 0 and bool(turns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=settings().model)
    parser.add_argument("--steps", type=int, default=300, help="steps that are timed")
    parser.add_argument("--turns", type=int, default=8, help="turns of the real model")
    given = parser.parse_args()
    if not asyncio.run(measure(given.model, given.steps, given.turns)):
        sys.exit("a goal is missed")


if __name__ == "__main__":
    main()
