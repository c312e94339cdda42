"""One door: nothing a client sends reaches a server but through `Door.call`, read from the sources and seen at work.

Knows which functions may hold a connection; why each may is written beside it."""

import ast
import asyncio
import inspect
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway import auditlog, tasks
from gateway.client import gateway_client
from gateway.routes import LISTS, ROUTES
from gateway.upstream import Upstream
from tests.gateway import taskclient
from tests.gateway.callers import ACCEPT, JSON, message
from tests.gateway.running import running
from tests.gateway.test_stdio import META

GATEWAY = Path(__file__).parents[2] / "gateway"

HOLDERS = {
    # Handing out and taking back connections to servers.
    "connection": {
        ("door.py", "connect"): "the door itself",
        ("admin.py", "_start"): "an operator starts a server; nothing of a client's is sent",
        ("commands/check.py", "_check_alone"): "the same from the command line, in a gateway of its own",
    },
    "leased": {("wire/legacy.py", "notification"): "the client's roots changed: a notification without content"},
    # Reading what runs.
    "upstream": {
        ("admin.py", "describe"): "state for people",
        ("door.py", "_admit"): "the call that waits for answers goes on",
        ("door.py", "_withdraw"): "the call that waits for answers ends",
        ("bridge.py", "__init__"): "a call that waits for answers keeps its connection",
        ("bridge.py", "answer"): "answers go to the server that asked",
        ("bridge.py", "refuse"): "so do refusals",
        ("bridge.py", "ended"): "whoever answers stops once the server is gone",
    },
    # Making a connection to anything that speaks MCP.
    "upstream_of": {("door.py", "give_up"): "a task of the server's that nobody waits for ends"},
    "Upstream": {("client.py", "_session"): "the command line is a client of the gateway"},
    "HttpChannel": {("client.py", "_session"): "the command line is a client of the gateway"},
    "spawn": {},
}
"""Which function outside the pool and the runtimes touches a connection to a server, and why it may."""
INSIDE = (
    *("pool.py", "connections.py", "keeper.py", "listening.py", "relisting.py", "upstream.py", "listings.py"),
    *("wire/handshake.py", "wire/lines.py", "wire/http_client.py"),
)
"""The pool and what it is made of; the runtimes beside them."""
CLIENT_FACING = {*ROUTES, "resources/subscribe", "resources/unsubscribe"}


def touches() -> Iterator[tuple[str, str, str]]:
    """Each use of a name in `HOLDERS` outside the pool: what, module, innermost function."""
    for path in sorted(GATEWAY.rglob("*.py")):
        module = str(path.relative_to(GATEWAY))
        if module in INSIDE or module.startswith("runtimes/"):
            continue
        yield from _touches(ast.parse(path.read_text()), module, "")


def _touches(node: ast.AST, module: str, function: str) -> Iterator[tuple[str, str, str]]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        function = node.name
    if isinstance(node, ast.Attribute) and node.attr in HOLDERS:
        yield node.attr, module, function
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in HOLDERS:
        yield node.func.id, module, function
    for child in ast.iter_child_nodes(node):
        yield from _touches(child, module, function)


def test_only_these_functions_touch_a_connection_to_a_server() -> None:
    expected = {(what, *where) for what, places in HOLDERS.items() for where in places}
    assert set(touches()) == expected


