"""A small real provider of tokens on loopback: metadata, keys, and tokens as a test wants them.

Knows nothing of the gateway. Counts what it was asked."""

import asyncio
import base64
import json
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey
from joserfc.jws import JWSRegistry

AnyKey = ECKey | OctKey | OKPKey | RSAKey


def part(value: Any) -> str:
    """One part of a token."""
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def ec_key(kid: str = "one") -> ECKey:
    return ECKey.generate_key("P-256", {"kid": kid})


class Provider:
    """One issuer, listening. `answers` holds bodies by path; a path without one is 404."""

    def __init__(self, url: str) -> None:
        self.issuer = url
        self.key: AnyKey = ec_key()
        self.asked: Counter[str] = Counter()
        self.answers: dict[str, Any] = {}
        self.publish(self.key)

    def publish(self, *keys: AnyKey) -> None:
        self.answers["/.well-known/oauth-authorization-server"] = {
            "issuer": self.issuer,
            "jwks_uri": f"{self.issuer}/jwks",
        }
        self.answers["/jwks"] = {"keys": [key.as_dict(private=False) for key in keys]}

    def claims(self, audience: Any, **changes: Any) -> dict[str, Any]:
        """The claims of a good token, changed; a claim that is `...` is left out."""
        now = int(time.time())
        good = {"iss": self.issuer, "sub": "alice", "aud": audience, "client_id": "app", "scope": "mcp"}
        return {k: v for k, v in (good | {"iat": now, "exp": now + 300} | changes).items() if v is not ...}

    def token(
        self, audience: Any, key: AnyKey | None = None, header: Mapping[str, Any] | None = None, **changes: Any
    ) -> str:
        key = key or self.key
        algorithm = {"EC": "ES256", "RSA": "RS256", "OKP": "Ed25519", "oct": "HS256"}[key.key_type]
        head = {"alg": algorithm, "typ": "at+jwt", "kid": key.kid} | dict(header or {})
        head = {name: value for name, value in head.items() if value is not ...}
        # Signed by hand: the library refuses to make most of what a test wants to see refused.
        signed = f"{part(head)}.{part(self.claims(audience, **changes))}"
        model = JWSRegistry.algorithms[head["alg"]]
        return f"{signed}.{part(model.sign(signed.encode(), key))}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        path = head[0].split(" ")[1]
        self.asked[path] += 1
        answer = self.answers.get(path)
        body = json.dumps(answer if answer is not None else {}).encode()
        status = "200 OK" if answer is not None else "404 Not Found"
        writer.write(
            f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            "Connection: close\r\n\r\n".encode()
        )
        writer.write(body)
        await writer.drain()
        writer.close()


@asynccontextmanager
async def provider() -> AsyncIterator[Provider]:
    listener = socket.create_server(("127.0.0.1", 0))
    found = Provider(f"http://127.0.0.1:{listener.getsockname()[1]}")
    async with await asyncio.start_server(found.serve, sock=listener):
        yield found
