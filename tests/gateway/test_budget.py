"""A profile that lists some of its tools, and two of the gateway's own that find and call the others."""

import json
from pathlib import Path
from typing import Any

import pytest

from catalog import Budget
from gateway.budget import CALL, FIND, OWN, Shelf, cut
from tests.gateway.callers import Session
from tests.gateway.running import running
from tests.gateway.test_modern import result
from tests.gateway.test_reload import reload, write

TOOLS = {
    name: json.dumps({"name": name, "description": text, "inputSchema": {"type": "object"}}).encode()
    for name, text in {
        "git__commit": "Records changes to the repository.",
        "git__log": "Shows the history.",
        "mail__send_message": "Sends an e-mail to somebody.",
        "files__read": "Reads a file from a folder.",
        "files__delete": "Removes a file.",
    }.items()
}


def names(listed: Any) -> list[str]:
    return list(listed)


def test_everything_is_listed_where_it_fits() -> None:
    for budget in (None, Budget(tools=5), Budget(chars=2000), Budget(tools=5, chars=2000)):
        assert names(cut(budget, TOOLS).listed) == list(TOOLS)
    assert cut(None, TOOLS).shelf is None


def test_first_tools_are_listed_with_the_two_that_find_the_others() -> None:
    assert names(cut(Budget(tools=4), TOOLS).listed) == [FIND, CALL, "git__commit", "git__log"]
    assert names(cut(Budget(tools=3), TOOLS).listed) == [FIND, CALL, "git__commit"]


def test_the_first_tool_that_is_too_long_ends_the_list() -> None:
    own = sum(len(raw) for raw in OWN.values())
    long = {"a": b"x" * 10, "b": b"x" * 5000, "c": b"x"}
    assert names(cut(Budget(chars=own + 3000), long).listed) == [FIND, CALL, "a"]
    assert names(cut(Budget(chars=2000), {"é" * 2: ("é" * 1999).encode()}).listed) == ["éé"]


@pytest.mark.parametrize(
    ("query", "best"),
    [
        ("send an email", "mail__send_message"),
        ("what is the history of this repo", "git__log"),
        ("repo changes", "git__commit"),
        ("remove files", "files__delete"),
        ("messages", "mail__send_message"),
    ],
)
def test_tools_are_found_by_what_they_are_for(query: str, best: str) -> None:
    assert json.loads(Shelf(TOOLS).find(query)[0])["name"] == best


def test_words_that_fit_nothing_find_nothing_and_long_ones_cost_nothing() -> None:
    assert Shelf(TOOLS).find("xylophone") == []
    assert Shelf(TOOLS).find("word " * 100_000) == []
    assert Shelf({}).find("email") == []


async def found(session: Session, query: str) -> list[str]:
    result = await session.result("tools/call", {"name": FIND, "arguments": {"query": query}})
    assert json.loads(result["content"][0]["text"]) == result["structuredContent"]["tools"]
    return [tool["name"] for tool in result["structuredContent"]["tools"]]


@pytest.mark.anyio
async def test_tools_beyond_the_budget_are_found_and_called_and_recorded_as_what_they_are(tmp_path: Path) -> None:
    chosen = {"a": ["pid", "echo"], "b": ["echo", "pid"]}
    profile = {"servers": ["a", "b"], "tools": chosen, "budget": {"tools": 3}}
    async with running(tmp_path, {"a": ["friendly"], "b": ["friendly"]}, {"all": profile}) as place:
        session = await place.session()
        assert "b__echo" in await found(session, "echo")  # nobody has listed yet
        # One tool is listed besides: the first that the profile selects of its first server.
        assert sorted(await session.tools()) == sorted([FIND, CALL, "a__pid"])
        inner = {"name": "b__echo", "arguments": {"x": 1.50}}
        assert json.loads(await session.call(CALL, inner)) == {"x": 1.5}
        assert json.loads(await session.call("b__echo", {"x": 2})) == {"x": 2}  # known from elsewhere
        records = place.audit()
        searches = [one for one in records if one["name"] == FIND]
        assert [(one["server"], one["outcome"]) for one in searches] == [("", "ok")]
        assert [(one["name"], one["item"]) for one in records if one["server"] == "b"] == [("b__echo", "echo")] * 2
        for arguments in ({}, {"name": 1}, {"name": "b__delay"}, {"name": CALL}, {"name": FIND}):
            assert (await session.error("tools/call", {"name": CALL, "arguments": arguments}))["code"] == -32602
        assert "a query" in await session.failure(FIND, {})


@pytest.mark.anyio
async def test_stateless_clients_call_through_the_gateways_own_tool_too(tmp_path: Path) -> None:
    profile = {"servers": ["a"], "budget": {"tools": 3}}
    async with running(tmp_path, {"a": ["friendly"]}, {"all": profile}) as place:
        call = {"name": CALL, "arguments": {"name": "a__echo", "arguments": {"x": 1}}}
        answer = await result(place, "tools/call", call)
        assert json.loads(answer["content"][0]["text"]) == {"x": 1}
        slow = {"name": CALL, "arguments": {"name": "a__delay", "arguments": {"ms": 3000, "mark": "late"}}}
        capabilities = {"extensions": {"io.modelcontextprotocol/tasks": {}}}
        task = await result(place, "tools/call", slow, clientCapabilities=capabilities)
        assert task["resultType"] == "task"


@pytest.mark.anyio
async def test_what_a_profile_does_not_select_is_neither_found_nor_called(tmp_path: Path) -> None:
    profile = {"servers": ["a"], "tools": {"a": ["echo", "pid", "delay", "say"]}, "budget": {"tools": 3}}
    async with running(tmp_path, {"a": ["friendly"]}, {"all": profile}) as place:
        session = await place.session()
        assert "a__fail" not in await found(session, "fail echo pid delay")
        assert (await session.error("tools/call", {"name": CALL, "arguments": {"name": "a__fail"}}))["code"] == -32602


@pytest.mark.anyio
async def test_own_tools_answer_only_where_there_is_a_budget(tmp_path: Path) -> None:
    servers = {"a": ["friendly"]}
    async with running(tmp_path, servers) as place:
        session = await place.session()
        everything = await session.tools()
        assert FIND not in everything
        refused = await session.error("tools/call", {"name": FIND, "arguments": {"query": "echo"}})
        assert refused["code"] == -32602
        write(tmp_path, servers, {"all": {"servers": ["a"], "budget": {"tools": 3}}})
        await reload(place)
        assert len(await session.tools()) == 3
        write(tmp_path, servers, {"all": {"servers": ["a"], "budget": {"tools": 500}}})
        await reload(place)
        assert await session.tools() == everything
        assert await found(session, "echo")
