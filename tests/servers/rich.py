"""A server whose every answer is full of what a relay could lose, in either era, whatever carries its messages.

    python rich.py '{"era": "modern"}'

Knows no transport beside standard input and output; imported by tests/servers/remote.py for HTTP. Uses the standard
library alone. Results are written by hand where their spelling matters: numbers keep their digits.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

Send = Callable[[str], None]
VERSION = "2026-07-28"
PREFIX = "io.modelcontextprotocol/"
ICONS = [{"src": "data:image/png;base64,AA==", "mimeType": "image/png", "sizes": ["16x16"], "x-icon": 1}]
ANNOTATIONS = {"audience": ["user"], "priority": 0.5, "lastModified": "2026-01-02T03:04:05Z", "x-note": {"a": [1]}}
EXACT = '{"big": 12345678901234567890, "float": 1.0, "small": 1E-7, "text": "\\u00e9\\ud83d\\ude00", "null": null}'
"""JSON whose spelling a parser would change."""
LINK = {"type": "resource_link", "uri": "memo://one", "name": "one", "icons": ICONS, "annotations": ANNOTATIONS, "x": 1}
EMBEDDED = {"type": "resource", "resource": {"uri": "memo://two", "text": "two", "x-inner": [None]}, "x-outer": True}
TOOL = {
    "title": "Rich",
    "inputSchema": {"type": "object", "$defs": {"a": {"$anchor": "b"}}, "x-schema": {"n": 1.50}},
    "outputSchema": {"type": "object"},
    "annotations": {"readOnlyHint": True, "x-hint": "kept"},
    "icons": ICONS,
    "x-tool": {"deep": [1, {"er": None}]},
    "_meta": {"vendor.example/key": [1]},
}
TOOLS = ("rich", "progress", "hold", "heard", "log", "ask", "touch", "change", "raw")
RICH = (
    json.dumps(
        {
            "content": [{"type": "text", "text": "rich", "annotations": ANNOTATIONS, "x-block": 1}, LINK, EMBEDDED],
            "isError": False,
            "x-top": {"kept": True},
        }
    )[:-1]
    + f', "structuredContent": {EXACT}, "_meta": {{"vendor.example/key": {EXACT}}}}}'
)


class Rich:
    """One connection's worth of it; `unasked` and `later` as in behaviour.py. `options`: era, and what a legacy server
    does at `server/discover`: `probed` may be `ignore` or `exit`."""

    def __init__(self, options: dict[str, Any], unasked: Send, later: object) -> None:
        self.modern = options.get("era") == "modern"
        self.probed = options.get("probed")
        self.unasked = unasked
        self.heard: list[str] = []
        """The methods of everything that came in, with the URI it was about; never cleared."""
        self.listeners: dict[str, Send] = {}
        """By the raw id of a `subscriptions/listen` request, the way to its stream."""
        self.held: list[Send] = []
        self.waiting: dict[str, Callable[[Any], None]] = {}

    def handle(self, line: str, send: Send) -> None:
        message = json.loads(line)
        method, params, id = message.get("method"), message.get("params") or {}, message.get("id")
        if method is None:
            self.waiting.pop(id)(message.get("result"))
            return
        about = params.get("uri") or (params.get("requestId") and "cancelled") or ""
        self.heard.append(f"{method} {about}".strip())
        if id is None:
            return
        if method == "server/discover" and self.probed == "exit":
            sys.exit(1)
        if method == "server/discover" and self.probed == "ignore":
            return
        raw = json.dumps(id)
        if method == "subscriptions/listen":
            self.listeners[raw] = send
            wanted = params["notifications"]
            self.heard.append(f"listening {' '.join(sorted(wanted.get('resourceSubscriptions', [])))}".strip())
            self._say("notifications/subscriptions/acknowledged", {"notifications": wanted}, raw)
        elif method == "tools/call":
            self._call(line, raw, params, send)
        elif (found := self._answer(method, params)) is None:
            code, text = (-32601, "Method not found") if method != "resources/read" else (-32002, "not here")
            data = {"uri": params.get("uri"), "x-data": 1}
            send(json.dumps({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": text, "data": data}}))
        else:
            self._send(raw, found, send, cacheable=method != "completion/complete" and method != "prompts/get")

    def _send(self, raw: str, result: str, send: Send, *, cacheable: bool = False) -> None:
        if self.modern:
            more = ', "ttlMs": 4321, "cacheScope": "public"' if cacheable else ""
            result = '{"resultType": "complete"' + more + ("" if result == "{}" else ", ") + result[1:]
        send(f'{{"jsonrpc": "2.0", "id": {raw}, "result": {result}}}')

    def _say(self, method: str, params: dict[str, Any], raw: str | None = None) -> None:
        """To those who listen, as the era has it."""
        if not self.modern:
            self.unasked(json.dumps({"jsonrpc": "2.0", "method": method, "params": params}))
            return
        for id in [raw] if raw is not None else list(self.listeners):
            tagged = {**params, "_meta": {PREFIX + "subscriptionId": json.loads(id)}}
            self.listeners[id](json.dumps({"jsonrpc": "2.0", "method": method, "params": tagged}))

    def _answer(self, method: str, params: dict[str, Any]) -> str | None:
        offers = {
            "tools": {"listChanged": True},
            "prompts": {"listChanged": True},
            "resources": {"listChanged": True, "subscribe": True},
            "completions": {},
            "logging": {},
        }
        item = {"icons": ICONS, "annotations": ANNOTATIONS, "x-item": [1.0]}
        match method:
            case "initialize" if not self.modern:
                info = {"name": "rich", "version": "1"}
                return json.dumps({"protocolVersion": "2025-11-25", "capabilities": offers, "serverInfo": info})
            case "server/discover" if self.modern:
                return json.dumps({"supportedVersions": [VERSION], "capabilities": offers})
            case "tools/list":
                tools = [{"name": name, **TOOL} for name in TOOLS]
                return json.dumps({"tools": [*tools, {"title": "without a name"}, 5]})
            case "prompts/list":
                prompt = {"name": "greet", "arguments": [{"name": "who", "x-argument": 1}], **item}
                return json.dumps({"prompts": [{"name": 7}, prompt]})
            case "resources/list":
                resource = {"uri": "memo://one", "name": "one", "size": 3, **item}
                return json.dumps({"resources": [{"name": "without a uri"}, resource]})
            case "resources/templates/list":
                template = {"uriTemplate": "memo://by/{name}", "name": "by", **item}
                return json.dumps({"resourceTemplates": [None, template]})
            case "prompts/get":
                blocks = [{"type": "text", "text": params["arguments"]["who"]}, LINK, EMBEDDED]
                messages = [{"role": "user", "content": block, "x-message": 1} for block in blocks]
                return json.dumps({"messages": messages, "x-prompt": 1})
            case "resources/read" if params["uri"] in ("memo://one", "memo://by/name"):
                content = {"uri": params["uri"], "text": "memo", "x-content": 1.0, "_meta": {"a": 1}}
                return json.dumps({"contents": [content], "x-read": 1})
            case "completion/complete":
                ref = params["ref"].get("name") or params["ref"]["uri"]
                completion = {"values": [f"{ref}:{params['argument']['value']}"], "x-completion": 1}
                return json.dumps({"completion": completion})
            case "resources/subscribe" | "resources/unsubscribe" | "logging/setLevel" if not self.modern:
                return "{}"
        return None

    def _call(self, line: str, raw: str, params: dict[str, Any], send: Send) -> None:
        meta, arguments = params.get("_meta") or {}, params.get("arguments") or {}

        def text(value: object) -> str:
            return json.dumps({"content": [{"type": "text", "text": json.dumps(value)}]})

        def notice(method: str, **more: Any) -> None:
            send(json.dumps({"jsonrpc": "2.0", "method": f"notifications/{method}", "params": more}))

        def progress(done: float, **more: Any) -> None:
            if "progressToken" in meta:
                notice("progress", progressToken=meta["progressToken"], progress=done, total=3, **more)

        match params["name"]:
            case "rich":
                self._send(raw, RICH, send)
            case "raw":
                self._send(raw, text(line), send)
            case "progress":
                for done in (1, 2.5, 3):
                    progress(done, message=f"step {done}", **{"x-progress": {"n": 1}})
                self._send(raw, text("done"), send)
            case "hold":
                self.held.append(send)
                progress(0)
            case "heard":
                self._send(raw, text(self.heard), send)
            case "log":
                if not self.modern or PREFIX + "logLevel" in meta:
                    notice("message", level="warning", logger="rich", data={"x": [1, None]})
                self._send(raw, text("logged"), send)
            case "touch":
                self._say("notifications/resources/updated", {"uri": "memo://one", "x-updated": 1})
                self._send(raw, text("touched"), send)
            case "change":
                self._say(f"notifications/{arguments['list']}/list_changed", {})
                self._send(raw, text("changed"), send)
            case "ask":
                self._ask(raw, params, send, lambda answer: self._send(raw, text(answer), send))

    def _ask(self, raw: str, params: dict[str, Any], send: Send, end: Callable[[Any], None]) -> None:
        schema = {"type": "object", "properties": {"name": {"type": "string", "x-field": 1}}}
        question = {"mode": "form", "message": "Who?", "requestedSchema": schema, "x-question": {"n": 1}}
        if not self.modern:
            self.waiting["who"] = end
            asked = {"jsonrpc": "2.0", "id": "who", "method": "elicitation/create", "params": question}
            send(json.dumps(asked))
        elif "inputResponses" in params and params.get("requestState") == "state of mine":
            end(params["inputResponses"]["who"])
        else:
            requests = {"who": {"method": "elicitation/create", "params": question}}
            asked = {"resultType": "input_required", "inputRequests": requests, "requestState": "state of mine"}
            send(f'{{"jsonrpc": "2.0", "id": {raw}, "result": {json.dumps(asked)}}}')


def main() -> None:
    def send(message: str) -> None:
        print(message, flush=True)

    server = Rich(json.loads(sys.argv[1]), send, None)
    for line in sys.stdin:
        server.handle(line, send)


if __name__ == "__main__":
    main()
