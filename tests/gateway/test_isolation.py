"""Whose credential a server holds: its owner's calls reach it, and nobody else's do."""

import asyncio
import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw

from gateway.caller import Caller
from gateway.upstream import Notice, Reply
from gateway.wire import envelope
from policies import Principal
from tests.gateway.running import Place, running
from tests.servers import LOCAL, until

pytestmark = pytest.mark.anyio

N_USERS = 50
N_CALLS = 10_000
CODE = "import os, hashlib; result = hashlib.sha256(os.environ.get('HOLDER_KEY', '').encode()).hexdigest()"
HOLDER = {
    "package": LOCAL,
    "command": ["probe"],
    "secrets": [{"name": "holder.key", "env": "HOLDER_KEY"}],
    "limits": {"instances": N_USERS, "start_timeout_s": 120, "call_timeout_s": 120},
}


def value(user: str, n: int = 0) -> str:
    return f"the credential {n} of {user}"


def shown(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


async def ignore(notice: Notice) -> None:
    """No progress is made."""


async def whose(place: Place, user: str) -> str:
    """The digest of the credential that answered this user's call; the reason if none did."""
    caller = Caller(Principal(user), place.gateway.profile)
    params = envelope.encode({"name": Raw(b'"holder__run"'), "arguments": envelope.raw({"code": CODE})})
    reply = await place.gateway.door.call(caller, "tools/call", params, ignore)
    assert isinstance(reply, Reply)
    assert reply.result is not None, reply
    result: dict[str, Any] = envelope.value(reply.result)
    text: str = result["content"][0]["text"]
    return str(json.loads(text))


@pytest.mark.sec("SEC-053")
async def test_fifty_users_never_meet_each_others_credential(tmp_path: Path) -> None:
    users = [f"user-{number}" for number in range(N_USERS)]
    async with running(tmp_path, {"holder": HOLDER}, max_servers=N_USERS + 10) as place:
        vault = place.gateway.vault
        await vault.put("holder.key", b"the shared credential")
        for user in users:
            await vault.put("holder.key", value(user).encode(), user)
        turns = users * (N_CALLS // N_USERS)
        random.Random(53).shuffle(turns)
        waiting = iter(turns)
        answered: list[tuple[str, str]] = []

        async def work() -> None:
            for user in waiting:
                answered.append((user, await whose(place, user)))

        await asyncio.gather(*(work() for _ in range(N_USERS)))
        assert len(answered) == N_CALLS
        assert [user for user, seen in answered if seen != shown(value(user))] == []
        owners = {key.credential.owner for key in place.gateway.pool.servers["holder"].connections}
        assert owners >= set(users)


@pytest.mark.sec("SEC-053")
async def test_a_changed_credential_is_used_by_the_next_call(tmp_path: Path) -> None:
    async with running(tmp_path, {"holder": HOLDER}) as place:
        vault = place.gateway.vault
        await vault.put("holder.key", b"the shared credential")
        await vault.put("holder.key", value("alice").encode(), "alice")
        assert await whose(place, "alice") == shown(value("alice"))
        assert await whose(place, "bob") == shown("the shared credential")
        n_starts = len(place.local.starts)
        await vault.put("holder.key", value("alice", 1).encode(), "alice")
        assert await whose(place, "alice") == shown(value("alice", 1))
        assert await whose(place, "bob") == shown("the shared credential")
        assert len(place.local.starts) == n_starts + 1  # of alice's alone
        await until(
            lambda: len(place.gateway.pool.servers["holder"].connections) == 2, "the old connection has ended", 60
        )
        await vault.remove("holder.key", "alice")
        assert await whose(place, "alice") == shown("the shared credential")
        await vault.put("holder.key", b"another shared credential")
        for user in ("alice", "bob"):
            assert await whose(place, user) == shown("another shared credential")


@pytest.mark.sec("SEC-053")
async def test_what_one_users_connection_lists_of_theirs_is_shown_to_nobody(tmp_path: Path) -> None:
    cabinet = {**HOLDER, "command": ["cabinet"]}
    async with running(tmp_path, {"holder": cabinet}) as place:
        await place.gateway.vault.put("holder.key", value("alice").encode(), "alice")
        caller = Caller(Principal("alice"), place.gateway.profile)
        await place.gateway.door.learn(["holder"], caller=caller)
        listing = place.gateway.pool.listing("holder")
        assert listing is not None
        assert listing.tools
        assert (listing.resources, listing.instructions) == ((), "")


async def test_one_users_bad_credential_keeps_nobody_else_waiting(tmp_path: Path) -> None:
    """A server that does not start with it rests for its owner alone."""
    holder = {**HOLDER, "command": ["picky"]}
    async with running(tmp_path, {"holder": holder}) as place:
        vault = place.gateway.vault
        await vault.put("holder.key", value("alice").encode(), "alice")
        await vault.put("holder.key", b"bad", "mallory")
        assert await whose(place, "alice") == shown(value("alice"))
        for _ in range(3):
            with pytest.raises(Exception, match=r"failed to start|next attempt"):
                await whose(place, "mallory")
        assert await whose(place, "alice") == shown(value("alice"))
        with pytest.raises(Exception, match=r"lockgate secret set holder\.key"):
            await whose(place, "bob")
        assert place.gateway.pool.servers["holder"].failures == 0
