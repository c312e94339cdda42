"""A server of letters: `mailroom.py FILE`, where the file has one JSON string a line. What it did is in `FILE.calls`.

Knows nothing of who may do what; each tool does as it is told.
"""

import json
import sys
from pathlib import Path

LETTERS = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]
TEXT = {"type": "string"}
TOOLS = {
    "fetch": ({"number": {"type": "integer"}, "copy_to": TEXT}, True),
    "note": ({"path": TEXT, "text": TEXT}, False),
    "send": ({"to": TEXT, "text": TEXT}, False),
    "wipe": ({"folder": TEXT}, False),
    "open": ({"name": TEXT}, True),
}
HELLO = {
    "protocolVersion": "2025-11-25",
    "capabilities": {"tools": {}},
    "serverInfo": {"name": "mailroom", "version": "1"},
}


def answer(method: str, params: dict) -> object:
    if method == "initialize":
        return HELLO
    if method == "tools/list":
        shown = []
        for name, (properties, only_reads) in TOOLS.items():
            schema = {"type": "object", "properties": properties}
            shown.append({"name": name, "inputSchema": schema, "annotations": {"readOnlyHint": only_reads}})
        return {"tools": shown}
    name, arguments = params["name"], params.get("arguments") or {}
    with open(f"{sys.argv[1]}.calls", "a", encoding="utf-8") as kept:
        kept.write(json.dumps([name, arguments]) + "\n")
    text = LETTERS[arguments["number"]] if name == "fetch" else f"{name} is done"
    return {"content": [{"type": "text", "text": text}]}


for line in sys.stdin:
    message = json.loads(line)
    if "id" in message:
        found = {"result": answer(message["method"], message.get("params") or {})}
        sys.stdout.write(json.dumps({"jsonrpc": "2.0", "id": message["id"], **found}) + "\n")
        sys.stdout.flush()
