"""`lockgate model run`, `ps`, `load`, `unload` and `bench`: models at work.

Knows options and output; a running gateway is asked where there is one, else one runs for the moment."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Annotated, Any, Final

import anyio
import typer
from anyio import to_thread
from rich.table import Table

from engine import ChatModel
from gateway.chatstream import GatewayRefused
from gateway.client import GatewayClient, gateway_client
from gateway.commands import model as models
from gateway.commands.model import store
from gateway.commands.running import AsJson, out, print_json, run, settings, shown
from gateway.running import find_running

app: Final = models.app

HELP: Final = "/system TEXT  /set NAME VALUE (temperature, top_p, max_tokens, seed)  /clear  /history  /help  /bye"
SETTABLE: Final[dict[str, Callable[[str], float]]] = {
    "temperature": float,
    "top_p": float,
    "max_tokens": int,
    "seed": int,
}
BENCH_CALLERS: Final = (1, 2, 4, 8)
BENCH_TOKENS: Final = 48
BAR_CHARS: Final = 40


@app.command("run")
def run_model(
    ref: Annotated[str, typer.Argument(help="A stored model.")],
    prompt: Annotated[str | None, typer.Argument(help="What to answer; without it, a chat begins.")] = None,
    system: Annotated[str | None, typer.Option(help="Instructions for the model.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2)] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens of an answer at most.")] = None,
) -> None:
    """Answer one prompt, or chat. The answer is written as it comes."""
    options = {"temperature": temperature, "max_tokens": max_tokens}
    chat = Chat(ref, system, {name: value for name, value in options.items() if value is not None})
    store().get(ref)  # a model that is not there is said before anything is started
    run(chat.work(prompt))


class Chat:
    """One conversation, and what `/` commands change of it."""

    def __init__(self, ref: str, system: str | None, options: dict[str, float]) -> None:
        self._ref = ref
        self._system = system
        self._options = options
        self.messages: list[dict[str, str]] = []

    async def work(self, prompt: str | None) -> None:
        async with gateway_client(settings()) as client:
            if prompt is not None:
                await self._answer(client, prompt)
                return
            history = settings().state_dir / "chat-history"
            with suppress(EOFError):
                while (line := await to_thread.run_sync(_read_line, history)) != "/bye":
                    if line.startswith("/"):
                        typer.echo(self.command(line))
                    elif line:
                        await self._turn(client, line)

    def command(self, line: str) -> str:
        """Carry out a `/` command; what to say of it."""
        name, _, rest = line.partition(" ")
        match name:
            case "/clear":
                self.messages.clear()
                return "forgotten"
            case "/system":
                self._system = rest.strip() or None
                return f"instructions: {self._system or 'none'}"
            case "/set":
                setting, _, value = rest.strip().partition(" ")
                try:
                    self._options[setting] = SETTABLE[setting](value)
                except (KeyError, ValueError):
                    return f"/set takes {', '.join(SETTABLE)} and a number"
                return f"{setting}: {self._options[setting]}"
            case "/history":
                return "\n".join(f"{one['role']}: {shown(one['content'])}" for one in self.messages) or "nothing yet"
            case _:
                return HELP

    async def _turn(self, client: GatewayClient, line: str) -> None:
        """One question of a chat: an error, or Ctrl-C, ends the answer and not the chat."""
        try:
            await self._answer(client, line)
        except GatewayRefused as exc:
            typer.echo(f"lockgate: {shown(str(exc))}", err=True)

    async def _answer(self, client: GatewayClient, prompt: str) -> None:
        system = [{"role": "system", "content": self._system}] if self._system else []
        asked = [*self.messages, {"role": "user", "content": prompt}]
        text = ""
        request: dict[str, Any] = {"model": self._ref, "messages": [*system, *asked], **self._options}
        async with aclosing(client.chat(request)) as chunks:
            async for chunk in chunks:
                for choice in chunk["choices"]:
                    piece = choice["delta"].get("content") or ""
                    text += piece
                    typer.echo(shown(piece), nl=False)
                    sys.stdout.flush()
        typer.echo()
        self.messages = [*asked, {"role": "assistant", "content": text}]


def _read_line(history: Path) -> str:
    """A line from the terminal, with editing and a history where there is one."""
    if sys.stdin.isatty():
        with suppress(ImportError, OSError):
            import readline

            if not readline.get_current_history_length() and history.exists():
                readline.read_history_file(history)
            line = input("> ").strip()
            history.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(history)
            history.chmod(0o600)
            return line
    return input().strip()


@app.command("ps")
def ps(as_json: AsJson = False) -> None:
    """List the models that the running gateway has loaded."""
    found = run(_asked("GET", "/api/ps"))["models"] if find_running(settings()) else []
    if as_json:
        print_json(found)
        return
    table = Table("model", "context", "unloaded at", box=None, pad_edge=False)
    for one in found:
        table.add_row(str(one["model"]), str(one["context_length"]), str(one["expires_at"])[:19])
    out.print(table)


@app.command("load")
def load(
    ref: str, keep_alive: Annotated[str, typer.Option(help="How long it stays when idle; -1 is for ever.")] = "-1"
) -> None:
    """Have the running gateway load a model now."""
    _must_run()
    run(_asked("POST", "/api/generate", {"model": ref, "keep_alive": keep_alive}))
    typer.echo(f"loaded {ref}")


@app.command("unload")
def unload(ref: str) -> None:
    """Have the running gateway let a model go."""
    _must_run()
    run(_asked("POST", "/api/generate", {"model": ref, "keep_alive": 0}))
    typer.echo(f"unloaded {ref}")


def _must_run() -> None:
    if find_running(settings()) is None:
        raise GatewayRefused("no gateway is running; start one with: lockgate serve")


async def _asked(method: str, path: str, content: dict[str, Any] | None = None) -> dict[str, Any]:
    async with gateway_client(settings()) as client:
        return await client.api(method, path, content)


@app.command("bench")
def bench(
    ref: Annotated[str, typer.Argument(help="A stored model.")],
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of each answer.")] = BENCH_TOKENS,
    as_json: AsJson = False,
) -> None:
    """How fast a model answers on this machine, alone and together: a table and a plot."""
    found = run(_bench(ref, tokens))
    if as_json:
        print_json(found)
        return
    table = Table("callers", "tokens/s", "of each", "first token", "", box=None, pad_edge=False)
    most = max(row["tokens_per_s"] for row in found)
    for row in found:
        bar = "█" * max(1, round(BAR_CHARS * row["tokens_per_s"] / most))
        each = row["tokens_per_s"] / row["callers"]
        cells = [f"{row['callers']:.0f}", f"{row['tokens_per_s']:.1f}", f"{each:.1f}", f"{row['first_s']:.2f} s"]
        table.add_row(*cells, bar)
    out.print(table)


async def _bench(ref: str, n_tokens: int) -> list[dict[str, float]]:
    async with ChatModel(await to_thread.run_sync(store().get, ref), n_ctx=2048) as model:
        await model.load()
        return [await _round(model, callers, n_tokens) for callers in BENCH_CALLERS]


async def _round(model: ChatModel, callers: int, n_tokens: int) -> dict[str, float]:
    """So many different questions at once."""
    firsts: list[float] = []
    counts: list[int] = []
    began = time.monotonic()

    async def ask(number: int) -> None:
        message = {"role": "user", "content": f"Tell the story of traveller {number} of {callers}."}
        request = {"messages": [message], "max_tokens": n_tokens, "stream_options": {"include_usage": True}}
        has_text = False
        async with aclosing(model.chat(request)) as chunks:
            async for chunk in chunks:
                if not has_text and any(choice["delta"].get("content") for choice in chunk["choices"]):
                    has_text = True
                    firsts.append(time.monotonic() - began)
                if "usage" in chunk:
                    counts.append(chunk["usage"]["completion_tokens"])

    async with anyio.create_task_group() as tasks:
        for number in range(callers):
            tasks.start_soon(ask, number)
    first_s = sum(firsts) / len(firsts) if firsts else 0.0
    return {"callers": callers, "tokens_per_s": sum(counts) / (time.monotonic() - began), "first_s": first_s}
