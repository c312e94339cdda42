"""The starter model works with the starter servers: `lockgate agent run` and the OpenAI-compatible API.

Knows no engine: a real model answers, so what it says is judged only where the tools give it the words.
"""

import http.client
import json
import re
import signal
import subprocess
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.e2e.gateways import LOCKGATE, RunningGateway, environment, eventually, missing, processes

pytestmark = [pytest.mark.docker, pytest.mark.model]

MODEL = "qwen2.5-coder:0.5b"
TASK = "What time is it in Tokyo right now?"
ENDLESS = "Write a Python program with 50 functions."
"""Keeps this model busy for many hundred tokens at temperature 0, where some longer requests get two sentences."""
PULL_S = 1800
RUN_S = 180
FREED_S = 10
INTERRUPTED_S = 8
QUIET_S = 1.0
"""A worker that uses next to no processor time for so long generates nothing."""
QUIET_CPU_S = 0.1

CLOCK = {
    "type": "function",
    "function": {
        "name": "get_current_time",
        "description": "Get the current time in a time zone.",
        "parameters": {
            "type": "object",
            "properties": {"timezone": {"type": "string", "description": "IANA name, such as Asia/Tokyo"}},
            "required": ["timezone"],
        },
    },
}


@pytest.fixture(scope="module")
def gateway(docker_gateway: RunningGateway) -> RunningGateway:
    """The gateway with containers, and the starter model in its store."""
    done = docker_gateway.cli("model", "pull", MODEL, within_s=PULL_S)
    if done.returncode != 0:
        missing(f"the starter model cannot be had: {done.stderr[-500:]}")
    return docker_gateway


# -- the agent -----------------------------------------------------------------------------------


def calls_of_the_agent(gateway: RunningGateway, since: float) -> list[dict[str, Any]]:
    return [line for line in gateway.audit() if line["at"] >= since and line["client"] == "lockgate"]


def names_time(text: str, told: Mapping[str, Any]) -> bool:
    """Whether the text holds the hour and minute of the tool's result: as `7:30 PM`, `19:30` or `T19:30:32+09:00`."""
    hour, minute = int(told["datetime"][11:13]), told["datetime"][14:16]
    half = "AM" if hour < 12 else "PM"
    on_24 = rf"(?<!\d)0?{hour}:{minute}(?!\d)"
    on_12 = rf"(?<!\d)0?{hour % 12 or 12}:{minute}(?::\d\d)?(?!:?\d)(?! ?(?!{half})[AP]M)"
    return re.search(f"{on_24}|{on_12}", text) is not None


def test_the_agent_asks_the_clock_and_answers_with_what_it_says(gateway: RunningGateway) -> None:
    began = time.time() - 1
    done = gateway.cli("agent", "run", TASK, within_s=RUN_S)
    assert done.returncode == 0, done.stderr
    assert 'call    time__get_current_time {"timezone": "Asia/Tokyo"}' in done.stdout
    told = json.loads(re.search(r"result  (\{.*?\n {10}\})", done.stdout, re.DOTALL)[1])  # type: ignore[index]
    assert told["timezone"] == "Asia/Tokyo"
    answer = re.search(r"^answer  (.+)", done.stdout, re.MULTILINE | re.DOTALL)
    assert answer is not None
    assert names_time(answer[1], told), done.stdout
    records = calls_of_the_agent(gateway, began)
    assert ("time__get_current_time", "ok") in [(record["name"], record["outcome"]) for record in records]
    assert {record["profile"] for record in records} == {"starter"}


def test_the_transcript_is_one_json_document(gateway: RunningGateway) -> None:
    done = gateway.cli("agent", "run", TASK, "--json", within_s=RUN_S)
    assert done.returncode == 0, done.stderr
    transcript = json.loads(done.stdout)
    assert (transcript["task"], transcript["model"], transcript["profile"]) == (TASK, MODEL, "starter")
    events = transcript["events"]
    kinds = [event["event"] for event in events]
    assert kinds[0] == "StepStarted"
    assert kinds[-2:] == ["Answered", "Stopped"]
    called, returned = (
        next(event for event in events if event["event"] == f"Tool{kind}") for kind in ("Called", "Returned")
    )
    assert called["name"] == returned["name"] == "time__get_current_time"
    assert called["id"] == returned["id"]
    assert called["arguments"] == {"timezone": "Asia/Tokyo"}
    assert not returned["is_error"]
    assert transcript["answer"] == events[-2]["text"]
    assert names_time(transcript["answer"], json.loads(returned["text"]))
    assert events[-1]["reason"] == "answered"
    assert kinds.count("StepStarted") == events[-1]["steps"] <= 5


