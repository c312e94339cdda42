"""Servers that break the rules, each beside a good one: it fails alone, says why, and leaves nothing behind."""

import asyncio
import json
import time
from pathlib import Path

import anyio
import pytest

from gateway.door import LEARN_TIMEOUT_S
from tests.gateway.callers import DEADLINE_S as CLIENT_DEADLINE_S
from tests.gateway.running import Place, running
from tests.servers import until

pytestmark = pytest.mark.anyio

SAFE = "a retry is safe"
UNSAFE = "a retry may repeat side effects"


def pair(behaviour: str, **limits: float) -> dict[str, object]:
    """A hostile server named bad beside a friendly one named good."""
    package = {"ecosystem": "pypi", "name": "local", "version": "1.0"}
    bad = {"package": package, "command": ["hostile", behaviour], "limits": limits}
    return {"bad": bad, "good": ["friendly"]}


async def good_works(place: Place) -> None:
    session = await place.session()
    assert json.loads(await session.call("good__echo", {"still": "fine"})) == {"still": "fine"}


# -- before it is up -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("exits_at_once", "exit code 7"),
        ("wrong_revision", "speaks MCP revision '1999-01-01'"),
        ("bad_initialize", "answered initialize badly"),
        ("refuses_initialize", "refused initialize: no licence"),
        ("bad_list", "expected an array"),
        ("endless_pages", "more than 1000 pages"),
        ("too_many_items", "lists more than 10000 items"),
        ("hangs_silently", "did not finish its handshake within 1 s"),
    ],
)
async def test_a_server_that_cannot_start_says_why_and_the_others_are_listed(
    tmp_path: Path, behaviour: str, reason: str
) -> None:
    async with running(tmp_path, pair(behaviour, start_timeout_s=1.0 if "hang" in behaviour else 20.0)) as place:
        session = await place.session()
        tools = await session.tools()
        assert "good__echo" in tools
        assert not [tool for tool in tools if tool.startswith("bad")]
        with pytest.raises(Exception, match="failed to start") as caught:
            await place.gateway.pool.connection("bad")
        assert reason in str(caught.value)
        assert "lockgate server logs bad" in str(caught.value)
        await good_works(place)
        assert place.gateway.pool.servers["bad"].state == "failed"


async def test_what_a_server_wrote_before_it_died_is_in_its_log(tmp_path: Path) -> None:
    async with running(tmp_path, pair("exits_at_once")) as place:
        await (await place.session()).tools()
        assert "cannot open /data/memory.json" in place.log("bad")


async def test_a_server_that_hangs_does_not_hold_up_the_list_for_longer_than_its_start_timeout(tmp_path: Path) -> None:
    async with running(tmp_path, pair("hangs_silently", start_timeout_s=0.5)) as place:
        session = await place.session()
        # Without the start timeout a listing waits for longer than this client does.
        assert LEARN_TIMEOUT_S > CLIENT_DEADLINE_S
        assert "good__echo" in await session.tools()


# -- what it prints ------------------------------------------------------------------------------


async def test_noise_on_stdout_is_logged_and_otherwise_ignored(tmp_path: Path) -> None:
    async with running(tmp_path, pair("makes_noise")) as place:
        session = await place.session()
        assert await session.call("bad__poke") == "poked"
        assert "Welcome to my server!" in place.log("bad")
        assert "\\x1b[31mred\\x1b[0m" in place.log("bad")
        await good_works(place)


async def test_bad_items_cost_themselves_only(tmp_path: Path) -> None:
    async with running(tmp_path, pair("bad_items")) as place:
        session = await place.session()
        assert [tool for tool in await session.tools() if tool.startswith("bad")] == ["bad__poke"]
        assert await session.call("bad__poke") == "poked"
        assert sum("dropped" in line for line in place.log("bad")) == 10


@pytest.mark.sec("SEC-093")
async def test_a_flood_on_stderr_stays_within_bounds_and_delays_nobody(tmp_path: Path) -> None:
    async with running(tmp_path, pair("stderr_flood")) as place:
        session, other = await place.session(), await place.session()
        await session.tools()
        slowest = 0.0
        async with anyio.create_task_group() as group:
            group.start_soon(session.call, "bad__poke")
            for _ in range(20):
                started = time.process_time()
                await other.call("good__echo")
                slowest = max(slowest, time.process_time() - started)
        assert slowest < 2, "seconds of the processor between two answers"
        log = place.log("bad")
        assert len(log) <= 1000
        assert max(map(len, log)) <= 10_000


# -- how it answers ------------------------------------------------------------------------------


@pytest.mark.sec("SEC-014")
@pytest.mark.sec("SEC-093")
async def test_a_second_answer_is_dropped(tmp_path: Path) -> None:
    async with running(tmp_path, pair("answers_twice")) as place:
        session = await place.session()
        assert [await session.call("bad__poke") for _ in range(5)] == ["first"] * 5


@pytest.mark.sec("SEC-014")
@pytest.mark.sec("SEC-093")
async def test_answers_to_requests_nobody_made_are_dropped(tmp_path: Path) -> None:
    async with running(tmp_path, pair("wrong_ids")) as place:
        session = await place.session()
        assert [await session.call("bad__poke") for _ in range(3)] == ["right"] * 3


@pytest.mark.sec("SEC-014")
@pytest.mark.sec("SEC-093")
async def test_an_answer_to_another_request_is_no_answer(tmp_path: Path) -> None:
    async with running(tmp_path, pair("only_wrong_id", call_timeout_s=0.5)) as place:
        session = await place.session()
        text = await session.failure("bad__poke")
        assert "did not answer within 0.5 s" in text
        assert UNSAFE in text
        await good_works(place)


