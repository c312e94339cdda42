"""The command line: what each command prints, and the exit code a script can rely on.

Knows commands only; 0 is done, 1 failed, 2 wrong usage or settings.
"""

import json
import os
import pty
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import catalogs
from tests.e2e.gateways import LOCKGATE, STARTER, RunningGateway, environment, eventually, lockgate

CALL = "time__get_current_time"
LONG = "everything__trigger-long-running-operation"
TOKYO = '{"timezone": "Asia/Tokyo"}'
SEEN_S = 30

HOSTILE = catalogs.SMALL.replace(
    '{"name": "hello", ', '{"name": "hello", "description": "\\u001b]0;owned\\u0007 [/nothing] [bold]hi", '
).replace('"text": "hello"', '"text": "\\u001b[2Jgone"')
"""A server whose texts would retitle and clear a terminal, and are no valid markup either."""


def printed(done: "subprocess.CompletedProcess[str]", code: int = 0) -> str:
    assert done.returncode == code, f"{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stdout


def refused(done: "subprocess.CompletedProcess[str]", code: int) -> str:
    """What a command that failed said, on one line: boxes wrap."""
    printed(done, code)
    return re.sub(r"[\s│╭╮╰╯─]+", " ", done.stderr)


# -- with a running gateway ----------------------------------------------------------------------


def test_tools_list_shows_each_tool_and_their_number(any_gateway: RunningGateway) -> None:
    lines = printed(any_gateway.cli("tools", "list")).splitlines()
    assert any(re.match(r"time__get_current_time +Get current time", line) for line in lines)
    assert lines[-1] == f"{len(lines) - 2} tools"
    tools = json.loads(printed(any_gateway.cli("tools", "list", "--json")))
    assert len(tools) == len(lines) - 2 >= 57
    assert all({"name", "inputSchema"} <= set(tool) for tool in tools)


def test_tools_call_prints_the_text_of_the_result_or_all_of_it_as_json(any_gateway: RunningGateway) -> None:
    assert json.loads(printed(any_gateway.cli("tools", "call", CALL, TOKYO)))["timezone"] == "Asia/Tokyo"
    result = json.loads(printed(any_gateway.cli("tools", "call", CALL, TOKYO, "--json")))
    assert result["structuredContent"] == json.loads(result["content"][0]["text"])


def test_a_call_that_fails_exits_1_and_prints_why(any_gateway: RunningGateway) -> None:
    assert "Mars/Base" in printed(any_gateway.cli("tools", "call", CALL, '{"timezone": "Mars/Base"}'), 1)
    done = any_gateway.cli("tools", "call", "time__no_such_tool")
    assert refused(done, 1) == "lockgate: Unknown tool: time__no_such_tool "


@pytest.mark.parametrize("arguments", ["{timezone: UTC}", "[]"])
def test_arguments_that_are_no_json_object_exit_2_before_anything_is_asked(arguments: str, state: Path) -> None:
    done = lockgate("tools", "call", CALL, arguments, state=state)
    assert "JSON" in refused(done, 2)
    assert not state.exists()


@pytest.mark.docker
def test_an_unknown_profile_exits_2_and_suggests_one(docker_gateway: RunningGateway, state: Path) -> None:
    for done in (
        docker_gateway.cli("tools", "list", "--profile", "startr"),
        lockgate("tools", "call", CALL, TOKYO, "--profile", "startr", state=state),
        lockgate("serve", "--no-model", "--profile", "startr", state=state),
    ):
        assert 'there is no profile "startr" (did you mean "starter"?)' in refused(done, 2)


@pytest.mark.docker
def test_an_unknown_server_exits_2_and_suggests_one(docker_gateway: RunningGateway) -> None:
    said = refused(docker_gateway.cli("server", "stop", "tim"), 2)
    assert 'there is no entry "tim" (did you mean "time"?)' in said
    refused(docker_gateway.cli("server", "inspect", "../a b"), 2)


def test_server_list_shows_the_states_of_the_profiles_servers(any_gateway: RunningGateway) -> None:
    servers = json.loads(printed(any_gateway.cli("server", "list", "--json")))
    assert [server["id"] for server in servers] == list(STARTER)
    assert {server["state"] for server in servers} <= {"idle", "running"}
    table = printed(any_gateway.cli("server", "list")).splitlines()
    assert [line.split()[0] for line in table[1:]] == list(STARTER)


