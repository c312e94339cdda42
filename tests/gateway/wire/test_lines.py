"""A channel of lines: what a server says unasked is read at a bounded rate, whole and in order."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from gateway.errors import UpstreamError
from gateway.serverlog import ServerLog
from gateway.upstream import Upstream
from gateway.wire import envelope
from gateway.wire.allowance import AT_ONCE_BYTES, BYTES_PER_S, LINE_BYTES
from gateway.wire.channel import MAX_MESSAGE_BYTES
from gateway.wire.lines import MAX_LAST_LINES, LineChannel
from tests.gateway.test_upstream import begin, connected, text
from tests.servers import DEADLINE_S, LocalRuntime, entry, until

pytestmark = pytest.mark.anyio

NOTE = b'{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"x"}}\n'


class Reader:
    """Keeps what it receives; takes for asked what begins with `+`."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.reasons: list[str] = []

    def received(self, message: bytes, id: int | None = None) -> bool:
        self.lines.append(message)
        return message.startswith(b"+")

    def failed(self, id: int, error: UpstreamError) -> None:
        raise AssertionError(error)

    def waits_for(self, id: int) -> bool:
        return False

    def lost(self, reason: str) -> None:
        self.reasons.append(reason)


class Tap:
    """Where the bytes come from."""

    def __init__(self) -> None:
        self.is_open = True
        self.n_closed = 0

    def pause_reading(self) -> None:
        self.is_open = False
        self.n_closed += 1

    def resume_reading(self) -> None:
        self.is_open = True


def channel_of() -> tuple[LineChannel, Reader, Tap]:
    reader, tap = Reader(), Tap()
    channel = LineChannel(reader, ServerLog())
    channel.reads_from(tap)
    return channel, reader, tap


FLOOD = 16 * AT_ONCE_BYTES // LINE_BYTES
"""Lines, however short: more than may be read in a second, as this machine may stop for a while."""


@pytest.mark.parametrize("cut", [1, 7, 1000, 10**9])
async def test_a_flood_stops_the_reading_and_comes_through_whole_and_in_order(cut: int) -> None:
    channel, reader, tap = channel_of()
    lines = [b"%d" % number for number in range(FLOOD)]
    data = b"\n".join(lines) + b"\n"
    for start in range(0, len(data), cut):
        channel.feed(data[start : start + cut])
    assert not tap.is_open
    assert len(reader.lines) < FLOOD
    await until(lambda: tap.is_open, "all of it was looked at")
    assert reader.lines == lines
    channel.feed(b"+1\n")
    assert reader.lines[-1] == b"+1"


async def test_answers_are_read_without_end() -> None:
    channel, reader, tap = channel_of()
    for _ in range(FLOOD):
        channel.feed(b"+1\n")
    channel.feed(b"+1\n" * FLOOD)
    assert (len(reader.lines), tap.n_closed) == (2 * FLOOD, 0)


async def test_blank_lines_are_not_free() -> None:
    channel, reader, tap = channel_of()
    channel.feed(b"\n" * FLOOD + b" \r\n" * FLOOD)
    assert (tap.is_open, reader.lines) == (False, [])
    await until(lambda: tap.is_open, "they were looked at")


async def test_what_is_too_much_on_stderr_is_not_kept_and_that_is_said() -> None:
    channel, _, tap = channel_of()
    channel.complain(b"loud\n" * FLOOD)
    assert not tap.is_open
    channel.complain(b"lost\n" * 3)
    await until(lambda: tap.is_open, "it was looked at")
    channel.complain(b"heard\n")
    told = [line.text for line in channel.log.lines()]
    assert told[-2:] == ["it wrote too much on stderr: 15 bytes are not kept", "heard"]


async def test_a_line_without_end_behind_a_flood_ends_the_server() -> None:
    channel, reader, _ = channel_of()
    hung_up = asyncio.Event()
    channel.hang_up = hung_up.set  # type: ignore[method-assign]  # what a runtime does about it
    channel.feed(b"x\n" * FLOOD)
    channel.feed(b"y" * (MAX_MESSAGE_BYTES + 1))
    assert not reader.reasons
    async with asyncio.timeout(DEADLINE_S):
        await hung_up.wait()
    assert reader.reasons == ["it wrote an endless line on stdout"]
    channel.feed(b"z\n")
    assert reader.lines == [b"x"] * FLOOD


async def test_the_end_of_the_stream_waits_for_no_flood() -> None:
    channel, reader, _ = channel_of()
    channel.feed(b"x\n" * (FLOOD + 3 * MAX_LAST_LINES))
    before = len(reader.lines)
    channel.end("it ended")
    assert len(reader.lines) == before + MAX_LAST_LINES
    assert reader.reasons == ["it ended"]


async def test_an_answer_behind_a_flood_is_found_at_the_end_of_the_stream() -> None:
    channel, reader, _ = channel_of()
    channel.feed(b"x\n" * (AT_ONCE_BYTES // LINE_BYTES + MAX_LAST_LINES // 2) + b"+1\n")
    channel.end("it ended")
    assert reader.lines[-1] == b"+1"


# -- with a server that does it ------------------------------------------------------------------


async def flooded(told: Callable[..., None]) -> tuple[LocalRuntime, Upstream, Any]:
    runtime, log = LocalRuntime(), ServerLog()
    upstream = Upstream("a", log, call_timeout_s=DEADLINE_S, on_notification=told)
    channel = await runtime.start(entry("a", "hostile", "notes_without_end"), upstream, log)
    await upstream.open(channel)
    return runtime, upstream, channel


async def test_a_server_that_floods_is_read_at_its_allowance_and_the_others_are_served() -> None:
    loop = asyncio.get_running_loop()
    heard = 0

    def told(*_: object) -> None:
        nonlocal heard
        heard += 1

    began = loop.time()
    runtime, upstream, channel = await flooded(told)
    try:
        call = await begin(upstream, "poke")
        async with connected() as other:
            for number in range(200):
                assert await text(await begin(other, "echo", {"n": number})) == f'{{"n": {number}}}'
            await until(lambda: heard > FLOOD, "it floods")
        most = (AT_ONCE_BYTES + (loop.time() - began) * BYTES_PER_S) / (len(NOTE) + LINE_BYTES) + MAX_LAST_LINES
        assert heard < most
        upstream.cancel(call, "enough")
    finally:
        await channel.close()
    await until(lambda: not runtime.processes(), "it is gone")


async def test_an_answer_comes_through_a_flood_of_its_own_server() -> None:
    async with connected("hostile", "pings_and_never_reads", "3000") as upstream:
        members = {"name": envelope.raw("poke"), "arguments": envelope.raw({})}
        async with asyncio.timeout(DEADLINE_S):
            assert b"flooded" in await upstream.request("tools/call", members)
