"""The attach stream against an engine that breaks it off: nothing is left that nobody waits for."""

import asyncio
import gc
from pathlib import Path
from typing import Any

import pytest

from gateway.runtimes.attach import AttachProtocol
from gateway.serverlog import ServerLog
from gateway.wire.http_client import Answer, HttpFailure, HttpOrigin
from gateway.wire.lines import LineChannel
from tests.servers import DEADLINE_S

pytestmark = pytest.mark.anyio


class Deaf:
    """A receiver that is told of the end only."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def received(self, message: bytes, id: int | None = None) -> None:
        raise AssertionError(message)

    def failed(self, id: int, error: Exception) -> None:
        raise AssertionError(error)

    def waits_for(self, id: int) -> bool:
        return False

    def lost(self, reason: str) -> None:
        self.reasons.append(reason)


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
