"""Extensions that the gateway knows nothing of: declared, and their methods and notifications relayed, if it is clear
which server they are for."""

import json
from pathlib import Path
from typing import Any

import anyio
import pytest

from gateway.wire.methods import belongs_to, is_foreign, is_foreign_notification
from policies import AllowList, Principal, Request
from tests.gateway.callers import message
from tests.gateway.running import Place, running
from tests.gateway.test_modern import post, result
from tests.servers import until

pytestmark = pytest.mark.anyio

SHEETS = "com.example/sheets"
OTHER = "com.example/other"
NOT_FOUND = -32601


def friendly(*extensions: str, **options: Any) -> list[str]:
    """A server of the session era that declares these extensions and answers their methods."""
    capabilities = {"tools": {}, "extensions": {name: {"n": 1.5} for name in extensions}}
    vendor = ["sheets/open", "other/open", "x.y/z", "tools/spy"]
    return ["friendly", json.dumps({"capabilities": capabilities, "vendor": vendor, **options})]


ONE = {"a": friendly()}
THREE = {
    "a": friendly(SHEETS, OTHER),
    "b": friendly(OTHER),
    "c": ["tasker", json.dumps({"extension": "org.modern/deep", "vendor": ["deep/look"]})],
}


async def modern_error(place: Place, method: str, params: Any = None) -> tuple[int, int]:
    answer = await post(place, method, params)
    return answer.status, answer.messages()[-1]["error"]["code"]


# -- requests ------------------------------------------------------------------------------------