def test_server_stop_start_inspect_and_logs_tell_one_story(any_gateway: RunningGateway) -> None:
    printed(any_gateway.cli("server", "stop", "time"))
    eventually("it has stopped", lambda: any_gateway.server("time")["state"] == "idle", SEEN_S)
    started = json.loads(printed(any_gateway.cli("server", "start", "time")))
    assert started["state"] == "running"
    seen = json.loads(printed(any_gateway.cli("server", "inspect", "time")))
    assert seen["detail"] == started["detail"]
    assert seen["tool_names"] == ["get_current_time", "convert_time"]
    assert seen["entry"]["package"]["name"] == "mcp-server-time"
    unique = seen["detail"].get("container") or f"process {seen['detail']['pid']}"
    lines = json.loads(printed(any_gateway.cli("server", "logs", "time", "--json")))
    assert any(unique in line["text"] and line["origin"] == "gateway" for line in lines)
    assert unique in printed(any_gateway.cli("server", "logs", "time"))


def test_an_interrupted_call_exits_130_and_is_withdrawn_at_its_server(any_gateway: RunningGateway) -> None:
    began = time.time() - 1
    process = subprocess.Popen(
        [*LOCKGATE, "tools", "call", LONG, '{"duration": 100, "steps": 2}'],
        env=environment(any_gateway.state),
        cwd=any_gateway.state.parent,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        eventually("the call is under way", lambda: any_gateway.server("everything")["in_flight"] == 1, SEEN_S)
        process.send_signal(signal.SIGINT)
        assert process.wait(SEEN_S) == 130
        assert process.stderr is not None
        assert process.stderr.read() == ""
    eventually("it is withdrawn", lambda: any_gateway.server("everything")["in_flight"] == 0, SEEN_S)
    records = [line for line in any_gateway.audit() if line["at"] >= began and line["name"] == LONG]
    assert [record["outcome"] for record in records] == ["cancelled"]


def test_check_finds_the_running_gateway(any_gateway: RunningGateway) -> None:
    checked = json.loads(any_gateway.cli("check", "--json").stdout)
    rows = {row["check"]: row for row in checked["checks"]}
    assert rows["gateway"]["finding"].startswith(f"running at {any_gateway.url}, process ")
    assert [name for name in rows if name.startswith("server ")] == [f"server {id}" for id in STARTER]
    assert checked["ok"] == all(row["ok"] for row in rows.values())


def test_check_start_has_the_running_gateway_start_its_servers(any_gateway: RunningGateway) -> None:
    checked = json.loads(any_gateway.cli("check", "--start", "--json").stdout)
    findings = {row["check"]: row["finding"] for row in checked["checks"] if row["check"].startswith("server ")}
    assert len(findings) == len(STARTER)
    assert findings["server time"].startswith("running, 2 tools, ")
    assert any_gateway.server("time")["connections"] == 1


# -- without one ---------------------------------------------------------------------------------


@pytest.mark.docker
def test_without_a_gateway_a_call_brings_its_own_and_leaves_nothing(learnt_state: Path) -> None:
    alone = RunningGateway(learnt_state, runtime="docker")
    done = lockgate("tools", "call", CALL, TOKYO, state=learnt_state, runtime="docker")
    assert json.loads(printed(done))["timezone"] == "Asia/Tokyo"
    eventually("no container is left", lambda: not alone.containers(all=True), SEEN_S)
    assert not (learnt_state / "gateway.json").exists()
    assert [line["name"] for line in alone.audit()] == [CALL]
    done = lockgate("tools", "list", "--json", state=learnt_state, runtime="docker")
    assert len(json.loads(printed(done))) >= 57


def test_without_a_gateway_servers_are_shown_as_the_catalog_has_them(state: Path) -> None:
    servers = json.loads(printed(lockgate("server", "list", "--json", state=state)))
    assert [server["id"] for server in servers] == list(STARTER)
    assert {server["state"] for server in servers} == {"no gateway"}
    said = refused(lockgate("server", "inspect", "time", state=state), 1)
    assert "no gateway is running on this state folder; start one with: lockgate serve" in said


@pytest.mark.docker
def test_check_start_starts_each_server_and_fails_for_one_that_does_not(
    tmp_path: Path, docker_gateway: RunningGateway
) -> None:
    servers = {
        "time": catalogs.shipped("time"),
        "small": catalogs.in_image_of("time", "python3", "-c", catalogs.SMALL),
        "gone": catalogs.in_image_of("time", "no-such-program"),
    }
    catalog = catalogs.write(tmp_path / "catalog.yaml", servers)
    state = tmp_path / "state"
    done = lockgate("check", "--start", "--json", state=state, runtime="docker", catalog=catalog)
    checks = json.loads(printed(done, 1))
    rows: dict[str, Any] = {row["check"]: row for row in checks["checks"]}
    assert not checks["ok"]
    assert rows["server time"]["ok"]
    assert rows["server time"]["finding"].startswith("2 tools, MCP 20")
    assert rows["server small"]["finding"] == "1 tool, MCP 2025-11-25, docker"
    assert not rows["server gone"]["ok"]
    assert "its program was not found" in rows["server gone"]["finding"]
    eventually("no container is left", lambda: not RunningGateway(state).containers(all=True), SEEN_S)


def test_check_names_what_is_missing_and_settings_that_are_wrong(state: Path) -> None:
    done = lockgate("check", state=state, runtime="docker", docker_host="unix:///nowhere.sock")
    said = refused(done, 2)
    assert "LOCKGATE_RUNTIME=docker, but no Docker Engine answers at unix:///nowhere.sock" in said
    done = lockgate("check", "--json", state=state, runtime="process", model="nobody:1b")
    rows = {row["check"]: row for row in json.loads(printed(done, 1))["checks"]}
    assert rows["model"]["finding"] == "not fetched: lockgate model pull nobody:1b"
    assert rows["containers"]["ok"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"runtim": "docker"}, "LOCKGATE_RUNTIM is not a setting; did you mean LOCKGATE_RUNTIME?"),
        ({"runtime": "podman"}, "LOCKGATE_RUNTIME: 'podman' is not one of auto, docker, process"),
        ({"host": "0.0.0.0"}, "LOCKGATE_HOST=0.0.0.0: callers are not asked to sign in"),
        ({"catalog": "/nowhere.yaml"}, "/nowhere.yaml"),
        ({"profile": "codin"}, 'there is no profile "codin" (did you mean "coding"?)'),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_settings_that_cannot_be_used_are_named_and_exit_2(settings: dict[str, object], said: str, state: Path) -> None:
    assert said in refused(lockgate("serve", "--no-model", state=state, **settings), 2)
    assert not (state / "gateway.json").exists()


