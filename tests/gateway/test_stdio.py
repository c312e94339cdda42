"""`lockgate stdio` as a client starts it: a gateway of its own, or a door to the one that runs."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from gateway import auditlog
from gateway.commands import stdio as command
from gateway.descriptors import keep_only
from gateway.statelock import StateInUse, lock_state, release_state
from tests.gateway.running import running
from tests.servers import DEADLINE_S, until, write_catalog
from tests.servers.carrier import carried
from tests.servers.remote import RemoteServer, remote

pytestmark = pytest.mark.anyio
PROGRAM = (sys.executable, "-c", "from gateway.cli import main; main()", "stdio")
ROOT = Path(__file__).parents[2]
META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
    "io.modelcontextprotocol/clientInfo": {"name": "tester", "version": "1"},
}


class Program:
    """A running `lockgate stdio`, spoken to line by line."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.heard: list[Any] = []
        """Messages that answered nothing we asked for."""

    def write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)

    def send(self, method: str, params: Any = None, id: Any = None) -> None:
        body = {"jsonrpc": "2.0", "method": method}
        body |= {"params": params} if params is not None else {}
        body |= {"id": id} if id is not None else {}
        self.write(json.dumps(body).encode() + b"\n")

    async def next(self) -> Any:
        """The next message, which must be one line of JSON; None at the end."""
        assert self.process.stdout is not None
        with anyio.fail_after(DEADLINE_S):
            line = await self.process.stdout.readline()
        return json.loads(line) if line else None

    async def answer(self, id: Any) -> Any:
        while (message := await self.next()) is not None:
            if message.get("id") == id and "method" not in message:
                return message
            self.heard.append(message)
        raise AssertionError(f"it ended before it answered {id}")

    async def hello(self) -> Any:
        params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "tester", "version": "1"}}
        self.send("initialize", params, 0)
        answer = await self.answer(0)
        self.send("notifications/initialized")
        return answer["result"]

    async def call(self, name: str, arguments: Any = None, id: Any = 1) -> str:
        self.send("tools/call", {"name": name, "arguments": arguments or {}}, id)
        answer = await self.answer(id)
        assert "result" in answer, answer
        return str(answer["result"]["content"][0]["text"])

    async def end(self) -> int:
        """Close stdin and wait; the exit code."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        with anyio.fail_after(DEADLINE_S):
            return await self.process.wait()

    async def complaint(self) -> str:
        assert self.process.stderr is not None
        with anyio.fail_after(DEADLINE_S):
            return (await self.process.stderr.read()).decode()


def environment(folder: Path) -> dict[str, str]:
    return {
        "LOCKGATE_STATE_DIR": str(folder / "state"),
        "LOCKGATE_CACHE_DIR": str(folder / "cache"),
        "LOCKGATE_CATALOG": str(folder / "catalog.yaml"),
        "LOCKGATE_RUNTIME": "process",
        "LOCKGATE_PROFILE": "all",
    }


@asynccontextmanager
async def started(folder: Path, *arguments: str) -> AsyncIterator[Program]:
    """The program on the state folder and catalog that `running` would use in this folder."""
    own = environment(folder)
    env = {name: value for name, value in os.environ.items() if not name.startswith("LOCKGATE_")} | own
    process = await asyncio.create_subprocess_exec(
        *PROGRAM,
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=env | {"PYTHONPATH": str(ROOT)},
        cwd=folder,
        limit=64 * 1024 * 1024,
        preexec_fn=keep_only(),
    )
    try:
        yield Program(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        process._transport.close()  # type: ignore[attr-defined]


@asynccontextmanager
async def alone(folder: Path, **options: Any) -> AsyncIterator[tuple[Program, RemoteServer]]:
    """The program with no gateway running, in front of one server elsewhere."""
    async with remote(**options) as server:
        write_catalog(folder / "catalog.yaml", {"far": {"remote": {"url": server.url}}})
        async with started(folder) as program:
            yield program, server


async def test_without_a_running_gateway_it_is_one(tmp_path: Path) -> None:
    async with alone(tmp_path) as (program, server):
        assert (await program.hello())["serverInfo"]["name"] == "lockgate"
        program.send("tools/list", {}, 1)
        assert "far__echo" in [tool["name"] for tool in (await program.answer(1))["result"]["tools"]]
        assert json.loads(await program.call("far__echo", {"text": "a\nb\r\u2028é"})) == {"text": "a\nb\r\u2028é"}
        assert await program.end() == 0
        assert [request.method for request in server.requests][-1] == "DELETE"
        assert [record["outcome"] for record in auditlog.ends(tmp_path / "state")] == ["ok"]


async def test_calls_run_side_by_side_and_progress_cancelling_and_changes_come_through(tmp_path: Path) -> None:
    async with alone(tmp_path) as (program, server):
        await program.hello()
        program.send(
            "tools/call", {"name": "far__hold", "arguments": {"key": "k"}, "_meta": {"progressToken": "t"}}, "held"
        )
        while (message := await program.next())["method"] != "notifications/progress":
            assert message["method"].endswith("list_changed")
        assert message["params"]["progressToken"] == "t"
        assert await program.call("far__echo", {}, id=2) == "{}"
        program.send("notifications/cancelled", {"requestId": "held"})
        assert (await program.answer("held"))["error"]["code"] == -32800
        await until(lambda: server.rpc("notifications/cancelled"), "the server is told")
        await program.call("far__change", {"add": "fresh"}, id=3)
        while not any("list_changed" in message["method"] for message in program.heard):
            program.heard.append(await program.next())
        assert await program.end() == 0


async def test_what_is_no_message_is_answered_with_an_error_and_the_next_one_works(tmp_path: Path) -> None:
    async with alone(tmp_path) as (program, _):
        await program.hello()
        for line in (
            b"nonsense",
            b"\xff\xfe",
            b"[]",
            b"{}",
            b'{"jsonrpc":"2.0","id":1.5,"method":"ping"}',
            b"[" * 100_000,
        ):
            program.write(line + b"\n")
            answer = await program.next()
            assert (answer["id"], answer["error"]["code"]) in ((None, -32700), (None, -32600))
        program.write(b"\n\r\n  \n")
        assert await program.call("far__echo") == "{}"


async def test_an_endless_line_ends_the_program_with_an_error(tmp_path: Path) -> None:
    async with alone(tmp_path) as (program, _):
        await program.hello()
        program.write(b"x" * 34_000_000)
        assert (await program.next())["error"]["code"] == -32700
        assert await program.next() is None


async def test_open_calls_are_withdrawn_when_stdin_ends(tmp_path: Path) -> None:
    async with alone(tmp_path) as (program, server):
        await program.hello()
        program.send("tools/call", {"name": "far__hold", "arguments": {"key": "k"}}, 5)
        await until(lambda: server.behaviour.held, "the call is on its way")
        assert await program.end() == 0
        assert server.rpc("notifications/cancelled")
        (record,) = auditlog.ends(tmp_path / "state")
        assert record["outcome"] == "cancelled"


async def test_a_large_answer_is_written_whole_though_stdin_has_ended_and_the_client_reads_late(tmp_path: Path) -> None:
    async with alone(tmp_path) as (program, _):
        await program.hello()
        program.send("tools/call", {"name": "far__big", "arguments": {"bytes": 8_000_000}}, 5)
        await until(lambda: list(auditlog.ends(tmp_path / "state")), "the call is over")
        assert program.process.stdin is not None
        program.process.stdin.close()
        assert len((await program.answer(5))["result"]["content"][0]["text"]) == 8_000_000
        assert await program.end() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_in_order(tmp_path: Path, number: signal.Signals) -> None:
    async with alone(tmp_path) as (program, server):
        await program.hello()
        await program.call("far__echo")
        program.process.send_signal(number)
        with anyio.fail_after(DEADLINE_S):
            assert await program.process.wait() == 128 + number
        assert [request.method for request in server.requests][-1] == "DELETE"


async def test_a_stateless_client_is_served_too(tmp_path: Path) -> None:
    async with alone(tmp_path) as (program, _):
        program.send("server/discover", {"_meta": META}, 1)
        assert "2026-07-28" in (await program.answer(1))["result"]["supportedVersions"]
        program.send("tools/call", {"name": "far__echo", "arguments": {"x": 1}, "_meta": META}, 2)
        answer = (await program.answer(2))["result"]
        assert json.loads(answer["content"][0]["text"]) == {"x": 1}
        assert answer["resultType"] == "complete"
        assert await program.end() == 0


@pytest.mark.sec("SEC-013")
async def test_an_id_that_is_still_open_is_refused_and_its_first_request_goes_on(tmp_path: Path) -> None:
    async with alone(tmp_path) as (program, server):
        program.send("server/discover", {"_meta": META}, 0)
        await program.answer(0)
        held = {"name": "far__hold", "arguments": {"key": "k"}, "_meta": META}
        program.send("tools/call", held, 1)
        await until(lambda: server.behaviour.held, "the call is on its way")
        for _ in range(2):
            program.send("tools/call", {"name": "far__echo", "arguments": {}, "_meta": META}, 1)
            assert (await program.answer(1))["error"]["code"] == -32600
        program.send("tools/call", {"name": "far__release", "arguments": {"key": "k"}, "_meta": META}, 2)
        answers = [await program.next() for _ in range(2)]
        texts = {answer["id"]: answer["result"]["content"][0]["text"] for answer in answers}
        assert texts == {1: "k", 2: "released"}


@pytest.mark.sec("SEC-020")
async def test_a_client_that_does_not_read_costs_no_memory_and_gets_its_answer_later(tmp_path: Path) -> None:
    async with carried("hostile", "floods_progress", "60000") as carrier:
        write_catalog(tmp_path / "catalog.yaml", {"far": {"remote": {"url": carrier.url}}})
        async with started(tmp_path) as program:
            await program.hello()
            program.send("tools/list", {}, 1)
            await program.answer(1)
            before = resident_bytes(program.process.pid)
            meta = {"progressToken": 1}
            program.send("tools/call", {"name": "far__poke", "arguments": {}, "_meta": meta}, 2)
            await until(lambda: carrier.n_lines > 60_000, "everything was sent")
            assert resident_bytes(program.process.pid) - before < 32 * 1024 * 1024
            assert (await program.answer(2))["result"]["content"][0]["text"] == "poked"
            assert 0 < len(program.heard) < 60_000


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# -- with a gateway running ----------------------------------------------------------------------


async def test_with_a_running_gateway_it_shares_its_servers(tmp_path: Path) -> None:
    async with running(tmp_path, {"a": ["friendly"], "b": ["friendly"]}, {"all": ["a", "b"], "less": ["b"]}) as place:
        pid = await (await place.session()).call("a__pid")
        async with started(tmp_path) as program, started(tmp_path, "--profile", "less") as other:
            assert (await program.hello())["serverInfo"]["title"] == "Lockgate (all)"
            assert (await other.hello())["serverInfo"]["title"] == "Lockgate (less)"
            assert await program.call("a__pid") == pid
            other.send("tools/call", {"name": "a__pid"}, 1)
            assert (await other.answer(1))["error"]["code"] == -32602
            assert await other.call("b__echo", {"x": 1}) == '{"x": 1}'
            assert await program.end() == 0
            assert await other.end() == 0
        assert sorted(place.local.starts) == ["a", "b"]
        assert {record["principal"] for record in place.audit()} == {"local"}


async def test_a_client_that_is_killed_leaves_the_running_gateway_in_order(tmp_path: Path) -> None:
    async with running(tmp_path, {"a": ["friendly"]}) as place:
        async with started(tmp_path) as program:
            await program.hello()
            program.send("tools/call", {"name": "a__hold", "arguments": {"key": "k"}}, 1)
            await until(lambda: place.gateway.pool.servers["a"].upstream, "the server runs")
            await until(lambda: place.gateway.pool.servers["a"].upstream.in_flight, "the call is on its way")
            program.process.kill()
            await program.process.wait()
        await until(lambda: not place.gateway.pool.servers["a"].upstream.in_flight, "the call is withdrawn")
        assert await (await place.session()).call("a__echo") == "{}"


async def test_the_program_ends_when_the_running_gateway_does(tmp_path: Path) -> None:
    async with running(tmp_path, {"a": ["friendly"]}):
        program_context = started(tmp_path)
        program = await program_context.__aenter__()
        await program.hello()
        await program.call("a__echo")
    try:
        while await program.next() is not None:
            pass
        with anyio.fail_after(DEADLINE_S):
            await program.process.wait()
    finally:
        await program_context.__aexit__(None, None, None)


async def test_a_large_answer_comes_whole_through_a_running_gateway(tmp_path: Path) -> None:
    async with running(tmp_path, {"a": ["friendly"]}), started(tmp_path) as program:
        await program.hello()
        assert len(await program.call("a__big", {"bytes": 8_000_000})) == 8_000_000
        text = "x" * 8_000_000
        assert json.loads(await program.call("a__echo", {"text": text})) == {"text": text}


# -- refusals ------------------------------------------------------------------------------------


async def test_an_unknown_profile_is_refused_with_a_suggestion(tmp_path: Path) -> None:
    write_catalog(tmp_path / "catalog.yaml", {"a": ["friendly"]})
    async with started(tmp_path, "--profile", "al") as program:
        with anyio.fail_after(DEADLINE_S):
            assert await program.process.wait() == 2
        assert "all" in await program.complaint()
        assert await program.next() is None


async def test_an_unknown_profile_is_refused_by_a_running_gateway_too(tmp_path: Path) -> None:
    async with running(tmp_path, {"a": ["friendly"]}), started(tmp_path, "--profile", "al") as program:
        assert "all" in (await program.next())["error"]["message"]
        assert await program.next() is None
        with anyio.fail_after(DEADLINE_S):
            await program.process.wait()


async def test_two_of_its_kind_share_one_gateway_which_stays_until_both_have_left(tmp_path: Path) -> None:
    async with alone(tmp_path) as (program, server):
        await program.hello()
        assert await program.call("far__echo") == "{}"
        async with started(tmp_path) as second, started(tmp_path) as third:
            for one in (second, third):
                await one.hello()
                assert await one.call("far__echo", {"x": 1}) == '{"x": 1}'
            assert len(server.rpc("initialize")) == 1
            assert program.process.stdin is not None
            program.process.stdin.close()
            assert await program.next() is None
            assert await second.call("far__echo", {"x": 2}, id=2) == '{"x": 2}'
            assert program.process.returncode is None
            assert await second.end() == 0
            assert await third.call("far__echo", {"x": 3}, id=3) == '{"x": 3}'
            assert await third.end() == 0
            with anyio.fail_after(DEADLINE_S):
                assert await program.process.wait() == 0


async def test_two_that_start_at_once_share_one_gateway(tmp_path: Path) -> None:
    async with remote() as server:
        write_catalog(tmp_path / "catalog.yaml", {"far": {"remote": {"url": server.url}}})
        async with started(tmp_path) as one, started(tmp_path) as other:

            async def work(program: Program) -> None:
                await program.hello()
                assert await program.call("far__echo") == "{}"

            async with asyncio.TaskGroup() as group:
                group.create_task(work(one))
                group.create_task(work(other))
            assert len(server.rpc("initialize")) == 1


async def test_a_state_folder_that_somebody_holds_who_does_not_listen_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_catalog(tmp_path / "catalog.yaml", {"a": ["friendly"]})
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(command, "JOIN_TIMEOUT_S", 0.2)
    (tmp_path / "state").mkdir()
    held = lock_state(tmp_path / "state")
    try:
        with anyio.fail_after(DEADLINE_S), pytest.raises(StateInUse, match="another gateway uses"):
            await command._work(None)
    finally:
        release_state(held)


async def test_a_stale_run_file_of_a_dead_gateway_does_not_mislead(tmp_path: Path) -> None:
    async with remote() as server:
        write_catalog(tmp_path / "catalog.yaml", {"far": {"remote": {"url": server.url}}})
        (tmp_path / "state").mkdir()
        stale = {"url": "http://127.0.0.1:1", "pid": 1, "admin_token": "x", "profile": "all"}
        (tmp_path / "state" / "gateway.json").write_text(json.dumps(stale))
        (tmp_path / "state" / "lock").touch()
        async with started(tmp_path) as program:
            await program.hello()
            assert await program.call("far__echo") == "{}"
            assert await program.end() == 0
