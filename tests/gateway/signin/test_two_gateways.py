"""Two gateways on one PostgreSQL behind one address: who signed in at one is known to the other."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.auth.keys import Keys
from gateway.signin.accounts import Accounts
from tests.gateway.auth.test_guard import bearer
from tests.gateway.auth.test_tokens import HELLO
from tests.gateway.callers import ACCEPT, JSON, Headers, Http
from tests.gateway.running import Place, running
from tests.gateway.signin.browser import PASSWORD, Browser, Program, answered, error
from tests.gateway.signin.test_flow import ONE

pytestmark = pytest.mark.anyio

PUBLIC = "http://localhost:18811"


class Behind(Http):
    """A gateway as a proxy in front of it asks it: by the name that both share."""

    def head(self, method: str, target: str, headers: Headers, length: int) -> bytes:
        return super().head(method, target, [("Host", "localhost:18811"), *headers], length)


@asynccontextmanager
async def both(folder: Path, url: str) -> AsyncIterator[tuple[Place, Place]]:
    passphrase = folder / "passphrase"
    passphrase.write_text("a passphrase for both of them")
    passphrase.chmod(0o600)
    shared = {"auth": "accounts", "public_url": PUBLIC, "database": url, "vault_key": f"passphrase:{passphrase}"}
    for name in ("one", "two"):
        (folder / name).mkdir()
    async with running(folder / "one", ONE, **shared) as one, running(folder / "two", ONE, **shared) as two:
        yield one, two


async def status(place: Place, token: str) -> int:
    headers = [JSON, ACCEPT, bearer(token)]
    return (await Behind(place.url).request("POST", "/mcp", HELLO, headers)).status


async def test_sign_ins_grants_and_keys_are_good_at_both(tmp_path: Path, postgres_url: str) -> None:
    async with both(tmp_path, postgres_url) as (one, two):
        await Accounts(one.gateway.database).create("alice", PASSWORD, groups=["staff"])
        browser, program = Browser(PUBLIC), Program(PUBLIC)
        first, second = Behind(one.url), Behind(two.url)
        # Each step at the other one: registration, sign-in, consent, code, refresh, revocation.
        program.http = second
        assert (await program.register()).status == 201
        browser.http = first
        page = await browser.login(program.address())
        browser.http = second
        allowed = await browser.submit(page, "/oauth/consent", answer="allow")
        program.http = first
        answer = await program.redeem(answered(allowed)["code"])
        tokens = json.loads(answer.body)
        assert answer.status == 200, tokens
        assert [await status(place, tokens["access_token"]) for place in (one, two)] == [200, 200]
        program.http = second
        fresh = json.loads((await program.refresh(tokens["refresh_token"])).body)
        assert [await status(place, fresh["access_token"]) for place in (one, two)] == [200, 200]
        keys = {
            key["kid"]
            for http in (first, second)
            for key in json.loads((await http.request("GET", "/oauth/jwks")).body)["keys"]
        }
        assert len(keys) == 2
        # A code that was spent at one is spent at the other, and what came of it ends.
        assert error(await program.redeem(answered(allowed)["code"])) == "invalid_grant"
        program.http = first
        assert error(await program.refresh(fresh["refresh_token"])) == "invalid_grant"
        key = await Keys(two.gateway.database).create("robot")
        assert [await status(place, key) for place in (one, two)] == [200, 200]
        await Keys(one.gateway.database).revoke("robot")
        with pytest.raises(Exception, match="robot"):
            await Keys(two.gateway.database).create("robot")
        assert await Keys(two.gateway.database).find(key) is None
