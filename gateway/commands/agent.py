"""`lockgate agent`: a model works on a task with the tools of a profile; its runs can be shown, resumed and replayed.

Knows options and output; the run itself is `gateway.agentrun`."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer
from anyio import to_thread
from rich.table import Table

from engine import ModelStore
from engine.agent import CallTool, GenerateChunks
from engine.definition import AgentDefinition, definitions, find_definition, load_definition
from engine.errors import BadDefinition
from engine.events import (
    Answered,
    Event,
    StepStarted,
    Stopped,
    StopReason,
    TextWritten,
    ToolCalled,
    ToolRefused,
    ToolReturned,
    Turned,
)
from engine.transcript import Header, Record, Transcript, load, load_all, new_id
from gateway import errors
from gateway.agentrun import Approve, Recorded, carry_out, function_of, is_small, selected, through_gateway
from gateway.chatstream import RemoteModel, is_elsewhere
from gateway.client import GatewayClient, gateway_client
from gateway.commands.running import AsJson, ProfileOption, err, first_line, out, print_json, run, settings, shown
from gateway.modellist import open_store
from gateway.settings import Settings
from gateway.tally import Tally

app = typer.Typer(no_args_is_help=True)

SHOWN_CHARS: Final = 600
INDENT: Final = "\n" + " " * 10
LIMIT_REACHED: Final = 3
NO_ANSWER: Final = 4
EXIT_CODES: Final[Mapping[StopReason, int]] = {
    "answered": 0,
    "steps": LIMIT_REACHED,
    "tokens": LIMIT_REACHED,
    "seconds": LIMIT_REACHED,
    "calls": LIMIT_REACHED,
    "no_answer": NO_ANSWER,
    "repetition": NO_ANSWER,
    "no_progress": NO_ANSWER,
    "cancelled": NO_ANSWER,
}

ModelOption = Annotated[
    str | None, typer.Option("--model", help="A stored model, or URL#MODEL of any OpenAI-compatible server.")
]
KeyOption = Annotated[
    str | None, typer.Option("--key-env", help="The environment variable that holds the key for that server.")
]
StepsOption = Annotated[int | None, typer.Option(min=1, help="Model queries at most.")]
TokensOption = Annotated[int | None, typer.Option(min=1, help="Generated tokens at most.")]
SecondsOption = Annotated[float | None, typer.Option(min=1, help="Wall-clock seconds at most.")]
CallsOption = Annotated[int | None, typer.Option(min=1, help="Tool calls at most.")]
RunArgument = Annotated[str, typer.Argument(help="A run's id, a part of it that is clear, or `last`.")]


@app.callback()
def agent() -> None:
    """Let a model work with the tools. Exit codes: 0 answered, 1 failed, 2 wrong usage, 3 a limit was reached, 4 no
    answer."""


@app.command("run")
def run_command(
    task: Annotated[str, typer.Argument(help="What the model shall do, in plain words.")],
    agent: Annotated[str | None, typer.Option(help="An agent of the folder `agents`, or its file.")] = None,
    profile: ProfileOption = None,
    model: ModelOption = None,
    key_env: KeyOption = None,
    tools: Annotated[
        list[str] | None, typer.Option(help="A tool it may call, or a pattern like 'git__*'; again for more.")
    ] = None,
    steps: StepsOption = None,
    tokens: TokensOption = None,
    seconds: SecondsOption = None,
    calls: CallsOption = None,
    schema: Annotated[Path | None, typer.Option(help="A file with a JSON Schema for the answer.")] = None,
    approve: Annotated[
        Approve, typer.Option(help="Who agrees to calls: you, the policy, or nobody (read-only tools only).")
    ] = "policy",
    as_json: AsJson = False,
) -> None:
    """Work on a task and print each step as it happens, then the answer."""
    wanted = settings()
    defined = _definition(wanted, agent)
    given: dict[str, Any] = {"steps": steps, "tokens": tokens, "seconds": seconds, "calls": calls}
    budget = replace(defined.budget.budget(), **{name: value for name, value in given.items() if value is not None})
    header = Header(
        run=new_id(),
        at=time.time(),
        task=task,
        model=model or defined.model or wanted.model,
        profile=profile or defined.profile or wanted.profile,
        budget=asdict(budget),
        instructions=defined.prompt,
        tools=list(tools or defined.tools),
        schema=_schema(schema) if schema else defined.output,
        agent=agent or "",
        approve=approve,
    )
    named = profile or defined.profile
    _finish(run(_begin(wanted, header, named, key_env, as_json)), as_json)


@app.command("resume")
def resume_command(
    run_id: RunArgument = "last",
    key_env: KeyOption = None,
    steps: StepsOption = None,
    tokens: TokensOption = None,
    seconds: SecondsOption = None,
    calls: CallsOption = None,
    as_json: AsJson = False,
) -> None:
    """Go on with a run that was interrupted or reached a limit. A call that was under way is not made again."""
    wanted = settings()
    given = {"steps": steps, "tokens": tokens, "seconds": seconds, "calls": calls}
    more = {name: value for name, value in given.items() if value is not None}
    _finish(run(_go_on(wanted, run_id, more, key_env, as_json)), as_json)


@app.command("replay")
def replay_command(
    run_id: RunArgument = "last", model: ModelOption = None, key_env: KeyOption = None, as_json: AsJson = False
) -> None:
    """Let a model work on a run's task again with the recorded tool results; no server is started. Calls that are not
    in the record are told to the model as errors and counted."""
    _finish(run(_again(settings(), run_id, model, key_env, as_json)), as_json)


@app.command("list")
def list_command(as_json: AsJson = False) -> None:
    """List the runs there were, newest first, and the agents that are defined."""
    wanted = settings()
    records = list(load_all(wanted.transcripts_dir))
    if as_json:
        agents = {
            name: {"error": str(one)} if isinstance(one, BadDefinition) else msgspec.to_builtins(one)
            for name, one in definitions(wanted.agents_dir)
        }
        print_json({"runs": [_summary(record) for record in records], "agents": agents})
        return
    table = Table("run", "state", "model", "steps", "calls", "task", box=None, pad_edge=False)
    for record in records:
        line = _summary(record)
        counts = (str(line["steps"]), str(line["calls"]))
        table.add_row(line["run"], line["state"], first_line(line["model"], 40), *counts, first_line(line["task"], 60))
    out.print(table)
    for name, one in definitions(wanted.agents_dir):
        what = f"cannot be used: {one}" if isinstance(one, BadDefinition) else one.description
        out.print(f"agent {name}  {first_line(what, 200)}")


@app.command("show")
def show_command(run_id: RunArgument = "last", as_json: AsJson = False) -> None:
    """Show the transcript of a run."""
    record = load(settings().transcripts_dir, run_id)
    if as_json:
        print_json(_transcript(record))
        return
    header = record.header
    typer.echo(f"run     {header.run}\ntask    {shown(header.task)}\nmodel   {shown(header.model)}")
    for _, event in record.events:
        _show(event)
    if record.state == "unfinished":
        err.print(f"unfinished: go on with `lockgate agent resume {header.run}`")


def _finish(record: Record, as_json: bool) -> None:
    if as_json:
        print_json(_transcript(record))
    elif record.state != "answered":
        err.print(f"run {record.header.run}: see it with `lockgate agent show`, go on with `lockgate agent resume`")
    code = EXIT_CODES.get(record.state, 1)  # type: ignore[call-overload]
    if code:
        raise typer.Exit(code)


def _definition(settings: Settings, agent: str | None) -> AgentDefinition:
    if agent is None:
        return AgentDefinition()
    if os.sep in agent or agent.endswith(".yaml"):
        return load_definition(Path(agent))
    return find_definition(settings.agents_dir, agent)


def _schema(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as exc:
        raise errors.SettingsError(f"--schema {path}: {exc}") from exc
    if not isinstance(value, dict):
        raise errors.SettingsError(f"--schema {path}: a JSON Schema for an answer is an object")
    return value


# -- runs ----------------------------------------------------------------------------------------


async def _begin(wanted: Settings, header: Header, profile: str | None, key_env: str | None, as_json: bool) -> Record:
    async with _generator(wanted, header.model, key_env, profile) as (client, generate):
        header = msgspec.structs.replace(header, insist=is_small(ModelStore(wanted.models_dir), header.model))
        header, call_tool = await _equipped(client, header)
        if not as_json:
            n_tools = len(header.functions)
            err.print(f"{header.model}, {n_tools} tools at {client.running.url}, run {header.run}", style="dim")
        tally = Tally()
        async with client.agent_run(header, tally):
            with Transcript.create(wanted.transcripts_dir, header) as transcript:
                events = await _watch(carry_out(header, transcript, generate, call_tool), as_json, tally)
    return Record(header, events)


async def _go_on(wanted: Settings, run_id: str, more: Mapping[str, Any], key_env: str | None, as_json: bool) -> Record:
    transcript, record = Transcript.reopen(wanted.transcripts_dir, run_id)
    with transcript:
        if record.answer is not None:
            raise errors.SettingsError(f"run {record.header.run} has its answer; `lockgate agent show` shows it")
        budget = {**record.header.budget, **more}
        header = msgspec.structs.replace(record.header, budget=budget)
        async with _generator(wanted, header.model, key_env, header.profile) as (client, generate):
            header, call_tool = await _equipped(client, header)
            tally = Tally()
            async with client.agent_run(header, tally):
                steps = carry_out(header, transcript, generate, call_tool, record.history)
                events = await _watch(steps, as_json, tally)
    return Record(header, [*record.events, *events])


async def _again(wanted: Settings, run_id: str, model: str | None, key_env: str | None, as_json: bool) -> Record:
    record = load(wanted.transcripts_dir, run_id)
    header = msgspec.structs.replace(record.header, run=new_id(), at=time.time(), model=model or record.header.model)
    recorded = Recorded(record)
    async with _generator(wanted, header.model, key_env, None) as (_, generate):
        events = await _watch(carry_out(header, None, generate, recorded.call), as_json)
    if recorded.strange:
        err.print(f"{recorded.strange} calls were not in the record of {record.header.run}")
    return Record(header, events)


async def _equipped(client: GatewayClient, header: Header) -> tuple[Header, CallTool]:
    """The run with the tools that there are now, and the way to call them."""
    tools = selected(await client.list_tools(), header.tools)
    approve: Approve = msgspec.convert(header.approve, Approve)
    call_tool = through_gateway(client.call_tool, tools, approve, _ask)
    return msgspec.structs.replace(header, functions=[function_of(tool) for tool in tools]), call_tool


@asynccontextmanager
async def _generator(
    wanted: Settings, model: str, key_env: str | None, profile: str | None
) -> AsyncIterator[tuple[GatewayClient, GenerateChunks]]:
    """A session with the gateway, and the model: its own, or one served elsewhere."""
    if is_elsewhere(model):
        async with RemoteModel(model, _key(key_env)) as remote, gateway_client(wanted, profile) as client:
            yield client, remote.chat
        return
    await _ensure_model(open_store(wanted), model)
    async with gateway_client(wanted, profile) as client:

        def generate(request: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
            return client.chat({**request, "model": model})

        yield client, generate


def _key(variable: str | None) -> str:
    if variable is None:
        return ""
    if not (key := os.environ.get(variable, "")):
        raise errors.SettingsError(f"--key-env {variable}: there is no such environment variable, or it is empty")
    return key


async def _ensure_model(store: ModelStore, ref: str) -> None:
    stored = await to_thread.run_sync(store.list)
    if not any(model.ref == ref for model in stored):
        await to_thread.run_sync(lambda: store.pull(ref, lambda line: err.print(f"model {ref}: {line}")))


async def _watch(steps: AsyncGenerator[Event], as_json: bool, tally: Tally | None = None) -> list[tuple[float, Event]]:
    events: list[tuple[float, Event]] = []
    async with aclosing(steps):
        async for event in steps:
            if tally is not None:
                tally.note(event)
            if not isinstance(event, TextWritten):
                events.append((time.time(), event))
            if not as_json:
                _show(event)
    return events


async def _ask(name: str, arguments: Mapping[str, Any]) -> bool:
    """Ask the person at the terminal; where there is none, the answer is no."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        err.print(f"{name} is not called: --approve ask needs a terminal")
        return False
    question = shown(f"call {name} {json.dumps(dict(arguments), ensure_ascii=False)}?")
    return await to_thread.run_sync(lambda: typer.confirm(question, err=True), abandon_on_cancel=True)


