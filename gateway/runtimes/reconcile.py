"""Removing what dead gateways left in the engine: containers, networks and volumes, and only those.

Knows the engine's lists and our labels; not how a container is made. What is not signed by this state folder's key, or
belongs to a run that lives, is never touched."""

from __future__ import annotations

import asyncio
import itertools
import logging
from typing import Any, Final, NamedTuple
from urllib.parse import quote

import anyio

from gateway.runs import Run
from gateway.runtimes import labels
from gateway.runtimes.labels import UNFINISHED
from gateway.wire import envelope
from gateway.wire.envelope import WireError
from gateway.wire.http_client import Answer, HttpFailure, HttpOrigin

_log: Final = logging.getLogger(__name__)

ANSWER_TIMEOUT_S: Final = 30.0
REMOVALS_AT_ONCE: Final = 8
EXPECTED: Final = (200, 204, 304, 403, 404, 409)
"""Removed, gone or being removed; 403 and 409 also say that it is still in use, and the next pass meets it again."""
EVERY_S: Final = 30.0
AFTER_START_S: Final = (0.5, *[1.0] * 9, 2.0, 5.0, 10.0)
"""Pauses of the first passes: the engine may still carry out what a dead gateway asked for."""
AFTER_FINDING_S: Final = 1.0
"""What a pass found may take another to be gone: a network, once its last container is."""
PASSES_AFTER_FINDING: Final = 5


class EngineSilent(Exception):
    """The engine did not answer, or not as it should; the next pass tries again."""


class Found(NamedTuple):
    """One object in the engine."""

    what: labels.What
    id: str
    name: str
    labels: dict[str, str]

    @property
    def path(self) -> str:
        match self.what:
            case "container":
                return f"/containers/{self.id}?force=1&v=1"
            case "network":
                return f"/networks/{self.id}"
            case "volume":
                return f"/volumes/{quote(self.id, safe='')}?force=1"


class Reconciler:
    """Sweeps one engine for one run of a gateway."""

    def __init__(self, engine: HttpOrigin, run: Run) -> None:
        self._engine = engine
        self._run = run
        self._labelled = {"label": [f"{labels.GATEWAY}={run.gateway}"]}

    async def watch(self) -> None:
        """Sweep again and again, for as long as the gateway runs."""
        for pause_s in itertools.chain(AFTER_START_S, itertools.repeat(EVERY_S)):
            await anyio.sleep(pause_s)
            for _ in range(PASSES_AFTER_FINDING):
                if not await self._sweep():
                    break
                await anyio.sleep(AFTER_FINDING_S)

    async def _sweep(self) -> int:
        try:
            return await self.sweep()
        except EngineSilent as exc:
            _log.debug("%s", exc)  # whoever needs the engine is told so; there is nothing to sweep without it
            return 0

    async def sweep(self) -> int:
        """One pass; the number of objects that were left behind.

        Raises:
            EngineSilent: the engine did not say what it holds.
        """
        removed = 0
        # Containers first: networks and volumes can only go when nothing uses them.
        for found in (self._containers, self._networks, self._volumes):
            left = [one for one in await found() if self._run.may_remove(one.what, one.name, one.labels)]
            limiter = anyio.CapacityLimiter(REMOVALS_AT_ONCE)
            async with anyio.create_task_group() as tasks:
                for one in left:
                    tasks.start_soon(self._remove, one, limiter)
            removed += len(left)
        return removed + await self._remove_unfinished()

    async def _remove_unfinished(self) -> int:
        """Remove images between two steps of a build whose container is no more: each is named by its container."""
        images = await self._list("/images/json?", {"reference": [UNFINISHED]})
        names = [str(name) for one in images for name in one.get("RepoTags") or ()]
        if not names:
            return 0
        living = [str(one["Id"]) for one in await self._list("/containers/json?all=1&", {})]
        left = [name for name in names if not any(id.startswith(name.rpartition(":")[2]) for id in living)]
        for name in left:
            await self._ask("DELETE", f"/images/{quote(name, safe='')}?noprune=1")
        return len(left)

    async def _remove(self, one: Found, limiter: anyio.CapacityLimiter) -> None:
        async with limiter:
            try:
                status, _ = await self._ask("DELETE", one.path)
            except EngineSilent as exc:
                _log.warning("%s %s, left by a gateway that ended, could not be removed: %s", one.what, one.name, exc)
                return
            if status not in EXPECTED:
                text = "%s %s, left by a gateway that ended, could not be removed: HTTP %d"
                _log.warning(text, one.what, one.name, status)

    async def _containers(self) -> list[Found]:
        found = await self._list("/containers/json?all=1&", self._labelled)
        found += await self._list("/containers/json?all=1&", {"name": [labels.BUILD_PREFIX]})
        return [
            Found("container", one["Id"], name.lstrip("/"), one.get("Labels") or {})
            for one in found
            for name in (one.get("Names") or ())[:1]
        ]

    async def _networks(self) -> list[Found]:
        found = await self._list("/networks?", self._labelled)
        return [Found("network", one["Id"], one["Name"], one.get("Labels") or {}) for one in found]

    async def _volumes(self) -> list[Found]:
        found = await self._list("/volumes?", self._labelled)
        return [
            Found("volume", one["Name"], one["Name"], one.get("Labels") or {})
            for one in (found or {}).get("Volumes") or ()
        ]

    async def _list(self, path: str, filters: dict[str, list[str]]) -> Any:
        status, content = await self._ask("GET", f"{path}filters={quote(envelope.encode(filters).decode())}")
        if status != 200:
            raise EngineSilent(f"the Docker Engine refused {path.partition('?')[0]}: HTTP {status}")
        try:
            return envelope.value(content)
        except WireError as exc:
            raise EngineSilent(f"the Docker Engine's answer to {path.partition('?')[0]} cannot be read") from exc

    async def _ask(self, method: str, path: str) -> tuple[int, bytes]:
        answer = Answer()
        exchange = self._engine.request(method, path, b"", b"", answer)
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                content = await answer.content()
        except TimeoutError as exc:
            raise EngineSilent(f"the Docker Engine did not answer within {ANSWER_TIMEOUT_S:g} s") from exc
        except HttpFailure as exc:
            raise EngineSilent(f"the Docker Engine did not answer: {exc}") from exc
        finally:
            exchange.abort()
        return answer.status, content
