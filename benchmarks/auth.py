"""What signing in adds to a call: the gate before an endpoint, warm and cold, against the same endpoint without it.

Figures are processor time for each call, of one process that does nothing else; the floor is measured in the same run.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.audit import Audit
from gateway.auth.authenticator import Authenticator
from gateway.auth.guard import Guard
from gateway.auth.keys import Keys
from gateway.auth.resources import Names
from gateway.database import Database
from gateway.signin.accounts import Accounts
from gateway.signin.grants import Grants
from gateway.signin.signing import OwnTokens, SigningKeys

BASE: Final = "http://127.0.0.1:8811"
GOAL_US: Final = 60.0


async def _endpoint(scope: Scope, receive: Receive, send: Send) -> None:
    """Does nothing: what is left is the way to it."""


async def _nothing(*_: Any) -> Any:
    return {}


def _scope(token: str) -> Scope:
    """A request with the headers that a client of MCP sends."""
    headers = [
        (b"host", b"127.0.0.1:8811"),
        (b"accept", b"application/json, text/event-stream"),
        (b"content-type", b"application/json"),
        (b"mcp-protocol-version", b"2025-11-25"),
        (b"mcp-session-id", b"0" * 32),
        (b"authorization", b"Bearer " + token.encode()),
        (b"content-length", b"100"),
    ]
    return {"type": "http", "path": "/mcp", "query_string": b"", "headers": headers, "client": ("127.0.0.1", 1)}


async def _per_call_us(call: Callable[[], Awaitable[Any]], count: int, rounds: int) -> float:
    """The median of several rounds, each of `count` calls."""
    found = []
    for _ in range(rounds):
        began = time.process_time()
        for _ in range(count):
            await call()
        found.append((time.process_time() - began) / count * 1e6)
    return sorted(found)[rounds // 2]


async def measure(folder: Path, count: int, rounds: int) -> dict[str, float]:
    """Microseconds a call by what is measured."""
    audit = Audit(folder / "audit.jsonl")
    audit.open()
    async with Database(f"sqlite:///{folder / 'lockgate.db'}") as database:
        await Accounts(database).create("somebody", "a long enough password")
        grants = Grants(database, folder / "rotation.key")
        own = OwnTokens(BASE, SigningKeys(folder / "signing", database), grants)
        authenticator = Authenticator(Keys(database), {BASE: own}, "admin")
        guard = Guard(authenticator, Names(BASE), (BASE,), audit)
        key = await Keys(database).create("benchmark")
        id = await grants.create(
            subject="user:somebody",
            account="somebody",
            client="client",
            client_name="client",
            resource=f"{BASE}/mcp",
            scopes=frozenset({"mcp"}),
        )
        grant = await grants.get(id)
        assert grant is not None
        token = await own.issue(grant, grant.scopes)

        def calling(app: ASGIApp, credential: str) -> Callable[[], Awaitable[Any]]:
            async def call() -> None:
                await app(_scope(credential), _nothing, _nothing)

            return call

        def cold(credential: str) -> Callable[[], Awaitable[Any]]:
            async def call() -> None:
                authenticator.forget_all()
                await guard.around(_endpoint)(_scope(credential), _nothing, _nothing)

            return call

        floor = await _per_call_us(calling(_endpoint, token), count, rounds)
        gate = guard.around(_endpoint)
        return {
            "floor": floor,
            "token, warm": await _per_call_us(calling(gate, token), count, rounds) - floor,
            "API key, warm": await _per_call_us(calling(gate, key), count, rounds) - floor,
            "token, first use": await _per_call_us(cold(token), count // 100, rounds) - floor,
            "API key, first use": await _per_call_us(cold(key), count // 100, rounds) - floor,
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000, help="warm calls a round")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(measure(Path(folder), given.count, given.rounds))
    print(f"{'':22}{'µs of processor time a call':>30}")
    for name, value in found.items():
        print(f"{name if name == 'floor' else 'added: ' + name:22}{value:>30.1f}")
    worst = max(value for name, value in found.items() if name.endswith("warm"))
    print(f"\ngoal: {GOAL_US:g} µs added to a warm call; {'met' if worst < GOAL_US else 'missed'}")
    return 0 if worst < GOAL_US else 1


if __name__ == "__main__":
    raise SystemExit(main())
