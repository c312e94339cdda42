"""Limits on calls: how exactly they count, whose counts they are, and what a caller is told."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway import limits
from gateway.database import Database
from gateway.errors import PoliciesUnusable
from gateway.limits import Limits, Reached
from policies import Principal
from policies.limits import Limit, LimitsInvalid, read_limits
from tests.gateway.callers import Session
from tests.gateway.running import USER, Place, by_header, running
from tests.gateway.test_modern import post

pytestmark = pytest.mark.anyio

ANN, BOB = Principal("ann", groups=frozenset({"staff"})), Principal("bob")
NOON = 1_795_608_000.0
"""2026-11-25, 12:00 UTC."""


def one(**entry: Any) -> Limit:
    (found,) = read_limits("limits.yaml", {"version": 1, "limits": [{"name": "one", **entry}]}, {"a": 1, "b": 1})
    return found


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def counting(folder: Path, *found: Limit, today: float = NOON) -> AsyncIterator[tuple[Limits, Clock]]:
    async with Database(f"sqlite:///{folder / 'lockgate.db'}") as database:
        clock = Clock()
        counted = Limits(database, clock, lambda: today)
        await counted.open()
        counted.follow(found)
        yield counted, clock


async def allowed(counted: Limits, n: int, who: Principal = ANN, server: str = "a", tool: str = "x") -> int:
    return sum([await counted.take(who, server, tool) is None for _ in range(n)])


# -- rates -----------------------------------------------------------------------------------------


async def test_a_rate_lets_a_burst_through_and_then_one_at_a_time(tmp_path: Path) -> None:
    async with counting(tmp_path, one(rate="4 per minute")) as (counted, clock):
        assert await allowed(counted, 10) == 4
        assert await counted.take(ANN, "a", "x") == Reached("one", 15)
        clock.now = 14.9
        assert await allowed(counted, 10) == 0
        clock.now = 15.0
        assert await allowed(counted, 10) == 1
        clock.now = 30.0
        assert await allowed(counted, 10) == 1
        clock.now = 10_000.0
        assert await allowed(counted, 10) == 4


@pytest.mark.parametrize("rate", ["1 per second", "7 per second", "60 per minute", "3 per hour"])
async def test_in_any_time_there_are_never_more_than_the_burst_and_what_came_since(tmp_path: Path, rate: str) -> None:
    limit = one(rate=rate)
    async with counting(tmp_path, limit) as (counted, clock):
        interval_s = limit.period_s / limit.n
        every_s = interval_s / 3.7
        passed: list[float] = []
        for step in range(400):
            clock.now = step * every_s
            if await counted.take(ANN, "a", "x") is None:
                passed.append(clock.now)
        for start in passed:
            span = [at for at in passed if start <= at < start + limit.period_s]
            assert len(span) <= 2 * limit.n
        assert len(passed) <= limit.n + clock.now * limit.n / limit.period_s + 1e-6
        assert len(passed) >= limit.n - 1 + int(clock.now / (interval_s + every_s)), "nor much less"


async def test_a_refused_call_uses_up_nothing_of_any_rate(tmp_path: Path) -> None:
    narrow, wide = one(rate="1 per minute", tool="x", server="a"), Limit("wide", 5, 60.0)
    async with counting(tmp_path, wide, narrow) as (counted, _):
        assert await allowed(counted, 100) == 1
        assert await allowed(counted, 100, tool="y") == 4


async def test_counts_in_memory_are_swept_without_forgetting_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with counting(tmp_path, one(rate="2 per minute")) as (counted, clock):
        counted._sweep_at = 50
        assert await allowed(counted, 5) == 2
        for n in range(200):
            clock.now = n * 0.01
            assert await allowed(counted, 1, Principal(str(n))) == 1
        assert await allowed(counted, 5) == 0
        clock.now = 10_000.0
        counted._sweep_at = 50
        assert await allowed(counted, 1, BOB) == 1
        assert len(counted._due) == 1


# -- quotas ----------------------------------------------------------------------------------------


async def test_a_quota_survives_a_restart_and_ends_with_its_day(tmp_path: Path) -> None:
    limit = one(calls="3 per day")
    async with counting(tmp_path, limit) as (counted, _):
        assert await allowed(counted, 2) == 2
    async with counting(tmp_path, limit) as (counted, _):
        assert await allowed(counted, 5) == 1
        assert await counted.take(ANN, "a", "x") == Reached("one", 12 * 3600)
        assert await allowed(counted, 5, BOB) == 3
    async with counting(tmp_path, limit, today=NOON + 12 * 3600) as (counted, _):
        assert await allowed(counted, 5) == 3
    later = counting(tmp_path, limit, today=NOON + 100 * 86_400)
    async with later as (counted, _), counted._database.begin() as connection:
        assert (await connection.execute(limits.spending.select())).all() == []


@pytest.mark.parametrize(
    ("at", "window", "left"),
    [
        (NOON, "month", int(5.5 * 86_400)),
        (1_798_761_599.5, "day", 1),  # 2026-12-31 23:59:59.5
        (1_798_761_599.5, "month", 1),
        (1_835_308_800.0, "month", 2 * 86_400),  # 2028-02-28, of a leap year
    ],
)
def test_a_window_ends_with_the_calendars(at: float, window: Any, left: int) -> None:
    assert limits.left_s(window, at) == left


async def test_what_one_quota_refuses_is_not_counted_by_another(tmp_path: Path) -> None:
    first, second = one(calls="5 per day"), Limit("two", 2, window="month")
    async with counting(tmp_path, first, second) as (counted, _):
        assert await allowed(counted, 4) == 2
        counted.follow((first,))
        assert await allowed(counted, 9) == 3


async def test_sixty_four_at_once_on_two_gateways_never_exceed(tmp_path: Path) -> None:
    found = (one(calls="50 per day"), Limit("fast", 40, 3600.0))
    async with counting(tmp_path, *found) as (here, _), counting(tmp_path, *found) as (there, _):
        answers = await asyncio.gather(*(which.take(ANN, "a", "x") for which in (here, there) for _ in range(32)))
        assert answers.count(None) == 50, "each gateway has a rate of its own, and all share the quota"
        assert {answer.limit for answer in answers if answer} == {"one"}
        more = await asyncio.gather(*(here.take(ANN, "a", "x") for _ in range(64)))
        assert None not in more
        assert {answer.limit for answer in more if answer} == {"one", "fast"}


async def test_two_gateways_on_one_postgresql_share_a_quota(postgres_url: str) -> None:
    found = (one(calls="50 per day"), Limit("month", 45, window="month"))
    async with Database(postgres_url) as first, Database(postgres_url) as second:
        gateways = [Limits(database, Clock(), lambda: NOON) for database in (first, second)]
        for gateway in gateways:
            await gateway.open()
            gateway.follow(found)
        answers = await asyncio.gather(*(gateway.take(ANN, "a", "x") for gateway in gateways for _ in range(32)))
        assert answers.count(None) == 45
        async with first.begin() as connection:
            rows = (await connection.execute(limits.spending.select().order_by("name"))).all()
        assert [tuple(row) for row in rows] == [("month", "ann", "2026-11", 45), ("one", "ann", "2026-11-25", 45)]


# -- whose -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "meets"),
    [
        ({}, {("ann", "a", "x"), ("ann", "b", "x"), ("bob", "a", "x"), ("bob", "a", "y")}),
        ({"server": "a"}, {("ann", "a", "x"), ("bob", "a", "x"), ("bob", "a", "y")}),
        ({"server": "a", "tool": "x"}, {("ann", "a", "x"), ("bob", "a", "x")}),
        ({"principal": "bob"}, {("bob", "a", "x"), ("bob", "a", "y")}),
        ({"group": "staff", "server": "b"}, {("ann", "b", "x")}),
    ],
)
def test_a_limit_meets_what_it_names(entry: dict[str, str], meets: set[tuple[str, str, str]]) -> None:
    limit, people = one(rate="1 per hour", **entry), {"ann": ANN, "bob": BOB}
    asked = [("ann", "a", "x"), ("ann", "b", "x"), ("bob", "a", "x"), ("bob", "a", "y")]
    assert {one for one in asked if limit.meets(people[one[0]], *one[1:])} == meets


async def test_a_limit_for_all_together_is_one_count(tmp_path: Path) -> None:
    async with counting(tmp_path, one(rate="3 per hour", together=True)) as (counted, _):
        assert await allowed(counted, 2) + await allowed(counted, 2, BOB) == 3


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"rate": "60"}, "60 per minute"),
        ({"rate": "0 per minute"}, "60 per minute"),
        ({"rate": "5 per day"}, "a rate is per second"),
        ({"calls": "5 per hour"}, "calls and tokens are per day"),
        ({}, "one of them"),
        ({"rate": "5 per hour", "calls": "5 per day"}, "one of them"),
        ({"rate": "5 per hour", "server": "gone"}, "not in the catalogue"),
        ({"rate": "5 per hour", "tool": "x"}, "has a tool and no server"),
        ({"rate": "5 per hour", "name": "a b"}, "is no name"),
        ({"rate": "5 per hour", "per": "server"}, "unknown field"),
    ],
)
def test_a_file_with_a_mistake_is_refused(entry: dict[str, str], problem: str) -> None:
    with pytest.raises(LimitsInvalid, match=problem):
        one(**entry)


def test_two_limits_of_one_name_are_refused() -> None:
    twice = [{"name": "one", "rate": "1 per hour"}] * 2
    with pytest.raises(LimitsInvalid, match="twice"):
        read_limits("x", {"version": 1, "limits": twice}, {})


# -- in a gateway ----------------------------------------------------------------------------------


def write(folder: Path, *entries: Any) -> None:
    (folder / "limits.yaml").write_text(json.dumps({"version": 1, "limits": list(entries)}))


async def reload(place: Place) -> int:
    token = [("Authorization", f"Bearer {place.service.running.admin_token}")]
    return (await place.http.request("POST", "/admin/catalog/reload", headers=token)).status


async def test_a_caller_is_told_how_long_to_wait_and_the_server_hears_nothing(tmp_path: Path) -> None:
    write(tmp_path, {"name": "slow", "server": "a", "tool": "write", "rate": "1 per hour"})
    async with running(tmp_path, {"a": ["cabinet"]}, principal_of=by_header) as place:
        ann = await Session.open(place.url, always=[(USER, "ann")])
        bob = await Session.open(place.url, always=[(USER, "bob")])
        await ann.call("a__write", {"path": "/x"})
        error = await ann.error("tools/call", {"name": "a__write", "arguments": {"path": "/x"}})
        assert error["code"] == -32050
        assert error["data"]["limit"] == "slow"
        assert 3500 < error["data"]["retryAfterS"] <= 3600
        assert (place.audit()[-1]["outcome"], place.audit()[-1]["detail"]) == ("limited", "limit slow")
        await ann.call("a__read", {"path": "/x"})
        await bob.call("a__write", {"path": "/x"})
        modern = await post(place, "tools/call", {"name": "a__write", "arguments": {}})
        assert modern.messages()[-1]["result"]
        modern = await post(place, "tools/call", {"name": "a__write", "arguments": {}})
        assert modern.messages()[-1]["error"]["data"]["limit"] == "slow"
        replayed = {"name": "a__write", "arguments": {}, "inputResponses": {"x": {}}}
        assert (await post(place, "tools/call", replayed)).messages()[-1]["error"]["code"] == -32050


async def test_a_changed_file_is_taken_and_a_wrong_one_is_not(tmp_path: Path) -> None:
    async with running(tmp_path, {"a": ["cabinet"]}) as place:
        one = await place.session()
        await one.call("a__read", {"path": "/x"})
        assert place.gateway.door.limits is None
        write(tmp_path, {"name": "few", "server": "a", "calls": "2 per day"})
        assert await reload(place) == 200
        await one.call("a__read", {"path": "/x"})
        write(tmp_path, {"name": "few", "server": "gone", "calls": "2 per day"})
        assert await reload(place) == 422
        await one.call("a__read", {"path": "/x"})
        assert (await one.error("tools/call", {"name": "a__read", "arguments": {}}))["data"]["limit"] == "few"
        (tmp_path / "limits.yaml").unlink()
        assert await reload(place) == 200
        await one.call("a__read", {"path": "/x"})


async def test_a_gateway_does_not_start_with_a_wrong_file(tmp_path: Path) -> None:
    write(tmp_path, {"name": "few", "calls": "many"})
    with pytest.raises(PoliciesUnusable, match="1000 per day"):
        async with running(tmp_path, {"a": ["cabinet"]}):
            pass
