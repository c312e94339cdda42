"""What crosses the gateway unchanged, between clients and servers of either era over every transport.

Knows what tests/servers/rich.py answers. One gateway runs for all tests here, with one server of each kind.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Protocol

import anyio
import pytest

from tests.gateway.callers import ACCEPT, DEADLINE_S, JSON, Session, Stream, message
from tests.gateway.running import Place, running
from tests.gateway.test_modern import PREFIX, request
from tests.servers import LOCAL
from tests.servers.remote import remote
from tests.servers.rich import ANNOTATIONS, EXACT, ICONS, TOOL, TOOLS, Rich

pytestmark = pytest.mark.anyio

SERVERS = ("stdio-legacy", "stdio-modern", "http-legacy", "http-modern", "sse")
"""Transport and era; `sse` is HTTP+SSE of revision 2024-11-05, which is legacy."""
ANSWER = {"action": "accept", "content": {"name": "Ada", "n": 1.5}, "x-answer": {"kept": True}}
ABLE = {"elicitation": {}}


class Client(Protocol):
    """What both kinds of client can do here."""

    notices: list[Any]

    async def result(self, method: str, params: Any, meta: Any = None) -> Any: ...

    async def raw(self, method: str, params: Any, meta: Any = None) -> bytes:
        """The answer's own bytes."""
        ...


class LegacyClient:
    """A session. `notices` are the notifications that came with answers."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.notices: list[Any] = []

    async def raw(self, method: str, params: Any, meta: Any = None) -> bytes:
        params = {**params, "_meta": meta} if meta else params
        answer = await self.session.post(message(method, params, self.session.next_id()))
        return answer.body

    async def result(self, method: str, params: Any, meta: Any = None) -> Any:
        params = {**params, "_meta": meta} if meta else params
        id = self.session.next_id()
        body, headers = message(method, params, id), self.session.headers(JSON, ACCEPT)
        async with self.session.http.stream("POST", "/mcp", body, headers) as stream:
            if not stream.headers["content-type"].startswith("text/event-stream"):
                length = int(stream.headers["content-length"])
                return _result(json.loads(await stream._reader.readexactly(length)))
            while "method" in (heard := await stream.message()):
                if "id" in heard:
                    reply = {"jsonrpc": "2.0", "id": heard["id"], "result": ANSWER}
                    self.notices.append(heard)
                    assert (await self.session.post(json.dumps(reply).encode())).status == 202
                else:
                    self.notices.append(heard)
        return _result(heard)


class ModernClient:
    """Requests that stand alone; questions are answered by asking again."""

    def __init__(self, place: Place, capabilities: Any) -> None:
        self.place = place
        self.capabilities = capabilities
        self.notices: list[Any] = []

    async def raw(self, method: str, params: Any, meta: Any = None) -> bytes:
        return (await self.place.http.request("POST", "/mcp", *self.request(method, params, meta))).body

    def request(self, method: str, params: Any, meta: Any) -> tuple[bytes, list[tuple[str, str]]]:
        """Body and headers."""
        body, headers = request(method, params, clientCapabilities=self.capabilities)
        if meta:
            whole = json.loads(body)
            whole["params"]["_meta"] |= meta
            body = json.dumps(whole).encode()
        return body, headers

    async def result(self, method: str, params: Any, meta: Any = None) -> Any:
        answer = await self.place.http.request("POST", "/mcp", *self.request(method, params, meta))
        *before, last = answer.messages()
        self.notices += before
        result = _result(last)
        if result["resultType"] != "input_required":
            return result
        ((key, question),) = result["inputRequests"].items()
        self.notices.append(question)
        more = {"inputResponses": {key: ANSWER}, "requestState": result["requestState"]}
        return await self.result(method, {**params, **more}, meta)


def _result(answer: Any) -> Any:
    assert "result" in answer, answer
    return answer["result"]


# -- the one gateway -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
async def place(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    async with AsyncExitStack() as stack:
        servers: dict[str, Any] = {}
        for id in SERVERS:
            transport, _, era = id.partition("-")
            if transport == "stdio":
                servers[id] = {"package": dict(LOCAL), "command": ["rich", json.dumps({"era": era})]}
            else:
                old = {"old": True} if transport == "sse" else {}
                one = await stack.enter_async_context(remote(kind=Rich, era=era, sessions=era == "legacy", **old))
                servers[id] = {"remote": {"url": one.url, **({"transport": "sse"} if old else {})}}
            servers[id]["interactive"] = era != "modern"
        place = await stack.enter_async_context(running(tmp_path_factory.mktemp("bridge"), servers))
        for id in SERVERS:
            await place.gateway.pool.learn(id)
        yield place


@pytest.fixture(params=["legacy", "modern"])
async def client(place: Place, request: pytest.FixtureRequest) -> AsyncIterator[Client]:
    async with connected(place, request.param, ABLE) as client:
        yield client


@pytest.fixture(params=["legacy", "modern"])
async def silent(place: Place, request: pytest.FixtureRequest) -> AsyncIterator[Client]:
    """A client that cannot be asked: it shares the connections to servers."""
    async with connected(place, request.param, {}) as client:
        yield client


@asynccontextmanager
async def connected(place: Place, era: str, capabilities: Any) -> AsyncIterator[Client]:
    if era == "modern":
        yield ModernClient(place, capabilities)
        return
    session = await place.session(capabilities=capabilities)
    yield LegacyClient(session)
    await session.close()


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


def uri(server: str, own: str) -> str:
    return f"lockgate://{server}/{own}"


def name(server: str, own: str) -> str:
    return f"{server}__{own}"


async def call(client: Client, server: str, tool: str, arguments: Any = None, meta: Any = None) -> Any:
    return await client.result("tools/call", {"name": name(server, tool), "arguments": arguments or {}}, meta)


async def heard(client: Client, server: str) -> list[str]:
    """The methods that reached the server's connection, oldest first."""
    said: list[str] = json.loads((await call(client, server, "heard"))["content"][0]["text"])
    return said


