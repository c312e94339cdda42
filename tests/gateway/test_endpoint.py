"""The HTTP endpoint as legacy clients meet it, from the listener to real servers."""

import asyncio
import base64
import hashlib
import itertools
import json
import os
import random
import resource
from collections import Counter
from pathlib import Path
from typing import Any

import anyio
import pytest

from gateway.wire import http
from tests.gateway.callers import ACCEPT, JSON, Session, message
from tests.gateway.running import Place, running
from tests.servers import LOCAL, until

pytestmark = pytest.mark.anyio

REVISIONS = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")
ONE = {"a": ["friendly"]}
TWO = {"a": ["friendly"], "b": ["friendly", '{"instructions": "Use b wisely."}']}


# -- sessions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("revision", REVISIONS)
async def test_each_legacy_revision_is_spoken_as_asked(tmp_path: Path, revision: str) -> None:
    async with running(tmp_path, ONE) as place:
        session = await place.session(revision=revision)
        assert session.revision == revision
        assert session.hello["serverInfo"]["name"] == "lockgate"
        assert {"tools", "prompts", "resources", "completions", "logging"} <= set(session.hello["capabilities"])
        assert json.loads(await session.call("a__echo", {"x": 1})) == {"x": 1}


@pytest.mark.parametrize("revision", ["2099-01-01", "1.0", "", "2026-07-28"])
async def test_an_unknown_revision_is_countered_with_the_newest_that_has_sessions(
    tmp_path: Path, revision: str
) -> None:
    async with running(tmp_path, ONE) as place:
        assert (await place.session(revision=revision)).revision == REVISIONS[0]


