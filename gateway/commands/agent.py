"""`lockgate agent run`: a local model works on a task with the tools of a profile.

Knows options and output; the loop is the engine's, and every call goes through the gateway like any client's."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict
from typing import Annotated, Any, Final

import typer
from anyio import to_thread

from engine import ModelStore
from engine.agent import (
    Answered,
    Budget,
    Event,
    StepStarted,
    Stopped,
    TextWritten,
    ToolCalled,
    ToolOutcome,
    ToolReturned,
    run_agent,
)
from gateway.client import GatewayClient, GatewayRefused, gateway_client
from gateway.commands.running import AsJson, ProfileOption, err, print_json, run, settings, shown

app = typer.Typer(no_args_is_help=True)

SHOWN_CHARS: Final = 600
INDENT: Final = "\n" + " " * 10
_defaults: Final = Budget()


@app.callback()
def agent() -> None:
    """Let the local model work with the tools."""


@app.command("run")
def run_command(
    task: Annotated[str, typer.Argument(help="What the model shall do, in plain words.")],
    profile: ProfileOption = None,
    model: Annotated[str | None, typer.Option(help="A stored model; default: the starter model.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Model queries at most.")] = _defaults.steps,
    tokens: Annotated[int, typer.Option(min=1, help="Generated tokens at most.")] = _defaults.tokens,
    seconds: Annotated[float, typer.Option(min=1, help="Wall-clock seconds at most.")] = _defaults.seconds,
    calls: Annotated[int, typer.Option(min=1, help="Tool calls at most.")] = _defaults.calls,
    as_json: AsJson = False,
) -> None:
    """Work on a task and print each step as it happens, then the answer. Exit code 1 if there is none."""
    budget = Budget(steps=steps, tokens=tokens, seconds=seconds, calls=calls)
    transcript = run(_work(task, profile, model, budget, as_json))
    if as_json:
        print_json(transcript)
    if transcript["answer"] is None:
        raise typer.Exit(1)


async def _work(task: str, profile: str | None, model: str | None, budget: Budget, as_json: bool) -> dict[str, Any]:
    wanted = settings()
    ref = model or wanted.model
    await _ensure_model(ModelStore(wanted.cache_dir / "models"), ref)
    started = time.monotonic()
    events: list[dict[str, Any]] = []
    answer: str | None = None
    async with gateway_client(wanted, profile) as client:
        tools = [_function(tool) for tool in await client.list_tools()]
        if not as_json:
            err.print(f"{ref}, {len(tools)} tools at {client.running.url}", style="dim")
        async with aclosing(_loop(client, ref, task, tools, budget)) as steps:
            async for event in steps:
                if not isinstance(event, TextWritten):
                    events.append({"event": type(event).__name__, **asdict(event)})
                if isinstance(event, Answered):
                    answer = event.text
                if not as_json:
                    _show(event)
    return {
        "task": task,
        "model": ref,
        "profile": profile or wanted.profile,
        "answer": answer,
        "seconds": round(time.monotonic() - started, 3),
        "events": events,
    }


async def _ensure_model(store: ModelStore, ref: str) -> None:
    stored = await to_thread.run_sync(store.list)
    if not any(model.ref == ref for model in stored):
        await to_thread.run_sync(lambda: store.pull(ref, lambda line: err.print(f"model {ref}: {line}")))


def _loop(
    client: GatewayClient, ref: str, task: str, tools: list[dict[str, Any]], budget: Budget
) -> AsyncGenerator[Event]:
    def generate(request: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        return client.chat({**request, "model": ref})

    async def call_tool(name: str, arguments: dict[str, Any]) -> ToolOutcome:
        try:
            result = await client.call_tool(name, arguments)
        except GatewayRefused as exc:
            return ToolOutcome(str(exc), is_error=True)
        return ToolOutcome(_text(result), bool(result.get("isError")))

    return run_agent(task, generate=generate, call_tool=call_tool, tools=tools, budget=budget)


def _function(tool: dict[str, Any]) -> dict[str, Any]:
    """An MCP tool as an OpenAI function."""
    return {
        "type": "function",
        "function": {
            "name": tool["name"],
            "description": tool.get("description") or "",
            "parameters": tool.get("inputSchema") or {"type": "object"},
        },
    }


def _text(result: dict[str, Any]) -> str:
    """A tool result as text for a model that reads only text."""
    parts = []
    for block in result.get("content", []):
        if block.get("type") == "text":
            parts.append(str(block.get("text", "")))
        elif block.get("type") == "resource":
            resource = block.get("resource", {})
            parts.append(str(resource.get("text") or f"[resource {resource.get('uri')}]"))
        else:
            parts.append(f"[{block.get('type')} {block.get('uri') or block.get('mimeType') or ''}]")
    if not parts and "structuredContent" in result:
        parts.append(json.dumps(result["structuredContent"], ensure_ascii=False))
    return "\n".join(parts)


def _show(event: Event) -> None:
    match event:
        case StepStarted():
            typer.echo(f"step {event.step}")
        case ToolCalled():
            typer.echo(f"  call    {event.name} {json.dumps(dict(event.arguments), ensure_ascii=False)}")
        case ToolReturned():
            text = event.text if len(event.text) <= SHOWN_CHARS else event.text[:SHOWN_CHARS] + " …"
            typer.echo(f"  {'error ' if event.is_error else 'result'}  " + shown(text).strip().replace("\n", INDENT))
        case Answered():
            typer.echo(f"answer  {shown(event.text)}")
        case Stopped():
            if event.reason != "answered":
                used = f"{event.steps} steps, {event.calls} calls, {event.tokens} tokens"
                err.print(f"stopped: {event.reason} after {used}")
        case TextWritten():
            pass
