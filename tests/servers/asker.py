"""A server of the modern era whose tool asks what its caller says: `{"rounds": [[[key, method, params], ...], ...]}`.

Knows standard input and output alone. Its result holds the answers of each round, and what it was told of the client.
"""

import json
import sys
from typing import Any

VERSION = "2026-07-28"
CAPABILITIES = "io.modelcontextprotocol/clientCapabilities"


def called(params: dict[str, Any]) -> dict[str, Any]:
    rounds = params["arguments"]["rounds"]
    heard = json.loads(params.get("requestState", "[]"))
    if heard or "inputResponses" in params:
        heard.append(params.get("inputResponses"))
    if len(heard) < len(rounds):
        asked = {key: {"method": method, "params": more} for key, method, more in rounds[len(heard)]}
        return {"resultType": "input_required", "inputRequests": asked, "requestState": json.dumps(heard)}
    told = params["_meta"][CAPABILITIES]
    return {
        "resultType": "complete",
        "content": [{"type": "text", "text": json.dumps({"heard": heard, "told": told})}],
    }


for line in sys.stdin:
    message = json.loads(line)
    if "id" not in message or "method" not in message:
        continue
    answer: dict[str, Any] = {"error": {"code": -32601, "message": "Method not found"}}
    match message["method"]:
        case "server/discover":
            answer = {"result": {"supportedVersions": [VERSION], "capabilities": {"tools": {}}}}
        case "tools/list":
            answer = {"result": {"tools": [{"name": "ask", "inputSchema": {"type": "object"}}]}}
        case "tools/call":
            answer = {"result": called(message["params"])}
    print(json.dumps({"jsonrpc": "2.0", "id": message["id"], **answer}), flush=True)
