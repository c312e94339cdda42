"""A server that says whatever it is told to, in every place where a server can say something.

    python mouthy.py

Standard library alone. The argument `text` comes back as a text, as structured content, in a progress message, in an
error, in a resource or a prompt; `heard` returns the arguments of the last call as they arrived."""

import base64
import json
import sys
from typing import Any

TEXT = {"type": "object", "properties": {"text": {"type": "string"}}}
TIGHT = {"type": "object", "properties": {"text": {"type": "string", "pattern": "^[A-Za-z0-9 _-]*$"}}}
TOOLS = [
    {"name": "say", "inputSchema": TEXT},
    {"name": "structured", "inputSchema": TEXT, "outputSchema": TEXT},
    {"name": "tight", "inputSchema": TEXT, "outputSchema": TIGHT},
    {"name": "report", "inputSchema": TEXT},
    {"name": "fail", "inputSchema": TEXT},
    {"name": "picture", "inputSchema": TEXT},
    {"name": "many", "inputSchema": TEXT},
    {"name": "heard", "inputSchema": TEXT},
]


class Mouthy:
    def __init__(self) -> None:
        self.last: Any = None
        self.kept = ""

    def answer(self, method: str, params: dict[str, Any]) -> Any:
        if method == "initialize":
            capabilities: dict[str, Any] = {"tools": {}, "resources": {}, "prompts": {}}
            info = {"name": "mouthy", "version": "1"}
            return {"protocolVersion": params["protocolVersion"], "capabilities": capabilities, "serverInfo": info}
        if method == "tools/list":
            return {"tools": TOOLS}
        if method == "resources/list":
            return {"resources": [{"uri": "ui://mouthy/page", "name": "page", "mimeType": "text/html;profile=mcp-app"}]}
        if method == "prompts/list":
            return {"prompts": [{"name": "kept"}]}
        if method == "prompts/get":
            return {"messages": [{"role": "user", "content": {"type": "text", "text": self.kept}}]}
        if method == "resources/read":
            meta = {"ui": {"csp": {"resourceDomains": ["https://cdn.firm.test"]}}}
            page = {"uri": params["uri"], "mimeType": "text/html;profile=mcp-app", "text": self.kept, "_meta": meta}
            return {"contents": [page]}
        return self.call(params) if method == "tools/call" else {}

    def call(self, params: dict[str, Any]) -> Any:
        text = str(params.get("arguments", {}).get("text", ""))
        name = params["name"]
        if name == "heard":
            return {"content": [{"type": "text", "text": json.dumps(self.last)}]}
        self.last, self.kept = params.get("arguments"), text
        if name == "structured" or name == "tight":
            return {"content": [{"type": "text", "text": "see"}], "structuredContent": {"text": text}}
        if name == "report":
            token = params.get("_meta", {}).get("progressToken")
            told = {"progressToken": token, "progress": 1, "message": text}
            write({"jsonrpc": "2.0", "method": "notifications/progress", "params": told})
        if name == "picture":
            data = base64.b64encode(text.encode()).decode()
            return {"content": [{"type": "image", "mimeType": "image/svg+xml", "data": data}]}
        if name == "many":
            return {"content": [{"type": "text", "text": text}] * 20}
        return {"content": [{"type": "text", "text": text}], "isError": name == "fail"}


def write(message: Any) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def main() -> None:
    mouthy = Mouthy()
    for line in sys.stdin:
        message = json.loads(line)
        if "id" in message:
            result = mouthy.answer(message["method"], message.get("params", {}))
            write({"jsonrpc": "2.0", "id": message["id"], "result": result})


if __name__ == "__main__":
    main()
