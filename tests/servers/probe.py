"""A server that does what it is told: runs the Python it is sent and answers with what that left in `result`.

Stands for a compromised server inside of a sandbox. Standard library only, so that it runs in a bare image."""

import json
import sys
import traceback
from typing import Any

TOOL = {
    "name": "run",
    "description": "Runs Python.",
    "inputSchema": {"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]},
}


def answer(method: str, params: dict[str, Any]) -> dict[str, Any]:
    """The result of one request."""
    if method == "initialize":
        info = {"name": "probe", "version": "1"}
        return {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}}, "serverInfo": info}
    if method == "tools/list":
        return {"tools": [TOOL]}
    if method == "tools/call":
        space: dict[str, Any] = {"result": None}
        try:
            exec(params["arguments"]["code"], space)  # that is what it is for
        except BaseException:  # noqa: BLE001  # whatever the code does, the server lives on
            space["result"] = {"raised": traceback.format_exc()[-2000:]}
        return {"content": [{"type": "text", "text": json.dumps(space["result"], default=str)}]}
    return {}


def main() -> None:
    for line in sys.stdin:
        message = json.loads(line)
        if "id" in message and "method" in message:
            reply = {
                "jsonrpc": "2.0",
                "id": message["id"],
                "result": answer(message["method"], message.get("params") or {}),
            }
            print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
