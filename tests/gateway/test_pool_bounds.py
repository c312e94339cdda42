"""The pool at its limits: places and their queue, rests after failures, sick servers, replaced entries, the end."""

import asyncio
import os
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from catalog import Entry
from gateway.admission import Places
from gateway.breaker import Breaker
from gateway.connections import SHARED, Credential, Key
from gateway.errors import AtCapacity, UpstreamLost, UpstreamTimeout, UpstreamUnavailable
from gateway.pool import Bounds, Lease
from gateway.serverlog import ServerLog
from gateway.wire.channel import Channel, Receiver
from tests.gateway.test_pool import bench, refused
from tests.servers import DEADLINE_S, LocalRuntime, entry, until

pytestmark = pytest.mark.anyio

PATIENT = Bounds(servers=1, queue_s=DEADLINE_S)
HASTY = Bounds(servers=1, queue_s=0.3)


def limited(id: str, instances: int, *command: str) -> Entry:
    one = entry(id, *command)
    return one.model_copy(update={"limits": one.limits.model_copy(update={"instances": instances})})


def lease(owner: str, *, exclusive: bool = False) -> Lease:
    return Lease(owner, Raw(b"{}"), exclusive)


class CountingRuntime(LocalRuntime):
    """Notes the most processes that ever ran at once."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0

    async def start(self, entry: Entry, receiver: Receiver, log: ServerLog, owner: str = "") -> Channel:
        channel = await super().start(entry, receiver, log, owner)
        self.most = max(self.most, len(self.processes()))
        return channel


# -- places --------------------------------------------------------------------------------------


@given(st.integers(1, 5), st.lists(st.sampled_from(["come", "go", "give up"]), max_size=60))
def test_places_are_never_overbooked_lost_or_given_out_of_turn(total: int, steps: list[str]) -> None:
    async def play() -> None:
        places = Places(total, DEADLINE_S, lambda _: None)
        inside: list[asyncio.Event] = []
        entered: list[int] = []
        waiting: list[tuple[int, asyncio.Task[None]]] = []

        async def visit(number: int) -> None:
            async with places.place("x"):
                entered.append(number)
                leave = asyncio.Event()
                inside.append(leave)
                await leave.wait()
                inside.remove(leave)

        tasks = []
        for number, step in enumerate(steps):
            if step == "come":
                tasks.append(asyncio.create_task(visit(number)))
                waiting.append((number, tasks[-1]))
            elif step == "go" and inside:
                inside[0].set()
            elif step == "give up" and waiting:
                waiting[-1][1].cancel()
            for _ in range(6):  # as many turns of the loop as a hand-over takes
                await asyncio.sleep(0)
            waiting = [(one, task) for one, task in waiting if one not in entered and not task.done()]
            assert len(inside) <= total
            assert not waiting or len(inside) == total
            assert places.waiting == len(waiting)
        assert entered == sorted(entered)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert not places.is_full
        assert not places.waiting

    asyncio.run(play())


async def test_an_idle_server_makes_room_for_one_that_is_called(tmp_path: Path) -> None:
    async with bench(tmp_path, entry("a"), entry("b"), bounds=PATIENT) as it:
        await it.call("echo")
        assert await it.call("echo", id="b") == "{}"
        assert "stopped while idle, to make room for server b" in it.log()
        assert await it.call("echo") == "{}"
        assert it.runtime.starts == ["a", "b", "a"]
        assert len(it.runtime.processes()) == 1


async def test_the_server_unused_for_longest_makes_room(tmp_path: Path) -> None:
    entries = [entry(id) for id in ("a", "b", "c")]
    async with bench(tmp_path, *entries, bounds=PATIENT._replace(servers=2)) as it:
        for id in ("a", "b", "a", "c"):
            await it.call("echo", id=id)
        await until(lambda: it.pool.servers["b"].state == "idle", "b went")
        assert it.pool.servers["a"].state == it.pool.servers["c"].state == "running"


async def test_a_busy_server_is_not_stopped_for_another_which_is_refused_and_not_blamed(tmp_path: Path) -> None:
    async with bench(tmp_path, entry("a"), entry("b"), bounds=HASTY) as it:
        held = asyncio.create_task(it.call("hold", {"key": "k"}))
        upstream = await it.pool.connection("a")
        await until(lambda: upstream.in_flight, "the call is on its way")
        with pytest.raises(AtCapacity, match=r"as many as may at once.*within 0.3 s; try again later") as caught:
            await it.call("echo", id="b")
        assert caught.value.retry == "The request was not sent: a retry is safe."
        assert it.pool.servers["b"].failures == 0
        assert it.pool.servers["b"].state == "idle"
        await it.call("release", {"key": "k"})
        await held
        assert await it.call("echo", id="b") == "{}"


async def test_a_call_waits_briefly_for_a_server_that_is_still_busy(tmp_path: Path) -> None:
    async with bench(tmp_path, entry("a"), entry("b"), bounds=PATIENT) as it:
        held = asyncio.create_task(it.call("hold", {"key": "k"}))
        upstream = await it.pool.connection("a")
        await until(lambda: upstream.in_flight, "the call is on its way")
        waiting = asyncio.create_task(it.call("echo", id="b"))
        await it.call("release", {"key": "k"})
        await held
        assert await waiting == "{}"


async def test_sixty_four_callers_of_twelve_servers_never_run_more_than_four(tmp_path: Path) -> None:
    runtime = CountingRuntime()
    entries = [entry(f"s{number}") for number in range(12)]
    async with bench(tmp_path, *entries, bounds=Bounds(servers=4, queue_s=4 * DEADLINE_S), runtime=runtime) as it:
        answers = await asyncio.gather(*(it.call("echo", {"n": n}, id=f"s{n % 12}") for n in range(64)))
        assert len(answers) == 64
        assert runtime.most == 4


async def test_sixty_four_callers_that_share_nothing_never_run_more_than_the_entry_allows(tmp_path: Path) -> None:
    runtime = CountingRuntime()
    bounds = Bounds(queue_s=4 * DEADLINE_S)
    async with bench(tmp_path, limited("a", 3), bounds=bounds, runtime=runtime) as it:

        async def one_call(number: int) -> None:
            upstream = await it.pool.connection("a", lease(f"caller {number}", exclusive=True))
            await upstream.request("ping")
            it.pool.free(upstream)
            it.pool.release(f"caller {number}")

        await asyncio.gather(*(one_call(number) for number in range(64)))
        assert runtime.most == 3


async def test_a_caller_that_finds_all_instances_taken_is_refused_after_a_while(tmp_path: Path) -> None:
    async with bench(tmp_path, limited("a", 2), bounds=Bounds(queue_s=0.3)) as it:
        one = await it.pool.connection("a", lease("one", exclusive=True))
        await it.pool.connection("a", lease("two"))
        with pytest.raises(AtCapacity, match=r"already runs 2 times, as often as its limits.instances allows"):
            await it.pool.connection("a", lease("one", exclusive=True))
        waiting = asyncio.create_task(it.pool.connection("a", lease("one", exclusive=True)))
        await asyncio.sleep(0)
        it.pool.free(one)
        assert await waiting is one


async def test_callers_share_by_credential(tmp_path: Path) -> None:
    async with bench(tmp_path, entry("a")) as it:
        mine, again, theirs = [
            await it.pool.connection("a", credential=Credential(who)) for who in ("me", "me", "them")
        ]
        assert mine is again
        assert theirs is not mine
        assert len(it.runtime.processes()) == 2


# -- failures ------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from(["fail", "started", "prove"]), max_size=20))
def test_a_breaker_rests_longer_after_each_failure_and_never_beyond_its_bound(steps: list[str]) -> None:
    breaker, now, failures = Breaker(), 100.0, 0
    for step in steps:
        getattr(breaker, step)(*([now] if step == "fail" else []))
        failures = {"fail": failures + 1, "started": failures, "prove": 0}[step]
        assert breaker.failures == failures
        if step == "fail":
            rest = min(2.0 ** (failures - 1), 30.0)
            assert breaker.circuit(now) == "open"
            assert breaker.pause_s(now) == rest
            assert breaker.circuit(now + rest) == "half-open"
        else:
            assert breaker.pause_s(now) == 0 or step == "prove"
            assert breaker.circuit(now) == "closed"


async def test_after_a_rest_one_start_is_tried_and_the_others_wait_for_its_outcome(tmp_path: Path) -> None:
    async with bench(tmp_path, entry("a", "hostile", "exits_at_once")) as it:
        server, loop = it.pool.servers["a"], asyncio.get_running_loop()
        await refused(it.pool)
        assert server.breaker.circuit(loop.time()) == "open"
        await until(lambda: server.breaker.circuit(loop.time()) == "half-open", "it may be tried again")
        before = server.failures
        outcomes = await asyncio.gather(
            *(it.pool.connection("a", lease(str(number))) for number in range(8)), return_exceptions=True
        )
        assert {type(outcome) for outcome in outcomes} == {UpstreamUnavailable}
        assert server.failures == before + 1
        assert sum("next attempt in" in str(outcome) for outcome in outcomes) == 7


async def test_a_caller_that_gives_up_before_the_trial_ends_takes_nothing_from_the_others(tmp_path: Path) -> None:
    async with bench(tmp_path, entry("a", "hostile", "hangs_silently")) as it:
        server, loop = it.pool.servers["a"], asyncio.get_running_loop()
        server.breaker.fail(loop.time() - 60.0)
        trial = asyncio.create_task(it.pool.connection("a", lease("first")))
        await until(lambda: server.connections, "the one start is tried")
        waiting = [asyncio.create_task(it.pool.connection("a")) for _ in range(2)]
        await until(lambda: len(server.connections) == 2, "two wait for its outcome with one connection")
        shared = server.connections[Key(SHARED)]
        waiting[0].cancel()
        await asyncio.wait([waiting[0]])
        assert server.connections.get(Key(SHARED)) is shared
        waiting[1].cancel()
        await asyncio.wait([waiting[1]])
        assert Key(SHARED) not in server.connections
        trial.cancel()
        await asyncio.wait([trial])


async def test_a_server_that_hangs_is_stopped_and_its_other_calls_are_told(tmp_path: Path) -> None:
    hanging = entry("a", call_timeout_s=1.0)
    async with bench(tmp_path, hanging, entry("b"), bounds=Bounds(health_s=1.0)) as it:
        pid = int(await it.call("pid"))
        upstream = await it.pool.connection("a")
        arguments = {"name": Raw(b'"hold"'), "arguments": Raw(b'{"key":"k"}')}
        held = asyncio.create_task(upstream.request("tools/call", arguments, timeout_s=DEADLINE_S * 5))
        await until(lambda: upstream.in_flight, "the long call is on its way")
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(UpstreamTimeout):
            await it.call("echo")
        with pytest.raises(UpstreamLost, match="answered neither a call nor, within 1 s, a ping"):
            await held
        assert "answered neither" in it.pool.servers["a"].error
        assert await it.call("echo", id="b") == "{}"
        await until(lambda: pid not in it.runtime.processes(), "it is gone")


async def test_a_server_that_was_only_slow_goes_on(tmp_path: Path) -> None:
    async with bench(tmp_path, entry("a", call_timeout_s=0.5)) as it:
        pid = await it.call("pid")
        with pytest.raises(UpstreamTimeout):
            await it.call("hold", {"key": "k"})
        upstream = await it.pool.connection("a")
        await until(lambda: not upstream.suspect.is_set() and not upstream.in_flight, "it gave a sign of life")
        assert await it.call("pid") == pid
        assert it.pool.servers["a"].failures == 0


# -- replaced entries, and the end ---------------------------------------------------------------


async def test_a_replaced_entry_finishes_its_calls_while_new_ones_meet_the_new_entry(tmp_path: Path) -> None:
    async with bench(tmp_path, entry("a"), entry("same"), entry("gone")) as it:
        old = await it.pool.connection("a")
        await it.call("echo", id="gone")
        same = await it.pool.connection("same")
        held = asyncio.create_task(it.call("hold", {"key": "k"}))
        await until(lambda: old.in_flight, "the call is on its way")
        before = it.pool.generation
        it.pool.replace([entry("a", "friendly", '{"extra": 2}'), entry("same"), entry("new")])
        assert list(it.pool.servers) == ["a", "same", "new"]
        assert it.pool.generation > before
        assert await it.pool.connection("same") is same
        assert await it.pool.connection("a") is not old
        with pytest.raises(UpstreamUnavailable, match="no longer in the catalog"):
            await it.pool.connection("gone")
        assert it.pool.listing("gone") is None
        assert not held.done()
        await old.request("tools/call", {"name": Raw(b'"release"'), "arguments": Raw(b'{"key":"k"}')})
        await held
        await until(lambda: not it.pool.draining and old.ended.is_set(), "the old servers are gone")
        assert len(it.runtime.processes()) == 2


async def test_a_call_that_outlasts_the_drain_is_told_what_happened(tmp_path: Path) -> None:
    async with bench(tmp_path, entry("a"), bounds=Bounds(drain_s=0.3)) as it:
        held = asyncio.create_task(it.call("hold", {"key": "k"}))
        old = await it.pool.connection("a")
        await until(lambda: old.in_flight, "the call is on its way")
        it.pool.replace([])
        with pytest.raises(UpstreamLost, match="its entry in the catalogue was replaced"):
            await held
        await until(lambda: not it.pool.draining and not it.runtime.processes(), "nothing is left")


async def test_an_entry_replaced_while_its_server_starts_serves_who_waited_for_it(tmp_path: Path) -> None:
    async with bench(tmp_path, entry("a")) as it:
        calling = asyncio.create_task(it.call("echo"))
        await until(lambda: it.runtime.starts, "the start has begun")
        it.pool.replace([entry("a", "friendly", '{"extra": 2}')])
        assert await calling == "{}"
        await until(lambda: not it.pool.draining, "the old server is gone")
        await it.call("echo")
        assert it.runtime.starts == ["a", "a"]


async def test_at_the_end_running_calls_finish_and_nothing_is_started(tmp_path: Path) -> None:
    async with bench(tmp_path, entry("a"), entry("b")) as it:
        held = asyncio.create_task(it.call("hold", {"key": "k"}))
        upstream = await it.pool.connection("a")
        await until(lambda: upstream.in_flight, "the call is on its way")
        ending = asyncio.create_task(it.pool.finish())
        await asyncio.sleep(0)
        with pytest.raises(UpstreamUnavailable, match="the gateway is ending"):
            await it.pool.connection("b")
        await it.call("release", {"key": "k"})
        assert await held
        await ending
