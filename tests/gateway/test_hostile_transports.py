"""Thirty ways of a server to misbehave, on each of the three transports, all at once beside a good one."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import anyio
import pytest

from tests.gateway.callers import Session
from tests.gateway.running import Place, running
from tests.servers import DEADLINE_S, LOCAL, until
from tests.servers.carrier import Carrier, carried

pytestmark = [pytest.mark.anyio, pytest.mark.sec("SEC-093")]

Transport = Literal["stdio", "http", "sse"]
UNSAFE = "a retry may repeat side effects"
USELESS = "A retry is unlikely to help"
QUICK_S = 1.0


class Expected(NamedTuple):
    """What comes of a server: whether it can be used at all, how one call ends, and whether that ends the server."""

    starts: bool
    answer: Literal["ok", "error"] = "ok"
    dies: bool = False
    slow: bool = False
    """Nothing but a time limit ends it, so that limit is short."""
    more: tuple[str, ...] = ()


BEHAVIOURS: Mapping[str, Expected] = {
    "exits_at_once": Expected(False),
    "hangs_silently": Expected(False, slow=True),
    "wrong_revision": Expected(False),
    "bad_initialize": Expected(False),
    "refuses_initialize": Expected(False),
    "bad_list": Expected(False),
    "list_bomb": Expected(False),
    "endless_pages": Expected(False),
    "too_many_items": Expected(False),
    "makes_noise": Expected(True),
    "stderr_flood": Expected(True),
    "answers_twice": Expected(True),
    "wrong_ids": Expected(True),
    "asks_questions": Expected(True),
    "floods_questions": Expected(True),
    "floods_progress": Expected(True, more=("2000",)),
    "batch_bomb": Expected(True),
    "bad_items": Expected(True),
    "progress_of_others": Expected(True),
    "breaks_its_next_list": Expected(True),
    "ignores_sigterm": Expected(True),
    "forks_a_child": Expected(True),
    "pings_and_never_reads": Expected(True, more=("500",)),
    "closes_stdin": Expected(True),
    "notes_without_end": Expected(True, "error", slow=True),
    "answers_late": Expected(True, "error", slow=True),
    "only_wrong_id": Expected(True, "error", slow=True),
    "invalid_utf8": Expected(True, "error", slow=True),
    "interleaves": Expected(True, "error", slow=True),
    "partial_line_at_end": Expected(True, "error", dies=True),
    "endless_line": Expected(True, "error", dies=True),
    "dies_mid_call": Expected(True, "error", dies=True),
    "forks_and_crashes": Expected(True, "error", dies=True, slow=True),
    "closes_stdout": Expected(True, "error", dies=True, slow=True),
}


@asynccontextmanager
async def everything(folder: Path, transport: Transport) -> AsyncIterator[tuple[Place, dict[str, Carrier]]]:
    """Every behaviour as a server of one gateway."""
    async with AsyncExitStack() as stack:
        servers: dict[str, Any] = {"good": {"package": dict(LOCAL), "command": ["friendly"]}}
        carriers: dict[str, Carrier] = {}
        for behaviour, expected in BEHAVIOURS.items():
            command = ("hostile", behaviour, *expected.more)
            limit_s = QUICK_S if expected.slow else DEADLINE_S
            start_s = QUICK_S if not expected.starts and expected.slow else DEADLINE_S
            server: dict[str, Any] = {"limits": {"start_timeout_s": start_s, "call_timeout_s": limit_s}}
            if transport == "stdio":
                server |= {"package": dict(LOCAL), "command": list(command)}
            else:
                carrier = await stack.enter_async_context(carried(*command, old=transport == "sse"))
                carriers[behaviour] = carrier
                kind = {"transport": "sse"} if transport == "sse" else {}
                server |= {"remote": {"url": carrier.url, **kind}}
            servers[behaviour.replace("_", "-")] = server
        place = await stack.enter_async_context(running(folder, servers))
        yield place, carriers
        for carrier in carriers.values():
            await carrier.aclose()  # their processes are none of the gateway's


async def poke(session: Session, id: str) -> dict[str, Any]:
    with anyio.fail_after(2 * DEADLINE_S):
        return dict(await session.result("tools/call", {"name": f"{id}__poke", "arguments": {}}))


@pytest.mark.parametrize("transport", ["stdio", "http", "sse"])
async def test_each_fails_alone_within_its_time_and_comes_back(tmp_path: Path, transport: Transport) -> None:
    assert len(BEHAVIOURS) >= 25
    async with everything(tmp_path, transport) as (place, carriers):
        pool = place.gateway.pool
        session = await place.session()
        listed = await session.tools()
        assert "good__echo" in listed

        def starts(id: str) -> int:
            return carriers[id.replace("-", "_")].starts if carriers else place.local.starts.count(id)

        async def good_works(done: asyncio.Event) -> None:
            number = 0
            while not done.is_set():
                number += 1
                assert json.loads(await session.call("good__echo", {"n": number})) == {"n": number}

        async def check(behaviour: str, expected: Expected) -> None:
            id = behaviour.replace("_", "-")
            server = pool.servers[id]
            if not expected.starts:
                assert not [tool for tool in listed if tool.startswith(f"{id}__")], id
                await until(lambda: server.state == "failed", f"{id} has failed")
                assert f"server {id} failed to start" in server.error, id
                assert server.failures >= 1  # and with each one the pause before the next attempt grows
                return
            own = await place.session()
            result = await poke(own, id)
            text = result["content"][0]["text"]
            assert bool(result.get("isError")) is (expected.answer == "error"), (id, text)
            if expected.answer == "error":
                assert UNSAFE in text or USELESS in text, (id, text)
            if expected.dies and not (behaviour == "endless_line" and carriers):  # that costs its own stream there
                before = starts(id)
                while starts(id) == before:
                    text = (await poke(own, id))["content"][0]["text"]
                    await anyio.sleep(0.02)  # until the next attempt is allowed

        done = asyncio.Event()
        working = asyncio.ensure_future(good_works(done))
        # All to their end, whatever one of them finds.
        checks = (check(behaviour, expected) for behaviour, expected in BEHAVIOURS.items())
        found = await asyncio.gather(*checks, return_exceptions=True)
        done.set()
        await working
        assert [one for one in found if one is not None] == []
        assert place.gateway.pool.servers["good"].failures == 0
