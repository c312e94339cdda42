"""Every client says 1: answers, late ones and cancelled ones, never reach a caller they were not meant for."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NamedTuple, Protocol

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.running import socket_path
from tests.gateway.callers import Session, message
from tests.gateway.running import Place, running
from tests.gateway.test_modern import meta, request
from tests.servers import DEADLINE_S, LOCAL
from tests.servers.carrier import carried
from tests.servers.remote import remote

pytestmark = [pytest.mark.anyio, pytest.mark.sec("SEC-013")]

N_CLIENTS = 64
SERVERS = ("process", "json", "stream", "sse")
CANCELLED = "cancelled"


class Step(NamedTuple):
    """One call: where to, how long it takes there, and after how many turns of the loop it is cancelled, if at all."""

    server: str
    ms: int
    cancel_after: int | None


class Client(Protocol):
    async def call(self, step: Step, mark: str) -> str:
        """The text of the answer, or `CANCELLED`."""


def params(step: Step, mark: str) -> dict[str, Any]:
    return {"name": f"{step.server}__delay", "arguments": {"ms": step.ms, "mark": mark}}


def outcome(answer: Any) -> str:
    assert answer["id"] == 1, answer
    if answer.get("error", {}).get("code") == -32800:
        return CANCELLED
    return str(answer["result"]["content"][0]["text"])


async def turns(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


class LegacyHttp:
    def __init__(self, session: Session) -> None:
        self._session = session

    async def call(self, step: Step, mark: str) -> str:
        async with asyncio.TaskGroup() as group:
            posted = group.create_task(self._session.post(message("tools/call", params(step, mark), 1)))
            if step.cancel_after is not None:
                await turns(step.cancel_after)
                await self._session.post(message("notifications/cancelled", {"requestId": 1}))
        (answer,) = posted.result().messages()
        return outcome(answer)


class ModernHttp:
    def __init__(self, place: Place) -> None:
        self._http = place.http

    async def call(self, step: Step, mark: str) -> str:
        posted = asyncio.ensure_future(self._http.request("POST", "/mcp", *request("tools/call", params(step, mark))))
        if step.cancel_after is not None:
            await turns(step.cancel_after)
            posted.cancel()  # which closes the connection
        try:
            (answer,) = (await posted).messages()
        except asyncio.CancelledError:
            return CANCELLED
        return outcome(answer)


class Lines:
    """Either era over the gateway's own socket, which is what `lockgate stdio` joins its client to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, modern: bool) -> None:
        self._reader = reader
        self._writer = writer
        self._modern = modern

    def _send(self, method: str, params: dict[str, Any], id: int | None = None) -> None:
        if self._modern:
            params = {**params, "_meta": meta()}
        self._writer.write(message(method, params, id) + b"\n")

    async def _next(self) -> Any:
        while True:
            with anyio.fail_after(DEADLINE_S):
                answer = json.loads(await self._reader.readline())
            if "method" not in answer:
                return answer

    async def open(self) -> None:
        self._writer.write(b"\n")
        if not self._modern:
            info = {"clientInfo": {"name": "x", "version": "1"}, "capabilities": {}}
            self._send("initialize", {"protocolVersion": "2025-11-25", **info}, 0)
            assert (await self._next())["id"] == 0

    async def call(self, step: Step, mark: str) -> str:
        self._send("tools/call", params(step, mark), 1)
        if step.cancel_after is None:
            return outcome(await self._next())
        await turns(step.cancel_after)
        self._send("notifications/cancelled", {"requestId": 1})
        if not self._modern:
            return outcome(await self._next())
        # A cancelled request of this era has no answer: the next one's shows that there is none.
        self._send("tools/list", {}, 2)
        answer = await self._next()
        if answer["id"] == 2:
            return CANCELLED
        assert (await self._next())["id"] == 2
        return outcome(answer)


@asynccontextmanager
async def clients(place: Place) -> AsyncIterator[list[Client]]:
    async with AsyncExitStack() as stack:
        found: list[Client] = []
        with socket_path(place.gateway.settings.state_dir) as path:
            for number in range(N_CLIENTS):
                match number % 4:
                    case 0:
                        found.append(LegacyHttp(await place.session()))
                    case 1:
                        found.append(ModernHttp(place))
                    case kind:
                        reader, writer = await asyncio.open_unix_connection(str(path))
                        stack.callback(writer.close)
                        lines = Lines(reader, writer, modern=kind == 2)
                        await lines.open()
                        found.append(lines)
        yield found


@asynccontextmanager
async def everything(folder: Any) -> AsyncIterator[Place]:
    async with AsyncExitStack() as stack:
        plain = await stack.enter_async_context(remote())
        streaming = await stack.enter_async_context(remote(stream=True))
        old = await stack.enter_async_context(carried("friendly", old=True))
        servers = {
            "process": {"package": dict(LOCAL), "command": ["friendly"]},
            "json": {"remote": {"url": plain.url}},
            "stream": {"remote": {"url": streaming.url}},
            "sse": {"remote": {"url": old.url, "transport": "sse"}},
        }
        place = await stack.enter_async_context(running(folder, servers))
        yield place
        await old.aclose()


steps = st.builds(Step, st.sampled_from(SERVERS), st.integers(0, 8), st.none() | st.none() | st.integers(0, 60))
plans = st.lists(st.lists(steps, min_size=1, max_size=4), min_size=N_CLIENTS, max_size=N_CLIENTS)


@settings(max_examples=10, derandomize=True, suppress_health_check=list(HealthCheck))
@given(plan=plans)
async def test_clients_that_all_use_id_1_never_get_the_answer_of_another(
    tmp_path_factory: pytest.TempPathFactory, plan: list[list[Step]]
) -> None:
    async with everything(tmp_path_factory.mktemp("crossing")) as place:
        await (await place.session()).tools()
        answered = 0

        async def work(number: int, client: Client) -> None:
            nonlocal answered
            for turn, step in enumerate(plan[number]):
                mark = f"client {number}, turn {turn}"
                text = await client.call(step, mark)
                assert text == mark or (text == CANCELLED and step.cancel_after is not None)
                answered += text == mark

        async with clients(place) as found, asyncio.TaskGroup() as group:
            for number, client in enumerate(found):
                group.create_task(work(number, client))
        assert answered >= sum(step.cancel_after is None for steps in plan for step in steps)
        outcomes = {record["outcome"] for record in place.audit()}
        assert outcomes <= {"ok", "cancelled"}