def test_a_budget_of_one_step_ends_the_run_without_an_answer(gateway: RunningGateway) -> None:
    done = gateway.cli("agent", "run", TASK, "--steps", "1", "--json", within_s=RUN_S)
    assert done.returncode == 3
    transcript = json.loads(done.stdout)
    assert transcript["answer"] is None
    assert [event["event"] for event in transcript["events"]].count("StepStarted") == 1
    assert transcript["events"][-1]["reason"] == "steps"
    assert transcript["events"][-1]["steps"] == 1


def test_a_model_nobody_knows_exits_1_and_says_what_there_is(gateway: RunningGateway) -> None:
    done = gateway.cli("agent", "run", TASK, "--model", "nobody:1b")
    assert done.returncode == 1
    assert "nobody:1b" in done.stderr
    assert "Traceback" not in done.stderr


def cpu_s(gateway: RunningGateway) -> float:
    """Processor time that the gateway's model workers have used so far; none while no model is loaded."""
    found = processes()
    workers = [pid for pid in gateway.family() if pid in found and b"engine.worker" in found[pid].command]
    return sum(found[pid].cpu_s for pid in workers)


def generates(gateway: RunningGateway) -> None:
    """Wait until the worker is at work."""
    before = cpu_s(gateway)
    eventually("the model generates", lambda: cpu_s(gateway) > before + 0.5, RUN_S)


def rests(gateway: RunningGateway) -> None:
    """Wait until the worker does nothing any more."""
    seen = (time.monotonic(), cpu_s(gateway))

    def quiet() -> bool:
        nonlocal seen
        now, used = time.monotonic(), cpu_s(gateway)
        if used > seen[1] + QUIET_CPU_S:
            seen = (now, used)
        return now - seen[0] >= QUIET_S

    eventually("the model rests", quiet, FREED_S)


@contextmanager
def agent_at_work(gateway: RunningGateway, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """`lockgate agent run` from the moment its model generates."""
    process = subprocess.Popen(
        [*LOCKGATE, "agent", "run", *arguments],
        env=environment(gateway.state, runtime="docker"),
        cwd=gateway.state.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "step 1\n"
            generates(gateway)
            yield process
        finally:
            process.kill()


def test_an_interrupted_agent_ends_at_once_and_its_model_with_it(gateway: RunningGateway) -> None:
    with agent_at_work(gateway, ENDLESS, "--tokens", "4000") as process:
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(INTERRUPTED_S) == 130
        assert time.monotonic() - began < INTERRUPTED_S
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
    rests(gateway)
    assert [server["id"] for server in gateway.servers() if server["in_flight"]] == []
    assert chat(gateway, "Say hello.", max_tokens=4)["choices"][0]["finish_reason"] in ("length", "stop")


# -- the OpenAI-compatible API -------------------------------------------------------------------


def post(gateway: RunningGateway, body: bytes, kind: str = "application/json") -> http.client.HTTPResponse:
    """The answer's head; reading it, and closing its connection, is the caller's."""
    connection = http.client.HTTPConnection(urlsplit(gateway.url).netloc, timeout=RUN_S)
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": kind, "Connection": "close"})
    return connection.getresponse()


def chat(gateway: RunningGateway, text: str, **options: Any) -> dict[str, Any]:
    request = {"model": MODEL, "messages": [{"role": "user", "content": text}], **options}
    with post(gateway, json.dumps(request).encode()) as answer:
        body: dict[str, Any] = json.loads(answer.read())
        assert answer.status == 200, body
        return body


def chunks(gateway: RunningGateway, text: str, **options: Any) -> Generator[dict[str, Any]]:
    """The chunks of a streamed answer, which must end with [DONE]. Closing the generator hangs up."""
    request = {"model": MODEL, "messages": [{"role": "user", "content": text}], "stream": True, **options}
    with post(gateway, json.dumps(request).encode()) as answer:
        assert answer.status == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer:
            if line.startswith(b"data: [DONE]"):
                return
            if line.startswith(b"data: "):
                yield json.loads(line.removeprefix(b"data: "))
    raise AssertionError("the stream ended without [DONE]")


def test_the_stored_models_are_listed(gateway: RunningGateway) -> None:
    status, body = gateway.get("/v1/models")
    listed = json.loads(body)
    assert (status, listed["object"]) == (200, "list")
    assert MODEL in [model["id"] for model in listed["data"]]
    assert {model["object"] for model in listed["data"]} == {"model"}


def test_an_answer_comes_whole(gateway: RunningGateway) -> None:
    answer = chat(gateway, "What is the capital of France? Answer with one word.", temperature=0, max_tokens=16)
    assert (answer["object"], answer["model"]) == ("chat.completion", MODEL)
    (choice,) = answer["choices"]
    assert "Paris" in choice["message"]["content"]
    assert (choice["message"]["role"], choice["finish_reason"]) == ("assistant", "stop")
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert 0 < usage["completion_tokens"] <= 16


def test_an_answer_comes_in_pieces(gateway: RunningGateway) -> None:
    got = list(chunks(gateway, "Count from 1 to 10, separated by commas.", temperature=0, max_tokens=40))
    assert len(got) > 5
    assert {chunk["object"] for chunk in got} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in got}) == 1
    deltas = [chunk["choices"][0] for chunk in got if chunk["choices"]]
    assert deltas[0]["delta"]["role"] == "assistant"
    text = "".join(choice["delta"].get("content") or "" for choice in deltas)
    assert re.search(r"3,\s*4,\s*5", text)
    assert [choice["finish_reason"] for choice in deltas if choice.get("finish_reason")] in (["stop"], ["length"])