async def test_an_answer_that_is_not_utf8_is_no_answer(tmp_path: Path) -> None:
    async with running(tmp_path, pair("invalid_utf8", call_timeout_s=0.5)) as place:
        session = await place.session()
        assert "did not answer within 0.5 s" in await session.failure("bad__poke")
        assert any("\\xff\\xfe" in line for line in place.log("bad"))
        await good_works(place)


async def test_progress_for_other_calls_is_dropped(tmp_path: Path) -> None:
    async with running(tmp_path, pair("progress_of_others")) as place:
        session = await place.session()
        async with session.calling("good__hold", {"key": "k"}) as held, session.calling("bad__poke") as stream:
            assert (await held.message())["method"] == "notifications/progress"
            seen = json.loads(await stream._reader.readexactly(int(stream.headers["content-length"])))
            assert seen["result"]["content"][0]["text"] == "poked"
            await session.call("good__release", {"key": "k"})
            assert "result" in await held.message()


async def test_questions_that_were_not_offered_are_refused_and_pings_answered(tmp_path: Path) -> None:
    async with running(tmp_path, pair("asks_questions")) as place:
        session = await place.session(capabilities={"sampling": {}, "roots": {}, "elicitation": {}})
        answers = json.loads(await session.call("bad__poke"))
        assert answers == [-32601, -32601, -32601, "result", -32601, -32601]


# -- how it ends ---------------------------------------------------------------------------------


@pytest.mark.sec("SEC-093")
@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("dies_mid_call", "killed by signal SIGSEGV"),
        ("partial_line_at_end", "exit code 0"),
        ("forks_and_crashes", "exit code 5"),
        ("endless_line", "endless line"),
    ],
)
async def test_a_server_that_dies_in_a_call_says_how_and_comes_back(
    tmp_path: Path, behaviour: str, reason: str
) -> None:
    async with running(tmp_path, pair(behaviour)) as place:
        session = await place.session()
        text = await session.failure("bad__poke")
        assert reason in text
        assert UNSAFE in text
        await good_works(place)
        again = ""
        while reason not in again or "next attempt" in again:
            # It died right after its start, so the next one is put off for a moment, which is safe to retry.
            again = await session.failure("bad__poke")
            if "next attempt" in again:
                assert SAFE in again
                await anyio.sleep(0.05)
        assert place.local.starts.count("bad") == 2


@pytest.mark.sec("SEC-093")
async def test_a_server_that_closes_its_stdout_ends_the_call(tmp_path: Path) -> None:
    async with running(tmp_path, pair("closes_stdout")) as place:
        session = await place.session()
        text = await session.failure("bad__poke")
        assert UNSAFE in text
        assert "closed its stdout" in text
        await good_works(place)


@pytest.mark.sec("SEC-093")
@pytest.mark.parametrize("behaviour", ["ignores_sigterm", "forks_a_child", "forks_and_crashes", "hangs_silently"])
async def test_stopping_a_stubborn_server_leaves_no_process(tmp_path: Path, behaviour: str) -> None:
    async with running(tmp_path, pair(behaviour, start_timeout_s=1.0)) as place:
        session = await place.session()
        await session.http.request("POST", "/mcp", b"", session.headers())
        await session.ask("tools/call", {"name": "bad__poke"})
        place.gateway.pool.stop("bad")
        await until(lambda: not place.local.processes(), "it is gone, child and all")
        await good_works(place)


async def test_a_server_that_never_reads_does_not_fill_the_gateways_memory(tmp_path: Path) -> None:
    async with running(tmp_path, pair("pings_and_never_reads")) as place:
        session = await place.session()
        await session.tools()
        before = resident_bytes()
        assert await session.call("bad__poke") == "flooded"
        assert resident_bytes() - before < 12_000_000  # of 21 MB of answers
        await good_works(place)


def resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * 4096


async def test_a_listing_that_turns_bad_is_not_taken_and_the_gateway_goes_on(tmp_path: Path) -> None:
    async with running(tmp_path, pair("breaks_its_next_list", call_timeout_s=0.5)) as place:
        session = await place.session()
        before = await session.tools()
        pool = place.gateway.pool

        def state() -> tuple[int, int]:
            return len(place.log("bad")), pool.generation

        for number in range(6):
            seen = state()
            assert await session.call("bad__poke") == "poked", number
            await until(lambda seen=seen: state() != seen, "the list was taken, or the log says why not")
            await good_works(place)
        after = await session.tools()
        assert "good__echo" in after
        assert set(after) <= set(before) | {"bad__bomb"}


@pytest.mark.sec("SEC-093")
async def test_ten_hostile_servers_at_once_do_not_disturb_a_good_one(tmp_path: Path) -> None:
    behaviours = ["exits_at_once", "hangs_silently", "makes_noise", "endless_line", "invalid_utf8", "stderr_flood"]
    behaviours += ["answers_twice", "wrong_ids", "dies_mid_call", "ignores_sigterm", "endless_pages", "bad_items"]
    limits = {"start_timeout_s": 2.0, "call_timeout_s": 1.0}
    servers = {"good": ["friendly"]} | {name.replace("_", "-"): pair(name, **limits)["bad"] for name in behaviours}
    async with running(tmp_path, servers) as place:
        session = await place.session()
        bad = [name for name in await session.tools() if name.endswith("__poke")]
        assert len(bad) == 9

        async def poke(name: str) -> None:
            other = await place.session()
            for _ in range(2):
                await other.ask("tools/call", {"name": name})

        async def work() -> None:
            for number in range(50):
                assert json.loads(await session.call("good__echo", {"n": number})) == {"n": number}

        async with asyncio.TaskGroup() as group:
            group.create_task(work())
            for name in bad:
                group.create_task(poke(name))
