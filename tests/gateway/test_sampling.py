"""Servers that ask for a language model: answered by the client, by a model here, or by nobody, as their entry says.

The servers and the models are real; what a model writes is its own, so only its form is looked at."""

import json
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from engine import StoredModel
from gateway import createmessage
from gateway.createmessage import Unanswered
from tests.engine.conftest import cache_folder, model_store, qwen, smollm2  # noqa: F401  # fixtures
from tests.gateway.callers import Session, message
from tests.gateway.running import Place, running
from tests.gateway.test_modern import result
from tests.servers import DEADLINE_S, LOCAL

pytestmark = pytest.mark.anyio

CREATE = "sampling/createMessage"
HELLO = {"role": "user", "content": {"type": "text", "text": "Say hello."}}
ASKED = {"messages": [HELLO], "maxTokens": 8}
QUESTION = [CREATE, ASKED]
FORM = ["elicitation/create", {"message": "Who?", "requestedSchema": {"type": "object", "properties": {}}}]
MODEL = "smollm2:135m"
WAYS = ("client", "either", "local", "nobody")


def legacy(**sampling: Any) -> dict[str, Any]:
    return {"package": dict(LOCAL), "command": ["friendly"], "sampling": sampling}


def modern(**sampling: Any) -> dict[str, Any]:
    return {"package": dict(LOCAL), "command": ["asker"], "sampling": sampling}


@pytest.fixture(scope="module")
async def place(
    tmp_path_factory: pytest.TempPathFactory,
    smollm2: StoredModel,  # noqa: F811
    qwen: StoredModel,  # noqa: F811
) -> AsyncIterator[Place]:
    servers = {by: legacy(by=by, requests=3, tokens=600) for by in WAYS}
    servers |= {f"new-{by}": modern(by=by, requests=3, tokens=600) for by in WAYS}
    servers["plain"] = {"package": dict(LOCAL), "command": ["friendly"], "interactive": True}
    folder = tmp_path_factory.mktemp("sampling")
    async with running(folder, servers, cache_dir=cache_folder(), model=MODEL, context_tokens=2048) as place:
        for id in servers:
            await place.gateway.pool.learn(id)
        yield place


async def asked(place: Place, server: str, *questions: Any, capabilities: Any = None) -> list[dict[str, Any]]:
    """What the server heard on these questions from a session that answers none."""
    session = await place.session(capabilities=capabilities)
    try:
        with anyio.fail_after(3 * DEADLINE_S):
            found: list[dict[str, Any]] = json.loads(
                await session.call(f"{server}__ask", {"questions": list(questions)})
            )
        return found
    finally:
        await session.close()


async def asked_anew(place: Place, server: str, *rounds: Any, capabilities: Any = None, **more: Any) -> Any:
    """The result of a call by a client of the modern era."""
    params = {"name": f"{server}__ask", "arguments": {"rounds": list(rounds)}, **more}
    with anyio.fail_after(3 * DEADLINE_S):
        return await result(place, "tools/call", params, clientCapabilities=capabilities or {})


def uses(place: Place) -> list[dict[str, Any]]:
    return [line for line in place.audit() if line["method"] == "models/use"]


def is_answer(found: Any) -> bool:
    return (
        found["role"] == "assistant"
        and found["content"]["type"] == "text"
        and found["model"] == MODEL
        and found["stopReason"] in ("endTurn", "maxTokens")
    )


@pytest.mark.parametrize("server", ["either", "local"])
async def test_a_model_here_answers_in_a_session_that_offers_none(place: Place, server: str) -> None:
    before = len(uses(place))
    (heard,) = await asked(place, server, QUESTION)
    assert is_answer(heard["result"])
    (use,) = uses(place)[before:]
    assert (use["server"], use["name"], use["outcome"]) == (server, MODEL, "ok")
    assert use["prompt_tokens"] > 0
    assert 0 < use["completion_tokens"] <= ASKED["maxTokens"]


@pytest.mark.parametrize("server", ["new-either", "new-local"])
async def test_a_model_here_answers_a_modern_server(place: Place, server: str) -> None:
    found = json.loads((await asked_anew(place, server, [["a", *QUESTION]]))["content"][0]["text"])
    assert is_answer(found["heard"][0]["a"])
    assert found["told"]["sampling"] == {"tools": {}}


@pytest.mark.parametrize("server", ["client", "nobody"])
async def test_without_leave_no_model_here_answers(place: Place, server: str) -> None:
    before = len(uses(place))
    (heard,) = await asked(place, server, QUESTION)
    assert heard["error"]["code"] == -32601
    assert len(uses(place)) == before


