"""Streams of OpenAI chat chunks from any server that speaks that API, this gateway or another.

Knows HTTP and the shape of the stream; who asks and what for is the caller's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, Final, Self
from urllib.parse import urlsplit

import msgspec

from gateway import errors
from gateway.auth.urls import LOOPBACK
from gateway.wire.http_client import HttpFailure, HttpOrigin
from gateway.wire.sse import EventReader

MAX_ERROR_PIECES: Final = 64


class GatewayRefused(errors.GatewayError):
    """The gateway, or the model's server, answered an error; the message is its own."""


def is_elsewhere(ref: str) -> bool:
    """Whether a model's name is that of one served elsewhere, and not of the store's."""
    return "://" in ref


class RemoteModel:
    """A model served elsewhere, as `URL#MODEL`: `http://127.0.0.1:11434/v1#llama3.2`."""

    def __init__(self, ref: str, key: str = "") -> None:
        """
        Args:
            key: sent as a bearer token, over https or to this machine only.

        Raises:
            SettingsError: the reference is no such URL, or the key would travel in the open.
        """
        url, _, self.model = ref.partition("#")
        try:
            parts = urlsplit(url)
            host = parts.hostname or ""
            _ = parts.port
        except ValueError:
            host = ""
        if not host or not self.model or parts.username is not None or parts.query:
            raise errors.SettingsError(f"--model {ref}: give URL#MODEL, such as http://127.0.0.1:11434/v1#llama3.2")
        if key and parts.scheme != "https" and host not in LOOPBACK:
            raise errors.SettingsError(f"--model {ref}: a key is sent over https only")
        self._headers = f"Authorization: Bearer {key}\r\n".encode() if key else b""
        self._path = parts.path.rstrip("/") + "/chat/completions"
        self._origin = HttpOrigin(f"{parts.scheme}://{parts.netloc}")

    def chat(self, request: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        """Stream chat.completion.chunk objects, as `stream_chat` does."""
        return stream_chat(self._origin, self._path, self._headers, {**request, "model": self.model})

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._origin.aclose()


async def stream_chat(
    origin: HttpOrigin, path: str, headers: bytes, request: dict[str, Any]
) -> AsyncGenerator[dict[str, Any]]:
    """Ask for a stream and give its chunks; closing the iterator ends the request.

    Raises:
        GatewayRefused: the server's error.
    """
    sink = _ChatSink()
    body = msgspec.json.encode({**request, "stream": True})
    exchange = origin.request("POST", path, b"Content-Type: application/json\r\n" + headers, body, sink)
    try:
        while (event := await sink.events.get()) is not None:
            if "error" in event:
                raise GatewayRefused(_message(event["error"]))
            event.setdefault("choices", [])
            yield event
    finally:
        if not sink.finished:
            exchange.abort()


def _message(error: Any) -> str:
    return str(error.get("message") if isinstance(error, dict) else error)[:2000]


class _ChatSink:
    """Turns an event stream, or a JSON error, into a queue of objects that ends with None."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self.finished = False
        self._status = 0
        self._reader = EventReader()
        self._rest: list[bytes] = []

    def head(self, status: int, headers: dict[str, str]) -> None:
        self._status = status

    def body(self, data: bytes) -> None:
        if self._status != 200:
            if len(self._rest) < MAX_ERROR_PIECES:
                self._rest.append(data)
            return
        for event in self._reader.feed(data):
            if event.data != b"[DONE]":
                self._put(event.data)

    def done(self) -> None:
        if self._status != 200:
            self._put(b"".join(self._rest))
        self.finished = True
        self.events.put_nowait(None)

    def failed(self, failure: HttpFailure) -> None:
        self.finished = True
        self.events.put_nowait({"error": {"message": f"the model's server went away: {failure}"}})

    def _put(self, data: bytes) -> None:
        try:
            event = msgspec.json.decode(data, type=dict[str, Any])
        except (msgspec.DecodeError, RecursionError):
            event = {"error": f"HTTP {self._status}, and not a JSON object"}
        if self._status != 200 and "error" not in event:
            event = {"error": f"HTTP {self._status}"}
        self.events.put_nowait(event)
