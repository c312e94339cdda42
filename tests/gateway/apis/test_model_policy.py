"""The model APIs under policy and audit, by the official clients: who may use which model, and what is recorded."""

import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import anthropic
import ollama
import openai
import pytest

from engine import StoredModel
from gateway import auditlog
from gateway.caller import Caller
from gateway.modeluse import METHOD, UseUnrecorded
from policies import Principal
from tests.engine.conftest import cache_folder
from tests.gateway.apis.conftest import DEADLINE_S, MODEL
from tests.gateway.callers import JSON
from tests.gateway.running import USER, Place, by_header, running

pytestmark = [pytest.mark.anyio, pytest.mark.model]

OWN = """
@id("tools") permit (principal, action in [Action::"call", Action::"list"], resource is Tool);
@id("ann") permit (principal == User::"ann", action == Action::"use", resource == Model::"smollm2:135m");
@id("small") permit (principal == User::"eve", action == Action::"use", resource is Model)
when { resource.megabytes < 1 };
@id("boss") @effect("ask") @approver("self")
permit (principal == User::"bob", action == Action::"use", resource);
"""
SECRET = "umbrella-7431"
ASK: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": f"Say {SECRET}."}],
    "max_tokens": 8,
}


@pytest.fixture(scope="module")
async def ruled(smollm2: StoredModel, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    folder: Path = tmp_path_factory.mktemp("ruled")
    (folder / "policies").mkdir()
    (folder / "policies" / "own.cedar").write_text(OWN)
    profiles: Mapping[str, Mapping[str, Any]] = {
        "all": {"servers": ["a"], "policy": "own"},
        **{name: {"servers": ["a"], "policy": name} for name in ("open", "read-only", "approve-writes", "locked")},
    }
    changes = {"cache_dir": cache_folder(), "model": smollm2.ref, "context_tokens": 1024}
    async with running(folder, {"a": ["friendly"]}, profiles, principal_of=by_header, **changes) as place:
        yield place


def gpt_of(place: Place, user: str) -> openai.AsyncOpenAI:
    url, more = f"{place.url}/v1", {USER: user}
    return openai.AsyncOpenAI(base_url=url, api_key="none", timeout=DEADLINE_S, max_retries=0, default_headers=more)


def claude_of(place: Place, user: str) -> anthropic.AsyncAnthropic:
    more = {USER: user}
    return anthropic.AsyncAnthropic(
        base_url=place.url, api_key="none", timeout=DEADLINE_S, max_retries=0, default_headers=more
    )


def llama_of(place: Place, user: str) -> ollama.AsyncClient:
    return ollama.AsyncClient(host=place.url, timeout=DEADLINE_S, headers={USER: user})


def uses(place: Place) -> list[dict[str, Any]]:
    """The records of uses so far, of begins and of ends."""
    found = auditlog.records(place.gateway.settings.state_dir)
    return [record for record in found if record["method"] == METHOD]


async def test_what_policy_permits_is_answered_and_recorded_before_and_after(ruled: Place) -> None:
    before = len(uses(ruled))
    async with gpt_of(ruled, "ann") as gpt:
        whole = await gpt.chat.completions.create(**ASK)
        parts = [part async for part in await gpt.chat.completions.create(**ASK, stream=True)]
        assert not any(part.usage for part in parts), "nobody asked for it"
        text = await gpt.completions.create(model=MODEL, prompt=SECRET, max_tokens=4)
        vectors = await gpt.embeddings.create(model=MODEL, input=SECRET)
    begun, ended, _, streamed, _, plain, _, embedded = uses(ruled)[before:]
    assert begun["event"] == "start"
    assert begun["call"] == ended["call"]
    assert begun["policies"] == ["profile:all", "own:ann"]
    assert "event" not in ended
    assert whole.usage
    assert (ended["prompt_tokens"], ended["completion_tokens"]) == (
        whole.usage.prompt_tokens,
        whole.usage.completion_tokens,
    )
    assert streamed["prompt_tokens"] == ended["prompt_tokens"]
    assert 0 < streamed["completion_tokens"] <= ASK["max_tokens"], "it may end before"
    assert text.usage
    assert plain["completion_tokens"] == text.usage.completion_tokens
    assert embedded["prompt_tokens"] == vectors.usage.prompt_tokens
    (stored,) = [model for model in ruled.gateway.models.stored() if model.ref == MODEL]
    for record in (begun, ended, streamed, plain, embedded):
        assert record["principal"] == "ann"
        assert "OpenAI" in record["client"]
        assert record["item"] == MODEL
        assert record["policy"] == ruled.gateway.door.policy.generation
        assert stored.digest.removeprefix("sha256:").startswith(record["entry_digest"])
        assert record["entry_digest"]
    for record in (ended, streamed, plain, embedded):
        assert record["outcome"] == "ok"
        assert record["ms"] > 0
        assert record["source"] == "127.0.0.1"
    assert SECRET not in json.dumps(uses(ruled))


@pytest.mark.parametrize("user", ["eve", "bob", "nobody"])
async def test_what_no_policy_permits_is_refused_in_the_words_of_each_api(ruled: Place, user: str) -> None:
    """Also what only a person could permit, as nobody is asked about models."""
    before = len(uses(ruled))
    async with gpt_of(ruled, user) as gpt, claude_of(ruled, user) as claude:
        for stream in (False, True):
            with pytest.raises(openai.PermissionDeniedError) as said:
                await gpt.chat.completions.create(**ASK, stream=stream)
            with pytest.raises(anthropic.PermissionDeniedError) as told:
                await claude.messages.create(**ASK, stream=stream)
            assert told.value.body == {
                "type": "error",
                "error": {"type": "permission_error", "message": told.value.body["error"]["message"]},  # type: ignore[index]
            }
        for asked in (
            gpt.responses.create(model=MODEL, input="x"),
            gpt.completions.create(model=MODEL, prompt="x"),
            gpt.embeddings.create(model=MODEL, input="x"),
            gpt.chat.completions.create(messages=ASK["messages"], model=""),
        ):
            with pytest.raises(openai.PermissionDeniedError):
                await asked
        with pytest.raises(anthropic.PermissionDeniedError):
            await claude.messages.count_tokens(model=MODEL, messages=ASK["messages"])
    async with llama_of(ruled, user) as llama:
        for refused in (
            llama.chat(model=MODEL, messages=ASK["messages"]),
            llama.chat(model=MODEL, messages=[]),
            llama.generate(model=MODEL, prompt="x"),
            llama.generate(model=MODEL, keep_alive=0),
            llama.embed(model=MODEL, input="x"),
        ):
            with pytest.raises(ollama.ResponseError) as answered:
                await refused
            assert answered.value.status_code == 403
    for path in ("/tokenize", "/v1/rerank"):
        body = {"content": "x"} if path == "/tokenize" else {"query": "x", "documents": ["y"]}
        headers = (JSON, (USER, user))
        assert (await ruled.http.request("POST", path, json.dumps(body).encode(), headers)).status == 403
    assert MODEL in str(said.value)
    assert ('resource == Model::"smollm2:135m"' in str(said.value)) is (user != "bob")
    records = uses(ruled)[before:]
    assert {record["outcome"] for record in records} == {"denied"}
    assert not any("event" in record for record in records), "what is denied has not begun"


async def test_models_that_may_not_be_used_are_in_no_list(ruled: Place) -> None:
    async with gpt_of(ruled, "ann") as ann, gpt_of(ruled, "nobody") as nobody:
        assert MODEL in [model.id async for model in ann.models.list()]
        assert [model.id async for model in nobody.models.list()] == []
        assert (await ann.models.retrieve(MODEL)).id == MODEL
        with pytest.raises(openai.NotFoundError):
            await nobody.models.retrieve(MODEL)
        await ann.chat.completions.create(**ASK)
    async with llama_of(ruled, "ann") as llama:
        assert (await llama.ps()).models
    async with llama_of(ruled, "nobody") as llama:
        assert not (await llama.list()).models
        assert not (await llama.ps()).models
        with pytest.raises(ollama.ResponseError) as said:
            await llama.show(MODEL)
    assert said.value.status_code == 404


@pytest.mark.parametrize(
    ("profile", "is_allowed"), [("open", True), ("read-only", True), ("approve-writes", True), ("locked", False)]
)
async def test_the_shipped_sets(ruled: Place, profile: str, *, is_allowed: bool) -> None:
    ruled.gateway.use(profile)
    try:
        async with gpt_of(ruled, "nobody") as gpt:
            assert (MODEL in [model.id async for model in gpt.models.list()]) is is_allowed
            if is_allowed:
                await gpt.chat.completions.create(**ASK)
            else:
                with pytest.raises(openai.PermissionDeniedError, match="this profile is locked"):
                    await gpt.chat.completions.create(**ASK)
    finally:
        ruled.gateway.use("all")


async def test_what_fails_and_what_is_withdrawn_is_recorded_as_that(ruled: Place) -> None:
    before = len(uses(ruled))
    async with gpt_of(ruled, "ann") as gpt:
        with pytest.raises(openai.BadRequestError):
            await gpt.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "x " * 4000}])
    ruled.gateway.use("open")
    try:
        async with gpt_of(ruled, "ann") as gpt:
            with pytest.raises(openai.NotFoundError):
                await gpt.chat.completions.create(**ASK | {"model": "no-such-model:1b"})
    finally:
        ruled.gateway.use("all")
    chunks = ruled.gateway.models.chat({**ASK, "max_tokens": 500}, by=_caller(ruled, "ann"))
    await anext(chunks)
    await chunks.aclose()
    ends = [record for record in uses(ruled)[before:] if "event" not in record]
    assert [record["outcome"] for record in ends] == ["error", "unknown", "cancelled"]
    assert ends[0]["detail"] == "ContextOverflow"


