"""The same faults with the Docker Engine alone: what a container that is started anew costs its neighbours.

Knows two containers made like a gateway's, the attach stream of each, and a child process that works on the one with
the faults, so that the callers of the other share no interpreter with it.

    python benchmarks/plain_docker.py SOCKET     the child: the container's description, then one command a line"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, Self

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import answers
from benchmarks.line_callers import AttachedCallers
from benchmarks.twins import Engine, EngineRefused, Twin

READY_S: Final = 60.0
READ_BYTES: Final = 65536

Step = tuple[float, str]
"""When, in seconds from the beginning of the fault, and what: `start`, `kill` or `eat`."""


class DirectCallers(AttachedCallers):
    """Calls over the attach stream, each waited for by whoever makes it."""

    def __init__(self, path: str, container: str) -> None:
        super().__init__(path, container, "hello", "", 1)
        self._waiting: dict[int, asyncio.Future[None]] = {}

    async def hello(self) -> None:
        self._id += 1
        self._waiting[self._id] = answered = asyncio.get_running_loop().create_future()
        self._write(answers.call(b"hello", self._id))
        await answered

    def feed(self, data: bytes) -> None:
        if not self._initialized.done():
            super().feed(data)
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._waiting.pop(json.loads(line)["id"]).set_result(None)


class Plain:
    """A good and a bad container like those of a gateway, without one. Enter to have both."""

    def __init__(self, path: str, good: dict[str, Any], bad: dict[str, Any]) -> None:
        self._path = path
        self._good = good
        self._bad = bad
        self._stack = ExitStack()

    async def __aenter__(self) -> Self:
        engine = Engine(self._path)
        twin = await asyncio.to_thread(self._stack.enter_context, Twin(engine, self._good))
        self._callers = DirectCallers(self._path, twin.id)
        await self._callers.open()
        self.hello = self._callers.hello
        pipe = asyncio.subprocess.PIPE
        program = (sys.executable, __file__, self._path)
        self._child = await asyncio.create_subprocess_exec(*program, stdin=pipe, stdout=pipe)
        self._say(json.dumps({name: self._bad[name] for name in ("Config", "HostConfig", "Image")}))
        await self.recovers()
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._child.stdin is not None
        self._child.stdin.close()
        await self._child.wait()
        await self._callers.close()
        await asyncio.to_thread(self._stack.close)

    def _say(self, line: str) -> None:
        assert self._child.stdin is not None
        self._child.stdin.write(line.encode() + b"\n")

    async def recovers(self) -> None:
        """Wait until the bad container answers again."""
        assert self._child.stdout is not None
        self._say("ready")
        async with asyncio.timeout(READY_S):
            if await self._child.stdout.readline() != b"ready\n":
                raise SystemExit("the child that works on the plain container ended")

    @asynccontextmanager
    async def replayed(self, steps: Sequence[Step]) -> AsyncIterator[None]:
        """While it is entered, the same happens at the same moments as it did behind the gateway."""

        async def replay() -> None:
            began = time.perf_counter()
            for at, what in steps:
                await asyncio.sleep(max(0.0, began + at - time.perf_counter()))
                self._say(what)

        replaying = asyncio.ensure_future(replay())
        try:
            yield
        finally:
            replaying.cancel()
            await asyncio.gather(replaying, return_exceptions=True)


# -- in the child --------------------------------------------------------------------------------


class Bad:
    """The container to which things happen."""

    def __init__(self, engine: Engine, original: dict[str, Any]) -> None:
        self._engine = engine
        self._original = original
        self._twin: Twin | None = None
        self._stream: socket.socket | None = None

    def start(self) -> None:
        self.end()
        self._twin = twin = Twin(self._engine, self._original)
        twin.__enter__()
        self._stream = stream = socket.socket(socket.AF_UNIX)
        stream.settimeout(READY_S)
        stream.connect(self._engine.path)
        upgrade = b"Host: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n\r\n"
        path = b"/containers/%b/attach?stream=1&stdin=1&stdout=1" % twin.id.encode()
        stream.sendall(b"POST %b HTTP/1.1\r\n%b" % (path, upgrade))
        if b" 101 " not in stream.recv(READ_BYTES):
            raise SystemExit("the engine does not attach")
        stream.sendall(answers.INITIALIZE + b"\n")
        stream.recv(READ_BYTES)
        stream.sendall(answers.INITIALIZED + b"\n")

    def kill(self) -> None:
        if self._twin is not None:
            with suppress(EngineRefused):
                self._engine.ask("POST", f"/containers/{self._twin.id}/kill")
            self._ended()

    def eat(self) -> None:
        """It asks for more memory than it may have, and is killed for it."""
        if self._stream is not None:
            with suppress(OSError):
                self._stream.sendall(answers.call(b"eat", 2) + b"\n")
            self._ended()

    def _ended(self) -> None:
        with suppress(OSError):
            while self._stream is not None and self._stream.recv(READ_BYTES):
                pass
        self.end()

    def ready(self) -> None:
        if self._twin is None:
            self.start()
        print("ready", flush=True)

    def end(self) -> None:
        if self._stream is not None:
            self._stream.close()
        if self._twin is not None:
            self._twin.__exit__()
        self._stream = self._twin = None


def main() -> None:
    bad = Bad(Engine(sys.argv[1]), json.loads(sys.stdin.readline()))
    steps = {"start": bad.start, "kill": bad.kill, "eat": bad.eat, "ready": bad.ready}
    try:
        for line in sys.stdin:
            steps[line.strip()]()
    finally:
        bad.end()


if __name__ == "__main__":
    main()
