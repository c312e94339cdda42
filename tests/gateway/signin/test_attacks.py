"""Attacks on people and on the pages that ask them, as docs/security.md lists them."""

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio
import pytest
from sqlalchemy import select

from gateway.auth.keys import Keys
from gateway.errors import SettingsError
from gateway.signin import accounts as accounts_module
from gateway.signin import clients as clients_module
from gateway.signin import parts as parts_module
from gateway.signin import redirects, tables
from gateway.signin.accounts import Accounts, TooManyTries, Tries
from gateway.signin.authorization import safe_next
from tests.gateway.auth.provider import Provider, provider
from tests.gateway.running import Place, running
from tests.gateway.signin.browser import PASSWORD, REDIRECT, Browser, Program, answered, error, hidden
from tests.gateway.signin.test_flow import ONE, signing_in, works

pytestmark = pytest.mark.anyio

BAD_REDIRECTS = [
    "javascript:alert(1)",
    "JavaScript:alert(1)",
    "data:text/html,x",
    "file:///etc/passwd",
    "vbscript:x",
    "blob:https://a.example/x",
    "view-source:https://a.example",
    "http://app.example/cb",
    "http://10.0.0.1/cb",
    "http://127.0.0.1.evil.example/cb",
    "http://localhost.evil.example/cb",
    "https://user@app.example/cb",
    "https://app.example@evil.example/cb",
    "https://app.example/cb#x",
    "https://app.example\\@evil.example/cb",
    "https://app.example/a/../cb",
    "https://app.example/%2e%2e/cb",
    "https://app.example/./cb",
    "https://app.example:99999/cb",
    "https://app.example:x/cb",
    "https:///cb",
    "https://",
    "https://app.example;frame-ancestors/cb",
    "https://app.example,x/cb",
    "https://*/cb",
    "https://[::1/cb",
    "https:app.example",
    "//app.example/cb",
    "/cb",
    "",
    " https://app.example/cb",
    "https://app.example/cb\n",
    "https://app.example/cb\r\nX: y",
    "https://app.example/c b",
    "https://\u0430pp.example/cb",
    "https://app%2eexample/cb",
    "https://app.example/" + "a" * 2000,
    "ws://127.0.0.1/cb",
    "about:blank",
    "1app:/cb",
]
REGISTERED = ["https://app.example/cb", "http://127.0.0.1:7777/callback", "http://[::1]/cb", "com.example.app:/cb"]
NOT_REGISTERED = [
    "https://app.example/cb/",
    "https://app.example/cb?x",
    "https://app.example/cb/extra",
    "https://app.example/CB",
    "https://APP.example/cb",
    "https://app.example:443/cb",
    "https://app.example:8443/cb",
    "https://sub.app.example/cb",
    "https://app.example.evil.example/cb",
    "https://evil.example/app.example/cb",
    "https://app.example//cb",
    "https://app.example/%63b",
    "http://app.example/cb",
    "http://127.0.0.1:7777/callback/",
    "http://127.0.0.1:7777/other",
    "http://127.0.0.2:7777/callback",
    "http://localhost:7777/callback",
    "http://127.0.0.1:7777/callback?x=1",
    "https://127.0.0.1:7777/callback",
    "http://0.0.0.0:7777/callback",
    "http://[::1]:7777/callback",
    "http://127.0.0.1:99999/callback",
    "com.example.app:/cb2",
    "com.example.app://cb",
    "com.example.other:/cb",
]


@pytest.mark.sec("SEC-033")
def test_addresses_are_compared_to_the_letter_but_for_the_port_at_loopback() -> None:
    for uri in BAD_REDIRECTS:
        assert redirects.problem(uri) is not None, uri
        assert not redirects.matches(uri, [uri]), uri
    for uri in REGISTERED:
        assert redirects.problem(uri) is None, uri
        assert redirects.matches(uri, REGISTERED), uri
    for uri in NOT_REGISTERED:
        assert not redirects.matches(uri, REGISTERED), uri
    for uri in ("http://127.0.0.1:1/callback", "http://127.0.0.1/callback", "http://[::1]:55555/cb"):
        assert redirects.matches(uri, REGISTERED), uri


