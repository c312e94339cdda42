"""Fetching small JSON documents from addresses that others named: no private hosts, no redirects, no surprises.

Knows HTTP and which addresses may be reached; not what the documents say."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from gateway.auth.errors import AuthError
from gateway.egress.rules import NEVER, SITE_LOCAL, Address
from gateway.wire.http_client import Answer, HttpFailure, HttpOrigin

TIMEOUT_S: Final = 5.0
"""For everything together: name, connection, answer."""
MAX_BYTES: Final = 256 * 1024

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


class FetchRefused(AuthError):
    """The document may not be fetched, or what came is not one; says why."""


@dataclass(frozen=True)
class Document:
    """An answer with a JSON content type, or with an error status."""

    status: int
    body: bytes
    cache_control: str
    challenge: str = ""
    """What `WWW-Authenticate` says, if anything."""


async def resolve(host: str, port: int) -> Sequence[str]:
    """The addresses of a host, as the system knows them."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for _, _, _, _, address in found]


@dataclass(frozen=True)
class Reach:
    """Which hosts are reached: public ones always; private networks and this machine only if that is said."""

    private: bool = False
    """Also addresses of private networks: for providers that the operator named."""
    loopback: bool = False

    def refusal(self, address: Address) -> str | None:
        if address.is_loopback:
            return None if self.loopback else "is this machine"
        if any(address in network for network in NEVER):
            return "is never reached"
        if (not address.is_global or address in SITE_LOCAL) and not self.private:
            return "is private"
        return None


class Fetcher:
    """Fetches over https, and over http from this machine where it may be reached at all.

    Every address of a name must be allowed; the connection then goes to one of these very addresses, so that a name
    which means something else a moment later changes nothing.
    """

    def __init__(self, reach: Reach, resolve: Resolve = resolve, tls: ssl.SSLContext | None = None) -> None:
        self._reach = reach
        self._resolve = resolve
        self._tls = tls

    async def get(self, url: str, max_bytes: int = MAX_BYTES) -> Document:
        """
        Raises:
            FetchRefused: it must not be, or could not be, fetched.
        """
        return await self.send("GET", url, b"", b"", max_bytes)

    async def send(
        self, method: str, url: str, headers: bytes, body: bytes, max_bytes: int = MAX_BYTES, *, json_only: bool = True
    ) -> Document:
        """The same for any request; `headers` are complete lines. Without `json_only` an answer may be anything.

        Raises:
            FetchRefused: as for `get`.
        """
        try:
            parts = urlsplit(url)
        except ValueError as exc:
            raise FetchRefused("this is not a URL that can be fetched") from exc
        host = parts.hostname or ""
        origin = HttpOrigin(f"{parts.scheme}://{parts.netloc}", max_connections=1, dial=self._dial_to(url))
        answer = Answer(max_bytes)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        try:
            async with asyncio.timeout(TIMEOUT_S):
                origin.request(
                    method, target, b"Accept: application/json\r\nConnection: close\r\n" + headers, body, answer
                )
                content = await answer.content()
        except TimeoutError as exc:
            raise FetchRefused(f"{host}: no answer within {TIMEOUT_S:g} s") from exc
        except HttpFailure as exc:
            raise FetchRefused(f"{host}: {exc}") from exc
        finally:
            await origin.aclose()
        if 300 <= answer.status < 400:
            raise FetchRefused(f"{host}: answers with a redirect, which is not followed")
        kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
        if answer.status == 200 and json_only and kind != "application/json" and not kind.endswith("+json"):
            raise FetchRefused(f"{host}: the answer is not JSON")
        headers_ = answer.headers
        return Document(answer.status, content, headers_.get("cache-control", ""), headers_.get("www-authenticate", ""))

    def _dial_to(self, url: str) -> Callable[[Callable[[], Any]], Awaitable[tuple[asyncio.BaseTransport, Any]]]:
        parts = urlsplit(url)
        try:
            host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError:
            host, port = "", 0
        if not host or parts.scheme not in ("https", "http") or parts.username is not None or parts.fragment:
            raise FetchRefused("this is not a URL that can be fetched")
        if any(ord(c) <= 32 or ord(c) > 126 or c == "\\" for c in url):
            raise FetchRefused("the URL has characters that must be written otherwise")

        async def dial(protocol: Callable[[], Any]) -> tuple[asyncio.BaseTransport, Any]:
            address = await self._vetted(host, port, plain=parts.scheme == "http")
            tls = (self._tls or ssl.create_default_context()) if parts.scheme == "https" else None
            loop = asyncio.get_running_loop()
            return await loop.create_connection(
                protocol, address, port, ssl=tls, server_hostname=host if tls is not None else None
            )

        return dial

    async def _vetted(self, host: str, port: int, *, plain: bool) -> str:
        addresses = await self._resolve(host, port)
        if not addresses:
            raise OSError("the name has no address")
        for text in addresses:
            address = ipaddress.ip_address(text.partition("%")[0])
            inner = getattr(address, "ipv4_mapped", None)
            if (why := self._reach.refusal(inner or address)) is not None:
                raise OSError(f"{text} {why}")
            if plain and not address.is_loopback:
                raise OSError("http:// is for this machine only; use https://")
        return addresses[0]