def test_a_tool_call_comes_whole(gateway: RunningGateway) -> None:
    answer = chat(gateway, TASK, tools=[CLOCK], tool_choice="required", temperature=0)
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == "tool_calls"
    (call,) = choice["message"]["tool_calls"]
    assert (call["type"], call["function"]["name"]) == ("function", "get_current_time")
    assert json.loads(call["function"]["arguments"]) == {"timezone": "Asia/Tokyo"}
    assert call["id"]


def test_a_tool_call_comes_in_pieces(gateway: RunningGateway) -> None:
    got = list(chunks(gateway, TASK, tools=[CLOCK], tool_choice="required", temperature=0))
    choices = [chunk["choices"][0] for chunk in got if chunk["choices"]]
    pieces = [call for choice in choices for call in choice["delta"].get("tool_calls") or []]
    assert {piece["index"] for piece in pieces} == {0}
    assert pieces[0]["function"]["name"] == "get_current_time"
    arguments = "".join(piece["function"].get("arguments") or "" for piece in pieces)
    assert json.loads(arguments) == {"timezone": "Asia/Tokyo"}
    assert choices[-1]["finish_reason"] == "tool_calls"


def test_a_client_that_leaves_frees_the_model(gateway: RunningGateway) -> None:
    with closing(chunks(gateway, ENDLESS, temperature=0, max_tokens=4000)) as stream:
        begun = [next(stream) for _ in range(20)]
    assert [chunk for chunk in begun if chunk["choices"][0].get("finish_reason")] == []
    rests(gateway)


@pytest.mark.parametrize(
    ("body", "kind", "status", "said"),
    [
        (b"{nonsense", "application/json", 400, "not a JSON object"),
        (b"{}", "text/plain", 415, "application/json"),
        (b'{"messages": []}', "application/json", 400, "messages"),
        (
            b'{"model": "nobody:1b", "messages": [{"role": "user", "content": "hi"}]}',
            "application/json",
            404,
            "nobody:1b",
        ),
    ],
    ids=["not-json", "not-declared-json", "no-messages", "unknown-model"],
)
def test_a_request_that_cannot_be_answered_gets_an_error_object(
    gateway: RunningGateway, body: bytes, kind: str, status: int, said: str
) -> None:
    with post(gateway, body, kind) as answer:
        error = json.loads(answer.read())["error"]
        assert answer.status == error["code"] == status
        assert said in error["message"]
