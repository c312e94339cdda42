"""Whether there is an engine for containers: asked at the start, and again and again until there is one.

Knows the docker runtime and how often to ask; not what runs where meanwhile (gateway.py)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, Literal

import anyio

from gateway.runtimes.docker import DockerRuntime

_log: Final = logging.getLogger(__name__)

FIRST_PAUSE_S: Final = 0.5
MAX_PAUSE_S: Final = 4.0
ANSWER_S: Final = 2.0
"""How long whoever asks for the state of things waits for an engine."""

State = Literal["ready", "waiting", "off"]
"""ready: the engine answers; waiting: it does not, and is used once it does; off: containers are not wanted."""


class EnginePresence:
    """The engine of one gateway. `missing` says why containers are not used; `watch` runs as long as the gateway."""

    def __init__(self, docker: DockerRuntime, *, wanted: bool, arrived: Callable[[], None]) -> None:
        """`arrived` is called once, when an engine answers that did not at the start."""
        self._docker = docker
        self._wanted = wanted
        self._arrived = arrived
        self.missing: str | None = None if wanted else "not used: LOCKGATE_RUNTIME=process"

    async def ask(self) -> None:
        """Connect, and remove what dead gateways left in the engine."""
        if self._wanted:
            self.missing = await self._docker.probe()

    async def watch(self) -> None:
        """Ask until the engine answers, then sweep it again and again."""
        if not self._wanted:
            return
        pause_s = FIRST_PAUSE_S
        if self.missing is not None:
            _log.warning("containers are not available yet: %s; it is asked again until it answers", self.missing)
        while self.missing is not None:
            await anyio.sleep(pause_s)
            pause_s = min(2 * pause_s, MAX_PAUSE_S)
            await self.ask()
            if self.missing is None:
                _log.warning("the Docker Engine answers now: servers start in containers from here on")
                self._arrived()
        if not self._docker.kind.has_limits:
            _log.warning("the engine is rootless and without control groups: no limits of memory, CPU and processes")
        if self._docker.reconciler is not None:
            await self._docker.reconciler.watch()

    async def now(self) -> tuple[State, str]:
        """The state at this moment, and the reason where the engine is not ready."""
        if not self._wanted:
            return "off", self.missing or ""
        if self.missing is not None:
            return "waiting", self.missing
        reason = await self._docker.silent_because(ANSWER_S)
        return ("waiting", reason) if reason else ("ready", "")
