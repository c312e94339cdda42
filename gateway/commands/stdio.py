"""`lockgate stdio`: the gateway as a stdio server, for clients that start one.

Uses the running gateway where there is one, else serves from this very process."""

from __future__ import annotations

from gateway.commands.running import ProfileOption, log_to_stderr, run, settings
from gateway.gateway import Gateway
from gateway.serving import find_running, socket_path
from gateway.wire.modern import ModernEra
from gateway.wire.stdio import LineStreams, pipe_stdio, serve_lines, stdio_ends


def stdio(profile: ProfileOption = None) -> None:
    """Serve MCP on stdin and stdout."""
    log_to_stderr()
    run(_work(profile))


async def _work(profile: str | None) -> None:
    wanted = settings()
    if find_running(wanted) is not None:
        with socket_path(wanted.state_dir) as socket:
            await pipe_stdio(socket, profile or "")
        return
    async with Gateway(wanted) as gateway, stdio_ends() as ends:
        chosen = gateway.catalog.profile(profile or wanted.profile)
        await serve_lines(LineStreams(ends), gateway.door, ModernEra(gateway.door), chosen)
