"""How many of sixty tasks an agent does with the starter servers, and how: choice of tool, arguments, steps, tokens.

The tasks are frozen in benchmarks/agent_tasks.py; each is judged by the answer and by what then is in the servers.
Plain prompting, the tools as text and no grammar, is the baseline.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import jsonschema

from benchmarks.agent_tasks import TASKS, Task, seed
from engine.agent import Budget, GenerateChunks
from engine.events import Answered, Stopped, ToolCalled, Turned
from engine.transcript import Header, Transcript
from gateway.agentrun import carry_out, function_of, is_small, outcome_of, through_gateway
from gateway.client import GatewayClient, gateway_client
from gateway.commands.running import settings
from gateway.modellist import open_store

BUDGET: Final = Budget(steps=8, tokens=2_048, seconds=900.0, calls=10)
SERVERS: Final = ("time", "filesystem", "memory", "git", "SQLite", "everything")
READY_S: Final = 900
PLAIN: Final = (
    "You can use these tools:\n{tools}\nTo use one, answer with nothing but JSON: "
    '{{"name": "TOOL", "arguments": {{...}}}}. When you know the result, answer in one or two sentences.'
)


@dataclass(frozen=True)
class Outcome:
    """What became of one task."""

    id: str
    group: str
    done: bool
    chose: bool
    """Whether a tool that can do it was called."""
    argued: bool
    """Whether one of those calls had the right arguments."""
    calls: int
    valid_calls: int
    """Those whose arguments fit the tool's schema."""
    steps: int
    tokens: int
    prompt_tokens: int
    cached_tokens: int
    seconds: float
    stopped: str
    answer: str


