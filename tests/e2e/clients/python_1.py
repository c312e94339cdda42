"""Carries out the steps on stdin with the `ClientSession` of the Python SDK 1.x and prints what came back, as JSON.

Knows no expectation. Runs with the interpreter of an environment that holds mcp 1.x, and imports nothing of ours.
"""

import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
from mcp import ClientSession, McpError, StdioServerParameters, types
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamable_http_client
from pydantic import AnyUrl, BaseModel

Step = dict[str, Any]
Outcome = dict[str, Any]


def wire(model: BaseModel) -> Any:
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)


async def every_page(member: str, fetch: Callable[..., Awaitable[Any]]) -> Outcome:
    found: list[Any] = []
    cursor = None
    while True:
        page = await fetch(params=types.PaginatedRequestParams(cursor=cursor))
        found += wire(page)[member]
        cursor = page.nextCursor
        if cursor is None:
            return {"result": {member: found}}


async def call_tool(session: ClientSession, step: Step) -> Outcome:
    """In 1.x a caller that gives up tells nobody: the notification is sent by hand, and the call ends with an error."""
    seen: list[float] = []
    id = session._request_id

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        seen.append(progress)
        if len(seen) == step.get("cancel_after"):
            params = types.CancelledNotificationParams(requestId=id, reason="enough")
            await session.send_notification(types.ClientNotification(types.CancelledNotification(params=params)))

    callback = on_progress if step.get("watch") else None
    try:
        result = await session.call_tool(step["name"], step["arguments"], progress_callback=callback)
    except McpError:
        if step.get("cancel_after"):
            return {"cancelled": True, "progress": seen}
        raise
    return {"result": wire(result), "progress": seen}


def reference(ref: dict[str, str]) -> types.PromptReference | types.ResourceTemplateReference:
    if ref["type"] == "ref/prompt":
        return types.PromptReference(type="ref/prompt", name=ref["name"])
    return types.ResourceTemplateReference(type="ref/resource", uri=ref["uri"])


async def carry_out(session: ClientSession, step: Step) -> Outcome:
    match step["do"]:
        case "list_tools":
            return await every_page("tools", session.list_tools)
        case "list_prompts":
            return await every_page("prompts", session.list_prompts)
        case "list_resources":
            return await every_page("resources", session.list_resources)
        case "list_templates":
            return await every_page("resourceTemplates", session.list_resource_templates)
        case "call_tool":
            return await call_tool(session, step)
        case "get_prompt":
            return {"result": wire(await session.get_prompt(step["name"], step["arguments"]))}
        case "read_resource":
            return {"result": wire(await session.read_resource(AnyUrl(step["uri"])))}
        case "complete":
            return {"result": wire(await session.complete(reference(step["ref"]), step["argument"]))}
        case "ping":
            return {"result": wire(await session.send_ping())}
        case "set_level":
            return {"result": wire(await session.set_logging_level(step["level"]))}
    raise ValueError(f"unknown step {step['do']}")


@asynccontextmanager
async def streams(asked: dict[str, Any]) -> AsyncIterator[tuple[Any, Any]]:
    if asked["url"]:
        async with streamable_http_client(asked["url"]) as (read, write, _):
            yield read, write
    else:
        async with stdio_client(StdioServerParameters(**asked["stdio"])) as (read, write):
            yield read, write


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
    info = types.Implementation(name=asked["client"], version="1")
    outcomes = []
    able = answering(asked["answers"])
    async with streams(asked) as (read, write), ClientSession(read, write, client_info=info, **able) as session:
        revision = (await session.initialize()).protocolVersion
        for step in asked["steps"]:
            try:
                outcomes.append(await carry_out(session, step))
            except McpError as exc:
                outcomes.append({"error": {"code": exc.error.code, "message": exc.error.message}})
    json.dump({"revision": revision, "outcomes": outcomes}, sys.stdout)


if __name__ == "__main__":
    anyio.run(main)
