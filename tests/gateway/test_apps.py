"""MCP Apps (extension io.modelcontextprotocol/ui): views of tools through the gateway, in both eras."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.running import Place, running
from tests.gateway.test_modern import result

pytestmark = pytest.mark.anyio

APPS = "io.modelcontextprotocol/ui"
VIEW = "ui://weather/view.html"
MIME = "text/html;profile=mcp-app"
SETTINGS = {"mimeTypes": [MIME]}
POLICY = {"ui": {"csp": {"connectDomains": ["https://api.example.com"]}, "prefersBorder": True}}
TOOL = {
    "name": "forecast",
    "inputSchema": {"type": "object"},
    "_meta": {"ui": {"resourceUri": VIEW, "visibility": ["model", "app"]}, "ui/resourceUri": VIEW, "x": 1},
}
OPTIONS = {
    "capabilities": {"tools": {}, "resources": {}, "extensions": {APPS: SETTINGS}},
    "lists": {
        "tools/list": [TOOL, {"name": "hello", "inputSchema": {"type": "object"}}],
        "resources/list": [{"uri": VIEW, "name": "view", "mimeType": MIME, "_meta": POLICY}],
    },
    "reads": {VIEW: {"mimeType": MIME, "text": "<html></html>", "_meta": POLICY}},
}
TWO: dict[str, Any] = {"a": ["friendly", json.dumps(OPTIONS)], "b": ["friendly", json.dumps(OPTIONS)]}


async def asked_in_both_eras(place: Place, method: str, params: Any = None) -> list[Any]:
    """The same request by a session and by a client without one; the answers without what only one era has."""
    session = await place.session()
    modern = await result(place, method, params, clientCapabilities={"extensions": {APPS: SETTINGS}})
    for own in ("resultType", "_meta", "ttlMs", "cacheScope"):
        modern.pop(own, None)
    return [await session.result(method, params), modern]


async def test_a_tools_view_is_a_resource_that_a_host_takes_for_a_view(tmp_path: Path) -> None:
    """Hosts read nothing else for a view than a `ui://` URI."""
    async with running(tmp_path, TWO) as place:
        for page in await asked_in_both_eras(place, "tools/list"):
            tools = {tool["name"]: tool for tool in page["tools"]}
            for id in ("a", "b"):
                meta = tools[f"{id}__forecast"]["_meta"]
                view = meta["ui"]["resourceUri"]
                assert view == meta["ui/resourceUri"]
                assert view.startswith("ui://")
                assert meta["ui"]["visibility"] == ["model", "app"]
                assert meta["x"] == 1
                assert "_meta" not in tools[f"{id}__hello"]
                for answer in await asked_in_both_eras(place, "resources/read", {"uri": view}):
                    contents = {"uri": view, "mimeType": MIME, "text": "<html></html>", "_meta": POLICY}
                    assert answer == {"contents": [contents]}
            assert tools["a__forecast"]["_meta"] != tools["b__forecast"]["_meta"]
        for page in await asked_in_both_eras(place, "resources/list"):
            listed = {resource["uri"]: resource for resource in page["resources"]}
            assert len(listed) == 2
            for resource in listed.values():
                assert resource["mimeType"] == MIME
                assert resource["_meta"] == POLICY
            assert set(listed) == {tools[f"{id}__forecast"]["_meta"]["ui"]["resourceUri"] for id in ("a", "b")}
        assert (await (await place.session()).error("resources/read", {"uri": VIEW}))["code"] == -32002


async def test_under_plain_names_a_view_keeps_its_uri(tmp_path: Path) -> None:
    servers = {"a": TWO["a"]}
    async with running(tmp_path, servers, {"all": {"servers": ["a"], "plain_names": True}}) as place:
        for page in await asked_in_both_eras(place, "tools/list"):
            (tool,) = [tool for tool in page["tools"] if tool["name"] == "forecast"]
            assert tool == TOOL
        for answer in await asked_in_both_eras(place, "resources/read", {"uri": VIEW}):
            assert answer["contents"][0]["mimeType"] == MIME


async def test_the_extension_is_declared_to_clients_and_to_servers(tmp_path: Path) -> None:
    """To clients if some server has it, to servers always: some offer views only to those who declare it."""
    servers = {**TWO, "c": ["friendly"], "t": ["tasker"]}
    async with running(tmp_path, servers, {"all": list(servers), "no": ["c"]}) as place:
        await (await place.session()).result("tools/list")
        session = await place.session()
        assert session.hello["capabilities"]["extensions"] == {APPS: SETTINGS}
        assert (await result(place, "server/discover"))["capabilities"]["extensions"][APPS] == SETTINGS
        other = await place.session("/p/no/mcp")
        assert "extensions" not in other.hello["capabilities"]
        hello = json.loads(await session.call("c__hello"))
        assert hello["capabilities"]["extensions"] == {APPS: SETTINGS}
        log = json.loads(await session.call("t__log"))
        assert {one["apps"] for one in log if one["method"] == "tools/list"} == {True}
