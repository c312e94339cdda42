"""An MCP server on stdio that does what is asked of it to itself: eats memory, fills its disk, floods its output.

Needs nothing but Python; benchmarks/faults.py gives it to a container as text."""

import json
import os
import sys
import time

NOTE = b'{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"once more"}}\n'


def hello() -> str:
    return "hello"


def eat() -> str:
    return "x" * (1 << 30)


def fill() -> str:
    try:
        with open("/tmp/full", "wb", buffering=0) as file:
            while True:
                file.write(b"0" * (1 << 20))
    except OSError as exc:
        os.unlink("/tmp/full")
        return str(exc.strerror)


def messages() -> str:
    """Notifications without end."""
    while True:
        os.write(1, NOTE * 500)


def noise() -> str:
    """Lines without end that are no messages."""
    while True:
        os.write(1, b"noise\n" * 10_000)


def complaints() -> str:
    """The same on stderr."""
    while True:
        os.write(2, b"noise\n" * 10_000)


def line() -> str:
    """A line without end."""
    while True:
        os.write(1, b"x" * 65536)


def deaf() -> str:
    time.sleep(1000)
    return "heard"


TOOLS = {tool.__name__: tool for tool in (hello, eat, fill, messages, noise, complaints, line, deaf)}

for text in sys.stdin:
    message = json.loads(text)
    if "id" not in message:
        continue
    result: object = {}
    if message["method"] == "initialize":
        about = {"name": "faulty", "version": "1"}
        result = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": about}
    elif message["method"] == "tools/list":
        result = {"tools": [{"name": name, "inputSchema": {"type": "object"}} for name in TOOLS]}
    elif message["method"] == "tools/call":
        result = {"content": [{"type": "text", "text": TOOLS[message["params"]["name"]]()}]}
    print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
