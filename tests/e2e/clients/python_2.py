"""Carries out the steps on stdin with the `Client` of the Python SDK 2.x and prints what came back, as JSON.

Knows no expectation. Runs in a process of its own: `python python_2.py < conversation.json`.
"""

import json
import sys
import warnings
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import mcp_types as types
from mcp import Client, MCPError, StdioServerParameters
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS
from pydantic import BaseModel

warnings.simplefilter("ignore")  # ping and logging/setLevel are deprecated in 2.x and tested all the same

Step = dict[str, Any]
Outcome = dict[str, Any]


def wire(model: BaseModel) -> Any:
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)


async def every_page(member: str, fetch: Callable[..., Awaitable[Any]]) -> Outcome:
    found: list[Any] = []
    cursor = None
    while True:
        page = await fetch(cursor=cursor)
        found += wire(page)[member]
        cursor = page.next_cursor
        if cursor is None:
            return {"result": {member: found}}


async def call_tool(client: Client, step: Step) -> Outcome:
    seen: list[float] = []
    with anyio.CancelScope() as scope:

        async def on_progress(progress: float, total: float | None, message: str | None) -> None:
            seen.append(progress)
            if len(seen) == step.get("cancel_after"):
                scope.cancel()

        callback = on_progress if step.get("watch") else None
        result = await client.call_tool(step["name"], step["arguments"], progress_callback=callback)
        return {"result": wire(result), "progress": seen}
    return {"cancelled": True, "progress": seen}


def reference(ref: dict[str, str]) -> types.PromptReference | types.ResourceTemplateReference:
    if ref["type"] == "ref/prompt":
        return types.PromptReference(type="ref/prompt", name=ref["name"])
    return types.ResourceTemplateReference(type="ref/resource", uri=ref["uri"])


async def carry_out(client: Client, step: Step) -> Outcome:
    match step["do"]:
        case "list_tools":
            return await every_page("tools", client.list_tools)
        case "list_prompts":
            return await every_page("prompts", client.list_prompts)
        case "list_resources":
            return await every_page("resources", client.list_resources)
        case "list_templates":
            return await every_page("resourceTemplates", client.list_resource_templates)
        case "call_tool":
            return await call_tool(client, step)
        case "get_prompt":
            return {"result": wire(await client.get_prompt(step["name"], step["arguments"]))}
        case "read_resource":
            return {"result": wire(await client.read_resource(step["uri"]))}
        case "complete":
            return {"result": wire(await client.complete(reference(step["ref"]), step["argument"]))}
        case "ping":
            return {"result": wire(await client.send_ping())}
        case "set_level":
            return {"result": wire(await client.set_logging_level(step["level"]))}
    raise ValueError(f"unknown step {step['do']}")


def answering(answers: dict[str, Any] | None) -> dict[str, Any]:
    """What the client declares it can answer, and how it does; nothing without answers."""
    if answers is None:
        return {}

    async def elicited(context: Any, params: Any) -> types.ElicitResult:
        return types.ElicitResult.model_validate(answers["elicitation/create"])

    async def sampled(context: Any, params: Any) -> types.CreateMessageResult:
        return types.CreateMessageResult.model_validate(answers["sampling/createMessage"])

    async def roots(context: Any) -> types.ListRootsResult:
        return types.ListRootsResult.model_validate(answers["roots/list"])

    return {"elicitation_callback": elicited, "sampling_callback": sampled, "list_roots_callback": roots}


async def main() -> None:
    asked = json.load(sys.stdin)
    target = asked["url"] or StdioServerParameters(**asked["stdio"])
    info = types.Implementation(name=asked["client"], version="1")
    outcomes = []
    async with Client(target, mode=asked["mode"], client_info=info, **answering(asked["answers"])) as client:
        revision = client.protocol_version
        for step in asked["steps"]:
            if step.get("handshake_only") and revision not in HANDSHAKE_PROTOCOL_VERSIONS:
                outcomes.append({"absent": revision})
                continue
            try:
                outcomes.append(await carry_out(client, step))
            except MCPError as exc:
                outcomes.append({"error": {"code": exc.error.code, "message": exc.error.message}})
    json.dump({"revision": revision, "outcomes": outcomes}, sys.stdout)


if __name__ == "__main__":
    anyio.run(main)