@pytest.mark.sec("SEC-033")
@pytest.mark.sec("SEC-034")
async def test_nobody_is_sent_to_an_address_that_its_client_did_not_name(tmp_path: Path) -> None:
    async with signing_in(tmp_path) as (_, browser, program):
        await program.register(*REGISTERED)
        await browser.login(program.address())
        for uri in (*BAD_REDIRECTS, *NOT_REGISTERED):
            if uri:
                answer = await browser.get(program.address(redirect_uri=uri))
                assert (answer.status, "location" in answer.headers) == (400, False), uri
        for changes in (
            {"client_id": "nobody"},
            {"client_id": ""},
            {"client_id": "https://127.0.0.1/client"},
            {"client_id": "http://app.example/client"},
            {"redirect_uri": ""},
            {"response_type": "token"},
            {"response_type": "code token"},
            {"response_type": "id_token"},
            {"response_type": ""},
        ):
            answer = await browser.get(program.address(**changes))
            assert (answer.status, "location" in answer.headers) == (400, False), changes
        twice = await browser.get(program.address() + "&redirect_uri=https://evil.example/")
        assert (twice.status, "location" in twice.headers) == (400, False)
        for following in ("https://evil.example", "//evil.example", "/\\evil.example", "/mcp", "/oauth/authorize", "x"):
            assert safe_next(following) == ""
        page = await browser.get("/oauth/login?next=https://evil.example/")
        assert hidden(page, "/oauth/login")["next"] == ""


@asynccontextmanager
async def documents(folder: Path, *lines: str) -> AsyncIterator[tuple[Place, Browser, Provider]]:
    """A gateway that takes client documents from this machine, and a server of such documents."""
    path = folder / "auth.toml"
    path.write_text("\n".join(["accounts = true", "client_loopback = true", *lines]))
    async with provider() as site, running(folder, ONE, auth=str(path)) as place:
        await Accounts(place.gateway.database).create("alice", PASSWORD)
        yield place, Browser(place.url), site


@pytest.mark.sec("SEC-035")
@pytest.mark.sec("SEC-036")
async def test_a_client_is_a_document_at_its_own_address(tmp_path: Path) -> None:
    async with documents(tmp_path) as (place, browser, site):
        id = f"{site.issuer}/client.json"
        good = {"client_id": id, "client_name": "Famous Editor", "redirect_uris": [REDIRECT]}
        site.answers["/client.json"] = good
        program = Program(place.url, id)
        page = (await browser.login(program.address())).body.decode()
        # Whoever runs on this machine could say that it is the famous editor.
        assert "Any program" in page
        assert f"published at <strong>{site.issuer.removeprefix('http://')}</strong>" in page
        assert '<strong id="target">127.0.0.1:7777</strong>' in page
        tokens = await program.tokens(browser)
        assert tokens["access_token"]
        # Asked again although it was allowed a moment ago; its document was fetched once.
        assert (await browser.get(program.address())).status == 200
        assert site.asked["/client.json"] == 1
        bad: list[Any] = [
            {**good, "client_id": id + "x"},
            {**good, "client_id": id.upper()},
            {**good, "redirect_uris": ["javascript:alert(1)"]},
            {**good, "redirect_uris": []},
            {**good, "redirect_uris": "x"},
            {**good, "token_endpoint_auth_method": "client_secret_post"},
            {**good, "client_name": 5},
            {**good, "padding": "a" * 70_000},
            [good],
        ]
        for number, document in enumerate(bad):
            site.answers[f"/bad{number}"] = document
            if isinstance(document, dict) and document["client_id"] == id:
                document["client_id"] = f"{site.issuer}/bad{number}"
            answer = await browser.get(Program(place.url, f"{site.issuer}/bad{number}").address())
            assert (answer.status, "location" in answer.headers) == (400, False), document
        for path in ("/none", "/", "", "/a/../client.json", "/client.json#x", "/client.json?x"):
            answer = await browser.get(Program(place.url, site.issuer + path).address())
            assert answer.status == 400, path


@pytest.mark.sec("SEC-035")
async def test_documents_come_from_public_hosts_that_are_taken_and_not_too_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with documents(tmp_path, 'client_hosts = ["clients.example"]') as (place, browser, site):
        await browser.get("/healthz")
        for id in ("https://other.example/c", "https://clients.example.evil/c", "http://clients.example/c"):
            assert b"taken here" in (await browser.get(Program(place.url, id).address())).body, id
        monkeypatch.setattr(clients_module.Rate, "take", lambda _: False)
        answer = await browser.get(Program(place.url, f"{site.issuer}/client.json").address())
        assert (answer.status, sum(site.asked.values())) == (400, 0)
    monkeypatch.undo()
    (tmp_path / "strict").mkdir()
    async with signing_in(tmp_path / "strict") as (place, browser, _):
        for id in ("https://127.0.0.1/c", "https://[::1]/c", "https://169.254.169.254/c", "http://127.0.0.1/c"):
            answer = await browser.get(Program(place.url, id).address())
            assert (answer.status, "location" in answer.headers) == (400, False), id


