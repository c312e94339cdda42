"""A server of the OpenAI chat API whose answers are written beforehand: each request gets the next turn of a script.

Knows no model. A turn is text, or calls as pairs of a name and arguments."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HELD_S = 120
Turn = str | Sequence[tuple[str, dict[str, Any]]]


class ScriptedModel:
    """What was asked so far, and what comes next; the last turn is repeated."""

    def __init__(self, turns: Sequence[Turn]) -> None:
        self.turns = list(turns)
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.url = ""
        self.hold_from = 0
        """The number of the request from which on none is answered before `release`; 0 for none."""
        self.release = threading.Event()

    def next(self, request: dict[str, Any], key: str | None) -> Turn:
        self.keys.append(key)
        self.asked.append(request)
        if 0 < self.hold_from <= len(self.asked):
            self.release.wait(HELD_S)
        return self.turns[min(len(self.asked), len(self.turns)) - 1]


@contextmanager
def scripted_model(*turns: Turn) -> Iterator[ScriptedModel]:
    model = ScriptedModel(turns)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path != "/v1/chat/completions":
                self._send(404, b'{"error": {"message": "no such path"}}', "application/json")
                return
            turn = model.next(body, self.headers["Authorization"])
            events = [json.dumps(chunk) for chunk in _chunks(turn)]
            text = "".join(f"data: {event}\n\n" for event in [*events, "[DONE]"])
            self._send(200, text.encode(), "text/event-stream")

        def _send(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    model.url = f"http://127.0.0.1:{server.server_address[1]}/v1#scripted"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield model
    finally:
        model.release.set()
        server.shutdown()
        server.server_close()
        thread.join()


def _chunks(turn: Turn) -> Iterator[dict[str, Any]]:
    if isinstance(turn, str):
        deltas: list[dict[str, Any]] = [{"content": turn[:5]}, {"content": turn[5:]}]
    else:
        deltas = []
        for index, (name, arguments) in enumerate(turn):
            function = {"name": name, "arguments": json.dumps(arguments)}
            deltas.append(
                {"tool_calls": [{"index": index, "id": f"call_{index}", "type": "function", "function": function}]}
            )
    for delta in deltas:
        yield {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
    yield {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    yield {"choices": [], "usage": {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25}}
