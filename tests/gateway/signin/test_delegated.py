"""Grants of people who sign in at a provider: they end by themselves, as nobody says when somebody is removed there."""

from pathlib import Path

import pytest

from gateway.auth.configuration import Login
from gateway.database import Database
from gateway.signin.accounts import Accounts
from gateway.signin.grants import DELEGATED_S, Grants

pytestmark = pytest.mark.anyio


async def test_a_delegated_grant_ends_after_its_time_and_one_of_an_account_here_does_not(tmp_path: Path) -> None:
    async with Database(f"sqlite:///{tmp_path / 'lockgate.db'}") as database:
        accounts = Accounts(database)
        await accounts.note_provider_user("corp:alice", ())
        await accounts.create("bob", "a long password")
        usual, over = (Grants(database, tmp_path / "rotation.key", life) for life in (DELEGATED_S, 0.0))
        ids = {}
        for name in ("corp:alice", "bob"):
            ids[name] = await usual.create(
                subject=name,
                account=name,
                client="client",
                client_name="client",
                resource="http://127.0.0.1/mcp",
                scopes=frozenset({"mcp"}),
            )
        assert await usual.get(ids["corp:alice"]) is not None
        assert await over.get(ids["corp:alice"]) is None
        assert await over.get(ids["bob"]) is not None


def test_the_time_is_a_day_where_nothing_is_said() -> None:
    login = Login(name="corp", issuer="https://id.example.com", client_id="lockgate")
    assert login.again_after_h * 3600 == DELEGATED_S
