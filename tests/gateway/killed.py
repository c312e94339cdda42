"""Gateways that are killed at random moments, one after the other on one state folder, and a look at what they left.

Run as a program: `python -m tests.gateway.killed ORDER`, where ORDER is JSON. Each gateway is a fork of this process,
which has loaded everything before, so that a cycle costs little more than what the gateway does until it is killed."""

import asyncio
import ctypes
import json
import os
import random
import re
import select
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import docker
from msgspec import Raw

from gateway.errors import ImageError, UpstreamError
from gateway.gateway import Gateway
from gateway.runtimes.labels import BUILD_PREFIX, GATEWAY, UNFINISHED
from gateway.serving import served
from gateway.settings import Settings

PR_SET_CHILD_SUBREAPER: Final = 36  # linux/prctl.h
REACHED_S: Final = 120.0
"""How long a gateway may take to reach the moment at which it is to be killed."""
LEFT_S: Final = 10.0
"""How long anything may be left once the next gateway is ready."""
CHECK_EVERY: Final = 10
LONGEST_S: Final = {
    "begin": 0.4,
    "ready": 0.05,
    "pull": 0.4,
    "build": 2.0,
    "start": 0.8,
    "call": 0.02,
    "stop": 0.3,
    "filtered": 1.5,
    "process": 0.6,
}
"""The moments, and how long after one at most the gateway is killed."""
ANONYMOUS: Final = re.compile("[0-9a-f]{64}")
OFTEN: Final = {"start": 8, "stop": 4, "call": 3, "begin": 3, "pull": 2}
HELLO: Final = {"name": Raw(b'"hello"'), "arguments": Raw(b"{}")}


class Left(AssertionError):
    """Something of a killed gateway is still there."""


# -- in the fork -------------------------------------------------------------------------------


async def live(order: dict[str, Any], moment: str, say: Callable[[str], None]) -> None:
    """A gateway that does the same again and again, and says what it is about to do."""
    say("begin")
    settings = Settings(
        state_dir=Path(order["state"]),
        cache_dir=Path(order["cache"]),
        catalog=Path(order["catalog"]),
        profile="all",
        port=0,
        docker_host=order["engine"],
        runtime="process" if moment == "process" else "docker",
    )
    async with Gateway(settings) as gateway, served(gateway):
        say("ready")
        if moment in ("pull", "build"):
            entry = gateway.catalog.entry(moment)
            say(moment)
            with suppress(ImageError):  # a build that is not killed in time may fail for its own reasons
                await gateway.images.build(entry, progress=print) if moment == "build" else await gateway.images.ensure(
                    entry, progress=print
                )
            await asyncio.sleep(REACHED_S)
        elif moment == "check":
            await asyncio.Event().wait()
        id = {"filtered": "filtered", "process": "time"}.get(moment, "stubborn")
        while True:
            say(moment if moment in ("filtered", "process") else "start")
            try:
                upstream = await gateway.pool.connection(id)
                say("call")
                if id != "time":
                    await upstream.request("tools/call", dict(HELLO))
            except UpstreamError as exc:
                print(moment, exc, flush=True)
                await asyncio.sleep(0.2)
            say("stop")
            gateway.pool.stop(id)
            while gateway.pool.servers[id].connections:
                await asyncio.sleep(0.01)


