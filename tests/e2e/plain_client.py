"""An MCP client on a bare HTTP connection, for tests that look at statuses, headers and bodies themselves.

Knows the session form of Streamable HTTP (MCP 2025-11-25, basic/transports) and no client library.
"""

import http.client
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import urlsplit

ANSWER_S = 120
REVISION = "2025-11-25"


class Answer(NamedTuple):
    """One HTTP answer, header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The JSON-RPC messages in it, whether it is JSON or an event stream."""
        if self.headers.get("content-type", "").startswith("text/event-stream"):
            data = [line[5:] for line in self.body.decode().splitlines() if line.startswith("data:")]
            return [json.loads(message) for message in data if message.strip()]  # the first event may be an id alone
        return [json.loads(self.body)]

    @property
    def result(self) -> dict[str, Any]:
        last = self.messages[-1]
        assert "result" in last, last
        result: dict[str, Any] = last["result"]
        return result

    @property
    def text(self) -> str:
        """The text of a tool's result, whether it is an error or not."""
        return "\n".join(block["text"] for block in self.result["content"])


class PlainClient:
    """One connection; `opened` makes a session on it."""

    def __init__(self, url: str, path: str = "/mcp") -> None:
        self.session = ""
        self._path = path
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=ANSWER_S)
        self._last_id = 0

    def post(self, message: Mapping[str, Any]) -> Answer:
        headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        if self.session:
            headers |= {"Mcp-Session-Id": self.session, "MCP-Protocol-Version": REVISION}
        return self.send("POST", headers, json.dumps(message).encode())

    def send(self, method: str, headers: Mapping[str, str], body: bytes = b"") -> Answer:
        self._connection.request(method, self._path, body, dict(headers))
        answer = self._connection.getresponse()
        return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())

    def request(self, method: str, params: Mapping[str, Any] | None = None) -> Answer:
        self._last_id += 1
        message = {"jsonrpc": "2.0", "id": self._last_id, "method": method}
        return self.post({**message, "params": params} if params is not None else message)

    def call(self, name: str, arguments: Mapping[str, Any] | None = None) -> Answer:
        return self.request("tools/call", {"name": name, "arguments": arguments or {}})

    def initialize(self, client: str) -> Answer:
        info = {"name": client, "version": "1"}
        answer = self.request("initialize", {"protocolVersion": REVISION, "capabilities": {}, "clientInfo": info})
        self.session = answer.headers.get("mcp-session-id", "")
        self.post({"jsonrpc": "2.0", "method": "notifications/initialized"})
        return answer

    def close(self) -> None:
        self._connection.close()


@contextmanager
def opened(url: str, path: str = "/mcp", client: str = "plain") -> Iterator[PlainClient]:
    """A client with an open session."""
    found = PlainClient(url, path)
    try:
        assert found.initialize(client).status == 200
        yield found
    finally:
        found.close()
