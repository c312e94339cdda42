"""What commands about keys and accounts share: the database of this state folder, and word of what was done.

Knows no kind of credential."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TypeVar
from urllib.parse import quote

from gateway.audit import Audit, call_id, signed_in
from gateway.client import gateway_client
from gateway.commands.running import err
from gateway.database import Database
from gateway.errors import GatewayError
from gateway.running import find_running
from gateway.settings import Settings
from gateway.statelock import lock_state, release_state

T = TypeVar("T")


def day(moment: float | None) -> str:
    return "never" if moment is None else datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M")


async def in_database(wanted: Settings, work: Callable[[Database], Awaitable[T]]) -> T:
    """Work on the database of this state folder, beside the gateway that may use it."""
    wanted.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    async with Database(wanted.database_url) as database:
        return await work(database)


async def record(wanted: Settings, principal: str, what: str) -> None:
    """Write down what was done; a running gateway does that, and checks its credentials anew."""
    if find_running(wanted) is not None:
        try:
            async with gateway_client(wanted) as client:
                await client.admin("POST", f"/credentials/changed?principal={quote(principal)}&what={quote(what)}")
        except GatewayError as exc:
            err.print(f"The running gateway could not be told and will notice within 30 s: {exc}")
        return
    # One process alone writes to the audit file: whoever holds the state folder.
    held = lock_state(wanted.state_dir)
    audit = Audit(wanted.state_dir / "audit.jsonl")
    try:
        audit.open()
        audit.write(signed_in(call_id(), principal, what, "command line"))
    finally:
        audit.close()
        release_state(held)