def fork(order: dict[str, Any], moment: str) -> tuple[int, int]:
    """Start a gateway; its process, and where it says what it does."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    try:
        os.close(reading)
        asyncio.run(live(order, moment, lambda what: (os.write(writing, what.encode() + b"\n"), None)[1]))
    except BaseException as exc:  # noqa: BLE001  # a fork must never go on as its parent
        print(f"the gateway ended: {type(exc).__name__}: {exc}", flush=True)
    os._exit(1)


# -- in the parent -----------------------------------------------------------------------------


def wait_for(reading: int, moment: str) -> None:
    deadline, said = time.monotonic() + REACHED_S, b""
    while moment.encode() + b"\n" not in said:
        ready, _, _ = select.select([reading], [], [], max(0, deadline - time.monotonic()))
        if not ready:
            raise AssertionError(f"{moment} was not reached within {REACHED_S:g} s; said: {said!r}")
        data = os.read(reading, 4096)
        if not data:
            raise AssertionError(f"the gateway ended before {moment}; said: {said!r}")
        said += data


def kill(pid: int, reading: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(reading)


class Cycles:
    """One state folder, one engine, one seed."""

    def __init__(self, order: dict[str, Any]) -> None:
        self._order = order
        self._engine = docker.APIClient(order["engine"], timeout=60)
        self._random = random.Random(order["seed"])  # which moment comes next is no secret
        self._volumes = self._volume_names()
        self._others = {one["Id"] for one in self._builds()}
        self.longest_s = 0.0
        self.longest: list[str] = []
        """What was left for so long."""
        self.killed: Counter[str] = Counter()
        """How many gateways, by the moment."""
        self.found: Counter[str] = Counter()
        """What the kills had left before each look: a test that never finds anything would show nothing."""

    def run(self) -> None:
        for number, moment in zip(range(self._order["cycles"]), self._moments(), strict=False):
            self.killed[moment] += 1
            if moment == "pull":
                self._forget_pulled()
            pid, reading = fork(self._order, moment)
            try:
                wait_for(reading, moment)
                select.select([], [], [], self._random.uniform(0, LONGEST_S[moment]))  # a random while
            finally:
                kill(pid, reading)
            if (number + 1) % CHECK_EVERY == 0:
                self.check(f"cycle {number} ({moment})")

    def _moments(self) -> Iterator[str]:
        """Every moment as often as it should be, in an order that is another one each time."""
        moments = [moment for moment in LONGEST_S for _ in range(OFTEN.get(moment, 1))]
        while True:
            self._random.shuffle(moments)
            yield from moments

    def check(self, when: str) -> None:
        """Start a gateway that does nothing; soon nothing of the killed ones may be left."""
        self.found.update(one.partition(" ")[0] for one in self._left(0))
        pid, reading = fork(self._order, "check")
        try:
            wait_for(reading, "ready")
            began = time.monotonic()
            while left := self._left(pid):
                if time.monotonic() - began > LEFT_S:
                    raise Left(f"{LEFT_S:g} s after the gateway was ready that followed {when}: {left}")
                self.longest = left if time.monotonic() - began > self.longest_s else self.longest
                select.select([], [], [], 0.05)
            self.longest_s = max(self.longest_s, time.monotonic() - began)
        finally:
            kill(pid, reading)

    def _left(self, living: int) -> list[str]:
        state, cache = Path(self._order["state"]), Path(self._order["cache"])
        gateway = (state / "gateway-id").read_text().strip()
        ours = {"label": f"{GATEWAY}={gateway}"}
        builds = [one for one in self._builds() if one["Id"] not in self._others]
        containers = [*self._engine.containers(all=True, filters=ours), *builds]
        return [
            *(f"container {one['Names']} {one['State']}" for one in containers),
            *(f"network {one['Name']}" for one in self._engine.networks(filters=ours)),
            *(f"volume {name}" for name in self._volume_names() - self._volumes),
            *(f"image {name}" for name in self._unfinished(containers)),
            *(f"process {pid}" for pid in self._children() - {living}),
            *(f"folder {one}" for one in (cache / "builds").glob(f"{gateway}.*")),
            *(f"file {one}" for pattern in ("**/*.tmp", ".*.*") for one in state.glob(pattern)),
            *(f"run {one.name}" for one in list((state / "runs").iterdir())[1:]),
            *(f"socket {one}" for one in state.glob("**/*.sock") if one.name != "stdio.sock"),
        ]

    def _builds(self) -> list[dict[str, Any]]:
        return list(self._engine.containers(all=True, filters={"name": f"^/{BUILD_PREFIX}"}))

    def _unfinished(self, containers: list[dict[str, Any]]) -> list[str]:
        """Images of builds whose container is gone or a killed gateway's; `containers` are those."""
        theirs = {one["Id"] for one in self._engine.containers(all=True)} - {one["Id"] for one in containers}
        names = [str(name) for one in self._engine.images(UNFINISHED) for name in one["RepoTags"] or ()]
        return [name for name in names if not any(id.startswith(name.rpartition(":")[2]) for id in theirs)]

    def _volume_names(self) -> set[str]:
        """Those without a name of their own, and those that bear our label; caches are named, and kept on purpose."""
        found = self._engine.volumes()["Volumes"] or ()
        return {one["Name"] for one in found if ANONYMOUS.fullmatch(one["Name"]) or GATEWAY in (one["Labels"] or {})}

    def _children(self) -> set[int]:
        """Living children of this process: it inherits those of its children that die."""
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        tasks = Path(f"/proc/{os.getpid()}/task").iterdir()
        return {int(child) for task in tasks for child in (task / "children").read_text().split()}

    def _forget_pulled(self) -> None:
        with suppress(docker.errors.ImageNotFound):
            self._engine.remove_image(self._order["pulled"], force=True)


def main() -> None:
    order = json.loads(sys.argv[1])
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    cycles = Cycles(order)
    cycles.run()
    cycles.check("the last cycle")
    found = ", ".join(f"{count} {what}" for what, count in sorted(cycles.found.items()))
    at = ", ".join(f"{count} at {moment}" for moment, count in sorted(cycles.killed.items()))
    kills = f"seed {order['seed']}: {order['cycles']} kills ({at})"
    print(f"{kills} left {found}; nothing after {cycles.longest_s:.1f} s; longest: {cycles.longest}", flush=True)


if __name__ == "__main__":
    main()
