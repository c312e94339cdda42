"""`lockgate stdio`: the gateway as a stdio server, for clients that start one.

Uses the running gateway where there is one, else serves from this very process."""

from __future__ import annotations

from gateway.commands.running import ProfileOption, run, settings
from gateway.gateway import Gateway
from gateway.runtimes.remote import HttpChannel
from gateway.serverlog import ServerLog
from gateway.serving import find_running
from gateway.wire.stdio import StdioRelay, serve_stdio


def stdio(profile: ProfileOption = None) -> None:
    """Serve MCP on stdin and stdout."""
    run(_work(profile))


async def _work(profile: str | None) -> None:
    wanted = settings()
    running = find_running(wanted)
    if running is not None:
        relay = StdioRelay()
        path = f"/mcp/{profile}" if profile else "/mcp"
        await relay.run(HttpChannel(running.url + path, {}, relay, ServerLog()))
        return
    async with Gateway(wanted) as gateway:
        await serve_stdio(gateway.door, gateway.catalog.profile(profile or wanted.profile))
