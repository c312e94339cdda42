"""What the friendly test servers do, whatever carries their messages: a small MCP server over raw JSON-RPC.

Knows no transport; imported by servers that run as scripts, so it uses the standard library alone."""

import json
import os
from collections.abc import Callable
from typing import Any

Send = Callable[[str], None]
REVISION = "2025-11-25"


class Behaviour:
    """One session's worth of server. `unasked` sends a message that answers nothing, `later` is a one-shot timer.

    `options`: revision, capabilities, instructions, extra (number of plain tools), page (items a page), `lists`,
    which gives the raw items of a list by its method in place of the usual ones, `reads`, which gives the contents of a
    resource by its URI, and `vendor`, further methods that are answered.
    """

    def __init__(self, options: dict[str, Any], unasked: Send, later: Callable[[float, Callable[[], None]], None]):
        self.options = options
        self.unasked = unasked
        self.later = later
        self.held: dict[str, Callable[[], None]] = {}
        self.notes: list[dict[str, Any]] = []
        self.levels: list[str] = []
        self.hello: dict[str, Any] = {}
        self.added: list[str] = []
        self.asked: dict[str, Callable[[Any], None]] = {}

    def handle(self, line: str, send: Send) -> None:
        """Take one message; answers go to `send`, at once or later."""
        message = json.loads(line)
        method, params = message.get("method"), message.get("params") or {}
        if method is None:
            if (heard := self.asked.pop(str(message.get("id")), None)) is not None:
                heard({key: value for key, value in message.items() if key in ("result", "error")})
            return
        if "id" not in message:
            self.notes.append({"method": method, "params": params})
            return
        id = message["id"]

        def answer(result: Any) -> None:
            send(json.dumps({"jsonrpc": "2.0", "id": id, "result": result}))

        def refuse(code: int, text: str, **more: Any) -> None:
            send(json.dumps({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": text, **more}}))

        match method:
            case "initialize":
                self.hello = params
                answer(self._hello(params))
            case "ping":
                answer({})
            case "logging/setLevel":
                self.levels.append(params["level"])
                answer({})
            case "tools/list" | "prompts/list" | "resources/list" | "resources/templates/list":
                self._list(method, params, answer, refuse)
            case "tools/call":
                self._call(line, id, params, send, answer, refuse)
            case "prompts/get":
                text = f"Greet {params.get('arguments', {}).get('name', 'nobody')} ({params['name']})"
                link = {"type": "resource_link", "uri": "memo://one", "name": "one"}
                messages = [
                    {"role": "user", "content": {"type": "text", "text": text}},
                    {"role": "user", "content": link},
                ]
                answer({"messages": messages})
            case "resources/read":
                if (known := self.options.get("reads", {}).get(params["uri"])) is not None:
                    answer({"contents": [{"uri": params["uri"], **known}]})
                elif params["uri"] == "memo://gone":
                    refuse(-32002, "Resource not found", data={"uri": params["uri"]})
                else:
                    answer(
                        {
                            "contents": [
                                {"uri": params["uri"], "mimeType": "text/plain", "text": f"memo {params['uri']}"}
                            ]
                        }
                    )
            case "completion/complete":
                values = [f"{params['ref'].get('name') or params['ref'].get('uri')}:{params['argument']['value']}"]
                answer({"completion": {"values": values, "total": 1, "hasMore": False}})
            case _ if method in self.options.get("vendor", ()):
                if "tell" in params:
                    self.unasked(json.dumps({"jsonrpc": "2.0", "method": params["tell"], "params": {"news": 1.5}}))
                if "hold" not in params:
                    answer({"heard": params, "x": [1.50]})
            case _:
                refuse(-32601, f"Method not found: {method}")

    def _hello(self, params: dict[str, Any]) -> dict[str, Any]:
        usual = {
            "tools": {"listChanged": True},
            "prompts": {},
            "resources": {"subscribe": False},
            "completions": {},
            "logging": {},
        }
        answer = {
            "protocolVersion": self.options.get("revision", REVISION),
            "capabilities": self.options.get("capabilities", usual),
            "serverInfo": {"name": "friendly", "version": "1"},
        }
        if "instructions" in self.options:
            answer["instructions"] = self.options["instructions"]
        return answer

    def _list(self, method: str, params: dict[str, Any], answer: Any, refuse: Any) -> None:
        member, items = self._items(method)
        items = self.options.get("lists", {}).get(method, items)
        size = self.options.get("page")
        if size is None:
            answer({member: items})
            return
        # The cursor of the first further page is the empty string, which is a cursor like any other.
        cursor = params.get("cursor")
        number = 0 if cursor is None else 1 if cursor == "" else int(cursor)
        page = {member: items[number * size : (number + 1) * size]}
        if len(items) > (number + 1) * size:
            page["nextCursor"] = "" if number == 0 else str(number + 1)
        answer(page)

    def _items(self, method: str) -> tuple[str, list[Any]]:
        match method:
            case "tools/list":
                names = ["echo", "raw", "hold", "release", "progress", "fail", "error", "crash", "die_after_answer"]
                names += [
                    "steps",
                    "ask",
                    "change",
                    "log",
                    "notes",
                    "pid",
                    "links",
                    "delay",
                    "big",
                    "levels",
                    "hello",
                    *self.added,
                ]
                if "sampling" in self.hello.get("capabilities", {}):
                    names.append("consult")
                names += [f"tool{number:03}" for number in range(self.options.get("extra", 0))]
                tools = [{"name": n, "description": f"The tool {n}.", "inputSchema": {"type": "object"}} for n in names]
                return "tools", tools
            case "prompts/list":
                return "prompts", [{"name": "greet", "arguments": [{"name": "name", "required": True}]}]
            case "resources/list":
                return "resources", [{"uri": "memo://one", "name": "one"}, {"uri": "memo://gone", "name": "gone"}]
            case _:
                return "resourceTemplates", [{"uriTemplate": "memo://by-name/{name}", "name": "memo"}]

    def _ask(self, questions: list[Any], answers: list[Any], send: Send, end: Callable[[list[Any]], None]) -> None:
        if not questions:
            end(answers)
            return
        (method, params), *rest = questions
        id = f"question {len(self.asked) + len(answers)} {method}"
        self.asked[id] = lambda heard: self._ask(rest, [*answers, heard], send, end)
        send(json.dumps({"jsonrpc": "2.0", "id": id, "method": method, "params": params}))

    def _steps(self, left: int, pause_s: float, progress: Callable[[int, int], None], end: Callable[[], None]) -> None:
        """Report progress after each pause, then end."""

        def step() -> None:
            progress(left, left)
            self._steps(left - 1, pause_s, progress, end) if left > 1 else end()

        self.later(pause_s, step)

    def _call(self, line: str, id: Any, params: dict[str, Any], send: Send, answer: Any, refuse: Any) -> None:
        arguments = params.get("arguments") or {}
        token = (params.get("_meta") or {}).get("progressToken")

        def text(value: object) -> dict[str, Any]:
            return {"content": [{"type": "text", "text": value if isinstance(value, str) else json.dumps(value)}]}

        def progress(number: int, total: int) -> None:
            if token is not None:
                parameters = {"progressToken": token, "progress": number, "total": total}
                send(json.dumps({"jsonrpc": "2.0", "method": "notifications/progress", "params": parameters}))

        match params["name"]:
            case "echo":
                answer(text(arguments))
            case "raw":
                answer(text(line))
            case "hold":
                self.held[arguments["key"]] = lambda: answer(text(arguments["key"]))
                progress(0, 1)
            case "release":
                self.held.pop(arguments["key"])()
                answer(text("released"))
            case "delay":
                self.later(arguments["ms"] / 1000, lambda: answer(text(arguments["mark"])))
            case "progress":
                for number in range(arguments["n"]):
                    progress(number + 1, arguments["n"])
                answer(text("done"))
            case "ask":
                # One question after the other, each a [method, params]; the answers are the result.
                self._ask(list(arguments["questions"]), [], send, lambda answers: answer(text(answers)))
            case "steps":
                self._steps(arguments["n"], arguments["ms"] / 1000, progress, lambda: answer(text("done")))
            case "fail":
                answer({"isError": True, **text("it did not work")})
            case "error":
                refuse(-32050, "a very own error", data={"why": "because"})
            case "crash":
                os._exit(3)
            case "die_after_answer":
                answer(text("last words"))
                os._exit(0)
            case "change":
                if arguments.get("add"):
                    self.added.append(arguments["add"])
                for name in arguments.get("lists", ["tools"]):
                    self.unasked(json.dumps({"jsonrpc": "2.0", "method": f"notifications/{name}/list_changed"}))
                answer(text("changed"))
            case "log":
                parameters = {"level": arguments["level"], "data": arguments["text"]}
                self.unasked(json.dumps({"jsonrpc": "2.0", "method": "notifications/message", "params": parameters}))
                answer(text("logged"))
            case "notes":
                answer(text(self.notes))
            case "hello":
                answer(text(self.hello))
            case "levels":
                answer(text(self.levels))
            case "pid":
                answer(text(str(os.getpid())))
            case "big":
                answer(text("x" * arguments["bytes"]))
            case "links":
                embedded = {"type": "resource", "resource": {"uri": "memo://two", "text": "two"}}
                answer({"content": [{"type": "resource_link", "uri": "memo://one", "name": "one"}, embedded]})
            case name:
                answer(text(f"{name}: {json.dumps(arguments)}"))
