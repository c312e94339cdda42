"""A server of the stateless era that makes tasks of calls: `tasker.py '{"ttl_ms": 50}'`.

What becomes of a task is told by further calls, so nothing happens by itself. Options: `ttl_ms` (null for no limit),
`message` their first status message, `asks` the state that follows at once,
`rude` makes tasks also for clients that take none, `plain` declares no tasks, `extension` declares one more,
`vendor` answers methods of that name. Knows nothing of the gateway; standard library alone."""

import json
import os
import sys
from typing import Any

VERSION = "2026-07-28"
PREFIX = "io.modelcontextprotocol/"
TASKS = PREFIX + "tasks"
NAMES = ("job", "finish", "state", "ask", "log", "pid", "crash", "hold")

options: dict[str, Any] = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}
tasks: dict[str, dict[str, Any]] = {}
log: list[Any] = []


def send(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


class Refused(Exception):
    """An error to answer with."""


def refuse(code: int, message: str, **more: Any) -> Refused:
    return Refused({"code": code, "message": message, **more})


def text(value: object) -> dict[str, Any]:
    shown = value if isinstance(value, str) else json.dumps(value)
    return {"resultType": "complete", "content": [{"type": "text", "text": shown}]}


def call(params: dict[str, Any], takes_tasks: bool) -> dict[str, Any]:
    arguments = params.get("arguments") or {}
    key = arguments.get("key", "")
    match params["name"]:
        case "job":
            if not (takes_tasks or options.get("rude")):
                needed = {"requiredCapabilities": {"extensions": {TASKS: {}}}}
                raise refuse(-32021, "this needs tasks", data=needed)
            times = {"createdAt": "2026-11-01T00:00:00Z", "lastUpdatedAt": "2026-11-01T00:00:00Z"}
            tasks[f"upstream {key}"] = {
                "taskId": f"upstream {key}", "status": "working", **times,
                "ttlMs": options.get("ttl_ms", 600_000), "pollIntervalMs": 250, "x-kept": key,
            }  # fmt: skip
            if "message" in options:
                tasks[f"upstream {key}"]["statusMessage"] = options["message"]
            made = dict(tasks[f"upstream {key}"])
            tasks[f"upstream {key}"] |= options.get("asks", {})
            return {"resultType": "task", **made}
        case "finish":
            link = {"type": "resource_link", "uri": f"memo://{key}", "name": key}
            done = {"content": [{"type": "text", "text": f"done {key}"}, link], "resultType": "complete"}
            tasks[f"upstream {key}"] |= {"status": "completed", "result": done}
            return text("finished")
        case "state":
            tasks[f"upstream {key}"] |= arguments["state"]
            return text("changed")
        case "ask":
            question = {"mode": "form", "message": "Sure?", "requestedSchema": {"type": "object", "properties": {}}}
            asked = {key: {"method": "elicitation/create", "params": question} for key in arguments["questions"]}
            tasks[f"upstream {key}"] |= {"status": "input_required", "inputRequests": asked}
            return text("asking")
        case "log":
            return text(log)
        case "pid":
            return text(str(os.getpid()))
        case "hold" if "raw" in arguments:
            return arguments["raw"]
        case "crash":
            os._exit(3)
        case name:
            return text(f"{name}: {json.dumps(params)}")


def of_task(method: str, params: dict[str, Any], takes_tasks: bool) -> dict[str, Any]:
    if not takes_tasks:
        raise refuse(-32021, "this needs tasks")
    task = tasks.get(params["taskId"])
    if task is None:
        raise refuse(-32602, f"no task {params['taskId']}")
    if method == "tasks/get":
        return {"resultType": "complete", **task}
    if method == "tasks/update":
        for key in params["inputResponses"]:
            task.get("inputRequests", {}).pop(key, None)
        if not task.get("inputRequests"):
            task.pop("inputRequests", None)
            task["status"] = "working"
    else:
        task["status"] = "cancelled"
    return {"resultType": "complete"}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    method, params = request["method"], request.get("params") or {}
    declared = params.get("_meta", {}).get(PREFIX + "clientCapabilities", {})
    takes_tasks = TASKS in declared.get("extensions", {})
    shows = PREFIX + "ui" in declared.get("extensions", {})
    log.append(
        {
            "method": method,
            "tasks": takes_tasks,
            "apps": shows,
            "params": {k: v for k, v in params.items() if k != "_meta"},
        }
    )
    match method:
        case "server/discover":
            extensions = {} if options.get("plain") else {TASKS: {}}
            if "extension" in options:
                extensions[options["extension"]] = {"deep": [1]}
            offered = {"tools": {}, "resources": {}, "extensions": extensions}
            return {"resultType": "complete", "supportedVersions": [VERSION], "capabilities": offered}
        case "tools/list":
            return {"tools": [{"name": name, "inputSchema": {"type": "object"}} for name in NAMES]}
        case "resources/list":
            return {"resources": []}
        case "tools/call":
            return call(params, takes_tasks)
        case "tasks/get" | "tasks/update" | "tasks/cancel" if not options.get("plain"):
            return of_task(method, params, takes_tasks)
        case _ if method in options.get("vendor", ()):
            return {"resultType": "complete", "heard": log[-1]["params"]}
        case _:
            raise refuse(-32601, f"Method not found: {method}")


for line in sys.stdin:
    message = json.loads(line)
    if "id" not in message:
        log.append({"notification": message.get("method"), "params": message.get("params")})
        continue
    try:
        send({"id": message["id"], "result": answer(message)})
    except Refused as exc:
        send({"id": message["id"], "error": exc.args[0]})