def test_only_the_door_knows_how_to_route_a_method() -> None:
    """The methods that name an item are spelled where they are routed, and nowhere is one sent by hand."""
    sent = set()
    for path in sorted(GATEWAY.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if node.args[0].value in CLIENT_FACING and name in ("start", "request", "notify"):
                    sent.add((str(path.relative_to(GATEWAY)), node.args[0].value))
    assert sent == {
        ("client.py", "tools/call"),  # to the gateway
        ("upstream.py", "resources/subscribe"),
        ("upstream.py", "resources/unsubscribe"),
    }


DEEP = {"extension": "org.example/deep", "vendor": ["deep/look"]}
SERVERS = {"a": ["friendly"], "b": ["friendly"], "t": ["tasker", json.dumps(DEEP)]}
THROUGH_THE_DOOR = {*ROUTES, *tasks.METHODS, "deep/look"}


@pytest.mark.anyio
async def test_every_request_of_a_client_that_reaches_a_server_came_through_the_door(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At work: whoever starts a request on a server, the chain of callers is written down."""
    started: list[tuple[str, list[str]]] = []
    original = Upstream.start

    async def watched(self: Upstream, method: str, *args: Any, **kwargs: Any) -> Any:
        if self.server != "gateway":  # the command line's own connection to the gateway
            frames = [f"{Path(one.filename).name}:{one.function}" for one in inspect.stack(0)]
            started.append((method, frames))
        return await original(self, method, *args, **kwargs)

    monkeypatch.setattr(Upstream, "start", watched)
    async with running(tmp_path, SERVERS) as place:
        session = await place.session()
        calls: list[tuple[str, Any]] = [
            ("tools/call", {"name": "a__echo"}),
            ("tools/call", {"name": "nope"}),
            ("prompts/get", {"name": "a__greet"}),
            ("resources/read", {"uri": "lockgate://b/memo://one"}),
            ("resources/read", {"uri": "memo://one"}),
            (
                "completion/complete",
                {"ref": {"type": "ref/prompt", "name": "a__greet"}, "argument": {"name": "n", "value": ""}},
            ),
            ("resources/subscribe", {"uri": "lockgate://a/memo://one"}),
            ("logging/setLevel", {"level": "debug"}),
            *((method, {}) for method in LISTS),
            ("tasks/get", {"taskId": "1"}),
            ("sampling/createMessage", {}),
            ("deep/look", {}),
            ("ping", {}),
        ]
        for method, params in calls:
            await session.ask(method, params)
        await asyncio.gather(*(session.ask("tools/call", {"name": "b__echo"}) for _ in range(5)))
        for method, params in calls:
            headers = [JSON, ACCEPT, ("MCP-Protocol-Version", "2026-07-28"), ("Mcp-Method", method)]
            name = params.get("name") or params.get("uri")
            headers += (
                [("Mcp-Name", name)] if name and method in ("tools/call", "prompts/get", "resources/read") else []
            )
            await place.http.request("POST", "/mcp", message(method, {**params, "_meta": META}, 1), headers)
        async with gateway_client(place.gateway.settings) as client:
            await client.list_tools()
            await client.call_tool("a__echo", {})
        assert (await taskclient.call(place, "a__echo"))["resultType"] == "complete"
        id = await taskclient.task(place, "t__job", {"key": "k"})
        for method in tasks.METHODS:
            await taskclient.ask(place, method, id, inputResponses={})
        everything = list(auditlog.records(place.gateway.settings.state_dir))
        records = place.audit()

    relayed = [(method, frames) for method, frames in started if method in THROUGH_THE_DOOR]
    assert {method for method, _ in relayed} == THROUGH_THE_DOOR
    for method, frames in relayed:
        assert "door.py:call" in frames, (method, frames)
        assert frames.index("door.py:_admit") < frames.index("door.py:call")
    others = [(method, frames) for method, frames in started if method not in THROUGH_THE_DOOR]
    own = {"initialize", "server/discover", "logging/setLevel", "subscriptions/listen", *LISTS}
    for method, frames in others:
        if method in ("resources/subscribe", "resources/unsubscribe"):
            assert "hearing.py:subscribe" in frames
        else:
            assert method in own, method
            assert not any(frame.startswith(("legacy.py", "modern.py", "http.py")) for frame in frames), (
                method,
                frames,
            )
    for_clients = [method for method, _ in started if method in THROUGH_THE_DOOR or method == "resources/subscribe"]
    assert len(for_clients) == sum(record["server"] != "" and record["outcome"] != "unknown" for record in records)
    starts = [record for record in everything if record.get("event") == "start"]
    assert Counter(record["method"] for record in starts) == Counter(for_clients)
    assert all(record["policy"] and record["policies"] for record in starts)
