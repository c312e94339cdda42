"""One connection to a server: which answer belongs to which request, how long to wait, and what a listing may cost."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from msgspec import Raw

from gateway import upstream as module
from gateway.errors import UpstreamCancelled, UpstreamInvalid, UpstreamLost, UpstreamTimeout, UpstreamUnavailable
from gateway.serverlog import ServerLog
from gateway.upstream import PROGRESS, Call, Notice, Reply, Upstream
from gateway.wire import envelope
from tests.servers import LocalRuntime, entry, until

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def connected(
    *command: str, call_timeout_s: float = 20.0, told: Callable[..., None] = lambda *_: None
) -> AsyncIterator[Upstream]:
    """A handshaken connection to one of the test servers; `told` hears of what belongs to no call."""
    runtime, log = LocalRuntime(), ServerLog()
    upstream = Upstream("a", log, call_timeout_s=call_timeout_s, on_notification=told)
    channel = await runtime.start(entry("a", *command), upstream, log)
    try:
        await upstream.open(channel)
        yield upstream
    finally:
        await channel.close()
    await until(lambda: not runtime.processes(), "the server is gone")


async def begin(upstream: Upstream, tool: str, arguments: Any = None, token: Any = None) -> Call:
    members = {"name": envelope.raw(tool), "arguments": envelope.raw(arguments or {})}
    if token is not None:
        members["_meta"] = envelope.raw({"progressToken": token})
    return await upstream.start("tools/call", members)


async def text(call: Call) -> str:
    while not isinstance(item := await call.next(), Reply):
        pass
    assert item.result is not None
    return str(json.loads(item.result)["content"][0]["text"])


async def notes(upstream: Upstream, method: str) -> list[Any]:
    told = json.loads(await text(await begin(upstream, "notes")))
    return [note["params"] for note in told if note["method"] == method]


async def test_answers_find_their_requests_in_whatever_order_they_come() -> None:
    async with connected() as upstream:
        held = {key: await begin(upstream, "hold", {"key": key}) for key in "abcdefgh"}
        for key in "hcadbgef":
            await begin(upstream, "release", {"key": key})
            assert await text(held[key]) == key
        await until(lambda: upstream.in_flight == 0, "every answer has come")


async def test_an_answer_is_given_once_and_to_one() -> None:
    async with connected("hostile", "answers_twice") as upstream:
        first, second = await begin(upstream, "poke"), await begin(upstream, "poke")
        assert [await text(first), await text(second)] == ["first", "first"]
        waiting = asyncio.ensure_future(first.next())
        await begin(upstream, "poke")
        await asyncio.sleep(0)
        assert not waiting.done()
        waiting.cancel()


async def test_a_late_answer_is_dropped() -> None:
    async with connected() as upstream:
        members = {"name": envelope.raw("hold"), "arguments": envelope.raw({"key": "k"})}
        held = await upstream.start("tools/call", members, timeout_s=0.2)
        with pytest.raises(UpstreamTimeout, match=r"did not answer within 0\.2 s"):
            await held.next()
        assert [told["requestId"] for told in await notes(upstream, "notifications/cancelled")] == [held.id]
        assert await text(await begin(upstream, "release", {"key": "k"})) == "released"
        assert await text(await begin(upstream, "echo")) == "{}"
        assert upstream.in_flight == 0


async def test_each_call_ends_at_its_own_time_in_whatever_order_they_began() -> None:
    async with connected() as upstream:
        calls = {}
        for key, timeout_s in (("slow", 60.0), ("middle", 0.4), ("fast", 0.1), ("paused", 0.2), ("streamed", None)):
            members = {"name": envelope.raw("hold"), "arguments": envelope.raw({"key": key})}
            calls[key] = await upstream.start("tools/call", members, timeout_s=timeout_s, endless=timeout_s is None)
        upstream.pause_timer(calls["paused"])
        for key in ("middle", "fast"):
            with pytest.raises(UpstreamTimeout):
                await calls[key].next()
        assert upstream.in_flight == 3
        # Time counts from when it goes on; the timer for all calls waits for another one by now.
        upstream.resume_timer(calls["paused"])
        with pytest.raises(UpstreamTimeout):
            await calls["paused"].next()
        for key in ("slow", "streamed"):
            await begin(upstream, "release", {"key": key})
            assert await text(calls[key]) == key


async def test_an_answer_that_comes_while_its_reader_is_interrupted_is_not_lost() -> None:
    call = Call(1, None, None)
    notice, reply = Notice(PROGRESS, b"{}"), Reply(b"{}", None)
    reader = asyncio.ensure_future(call.next())
    await asyncio.sleep(0)
    call.push(notice)
    call.push(reply)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert [await call.next(), await call.next()] == [notice, reply]


async def test_progress_gives_a_call_more_time_and_silence_does_not() -> None:
    async with connected(call_timeout_s=1.5) as upstream:
        told = await begin(upstream, "steps", {"n": 15, "ms": 200}, token="t")
        untold = await begin(upstream, "steps", {"n": 15, "ms": 200})
        assert await text(told) == "done"
        with pytest.raises(UpstreamTimeout):
            await text(untold)


async def test_progress_does_not_give_a_call_all_the_time_in_the_world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CALL_FACTOR", 2)
    async with connected(call_timeout_s=0.5) as upstream:
        call = await begin(upstream, "steps", {"n": 1000, "ms": 50}, token="t")
        with pytest.raises(UpstreamTimeout):
            await text(call)


@pytest.mark.parametrize("token", ["mine", 7, "7", 0, "", "é", 10**30, 1.5])
async def test_progress_carries_the_callers_own_token(token: Any) -> None:
    async with connected() as upstream:
        call = await begin(upstream, "progress", {"n": 2}, token=token)
        for number in (1, 2):
            notice = await call.next()
            assert isinstance(notice, Notice)
            assert notice.method == PROGRESS
            assert json.loads(notice.params) == {"progressToken": token, "progress": number, "total": 2}
        assert await text(call) == "done"


async def test_progress_that_nobody_asked_for_is_not_told() -> None:
    async with connected() as upstream:
        assert isinstance(await (await begin(upstream, "progress", {"n": 3})).next(), Reply)


async def test_a_caller_that_does_not_read_keeps_the_newest_progress_and_the_answer() -> None:
    async with connected() as upstream:
        call = await begin(upstream, "progress", {"n": 3000}, token="t")
        await until(lambda: upstream.in_flight == 0, "the answer has come")
        items = []
        while not isinstance(item := await call.next(), Reply):
            items.append(item)
        assert len(items) <= module.MAX_UNREAD_NOTICES
        assert json.loads(items[-1].params)["progress"] == 3000  # type: ignore[union-attr]


async def test_what_comes_on_the_stream_for_changes_belongs_to_no_call() -> None:
    told: list[str] = []
    async with connected(told=lambda upstream, method, params: told.append(method)) as upstream:
        call, stream = await begin(upstream, "hold", {"key": "call"}), await begin(upstream, "hold", {"key": "stream"})
        upstream.listening = stream.id
        for id in (call.id, stream.id):
            upstream.received(b'{"jsonrpc":"2.0","method":"sheets/changed","params":{}}', id)
        assert told == ["sheets/changed"]
        assert await call.next() == Notice("sheets/changed", b"{}")


async def test_a_withdrawn_call_is_told_to_the_server_once_and_ends_for_whoever_waits() -> None:
    async with connected() as upstream:
        held = await begin(upstream, "hold", {"key": "k"})
        waiting = asyncio.ensure_future(held.next())
        await asyncio.sleep(0)
        upstream.cancel(held, "enough")
        upstream.cancel(held, "enough")
        with pytest.raises(UpstreamCancelled):
            await waiting
        assert await notes(upstream, "notifications/cancelled") == [{"requestId": held.id, "reason": "enough"}]


async def test_a_call_that_is_over_cannot_be_withdrawn() -> None:
    async with connected() as upstream:
        call = await begin(upstream, "echo")
        await text(call)
        upstream.cancel(call, "too late")
        assert await notes(upstream, "notifications/cancelled") == []


async def test_a_lost_connection_ends_every_call_and_takes_no_more() -> None:
    async with connected() as upstream:
        held = [await begin(upstream, "hold", {"key": str(number)}) for number in range(5)]
        await begin(upstream, "crash")
        for call in held:
            with pytest.raises(UpstreamLost, match="exit code 3"):
                await call.next()
        with pytest.raises(UpstreamUnavailable, match="exit code 3"):
            await begin(upstream, "echo")


async def test_a_listing_is_read_to_its_end_through_empty_and_repeated_cursors() -> None:
    async with connected("friendly", '{"page": 1, "extra": 30}') as upstream:
        paged = [envelope.value(item)["name"] for item in await upstream.list_all("tools/list", "tools")]
    async with connected("friendly", '{"extra": 30}') as upstream:
        assert [envelope.value(item)["name"] for item in await upstream.list_all("tools/list", "tools")] == paged
        assert len(paged) == len(set(paged)) > 30


async def test_items_of_a_listing_stay_as_they_were_spelled() -> None:
    odd = {"name": "odd", "inputSchema": {"type": "object", "x": [1.5, None]}, "x-vendor": {"é": "\u2028"}}
    options = json.dumps({"lists": {"tools/list": [odd]}})
    async with connected("friendly", options) as upstream:
        (item,) = await upstream.list_all("tools/list", "tools")
        assert bytes(item) == json.dumps(odd).encode()


@pytest.mark.parametrize(
    ("behaviour", "text"),
    [("endless_pages", "more than 1000 pages"), ("too_many_items", "more than 10000 items"), ("bad_list", "an array")],
)
async def test_a_listing_without_end_or_sense_is_refused(behaviour: str, text: str) -> None:
    async with connected("hostile", behaviour) as upstream:
        with pytest.raises(UpstreamInvalid, match=text):
            await upstream.list_all("tools/list", "tools")


async def test_the_servers_facts_are_its_own_json() -> None:
    capabilities = {"tools": {"listChanged": True}, "experimental": {"x": {"y": 1.5}}}
    options = json.dumps({"capabilities": capabilities, "revision": "2024-11-05", "instructions": "Be kind."})
    async with connected("friendly", options) as upstream:
        facts = upstream.facts
        assert facts is not None
        assert (facts.revision, facts.instructions) == ("2024-11-05", "Be kind.")
        assert facts.offers("tools")
        assert not facts.offers("prompts")
        assert facts.capabilities["experimental"] == Raw(json.dumps(capabilities["experimental"]).encode())


@pytest.mark.sec("SEC-014")
async def test_answers_to_nothing_are_dropped_and_counted() -> None:
    async with connected("hostile", "answers_twice") as upstream:
        for number in range(1, 4):
            assert await text(await begin(upstream, "poke")) == "first"
            await until(lambda number=number: upstream.n_dropped == number, "the second answer has come")
        noted = [line.text for line in upstream.log.lines() if "request that is not open" in line.text]
        assert len(noted) == 1


@pytest.mark.sec("SEC-020")
async def test_what_a_caller_does_not_read_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_UNREAD_BYTES", 100_000)
    async with connected("hostile", "floods_progress", "2000") as upstream:
        call = await begin(upstream, "poke", token="t")
        await until(lambda: upstream.in_flight == 0, "the answer has come")
        sizes = []
        while not isinstance(item := await call.next(), Reply):
            sizes.append(len(item.params))
        assert 50 < len(sizes) < 100
        assert sum(sizes) <= 100_000


@pytest.mark.sec("SEC-020")
async def test_questions_nobody_reads_are_bounded_in_number_and_the_rest_declined() -> None:
    call = Call(1, None, None)
    for number in range(module.MAX_UNREAD_QUESTIONS):
        assert call.has_room_for_a_question()
        call.push(module.Question(b"%d" % number, "sampling/createMessage", b""))
    assert not call.has_room_for_a_question()
    for _ in range(2 * module.MAX_UNREAD_NOTICES):
        call.push(Notice(PROGRESS, b"{}"))
    for number in range(module.MAX_UNREAD_QUESTIONS):
        question = await call.next()
        assert question == module.Question(b"%d" % number, "sampling/createMessage", b"")
