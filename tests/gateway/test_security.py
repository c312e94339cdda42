"""Attacks on the endpoint as docs/security.md lists them, where no other file of tests is nearer."""

import asyncio
import ipaddress
import json
import logging
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from gateway import bridge
from gateway.app import Front
from gateway.audit import Audit, Record
from gateway.serverlog import OneLine, ServerLog
from gateway.wire import envelope, headers
from tests.gateway.callers import ACCEPT, JSON, message
from tests.gateway.running import USER, Place, by_header, running
from tests.gateway.test_modern import ABLE, ASKING, CALL, request, result
from tests.gateway.test_sessions import of
from tests.servers import LOCAL

REVISIONS = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
ONE = {"a": ["friendly"]}
TWO = {"a": ["friendly"], "b": ["friendly"]}


# -- who may speak to us -------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.sec("SEC-001")
async def test_a_target_that_names_a_host_of_its_own_is_refused_on_every_route(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        for route in ("/mcp", "/healthz", "/v1/models", "/admin/servers"):
            for target in (f"http://evil.example{route}", f"http://127.0.0.1{route}", f"//evil.example{route}", "*"):
                answer = await place.http.request("GET", target)
                assert answer.status >= 400, target
                assert b'"ok"' not in answer.body


def is_local(origin: str) -> bool:
    """Written anew, so that one mistake is not made twice."""
    try:
        parts = urlsplit(origin)
        name = parts.hostname or ""
    except ValueError:
        return False
    if parts.scheme not in ("http", "https") or "@" in origin:
        return False
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


origins = st.builds(
    "{}://{}{}{}".format,
    st.sampled_from(["http", "https", "file", "chrome-extension", "HTTP", "null"]),
    st.sampled_from(
        ["localhost", "127.0.0.1", "[::1]", "evil.example", "localhost.evil.example", "127.1", "a@localhost"]
    )
    | st.from_regex(r"[a-z0-9.\-]{1,12}", fullmatch=True),
    st.sampled_from(["", ":80", ":x", ":99999"]),
    st.sampled_from(["", "/", "#localhost", "?localhost", "\\@localhost"]),
) | st.text(st.characters(max_codepoint=255), max_size=20)


@pytest.mark.sec("SEC-001")
@pytest.mark.sec("SEC-003")
@given(origins)
def test_no_foreign_origin_comes_through_and_none_is_ever_echoed(origin: str) -> None:
    reached: list[str] = []
    sent: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        reached.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def send(event: Any) -> None:
        sent.append(event)

    async def receive() -> Any:
        raise AssertionError("the body of a refused request is not read")

    async def ask() -> None:
        given_headers = [(b"host", b"127.0.0.1"), (b"origin", origin.encode("latin-1"))]
        await Front(app, app)({"type": "http", "path": "/mcp", "headers": given_headers}, receive, send)

    asyncio.run(ask())
    if reached:
        assert is_local(origin)
    assert not any(name.startswith(b"access-control") for name, _ in sent[0]["headers"])
    # The same words whatever was sent; a short origin may be a part of them.
    assert sent[1]["body"] == (b"" if reached else b"Forbidden: Host or Origin is not this machine\n")


# -- policy is the same for everybody ------------------------------------------------------------

SELECTED = {"all": {"servers": ["a", "b"], "tools": {"a": ["echo"], "b": []}}}
FORBIDDEN = [
    ("tools/call", {"name": "a__pid"}),
    ("tools/call", {"name": "b__echo"}),
    ("tools/call", {"name": "pid"}),
    ("tools/call", {"name": "A__echo"}),
    ("tools/call", {"name": "a__echo "}),
    ("tools/call", {"name": "a__ech\u043e"}),
    ("tools/call", {"name": "a__\uff45cho"}),
    ("prompts/get", {"name": "c__greet"}),
    ("resources/read", {"uri": "lockgate://c/memo://one"}),
    ("resources/read", {"uri": "memo://one"}),
    (
        "completion/complete",
        {"ref": {"type": "ref/prompt", "name": "c__greet"}, "argument": {"name": "x", "value": ""}},
    ),
]


@pytest.mark.anyio
@pytest.mark.sec("SEC-009")
async def test_no_revision_is_a_way_around_the_policy(tmp_path: Path) -> None:
    async with running(tmp_path, {**TWO, "c": ["friendly"]}, {**SELECTED, "whole": ["a", "b", "c"]}) as place:
        seen: set[str] = set()
        for revision in REVISIONS:
            session = await place.session(revision=revision)
            listed = await session.tools()
            codes = [(await session.error(method, params))["code"] for method, params in FORBIDDEN]
            assert listed == ["a__echo"]
            seen.add(json.dumps([code if code != -32002 else -32602 for code in codes]))
        codes = []
        for method, params in FORBIDDEN:
            body, given = request(method, params)
            given = [(n, headers.encode(v)) if n == "Mcp-Name" else (n, v) for n, v in given]
            answer = (await place.http.request("POST", "/mcp", body, given)).messages()[-1]
            codes.append(answer["error"]["code"])
        seen.add(json.dumps(codes))
        assert seen == {json.dumps([-32602] * len(FORBIDDEN))}
        assert {record["outcome"] for record in place.audit()} <= {"unknown", "error"}


@pytest.mark.anyio
@pytest.mark.sec("SEC-008")
async def test_what_a_header_says_is_never_what_is_called(tmp_path: Path) -> None:
    async with running(tmp_path, TWO, SELECTED) as place:
        body, given = request("tools/call", {"name": "a__pid", "arguments": {}})
        lying = [("Mcp-Name", "a__echo") if name == "Mcp-Name" else (name, value) for name, value in given]
        answer = await place.http.request("POST", "/mcp", body, lying)
        assert (answer.status, answer.messages()[0]["error"]["code"]) == (400, -32020)
        session = await place.session()
        legacy = await session.post(message("tools/call", {"name": "a__pid"}, 1), ("Mcp-Name", "a__echo"))
        assert legacy.messages()[0]["error"]["code"] == -32602
        assert {record["outcome"] for record in place.audit()} == {"unknown"}


# -- requestState --------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.sec("SEC-010")
async def test_the_state_of_a_request_is_of_no_use_to_another_principal_or_too_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, ASKING, principal_of=by_header) as place:

        async def ask(user: str, params: Any) -> Any:
            body, given = request("tools/call", params, clientCapabilities=ABLE)
            return (await place.http.request("POST", "/mcp", body, [*given, (USER, user)])).messages()[-1]

        first = (await ask("alice", CALL))["result"]
        (key,) = first["inputRequests"]
        again = {**CALL, "requestState": first["requestState"], "inputResponses": {key: {"role": "assistant"}}}
        assert (await ask("bob", again))["error"]["code"] == -32602
        now = time.time()
        with monkeypatch.context() as patch:
            patch.setattr(bridge.time, "time", lambda: now + bridge.PARK_S + 5)
            assert (await ask("alice", again))["error"]["code"] == -32602
        assert (await ask("alice", again))["result"]["resultType"] == "input_required"


