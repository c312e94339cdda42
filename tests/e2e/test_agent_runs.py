"""Runs of agents that can be watched, resumed after a crash, shown and replayed; the model follows a script.

Knows the command line and the transcripts; the servers and the gateway are real."""

import json
import os
import pty
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.gateways import LOCKGATE, RunningGateway, environment, eventually
from tests.servers.scripted_model import scripted_model

TOKYO = ("time__get_current_time", {"timezone": "Asia/Tokyo"})
PARIS = ("time__get_current_time", {"timezone": "Europe/Paris"})
NOTE = ("memory__create_entities", {"entities": [{"name": "Ada", "entityType": "person", "observations": ["x"]}]})
WITHIN_S = 60


@pytest.fixture(scope="module")
def gateway(any_gateway: RunningGateway) -> RunningGateway:
    return any_gateway


def agent(gateway: RunningGateway, *arguments: str, **env: str) -> "subprocess.CompletedProcess[str]":
    return gateway.cli("agent", *arguments, **env)


def calls(gateway: RunningGateway, before: int) -> list[str]:
    """The tools that agents called after so many lines of the audit file."""
    lines = [line for line in gateway.audit()[before:] if line["client"] == "lockgate"]
    return [line["name"] for line in lines if line["method"] == "tools/call"]


def run_json(gateway: RunningGateway, *arguments: str) -> tuple[int, dict[str, Any]]:
    done = agent(gateway, *arguments, "--json")
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_a_model_served_elsewhere_works_with_the_tools_and_each_step_is_shown(gateway: RunningGateway) -> None:
    began = len(gateway.audit())
    with scripted_model([TOKYO, PARIS], "It is late.") as model:
        done = agent(gateway, "run", "What time is it?", "--model", model.url)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:3] == [
        "step 1",
        '  call    time__get_current_time {"timezone": "Asia/Tokyo"}',
        '  call    time__get_current_time {"timezone": "Europe/Paris"}',
    ]
    assert lines[-2:] == ["step 2", "answer  It is late."]
    assert calls(gateway, began) == ["time__get_current_time"] * 2
    told = [message for message in model.asked[1]["messages"] if message["role"] == "tool"]
    assert ["Asia/Tokyo" in told[0]["content"], "Europe/Paris" in told[1]["content"]] == [True, True]
    assert model.asked[0]["model"] == "scripted"
    assert model.keys == [None, None]


def test_key_comes_from_the_variable_that_is_named(gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "k-123")
    with scripted_model("Hello.") as model:
        assert agent(gateway, "run", "Hi", "--model", model.url, "--key-env", "SOME_KEY").returncode == 0
        assert model.keys == ["Bearer k-123"]
        missing = agent(gateway, "run", "Hi", "--model", model.url, "--key-env", "NO_KEY")
    assert missing.returncode == 2
    assert "NO_KEY" in missing.stderr
    record = next((gateway.state / "transcripts").glob("*.jsonl")).read_text()
    assert "k-123" not in record


def test_only_the_tools_that_were_named_are_offered(gateway: RunningGateway) -> None:
    with scripted_model([NOTE], "Done.") as model:
        code, found = run_json(gateway, "run", "Note it", "--model", model.url, "--tools", "time__*")
        names = {tool["function"]["name"] for tool in model.asked[0]["tools"]}
        assert names == {"time__get_current_time", "time__convert_time"}
        assert code == 0
        assert [event["why"] for event in found["events"] if event["event"] == "ToolRefused"] == ["unknown"]
        refused = agent(gateway, "run", "Note it", "--model", model.url, "--tools", "tiem__*")
    assert refused.returncode == 1
    assert "tiem__*" in refused.stderr