async def eventually(client: Client, server: str, entry: str, times: int = 1) -> list[str]:
    """Until the server has heard something so many times."""
    with anyio.fail_after(DEADLINE_S):
        while (said := await heard(client, server)).count(entry) < times:
            await anyio.sleep(0.02)
    return said


# -- results -------------------------------------------------------------------------------------


async def test_a_result_arrives_with_everything_in_it(client: Client, server: str) -> None:
    result = await call(client, server, "rich")
    text, link, embedded = result["content"]
    assert text == {"type": "text", "text": "rich", "annotations": ANNOTATIONS, "x-block": 1}
    own = {"type": "resource_link", "name": "one", "icons": ICONS, "annotations": ANNOTATIONS, "x": 1}
    assert link == {**own, "uri": uri(server, "memo://one")}
    inner = {"uri": uri(server, "memo://two"), "text": "two", "x-inner": [None]}
    assert embedded == {"type": "resource", "resource": inner, "x-outer": True}
    assert result["x-top"] == {"kept": True}
    assert result["isError"] is False
    assert result["_meta"]["vendor.example/key"] == json.loads(EXACT)


async def test_structured_content_and_meta_keep_their_spelling(client: Client, server: str) -> None:
    body = await client.raw("tools/call", {"name": name(server, "rich"), "arguments": {}})
    squeezed = re.sub(rb"\s", b"", body)
    exact = re.sub(rb"\s", b"", EXACT.encode())
    assert b'"structuredContent":' + exact in squeezed
    assert b'"vendor.example/key":' + exact in squeezed


async def test_a_prompt_arrives_with_everything_in_it(client: Client, server: str) -> None:
    result = await client.result("prompts/get", {"name": name(server, "greet"), "arguments": {"who": "Ada"}})
    assert result["x-prompt"] == 1
    text, link, embedded = result["messages"]
    assert text == {"role": "user", "content": {"type": "text", "text": "Ada"}, "x-message": 1}
    assert link["content"]["uri"] == uri(server, "memo://one")
    assert link["content"]["annotations"] == ANNOTATIONS
    assert embedded["content"]["resource"]["uri"] == uri(server, "memo://two")


async def test_a_resource_is_read_under_its_public_uri(client: Client, server: str) -> None:
    for own in ("memo://one", "memo://by/name"):
        result = await client.result("resources/read", {"uri": uri(server, own)})
        assert result["contents"] == [{"uri": uri(server, own), "text": "memo", "x-content": 1.0, "_meta": {"a": 1}}]
        assert result["x-read"] == 1
        if isinstance(client, ModernClient):
            # What a caller may read may depend on the caller, whatever the server says of it.
            assert result["cacheScope"] == "private"
            assert result["ttlMs"] == (4321 if server.endswith("modern") else 0)


async def test_an_absent_resource_is_named_as_the_client_knows_it(client: Client, server: str) -> None:
    gone = uri(server, "memo://gone")
    answer = json.loads(await client.raw("resources/read", {"uri": gone}))
    error = answer["error"]
    assert error["code"] == (-32602 if isinstance(client, ModernClient) else -32002)
    assert error["data"]["uri"] == gone
    assert error["data"]["x-data"] == 1