# -- lists ---------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.sec("SEC-011")
async def test_a_list_is_never_the_list_of_somebody_else(tmp_path: Path) -> None:
    profiles = {"all": ["a", "b"], "one": ["a"], "few": {"servers": ["a", "b"], "tools": {"a": ["echo"], "b": ["pid"]}}}
    async with running(tmp_path, TWO, profiles, principal_of=by_header) as place:
        await result(place, "tools/list")
        door = place.gateway.door
        expected = {}
        dice = random.Random(11)
        for number in range(1000):
            path, user = dice.choice(["/mcp", "/p/one/mcp", "/p/few/mcp"]), dice.choice(["alice", "bob"])
            if number % 50 == 0:
                place.gateway.pool._listings.generation += 1  # as when a listing changes: nothing old may come back
            if number % 20:
                profile = place.gateway.catalog.profile(path.split("/")[2] if path != "/mcp" else "all")
                caller = type("Caller", (), {"profile": profile, "principal": by_header(_scope(user))})()
                names = tuple(door.surface(caller).tools)
            else:
                body, given = request("tools/list")
                answer = await place.http.request("POST", path, body, [*given, (USER, user)])
                page = answer.messages()[-1]["result"]
                assert page["cacheScope"] == "private"
                names = tuple(tool["name"] for tool in page["tools"])
            assert expected.setdefault(path, set(names)) == set(names)
        assert len(set(map(frozenset, expected.values()))) == 3


def _scope(user: str) -> Scope:
    return {"headers": [(USER.lower().encode(), user.encode())]}


def tool(name: str, **properties: Any) -> dict[str, Any]:
    return {"name": name, "inputSchema": {"type": "object", "properties": properties}}


