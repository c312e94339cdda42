"""The command the suite runs to judge a client: a gateway before the suite's server, and calls through it.

Knows what each client scenario wants to see; the gateway is started like any other.

The suite appends its server's URL, names the scenario in MCP_CONFORMANCE_SCENARIO and may add a context.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.request
import warnings
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import anyio
import mcp_types as types
from mcp import Client
from mcp.shared.exceptions import MCPDeprecationWarning, MCPError

from tests.conformance import emitted
from tests.conformance.front import gateway, remote_entry
from tests.conformance.process import Ended
from tests.conformance.relay import Relay
from tests.conformance.suite import SCENARIO_TIMEOUT_S

MODERN: Final = "2026-07-28"
DRIVE_TIMEOUT_S: Final = SCENARIO_TIMEOUT_S * 0.75
"""Before the suite ends the command."""
META: Final = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientInfo": {"name": "conformance-driver", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}


class Driver:
    """A client of the gateway, in the era of the scenario's revision; `straight`: of the suite's server itself."""

    def __init__(self, url: str, revision: str, *, is_straight: bool) -> None:
        self.url = url
        self.is_straight = is_straight
        mode = MODERN if revision == MODERN else "legacy"
        self.client = Client(url, mode=mode, elicitation_callback=self._elicited, list_roots_callback=_roots)
        self.while_asked: Callable[[], Awaitable[object]] | None = None
        """What to do in the middle of answering a question."""

    async def call(self, name: str, arguments: dict[str, Any] | None = None) -> None:
        await self.client.call_tool(name, arguments or {})

    async def _elicited(self, context: Any, params: types.ElicitRequestParams) -> types.ElicitResult:
        """Accept, with the default of each field that has one and yes to every question that has none."""
        if self.while_asked is not None:
            doing, self.while_asked = self.while_asked, None
            await doing()
        assert isinstance(params, types.ElicitRequestFormParams)
        fields: dict[str, Any] = dict(params.requested_schema.get("properties", {}))
        return types.ElicitResult(
            action="accept", content={name: schema.get("default", True) for name, schema in fields.items()}
        )


async def _roots(context: Any) -> types.ListRootsResult:
    return types.ListRootsResult(roots=[])


# -- scenarios ---------------------------------------------------------------------------------------


async def list_tools(driver: Driver) -> None:
    await driver.client.list_tools()


async def tools_call(driver: Driver) -> None:
    await driver.call("add_numbers", {"a": 5, "b": 3})


async def elicitation_defaults(driver: Driver) -> None:
    await driver.call("test_client_elicitation_defaults")


async def sse_retry(driver: Driver) -> None:
    await driver.call("test_reconnection")


async def request_state(driver: Driver) -> None:
    driver.while_asked = lambda: driver.call("test_mrtr_unrelated")
    for name in ("test_mrtr_echo_state", "test_mrtr_no_state", "test_mrtr_no_result_type"):
        await driver.call(name)


async def standard_headers(driver: Driver) -> None:
    client = driver.client
    for tool in (await client.list_tools()).tools:
        await driver.call(tool.name)
    for resource in (await client.list_resources()).resources:
        await client.read_resource(resource.uri)
    for prompt in (await client.list_prompts()).prompts:
        await client.get_prompt(prompt.name)


async def custom_headers(driver: Driver) -> None:
    await driver.client.list_tools()
    for call in json.loads(os.environ["MCP_CONFORMANCE_CONTEXT"])["toolCalls"]:
        await driver.call(call["name"], call["arguments"])


async def invalid_tool_headers(driver: Driver) -> None:
    """Call whatever the gateway lists. The client library would leave invalid tools out itself, so not with it."""
    if driver.is_straight:
        names = [tool.name for tool in (await driver.client.list_tools()).tools]
    else:
        listed = await anyio.to_thread.run_sync(_post, driver.url, "tools/list", "", {})
        names = [tool["name"] for tool in listed["result"]["tools"]]
    print(f"listed: {', '.join(names)}")
    for name in names:
        arguments = {"region": "here"} if name == "valid_tool" else {}
        await anyio.to_thread.run_sync(_post, driver.url, "tools/call", name, arguments)


async def schema_echo(driver: Driver) -> None:
    tools = {tool.name: tool for tool in (await driver.client.list_tools()).tools}
    await driver.call("json_schema_echo", {"schema": tools["json_schema_2020_12_tool"].input_schema})


SCENARIOS: Final[dict[str, Callable[[Driver], Awaitable[None]]]] = {
    "initialize": list_tools,
    "tools_call": tools_call,
    "elicitation-sep1034-client-defaults": elicitation_defaults,
    "sse-retry": sse_retry,
    "request-metadata": list_tools,
    "sep-2322-client-request-state": request_state,
    "http-standard-headers": standard_headers,
    "http-custom-headers": custom_headers,
    "http-invalid-tool-headers": invalid_tool_headers,
    "json-schema-ref-no-deref": list_tools,
    "json-schema-2020-12-preservation": schema_echo,
}


def _post(url: str, method: str, name: str, arguments: dict[str, Any]) -> Any:
    """One modern request, written by hand."""
    params = {"name": name, "arguments": arguments} if name else {}
    headers = {
        "Content-Type": "application/json",
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": MODERN,
        "Mcp-Method": method,
    }
    if name:
        headers["Mcp-Name"] = name
    for key, value in arguments.items():
        headers[f"Mcp-Param-{key.title()}"] = value
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": {**params, "_meta": META}})
    with urllib.request.urlopen(urllib.request.Request(url, body.encode(), headers)) as answer:
        text = answer.read().decode()
    if answer.headers.get_content_type() == "text/event-stream":
        text = [line for line in text.splitlines() if line.startswith("data:")][-1].removeprefix("data:")
    return json.loads(text)


async def drive(scenario: str, url: str, revision: str, is_straight: bool) -> None:
    driver = Driver(url, revision, is_straight=is_straight)
    with anyio.fail_after(DRIVE_TIMEOUT_S):
        async with driver.client:
            await SCENARIOS[scenario](driver)


def _cache() -> Path:
    return Path(os.environ["CONFORMANCE_CACHE"])


def main() -> int:
    warnings.simplefilter("ignore", MCPDeprecationWarning)
    scenario, upstream = os.environ["MCP_CONFORMANCE_SCENARIO"], sys.argv[-1]
    if scenario not in SCENARIOS:
        print(f"the driver does not know what {scenario} wants", file=sys.stderr)
        return 2
    revision = os.environ["MCP_CONFORMANCE_PROTOCOL_VERSION"]
    try:
        if "CONFORMANCE_STRAIGHT" in os.environ:
            anyio.run(drive, scenario, upstream, revision, True)
            return 0
        folder = Path(os.environ["CONFORMANCE_GATEWAY"])
        with (
            Relay(upstream) as behind,
            gateway(remote_entry(behind.url, interactive=revision != MODERN), _cache(), folder / "gateway.log") as url,
            Relay(url) as before,
        ):
            anyio.run(drive, scenario, before.url, revision, False)
        seen = [*emitted.to_clients(before.exchanges, revision), *emitted.to_http_servers(behind.exchanges)]
        emitted.write(folder / "emitted.jsonl", seen)
    except (Ended, MCPError) as exc:
        print(exc, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
