"""The attach stream against an engine that breaks it off: nothing is left that nobody waits for."""

import asyncio
import gc
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.runtimes.attach import AttachProtocol
from gateway.serverlog import ServerLog
from gateway.wire.http_client import Answer, HttpFailure, HttpOrigin
from gateway.wire.lines import LineChannel, WriteEnd
from tests.gateway.wire.test_framing import pieces
from tests.servers import DEADLINE_S

pytestmark = pytest.mark.anyio


class Deaf:
    """A receiver that is told of the end only."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def received(self, message: bytes, id: int | None = None) -> bool:
        raise AssertionError(message)

    def failed(self, id: int, error: Exception) -> None:
        raise AssertionError(error)

    def waits_for(self, id: int) -> bool:
        return False

    def lost(self, reason: str) -> None:
        self.reasons.append(reason)


class Listener:
    """What the engine carries, as it arrives."""

    def __init__(self) -> None:
        self.log = ServerLog()
        self.lines = b""
        self.reasons: list[str] = []

    def writes_to(self, write_end: WriteEnd) -> None:
        """It says nothing."""

    def feed(self, data: bytes) -> None:
        self.lines += data

    def complain(self, data: bytes) -> None:
        self.log.stderr(data)

    def end(self, reason: str) -> None:
        self.reasons.append(reason)

    def pause(self) -> None:
        """It says nothing."""

    def resume(self) -> None:
        """It says nothing."""


def frames(contents: list[tuple[int, bytes]]) -> bytes:
    return b"".join(
        bytes([stream, 0, 0, 0]) + len(content).to_bytes(4, "big") + content for stream, content in contents
    )


@given(
    st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=40)), max_size=8),
    st.sampled_from([b"101 UPGRADED", b"200 OK"]),
    st.lists(st.integers(0, 500), max_size=12),
)
def test_frames_come_out_the_same_however_the_stream_is_cut(
    contents: list[tuple[int, bytes]], status: bytes, places: list[int]
) -> None:
    async def read() -> tuple[bytes, bytes]:
        listener = Listener()
        protocol = AttachProtocol("/containers/x/attach", listener)
        for piece in pieces(b"HTTP/1.1 " + status + b"\r\nA: b\r\n\r\n" + frames(contents), places):
            protocol.data_received(piece)
        assert protocol.upgraded.done()
        listener.log.stderr(b"\n")
        told = b"\n".join(line.text.encode() for line in listener.log.lines())
        return listener.lines, told

    def told_at_once() -> bytes:
        log = ServerLog()
        log.stderr(b"".join(content for stream, content in contents if stream == 2) + b"\n")
        return b"\n".join(line.text.encode() for line in log.lines())

    stdout = b"".join(content for stream, content in contents if stream == 1)
    assert asyncio.run(read()) == (stdout, told_at_once())


async def test_a_large_frame_in_small_pieces_takes_time_in_proportion_to_its_size() -> None:
    began = time.process_time()
    listener = Listener()
    protocol = AttachProtocol("/containers/x/attach", listener)
    protocol.data_received(b"HTTP/1.1 101 UPGRADED\r\n\r\n" + bytes([1, 0, 0, 0]) + (20_000_000).to_bytes(4, "big"))
    for _ in range(20_000):
        protocol.data_received(b"x" * 1000)
    assert len(listener.lines) == 20_000_000
    assert time.process_time() - began < 3


async def test_what_follows_a_refusal_is_not_read() -> None:
    listener = Listener()
    protocol = AttachProtocol("/containers/x/attach", listener)
    for _ in range(2):
        protocol.data_received(b"HTTP/1.1 409 Conflict\r\n\r\n" + frames([(1, b"no\n")]))
    with pytest.raises(ConnectionError, match="refused"):
        await protocol.upgraded
    assert listener.lines == b""


async def engine_that_hangs_up(path: Path, answer: bytes) -> asyncio.Server:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()
        await writer.wait_closed()

    return await asyncio.start_unix_server(hang_up, str(path))


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 404 Not Found\r\n\r\n", b"HTTP/1.1 101"], ids=["", "404", "half"])
@pytest.mark.parametrize("is_awaited", [True, False])
async def test_an_attach_that_the_engine_breaks_off_is_told_to_whoever_waits_and_to_nobody_else(
    answer: bytes, is_awaited: bool, tmp_path: Path
) -> None:
    loop = asyncio.get_running_loop()
    accidents: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: accidents.append(context))
    server = await engine_that_hangs_up(tmp_path / "engine.sock", answer)
    receiver = Deaf()
    channel = LineChannel(receiver, ServerLog())
    _, protocol = await loop.create_unix_connection(
        lambda: AttachProtocol("/containers/x/attach", channel), str(tmp_path / "engine.sock")
    )
    async with asyncio.timeout(DEADLINE_S):
        await channel.ended.wait()
    assert len(receiver.reasons) == 1
    if is_awaited:
        with pytest.raises(ConnectionError):
            await protocol.upgraded
    server.close()
    del protocol
    gc.collect()
    await asyncio.sleep(0)
    loop.set_exception_handler(None)
    assert accidents == []


async def test_an_answer_that_nobody_waits_for_fails_without_a_word(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    accidents: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: accidents.append(context))
    server = await engine_that_hangs_up(tmp_path / "engine.sock", b"")
    origin = HttpOrigin(f"unix://{tmp_path}/engine.sock")
    ignored, awaited = Answer(), Answer()
    for answer in (ignored, awaited):
        origin.request("POST", "/wait", b"", b"", answer)
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(HttpFailure):
            await awaited.content()
        await origin.aclose()
    server.close()
    del ignored, answer
    gc.collect()
    await asyncio.sleep(0)
    loop.set_exception_handler(None)
    assert accidents == []