async def test_arguments_are_completed_by_the_server_whose_prompt_or_template_it_is(
    client: Client, server: str
) -> None:
    argument = {"name": "who", "value": "A"}
    for ref, own in (
        ({"type": "ref/prompt", "name": name(server, "greet")}, "greet"),
        ({"type": "ref/resource", "uri": uri(server, "memo://by/{name}")}, "memo://by/{name}"),
    ):
        result = await client.result("completion/complete", {"ref": ref, "argument": argument})
        assert result["completion"] == {"values": [f"{own}:A"], "x-completion": 1}


# -- lists ---------------------------------------------------------------------------------------


async def test_listed_items_keep_everything_and_an_invalid_one_costs_itself_alone(client: Client, server: str) -> None:
    item = {"icons": ICONS, "annotations": ANNOTATIONS, "x-item": [1.0]}
    for method, member, key, expected in (
        ("tools/list", "tools", "name", [{"name": name(server, own), **TOOL} for own in sorted(TOOLS)]),
        (
            "prompts/list",
            "prompts",
            "name",
            [{"name": name(server, "greet"), "arguments": [{"name": "who", "x-argument": 1}], **item}],
        ),
        ("resources/list", "resources", "uri", [{"uri": uri(server, "memo://one"), "name": "one", "size": 3, **item}]),
        (
            "resources/templates/list",
            "resourceTemplates",
            "uriTemplate",
            [{"uriTemplate": uri(server, "memo://by/{name}"), "name": "by", **item}],
        ),
    ):
        items: list[Any] = []
        cursor: dict[str, str] = {}
        while True:
            page = await client.result(method, cursor)
            items += page[member]
            if isinstance(client, ModernClient):
                assert page["cacheScope"] == "private"
                assert page["ttlMs"] >= 0
            if "nextCursor" not in page:
                break
            cursor = {"cursor": page["nextCursor"]}
        mine = [one for one in items if one[key].startswith((f"{server}__", f"lockgate://{server}/"))]
        assert sorted(mine, key=lambda one: str(one[key])) == expected


# -- in the course of a call ---------------------------------------------------------------------


@pytest.mark.parametrize("token", ["mine", 7])
async def test_progress_arrives_as_it_was_told_under_the_clients_token(
    client: Client, server: str, token: str | int
) -> None:
    await call(client, server, "progress", meta={"progressToken": token})
    heard = [notice["params"] for notice in client.notices if notice["method"] == "notifications/progress"]
    assert heard == [
        {"progressToken": token, "progress": done, "total": 3, "message": f"step {done}", "x-progress": {"n": 1}}
        for done in (1, 2.5, 3)
    ]


async def test_a_question_and_its_answer_arrive_as_they_were_put(client: Client, server: str) -> None:
    result = await call(client, server, "ask")
    assert json.loads(result["content"][0]["text"]) == ANSWER
    (question,) = client.notices
    assert question["method"] == "elicitation/create"
    assert question["params"] == {
        "mode": "form",
        "message": "Who?",
        "requestedSchema": {"type": "object", "properties": {"name": {"type": "string", "x-field": 1}}},
        "x-question": {"n": 1},
    }


async def test_trace_context_and_vendor_keys_reach_the_server(client: Client, server: str) -> None:
    meta = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "a=b"}
    meta |= {"baggage": "k=v", "vendor.example/x": [1.5]}
    line = json.loads(json.loads((await call(client, server, "raw", {"n": 1.0}, meta))["content"][0]["text"]))
    assert {key: line["params"]["_meta"].get(key) for key in meta} == meta
    assert line["params"]["name"] == "raw"
    modern = {key for key in line["params"]["_meta"] if key.startswith(PREFIX)}
    assert bool(modern) is server.endswith("modern")


async def test_log_messages_reach_who_asked_for_them(client: Client, server: str) -> None:
    data = {"level": "warning", "logger": "rich", "data": {"x": [1, None]}}
    if isinstance(client, ModernClient) and server == "stdio-modern":
        # Over a connection that callers share, a line of log does not say whose call it is about: nobody gets it.
        await call(client, server, "log", meta={PREFIX + "logLevel": "info"})
        assert client.notices == []
        return
    if isinstance(client, LegacyClient):
        await client.result("logging/setLevel", {"level": "info"})
        async with client.session.listening() as stream, client.session.calling(name(server, "log")) as answer:
            found = await _first(stream, answer, "notifications/message")
    else:
        await call(client, server, "log", meta={PREFIX + "logLevel": "info"})
        found = [notice for notice in client.notices if notice["method"] == "notifications/message"][-1]
        before = len(client.notices)
        await call(client, server, "log", meta={PREFIX + "logLevel": "error"})
        await call(client, server, "log")
        assert client.notices[before:] == []
    assert found["params"] == data


