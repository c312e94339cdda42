"""The load generator with a gateway in its own process: calls at the door, with no HTTP on either side.

Knows the gateway's objects, as `lockgate stdio` does where no gateway runs; takes the same orders as load.py. Says the
gateway's id first, when its servers run."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import answers
from benchmarks.answers import WrongAnswer
from benchmarks.load import Callers, Order, callers_for, work
from gateway.door import Caller
from gateway.gateway import Gateway
from gateway.settings import read_settings
from gateway.upstream import Notice, Reply
from policies import Principal

if TYPE_CHECKING:
    from benchmarks.load import Meter

START_TIMEOUT_S = 900.0
"""The first start may build images."""


class DoorCallers:
    """Callers at the door: each awaits its call like any era of the wire, and makes the next."""

    def __init__(self, gateway: Gateway, order: Order) -> None:
        self.count = order.callers
        self._gateway = gateway
        self._tool = order.tool.encode()
        self._prefix = order.reply_prefix
        self._id = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """There is no connection."""

    def start(self, meter: Meter) -> None:
        for _ in range(self.count):
            task = asyncio.get_running_loop().create_task(self._work(meter))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _work(self, meter: Meter) -> None:
        caller = Caller(Principal("local"), self._gateway.profile, "lockgate-benchmark")
        try:
            while True:
                self._id += 1
                id = self._id
                params = answers.params(self._tool, id)
                started_ns = time.perf_counter_ns()
                reply = await self._gateway.door.call(caller, "tools/call", params, _drop)
                if not isinstance(reply, Reply) or reply.result is None:
                    raise WrongAnswer(repr(reply))
                answers.check_result(reply.result, id, self._prefix)
                if not meter.goes_on(started_ns):
                    return
        except Exception as exc:  # noqa: BLE001  # whatever it is, the sample is void
            meter.fail(exc)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _drop(_notice: Notice) -> None:
    """Nobody waits for progress."""


async def main() -> None:
    async with Gateway(read_settings(os.environ)) as gateway:
        await gateway.door.learn(gateway.profile.names, START_TIMEOUT_S)
        gateway_id = (gateway.settings.state_dir / "gateway-id").read_text().strip()
        sys.stdout.buffer.write(gateway_id.encode() + b"\n")
        sys.stdout.buffer.flush()

        def callers(order: Order) -> Callers:
            return DoorCallers(gateway, order) if order.door else callers_for(order)

        await work(callers)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