@pytest.mark.anyio
@pytest.mark.sec("SEC-012")
async def test_a_tool_that_asks_for_a_header_it_must_not_have_is_dropped_and_the_others_stay(tmp_path: Path) -> None:
    mirror = {"type": "string", "x-mcp-header": "Region"}
    bad = [
        tool("breaks_lines", x={**mirror, "x-mcp-header": "A\r\nX-Evil: 1"}),
        tool("no_token", x={**mirror, "x-mcp-header": "a b"}),
        tool("empty", x={**mirror, "x-mcp-header": ""}),
        tool("twice", x=mirror, y={**mirror, "x-mcp-header": "REGION"}),
        tool("no_text", x={**mirror, "x-mcp-header": 5}),
        tool("an_object", x={"type": "object", "x-mcp-header": "Region"}),
        tool("a_secret", x={**mirror, "format": "password"}),
        tool("a_write_only", x={**mirror, "writeOnly": True}),
        tool("by_reference", x={"$ref": "#/$defs/d"}) | {"inputSchema": {"$defs": {"d": mirror}}},
        tool("in_an_item", x={"type": "array", "items": mirror}),
    ]
    good = [tool("good", x=mirror), tool("plain", x={"type": "string"})]
    options = json.dumps({"lists": {"tools/list": [*bad, *good]}})
    async with running(tmp_path, {"a": {"package": dict(LOCAL), "command": ["friendly", options]}}) as place:
        listed = [one["name"] for one in (await result(place, "tools/list"))["tools"]]
        log = "\n".join(place.log("a"))
        for one in bad:
            assert (f"a__{one['name']}" in listed) is False, one["name"]
            assert one["name"] in log
        assert listed == ["a__good", "a__plain"]


# -- batches -------------------------------------------------------------------------------------