@pytest.mark.sec("SEC-037")
async def test_registration_is_bounded_and_what_it_says_is_only_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with signing_in(tmp_path) as (_, browser, program):
        evil = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&{{7*7}}"
        assert (await program.register(client_name=evil, logo_uri="https://evil.example/x.png")).status == 201
        page = (await browser.login(program.address())).body.decode()
        assert "<script" not in page
        assert "<img" not in page
        assert "&lt;script&gt;" in page
        assert "evil.example" not in page
        assert "nobody vouches for its name" in page
        with monkeypatch.context() as patch:
            patch.setattr(clients_module.Rate, "take", lambda _: True)
            await refused_registrations(program)
        monkeypatch.setattr(clients_module, "MAX_CLIENTS", 1)
        assert (await program.register()).status == 429
        monkeypatch.setattr(clients_module, "UNUSED_S", -1.0)  # all of them are old now, and nobody used them
        assert (await program.register()).status == 201
        answers = [(await program.register()).status for _ in range(2 * clients_module.REGISTRATIONS_A_MINUTE + 1)]
        assert 429 in answers


async def refused_registrations(program: Program) -> None:
    for uri in BAD_REDIRECTS:
        assert error(await program.register(uri)) == "invalid_redirect_uri", uri
    wrong: list[dict[str, Any]] = [{"redirect_uris": []}, {"redirect_uris": "x"}, {"redirect_uris": [5]}]
    wrong += [{"redirect_uris": [REDIRECT] * 17}, {"grant_types": ["password"]}, {"grant_types": "x"}]
    wrong += [{"token_endpoint_auth_method": "private_key_jwt"}, {"client_name": ["x"]}]
    for changes in wrong:
        assert (await program.register(**changes)).status == 400, changes
    for body, kind in ((b"[]", "application/json"), (b"x", "application/json"), (b"{}", "text/plain")):
        answer = await program.http.request("POST", "/oauth/register", body, [("Content-Type", kind)])
        assert answer.status == 400
    large = await program.register(client_name="a" * 100_000)
    assert large.status == 400
    long = json.loads((await program.register(client_name="a" * 1000 + "\u202e")).body)
    assert len(long["client_name"]) == clients_module.MAX_NAME


@pytest.mark.sec("SEC-038")
async def test_what_was_allowed_to_one_client_is_of_no_use_to_another(tmp_path: Path) -> None:
    async with signing_in(tmp_path) as (place, browser, program):
        await program.tokens(browser)
        attacker = Program(place.url)
        await attacker.register(client_name="Probe")
        for one in (attacker, program):
            answer = await browser.get(one.address())
            assert (answer.status, "location" in answer.headers) == (200, False)


@pytest.mark.sec("SEC-039")
async def test_consent_cannot_be_framed_forged_or_sent_twice(tmp_path: Path) -> None:
    async with signing_in(tmp_path) as (place, browser, program):
        page = await browser.login(program.address())
        policy = page.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in policy
        assert "default-src 'none'" in policy
        assert "script-src" not in policy
        assert "form-action 'self' http://127.0.0.1:7777" in policy
        assert page.headers["x-frame-options"] == "DENY"
        assert page.headers["cache-control"] == "no-store"
        fields = hidden(page, "/oauth/consent")
        assert (await browser.post("/oauth/consent", {"answer": "allow"})).status == 403
        assert (await browser.post("/oauth/consent", {"ticket": "x" * 43, "answer": "allow"})).status == 403
        foreign = ("Origin", "https://evil.example")
        assert (await browser.post("/oauth/consent", {**fields, "answer": "allow"}, foreign)).status == 403
        assert (await browser.post("/oauth/consent", {**fields, "answer": "allow"}, ("Origin", "null"))).status == 403
        # Another browser, signed in as somebody else or as nobody, holds the ticket.
        await Accounts(place.gateway.database).create("mallory", PASSWORD)
        other = Browser(place.url)
        assert (await other.post("/oauth/consent", {**fields, "answer": "allow"})).status == 403
        await other.login(program.address(), "mallory")
        assert (await other.post("/oauth/consent", {**fields, "answer": "allow"})).status == 403
        # An answer that is not a clear yes is a no; and it was the only one.
        assert (
            answered(await browser.post("/oauth/consent", {**fields, "answer": "perhaps"}))["error"] == "access_denied"
        )
        assert (await browser.post("/oauth/consent", {**fields, "answer": "allow"})).status == 403