def test_all_wrong_settings_are_named_at_once(state: Path) -> None:
    said = refused(lockgate("check", state=state, runtime="podman", nonsense=1), 2)
    assert "LOCKGATE_NONSENSE is not a setting" in said
    assert "LOCKGATE_RUNTIME" in said


def test_catalog_lint_passes_the_shipped_one_and_places_each_problem(tmp_path: Path, state: Path) -> None:
    assert re.search(r"\b3\d\d entries and 4 profiles, no problems", printed(lockgate("catalog", "lint", state=state)))
    bad = tmp_path / "bad.yaml"
    bad.write_text(
        "version: 1\nservers:\n  time:\n    title: Time\n    imagine: x\n  Time_:\n    title: T\nprofiles: {}\n"
    )
    done = lockgate("catalog", "lint", str(bad), state=state)
    assert printed(done, 2) == ""
    assert f'{bad}:5: time: unknown key "imagine" (did you mean "image"?)' in done.stderr.splitlines()
    assert f"{bad}:6: Time_: id" in done.stderr


def test_catalog_search_finds_entries_by_their_words(state: Path) -> None:
    found = json.loads(printed(lockgate("catalog", "search", "time zone", "--json", state=state)))
    assert "time" in [entry["id"] for entry in found]
    assert "time  " in printed(lockgate("catalog", "search", "time zone", state=state))


@pytest.mark.docker
def test_image_build_leaves_an_image_alone_that_exists(docker_gateway: RunningGateway, state: Path) -> None:
    (container,) = (docker_gateway.admin("POST", "/servers/time/start"), *docker_gateway.containers_of("time"))[1:]
    done = lockgate("image", "build", "time", "--json", state=state)
    (built,) = json.loads(printed(done))
    assert built["entry"] == "time"
    assert built["id"] == container.image.id
    assert done.stderr == ""
    assert 'did you mean "time"' in refused(lockgate("image", "build", "tim", state=state), 2)


def test_model_list_shows_what_is_stored_and_what_can_be(state: Path) -> None:
    models = {model["ref"]: model for model in json.loads(printed(lockgate("model", "list", "--json", state=state)))}
    assert {"qwen2.5-coder:0.5b", "smollm2:135m"} <= set(models)
    assert all(model["size_bytes"] > 10_000_000 and model["license"] for model in models.values())
    assert "qwen2.5-coder:0.5b" in printed(lockgate("model", "list", state=state))
    assert "nobody:1b" in refused(lockgate("model", "rm", "nobody:1b", state=state), 1)