@pytest.mark.parametrize(
    ("turns", "arguments", "code", "state"),
    [
        ((["step"],), ("--steps", "2"), 3, "steps"),
        ((["step"],), ("--calls", "1"), 3, "calls"),
        (("",), (), 4, "no_answer"),
        (([TOKYO],), (), 4, "repetition"),
    ],
)
def test_exit_code_says_how_a_run_ended(
    gateway: RunningGateway, turns: Any, arguments: tuple[str, ...], code: int, state: str
) -> None:
    zones = iter(["Asia/Tokyo", "Europe/Paris", "Europe/Rome"])
    script = [
        [("time__get_current_time", {"timezone": next(zones)})] if turn == ["step"] else turn for turn in turns * 2
    ]
    with scripted_model(*script) as model:
        ended, found = run_json(gateway, "run", "What time is it?", "--model", model.url, *arguments)
    assert (ended, found["state"], found["answer"]) == (code, state, None)


def test_answer_takes_the_form_of_a_schema(gateway: RunningGateway, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object", "properties": {"hour": {"type": "integer"}}}')
    with scripted_model("It is nine.", '{"hour": 9}') as model:
        code, found = run_json(gateway, "run", "Which hour?", "--model", model.url, "--schema", str(schema))
    assert (code, found["value"]) == (0, {"hour": 9})
    schema.write_text("[]")
    refused = agent(gateway, "run", "Which hour?", "--model", model.url, "--schema", str(schema))
    assert refused.returncode == 2


# -- after a crash ---------------------------------------------------------------------------------


@contextmanager
def at_work(gateway: RunningGateway, *arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(
        [*LOCKGATE, "agent", "run", *arguments],
        env=environment(gateway.state),
        cwd=gateway.state.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def newest(gateway: RunningGateway) -> dict[str, Any]:
    runs: list[dict[str, Any]] = json.loads(agent(gateway, "list", "--json").stdout)["runs"]
    return runs[0]


def test_a_killed_run_goes_on_where_it_was_and_makes_no_call_twice(gateway: RunningGateway) -> None:
    began = len(gateway.audit())
    with scripted_model([TOKYO], [PARIS], "It is late.") as model:
        model.hold_from = 2
        with at_work(gateway, "What time is it, twice?", "--model", model.url) as process:
            eventually("the second step is asked", lambda: len(model.asked) >= 2, WITHIN_S)
            process.kill()
            process.wait()
        killed = newest(gateway)
        assert (killed["state"], killed["task"], killed["calls"]) == ("unfinished", "What time is it, twice?", 1)
        shown = agent(gateway, "show", killed["run"])
        assert '  call    time__get_current_time {"timezone": "Asia/Tokyo"}' in shown.stdout
        assert f"lockgate agent resume {killed['run']}" in shown.stderr
        model.hold_from = 0
        model.release.set()
        model.asked.pop()  # what was being answered is asked again
        code, found = run_json(gateway, "resume", killed["run"])
    assert (code, found["answer"]) == (0, "It is late.")
    zones = [event["arguments"]["timezone"] for event in found["events"] if event["event"] == "ToolCalled"]
    assert zones == ["Asia/Tokyo", "Europe/Paris"]
    assert len(calls(gateway, began)) == 2
    again = agent(gateway, "resume", killed["run"])
    assert again.returncode == 2
    assert "has its answer" in again.stderr


def test_a_run_that_reached_a_limit_goes_on_with_a_new_one(gateway: RunningGateway) -> None:
    with scripted_model([TOKYO], "It is late.") as model:
        code, _ = run_json(gateway, "run", "What time is it?", "--model", model.url, "--steps", "1")
        assert code == 3
        code, found = run_json(gateway, "resume", "last", "--steps", "3")
    assert (code, found["answer"], found["state"]) == (0, "It is late.", "answered")
    assert [event["step"] for event in found["events"] if event["event"] == "StepStarted"] == [1, 2]


def test_a_run_is_replayed_with_the_recorded_results_and_calls_no_server(gateway: RunningGateway) -> None:
    with scripted_model([TOKYO], "It is late.") as model:
        _, first = run_json(gateway, "run", "What time is it?", "--model", model.url)
    began = len(gateway.audit())
    with scripted_model([TOKYO, PARIS], "Still late.") as other:
        done = agent(gateway, "replay", first["run"], "--model", other.url, "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["answer"]) == (0, "Still late.")
    results = [event for event in found["events"] if event["event"] == "ToolReturned"]
    then = next(event for event in first["events"] if event["event"] == "ToolReturned")
    assert results[0]["text"] == then["text"]
    assert (results[1]["is_error"], "no such call" in results[1]["text"]) == (True, True)
    assert "1 calls were not in the record" in done.stderr
    assert calls(gateway, began) == []


# -- agents defined in files -------------------------------------------------------------------------


def test_an_agent_of_the_folder_is_told_its_prompt_and_has_its_tools(gateway: RunningGateway) -> None:
    folder = gateway.state / "agents"
    folder.mkdir(exist_ok=True)
    with scripted_model("Ticking.", '{"ok": true}') as model:
        text = {"prompt": "You keep time.", "model": model.url, "tools": ["time__*"], "output": {"type": "object"}}
        (folder / "clock.yaml").write_text(json.dumps({"description": "Keeps time", **text}))
        (folder / "broken.yaml").write_text("promt: x")
        code, found = run_json(gateway, "run", "Are you there?", "--agent", "clock")
        assert (code, found["value"], found["agent"]) == (0, {"ok": True}, "clock")
        assert model.asked[0]["messages"][0]["content"] == "You keep time."
        assert len(model.asked[0]["tools"]) == 2
        by_file = agent(gateway, "run", "Are you there?", "--agent", str(folder / "clock.yaml"), "--steps", "5")
        assert by_file.returncode == 0, by_file.stderr
    listed = agent(gateway, "list").stdout
    assert "agent clock  Keeps time" in listed
    assert "agent broken  cannot be used" in listed
    unknown = agent(gateway, "run", "Hi", "--agent", "clok")
    assert unknown.returncode == 1
    assert "there are broken, clock" in unknown.stderr


# -- who agrees --------------------------------------------------------------------------------------


def test_without_anybody_to_agree_only_tools_that_change_nothing_are_called(gateway: RunningGateway) -> None:
    began = len(gateway.audit())
    read = ("filesystem__list_allowed_directories", {})
    with scripted_model([NOTE, read], "Done.") as model:
        code, found = run_json(gateway, "run", "Note it", "--model", model.url, "--approve", "never")
    assert code == 0
    results = {event["name"]: event for event in found["events"] if event["event"] == "ToolReturned"}
    assert "nobody is there to agree" in results[NOTE[0]]["text"]
    assert not results[read[0]]["is_error"]
    assert calls(gateway, began) == [read[0]]


def test_asking_without_a_terminal_is_a_no(gateway: RunningGateway) -> None:
    began = len(gateway.audit())
    with scripted_model([TOKYO], "Then not.") as model:
        code, found = run_json(gateway, "run", "What time is it?", "--model", model.url, "--approve", "ask")
    assert code == 0
    assert [event["is_error"] for event in found["events"] if event["event"] == "ToolReturned"] == [True]
    assert calls(gateway, began) == []


@pytest.mark.parametrize(("typed", "made"), [(b"y\n", 1), (b"n\n", 0), (b"\n", 0)])
def test_the_person_at_the_terminal_is_asked_before_each_call(gateway: RunningGateway, typed: bytes, made: int) -> None:
    began = len(gateway.audit())
    with scripted_model([TOKYO], "So be it.") as model:
        outside, inside = pty.openpty()
        process = subprocess.Popen(
            [*LOCKGATE, "agent", "run", "What time is it?", "--model", model.url, "--approve", "ask"],
            env=environment(gateway.state),
            cwd=gateway.state.parent,
            stdin=inside,
            stdout=inside,
            stderr=inside,
        )
        os.close(inside)
        try:
            shown = b""
            while b"[y/N]" not in shown:
                shown += os.read(outside, 4096)
            assert b'call time__get_current_time {"timezone": "Asia/Tokyo"}?' in shown
            os.write(outside, typed)
            while process.poll() is None:
                try:
                    shown += os.read(outside, 4096)
                except OSError:  # the last process at the terminal has ended
                    process.wait(WITHIN_S)
            assert process.returncode == 0
        finally:
            process.kill()
            process.wait()
            os.close(outside)
    assert len(calls(gateway, began)) == made