@pytest.mark.sec("SEC-040")
async def test_a_login_makes_a_new_session_and_cannot_be_forged(tmp_path: Path) -> None:
    async with signing_in(tmp_path) as (_, browser, program):
        browser.cookies["lockgate-session"] = "chosen-by-somebody-else"
        await browser.login(program.address())
        first = browser.cookies["lockgate-session"]
        assert first != "chosen-by-somebody-else"
        line = next(line for line in browser.set_cookies if line.startswith("lockgate-session"))
        assert "HttpOnly" in line
        assert "SameSite=lax" in line
        old = Browser(program.url)
        old.cookies["lockgate-session"] = first
        page = await browser.get("/oauth/login")
        await browser.submit(page, "/oauth/login", name="alice", password=PASSWORD)
        assert browser.cookies["lockgate-session"] != first
        assert (await old.get(program.address())).status == 303
        # A page elsewhere makes the browser sign in as its own author.
        victim = Browser(program.url)
        forged = {"name": "alice", "password": PASSWORD, "form": hidden(page, "/oauth/login")["form"]}
        answer = await victim.post("/oauth/login", forged)
        assert (answer.status, "lockgate-session" in victim.cookies) == (401, False)


@pytest.mark.sec("SEC-040")
async def test_cookies_behind_https_belong_to_this_host_alone(tmp_path: Path) -> None:
    async with signing_in(tmp_path, public_url="https://gateway.example") as (_, browser, _):
        page = await browser.get("/oauth/login")
        (line,) = browser.set_cookies
        assert line.startswith("__Host-lockgate-form=")
        assert all(word in line for word in ("Secure", "HttpOnly", "Path=/"))
        assert "Domain" not in line
        assert page.status == 200
        document = json.loads((await browser.get("/.well-known/oauth-authorization-server")).body)
        assert document["issuer"] == "https://gateway.example"


@pytest.mark.sec("SEC-046")
async def test_passwords_are_not_guessed_and_accounts_not_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounts_module, "FIRST_WAIT_S", 600.0)
    async with signing_in(tmp_path) as (place, browser, _):
        page = await browser.get("/oauth/login")
        bodies = set()
        for name in ("alice", "nobody", "ALICE ", "' OR 1=1 --"):
            answer = await browser.submit(page, "/oauth/login", name=name, password="wrong-" + name)
            assert answer.status == 401
            bodies.add(re.sub(rb'name="form" value="[^"]*"', b"", answer.body))
        assert len(bodies) == 1
        answers = await asyncio.gather(
            *(browser.submit(page, "/oauth/login", name="alice", password=f"guess-{n}") for n in range(6))
        )
        assert 429 in [answer.status for answer in answers]
        right = await browser.submit(page, "/oauth/login", name="alice", password=PASSWORD)
        assert right.status == 429
        assert int(right.headers["retry-after"]) >= 1
        audited = json.dumps(place.audit())
        assert "guess-" not in audited
        assert PASSWORD not in audited
        async with place.gateway.database.begin() as connection:
            hash = (await connection.execute(select(tables.accounts.c.password))).scalar_one()
        assert hash.startswith("$argon2id$v=19$m=65536,t=3,p=4$")


@pytest.mark.sec("SEC-046")
async def test_signing_in_well_costs_an_address_nothing_and_a_proxy_is_nobodys_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounts_module, "FREE_TRIES_OF_ADDRESS", 2)
    monkeypatch.setattr(accounts_module, "FIRST_WAIT_S", 600.0)
    async with signing_in(tmp_path) as (place, _, _):
        accounts = Accounts(place.gateway.database)
        for _ in range(3):
            assert await accounts.prove("alice", PASSWORD, "10.0.0.1") is not None
        for number in range(3):
            assert await accounts.prove(f"nobody-{number}", "wrong password", "127.0.0.1") is None
        for number in range(2):
            assert await accounts.prove(f"someone-{number}", "wrong password", "10.0.0.1") is None
        with pytest.raises(TooManyTries):
            await accounts.prove("alice", PASSWORD, "10.0.0.1")
        assert await accounts.prove("alice", PASSWORD, "10.0.0.2") is not None


