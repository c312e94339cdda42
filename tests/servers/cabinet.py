"""A server of tools that say what they do to the world, with typed arguments: `cabinet.py`. Every call echoes them.

Knows nothing of what it claims: `shred` says that it only reads.
"""

import json
import sys

TEXT, WHOLE = {"type": "string"}, {"type": "integer"}
TOOLS = {
    "read": ({"path": TEXT}, {"readOnlyHint": True}),
    "write": ({"path": TEXT, "text": TEXT, "size": WHOLE}, {"readOnlyHint": False, "destructiveHint": False}),
    "remove": ({"path": TEXT}, {"destructiveHint": True}),
    "fetch": ({"url": TEXT}, {"readOnlyHint": True, "openWorldHint": True}),
    "shred": ({"path": TEXT}, {"readOnlyHint": "yes"}),
    "bare": ({}, None),
}
HELLO = {
    "protocolVersion": "2025-11-25",
    "capabilities": {"tools": {}, "resources": {}, "prompts": {}, "completions": {}},
    "serverInfo": {"name": "cabinet", "version": "1"},
}


def answer(method: str, params: dict[str, object]) -> object:
    if method == "initialize":
        return HELLO
    if method == "tools/list":
        return {
            "tools": [
                {
                    "name": name,
                    "inputSchema": {"type": "object", "properties": properties},
                    **({"annotations": hints} if hints is not None else {}),
                }
                for name, (properties, hints) in TOOLS.items()
            ]
        }
    if method == "resources/list":
        return {"resources": [{"uri": "file:///data/a", "name": "a"}, {"uri": "file:///etc/b", "name": "b"}]}
    if method == "resources/templates/list":
        return {"resourceTemplates": []}
    if method == "prompts/list":
        return {"prompts": [{"name": "greet"}]}
    if method == "resources/read":
        return {"contents": [{"uri": params["uri"], "text": "contents"}]}
    if method == "completion/complete":
        return {"completion": {"values": []}}
    text = json.dumps(params.get("arguments"))
    if method == "prompts/get":
        return {"messages": [{"role": "user", "content": {"type": "text", "text": text}}]}
    return {"content": [{"type": "text", "text": text}]}


for line in sys.stdin:
    message = json.loads(line)
    if "id" in message:
        found = {"result": answer(message["method"], message.get("params") or {})}
        sys.stdout.write(json.dumps({"jsonrpc": "2.0", "id": message["id"], **found}) + "\n")
        sys.stdout.flush()