async def _first(stream: Stream, answer: Stream, method: str) -> Any:
    """The first message with this method on either of two streams."""
    reading = [asyncio.ensure_future(one.until(method)) for one in (stream, answer)]
    try:
        for one in asyncio.as_completed(reading):
            try:
                return await one
            except AssertionError:  # that stream ended without it
                continue
        raise AssertionError(f"no {method}")
    finally:
        for one in reading:
            one.cancel()
        await asyncio.gather(*reading, return_exceptions=True)


async def test_a_withdrawn_call_is_withdrawn_from_the_server(client: Client, server: str, place: Place) -> None:
    before = (await heard(client, server)).count("notifications/cancelled cancelled")
    params = {"name": name(server, "hold"), "arguments": {}}
    if isinstance(client, LegacyClient):
        async with client.session.calling(params["name"], id="held") as stream:
            await stream.until("notifications/progress")
            cancelled = message("notifications/cancelled", {"requestId": "held", "reason": "enough"})
            assert (await client.session.post(cancelled)).status == 202
            assert (await stream.message())["error"]["code"] == -32800
    else:
        assert isinstance(client, ModernClient)
        body, headers = client.request("tools/call", params, {"progressToken": 1})
        async with place.http.stream("POST", "/mcp", body, headers) as stream:
            await stream.until("notifications/progress")
    if server == "http-modern":
        # There, closing the stream says it. Nothing else is under way that could keep one open.
        upstream = await place.gateway.pool.connection(server)
        with anyio.fail_after(DEADLINE_S):
            while upstream.in_flight > 0:
                await anyio.sleep(0.02)
    else:
        await eventually(client, server, "notifications/cancelled cancelled", before + 1)


# -- without being asked -------------------------------------------------------------------------


@asynccontextmanager
async def listening(client: Client, place: Place, notifications: Any) -> AsyncIterator[Stream]:
    """The client's stream for what comes unasked; a modern one says what it wants."""
    if isinstance(client, LegacyClient):
        async with client.session.listening() as stream:
            yield stream
        return
    assert isinstance(client, ModernClient)
    body, headers = client.request("subscriptions/listen", {"notifications": notifications}, None)
    async with place.http.stream("POST", "/mcp", body, headers) as stream:
        acknowledged = await stream.until("notifications/subscriptions/acknowledged")
        assert acknowledged["params"]["notifications"] == notifications
        yield stream


@pytest.mark.parametrize("list", ["tools", "prompts", "resources"])
async def test_changed_lists_are_announced(client: Client, server: str, place: Place, list: str) -> None:
    method = f"notifications/{list}/list_changed"
    await call(client, server, "heard")
    async with listening(client, place, {f"{list}ListChanged": True}) as stream:
        await call(client, server, "change", {"list": list})
        told = await stream.until(method)
        if isinstance(client, ModernClient):
            assert told["params"]["_meta"][PREFIX + "subscriptionId"] == 1


async def test_a_watched_resource_is_watched_once_and_let_go_with_the_last_who_watches(
    silent: Client, server: str, place: Place
) -> None:
    own, public = "memo://one", uri(server, "memo://one")
    begins, ends = f"resources/subscribe {own}", f"resources/unsubscribe {own}"
    if server.endswith("modern"):
        begins, ends = f"listening {own}", "listening"
    said = await heard(silent, server)
    begun, ended = said.count(begins), said.count(ends)
    wanted = {"resourceSubscriptions": [public]}
    async with listening(silent, place, wanted) as stream:
        if isinstance(silent, LegacyClient):
            assert await silent.result("resources/subscribe", {"uri": public}) == {}
        await eventually(silent, server, begins, begun + 1)
        async with listening(ModernClient(place, {}), place, wanted) as second:
            await call(silent, server, "touch")
            for one in (stream, second):
                told = (await one.until("notifications/resources/updated"))["params"]
                assert told["uri"] == public
                assert told["x-updated"] == 1
        await call(silent, server, "touch")
        assert (await stream.until("notifications/resources/updated"))["params"]["uri"] == public
        said = await heard(silent, server)
        assert (said.count(begins) - begun, said.count(ends) - ended) == (1, 0)
        if isinstance(silent, LegacyClient):
            assert await silent.result("resources/unsubscribe", {"uri": public}) == {}
    await eventually(silent, server, ends, ended + 1)