@pytest.mark.sec("SEC-046")
async def test_unknown_accounts_take_the_same_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with signing_in(tmp_path) as (place, _, _):
        verified = []
        real = accounts_module._verify

        async def counted(hash: str, password: str) -> bool:
            verified.append(hash.rpartition("$")[0].rpartition("$")[0])
            return await real(hash, password)

        monkeypatch.setattr(accounts_module, "_verify", counted)
        accounts = Accounts(place.gateway.database)
        for name in ("alice", "nobody"):
            assert await accounts.prove(name, "wrong password", "10.0.0.1") is None
        assert len(verified) == 2
        assert len(set(verified)) == 1


@pytest.mark.sec("SEC-046")
def test_each_failure_doubles_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(accounts_module.time, "monotonic", lambda: now)
    tries, who = Tries(), ("alice", 3)
    waits = []
    for _ in range(16):
        try:
            tries.check(who)
        except TooManyTries as exc:
            waits.append(exc.wait_s)
            now += exc.wait_s
            tries.check(who)
        tries.failed(who)
    assert waits[:4] == [2.0, 4.0, 8.0, 16.0]
    assert waits[-1] == accounts_module.MAX_WAIT_S
    tries.check(("bob", 3))
    for number in range(accounts_module.MAX_WATCHED + 10):
        tries.failed((str(number), 3))
    assert len(tries._failures) == accounts_module.MAX_WATCHED


async def test_the_first_administrator_needs_the_code_of_this_machine(tmp_path: Path) -> None:
    async with running(tmp_path, ONE, auth="accounts") as place:
        accounts = Accounts(place.gateway.database)
        browser = Browser(place.url)
        assert (await browser.get("/oauth/login")).headers["location"] == "/oauth/setup"
        old, code = await accounts.bootstrap_code(), await accounts.bootstrap_code()
        page = await browser.get("/oauth/setup")
        good = {"name": "root", "password": PASSWORD}
        for bad in ("", "0000", old):
            assert (await browser.submit(page, "/oauth/setup", code=bad, **good)).status == 400
        assert (await browser.submit(page, "/oauth/setup", code=code, name="root", password="short")).status == 400
        assert (await browser.submit(page, "/oauth/setup", code=code, name="a:b", password=PASSWORD)).status == 400
        assert (await Browser(place.url).post("/oauth/setup", {"code": code, **good})).status == 403
        made = await browser.submit(page, "/oauth/setup", code=code.lower(), **good)
        assert made.status == 303
        (account,) = await accounts.list()
        assert (account.name, account.is_admin) == ("root", True)
        assert (await browser.get("/oauth/setup")).status == 404
        assert (await browser.submit(page, "/oauth/setup", code=code, name="two", password=PASSWORD)).status == 400
        with pytest.raises(SettingsError, match="accounts already"):
            await accounts.bootstrap_code()
        # The administrator's client may ask for the admin API.
        program = Program(place.url)
        await program.register()
        tokens = await program.tokens(browser, resource=f"{place.url}/admin", scope="admin")
        bearer = [("Authorization", f"Bearer {tokens['access_token']}")]
        assert (await place.http.request("GET", "/admin/servers", headers=bearer)).status == 200
        assert (await place.http.request("GET", "/v1/models", headers=bearer)).status == 401


async def test_nonsense_is_refused_without_an_accident_and_does_not_fill_the_audit_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts_module, "MAX_RECORDS_A_MINUTE", 3)
    async with signing_in(tmp_path) as (place, browser, _):
        page = await browser.get("/oauth/login")
        assert (await browser.post("/oauth/login", {"form": "\u00e9"})).status == 401
        for id in ("https://[/x", "https://[x]:y/", "http://\u00e9/"):
            assert (await browser.get(f"/oauth/authorize?client_id={quote(id)}")).status == 400
        for n in range(12):
            await browser.submit(page, "/oauth/login", name="alice", password=f"wrong {n}")
        failures = [one for one in place.audit() if one["method"] == "signin" and one["outcome"] != "ok"]
        assert 3 <= len(failures) <= 6  # a minute may end meanwhile


