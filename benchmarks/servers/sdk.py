"""An echo server on the official Python SDK, as servers in the field are built: stateful Streamable HTTP under uvicorn.

Knows nothing of who calls it. The SDK's low-level server is used, which is the faster of its two."""

from __future__ import annotations

import sys
from typing import Any

import uvicorn
from mcp import types
from mcp.server.lowlevel import Server

KEEP_ALIVE_S = 600

ECHO = types.Tool(
    name="echo",
    description="Echoes back the input string",
    input_schema={"type": "object", "properties": {"message": {"type": "string"}}, "required": ["message"]},
)


async def list_tools(_context: Any, _params: types.PaginatedRequestParams | None) -> types.ListToolsResult:
    return types.ListToolsResult(tools=[ECHO])


async def call_tool(_context: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
    text = str((params.arguments or {})["message"])
    return types.CallToolResult(content=[types.TextContent(type="text", text=text)])


if __name__ == "__main__":
    uvicorn.run(
        Server("sdk", on_list_tools=list_tools, on_call_tool=call_tool).streamable_http_app(),
        host="127.0.0.1",
        port=int(sys.argv[1]),
        http="httptools",
        loop="uvloop",
        log_level="warning",
        timeout_keep_alive=KEEP_ALIVE_S,
    )
