"""A small real HTTP server with the documented endpoints of a KV version 2 secrets engine that reading needs.

Stands for HashiCorp Vault and OpenBao, of which there is no package to be had here: `GET /v1/MOUNT/data/PATH` with
`X-Vault-Token` answers as their API documentation says, also for deleted versions and missing permission."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Engine:
    """What it holds, and what was asked."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.url = ""
        self.secrets: dict[str, dict[str, Any]] = {}
        self.deleted: set[str] = set()
        self.asked: list[str] = []


@contextmanager
def serving(token: str) -> Iterator[Engine]:
    engine = Engine(token)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            engine.asked.append(self.path)
            if self.headers["X-Vault-Token"] != engine.token:
                self._answer(403, {"errors": ["permission denied"]})
            elif self.path.startswith("/v1/moved/"):
                self.send_response(307)
                self.send_header("Location", f"{engine.url}/v1/secret/data/brave")
                self.end_headers()
            elif not self.path.startswith("/v1/secret/data/"):
                self._answer(404, {"errors": ["no handler for route"]})
            elif (path := self.path.removeprefix("/v1/secret/data/")) in engine.deleted:
                gone = {"deletion_time": "2026-01-01T00:00:00Z", "destroyed": False, "version": 1}
                self._answer(404, {"data": {"data": None, "metadata": gone}})
            elif path not in engine.secrets:
                self._answer(404, {"errors": []})
            else:
                kept = {"deletion_time": "", "destroyed": False, "version": 1}
                self._answer(200, {"data": {"data": engine.secrets[path], "metadata": kept}, "lease_duration": 0})

        def _answer(self, status: int, body: dict[str, Any]) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Nobody reads it."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        engine.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield engine
        finally:
            server.shutdown()
            thread.join()
