"""`lockgate serve`: run the gateway and say, within one screen, how to use it.

Knows what to print; the gateway itself is gateway.py."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from anyio import to_thread

from engine import EngineError
from gateway.chatstream import is_elsewhere
from gateway.commands.running import err, first_line, log_to_stderr, out, run, settings
from gateway.gateway import Gateway
from gateway.running import Running
from gateway.serving import served
from gateway.settings import Settings
from gateway.signin.accounts import Accounts


def serve(
    port: Annotated[int | None, typer.Option(help="Port on loopback.")] = None,
    profile: Annotated[str | None, typer.Option(help="The profile served at /mcp.")] = None,
    with_model: Annotated[bool, typer.Option("--model/--no-model", help="Fetch the starter model at start.")] = True,
) -> None:
    """Run the gateway until Ctrl-C."""
    log_to_stderr()
    wanted = settings()
    wanted = replace(wanted, port=wanted.port if port is None else port, profile=profile or wanted.profile)
    run(_work(wanted, with_model))


async def _work(wanted: Settings, with_model: bool) -> None:
    loop = asyncio.get_running_loop()
    async with Gateway(wanted) as gateway, served(gateway) as service:
        if gateway.signin is not None and gateway.signin.accounts:
            await _invite(gateway, service.running)
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, service.stop)
        loop.add_signal_handler(signal.SIGHUP, gateway.catalog_watch.reload_soon)
        preparing = loop.create_task(_prepare(gateway, service.running, with_model))
        try:
            await service.wait()
        finally:
            preparing.cancel()
            await asyncio.gather(preparing, return_exceptions=True)


async def _invite(gateway: Gateway, running: Running) -> None:
    """Say how the first administrator gets in, if there is none yet."""
    accounts = Accounts(gateway.database)
    if not await accounts.count():
        page = f"{gateway.settings.public_url or running.url}/oauth/setup"
        out.print(
            f"Nobody can sign in yet. Open {page} within an hour, with the code {await accounts.bootstrap_code()}"
        )


async def _prepare(gateway: Gateway, running: Running, with_model: bool) -> None:
    """Fetch the model and ask unknown servers what they offer, so that the first client waits for nothing."""
    out.print(f"Lockgate is listening on {running.url}/mcp")
    model_line = "off"
    if with_model:
        model_line = await _fetch_model(gateway)
        await gateway.models.preload()
    unknown = [id for id in gateway.profile.names if gateway.pool.listing(id) is None]
    if unknown:
        err.print(f"Asking {', '.join(unknown)} for their tools; images or packages are made the first time …")
        await gateway.door.learn(unknown, timeout_s=1800)
    gateway.prewarm()
    _print_screen(gateway, running, model_line)


async def _fetch_model(gateway: Gateway) -> str:
    ref = gateway.settings.model
    if is_elsewhere(ref):
        return ref
    store = gateway.models.store
    if any(model.ref == ref for model in await to_thread.run_sync(store.list)):
        return ref
    try:
        await to_thread.run_sync(lambda: store.pull(ref, lambda line: err.print(f"model {ref}: {line}")))
    except EngineError as exc:
        return f"{ref} is missing: {exc}"
    return ref


def _print_screen(gateway: Gateway, running: Running, model_line: str) -> None:
    url = f"{running.url}/mcp"
    engine = "Docker Engine" if gateway.no_engine is None else f"no containers ({gateway.no_engine})"
    out.print(f"\nEndpoint  {url}   profile {gateway.profile.name}   {engine}   model {model_line}")
    out.print("Servers", style="bold")
    for id in gateway.profile.names:
        server = gateway.pool.servers[id]
        runtime = server.runtime or gateway.runtime_name(server.entry)
        count = f"{len(server.listing.tools)} tools" if server.listing else server.error or "not started"
        state = "on " if server.listing else "OFF"
        out.print("  " + first_line(f"{state} {id:20} {runtime:32} {count}", 116))
    command = Path(shutil.which("lockgate") or sys.argv[0]).absolute()
    out.print("Connect", style="bold")
    out.print(f"  Claude Code     {command} client connect claude-code")
    out.print(f"  Claude Desktop  {command} client connect claude-desktop")
    out.print(f"  Cursor          {command} client connect cursor")
    out.print(f"  VS Code         {command} client connect vscode")
    out.print(f"  others          {command} client list; by hand: Streamable HTTP at {url}")
    out.print("Try", style="bold")
    out.print(f'  {command} agent run "What time is it in Tokyo right now?"')
    out.print("Ctrl-C stops the gateway and every server it started.")