@pytest.mark.parametrize("arguments", [("tools", "nonsense"), ("tools", "call"), ("agent", "run", "x", "--steps", "0")])
def test_wrong_usage_exits_2(arguments: tuple[str, ...], state: Path) -> None:
    assert lockgate(*arguments, state=state).returncode == 2


def test_version_is_one_line(state: Path) -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*\n", printed(lockgate("version", state=state)))


# -- lockgate stdio ------------------------------------------------------------------------------


def handshake_and_call(process: "subprocess.Popen[bytes]") -> dict[str, Any]:
    """One tools/call over the process's pipes."""
    assert process.stdin is not None
    assert process.stdout is not None
    info = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "pipes", "version": "1"}}
    for message in (
        {"id": 1, "method": "initialize", "params": info},
        {"method": "notifications/initialized"},
        {"id": 2, "method": "tools/call", "params": {"name": CALL, "arguments": json.loads(TOKYO)}},
    ):
        process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")
    process.stdin.flush()
    for line in process.stdout:
        message = json.loads(line)
        if message.get("id") == 2:
            result: dict[str, Any] = message["result"]
            return result
    raise AssertionError("the process ended without an answer")


@pytest.fixture
def stdio(learnt_state: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """`lockgate stdio` without a running gateway."""
    process = subprocess.Popen(
        [*LOCKGATE, "stdio"],
        env=environment(learnt_state, runtime="docker"),
        cwd=learnt_state.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        yield process
        process.kill()


@pytest.mark.docker
@pytest.mark.parametrize("end", ["stdin closed", "SIGTERM"])
def test_stdio_without_a_gateway_is_one_and_takes_its_servers_with_it(
    stdio: "subprocess.Popen[bytes]", learnt_state: Path, end: str
) -> None:
    assert json.loads(handshake_and_call(stdio)["content"][0]["text"])["timezone"] == "Asia/Tokyo"
    own = RunningGateway(learnt_state)
    assert len(own.containers(all=True)) == 1
    assert stdio.stdin is not None
    if end == "SIGTERM":
        stdio.send_signal(signal.SIGTERM)
    else:
        stdio.stdin.close()
    assert stdio.wait(SEEN_S) == (128 + signal.SIGTERM if end == "SIGTERM" else 0)
    eventually("no container is left", lambda: not own.containers(all=True), SEEN_S)


# -- what a terminal is given --------------------------------------------------------------------


def on_a_terminal(*arguments: str, state: Path, **settings: object) -> bytes:
    """What a command writes when its output is a terminal."""
    ours, its = pty.openpty()
    process = subprocess.Popen(
        [*LOCKGATE, *arguments], env=environment(state, **settings), cwd=state.parent, stdout=its, stderr=its
    )
    os.close(its)
    written = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other side is closed
            break
        if not part:
            break
        written += part
    os.close(ours)
    assert process.wait(SEEN_S) == 0, written
    return written


@pytest.mark.docker
def test_a_servers_words_cannot_drive_the_terminal_or_break_a_table(
    tmp_path: Path, docker_gateway: RunningGateway
) -> None:
    catalog = catalogs.write(
        tmp_path / "catalog.yaml", {"small": catalogs.in_image_of("time", "python3", "-c", HOSTILE)}
    )
    with RunningGateway(tmp_path / "state", runtime="docker", catalog=catalog) as gateway:
        gateway.wait_until_learnt(["small"])
        shown = on_a_terminal("catalog", "review", state=gateway.state, catalog=catalog)
        assert b"hidden text" in shown
        assert b"\x1b]0" not in shown, "colours may be there, but not what the server wrote"
        printed(gateway.cli("catalog", "review", "small", "hello", "--approve"))
        listed = printed(gateway.cli("tools", "list"))
        assert "[/nothing] [bold]hi" in listed
        assert "\x1b" not in listed
        raw = json.loads(printed(gateway.cli("tools", "call", "small__hello", "--json")))
        assert raw["content"][0]["text"] == "\x1b[2Jgone"
        shown = on_a_terminal("tools", "call", "small__hello", state=gateway.state, catalog=catalog)
        assert b"gone" in shown
        assert b"\x1b" not in shown


@pytest.mark.docker
def test_the_command_printed_for_other_programs_is_an_absolute_path(docker_gateway: RunningGateway) -> None:
    def screen() -> str:
        text = docker_gateway.log.read_text()
        return text if "Ctrl-C stops the gateway" in text else ""

    text = eventually("the screen is printed", screen, SEEN_S)
    command = re.search(r"(\S+) client connect claude-code", text)
    assert command is not None
    assert Path(command[1]).is_absolute()
