"""`lockgate stdio`: the gateway as a stdio server, for clients that start one.

Joins the gateway that has the state folder where there is one, else is it, also for others of its kind that come."""

from __future__ import annotations

import asyncio
from typing import Final

from gateway.commands.running import ProfileOption, log_to_stderr, run, settings
from gateway.running import socket_path
from gateway.settings import Settings
from gateway.statelock import StateInUse
from gateway.wire.stdio import LineStreams, pipe_stdio, serve_lines, stdio_ends

JOIN_TIMEOUT_S: Final = 60.0
"""For whoever has the state folder to listen: it may only be starting, and look for what a killed one left."""
JOIN_PAUSE_S: Final = 0.1


def stdio(profile: ProfileOption = None) -> None:
    """Serve MCP on stdin and stdout."""
    log_to_stderr()
    run(_work(profile))


async def _work(profile: str | None) -> None:
    wanted = settings()
    loop = asyncio.get_running_loop()
    deadline = loop.time() + JOIN_TIMEOUT_S
    while not await _join(wanted, profile):
        try:
            await _serve(wanted, profile)
            return
        except StateInUse:
            if loop.time() > deadline:
                raise
        await asyncio.sleep(JOIN_PAUSE_S)


async def _join(wanted: Settings, profile: str | None) -> bool:
    """Be a pipe to the gateway that listens, to its end; False if none does."""
    try:
        with socket_path(wanted.state_dir) as socket:
            await pipe_stdio(socket, profile or "")
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    return True


async def _serve(wanted: Settings, profile: str | None) -> None:
    """
    Raises:
        StateInUse: another process has the state folder.
    """
    from gateway.gateway import Gateway  # joining another one, as most do, needs none of this
    from gateway.serving import joinable
    from gateway.wire.modern import ModernEra

    async with Gateway(wanted) as gateway:
        chosen = gateway.catalog.profile(profile or wanted.profile)
        modern = ModernEra(gateway.door)
        async with joinable(gateway, modern) as others:
            async with stdio_ends() as ends:
                await serve_lines(LineStreams(ends), gateway.door, modern, chosen, follows_default=not profile)
            # Who joined meanwhile is not to lose its servers because this one's client left.
            while others:
                await asyncio.wait(others)
