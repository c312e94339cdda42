"""Asking the running gateway from a command.

Knows how it is found; what is asked is the command's."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from gateway.chatstream import GatewayRefused
from gateway.client import GatewayClient, gateway_client
from gateway.commands.running import run, settings
from gateway.running import find_running


def ask_gateway(question: Callable[[GatewayClient], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
    """The answer of the gateway that runs on this state folder.

    Raises:
        GatewayRefused: none runs here, or it says no.
    """
    wanted = settings()
    if find_running(wanted) is None:
        raise GatewayRefused("no gateway is running on this state folder; start one with: lockgate serve")

    async def work() -> dict[str, Any]:
        async with gateway_client(wanted) as client:
            return await question(client)

    return run(work())