@pytest.mark.sec("SEC-045")
async def test_no_token_is_traded_for_one_that_says_something_else(tmp_path: Path) -> None:
    kind = "urn:ietf:params:oauth:token-type:"
    async with signing_in(tmp_path) as (place, browser, program):
        tokens = await program.tokens(browser)
        mine, key = tokens["access_token"], await Keys(place.gateway.database).create("robot", scopes=["admin"])
        before = [record for record in place.audit() if record["name"] == "token issued"]
        subjects = [(mine, "access_token"), (mine, "jwt"), (mine, "id_token"), (mine, "saml2")]
        subjects += [(tokens["refresh_token"], "refresh_token"), (key, "access_token")]
        for subject, subject_type in subjects:
            for changes in (
                {"audience": "https://other.example"},
                {"resource": f"{place.url}/admin", "scope": "admin"},
                {"actor_token": mine, "actor_token_type": kind + "access_token"},
                {"actor_token": key, "actor_token_type": kind + "jwt", "scope": "mcp model admin"},
                {"requested_token_type": kind + "id-jag", "audience": place.url},
            ):
                form = {"grant_type": "urn:ietf:params:oauth:grant-type:token-exchange", "subject_token": subject}
                answer = await program.ask("/oauth/token", form | {"subject_token_type": kind + subject_type} | changes)
                assert (answer.status, error(answer)) == (400, "unsupported_grant_type"), changes
        for name in ("urn:ietf:params:oauth:grant-type:jwt-bearer", "urn:ietf:params:oauth:grant-type:saml2-bearer"):
            answer = await program.ask("/oauth/token", {"grant_type": name, "assertion": mine})
            assert (answer.status, error(answer)) == (400, "unsupported_grant_type")
        document = json.loads((await browser.get("/.well-known/oauth-authorization-server")).body)
        assert not [one for one in document["grant_types_supported"] if "exchange" in one or "bearer" in one]
        assert [record for record in place.audit() if record["name"] == "token issued"] == before


@pytest.mark.sec("SEC-037")
async def test_a_stranger_takes_registrations_from_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients_module.time, "monotonic", lambda: 1000.0)
    shares = clients_module.Shares(30)
    assert [shares.take("10.0.0.1") for _ in range(1000)].count(True) == 10
    assert shares.take("10.0.0.2")
    assert [shares.take("127.0.0.1") for _ in range(1000)].count(True) == 19
    assert not shares.take("10.0.0.3")
    assert len(shares._counts) == 2
    monkeypatch.setattr(clients_module.time, "monotonic", lambda: 1060.0)
    assert shares.take("10.0.0.1")
    monkeypatch.undo()
    monkeypatch.setattr(clients_module, "MAX_CLIENTS", 2)
    async with signing_in(tmp_path) as (place, browser, program):
        await program.tokens(browser)
        unused, late = Program(place.url), Program(place.url)
        assert (await unused.register()).status == 201
        # There is room for two: the one that somebody signed in with stays, the other one gives way.
        assert (await late.register()).status == 201
        assert (await browser.get(program.address())).status == 200
        assert (await browser.get(unused.address())).status == 400
        assert (await browser.get(late.address())).status == 200


async def test_another_password_ends_what_clients_may_do(tmp_path: Path) -> None:
    async with signing_in(tmp_path) as (place, browser, program):
        tokens = await program.tokens(browser)
        await Keys(place.gateway.database).create("laptop", account="alice")
        command = [str(Path(sys.executable).with_name("lockgate")), "user", "passwd", "alice", "--password-stdin"]
        env = {**os.environ, "LOCKGATE_STATE_DIR": str(place.gateway.settings.state_dir), "LOCKGATE_AUTH": "accounts"}
        done = await anyio.run_process(command, env=env, input=b"another password\n", check=False)
        assert done.returncode == 0, done.stderr
        assert b"laptop" in done.stderr
        assert not await works(place, tokens["access_token"])
        assert error(await program.refresh(tokens["refresh_token"])) == "invalid_grant"
        assert (await browser.get(program.address())).headers["location"].startswith("/oauth/login")
        listed = await anyio.run_process([*command[:2], "passkeys", "alice", "--json"], env=env)
        assert json.loads(listed.stdout) == []