async def test_a_modern_server_without_leave_is_told_of_no_model(place: Place) -> None:
    for server, capabilities in (("new-client", {}), ("new-nobody", {"sampling": {}})):
        found = json.loads((await asked_anew(place, server, capabilities=capabilities))["content"][0]["text"])
        assert "sampling" not in found["told"]
    before = len(uses(place))
    outcome = await asked_anew(place, "new-nobody", [["a", *QUESTION]], capabilities={"sampling": {}})
    assert outcome["isError"] is True
    assert "nobody gives it" in outcome["content"][0]["text"]
    assert len(uses(place)) == before


async def put_to_client(session: Session, server: str) -> tuple[Any, Any]:
    """The question that reaches a session's client, and what the server heard of the answer."""
    body = message("tools/call", {"name": f"{server}__ask", "arguments": {"questions": [QUESTION]}}, session.next_id())
    answer = {"role": "assistant", "content": {"type": "text", "text": "mine"}, "model": "client"}
    async with session.http.stream("POST", "/mcp", body, session.headers(*STREAM)) as stream:
        question = await stream.until(CREATE)
        reply = {"jsonrpc": "2.0", "id": question["id"], "result": answer}
        assert (await session.post(json.dumps(reply).encode())).status == 202
        while "method" in (last := await stream.message()):
            pass
    return question, json.loads(last["result"]["content"][0]["text"])


STREAM = (("Content-Type", "application/json"), ("Accept", "application/json, text/event-stream"))


@pytest.mark.parametrize("server", ["plain", "either"])
async def test_a_client_that_can_is_asked_itself(place: Place, server: str) -> None:
    before = len(uses(place))
    session = await place.session(capabilities={"sampling": {}})
    question, heard = await put_to_client(session, server)
    assert question["params"] == ASKED
    assert heard[0]["result"]["content"]["text"] == "mine"
    assert len(uses(place)) == before
    await session.close()


async def test_a_modern_client_that_can_is_asked_itself_unless_the_entry_says_otherwise(place: Place) -> None:
    before = len(uses(place))
    first = await asked_anew(place, "new-either", [["a", *QUESTION]], capabilities={"sampling": {}})
    assert first["inputRequests"]["a"]["params"] == ASKED
    assert len(uses(place)) == before
    other = await asked_anew(place, "new-local", [["a", *QUESTION]], capabilities={"sampling": {}})
    assert is_answer(json.loads(other["content"][0]["text"])["heard"][0]["a"])


async def test_tools_are_for_a_client_that_takes_them_and_else_for_a_model_here(place: Place) -> None:
    tool = {"name": "look", "description": "Looks.", "inputSchema": {"type": "object", "additionalProperties": False}}
    wanted = {**ASKED, "temperature": 0, "maxTokens": 64, "tools": [tool], "toolChoice": {"mode": "required"}}
    first = await asked_anew(place, "new-either", [["a", CREATE, wanted]], capabilities={"sampling": {"tools": {}}})
    assert first["resultType"] == "input_required"
    (heard,) = await asked(place, "either", [CREATE, wanted], capabilities={"sampling": {}})
    use = heard["result"]["content"][-1]
    assert (use["type"], use["name"], heard["result"]["stopReason"]) == ("tool_use", "look", "toolUse")


async def test_what_a_client_and_a_model_here_are_asked_together_reaches_each(place: Place) -> None:
    rounds = [[["a", *QUESTION], ["b", *FORM]]]
    able = {"elicitation": {}}
    first = await asked_anew(place, "new-either", *rounds, capabilities=able)
    assert set(first["inputRequests"]) == {"b"}
    more = {"requestState": first["requestState"], "inputResponses": {"b": {"action": "decline"}}}
    last = await asked_anew(place, "new-either", *rounds, capabilities=able, **more)
    (heard,) = json.loads(last["content"][0]["text"])["heard"]
    assert heard["b"] == {"action": "decline"}
    assert is_answer(heard["a"])


async def test_one_call_may_ask_so_often_and_no_more(place: Place) -> None:
    heard = await asked(place, "either", *[QUESTION] * 5)
    assert ["result" in one for one in heard] == [True, True, True, False, False]
    assert heard[3]["error"] == {"code": -1, "message": "one call may ask for a model 3 times"}
    outcome = await asked_anew(place, "new-either", *[[["a", *QUESTION]]] * 4)
    assert outcome["isError"] is True
    assert "3 times" in outcome["content"][0]["text"]


async def test_a_server_that_goes_on_asking_after_refusals_has_its_call_ended(place: Place) -> None:
    session = await place.session()
    said = await session.failure("either__ask", {"questions": [[CREATE, {}]] * 40})
    assert "went on asking" in said
    await session.close()


async def test_one_call_may_use_so_many_tokens_and_the_prompt_counts(place: Place) -> None:
    before = len(uses(place))
    long = {"role": "user", "content": {"type": "text", "text": "word " * 700}}
    (heard,) = await asked(place, "either", [CREATE, {"messages": [long], "maxTokens": 8}])
    assert heard["error"]["code"] == -1
    assert "600 tokens" in heard["error"]["message"]
    some = {"role": "user", "content": {"type": "text", "text": "word " * 500}}
    first, second = await asked(place, "either", *[[CREATE, {"messages": [some], "maxTokens": 8}]] * 2)
    assert is_answer(first["result"])
    assert second["error"]["code"] == -1
    assert sum(one["completion_tokens"] for one in uses(place)[before:]) <= 8


