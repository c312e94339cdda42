"""One running container: the ways to its server, the reason of its end, and what goes with it.

Knows the runtime that made it; not how that was done (docker.py)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from catalog import Entry
from gateway import errors
from gateway.egress.gate import Gate
from gateway.images import Image
from gateway.runtimes.attach import AttachProtocol
from gateway.runtimes.handover import until_full
from gateway.runtimes.launcher import CHANGED, REFUSED
from gateway.runtimes.pipes import NOT_THROUGH_PIPES, THROUGH_PIPES, Pipes
from gateway.serverlog import ServerLog
from gateway.wire import envelope
from gateway.wire.channel import Receiver
from gateway.wire.http_client import Answer, HttpFailure
from gateway.wire.lines import LineChannel, WriteEnd

if TYPE_CHECKING:
    from gateway.runtimes.docker import DockerRuntime

EXIT_GRACE_S: Final = 3.0
"""How long a server may take to exit once its stdin is closed, before it is killed."""
EXPLAIN_TIMEOUT_S: Final = 1.0


class DockerChannel(LineChannel):
    """The attach connection of one container, its pipes where it has some, and the container's end."""

    def __init__(
        self,
        runtime: DockerRuntime,
        name: str,
        entry: Entry,
        image: Image,
        receiver: Receiver,
        log: ServerLog,
        gate: Gate | None = None,
    ) -> None:
        """The channel owns `gate` once it is returned from a start."""
        super().__init__(receiver, log)
        self._gate = gate
        self.detail: Mapping[str, str] = {"container": name, "image": image.reference}
        self._runtime = runtime
        self._name = name
        self._id = ""
        self._pipes: Pipes | None = None
        self._hello: bytearray | None = None
        """What has come of the launcher's first line, while it is awaited."""
        self._entry = entry
        self._protocol: AttachProtocol | None = None
        self._exit: Answer | None = None
        self._explaining: asyncio.Task[None] | None = None
        self._over_http = entry.transport != "stdio" and image.origin == "published"
        self._closing = False
        self._guarding: asyncio.Task[None] | None = None
        self._over = ""
        """Why the gateway itself ended it."""
        self._attached: WriteEnd | None = None
        """The container's own stdin, while the server's is a pipe."""
        self._launched = False
        """The launcher starts the server, and has not said that it is done."""
        self._abandoned = False
        """Its start failed: nobody waits for the reason of its end."""

    def pipe(self, folder: Path, user: str) -> str:
        """Make pipes for the container's user; the identity of their folder, to be told to the launcher.

        Raises:
            OSError: they cannot be made.
        """
        uid, _, gid = user.partition(":")
        self._pipes = Pipes(folder, self)
        self._pipes.make(int(uid), int(gid))
        self._hello = bytearray()
        return self._pipes.identity

    async def attach(self, id: str, opening: bytes) -> None:
        """`opening` is what the launcher reads before the server's own input."""
        self._id = id
        self.detail = {**self.detail, "id": id[:12]}
        self._exit = self._runtime.wait_for_exit(id)
        self._protocol = await self._runtime.connect_attach(id, self)
        self._launched = bool(opening)
        if opening and self._write_end is not None:
            self._write_end.write(opening)
        if self._pipes is None:
            self.reads_from(self._protocol)
        else:
            self._attached, self._write_end = self._write_end, self._pipes
            self.reads_from(self._protocol, self._pipes)

    # -- which way -------------------------------------------------------------------------

    def piped(self, data: bytes) -> None:
        """Bytes out of the pipe."""
        if self._hello is not None:
            data = self._past_hello(data, THROUGH_PIPES)
            if self._hello is None and self._pipes is not None:
                self._pipes.opened()
        if data:
            super().feed(data)

    def feed(self, data: bytes) -> None:
        """Bytes on the container's own stdout, which is the server's unless it has pipes."""
        if self._hello is not None:
            data = self._past_hello(data, NOT_THROUGH_PIPES)
            if self._hello is None:
                self._leave_pipes()
        elif self._pipes is not None:
            self.complain(data)  # the server's init process may be written to by anything in there
            return
        if data:
            super().feed(data)

    def _past_hello(self, data: bytes, expected: bytes) -> bytes:
        """What follows the launcher's first line, if that is the expected one and has come to its end."""
        if self._hello is None:
            return data
        self._hello += data
        if len(self._hello) < len(expected):
            return b""
        told, rest = bytes(self._hello[: len(expected)]), bytes(self._hello[len(expected) :])
        self._hello, self._launched = None, False
        if told != expected:
            self.log.stray(told)
            self.end("its launcher did not say which way it goes")
            self.hang_up()
            return b""
        return rest

    def _leave_pipes(self) -> None:
        """The launcher did not find the pipes, or may not open them: the engine carries everything."""
        pipes, self._pipes = self._pipes, None
        if pipes is None or self._protocol is None:
            return
        self.log.write("gateway", "the engine does not see this machine's pipes: it carries the data itself")
        waiting = pipes.taken_back()
        pipes.close()
        self._write_end = self._attached
        self.reads_from(self._protocol)
        if waiting and self._attached is not None:
            self._attached.write(waiting)
        self.resume()

    def guard(self, volumes: Sequence[Path]) -> None:
        """End the server once its volumes hold more than they may."""

        async def watch() -> None:
            self._over = await until_full(volumes, self._entry.limits.volume_mib)
            with suppress(errors.UpstreamUnavailable):
                await self._runtime.remove(self._name)

        self._guarding = asyncio.get_running_loop().create_task(watch())

    def end(self, reason: str) -> None:
        """The attach stream is over; find out why before telling the receiver."""
        if self._abandoned:
            super().end(reason)
        elif self._explaining is None and not self.ended.is_set():
            self._explaining = asyncio.get_running_loop().create_task(self._explain(reason))

    async def _explain(self, reason: str) -> None:
        with suppress(TimeoutError, HttpFailure, envelope.WireError, KeyError):
            async with asyncio.timeout(EXPLAIN_TIMEOUT_S):
                if self._exit is not None and not self._is_refused:
                    code = int(envelope.value(await self._exit.content())["StatusCode"])
                    reason = self._exit_reason(code)
        if self._pipes is not None:
            if rest := self._pipes.rest():
                self.piped(rest)
            self._pipes.close()
        super().end(reason)

    def _exit_reason(self, code: int) -> str:
        if self._over:
            return self._over
        if code == 137 and not self._closing:
            limit = self._entry.limits.memory_mib
            return f"its container was killed (exit code 137), most likely by its memory limit of {limit} MiB"
        if code in (REFUSED, CHANGED) and self._launched:
            return f"its launcher stopped before the server ran (exit code {code}): {self.log.last(1)}"
        if code in (126, 127):
            # What Docker's init process and shells answer for a program that is not there or may not be executed.
            what = "was not found" if code == 127 else "may not be executed"
            return f"its program {what} in {self.detail['image']} (exit code {code}); look at command and args"
        return f"its container ended with exit code {code}"

    def hang_up(self) -> None:
        if self._protocol is not None:
            self._protocol.abort()
        if self._pipes is not None:
            self._pipes.close()

    async def abandon(self) -> None:
        self._abandoned = True
        await self._disconnect()

    async def _disconnect(self) -> None:
        self.hang_up()
        if self._explaining is not None:
            await asyncio.gather(self._explaining, return_exceptions=True)

    async def close(self) -> None:
        self._closing = True
        if self._guarding is not None:
            self._guarding.cancel()
            await asyncio.gather(self._guarding, return_exceptions=True)
        self._write_end = None  # calls may still run out of time, of which nobody is told any more
        if self._pipes is not None:
            self._pipes.close_stdin()
        if self._protocol is not None:
            self._protocol.close_stdin()
        if self._over_http and not self.ended.is_set():
            self._runtime.terminate(self._id)
        with suppress(TimeoutError):
            async with asyncio.timeout(EXIT_GRACE_S):
                await self.ended.wait()
        try:
            # An ended container removes itself; asking again makes sure, and costs little.
            await self._runtime.remove(self._name)
        except errors.UpstreamUnavailable as exc:
            self.log.write("gateway", str(exc))
        await self._disconnect()
        if self._gate is not None:
            gate, self._gate = self._gate, None
            await gate.aclose(self._runtime.remove)