@pytest.mark.sec("SEC-015")
@pytest.mark.parametrize("member", [b"1", b"{}", b'{"jsonrpc":"2.0","id":1,"method":"ping"}', b'""'])
def test_a_batch_of_millions_is_refused_before_it_is_taken_apart(member: bytes) -> None:
    bomb = b"[" + b",".join([member] * (16_000_000 // (len(member) + 1))) + b"]"
    with pytest.raises(envelope.WireError):
        envelope.decode_batch(bomb)


# -- logs ----------------------------------------------------------------------------------------

nasty = st.text(max_size=60) | st.sampled_from(
    [
        "a\nb",
        "a\r\nb",
        "\x1b[2J\x1b]0;x\x07",
        "\u2028\u2029\x85",
        "\x00\x0b\x0c\x1c\x1d\x1e",
        '"},{"outcome":"ok"}',
        "\u202e",
    ]
)


@pytest.mark.sec("SEC-023")
@given(nasty, nasty, nasty)
def test_a_record_of_the_audit_is_one_line_whatever_is_in_it(
    tmp_path_factory: pytest.TempPathFactory, client: str, name: str, item: str
) -> None:
    path = tmp_path_factory.mktemp("audit") / "audit.jsonl"
    audit = Audit(path)
    audit.open()
    try:
        audit.write(Record("c", 0.0, "p", client, "all", "tools/call", name, item=item))
    finally:
        audit.close()
    data = path.read_bytes()
    assert data.count(b"\n") == 1
    assert not any(byte < 0x20 for byte in data[:-1])
    record = json.loads(data)
    assert (record["client"], record["name"], record["item"]) == (client, name, item)


@pytest.mark.sec("SEC-023")
@given(nasty, nasty)
def test_what_servers_and_clients_say_makes_one_printable_line_in_the_logs(first: str, second: str) -> None:
    log = ServerLog()
    log.write("gateway", first)
    log.stderr(second.encode("utf-8", "replace") + b"\n")
    for line in log.lines():
        assert all(c.isprintable() or c == "\t" for c in line.text)
    record = logging.LogRecord("gateway", logging.WARNING, "", 0, "not watching: %s", (first,), None)
    text = OneLine("%(levelname)s %(name)s: %(message)s").format(record)
    assert all(c.isprintable() or c == "\t" for c in text)


@pytest.mark.sec("SEC-023")
def test_a_traceback_in_the_log_is_indented_and_cannot_pass_for_a_record() -> None:
    try:
        raise ValueError("bad\nWARNING gateway: all is well\x1b[31m")
    except ValueError as exc:
        record = logging.LogRecord("gateway", logging.ERROR, "", 0, "incident", (), (type(exc), exc, exc.__traceback__))
    first, *rest = OneLine("%(levelname)s: %(message)s").format(record).split("\n")
    assert first == "ERROR: incident"
    assert all(line.startswith("    ") for line in rest)
    assert "\x1b" not in "".join(rest)


# -- who may do what -----------------------------------------------------------------------------

MODELS = {
    f"{prefix}/{name}"
    for prefix in ("/v1", "/engines/v1", "/engines/llama.cpp/v1")
    for name in ("models", "models/{ref:path}", "chat/completions", "completions", "embeddings", "responses")
}
MODELS |= {"/v1/messages", "/v1/messages/count_tokens", "/v1/metrics", "/v1/rerank", "/rerank", "/tokenize"}
MODELS |= {"/detokenize"}
MODELS |= {f"/api/{name}" for name in ("version", "tags", "ps", "show", "chat", "generate", "embed")}
OPEN = {"/p/{profile}/mcp", "/healthz", "/connect/callback", "/connect/{ticket}", *MODELS}
"""Routes for everybody on this machine. A new one belongs here only if it shows and does nothing of the operator's."""


def routes(place: Place) -> Iterator[Route]:
    app = place.service._server.config.app
    assert isinstance(app, Front)
    yield from app._router.routes  # type: ignore[attr-defined]


@pytest.mark.anyio
@pytest.mark.sec("SEC-024")
async def test_every_route_but_those_for_everybody_wants_the_admin_token_and_nothing_else_will_do(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, ONE) as place:
        session = await place.session()
        token = place.service.running.admin_token
        wrong = ["", "Bearer", "Bearer ", f"Bearer {session.id}", f"Bearer {token[:-1]}", f"Bearer {token}x", token]
        wrong += [f"Basic {token}", f"bearer {token}", f"Bearer  {token}", f"Bearer {token.upper()}", "Bearer \u00e9"]
        found = set()
        for route in routes(place):
            found.add(route.path)
            if route.path in OPEN:
                continue
            target = route.path.replace("{id}", "a")
            for method in sorted((route.methods or {"GET"}) - {"HEAD"}):  # HEAD is GET without its body
                for credential in wrong:
                    given = [("Authorization", credential)] if credential else []
                    answer = await place.http.request(method, target, headers=given)
                    assert answer.status == 401, (method, target, credential)
                for smuggled in (f"{target}?token={token}", f"{target}?access_token={token}"):
                    cookie = [("Cookie", f"token={token}"), ("X-Admin-Token", token), session.headers()[0]]
                    assert (await place.http.request(method, smuggled, headers=cookie)).status == 401
                right = await place.http.request(method, target, headers=[("Authorization", f"Bearer {token}")])
                assert right.status != 401
        assert found >= OPEN


# -- what errors say -----------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.sec("SEC-025")
async def test_no_error_tells_of_files_code_or_what_is_hidden(tmp_path: Path) -> None:
    async with running(tmp_path, TWO, SELECTED | {"whole": ["a", "b"]}) as place:
        session, whole = await place.session(), await place.session("/p/whole/mcp")
        answers = []
        for method, params in [
            *FORBIDDEN,
            ("nonsense", {}),
            ("tools/call", {"name": 5}),
            ("tools/list", {"cursor": "x"}),
        ]:
            answers.append((await session.post(message(method, params, 1))).body)
        for body in (b"", b"{", b"[]", b"\xff", b'{"a":1,"a":2}', b"[" * 5000):
            answers.append((await session.post(body)).body)
        for name in ("a__crash", "a__error"):
            answers.append((await whole.post(message("tools/call", {"name": name, "arguments": {}}, 1))).body)
        for target in ("/p/none/mcp", "/nothing", "/admin/servers", "/mcp/..%2f..%2fetc", "/v1/models/x"):
            answers.append((await place.http.request("GET", target)).body)
        answers.append((await place.http.request("POST", "/mcp", b"{", [JSON, ACCEPT])).body)
        told = b"\n".join(answers)
        for leak in (
            str(tmp_path),
            "Traceback",
            ".py",
            "/site-packages",
            "line ",
            "msgspec",
            "uvicorn",
            "/root",
            "/home",
        ):
            assert leak.encode() not in told, leak


@pytest.mark.anyio
@pytest.mark.sec("SEC-025")
async def test_denied_and_absent_are_the_same_bytes_to_every_principal_in_every_era(tmp_path: Path) -> None:
    async with running(tmp_path, TWO, SELECTED, principal_of=by_header) as place:
        for hidden, absent in (("a__pid", "a__pod"), ("b__echo", "b__ecko"), ("c__echo", "d__echo")):
            answers = []
            for name in (hidden, absent):
                for user in ("alice", "bob"):
                    body, given = request("tools/call", {"name": name, "arguments": {}})
                    modern = await place.http.request("POST", "/mcp", body, [*given, (USER, user)])
                    session = await of(place, user)
                    legacy = await session.post(message("tools/call", {"name": name}, 1))
                    answers.append([(one.status, one.body.replace(name.encode(), b"NAME")) for one in (modern, legacy)])
            assert all(one == answers[0] for one in answers), hidden
