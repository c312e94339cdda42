"""Passkeys, made and used by a real browser with an authenticator of its own, and what is not taken for one."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from gateway.database import Database
from gateway.errors import SettingsError
from gateway.signin import tables
from gateway.signin.accounts import Accounts
from gateway.signin.passkeys import PasskeyRefused, Passkeys, Place, challenge, place_of
from tests.e2e.gateways import missing
from tests.gateway.auth.test_guard import bearer
from tests.gateway.signin.browser import FORM, PASSWORD, REDIRECT, Browser, hidden
from tests.gateway.signin.test_flow import signing_in
from tests.gateway.signin.test_strangers import folder, script

pytestmark = pytest.mark.anyio


@pytest.mark.node
@pytest.mark.sec("SEC-046")
async def test_a_real_browser_makes_a_passkey_and_signs_in_with_it(tmp_path: Path, cache_dir: Path) -> None:
    installed = folder("oauth", "puppeteer-core", cache_dir)
    chromium = shutil.which("chromium")
    if chromium is None:
        missing("there is no chromium")
    async with signing_in(tmp_path) as (place, _, program):
        origin = place.url.replace("127.0.0.1", "localhost")
        principals: list[Any] = []
        known = place.service.endpoint.principal_of
        place.service.endpoint.principal_of = lambda scope: principals.append(known(scope)) or principals[-1]
        fields = {"name": "alice", "password": PASSWORD, "address": origin + program.address()}
        async with script("passkeys.mjs", installed, chromium, origin, json.dumps(fields)) as browser:
            seen = await browser.hear()
        titles = ["Sign in", "Passkeys", "Add a passkey", "Passkeys"]  # by password, then adding
        titles += ["Sign in", "Sign in with a passkey", "Allow this client?"]  # with the passkey
        titles += ["Sign in", "Sign in with a passkey"]  # not unlocked
        titles += ["Sign in", "Sign in with a passkey", "Sign in"]  # a copy
        assert seen["titles"] == [f"{title} · Lockgate" for title in titles]
        assert seen["list"] == ["laptop"]
        assert "script-src 'sha256-" in seen["policies"][0]
        assert "unsafe" not in seen["policies"][0]
        assert seen["alerts"] == [
            "This did not work (NotAllowedError). You can try again.",
            "The passkey was not taken.",
        ]
        body, cookies = seen["replay"]
        thief = Browser(origin)
        thief.cookies = {name: value for name, value in cookies.items() if "form" in name}
        again = await thief.send("POST", "/oauth/login/passkey/used", body.encode(), FORM)
        assert (again.status, "lockgate-session" in thief.cookies) == (401, False)
        code = seen["sent"].partition("code=")[2].partition("&")[0]
        assert seen["sent"].startswith(REDIRECT)
        tokens = json.loads((await program.redeem(code)).body)
        session = await place.session(always=[bearer(tokens["access_token"])])
        await session.call("a__pid")
        # Policy sees how it was proved: by the device and by what opens it.
        assert (principals[-1].id, principals[-1].strength) == ("user:alice", "multi")
        names = [(record["name"], record["outcome"]) for record in place.audit() if "passkey" in record["name"]]
        assert names == [("passkey added", "ok"), ("passkey", "ok"), ("passkey", "denied")]
        (kept,) = await Passkeys(place.gateway.database).of("alice")
        assert kept.used_at is not None
        # By password it is a password still.
        tokens = await program.tokens(Browser(place.url))
        session = await place.session(always=[bearer(tokens["access_token"])])
        assert principals[-1].strength == "password"


async def test_passkeys_belong_to_names_that_the_operator_gave() -> None:
    local = tuple(f"http://{host}:8811" for host in ("127.0.0.1", "localhost", "[::1]"))
    assert place_of(local, "localhost:8811") == Place("localhost", "http://localhost:8811")
    for host in ("127.0.0.1:8811", "[::1]:8811", "evil.example", "localhost", "localhost:1", ""):
        assert place_of(local, host) is None, host
    public = ("https://gateway.example:8811",)
    for host in ("gateway.example:8811", "evil.example", "localhost:8811"):
        assert place_of(public, host) == Place("gateway.example", "https://gateway.example:8811")
    assert place_of(("http://gateway.example",), "gateway.example") is None
    assert place_of(("https://192.0.2.1",), "192.0.2.1") is None


@pytest.mark.sec("SEC-046")
async def test_forms_of_passkeys_belong_to_their_browser_and_need_the_password(tmp_path: Path) -> None:
    async with signing_in(tmp_path) as (place, _, _):
        local = Browser(place.url.replace("127.0.0.1", "localhost"))
        page = await local.login("/oauth/passkeys")
        assert "no passkey" in page.body.decode()
        wrong = await local.submit(page, "/oauth/passkeys/new", name="x", password="wrong password")
        assert (wrong.status, "The password is wrong" in wrong.body.decode()) == (400, True)
        # Each form is good once, for its session only.
        again = await local.submit(page, "/oauth/passkeys/new", name="x", password=PASSWORD)
        assert again.status == 403
        other = Browser(place.url.replace("127.0.0.1", "localhost"))
        mine = await local.get("/oauth/passkeys")
        theirs = await other.submit(mine, "/oauth/passkeys/new", name="x", password=PASSWORD)
        assert theirs.status == 403
        made = await local.submit(mine, "/oauth/passkeys/new", name="x", password=PASSWORD)
        assert (made.status, "Add a passkey" in made.body.decode()) == (200, True)
        form = made.body.decode()
        ticket = form.partition('name="ticket" value="')[2].partition('"')[0]
        for credential in ("", "{}", "[]", "x" * 100, '{"rawId":"AA","response":{}}', "[" * 5000):
            answer = await local.post("/oauth/passkeys/made", {"ticket": ticket, "credential": credential})
            assert answer.status in (400, 403), credential
        assert await Passkeys(place.gateway.database).of("alice") == []
        # Signing in: an answer without its question, or of another browser, is none.
        fresh = Browser(place.url.replace("127.0.0.1", "localhost"))
        login = await fresh.get("/oauth/login")
        asked = await fresh.submit(login, "/oauth/login/passkey")
        ticket = asked.body.decode().partition('name="ticket" value="')[2].partition('"')[0]
        for credential in ("{}", '{"rawId":"AA","response":{"userHandle":"AA"}}', "nonsense"):
            answer = await fresh.post("/oauth/login/passkey/used", {"ticket": ticket, "credential": credential})
            assert answer.status == 401
            assert "lockgate-session" not in fresh.cookies
        # At an address without a name nothing is offered.
        plain = await Browser(place.url).get("/oauth/login")
        assert "passkey" not in plain.body.decode()
        assert "script" not in hidden(plain, "/oauth/login")
        assert "script-src" not in plain.headers["content-security-policy"]


async def test_passkeys_are_named_listed_and_removed(tmp_path: Path) -> None:
    async with Database(f"sqlite:///{tmp_path}/db") as database:
        await Accounts(database).create("alice", PASSWORD)
        passkeys, local = Passkeys(database), Place("localhost", "http://localhost")
        for number in range(2):
            row = {"id": f"{number:02}", "account": "alice", "name": f"key-{number}", "public_key": "00"}
            async with database.begin() as connection:
                await connection.execute(tables.passkeys.insert().values(**row, sign_count=0, created_at=float(number)))
        assert [one.name for one in await passkeys.of("alice")] == ["key-0", "key-1"]
        assert {"id": "AQ", "type": "public-key"}.items() <= json.loads(
            await passkeys.creation(local, "alice", challenge())
        )["excludeCredentials"][1].items()
        await passkeys.remove("alice", "key-0")
        assert [one.name for one in await passkeys.of("alice")] == ["key-1"]
        with pytest.raises(SettingsError, match="has no passkey"):
            await passkeys.remove("bob", "key-1")
        for id, why in (("Bw", "not known"), ("AQ", "another account")):
            answer = json.dumps({"rawId": id, "response": {"userHandle": "AA"}})
            with pytest.raises(PasskeyRefused, match=why):
                await passkeys.prove(local, challenge(), answer)
