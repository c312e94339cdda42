"""However answers, cancellations and disconnections race, a call ends once, and everybody is told the same."""

import asyncio
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from catalog import Entry
from gateway import auditlog
from gateway.runtimes import Runtime
from gateway.serverlog import ServerLog
from gateway.upstream import Upstream
from gateway.wire import envelope
from gateway.wire.channel import Receiver, Routing
from gateway.wire.legacy import LegacySession
from gateway.wire.modern import ModernEra
from gateway.wire.revisions import Era
from policies import Principal
from tests.gateway.test_modern import meta
from tests.servers import LocalGateway, settings, until, write_catalog

pytestmark = [pytest.mark.anyio, pytest.mark.sec("SEC-022")]

N_SEEDS = 5_000


class Inside:
    """A server inside this process, which answers a call only when it is told to: a runtime and its one channel."""

    name = "inside"

    def __init__(self) -> None:
        self.detail: Mapping[str, str] = {}
        self.open: dict[int, Any] = {}
        """Calls that wait for their answer, by id, with their progress token."""
        self.cancelled: list[int] = []

    async def prepare(self, entry: Entry, log: ServerLog) -> None:
        """It is there."""

    async def start(self, entry: Entry, receiver: Receiver, log: ServerLog, owner: str = "") -> "Inside":
        self._receiver = receiver
        return self

    def send(self, message: bytes, id: int | None = None, routing: Routing | None = None) -> None:
        asked = json.loads(message)
        match asked["method"]:
            case "initialize":
                hello = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}}
                self._later(id, {**hello, "serverInfo": {"name": "inside", "version": "1"}})
            case "tools/list":
                self._later(id, {"tools": [{"name": "work", "inputSchema": {"type": "object"}}]})
            case "ping":
                self._later(id, {})
            case "tools/call":
                assert id is not None
                self.open[id] = asked["params"]["_meta"]["progressToken"]
            case "notifications/cancelled":
                self.cancelled.append(asked["params"]["requestId"])

    def _later(self, id: int | None, result: Any) -> None:
        message = json.dumps({"jsonrpc": "2.0", "id": id, "result": result}).encode()
        asyncio.get_running_loop().call_soon(self._receiver.received, message)

    def progress(self) -> None:
        for token in self.open.values():
            members = {"progressToken": token, "progress": 1}
            note = {"jsonrpc": "2.0", "method": "notifications/progress", "params": members}
            self._receiver.received(json.dumps(note).encode())

    def answer(self) -> None:
        for id in list(self.open):
            answer = {"jsonrpc": "2.0", "id": id, "result": {"content": []}}
            self._receiver.received(json.dumps(answer).encode())

    def abort(self, id: int) -> bool:
        return False

    @property
    def is_full(self) -> bool:
        return True

    async def drain(self) -> None:
        await asyncio.sleep(0)

    async def settled(self) -> None:
        """Nothing is unasked."""

    def negotiated(self, era: Era, revision: str) -> None:
        """One era is like the other here."""

    async def close(self) -> None:
        """There is nothing to release."""

    async def aclose(self) -> None:
        """Nor here."""


class InsideGateway(LocalGateway):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.inside = Inside()

    def runtime_for(self, entry: Entry) -> Runtime:
        return self.inside


def moves(dice: random.Random, kinds: tuple[str, ...]) -> list[str]:
    """An order of events with pauses between; the last one always lets the call end."""
    found = [dice.choice(kinds) for _ in range(dice.randrange(1, 6))]
    for _ in range(dice.randrange(12)):
        found.insert(dice.randrange(len(found) + 1), "pause")
    return [*found, "answer"]


async def make(dice: random.Random, kinds: tuple[str, ...], inside: Inside, client: Any, call: Any) -> bool:
    """Let the events happen; whether the client hung up."""
    gone = False
    await asyncio.sleep(0)  # what was withdrawn before it began leaves no trace
    for move in moves(dice, kinds):
        match move:
            case "pause":
                await asyncio.sleep(0)
            case "answer":
                inside.answer()
            case "progress":
                inside.progress()
            case "cancel":
                client()
            case "hang up":
                gone = call.cancel() or gone
    return gone