def plainly(generate: GenerateChunks) -> GenerateChunks:
    """The baseline: tools described in the prompt, calls read from the text."""

    async def chat(request: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        tools = request.pop("tools", [])
        request.pop("tool_choice", None)
        request["messages"] = [_plain(message, tools) for message in request["messages"]]
        text, usage = "", {}
        async for chunk in generate(request):
            usage = chunk.get("usage") or usage
            text += "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
        call = _plain_call(text) if tools else None
        delta: dict[str, Any] = {"content": text} if call is None else {"tool_calls": [call]}
        yield {"choices": [{"index": 0, "delta": delta, "finish_reason": "stop"}], "usage": usage}

    return chat


def _plain(message: dict[str, Any], tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if message["role"] == "system" and tools:
        shown = "\n".join(json.dumps(tool["function"]) for tool in tools)
        return {"role": "system", "content": PLAIN.format(tools=shown)}
    if message["role"] == "assistant":
        functions = [call["function"] for call in message.get("tool_calls") or ()]
        calls = [{"name": one["name"], "arguments": json.loads(one["arguments"])} for one in functions]
        return {"role": "assistant", "content": "\n".join([message["content"] or "", *map(json.dumps, calls)]).strip()}
    if message["role"] == "tool":
        return {"role": "user", "content": f"Result:\n{message['content']}"}
    return message


def _plain_call(text: str) -> dict[str, Any] | None:
    start, end = text.find("{"), text.rfind("}")
    try:
        found = json.loads(text[start : end + 1])
        function = {"name": found["name"], "arguments": json.dumps(dict(found["arguments"]))}
    except (ValueError, TypeError, KeyError):
        return None
    return {"index": 0, "id": f"plain_{time.monotonic_ns()}", "type": "function", "function": function}


async def attempt(
    task: Task,
    client: GatewayClient,
    tools: list[dict[str, Any]],
    model: str,
    plain: bool,
    insist: bool,
    kept: Path | None = None,
) -> Outcome:
    """
    Args:
        kept: the folder for the run's transcript.
    """

    def generate(request: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        return client.chat({**request, "model": model})

    async def call(name: str, arguments: dict[str, Any]) -> str:
        return outcome_of(await client.call_tool(name, arguments)).text

    async def agree(name: str, arguments: Mapping[str, Any]) -> bool:
        return True

    schemas = {tool["name"]: tool.get("inputSchema") or {} for tool in tools}
    functions = [function_of(tool) for tool in tools]
    header = Header(task.id, time.time(), task.text, model, "", asdict(BUDGET), functions=functions, insist=insist)
    call_tool = through_gateway(client.call_tool, tools, "policy", agree)
    calls: list[ToolCalled] = []
    turns: list[Turned] = []
    answer, last = "", Stopped("cancelled", 0, 0, 0)
    began = time.monotonic()
    model_says = plainly(generate) if plain else generate
    with nullcontext() if kept is None else Transcript.create(kept, header) as transcript:
        async with aclosing(carry_out(header, transcript, model_says, call_tool)) as events:
            async for event in events:
                match event:
                    case ToolCalled():
                        calls.append(event)
                    case Turned():
                        turns.append(event)
                    case Answered():
                        answer = event.text
                    case Stopped():
                        last = event
    seconds = time.monotonic() - began
    mine = [one for one in calls if task.chose(one.name)]
    effect = task.effect is None or await task.effect(call)
    done = bool(answer) and bool(mine) and task.answered(answer) and effect
    return Outcome(
        id=task.id,
        group=task.group,
        done=done,
        chose=bool(mine),
        argued=any(task.argued(one.arguments) for one in mine),
        calls=len(calls),
        valid_calls=sum(_is_valid(one.arguments, schemas.get(one.name, {})) for one in calls),
        steps=last.steps,
        tokens=last.tokens,
        prompt_tokens=sum(turn.prompt_tokens for turn in turns),
        cached_tokens=sum(turn.cached_tokens for turn in turns),
        seconds=round(seconds, 2),
        stopped=last.reason,
        answer=answer,
    )


def _is_valid(arguments: Mapping[str, Any], schema: Mapping[str, Any]) -> bool:
    try:
        jsonschema.validate(dict(arguments), dict(schema))
    except jsonschema.ValidationError:
        return False
    return True


async def evaluate(
    model: str, tasks: Sequence[Task], plain: bool, kept: Path | None = None, had: Path | None = None
) -> list[Outcome]:
    """
    Args:
        kept: the folder for transcripts.
        had: the file with a line for each outcome; tasks that have one there are not done again.
    """
    outcomes = _had(had) if had else []
    left = [task for task in tasks if task.id not in {outcome.id for outcome in outcomes}]
    if not left:
        return outcomes
    with tempfile.TemporaryDirectory(prefix="lockgate-eval-") as folder:
        wanted = replace(settings(), state_dir=Path(folder) / "state", port=0, profile="starter")
        store = open_store(wanted)
        store.pull(model, lambda line: print(line, file=sys.stderr))
        async with gateway_client(wanted) as client:
            tools = await _all_tools(client)

            async def call(name: str, arguments: dict[str, Any]) -> str:
                outcome = outcome_of(await client.call_tool(name, arguments))
                if outcome.is_error:
                    raise SystemExit(f"the world of the tasks cannot be made: {name}: {outcome.text}")
                return outcome.text

            await seed(call, wanted.state_dir / "volumes")
            insists = not plain and is_small(store, model)
            for task in left:
                outcome = await attempt(task, client, tools, model, plain, insists, kept)
                outcomes.append(outcome)
                if had:
                    with had.open("a") as file:
                        print(json.dumps(asdict(outcome), ensure_ascii=False), file=file)
                mark = "done" if outcome.done else "----"
                marks = f"{'tool' if outcome.chose else '-'} {'args' if outcome.argued else '-'}"
                said = " ".join(outcome.answer.split())[:90]
                print(f"{mark}  {outcome.id:22} {marks:9} {outcome.seconds:6.1f} s  {said}", file=sys.stderr)
            return outcomes


def _had(path: Path) -> list[Outcome]:
    lines = path.read_text().splitlines() if path.exists() else []
    return [Outcome(**json.loads(line)) for line in lines]


async def _all_tools(client: GatewayClient) -> list[dict[str, Any]]:
    """The tools of every server; on a first run their images are built before they are listed."""
    deadline = time.monotonic() + READY_S
    while True:
        tools = [tool for tool in await client.list_tools() if tool["name"].partition("__")[0] in SERVERS]
        missing = set(SERVERS) - {tool["name"].partition("__")[0] for tool in tools}
        if not missing:
            return tools
        if time.monotonic() >= deadline:
            raise SystemExit(f"these servers list no tools: {', '.join(sorted(missing))}")
        await asyncio.sleep(1)


def table(outcomes: Sequence[Outcome]) -> str:
    groups: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        groups[outcome.group].append(outcome)
    groups["all"] = list(outcomes)
    lines = [f"{'':8}{'done':>10}{'tool':>7}{'args':>7}{'calls':>7}{'valid':>7}{'steps':>7}{'tokens':>8}{'s/task':>8}"]
    for name, some in groups.items():
        n, calls = len(some), sum(one.calls for one in some)
        lines.append(
            f"{name:8}{sum(one.done for one in some):>5} of {n:<2}"
            f"{sum(one.chose for one in some) / n:7.0%}{sum(one.argued for one in some) / n:7.0%}{calls:7}"
            f"{sum(one.valid_calls for one in some) / max(1, calls):7.0%}{sum(one.steps for one in some) / n:7.1f}"
            f"{sum(one.tokens for one in some) / n:8.0f}{sum(one.seconds for one in some) / n:8.1f}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=settings().model)
    parser.add_argument("--plain", action="store_true", help="the baseline: tools as text, no grammar")
    parser.add_argument("--only", default="", help="tasks whose ids begin so; several with commas")
    parser.add_argument("--outcomes", type=Path, help="write each outcome to this file; a run cut off goes on from it")
    parser.add_argument("--transcripts", type=Path, help="keep the transcript of each run in this folder")
    wanted = parser.parse_args()
    tasks = [task for task in TASKS if any(task.id.startswith(start) for start in wanted.only.split(","))]
    outcomes = asyncio.run(evaluate(wanted.model, tasks, wanted.plain, wanted.transcripts, wanted.outcomes))
    print(table(outcomes))
    how = f"{wanted.model}{' plain' if wanted.plain else ''}"
    print(f"agent-eval: {how} {sum(outcome.done for outcome in outcomes)} of {len(outcomes)}")


if __name__ == "__main__":
    main()
