"""Quotas of tokens: never exceeded at once, settled however a request ends, and told in each API's own form."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anthropic
import anyio
import httpx
import pytest
from sqlalchemy import func, select

from engine import StoredModel
from gateway.database import Database
from gateway.errors import LimitReached
from gateway.limits import spending
from gateway.tokenquotas import TokenQuotas
from policies import Principal
from policies.limits import LimitsInvalid, read_limits
from tests.engine.conftest import cache_folder, model_store, smollm2  # noqa: F401  # fixtures
from tests.gateway.running import USER, Place, by_header, running
from tests.gateway.test_delegation import AGENT, delegate
from tests.servers.scripted_model import scripted_model

pytestmark = pytest.mark.anyio

DEADLINE_S = 300.0
ANN, BOB = Principal("ann", groups=frozenset({"staff"})), Principal("bob")
NOON = 1_795_608_000.0
SAY: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Name three colours."}],
    "max_tokens": 12,
    "temperature": 0,
}


def quotas(database: Database, *entries: dict[str, Any]) -> TokenQuotas:
    named = [{"name": f"limit{number}", **entry} for number, entry in enumerate(entries)]
    counted = TokenQuotas(database, lambda: NOON)
    counted.follow(read_limits("limits.yaml", {"version": 1, "limits": named}, {"a": 1}))
    return counted


def may_use(n: int) -> Callable[[], Any]:
    async def most() -> int:
        return n

    return most


async def used(database: Database) -> int:
    async with database.begin() as connection:
        return (await connection.execute(select(func.coalesce(func.sum(spending.c.used), 0)))).scalar_one()


async def ask(counted: TokenQuotas, who: Principal, most: int, n: int, model: str = "m:1") -> bool:
    try:
        async with counted.spending(who, model, may_use(most)) as spent:
            await asyncio.sleep(0)
            spent.n_completion = n
    except LimitReached:
        return False
    return True


async def test_what_was_not_used_is_given_back_and_the_rest_counts(tmp_path: Path) -> None:
    async with Database(f"sqlite:///{tmp_path / 'db'}") as database:
        counted = quotas(database, {"tokens": "100 per day"})
        assert [await ask(counted, ANN, 60, 20) for _ in range(4)] == [True, True, True, False]
        assert await used(database) == 60
        assert await ask(counted, ANN, 40, 40)
        assert not await ask(counted, ANN, 1, 1)
        assert await ask(counted, BOB, 100, 0)
        with pytest.raises(LimitReached, match=r"^The limit limit0 has no room .* send less text$") as told:
            async with counted.spending(BOB, "m:1", may_use(101)):
                raise AssertionError("it began")
        assert told.value.wait_s == 12 * 3600


async def test_all_quotas_or_none_and_only_for_what_they_name(tmp_path: Path) -> None:
    async with Database(f"sqlite:///{tmp_path / 'db'}") as database:
        counted = quotas(
            database,
            {"tokens": "100 per day", "together": True},
            {"tokens": "10 per month", "group": "staff", "model": "small"},
        )
        assert not await ask(counted, ANN, 11, 11, "small:latest")
        assert await used(database) == 0, "nothing of the other one is taken"
        assert await ask(counted, ANN, 11, 11, "small:1")
        assert await ask(counted, BOB, 11, 11, "small:latest")
        assert not await ask(counted, BOB, 79, 79)


async def test_a_request_counts_while_it_runs_and_after_its_gateway_is_gone(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'db'}"
    async with Database(url) as database, Database(url) as other:
        running = quotas(database, {"tokens": "100 per day"}).spending(ANN, "m:1", may_use(70))
        await running.__aenter__()
        beside = quotas(other, {"tokens": "100 per day"})
        assert not await ask(beside, ANN, 40, 1)
        await running.__aexit__(None, None, None)
        assert await ask(beside, ANN, 40, 1)
        dies = quotas(database, {"tokens": "100 per day"})
        await dies._take(dies.limits, ANN, 99)
    async with Database(url) as later:
        assert await used(later) == 100, "what nobody settled stays counted, and holds up nobody else"
        assert await ask(quotas(later, {"tokens": "100 per day"}), BOB, 100, 1)


async def test_a_cancelled_request_is_settled(tmp_path: Path) -> None:
    async with Database(f"sqlite:///{tmp_path / 'db'}") as database:
        counted = quotas(database, {"tokens": "100 per day"})
        begun = anyio.Event()

        async def work() -> None:
            async with counted.spending(ANN, "m:1", may_use(90)) as spent:
                spent.n_prompt = 7
                begun.set()
                await anyio.sleep_forever()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(work)
            await begun.wait()
            tasks.cancel_scope.cancel()
        assert await used(database) == 7


async def test_requests_at_once_of_two_gateways_never_exceed_a_quota(postgres_url: str, tmp_path: Path) -> None:
    for url in (postgres_url, f"sqlite:///{tmp_path / 'db'}"):
        async with Database(url) as first, Database(url) as second:
            pair = [quotas(one, {"tokens": "1000 per day", "together": True}) for one in (first, second)]
            seen = []

            async def one(counted: TokenQuotas, database: Database, seen: list[int] = seen) -> bool:
                try:
                    async with counted.spending(ANN, "m:1", may_use(90)) as spent:
                        seen.append(await used(database))
                        spent.n_prompt = 30
                except LimitReached:
                    return False
                return True

            both = [(pair[0], first), (pair[1], second)]
            answers = await asyncio.gather(*(one(*which) for which in both for _ in range(32)))
            assert max(seen) <= 1000
            assert answers.count(True) >= 11
            assert await used(first) == 30 * answers.count(True)


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"tokens": "5 per hour"}, "tokens are per day"),
        ({"tokens": "5 per day", "calls": "5 per day"}, "one of them"),
        ({"tokens": "5 per day", "server": "a"}, "leave server and tool out"),
        ({"calls": "5 per day", "model": "m"}, "has a model and no tokens"),
    ],
)
def test_a_file_with_a_mistake_is_refused(entry: dict[str, str], problem: str) -> None:
    with pytest.raises(LimitsInvalid, match=problem):
        read_limits("limits.yaml", {"version": 1, "limits": [{"name": "one", **entry}]}, {"a": 1})


async def total(place: Place) -> int:
    return await used(place.gateway.database)


async def test_a_model_is_used_up_to_its_quota_in_every_api(smollm2: StoredModel, tmp_path: Path) -> None:  # noqa: F811
    limit = '{name: chat, model: "smollm2:135m", tokens: 1500 per day, together: true}'
    (tmp_path / "limits.yaml").write_text(f"version: 1\nlimits: [{limit}]\n")
    changes = {"cache_dir": cache_folder(), "model": smollm2.ref, "context_tokens": 1024}
    async with (
        running(tmp_path, {"a": ["friendly"]}, principal_of=by_header, **changes) as place,
        httpx.AsyncClient(base_url=place.url, timeout=DEADLINE_S, headers={USER: "ann"}) as client,
    ):
        chat = "/v1/chat/completions"
        usage = (await client.post(chat, json=SAY)).json()["usage"]
        assert await total(place) == usage["total_tokens"] > usage["prompt_tokens"]

        # What streams is counted too, and a client that goes away pays for what it had.
        before = await total(place)
        most = before + usage["prompt_tokens"] + 900
        long = {**SAY, "max_tokens": 900, "stream": True}
        async with client.stream("POST", chat, json=long) as answer:
            assert answer.status_code == 200
            async for line in answer.aiter_lines():
                if '"content":"' in line and '"content":""' not in line:
                    break
        with anyio.fail_after(DEADLINE_S):
            while await total(place) >= most:
                await anyio.sleep(0.02)
        assert await total(place) > before + usage["prompt_tokens"]

        vectors = (await client.post("/v1/embeddings", json={"input": ["one", "two words"]})).json()
        assert vectors["usage"]["total_tokens"] > 0

        # Many at once: the quota holds, and what was answered is what was counted.
        before = await total(place)
        answers = await asyncio.gather(
            *(client.post(chat, json=SAY, headers={USER: f"user{number}"}) for number in range(64))
        )
        told = {answer.status_code for answer in answers}
        assert 429 in told
        assert told <= {200, 429}
        spent = sum(answer.json()["usage"]["total_tokens"] for answer in answers if answer.status_code == 200)
        assert await total(place) == before + spent <= 1500

        # The rest is too little for these: each family says so in its own form.
        big = {**SAY, "max_tokens": 600}
        refused = await client.post(chat, json=big)
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) > 0
        assert refused.json()["error"]["type"] == "insufficient_quota"
        assert "The limit chat has no room" in refused.json()["error"]["message"]
        for path, body in (
            (chat, {**big, "stream": True}),
            ("/v1/completions", {"prompt": "Once", "max_tokens": 600}),
            ("/v1/responses", {"input": "Hello", "max_output_tokens": 600}),
            ("/api/chat", {"model": "smollm2:135m", "messages": SAY["messages"], "options": {"num_predict": 600}}),
            ("/v1/embeddings", {"input": ["one two three " * 60] * 4}),
        ):
            answer = await client.post(path, json=body)
            assert (answer.status_code, int(answer.headers["Retry-After"]) > 0) == (429, True), path
            assert "The limit chat has no room" in str(answer.json()["error"])
        async with anthropic.AsyncAnthropic(base_url=place.url, api_key="none", max_retries=0) as claude:
            messages: list[Any] = SAY["messages"]
            with pytest.raises(anthropic.RateLimitError, match="rate_limit_error"):
                await claude.messages.create(model="smollm2:135m", max_tokens=600, messages=messages)
        assert await total(place) == before + spent


async def test_delegated_tasks_are_counted_and_end_with_the_quota(tmp_path: Path) -> None:
    (tmp_path / "limits.yaml").write_text("version: 1\nlimits: [{name: agents, tokens: 20000 per day}]\n")
    servers: dict[str, Any] = {"good": ["friendly"], "agent": AGENT}
    with scripted_model("It is seven.") as model:
        async with running(tmp_path, servers, principal_of=by_header, model=model.url) as place:
            session = await place.session(always=((USER, "ann"),))
            result = await delegate(session)
            assert result["content"][0]["text"] == "It is seven."
            written = result["structuredContent"]["receipt"]["tokens"]
            assert await total(place) == 20 + written == 25, "as the model's server says"
            async with place.gateway.database.begin() as connection:
                await connection.execute(spending.update().values(used=19_999))
            asked = len(model.asked)
            refused = await delegate(session)
            assert refused["isError"]
            assert "The limit agents has no room" in refused["content"][0]["text"]
            assert len(model.asked) == asked, "the model was not asked"