@pytest.mark.sec("SEC-005")
async def test_session_ids_are_long_random_and_never_repeated(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        ids = [(await place.session()).id for _ in range(20)]
        assert len(set(ids)) == 20
        assert all(len(id) >= 32 and int(id, 16) for id in ids)


async def test_only_initialize_is_answered_without_a_session(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        for method in ("tools/list", "tools/call", "ping", "logging/setLevel", "x"):
            answer = await place.http.request("POST", "/mcp", message(method, {}, 5), [JSON, ACCEPT])
            assert answer.status == 400
            assert answer.messages()[0]["id"] == 5
            assert "mcp-session-id" not in answer.headers
        assert place.audit() == []


async def test_an_unknown_session_is_not_found(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        for id in ("0" * 32, "x", "../../etc/passwd", "a" * 10_000, "\xff"):
            for method, body in (("POST", message("ping", {}, 1)), ("GET", b""), ("DELETE", b"")):
                answer = await place.http.request(method, "/mcp", body, [JSON, ACCEPT, ("Mcp-Session-Id", id)])
                assert answer.status == 404, (method, id)


async def test_a_session_of_another_profile_is_not_found_exactly_like_an_unknown_one(tmp_path: Path) -> None:
    async with running(tmp_path, TWO, {"all": ["a", "b"], "other": ["a"]}) as place:
        session = await place.session("/p/other/mcp")
        for method, body in (("POST", message("ping", {}, 1)), ("GET", b""), ("DELETE", b"")):
            foreign = await place.http.request(method, "/mcp", body, session.headers(JSON, ACCEPT))
            unknown = await place.http.request(method, "/mcp", body, [JSON, ACCEPT, ("Mcp-Session-Id", "f" * 32)])
            assert (foreign.status, foreign.body) == (unknown.status, unknown.body) == (404, unknown.body)
        assert await session.result("ping") == {}


async def test_a_deleted_session_is_not_found(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        session = await place.session()
        assert (await session.close()).status == 204
        assert (await session.close()).status == 404
        assert (await session.post(message("ping", {}, 1))).status == 404


async def test_deleting_a_session_ends_its_stream_and_its_calls(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        session, other = await place.session(), await place.session()
        await session.tools()
        async with session.listening() as stream, session.calling("a__hold", {"key": "k"}) as held:
            assert (await held.message())["method"] == "notifications/progress"
            assert (await session.close()).status == 204
            assert (await held.message())["error"]["code"] == -32800
            while (last := await stream.message()) is not None:
                assert last["method"].endswith("list_changed")
        assert "notifications/cancelled" in await other.call("a__notes")


async def test_a_second_initialize_in_a_session_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        session = await place.session()
        params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}}
        assert (await session.error("initialize", params))["code"] == -32600


async def test_a_malformed_initialize_opens_no_session(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        for params in (
            None,
            {},
            {"protocolVersion": 5},
            {"protocolVersion": "2025-11-25", "capabilities": []},
            {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": "x"},
            {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": 5}},
        ):
            answer = await place.http.request("POST", "/mcp", message("initialize", params, 1), [JSON, ACCEPT])
            assert answer.status == 400
            assert answer.messages()[0]["error"]["code"] == -32602
            assert "mcp-session-id" not in answer.headers


async def test_the_instructions_of_known_servers_are_passed_on(tmp_path: Path) -> None:
    async with running(tmp_path, TWO) as place:
        await (await place.session()).tools()
        assert (await place.session()).hello["instructions"] == "[b]\nUse b wisely."


# -- HTTP ----------------------------------------------------------------------------------------


@pytest.mark.sec("SEC-002")
async def test_another_content_type_than_json_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        body = message("initialize", {"protocolVersion": "2025-11-25"}, 1)
        for type in ("text/plain", "", "application/x-www-form-urlencoded", "multipart/form-data", "json", None):
            given = [ACCEPT] if type is None else [("Content-Type", type), ACCEPT]
            assert (await place.http.request("POST", "/mcp", body, given)).status == 415


async def test_json_with_a_charset_is_json(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        session = await place.session()
        headers = session.headers(("Content-Type", "Application/JSON; charset=utf-8"), ACCEPT)
        answer = await session.http.request("POST", "/mcp", message("ping", {}, 1), headers)
        assert answer.messages() == [{"jsonrpc": "2.0", "id": 1, "result": {}}]


@pytest.mark.sec("SEC-016")
async def test_a_body_over_the_limit_is_refused_also_when_it_is_chunked(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        session = await place.session()
        body = message("ping", {"x": "x" * http.MAX_BODY_BYTES}, 1)
        assert (await session.post(body)).status == 413
        head = place.http.head("POST", "/mcp", session.headers(JSON, ACCEPT), 0).replace(
            b"Content-Length: 0", b"Transfer-Encoding: chunked"
        )
        chunks = b"".join(b"100000\r\n" + b"x" * 0x100000 + b"\r\n" for _ in range(17)) + b"0\r\n\r\n"
        assert (await place.http.raw(head + chunks)).status == 413
        assert await session.result("ping") == {}


async def test_methods_the_endpoint_does_not_have_are_named(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        for method in ("PUT", "PATCH", "OPTIONS"):
            answer = await place.http.request(method, "/mcp")
            assert answer.status == 405
            assert "POST" in answer.headers["allow"]
            assert "access-control-allow-origin" not in answer.headers
        assert (await place.http.request("GET", "/mcp")).status == 400
        assert (await place.http.request("POST", "/p/absent/mcp", message("ping", {}, 1), [JSON])).status == 404


async def test_an_unsupported_revision_header_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        session = await place.session()
        for revision in ("1999-01-01", "2099-01-01", "x" * 500):
            for method, status in (("POST", 400), ("GET", 405), ("DELETE", 405)):
                headers = [("Mcp-Session-Id", session.id), ("MCP-Protocol-Version", revision), JSON, ACCEPT]
                body = message("tools/call", {"name": "a__echo"}, 1) if method == "POST" else b""
                assert (await place.http.request(method, "/mcp", body, headers)).status == status
        assert place.audit() == []
        assert await session.result("ping") == {}


async def test_the_refusal_of_a_revision_says_which_ones_there_are(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        version = "2099-01-01"
        meta = {
            "io.modelcontextprotocol/protocolVersion": version,
            "io.modelcontextprotocol/clientCapabilities": {},
        }
        headers = [JSON, ACCEPT, ("MCP-Protocol-Version", version), ("Mcp-Method", "tools/list")]
        answer = await place.http.request("POST", "/mcp", message("tools/list", {"_meta": meta}, 1), headers)
        assert answer.status == 400
        error = answer.messages()[0]["error"]
        assert error["code"] == -32022
        assert error["data"]["requested"] == version
        assert "2026-07-28" in error["data"]["supported"]


HOSTS = {
    "127.0.0.1:{port}": True,
    "127.0.0.1": True,
    "localhost:{port}": True,
    "LOCALHOST": True,
    "[::1]:{port}": True,
    "evil.example": False,
    "evil.example:{port}": False,
    "localhost.evil.example": False,
    "127.0.0.1.evil.example": False,
    "127.0.0.1.nip.io:{port}": False,
    "localhost@evil.example": False,
    "evil.example@localhost": False,
    "localhost.": False,
    "0.0.0.0:{port}": False,
    "[::]": False,
    "169.254.169.254": False,
    "": False,
    "[::1": False,
    "2130706433": False,
}
ORIGINS = {
    "http://localhost:3000": True,
    "http://127.0.0.1": True,
    "https://[::1]:8443": True,
    "null": False,
    "": False,
    "http://evil.example": False,
    "https://localhost.evil.example": False,
    "http://localhost@evil.example": False,
    "http://evil.example#localhost": False,
    "http://127.0.0.1.evil.example:80": False,
    "file://": False,
    "file://localhost": False,
    "chrome-extension://localhost": False,
    "localhost": False,
    "//localhost": False,
    "http://": False,
}
ROUTES = ("/mcp", "/p/all/mcp", "/healthz", "/v1/models", "/admin/servers", "/nothing")


@pytest.mark.sec("SEC-001")
async def test_a_foreign_host_is_refused_on_every_route(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        for host, local in HOSTS.items():
            for route in ROUTES:
                answer = await place.http.request("GET", route, headers=[("Host", host.format(port=place.http.port))])
                if local:
                    assert answer.status != 403, (host, route)
                else:
                    assert answer.status in (400, 403), (host, route)
                    assert b'"ok"' not in answer.body


@pytest.mark.sec("SEC-003")
async def test_a_foreign_origin_is_refused_on_every_route_and_never_echoed(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        for origin, local in ORIGINS.items():
            for route in ROUTES:
                answer = await place.http.request("GET", route, headers=[("Origin", origin)])
                assert (answer.status != 403) is local, (origin, route)
                assert not any(name.startswith("access-control") for name in answer.headers)


@pytest.mark.sec("SEC-001")
async def test_a_repeated_or_missing_host_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        local = f"127.0.0.1:{place.http.port}"
        for lines in (
            f"Host: {local}\r\nHost: evil.example\r\n",
            f"Host: evil.example\r\nHost: {local}\r\n",
            f"Host: {local}\r\nHost: {local}\r\n",
            "",
        ):
            answer = await place.http.raw(f"GET /healthz HTTP/1.1\r\n{lines}Connection: close\r\n\r\n".encode())
            assert answer.status in (400, 403)
        answer = await place.http.raw(
            f"GET http://evil.example/healthz HTTP/1.1\r\nHost: {local}\r\nConnection: close\r\n\r\n".encode()
        )
        assert b'"ok"' not in answer.body or answer.status == 200


@pytest.mark.sec("SEC-001")
async def test_a_refused_host_is_refused_before_its_body_is_read(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        head = place.http.head("POST", "/mcp", [("Host", "evil.example"), JSON], 10_000_000)
        assert (await place.http.raw(head)).status == 403


async def test_every_loopback_address_the_gateway_may_listen_on_can_be_used(tmp_path: Path) -> None:
    for number, host in enumerate(("127.0.0.1", "127.0.0.53", "::1", "localhost")):
        folder = tmp_path / str(number)
        folder.mkdir()
        async with running(folder, ONE, host=host) as place:
            session = await place.session()
            assert await session.result("ping") == {}


# -- messages ------------------------------------------------------------------------------------


@pytest.mark.sec("SEC-013")
async def test_an_id_comes_back_exactly(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        session = await place.session()
        for id in (0, 1, -1, 2**53 + 1, 10**30, "a", "", "1", "é\u2028\U0001f600", 'quote"\\', "\0"):
            for method, params in (("ping", {}), ("tools/call", {"name": "a__echo"}), ("none", {}), ("tools/list", {})):
                (answer,) = (await session.post(message(method, params, id))).messages()
                assert answer["id"] == id
                assert type(answer["id"]) is type(id)


async def test_an_id_comes_back_as_it_was_spelled(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        session = await place.session()
        for id in (b'"\\u0041\\n\\/"', b"-0", b"12345678901234567890123456789"):
            body = b'{"jsonrpc":"2.0","id": %b ,"method":"tools/call","params":{"name":"a__echo"}}' % id
            assert b'"id":%b,' % id in (await session.post(body)).body


WRONG = (
    (b"", -32700),
    (b"{", -32700),
    (b"\xff", -32700),
    (b"\xef\xbb\xbf{}", -32700),
    (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":NaN}}', -32700),
    (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":' + b'{"a":' * 100_000, -32700),
    (b"null", -32600),
    (b"1", -32600),
    (b"{}", -32600),
    (b'{"jsonrpc":"2.0","id":null,"method":"ping"}', -32600),
    (b'{"jsonrpc":"2.0","id":1.5,"method":"ping"}', -32600),
    (b'{"jsonrpc":"2.0","id":{},"method":"ping"}', -32600),
    (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":[]}', -32600),
    (b'{"jsonrpc":"2.0","id":1,"method":"nonsense"}', -32601),
    (b'{"jsonrpc":"2.0","id":1,"method":"tools/call"}', -32602),
    (b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":5}}', -32602),
    (b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"nope"}}', -32602),
    (b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a__echo","_meta":5}}', -32602),
    (b'{"jsonrpc":"2.0","id":1,"method":"prompts/get","params":{"name":"nope"}}', -32602),
    (b'{"jsonrpc":"2.0","id":1,"method":"resources/read","params":{"uri":"lockgate://zz/nope"}}', -32002),
    (b'{"jsonrpc":"2.0","id":1,"method":"resources/read","params":{}}', -32602),
    (b'{"jsonrpc":"2.0","id":1,"method":"completion/complete","params":{}}', -32602),
    (b'{"jsonrpc":"2.0","id":1,"method":"completion/complete","params":{"ref":{"type":"x"}}}', -32602),
    (b'{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{"cursor":5}}', -32602),
    (b'{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{"cursor":"nope"}}', -32602),
    (b'{"jsonrpc":"2.0","id":1,"method":"logging/setLevel","params":{"level":"loud"}}', -32602),
    (b'{"jsonrpc":"2.0","id":1,"method":"logging/setLevel"}', -32602),
    (b'{"jsonrpc":"2.0","id":1,"method":"resources/subscribe","params":{"uri":"lockgate://zz/nope"}}', -32002),
)


async def test_what_is_wrong_with_a_message_has_its_code(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        session = await place.session()
        await session.tools()
        for body, code in WRONG:
            answer = await session.post(body)
            assert answer.messages()[0]["error"]["code"] == code, body[:200]
            assert await session.result("ping") == {}


async def test_notifications_and_answers_are_acknowledged_without_a_body(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        session = await place.session()
        for body in (
            message("notifications/initialized"),
            message("notifications/unheard_of", {"x": 1}),
            message("notifications/cancelled", {"requestId": 99}),
            message("notifications/cancelled", {}),
            message("notifications/roots/list_changed"),
            b'{"jsonrpc":"2.0","id":1,"result":{}}',
            b'{"jsonrpc":"2.0","id":%b,"result":{}}' % (b"9" * 300),
            b'{"jsonrpc":"2.0","id":"x","error":{"code":1,"message":"m"}}',
        ):
            answer = await session.post(body)
            assert (answer.status, answer.body) == (202, b"")


@pytest.mark.sec("SEC-015")
async def test_batches_belong_to_the_revision_that_has_them(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        calls = [message("tools/call", {"name": "a__echo", "arguments": {"n": n}}, n) for n in range(5)]
        batch = b"[" + b",".join([*calls, message("notifications/initialized"), message("nonsense", {}, "x")]) + b"]"
        for revision in REVISIONS:
            session = await place.session(revision=revision)
            (answer,) = (await session.post(batch)).messages()
            if revision != "2025-03-26":
                assert answer["error"]["code"] == -32600
                continue
            assert {one["id"]: "result" in one for one in answer} == {**dict.fromkeys(range(5), True), "x": False}
            assert (await session.post(b"[" + message("notifications/initialized") + b"]")).status == 202
            for bad in (b"[]", b"[1]", b"[" + b",".join([message("ping", {}, 1)] * 10_000) + b"]", b"[[]]", b"["):
                messages = (await session.post(bad)).messages()[0]
                assert all("error" in one for one in (messages if isinstance(messages, list) else [messages]))


async def test_a_plain_call_is_answered_with_json_and_progress_comes_before_the_answer(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        session = await place.session()
        plain = await session.post(message("tools/call", {"name": "a__progress", "arguments": {"n": 3}}, 1))
        assert plain.headers["content-type"] == "application/json"
        for token in ("my-token", 7, "\u00e9"):
            params = {"name": "a__progress", "arguments": {"n": 3}, "_meta": {"progressToken": token, "x": 1.5}}
            answer = await session.post(message("tools/call", params, 2))
            assert answer.is_stream
            *progress, end = answer.messages()
            assert [one["params"] for one in progress] == [
                {"progressToken": token, "progress": number, "total": 3} for number in (1, 2, 3)
            ]
            assert end["result"]["content"][0]["text"] == "done"


async def test_a_client_that_takes_no_stream_gets_the_answer_alone(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        session = await place.session()
        params = {"name": "a__progress", "arguments": {"n": 3}, "_meta": {"progressToken": 1}}
        headers = session.headers(JSON, ("Accept", "application/json"))
        answer = await session.http.request("POST", "/mcp", message("tools/call", params, 1), headers)
        assert answer.messages()[0]["result"]["content"][0]["text"] == "done"


async def test_arguments_and_results_pass_byte_for_byte(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        session = await place.session()
        arguments = b'{"n":1.10e5,"z":[ 1 , 2 ],"u":"\\u00e9\\/","a":12345678901234567890.10}'
        params = b'{"arguments":%b,"name":"a__raw","future":{"x":1.0}}' % arguments
        body = b'{"params":%b,"id":1,"method":"tools/call","jsonrpc":"2.0"}' % params
        line = (await session.post(body)).messages()[0]["result"]["content"][0]["text"].encode()
        assert arguments in line
        assert b'"future":{"x":1.0}' in line
        assert b'"name":"raw"' in line


async def test_a_line_break_in_a_message_does_not_make_two(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        session = await place.session()
        pretty = json.dumps(
            {
                "jsonrpc": "2.0",
                "id": 1,
                "method": "tools/call",
                "params": {"name": "a__echo", "arguments": {"text": '\n{"jsonrpc":"2.0","id":2,"method":"ping"}\r\n'}},
            },
            indent=1,
        ).replace("\n", "\r\n")
        (answer,) = (await session.post(pretty.encode())).messages()
        assert json.loads(answer["result"]["content"][0]["text"])["text"].startswith("\n{")
        raw = pretty.encode().replace(b"\\n{", b"\n{")
        assert (await session.post(raw)).messages()[0]["error"]["code"] == -32700
        assert json.loads(await session.call("a__notes")) == [{"method": "notifications/initialized", "params": {}}]


async def test_a_servers_own_errors_are_passed_on_unchanged(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        session = await place.session()
        error = await session.error("tools/call", {"name": "a__error"})
        assert error == {"code": -32050, "message": "a very own error", "data": {"why": "because"}}
        assert await session.failure("a__fail") == "it did not work"


# -- cancelling ----------------------------------------------------------------------------------


@pytest.mark.sec("SEC-022")
async def test_a_cancelled_call_is_answered_so_and_the_server_is_told(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        session = await place.session()
        async with session.calling("a__hold", {"key": "k"}, id="mine") as held:
            assert (await held.message())["method"] == "notifications/progress"
            body = message("notifications/cancelled", {"requestId": "mine", "reason": "changed my mind"})
            assert (await session.post(body)).status == 202
            assert (await session.post(body)).status == 202
            answer = await held.message()
        assert (answer["id"], answer["error"]["code"]) == ("mine", -32800)
        (told,) = [
            note["params"]
            for note in json.loads(await session.call("a__notes"))
            if note["method"] == "notifications/cancelled"
        ]
        assert isinstance(told["requestId"], int)
        assert [record["outcome"] for record in place.audit()] == ["cancelled", "ok"]
        assert place.gateway.pool.servers["a"].upstream.in_flight == 0  # type: ignore[union-attr]


async def test_nobody_cancels_a_call_of_another_session(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        session, other = await place.session(), await place.session()
        async with session.calling("a__hold", {"key": "k"}, id=1) as held:
            assert (await held.message())["method"] == "notifications/progress"
            await other.post(message("notifications/cancelled", {"requestId": 1}))
            await other.call("a__release", {"key": "k"})
            assert (await held.message())["result"]["content"][0]["text"] == "k"


async def test_the_same_id_twice_at_once_is_refused_the_second_time(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        session = await place.session()
        async with session.calling("a__hold", {"key": "k"}, id=1) as held:
            await held.message()
            (answer,) = (await session.post(message("tools/call", {"name": "a__echo"}, 1))).messages()
            assert answer["error"]["code"] == -32600
            await session.post(message("tools/call", {"name": "a__release", "arguments": {"key": "k"}}, 2))
            assert "result" in await held.message()


@pytest.mark.sec("SEC-022")
async def test_cancelling_races_with_answers_and_each_call_ends_once(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        session = await place.session()
        await session.tools()
        outcomes: Counter[str] = Counter()

        async def one(number: int) -> None:
            async def cancel() -> None:
                for _ in range(number % 13):
                    await asyncio.sleep(0)
                await session.post(message("notifications/cancelled", {"requestId": f"r{number}"}))

            async with asyncio.TaskGroup() as group:
                group.create_task(cancel())
                params = {"name": "a__delay", "arguments": {"ms": number % 7, "mark": f"m{number}"}}
                answer = await session.post(message("tools/call", params, f"r{number}"))
            (end,) = answer.messages()
            assert end["id"] == f"r{number}"
            if "result" in end:
                assert end["result"]["content"][0]["text"] == f"m{number}"
                outcomes["answered"] += 1
            else:
                assert end["error"]["code"] == -32800
                outcomes["cancelled"] += 1

        for start in range(0, 300, 50):
            async with asyncio.TaskGroup() as group:
                for number in range(start, start + 50):
                    group.create_task(one(number))
        assert sum(outcomes.values()) == 300
        records = Counter(record["outcome"] for record in place.audit())
        assert records["ok"] + records["cancelled"] == 300
        assert place.gateway.pool.servers["a"].upstream.in_flight == 0  # type: ignore[union-attr]


async def test_a_client_that_hangs_up_disturbs_nobody(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        session = await place.session()
        for key in ("a", "b", "c"):
            async with session.calling("a__hold", {"key": key}) as held:
                await held.message()
        assert await session.call("a__release", {"key": "b"}) == "released"
        assert json.loads(await session.call("a__echo", {"x": 1})) == {"x": 1}


# -- what the gateway says unasked ---------------------------------------------------------------


async def test_a_changed_list_is_announced_to_every_session_that_sees_the_server(tmp_path: Path) -> None:
    async with running(tmp_path, TWO, {"all": ["a", "b"], "only-b": ["b"]}) as place:
        first, second, stranger = await place.session(), await place.session(), await place.session("/p/only-b/mcp")
        await first.tools()
        await until(lambda: place.gateway.pool.servers["b"].listing, "b is known too")
        async with first.listening() as one, second.listening() as two, stranger.listening() as three:
            await first.call("a__change", {"add": "brand_new"})
            while "a__brand_new" not in await first.tools():
                for stream in (one, two):
                    assert (await stream.until("notifications/tools/list_changed"))["jsonrpc"] == "2.0"
            assert await first.call("a__brand_new", {}) == "brand_new: {}"
            await first.call("b__change", {"lists": ["prompts"]})
            while (heard := (await three.message())["method"]) != "notifications/prompts/list_changed":
                assert heard.endswith("list_changed")


async def test_a_subscription_that_the_server_refuses_is_refused_each_time_and_keeps_nothing(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        session = await place.session()
        await session.result("resources/list")
        for _ in range(2):
            refusal = await session.error("resources/subscribe", {"uri": "lockgate://a/memo://one"})
            assert "refused resources/subscribe" in refusal["message"]
        assert not (await place.gateway.pool.connection("a")).busy


async def test_a_session_listens_once_at_a_time(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        session = await place.session()
        async with session.listening():
            answer = await session.http.request("GET", "/mcp", headers=session.headers())
            assert answer.status == 409
        deadline = anyio.current_time() + 10
        while anyio.current_time() < deadline:  # the first stream's end takes a moment to be seen
            async with session.http.stream("GET", "/mcp", headers=session.headers()) as stream:
                if stream.status == 200:
                    break
        else:
            pytest.fail("the session can never listen again")


async def test_what_happens_while_nobody_listens_is_kept_for_the_stream(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        session = await place.session()
        await session.tools()
        await session.call("a__change", {"add": "one"})
        pool = place.gateway.pool
        await until(lambda: "one" in [tool.key for tool in pool.listing("a").tools], "it is taken")  # type: ignore[union-attr]
        async with session.listening() as stream:
            assert await stream.until("notifications/tools/list_changed")


async def test_log_messages_go_to_callers_at_the_level_they_asked_for(tmp_path: Path) -> None:
    async with running(tmp_path, TWO) as place:
        session, silent, elsewhere = await place.session(), await place.session(), await place.session()
        assert await session.result("logging/setLevel", {"level": "warning"}) == {}
        assert await elsewhere.result("logging/setLevel", {"level": "debug"}) == {}
        await elsewhere.call("b__echo")
        async with session.listening() as stream:
            for level in ("debug", "info", "error", "warning"):
                await session.call("a__log", {"level": level, "text": f"a {level} line"})
            assert (await stream.until("notifications/message"))["params"] == {"level": "error", "data": "a error line"}
            assert (await stream.until("notifications/message"))["params"]["level"] == "warning"
        for other in (silent, elsewhere):
            async with other.listening() as stream:
                await other.http.request("POST", "/mcp", message("ping", {}, 1), other.headers(JSON))
                await other.call("b__change", {"lists": ["tools"]})
                while (heard := await stream.message())["method"] != "notifications/tools/list_changed":
                    assert heard["method"] != "notifications/message"


# -- lists and names -----------------------------------------------------------------------------


async def walk(session: Session, method: str, member: str) -> list[Any]:
    found: list[Any] = []
    cursor = None
    for _ in range(100):
        page = await session.result(method, {"cursor": cursor} if cursor is not None else None)
        found += page[member]
        cursor = page.get("nextCursor")
        if cursor is None:
            return found
    raise AssertionError("the pages never end")


async def test_small_pages_walk_through_everything_once(tmp_path: Path) -> None:
    servers = {"a": ["friendly", '{"page": 2}'], "b": ["friendly", '{"extra": 20}']}
    async with running(tmp_path, servers, page_size=3) as place:
        session = await place.session()
        names = [tool["name"] for tool in await walk(session, "tools/list", "tools")]
        assert len(names) == len(set(names)) == 20 + 40
        assert names == sorted(names)
        for method, member, count in (
            ("prompts/list", "prompts", 2),
            ("resources/list", "resources", 4),
            ("resources/templates/list", "resourceTemplates", 2),
        ):
            assert len(await walk(session, method, member)) == count
        cursor = (await session.result("tools/list"))["nextCursor"]
        for method, bad in (("prompts/list", cursor), ("tools/list", cursor[:-4]), ("tools/list", "é")):
            assert (await session.error(method, {"cursor": bad}))["code"] == -32602


async def test_prompts_resources_templates_and_completions_round_trip_under_their_public_names(tmp_path: Path) -> None:
    async with running(tmp_path, TWO) as place:
        session = await place.session()
        assert [p["name"] for p in (await session.result("prompts/list"))["prompts"]] == ["a__greet", "b__greet"]
        got = await session.result("prompts/get", {"name": "b__greet", "arguments": {"name": "Ann"}})
        assert got["messages"][0]["content"]["text"] == "Greet Ann (greet)"
        assert got["messages"][1]["content"]["uri"] == "lockgate://b/memo://one"

        uris = [r["uri"] for r in (await session.result("resources/list"))["resources"]]
        assert uris == [f"lockgate://{server}/memo://{memo}" for server in "ab" for memo in ("gone", "one")]
        read = await session.result("resources/read", {"uri": "lockgate://a/memo://one"})
        assert read["contents"] == [
            {"uri": "lockgate://a/memo://one", "mimeType": "text/plain", "text": "memo memo://one"}
        ]
        error = await session.error("resources/read", {"uri": "lockgate://a/memo://gone"})
        assert (error["code"], error["message"]) == (-32002, "Resource not found")
        template = (await session.result("resources/templates/list"))["resourceTemplates"][1]["uriTemplate"]
        assert template == "lockgate://b/memo://by-name/{name}"
        read = await session.result("resources/read", {"uri": template.replace("{name}", "x/y")})
        assert read["contents"][0]["text"] == "memo memo://by-name/x/y"

        for ref, expected in (
            ({"type": "ref/prompt", "name": "a__greet"}, "greet:A"),
            ({"type": "ref/resource", "uri": template}, "memo://by-name/{name}:A"),
        ):
            params = {"ref": ref, "argument": {"name": "name", "value": "A"}}
            assert (await session.result("completion/complete", params))["completion"]["values"] == [expected]

        result = await session.result("tools/call", {"name": "b__links"})
        assert result["content"][0]["uri"] == "lockgate://b/memo://one"
        assert result["content"][1]["resource"]["uri"] == "lockgate://b/memo://two"


async def test_a_profile_of_one_server_may_use_plain_names(tmp_path: Path) -> None:
    async with running(tmp_path, ONE, {"all": {"servers": ["a"], "plain_names": True}}) as place:
        session = await place.session()
        assert {"echo", "pid"} <= set(await session.tools())
        assert await session.call("echo") == "{}"
        assert (await session.result("resources/read", {"uri": "memo://one"}))["contents"][0]["uri"] == "memo://one"
        assert (await session.result("tools/call", {"name": "links"}))["content"][0]["uri"] == "memo://one"


async def test_calling_a_tool_nobody_has_listed_starts_its_server_only(tmp_path: Path) -> None:
    async with running(tmp_path, TWO) as place:
        session = await place.session()
        assert await session.call("b__echo") == "{}"
        assert place.local.starts == ["b"]


SELECTED = {"all": {"servers": ["a", "b"], "tools": {"a": ["echo", "pid"], "b": []}}}


@pytest.mark.sec("SEC-025")
async def test_tools_a_profile_does_not_select_are_as_if_they_were_not_there(tmp_path: Path) -> None:
    async with running(tmp_path, TWO, SELECTED) as place:
        session = await place.session()
        assert await session.tools() == ["a__echo", "a__pid"]
        for hidden, absent in (("a__fail", "a__fall"), ("b__echo", "b__ecco"), ("c__echo", "d__echo")):
            for params in ({}, {"arguments": {"x": 1}, "_meta": {"progressToken": 1}}):
                answers = []
                for name in (hidden, absent):
                    answer = await session.post(message("tools/call", {"name": name, **params}, 1))
                    answers.append((answer.status, answer.headers, answer.body.replace(name.encode(), b"NAME")))
                assert answers[0] == answers[1]
        assert {record["outcome"] for record in place.audit()} == {"unknown"}
        assert not any("fail" in note for note in place.log("a"))


@pytest.mark.sec("SEC-025")
async def test_a_hidden_tool_of_a_server_that_never_ran_is_refused_the_same_way(tmp_path: Path) -> None:
    async with running(tmp_path, ONE, {"all": {"servers": ["a"], "tools": {"a": ["echo"]}}}) as place:
        session = await place.session()
        first = await session.error("tools/call", {"name": "a__pid"})
        second = await session.error("tools/call", {"name": "a__pid"})
        assert first == second == {"code": -32602, "message": "Unknown tool: a__pid"}


# -- many at once --------------------------------------------------------------------------------


@pytest.mark.sec("SEC-013")
async def test_sessions_that_all_use_id_1_never_get_each_others_answer(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        sessions = [await place.session() for _ in range(64)]
        await sessions[0].tools()
        dice = random.Random(1)

        async def work(number: int, session: Session) -> None:
            for turn in range(6):
                mark = f"{number}/{turn}"
                arguments = {"ms": dice.randrange(8), "mark": mark}
                (answer,) = (
                    await session.post(message("tools/call", {"name": "a__delay", "arguments": arguments}, 1))
                ).messages()
                assert answer["id"] == 1
                assert answer["result"]["content"][0]["text"] == mark

        async with asyncio.TaskGroup() as group:
            for number, session in enumerate(sessions):
                group.create_task(work(number, session))
        assert place.local.starts == ["a"]


@pytest.mark.sec("SEC-013")
async def test_progress_goes_to_its_own_call_though_all_use_the_same_token(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        sessions = [await place.session() for _ in range(16)]
        await sessions[0].tools()

        async def work(number: int, session: Session) -> None:
            params = {"name": "a__progress", "arguments": {"n": number}, "_meta": {"progressToken": 1}}
            *progress, end = (await session.post(message("tools/call", params, 1))).messages()
            assert [one["params"]["progress"] for one in progress] == list(range(1, number + 1))
            assert all(one["params"]["total"] == number for one in progress)
            assert end["result"]["content"][0]["text"] == "done"

        async with asyncio.TaskGroup() as group:
            for number, session in enumerate(sessions):
                group.create_task(work(number, session))


@pytest.mark.parametrize("key", ['"\\u0070rogressToken"', '"progress\\u0054oken"', '"progressToken"'])
async def test_a_progress_token_cannot_be_smuggled_to_the_call_of_another(tmp_path: Path, key: str) -> None:
    async with running(tmp_path, ONE) as place:
        victim, thief = await place.session(), await place.session()
        async with victim.calling("a__hold", {"key": "k"}) as held:
            await held.message()
            upstream = place.gateway.pool.servers["a"].upstream
            assert upstream is not None
            for token in range(1, 20):
                body = (
                    f'{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"a__progress",'
                    f'"arguments":{{"n":2}},"_meta":{{{key}:{token}}}}}}}'
                )
                await thief.post(body.encode())
            await thief.call("a__release", {"key": "k"})
            assert "result" in await held.message()


@pytest.mark.sec("SEC-021")
async def test_more_open_requests_than_a_session_may_have_are_refused(tmp_path: Path) -> None:
    async with running(tmp_path, ONE, {"all": ["a"]}) as place:
        session = await place.session(revision="2025-03-26")
        await session.tools()
        numbers = itertools.count(1000)

        def batch() -> bytes:
            held = [
                message("tools/call", {"name": "a__hold", "arguments": {"key": str(n)}}, n)
                for n in itertools.islice(numbers, 90)
            ]
            return b"[" + b",".join(held) + b"]"

        async with asyncio.TaskGroup() as group:
            posts = [group.create_task(session.post(batch())) for _ in range(3)]
            upstream = place.gateway.pool.servers["a"].upstream
            await until(lambda: upstream.in_flight == 256, "all places are taken")  # type: ignore[union-attr]
            assert (await session.error("ping"))["code"] == -32603
            await session.close()
        answers = [one for post in posts for one in post.result().messages()[0]]
        assert Counter(one["error"]["code"] for one in answers) == {-32800: 256, -32603: 14}


# -- audit ---------------------------------------------------------------------------------------


@pytest.mark.sec("SEC-023")
async def test_each_call_has_exactly_one_record_and_it_holds_no_arguments(tmp_path: Path) -> None:
    async with running(tmp_path, TWO) as place:
        session = await place.session(name="Claude\nCode \x1b[31m")
        secret = "s3cret-argument"
        calls = [
            ("tools/call", {"name": "a__echo", "arguments": {"x": secret}}, "ok"),
            ("tools/call", {"name": "a__fail"}, "tool_error"),
            ("tools/call", {"name": "a__error"}, "error"),
            ("tools/call", {"name": "a__\nnope\x1b"}, "unknown"),
            ("tools/call", {"name": 5}, "error"),
            ("tools/call", {"name": "b__crash"}, "upstream"),
            ("prompts/get", {"name": "a__greet", "arguments": {"name": secret}}, "ok"),
            ("resources/read", {"uri": "lockgate://a/memo://one"}, "ok"),
            ("resources/read", {"uri": "lockgate://zz/memo://none"}, "unknown"),
            (
                "completion/complete",
                {"ref": {"type": "ref/prompt", "name": "a__greet"}, "argument": {"name": "name", "value": secret}},
                "ok",
            ),
            ("nonsense", {"x": secret}, "error"),
        ]
        for method, params, _ in calls:
            await session.ask(method, params)
        for method in ("ping", "tools/list", "prompts/list", "tools/nonsense"):
            await session.ask(method)
        records = place.audit()
        assert [(record["method"], record["outcome"]) for record in records] == [(m, o) for m, _, o in calls]
        assert len({record["call"] for record in records}) == len(calls)
        text = (place.gateway.settings.state_dir / "audit.jsonl").read_bytes()
        assert secret.encode() not in text
        assert b"\x1b" not in text
        assert text.count(b"\n") - text.count(b'"event":"start"') == len(calls)
        assert records[0]["arguments"] == hashlib.sha256(json.dumps({"x": secret}).encode()).hexdigest()[:16]
        assert records[0]["client"] == "Claude\nCode \x1b[31m"
        assert (records[0]["server"], records[0]["item"], records[0]["name"]) == ("a", "echo", "a__echo")
        assert oct((place.gateway.settings.state_dir / "audit.jsonl").stat().st_mode)[-3:] == "600"


async def refused_for_audit(place: Place) -> None:
    session = await place.session()
    for method, params in (
        ("tools/call", {"name": "a__echo", "arguments": {}}),
        ("tools/call", {"name": "nope"}),
        ("resources/read", {"uri": "lockgate://a/memo://one"}),
    ):
        error = await session.error(method, params)
        assert error["code"] == -32603
        assert "audit" in error["message"]
    assert "a__echo" in await session.tools()


async def test_without_a_writable_audit_file_no_call_is_answered(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        assert await (await place.session()).call("a__echo") == "{}"
        place.gateway.audit.close()
        await refused_for_audit(place)


async def test_when_the_disk_is_full_no_call_is_answered_until_there_is_room(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        session = await place.session()
        assert await session.call("a__echo") == "{}"
        size = (place.gateway.settings.state_dir / "audit.jsonl").stat().st_size
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        for limit in (size, size + 10):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            try:
                await refused_for_audit(place)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        before = len((place.gateway.settings.state_dir / "audit.jsonl").read_bytes().splitlines())
        assert await session.call("a__echo") == "{}"
        lines = (place.gateway.settings.state_dir / "audit.jsonl").read_bytes().splitlines()
        assert json.loads(lines[-1])["outcome"] == "ok"
        assert len(lines) == before + 2


async def test_every_request_a_server_sees_was_recorded(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        session = await place.session()
        for number in range(20):
            await session.ask("tools/call", {"name": random.choice(["a__echo", "a__fail", "a__error", "a__pid"])})
            await session.ask("resources/read", {"uri": f"lockgate://a/memo://by-name/{number}"})
        assert len(place.audit()) == 40
        assert all(record["policies"] for record in place.audit())


# -- odds and ends -------------------------------------------------------------------------------


async def test_large_messages_pass_both_ways(tmp_path: Path) -> None:
    unbounded = {"package": LOCAL, "command": ONE["a"], "guards": {"results": {"size": "off"}}}
    async with running(tmp_path, {"a": unbounded}) as place:
        session = await place.session()
        text = base64.b64encode(os.urandom(3_000_000)).decode()
        assert json.loads(await session.call("a__echo", {"x": text})) == {"x": text}
        assert await session.call("a__big", {"bytes": 20_000_000}) == "x" * 20_000_000


async def test_the_gateway_ends_though_clients_listen_and_calls_are_open(tmp_path: Path) -> None:
    with anyio.fail_after(15):
        async with running(tmp_path, ONE) as place:
            session = await place.session()
            await session.tools()
            listening = session.listening()
            held = session.calling("a__hold", {"key": "k"})
            await listening.__aenter__()
            stream = await held.__aenter__()
            await stream.message()
    await held.__aexit__(None, None, None)
    await listening.__aexit__(None, None, None)


# -- coming back ---------------------------------------------------------------------------------


def after(session: Session, event: str) -> Any:
    headers = session.headers(("Accept", "text/event-stream"), ("Last-Event-ID", event))
    return session.http.stream("GET", session.path, headers=headers)


async def test_a_client_that_lost_its_stream_fetches_the_rest(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        session = await place.session()
        async with session.calling("a__hold", {"key": "k"}, id="lost") as held:
            assert (await held.message())["method"] == "notifications/progress"
        await (await place.session()).call("a__release", {"key": "k"})
        for event, count in (("1-0", 2), ("1-1", 1)):
            async with after(session, event) as stream:
                messages = []
                while (one := await stream.message()) is not None:
                    messages.append(one)
            assert len(messages) == count
            assert (messages[-1]["id"], messages[-1]["result"]["content"][0]["text"]) == ("lost", "k")


@pytest.mark.sec("SEC-007")
async def test_an_event_id_of_another_session_or_of_none_opens_the_sessions_own_stream(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        session = await place.session()
        async with session.calling("a__hold", {"key": "secret"}) as held:
            await held.message()
        await session.call("a__release", {"key": "secret"})
        for event in ("1-0", "1-1", "x", "7-7", "0-\u00b2", "0-" + "9" * 5000, "-", "1-", "\u00ff"):
            async with after(await place.session(), event) as stream:
                assert stream.status == 200
                await session.call("a__change", {"lists": ["tools"]})
                assert (await stream.message())["method"].endswith("list_changed"), event
