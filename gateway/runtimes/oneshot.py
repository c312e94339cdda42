"""One container for one call: its arguments come by stdin, its answer is what it prints.

Arguments are read by a few lines of shell before the image's program runs, so a container can be made before its call
is known, and no argument stands in the engine's records. Knows no tools and no MCP: see percall.py."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple, Protocol

from catalog import Entry
from gateway import errors
from gateway.docker_engine import to_its_end
from gateway.runtimes import launcher
from gateway.runtimes.attach import AttachProtocol, Stream
from gateway.serverlog import ServerLog
from gateway.wire import envelope
from gateway.wire.http_client import Answer, HttpFailure

MAX_OUTPUT_BYTES: Final = 1024 * 1024
"""Of stdout, and of stderr; what comes after it is read and forgotten."""
END_S: Final = 5.0
"""How long the output may take to end once the container has."""

# Reads `arg BASE64` lines up to `go`, then becomes the launcher, which reads its own lines. `read` takes one byte at a
# time, so nothing that follows is lost.
SCRIPT: Final = f"""\
set -f
tools={launcher.MOUNT}/busybox
while read -r kind value; do
    case $kind in
    arg)
        value=$(printf %s "$value" | "$tools" base64 -d && printf .) || exit {launcher.REFUSED}
        set -- "$@" "${{value%.}}" ;;
    go) break ;;
    *) exit {launcher.REFUSED} ;;
    esac
done
[ "$kind" = go ] || exit {launcher.REFUSED}
unset kind value
exec "$tools" sh {launcher.MOUNT}/launch "$@"
"""
ENTRYPOINT: Final = (f"{launcher.MOUNT}/busybox", "sh", "-c", SCRIPT, "call")


class Made(NamedTuple):
    """A container that was made and not started; `opening` is what its launcher reads."""

    name: str
    id: str
    opening: bytes


class Maker(Protocol):
    """The part of the docker runtime that is used here."""

    async def make(self, entry: Entry, command: Sequence[str], log: ServerLog, owner: str) -> Made: ...

    async def run(self, made: Made) -> None: ...

    async def connect_attach(self, id: str, channel: Stream) -> AttachProtocol: ...

    def wait_for_exit(self, id: str) -> Answer: ...

    async def remove(self, name: str) -> None: ...


class Outcome(NamedTuple):
    """What a container left: its exit code, and its output, cut where it was too long."""

    code: int
    stdout: bytes
    stderr: bytes
    is_cut: bool


class _Ears(ServerLog):
    """Keeps stderr beside passing it to the server's log."""

    def __init__(self, log: ServerLog) -> None:
        super().__init__()
        self.kept = bytearray()
        self._log = log

    def stderr(self, data: bytes) -> None:
        self.kept += data[: MAX_OUTPUT_BYTES - len(self.kept)]
        self._log.stderr(data)


class _Collector:
    """The stream of one container, kept up to a limit."""

    def __init__(self, log: ServerLog) -> None:
        self.log = _Ears(log)
        self.stdout = bytearray()
        self.is_cut = False
        self.ended = asyncio.Event()
        self.write_end: Any = None

    def writes_to(self, write_end: Any) -> None:
        self.write_end = write_end

    def complain(self, data: bytes) -> None:
        self.log.stderr(data)

    def feed(self, data: bytes) -> None:
        room = MAX_OUTPUT_BYTES - len(self.stdout)
        self.is_cut = self.is_cut or len(data) > room
        self.stdout += data[:room]

    def end(self, reason: str) -> None:
        self.ended.set()

    def pause(self) -> None:
        """What is written is small, and all of it is written before the container starts."""

    def resume(self) -> None:
        """See `pause`."""


async def run_once(maker: Maker, made: Made, arguments: Sequence[str], log: ServerLog) -> Outcome:
    """Start the container with these arguments and wait for its end; it is removed in any case.

    Raises:
        UpstreamUnavailable: it could not be started.
        UpstreamLost: the engine broke off.
    """
    collector = _Collector(log)
    stream: AttachProtocol | None = None
    begun = False
    exit_code = maker.wait_for_exit(made.id)
    try:
        stream = await maker.connect_attach(made.id, collector)
        lines = [b"arg %b\n" % base64.b64encode(one.encode()) for one in arguments]
        collector.write_end.write(b"".join(lines) + b"go\n" + made.opening)
        if collector.write_end.can_write_eof():
            collector.write_end.write_eof()
        begun = True
        await maker.run(made)
        code = int(envelope.value(await exit_code.content())["StatusCode"])
        with suppress(TimeoutError):
            async with asyncio.timeout(END_S):
                await collector.ended.wait()
    except (HttpFailure, envelope.WireError, KeyError, OSError) as exc:
        kind = errors.UpstreamLost if begun else errors.UpstreamUnavailable
        raise kind(f"the Docker Engine broke off the call: {exc}") from exc
    finally:
        if stream is not None:
            stream.abort()
        await to_its_end(_removed(maker, made, log))
    return Outcome(code, bytes(collector.stdout), bytes(collector.log.kept), collector.is_cut)


async def _removed(maker: Maker, made: Made, log: ServerLog) -> None:
    try:
        await maker.remove(made.name)
    except errors.UpstreamUnavailable as exc:
        log.write("gateway", str(exc))
