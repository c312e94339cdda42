"""The cheapest stdio server: reads lines, answers lines, standard library only.

Knows just enough of the protocol to be called. The benchmark passes this file's text to `python -c`."""

from __future__ import annotations

import json
import sys
from typing import Any

TOOL = {"name": "echo", "inputSchema": {"type": "object", "properties": {"message": {"type": "string"}}}}

for line in sys.stdin.buffer:
    message = json.loads(line)
    if "id" not in message:
        continue
    params = message.get("params", {})
    answer: dict[str, Any] = {}
    match message["method"]:
        case "tools/call":
            answer["result"] = {"content": [{"type": "text", "text": params["arguments"]["message"]}]}
        case "tools/list":
            answer["result"] = {"tools": [TOOL]}
        case "initialize":
            info = {"name": "echo", "version": "1"}
            version = params["protocolVersion"]
            answer["result"] = {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": info}
        case _:
            answer["error"] = {"code": -32601, "message": "Method not found"}
    sys.stdout.buffer.write(json.dumps({"jsonrpc": "2.0", "id": message["id"], **answer}).encode() + b"\n")
    sys.stdout.buffer.flush()
