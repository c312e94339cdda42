"""The pool: servers start once, stay warm, stop when idle, come back after a crash, and never outlive it."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from msgspec import Raw

from catalog import Entry
from gateway.errors import UpstreamError, UpstreamLost, UpstreamUnavailable
from gateway.listings import ListingStore
from gateway.pool import Bounds, Lease, Pool
from gateway.upstream import Upstream
from gateway.wire import envelope
from tests.servers import DEADLINE_S, LocalRuntime, entry, until

pytestmark = pytest.mark.anyio


class Heard:
    """What the pool tells: changed lists by server, and notifications."""

    def __init__(self) -> None:
        self.changed: list[tuple[str, set[str]]] = []
        self.notified: list[tuple[str, str, bytes]] = []
        self.started: list[str] = []
        self.something = asyncio.Event()

    def listing_changed(self, server: str, lists: Collection[str]) -> None:
        self.changed.append((server, set(lists)))
        self.something.set()

    def server_started(self, server: str, upstream: Upstream) -> None:
        self.started.append(server)

    def server_notified(self, upstream: Upstream, method: str, params: bytes) -> None:
        self.notified.append((upstream.server, method, params))
        self.something.set()


class Bench:
    """A pool with what it works with."""

    def __init__(self, pool: Pool, runtime: LocalRuntime, heard: Heard) -> None:
        self.pool = pool
        self.runtime = runtime
        self.heard = heard

    async def call(self, tool: str, arguments: Any = None, id: str = "a") -> str:
        upstream = await self.pool.connection(id)
        members = {"name": envelope.raw(tool), "arguments": envelope.raw(arguments or {})}
        return str(json.loads(await upstream.request("tools/call", members))["content"][0]["text"])

    def log(self, id: str = "a") -> str:
        return "\n".join(line.text for line in self.pool.servers[id].log.lines())


@asynccontextmanager
async def bench(
    folder: Path, *entries: Entry, bounds: Bounds | None = None, runtime: LocalRuntime | None = None
) -> AsyncIterator[Bench]:
    runtime, heard = runtime or LocalRuntime(), Heard()
    async with anyio.create_task_group() as tasks:
        store = ListingStore(folder / "listings")
        pool = Pool(entries, lambda _: runtime, store, tasks, heard, bounds or Bounds())
        yield Bench(pool, runtime, heard)
        tasks.cancel_scope.cancel()
    await until(lambda: not runtime.processes(), "no process is left")


async def refused(pool: Pool, id: str = "a") -> str:
    with pytest.raises(UpstreamUnavailable) as caught:
        await pool.connection(id)
    return str(caught.value)


# -- starting ------------------------------------------------------------------------------------


async def test_nothing_is_started_until_it_is_needed(tmp_path: Path) -> None:
    async with bench(tmp_path, entry("a"), entry("b")) as it:
        assert it.pool.listing("a") is None
        assert [server.state for server in it.pool.servers.values()] == ["idle", "idle"]
        await it.call("echo")
        assert it.runtime.starts == ["a"]
        assert it.pool.servers["a"].state == "running"


async def test_a_server_inherits_no_file_of_the_gateways(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.touch()
    fd = os.open(secret, os.O_RDONLY)
    try:
        os.set_inheritable(fd, True)  # as a file is that whoever started the gateway handed to it
        async with bench(tmp_path, entry("a")) as it:
            pid = await it.call("pid")
            opened = {os.readlink(one) for one in Path(f"/proc/{pid}/fd").iterdir()}
            assert str(secret) not in opened
            assert all(one.startswith(("socket:", "pipe:", "/dev/null")) for one in opened)
            assert sorted(os.listdir(f"/proc/{pid}/fd")) == ["0", "1", "2"]
    finally:
        os.close(fd)


async def test_fifty_callers_at_once_share_one_start(tmp_path: Path) -> None:
    async with bench(tmp_path, entry("a")) as it:
        upstreams = await asyncio.gather(*(it.pool.connection("a") for _ in range(50)))
        assert it.runtime.starts == ["a"]
        assert len(set(map(id, upstreams))) == 1
        assert len(it.runtime.processes()) == 1


async def test_fifty_callers_at_once_share_one_failure(tmp_path: Path) -> None:
    async with bench(tmp_path, entry("a", "hostile", "exits_at_once")) as it:
        outcomes = await asyncio.gather(*(it.pool.connection("a") for _ in range(50)), return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {UpstreamUnavailable}
        assert len({str(outcome) for outcome in outcomes}) == 1


async def test_a_caller_that_goes_away_does_not_take_the_start_from_the_others(tmp_path: Path) -> None:
    async with bench(tmp_path, entry("a")) as it:
        hasty = asyncio.create_task(it.pool.connection("a"))
        patient = asyncio.create_task(it.pool.connection("a"))
        await until(lambda: it.runtime.starts, "the start has begun")
        hasty.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hasty
        assert (await patient).facts is not None
        assert it.runtime.starts == ["a"]


async def test_a_server_that_hangs_in_its_handshake_meets_the_start_timeout(tmp_path: Path) -> None:
    async with bench(tmp_path, entry("a", "hostile", "hangs_silently", start_timeout_s=0.5)) as it:
        text = await refused(it.pool)
        assert "did not finish its handshake within 0.5 s" in text
        assert not it.runtime.processes()


async def test_failed_starts_are_tried_again_after_growing_pauses(tmp_path: Path) -> None:
    async with bench(tmp_path, entry("a", "hostile", "exits_at_once")) as it:
        assert "exit code 7" in await refused(it.pool)
        first = len(it.runtime.starts)
        text = await refused(it.pool)
        assert "exit code 7" in text
        assert "next attempt in 1 s" in text
        assert len(it.runtime.starts) == first
        while "next attempt" in await refused(it.pool):
            await anyio.sleep(0.05)
        assert len(it.runtime.starts) > first
        assert "next attempt in 2 s" in await refused(it.pool)


async def test_one_server_that_cannot_start_does_not_keep_another_from_starting(tmp_path: Path) -> None:
    hangs = entry("bad", "hostile", "hangs_silently", start_timeout_s=2.0)
    async with bench(tmp_path, entry("a"), hangs) as it:
        stuck = asyncio.create_task(it.pool.connection("bad"))
        assert await it.call("echo") == "{}"
        assert not stuck.done()
        with pytest.raises(UpstreamUnavailable):
            await stuck


# -- ending --------------------------------------------------------------------------------------


async def test_an_idle_server_is_stopped_and_starts_again_at_its_next_call(tmp_path: Path) -> None:
    async with bench(tmp_path, entry("a", idle_s=0.2)) as it:
        first = await it.call("pid")
        await until(lambda: it.pool.servers["a"].state == "idle" and not it.runtime.processes(), "it is stopped")
        assert "stopped after 0.2 s without a call" in it.log()
        assert await it.call("pid") != first


async def test_a_server_with_a_call_in_flight_is_not_idle(tmp_path: Path) -> None:
    async with bench(tmp_path, entry("a", idle_s=0.2)) as it:
        assert await it.call("delay", {"ms": 1500, "mark": "late"}) == "late"
        assert it.runtime.starts == ["a"]


async def test_a_crash_ends_the_calls_in_flight_and_the_next_call_starts_anew(tmp_path: Path) -> None:
    async with bench(tmp_path, entry("a")) as it:
        upstream = await it.pool.connection("a")
        held = [asyncio.create_task(it.call("hold", {"key": str(number)})) for number in range(10)]
        await until(lambda: upstream.in_flight == 10, "all are on their way")
        with pytest.raises(UpstreamLost, match="exit code 3"):
            await it.call("crash")
        outcomes = await asyncio.gather(*held, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {UpstreamLost}
        assert all("a retry may repeat" in outcome.retry for outcome in outcomes if isinstance(outcome, UpstreamError))
        deadline = anyio.current_time() + DEADLINE_S
        while anyio.current_time() < deadline:
            # It died right after its start: one pause, in which a retry is safe.
            try:
                assert await it.call("echo") == "{}"
                break
            except UpstreamUnavailable:
                await anyio.sleep(0.05)
        assert it.runtime.starts == ["a", "a"]
        assert it.pool.servers["a"].error == ""


async def test_the_last_answer_of_a_server_that_ends_is_delivered(tmp_path: Path) -> None:
    entries = [entry(f"s{number}") for number in range(10)]
    async with bench(tmp_path, *entries) as it:
        for one in entries:
            assert await it.call("die_after_answer", id=one.id) == "last words"


async def test_stop_tells_the_calls_in_flight_and_the_next_call_starts_anew(tmp_path: Path) -> None:
    async with bench(tmp_path, entry("a")) as it:
        held = asyncio.create_task(it.call("hold", {"key": "k"}))
        upstream = await it.pool.connection("a")
        await until(lambda: upstream.in_flight, "the call is on its way")
        it.pool.stop("a")
        # A call made right now must meet the next server, not the one that is going.
        following = asyncio.create_task(it.call("pid"))
        with pytest.raises(UpstreamLost):
            await held
        assert int(await following) in it.runtime.processes()
        assert it.runtime.starts == ["a", "a"]
        await until(lambda: len(it.runtime.processes()) == 1, "the first is gone")


async def test_stopping_what_does_not_run_does_nothing(tmp_path: Path) -> None:
    async with bench(tmp_path, entry("a")) as it:
        it.pool.stop("a")
        assert await it.call("echo") == "{}"


@pytest.mark.parametrize("moment", ["before", "starting", "hanging", "running", "calling", "stopping"])
async def test_cancelling_the_pool_leaves_no_process_whenever_it_comes(tmp_path: Path, moment: str) -> None:
    command = ("hostile", "hangs_silently") if moment == "hanging" else ("friendly",)
    async with bench(tmp_path, entry("a", *command)) as it:
        connecting = asyncio.create_task(it.pool.connection("a"))
        waiting = [connecting]
        await asyncio.sleep(0)  # it has asked, and no more
        if moment == "starting":
            await until(lambda: it.runtime.starts, "the start has begun")
        elif moment == "hanging":
            await until(it.runtime.processes, "it runs")
        elif moment != "before":
            upstream = await connecting
        if moment == "calling":
            waiting.append(asyncio.create_task(it.call("hold", {"key": "k"})))  # type: ignore[arg-type]
            await until(lambda: upstream.in_flight, "the call is on its way")
        elif moment == "stopping":
            it.pool.stop("a")
            await asyncio.sleep(0)
    # Leaving the bench checks /proc. Nobody who waited is left waiting.
    with anyio.fail_after(DEADLINE_S):
        await asyncio.gather(*waiting, return_exceptions=True)


# -- listings ------------------------------------------------------------------------------------


async def test_a_known_listing_needs_no_server(tmp_path: Path) -> None:
    async with bench(tmp_path, entry("a")) as it:
        names = [item.key for item in (await it.pool.learn("a")).tools]
    async with bench(tmp_path, entry("a")) as it:
        listing = it.pool.listing("a")
        assert listing is not None
        assert [item.key for item in listing.tools] == names
        assert [item.key for item in (await it.pool.learn("a")).tools] == names
        assert it.runtime.starts == []


async def test_a_listing_of_another_version_of_the_entry_is_not_believed(tmp_path: Path) -> None:
    async with bench(tmp_path, entry("a")) as it:
        await it.pool.learn("a")
    async with bench(tmp_path, entry("a", "friendly", '{"extra": 1}')) as it:
        assert it.pool.listing("a") is None


@pytest.mark.parametrize("damage", [b"", b"{", b"null", b'{"digest":5}', b"\xff" * 10])
async def test_a_damaged_listing_is_asked_for_again(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "listings").mkdir()
    (tmp_path / "listings" / "a.json").write_bytes(damage)
    async with bench(tmp_path, entry("a")) as it:
        assert it.pool.listing("a") is None
        assert (await it.pool.learn("a")).tools


async def test_a_listing_that_cannot_be_saved_is_used_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "listings").write_text("a file where the folder should be")
    async with bench(tmp_path, entry("a")) as it:
        assert (await it.pool.learn("a")).tools
        await it.call("change", {"add": "more"})
        await until(lambda: len(it.heard.changed) == 2, "the change was taken")
        assert "could not be saved" in it.log()
        assert await it.call("echo") == "{}"


async def test_an_announced_change_is_listed_again_and_told(tmp_path: Path) -> None:
    async with bench(tmp_path, entry("a")) as it:
        await it.pool.learn("a")
        assert it.heard.changed == [("a", {"tools", "prompts", "resources"})]
        generation = it.pool.generation
        await it.call("change", {"add": "brand_new"})
        await until(lambda: len(it.heard.changed) == 2, "the change is told")
        listing = it.pool.listing("a")
        assert listing is not None
        assert "brand_new" in [item.key for item in listing.tools]
        assert it.heard.changed[1] == ("a", {"tools"})
        assert it.pool.generation > generation


async def test_an_announced_change_is_told_even_if_the_list_is_the_same(tmp_path: Path) -> None:
    async with bench(tmp_path, entry("a")) as it:
        await it.pool.learn("a")
        generation = it.pool.generation
        await it.call("change", {"lists": ["prompts"]})
        await until(lambda: len(it.heard.changed) == 2, "the change is told")
        assert it.heard.changed[1] == ("a", {"prompts"})
        assert it.pool.generation == generation


async def test_a_flood_of_announcements_costs_few_listings(tmp_path: Path) -> None:
    async with bench(tmp_path, entry("a")) as it:
        await it.call("change", {"lists": ["tools", "prompts", "resources"] * 300})
        await until(lambda: len(it.heard.changed) >= 2, "the change is told")
        assert it.heard.changed[1] == ("a", {"tools", "prompts", "resources"})
        await it.call("echo")
        assert len(it.heard.changed) <= 4


async def test_other_notifications_are_passed_on(tmp_path: Path) -> None:
    async with bench(tmp_path, entry("a")) as it:
        await it.call("log", {"level": "warning", "text": "careful"})
        (server, method, params), *more = it.heard.notified
        assert (server, method, more) == ("a", "notifications/message", [])
        assert json.loads(params) == {"level": "warning", "data": "careful"}


async def test_the_log_level_reaches_running_servers_and_those_started_later(tmp_path: Path) -> None:
    async with bench(tmp_path, entry("a"), entry("b")) as it:
        await it.call("echo")
        it.pool.set_log_level("debug")
        await it.call("echo", id="b")
        for id in ("a", "b"):
            while await it.call("levels", id=id) != '["debug"]':
                await asyncio.sleep(0)


# -- leases --------------------------------------------------------------------------------------


def lease(owner: str, *, exclusive: bool = False) -> Lease:
    return Lease(owner, Raw(b'{"sampling":{}}'), exclusive)


async def test_a_lease_is_a_process_of_its_own_that_ends_when_it_is_released(tmp_path: Path) -> None:
    async with bench(tmp_path, entry("a")) as it:
        shared = await it.pool.connection("a")
        mine, again, theirs = [await it.pool.connection("a", lease(owner)) for owner in ("me", "me", "them")]
        assert mine is again
        assert len({shared, mine, theirs}) == 3
        assert len(it.runtime.processes()) == 3
        it.pool.release("me")
        await until(lambda: len(it.runtime.processes()) == 2 and mine.ended.is_set(), "mine is gone")
        assert not theirs.ended.is_set()


async def test_an_exclusive_lease_serves_one_call_at_a_time(tmp_path: Path) -> None:
    async with bench(tmp_path, entry("a")) as it:
        one, two = [await it.pool.connection("a", lease("me", exclusive=True)) for _ in range(2)]
        assert one is not two
        it.pool.free(one)
        assert await it.pool.connection("a", lease("me", exclusive=True)) is one


async def test_callers_that_were_refused_leave_room_for_others(tmp_path: Path) -> None:
    async with bench(tmp_path, entry("a", "hostile", "exits_at_once")) as it:
        for number in range(40):
            with pytest.raises(UpstreamUnavailable) as caught:
                await it.pool.connection("a", lease(f"caller {number}", exclusive=bool(number % 2)))
            assert "exit code 7" in str(caught.value)
        await until(lambda: not it.pool.servers["a"].connections, "nothing is kept for them")


async def test_more_leases_than_there_is_room_for_are_refused(tmp_path: Path) -> None:
    async with bench(tmp_path, entry("a")) as it:
        outcomes = await asyncio.gather(
            *(it.pool.connection("a", lease(str(number))) for number in range(20)), return_exceptions=True
        )
        assert sum(isinstance(outcome, UpstreamUnavailable) for outcome in outcomes) == 20 - len(it.runtime.starts)
        assert len(it.runtime.starts) in (16, 17)
        it.pool.release("0")
        await until(lambda: "0" not in {key[0] for key in it.pool.servers["a"].connections}, "there is room again")
        assert await it.pool.connection("a", lease("late"))