@pytest.mark.parametrize("server", ["either", "new-either"])
async def test_images_are_refused_by_name(place: Place, server: str) -> None:
    image = {"type": "image", "data": "AA==", "mimeType": "image/png"}
    question = [CREATE, {"messages": [{"role": "user", "content": image}], "maxTokens": 8}]
    if server == "either":
        (heard,) = await asked(place, server, question)
        code, text = heard["error"]["code"], heard["error"]["message"]
        assert code == -32602
    else:
        text = (await asked_anew(place, server, [["a", *question]]))["content"][0]["text"]
    assert "read text only, and a message holds image content" in text


async def test_a_hint_chooses_among_the_models_here_and_others_mean_the_default(place: Place) -> None:
    def hinted(*names: str, **more: float) -> list[Any]:
        return [CREATE, {**ASKED, "maxTokens": 2, "modelPreferences": {"hints": [{"name": n} for n in names], **more}}]

    heard = await asked(place, "either", hinted("gpt-9", "Qwen2.5-coder:0.5"), hinted("gpt-9"), hinted())
    assert [one["result"]["model"] for one in heard] == ["qwen2.5-coder:0.5b", MODEL, MODEL]


async def test_other_members_are_heeded_or_have_no_effect(place: Place) -> None:
    more = {
        "systemPrompt": "You are brief.",
        "temperature": 9.0,
        "stopSequences": ["\n"],
        "includeContext": "allServers",
        "metadata": {"a": 1},
    }
    (heard,) = await asked(place, "either", [CREATE, {**ASKED, **more}])
    assert is_answer(heard["result"])
    assert "\n" not in heard["result"]["content"]["text"]


@pytest.mark.sec("SEC-021")
async def test_policy_and_profile_decide_as_for_any_use_of_a_model(
    tmp_path_factory: pytest.TempPathFactory,
    smollm2: StoredModel,  # noqa: F811
) -> None:
    folder = tmp_path_factory.mktemp("forbidden")
    (folder / "state").mkdir()
    policies = folder / "state" / "policies"
    policies.mkdir()
    (policies / "calls.cedar").write_text('permit (principal, action in [Action::"call", Action::"list"], resource);')
    profiles = {"all": {"servers": ["a"], "policy": "calls"}}
    servers = {"a": legacy(by="either")}
    async with running(folder, servers, profiles, cache_dir=cache_folder(), model=MODEL) as place:
        (heard,) = await asked(place, "a", QUESTION)
        assert heard["error"] == {"code": -1, "message": "the use of a model was not allowed"}
        (use,) = uses(place)
        assert (use["server"], use["outcome"]) == ("a", "denied")


def chat(*messages: Any, **more: Any) -> dict[str, Any]:
    asked = createmessage.read(json.dumps({"messages": messages, "maxTokens": 5, **more}).encode())
    return createmessage.chat_request(asked, MODEL, 100)


USE = {"type": "tool_use", "id": "1", "name": "look", "input": {"n": 1}}
RESULT = {"type": "tool_result", "toolUseId": "1", "content": [{"type": "text", "text": "seen"}]}


def test_calls_of_tools_and_their_results_become_messages_of_a_chat() -> None:
    found = chat(HELLO, {"role": "assistant", "content": [USE]}, {"role": "user", "content": RESULT})
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"n":1}'}}
    assert found["messages"][1:] == [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "seen"},
    ]


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([HELLO, {"role": "assistant", "content": USE}], "missing"),
        ([HELLO, {"role": "assistant", "content": USE}, HELLO], "missing"),
        (
            [HELLO, {"role": "assistant", "content": USE}, {"role": "user", "content": [RESULT, HELLO["content"]]}],
            "mix",
        ),
        ([{"role": "user", "content": RESULT}], "without a call"),
        ([{"role": "user", "content": USE}], "an assistant's"),
        ([{"role": "user", "content": {"type": "audio", "data": "AA=="}}], "audio"),
        ([{"role": "user", "content": {"type": "film"}}], "film"),
        ([{"role": "system", "content": HELLO["content"]}], "not valid"),
        ([], "not valid"),
    ],
)
def test_messages_that_make_no_sense_are_refused(messages: Any, said: str) -> None:
    with pytest.raises(Unanswered, match=said):
        chat(*messages)


def test_a_request_is_capped_by_what_is_left() -> None:
    assert chat(HELLO, maxTokens=7)["max_tokens"] == 7
    assert chat(HELLO, maxTokens=7_000)["max_tokens"] == 100
