"""Content guards on tasks that servers made: what a task says passes them as the result of a call does."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.running import Place, running
from tests.gateway.taskclient import TAKES, ask, call, get, task
from tests.gateway.test_modern import post, result
from tests.servers import LOCAL

pytestmark = pytest.mark.anyio

KEY = "ghp_" + "aB3dE5gH7jK9mN1pQ3sT5vX7zA9bC1dE3fG5"
CLEAN = "[GitHub token removed]"
DONE = {"status": "completed", "result": {"content": [{"type": "text", "text": f"is {KEY}"}]}}
ASKS = {
    "status": "input_required",
    "inputRequests": {
        "one": {
            "method": "elicitation/create",
            "params": {"mode": "form", "message": f"{KEY}?", "requestedSchema": {"type": "object", "properties": {}}},
        }
    },
}
ELICITS = {"elicitation": {"form": {}}}


def tasker(mode: str, **options: Any) -> dict[str, Any]:
    command = ["tasker", json.dumps(options)]
    return {"a": {"package": dict(LOCAL), "command": command, "guards": {"results": {"secrets": mode}}}}


async def changed(place: Place, state: Any) -> None:
    await result(place, "tools/call", {"name": "a__state", "arguments": {"key": "k", "state": state}})


async def test_what_a_task_comes_to_is_replaced_or_kept_back(tmp_path: Path) -> None:
    async with running(tmp_path, tasker("redact")) as place:
        id = await task(place, "a__job", {"key": "k"})
        await changed(place, {"statusMessage": f"at {KEY}"})
        assert (await get(place, id))["statusMessage"] == f"at {CLEAN}"
        await changed(place, DONE)
        assert (await get(place, id))["result"]["content"] == [{"type": "text", "text": f"is {CLEAN}"}]
        record = place.audit()[-1]
        assert (record["method"], record["guards"][0]) == ("tasks/get", "results: secrets redact 2")


async def test_a_state_that_is_kept_back_leaves_the_task(tmp_path: Path) -> None:
    async with running(tmp_path, tasker("block")) as place:
        id = await task(place, "a__job", {"key": "k"})
        await changed(place, {"statusMessage": KEY})
        answer = await post(place, "tasks/get", {"taskId": id}, clientCapabilities=TAKES)
        assert "GitHub token" in answer.messages()[-1]["error"]["message"]
        assert KEY.encode() not in answer.body
        assert place.audit()[-1]["outcome"] == "kept_back"
        await changed(place, {"statusMessage": "well"})
        assert (await get(place, id))["statusMessage"] == "well"


async def test_a_task_whose_first_state_is_kept_back_is_withdrawn(tmp_path: Path) -> None:
    async with running(tmp_path, tasker("block", message=KEY)) as place:
        kept = await call(place, "a__job", {"key": "k"})
        assert kept["isError"]
        assert KEY not in json.dumps(kept)
    async with running(tmp_path, tasker("redact", message=KEY)) as place:
        made = await call(place, "a__job", {"key": "k"})
        assert made["statusMessage"] == CLEAN
        assert (await ask(place, "tasks/cancel", made["taskId"]))["resultType"] == "complete"


async def test_questions_of_a_task_that_is_followed_pass_the_guards(tmp_path: Path) -> None:
    for mode in ("redact", "block"):
        async with running(tmp_path, tasker(mode, rude=True, asks=ASKS)) as place:
            params = {"name": "a__job", "arguments": {"key": "k"}}
            answer = await post(place, "tools/call", params, clientCapabilities=ELICITS)
            found = answer.messages()[-1]["result"]
            assert KEY.encode() not in answer.body
            if mode == "redact":
                assert found["inputRequests"]["one"]["params"]["message"] == f"{CLEAN}?"
            else:
                assert found["isError"]
                assert place.audit()[-1]["detail"] == "guard: secrets"