async def settle(inside: Inside, upstream: Upstream, call: "asyncio.Task[Any]") -> None:
    while not call.done():
        await asyncio.sleep(0)
        inside.answer()
    inside.open.clear()
    await until(lambda: upstream.in_flight == 0, "what the gateway itself asked is answered too")


def last_records(gateway: LocalGateway, number: int) -> list[str]:
    ends = [record["outcome"] for record in auditlog.ends(gateway.settings.state_dir)]
    assert len(ends) == number
    return ends


async def nothing(message: bytes) -> None:
    """Progress is not looked at here."""


async def test_a_call_of_a_session_has_one_answer_one_record_and_at_most_one_word_to_the_server(tmp_path: Path) -> None:
    catalog = write_catalog(tmp_path / "catalog.yaml", {"a": ["inside"]})
    async with InsideGateway(settings(tmp_path, catalog)) as gateway:
        inside = gateway.inside
        await gateway.pool.learn("a")
        upstream = await gateway.pool.connection("a")
        session = LegacySession(gateway.door, Principal("local"), gateway.profile, lambda message: None)
        params = {"name": "a__work", "arguments": {}, "_meta": {"progressToken": 1}}
        asked = envelope.decode(
            json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).encode()
        )
        stop = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}
        cancel = envelope.decode(json.dumps(stop).encode())
        expected = []
        for seed in range(N_SEEDS):
            dice = random.Random(seed)
            inside.cancelled.clear()
            call = asyncio.ensure_future(session.message(asked, nothing))
            gone = await make(
                dice, ("answer", "progress", "cancel", "hang up"), inside, lambda: session.notification(cancel), call
            )
            await settle(inside, upstream, call)
            if call.cancelled():
                assert gone, seed
                expected.append("cancelled")
            else:
                answer = json.loads(call.result() or b"null")
                assert answer["id"] == 1
                assert ("result" in answer) is not (answer.get("error", {}).get("code") == -32800), seed
                expected.append("ok" if "result" in answer else "cancelled")
            assert upstream.in_flight == 0, seed
            assert len(inside.cancelled) <= (expected[-1] == "cancelled"), seed
            assert not session._in_flight
            assert not session._cancelled
        outcomes = last_records(gateway, N_SEEDS)
        differing = [seed for seed, pair in enumerate(zip(outcomes, expected, strict=True)) if pair[0] != pair[1]]
        assert not differing, differing[:10]
        assert len(set(expected)) == 2


async def test_a_request_without_session_ends_once_too(tmp_path: Path) -> None:
    catalog = write_catalog(tmp_path / "catalog.yaml", {"a": ["inside"]})
    async with InsideGateway(settings(tmp_path, catalog)) as gateway:
        inside = gateway.inside
        await gateway.pool.learn("a")
        upstream = await gateway.pool.connection("a")
        era = ModernEra(gateway.door)
        params = {"name": "a__work", "arguments": {}, "_meta": meta(token=1)}
        asked = envelope.decode(
            json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).encode()
        )
        ends = {"answered": 0, "gone": 0}
        for seed in range(N_SEEDS):
            dice = random.Random(seed)
            inside.cancelled.clear()
            call = asyncio.ensure_future(era.request(asked, Principal("local"), gateway.profile, None, nothing))
            gone = await make(dice, ("answer", "progress", "hang up"), inside, None, call)
            await settle(inside, upstream, call)
            if call.cancelled():
                assert gone, seed
                ends["gone"] += 1
            else:
                assert "result" in json.loads(call.result().message), seed
                assert not inside.cancelled, seed
                ends["answered"] += 1
            assert upstream.in_flight == 0, seed
            assert len(inside.cancelled) <= 1
        assert all(ends.values())