async def test_nobody_uses_a_model_unnamed(ruled: Place) -> None:
    """Whoever forgets to say who asks is refused."""
    with pytest.raises(Exception, match="nobody says who uses the model"):
        await ruled.gateway.models.complete(ASK)


async def test_models_stop_when_the_audit_cannot_be_written(ruled: Place) -> None:
    audit = ruled.gateway.audit
    with pytest.raises(UseUnrecorded):
        async with ruled.gateway.models.using(MODEL, _caller(ruled, "ann")):
            audit.close()
    try:
        n_before = [one.model.statistics.n_requests for one in ruled.gateway.models.pool.loaded()]
        async with gpt_of(ruled, "ann") as gpt, claude_of(ruled, "ann") as claude:
            for stream in (False, True):
                with pytest.raises(openai.InternalServerError, match="cannot be recorded") as said:
                    await gpt.chat.completions.create(**ASK, stream=stream)
                assert said.value.status_code == 503
            with pytest.raises(anthropic.InternalServerError, match="cannot be recorded"):
                await claude.messages.create(**ASK)
        assert [one.model.statistics.n_requests for one in ruled.gateway.models.pool.loaded()] == n_before
    finally:
        audit.open()
    async with gpt_of(ruled, "ann") as gpt:
        assert (await gpt.chat.completions.create(**ASK)).choices


def _caller(place: Place, user: str) -> Caller:
    return Caller(Principal(user), place.gateway.profile, "a test")
