"""Whether the container registry of an image answers, remembered for a while when it does not.

Knows no images and no engine; one TCP connection tells.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import anyio

REACH_TIMEOUT_S: Final = 3.0
"""For one connection: a registry that can be reached answers in well under a second."""
UNREACHABLE_FOR_S: Final = 300.0
"""How long a "no" is believed, so that a machine without internet does not wait for each image."""
DEFAULT_REGISTRY: Final = ("registry-1.docker.io", 443)


class Reachability:
    """Asks each registry at most once in a while. One instance per process; used from one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._refused_until: dict[tuple[str, int], float] = {}

    async def check(self, address: tuple[str, int]) -> bool:
        """Whether something accepts connections there. A "yes" is asked for anew each time."""
        if self._clock() < self._refused_until.get(address, float("-inf")):
            return False
        try:
            with anyio.fail_after(REACH_TIMEOUT_S):
                stream = await anyio.connect_tcp(*address)
                await stream.aclose()
        except (OSError, TimeoutError):
            self.refuse(address)
            return False
        return True

    def refuse(self, address: tuple[str, int]) -> None:
        """Believe for a while that nothing can be had from there."""
        self._refused_until[address] = self._clock() + UNREACHABLE_FOR_S


def registry_address(reference: str) -> tuple[str, int]:
    """Host and port of the registry that an image reference names, by Docker's rules."""
    first, slash, _ = reference.partition("/")
    if not slash or not (first == "localhost" or "." in first or ":" in first):
        return DEFAULT_REGISTRY
    if first in {"docker.io", "index.docker.io"}:
        return DEFAULT_REGISTRY
    host, port = split_address(first, 80 if first == "localhost" else 443)
    return host, port


def split_address(text: str, default_port: int) -> tuple[str, int]:
    """Split "host", "host:port" or "[v6]:port"."""
    host, colon, port = text.rpartition(":")
    if colon and port.isdigit() and not (":" in host and not host.startswith("[")):
        return host.strip("[]"), int(port)
    return text.strip("[]"), default_port