async def test_a_request_of_a_vendor_reaches_the_only_server_and_is_recorded(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        session = await place.session()
        for answer in (await session.result("x.y/z", {"k": "v"}), await result(place, "x.y/z", {"k": "v"})):
            assert answer["heard"] == {"k": "v"}
            assert answer["x"] == [1.5]
        assert (await session.error("x.y/unknown"))["code"] == NOT_FOUND
        assert await modern_error(place, "x.y/unknown") == (404, NOT_FOUND)
        records = [(r["method"], r["server"], r["item"], r["outcome"], r["policies"]) for r in place.audit()]
        rules = ["profile:all:a", "open:everything"]
        relayed = [("x.y/z", "a", "x.y/z", "ok", rules)] * 2
        assert records == [*relayed, *[("x.y/unknown", "a", "x.y/unknown", "error", rules)] * 2]
        assert place.audit()[0]["arguments"]


async def test_among_several_servers_the_declared_extension_decides(tmp_path: Path) -> None:
    async with running(tmp_path, THREE) as place:
        session = await place.session()
        await session.result("tools/list")
        assert (await session.result("sheets/open", {"k": 1}))["heard"] == {"k": 1}
        assert (await result(place, "sheets/open"))["heard"] == {}
        assert (await session.result("deep/look", {"k": 2}))["heard"] == {"k": 2}
        assert (await result(place, "deep/look", {"k": 3}))["heard"] == {"k": 3}
        for method in ("other/open", "x.y/z", "sheets", "sheetsx/open"):
            assert (await session.error(method))["code"] == NOT_FOUND, method
            assert await modern_error(place, method) == (404, NOT_FOUND), method
        relayed = [(r["method"], r["server"]) for r in place.audit() if r["outcome"] == "ok"]
        assert relayed == [("sheets/open", "a"), ("sheets/open", "a"), ("deep/look", "c"), ("deep/look", "c")]
        assert {r["server"] for r in place.audit() if r["outcome"] != "ok"} == {""}


async def test_an_extension_is_declared_to_clients_if_one_server_alone_has_it(tmp_path: Path) -> None:
    async with running(tmp_path, THREE) as place:
        await (await place.session()).result("tools/list")
        session = await place.session()
        expected = {SHEETS: {"n": 1.5}, "org.modern/deep": {"deep": [1]}}
        assert session.hello["capabilities"]["extensions"] == expected
        offered = (await result(place, "server/discover"))["capabilities"]["extensions"]
        assert {name: offered[name] for name in expected} == expected
        assert OTHER not in offered


async def test_methods_of_the_protocol_are_never_taken_for_a_vendors(tmp_path: Path) -> None:
    """The server would answer this one; but what the gateway lists and decides by must not have a back door."""
    async with running(tmp_path, ONE) as place:
        session = await place.session()
        for method in ("tools/spy", "tools/", "tasks/list", "notifications/x", "server/x", "a b", "é", "x" * 200):
            assert (await session.error(method))["code"] == NOT_FOUND, method
        assert await modern_error(place, "tools/spy") == (404, NOT_FOUND)
        assert place.audit() == []
        assert place.local.starts == []


async def test_a_profile_that_selects_tools_relays_no_vendors_methods(tmp_path: Path) -> None:
    async with running(tmp_path, ONE, {"all": {"servers": ["a"], "tools": {"a": ["echo"]}}}) as place:
        session = await place.session()
        assert (await session.error("x.y/z"))["code"] == NOT_FOUND
        assert await session.call("a__echo")
        assert place.audit()[0]["outcome"] == "error"
        session.next_id()
        await session.post(message("notifications/x.y/z", {}))
        assert "x.y/z" not in await session.call("a__echo")


@pytest.mark.parametrize(("tools", "allowed"), [(None, True), (frozenset({"echo"}), False), (frozenset[str](), False)])
def test_methods_of_extensions_follow_the_server_as_a_whole(tools: Any, allowed: bool) -> None:
    policy = AllowList({"p": {"a": tools}})
    assert policy.decide(Request(Principal("me"), "extension", "p", "a", "x/y")).allowed is allowed
    assert not policy.decide(Request(Principal("me"), "extension", "p", "b", "x/y")).allowed
    assert not policy.decide(Request(Principal("me"), "extension", "q", "a", "x/y")).allowed


def test_names_of_methods() -> None:
    assert is_foreign("x/y")
    assert is_foreign_notification("x/y")
    assert is_foreign_notification("notifications/x/y")
    assert not is_foreign("notifications/x/y")
    for own in ("ping", "initialize", "tools/call", "tools", "subscriptions/listen", "", "x y", "x\n", "notifications"):
        assert not is_foreign(own), own
        assert not is_foreign_notification(own), own
        assert not is_foreign_notification(f"notifications/{own}"), own
    assert belongs_to("sheets/open", SHEETS)
    assert belongs_to("notifications/sheets/opened", SHEETS)
    assert belongs_to("com.example/sheets/open", SHEETS)
    assert not belongs_to("sheets", SHEETS)
    assert not belongs_to("com.example/open", SHEETS)


# -- notifications -------------------------------------------------------------------------------


async def test_a_clients_notification_reaches_the_server_it_is_for(tmp_path: Path) -> None:
    async with running(tmp_path, THREE) as place:
        session = await place.session()
        await session.result("tools/list")
        for method in ("notifications/sheets/edited", "sheets/edited", "notifications/other/edited", "tools/spy"):
            await session.post(message(method, {"cell": "A1"}))
        heard = []
        for id in ("a", "b"):
            notes = json.loads(await session.call(f"{id}__notes"))
            heard.append([note for note in notes if note["method"] != "notifications/initialized"])
        params = {"cell": "A1"}
        assert heard[0] == [
            {"method": "notifications/sheets/edited", "params": params},
            {"method": "sheets/edited", "params": params},
        ]
        assert heard[1] == []
        records = [(r["method"], r["server"], r["outcome"]) for r in place.audit() if "edited" in r["method"]]
        assert records == [
            ("notifications/sheets/edited", "a", "ok"),
            ("sheets/edited", "a", "ok"),
            ("notifications/other/edited", "", "unknown"),
        ]


async def test_a_notification_starts_no_server(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        session = await place.session()
        assert (await session.post(message("notifications/x.y/z", {}))).status == 202
        assert place.local.starts == []


async def test_a_servers_notification_reaches_those_who_called_it(tmp_path: Path) -> None:
    async with running(tmp_path, ONE) as place:
        session, stranger = await place.session(), await place.session()
        async with session.listening() as stream, stranger.listening() as other:
            await session.result("x.y/z", {"tell": "notifications/x.y/news"})
            assert (await stream.until("notifications/x.y/news"))["params"] == {"news": 1.5}
            await stranger.result("x.y/z", {"tell": "x.y/more"})
            assert (await other.until("x.y/more"))["params"] == {"news": 1.5}


async def test_a_servers_notification_is_not_for_those_with_several_servers(tmp_path: Path) -> None:
    async with running(tmp_path, THREE) as place:
        session = await place.session()
        await session.result("tools/list")
        async with session.listening() as stream:
            await session.result("sheets/open", {"tell": "notifications/other/news"})
            await session.result("sheets/open", {"tell": "notifications/sheets/news"})
            seen = await stream.message()
            while seen["method"].endswith("list_changed"):
                seen = await stream.message()
            assert seen["method"] == "notifications/sheets/news"


async def test_a_call_that_is_cancelled_is_withdrawn(tmp_path: Path) -> None:
    """A vendor's request is a call like any other."""
    async with running(tmp_path, ONE) as place:
        session = await place.session()
        answers: list[Any] = []

        async def work() -> None:
            answers.extend((await session.post(message("x.y/z", {"hold": 1}, "mine"))).messages())

        async with anyio.create_task_group() as group:
            group.start_soon(work)
            server = place.gateway.pool.servers["a"]
            upstream = await until(lambda: server.upstream, "the server runs")
            await until(lambda: upstream.in_flight == 1, "the request is made")
            await session.post(message("notifications/cancelled", {"requestId": "mine"}))
        assert answers[0]["error"]["code"] == -32800
        assert upstream.in_flight == 0
        assert "notifications/cancelled" in await session.call("a__notes")
        assert place.audit()[0]["outcome"] == "cancelled"