# -- output --------------------------------------------------------------------------------------


def _summary(record: Record) -> dict[str, Any]:
    header = record.header
    counts = [event for _, event in record.events]
    return {
        "run": header.run,
        "at": header.at,
        "state": record.state,
        "task": header.task,
        "model": header.model,
        "profile": header.profile,
        "agent": header.agent,
        "steps": sum(isinstance(event, StepStarted) for event in counts),
        "calls": sum(isinstance(event, ToolCalled) for event in counts),
    }


def _transcript(record: Record) -> dict[str, Any]:
    header, answer = record.header, record.answer
    last = record.events[-1][0] if record.events else header.at
    return {
        "run": header.run,
        "task": header.task,
        "model": header.model,
        "profile": header.profile,
        "agent": header.agent,
        "answer": answer.text if answer else None,
        "value": answer.value if answer else None,
        "state": record.state,
        "seconds": round(last - header.at, 3),
        "events": [msgspec.to_builtins(event) for _, event in record.events],
    }


def _show(event: Event) -> None:
    match event:
        case StepStarted():
            typer.echo(f"step {event.step}")
        case Turned() if event.calls and event.text.strip():
            typer.echo(f"  thought {_cut(event.text)}")
        case ToolCalled():
            typer.echo(f"  call    {event.name} {json.dumps(dict(event.arguments), ensure_ascii=False)}")
        case ToolRefused():
            typer.echo(f"  refused {shown(event.name)}: {_cut(event.text)}")
        case ToolReturned():
            typer.echo(f"  {'error ' if event.is_error else 'result'}  {_cut(event.text)}")
        case Answered():
            typer.echo(f"answer  {shown(event.text)}")
        case Stopped() if event.reason != "answered":
            err.print(f"stopped: {event.reason} after {_used(event)}")


def _cut(text: str) -> str:
    text = text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + " …"
    return shown(text).strip().replace("\n", INDENT)


def _used(event: Stopped) -> str:
    return f"{event.steps} steps, {event.calls} calls, {event.tokens} tokens"
