"""The authorization server, walked through as browsers and clients do: what is given, to whom, and for how long."""

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.database import Database
from gateway.signin import endpoint
from gateway.signin import grants as grants_module
from gateway.signin.accounts import Accounts
from gateway.signin.signing import SigningKeys
from gateway.signin.tickets import Tickets, hashed
from tests.gateway.auth.test_guard import ask, bearer
from tests.gateway.running import Place, running
from tests.gateway.signin.browser import PASSWORD, Browser, Program, answered, error

pytestmark = pytest.mark.anyio

ONE = {"a": ["friendly"]}


@asynccontextmanager
async def signing_in(folder: Path, **changes: Any) -> AsyncIterator[tuple[Place, Browser, Program]]:
    """A gateway with the account alice, her browser, and a client that registered itself."""
    async with running(folder, ONE, **{"auth": "accounts", **changes}) as place:
        await Accounts(place.gateway.database).create("alice", PASSWORD, groups=["staff"])
        program = Program(place.url)
        assert (await program.register()).status == 201
        yield place, Browser(place.url), program


async def works(place: Place, token: str) -> bool:
    return (await ask(place, "/mcp", bearer(token))).status != 401


async def test_a_client_registers_asks_and_calls_a_tool(tmp_path: Path) -> None:
    async with signing_in(tmp_path) as (place, browser, program):
        page = await browser.login(program.address())
        assert (page.status, "Probe" in page.body.decode(), "127.0.0.1:7777" in page.body.decode()) == (200, True, True)
        sent = answered(await browser.submit(page, "/oauth/consent", answer="allow"))
        assert (sent["state"], sent["iss"]) == ("xyz", place.url)
        answer = await program.redeem(sent["code"])
        assert answer.headers["cache-control"] == "no-store"
        tokens = json.loads(answer.body)
        assert (tokens["token_type"], tokens["scope"]) == ("Bearer", "mcp")
        session = await place.session(always=[bearer(tokens["access_token"])])
        assert await session.call("a__pid")
        calls = [record for record in place.audit() if record["method"] == "tools/call"]
        assert [record["principal"] for record in calls] == ["user:alice"]
        assert (await ask(place, "/v1/models", bearer(tokens["access_token"]))).status == 401
        assert (await ask(place, "/admin/servers", bearer(tokens["access_token"]))).status == 401
        names = [record["name"] for record in place.audit() if record["method"] == "signin"]
        assert names[:5] == ["client registered", "password", "consent given", "token issued", "token"]
        text = (place.gateway.settings.state_dir / "audit.jsonl").read_text()
        assert not any(secret in text for secret in (sent["code"], *map(str, tokens.values())) if len(secret) > 10)
        for file in place.gateway.settings.state_dir.glob("lockgate.db*"):
            data = file.read_bytes()
            assert not any(one.encode() in data for one in (sent["code"], tokens["refresh_token"], PASSWORD))
            assert not any(value.encode() in data for value in browser.cookies.values())


@pytest.mark.sec("SEC-031")
async def test_no_code_without_the_challenge_that_belongs_to_it(tmp_path: Path) -> None:
    async with signing_in(tmp_path) as (_, browser, program):
        await browser.login(program.address())
        for changes in (
            {"code_challenge": "", "code_challenge_method": ""},
            {"code_challenge_method": "plain"},
            {"code_challenge_method": ""},
            {"code_challenge": "short"},
            {"code_challenge": "x" * 44},
        ):
            sent = answered(await browser.get(program.address(**changes)))
            assert (sent["error"], sent["state"], "code" in sent) == ("invalid_request", "xyz", False), changes
            assert sent["iss"]
        for verifier in ("", "x" * 43, program.challenge, program.verifier[:-1], program.verifier + "x", "\u00e9" * 43):
            page = await browser.get(program.address())
            code = answered(await browser.submit(page, "/oauth/consent", answer="allow"))["code"]
            wrong = await program.redeem(code, code_verifier=verifier)
            assert (wrong.status, error(wrong)) == (400, "invalid_grant"), verifier
            assert error(await program.redeem(code)) == "invalid_grant"


@pytest.mark.sec("SEC-032")
async def test_a_code_is_good_once_and_a_second_use_ends_what_came_of_it(tmp_path: Path) -> None:
    async with signing_in(tmp_path) as (place, browser, program):
        page = await browser.login(program.address())
        code = answered(await browser.submit(page, "/oauth/consent", answer="allow"))["code"]
        answers = await asyncio.gather(*(program.redeem(code) for _ in range(50)))
        good = [answer for answer in answers if answer.status == 200]
        assert len(good) <= 1
        if good:
            assert not await works(place, json.loads(good[0].body)["access_token"])
        page = await browser.get(program.address())
        code = answered(await browser.submit(page, "/oauth/consent", answer="allow"))["code"]
        tokens = json.loads((await program.redeem(code)).body)
        assert await works(place, tokens["access_token"])
        assert error(await program.redeem(code)) == "invalid_grant"
        assert not await works(place, tokens["access_token"])
        assert error(await program.refresh(tokens["refresh_token"])) == "invalid_grant"


@pytest.mark.sec("SEC-032")
async def test_a_ticket_is_taken_once_by_a_thousand_who_come_together(tmp_path: Path) -> None:
    async with signing_in(tmp_path) as (place, _, _):
        tickets = Tickets(place.gateway.database)
        text = await tickets.issue("code", {"x": 1}, 60)
        taken = await asyncio.gather(*(tickets.take("code", text) for _ in range(1000)))
        assert [one for one in taken if one is not None] == [{"x": 1}]
        late = await tickets.issue("code", {}, 0)
        assert await tickets.take("code", late) is None
        assert await tickets.take("other", await tickets.issue("code", {}, 60)) is None


@pytest.mark.sec("SEC-032")
async def test_a_code_is_bound_to_client_address_and_resource(tmp_path: Path) -> None:
    async with signing_in(tmp_path) as (place, browser, program):
        other = Program(place.url)
        await other.register()
        page = await browser.login(program.address())
        for redeem in (
            lambda code: other.redeem(code, code_verifier=program.verifier),
            lambda code: program.redeem(code, redirect_uri="http://127.0.0.1:7777/other"),
            lambda code: program.redeem(code, resource=f"{place.url}/v1"),
        ):
            page = await browser.get(program.address())
            code = answered(await browser.submit(page, "/oauth/consent", answer="allow"))["code"]
            assert error(await redeem(code)) in ("invalid_grant", "invalid_target")
        for resource in (f"{place.url}/nonsense", f"{place.url}/mcp/", "https://evil.example/mcp", place.url):
            assert answered(await browser.get(program.address(resource=resource)))["error"] == "invalid_target"
        assert answered(await browser.get(program.address(scope="model")))["error"] == "invalid_scope"
        # Nobody but an administrator gets tokens for the admin API.
        refused = await browser.get(program.address(resource=f"{place.url}/admin", scope="admin"))
        assert answered(refused)["error"] == "access_denied"


@pytest.mark.sec("SEC-041")
async def test_a_refresh_token_is_replaced_and_its_second_use_ends_the_grant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grants_module, "GRACE_S", 600.0)
    async with signing_in(tmp_path) as (place, browser, program):
        tokens = await program.tokens(browser)
        first = tokens["refresh_token"]
        both = await asyncio.gather(program.refresh(first), program.refresh(first))
        following = {json.loads(answer.body)["refresh_token"] for answer in both}
        # Two at once, or one that did not get its answer, get the same token.
        assert [answer.status for answer in both] == [200, 200]
        assert len(following) == 1
        (second,) = following
        assert second != first
        fresh = json.loads((await program.refresh(second)).body)
        assert await works(place, fresh["access_token"])
        # The first is now two steps back: somebody else has it.
        assert error(await program.refresh(first)) == "invalid_grant"
        assert error(await program.refresh(fresh["refresh_token"])) == "invalid_grant"
        assert not await works(place, fresh["access_token"])
        reused = [record for record in place.audit() if record["name"] == "refresh"]
        assert [record["outcome"] for record in reused] == ["denied"]
        # After the grace a second use is a theft, even by the same client.
        tokens = await program.tokens(browser)
        assert (await program.refresh(tokens["refresh_token"])).status == 200
        monkeypatch.setattr(grants_module, "GRACE_S", -1.0)
        assert error(await program.refresh(tokens["refresh_token"])) == "invalid_grant"
        assert not await works(place, tokens["access_token"])


@pytest.mark.sec("SEC-042")
async def test_a_refresh_never_gives_more(tmp_path: Path) -> None:
    async with signing_in(tmp_path) as (place, browser, program):
        other = Program(place.url)
        await other.register()
        token = (await program.tokens(browser, scope="mcp offline_access"))["refresh_token"]
        assert error(await program.refresh(token, scope="mcp model")) == "invalid_scope"
        assert error(await program.refresh(token, scope="admin")) == "invalid_scope"
        assert error(await program.refresh(token, resource=f"{place.url}/v1")) == "invalid_target"
        assert error(await other.refresh(token)) == "invalid_grant"
        assert error(await program.refresh(token + "x")) == "invalid_grant"
        answer = await program.refresh(token, scope="mcp", resource=f"{place.url}/mcp")
        assert (answer.status, json.loads(answer.body)["scope"]) == (200, "mcp")


async def test_a_client_gives_a_token_back_and_a_disabled_account_loses_all(tmp_path: Path) -> None:
    async with signing_in(tmp_path) as (place, browser, program):
        other = Program(place.url)
        await other.register()
        for kind in ("access_token", "refresh_token"):
            tokens = await program.tokens(browser)
            assert await works(place, tokens["access_token"])
            assert (await other.ask("/oauth/revoke", {"token": tokens[kind]})).status == 200
            assert await works(place, tokens["access_token"])
            assert (await program.ask("/oauth/revoke", {"token": tokens[kind]})).status == 200
            assert not await works(place, tokens["access_token"])
            assert (await program.ask("/oauth/revoke", {"token": tokens[kind]})).status == 200
        tokens = await program.tokens(browser)
        assert await works(place, tokens["access_token"])
        await Accounts(place.gateway.database).change("alice", disabled_at=time.time())
        front: Any = place.service._server.config.app
        front._router.guard.authenticator.forget({"user:alice"})
        assert not await works(place, tokens["access_token"])
        assert error(await program.refresh(tokens["refresh_token"])) == "invalid_grant"
        assert (await browser.get(program.address())).headers["location"].startswith("/oauth/login")


async def test_tokens_of_an_earlier_key_stay_good_and_another_gateway_knows_them(tmp_path: Path) -> None:
    async with signing_in(tmp_path) as (place, browser, program):
        front: Any = place.service._server.config.app
        own = next(iter(front._router.guard.authenticator._trusted.values()))
        before = (await program.tokens(browser))["access_token"]
        await own._keys.rotate()
        after = (await program.tokens(browser))["access_token"]
        front._router.guard.authenticator.forget_all()
        assert await works(place, before)
        assert await works(place, after)
        keys = json.loads((await ask(place, "/oauth/jwks")).body)["keys"]
        assert len(keys) == 2
        assert all("d" not in key and key["alg"] == "ES256" for key in keys)
        files = list((place.gateway.settings.state_dir / "signing").glob("*.json"))
        assert [oct(file.stat().st_mode & 0o777) for file in files] == ["0o600"]
        secret = json.loads(files[0].read_text())["d"].encode()
        for file in place.gateway.settings.state_dir.glob("lockgate.db*"):
            assert secret not in file.read_bytes()


async def test_a_token_can_be_asked_about_by_those_who_may(tmp_path: Path) -> None:
    async with signing_in(tmp_path) as (place, browser, program):
        service, other = Program(place.url), Program(place.url)
        await service.register(token_endpoint_auth_method="client_secret_post")
        await other.register(token_endpoint_auth_method="client_secret_basic")
        tokens = await service.tokens(browser)
        asked = json.loads((await service.ask("/oauth/introspect", {"token": tokens["access_token"]})).body)
        assert (asked["active"], asked["sub"], asked["aud"]) == (True, "user:alice", f"{place.url}/mcp")
        strange = await other.ask("/oauth/introspect", {"token": tokens["access_token"]})
        assert json.loads(strange.body) == {"active": False}
        assert (await program.ask("/oauth/introspect", {"token": tokens["access_token"]})).status == 401
        admin = bearer(place.service.running.admin_token)
        for token, active in ((tokens["access_token"], True), ("x", False), (tokens["refresh_token"], False)):
            answer = await Program(place.url).ask("/oauth/introspect", {"token": token}, admin)
            assert json.loads(answer.body)["active"] is active
        service.secret += "x"
        assert error(await service.refresh(tokens["refresh_token"])) == "invalid_client"
        service.secret = ""
        assert error(await service.refresh(tokens["refresh_token"])) == "invalid_client"


async def test_a_machine_trades_its_key_for_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with signing_in(tmp_path) as (place, _, _):
        front: Any = place.service._server.config.app
        keys = front._router.guard.authenticator._keys
        key = await keys.create("robot", groups=["robots"])
        robot = Program(place.url, "robot", key)
        answer = await robot.ask("/oauth/token", {"grant_type": "client_credentials", "scope": "mcp"})
        tokens = json.loads(answer.body)
        assert "refresh_token" not in tokens
        session = await place.session(always=[bearer(tokens["access_token"])])
        await session.call("a__pid")
        assert place.audit()[-1]["principal"] == "key:robot"
        wider = {"grant_type": "client_credentials", "scope": "model", "resource": f"{place.url}/v1"}
        assert error(await robot.ask("/oauth/token", wider)) == "invalid_scope"
        for id, secret in (("other", key), ("robot", key[:-1]), ("robot", ""), ("", key)):
            answer = await Program(place.url, id, secret).ask("/oauth/token", {"grant_type": "client_credentials"})
            assert (answer.status, error(answer)) == (401, "invalid_client")
        # The next token makes away with what is left of old ones.
        monkeypatch.setattr(grants_module, "KEEP_OWN_S", -1.0)
        again = json.loads((await robot.ask("/oauth/token", {"grant_type": "client_credentials"})).body)
        front._router.guard.authenticator.forget_all()
        assert not await works(place, tokens["access_token"])
        tokens = again
        assert await works(place, tokens["access_token"])
        await keys.revoke("robot")
        front._router.guard.authenticator.forget_all()
        assert not await works(place, tokens["access_token"])


async def test_a_device_gets_its_tokens_when_somebody_enters_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "POLL_S", 600.0)
    async with signing_in(tmp_path) as (place, browser, program):

        async def begin() -> tuple[str, str]:
            asked = json.loads((await program.ask("/oauth/device_authorization", {"scope": "mcp"})).body)
            assert asked["verification_uri"] == f"{place.url}/oauth/device"
            return asked["device_code"], asked["user_code"]

        async def poll(code: str) -> Any:
            fields = {"grant_type": "urn:ietf:params:oauth:grant-type:device_code", "device_code": code}
            return json.loads((await program.ask("/oauth/token", fields)).body)

        code, shown = await begin()
        assert (await poll(code))["error"] == "authorization_pending"
        assert (await poll(code))["error"] == "slow_down"
        page = await browser.login("/oauth/device")
        wrong = await browser.submit(page, "/oauth/device", code="BBBB-BBBB")
        assert wrong.status == 400
        consent = await browser.submit(page, "/oauth/device", code=shown.lower())
        assert "Probe" in consent.body.decode()
        assert (await browser.submit(page, "/oauth/device", code=shown)).status == 400
        done = await browser.submit(consent, "/oauth/consent", answer="allow")
        assert done.status == 200
        tokens = await poll(code)
        assert await works(place, tokens["access_token"])
        assert (await poll(code))["error"] == "expired_token"
        code, shown = await begin()
        consent = await browser.submit(page, "/oauth/device", code=shown)
        await browser.submit(consent, "/oauth/consent", answer="deny")
        assert (await poll(code))["error"] == "access_denied"
        other = Program(place.url)
        await other.register()
        code, shown = await begin()
        program.id = other.id
        assert (await poll(code))["error"] == "expired_token"


async def test_the_metadata_is_what_strict_clients_want(tmp_path: Path) -> None:
    async with signing_in(tmp_path) as (place, _, _):
        for path in ("/.well-known/oauth-authorization-server", "/.well-known/openid-configuration"):
            document = json.loads((await ask(place, path)).body)
            assert document["issuer"] == place.url
            assert document["code_challenge_methods_supported"] == ["S256"]
            assert document["authorization_response_iss_parameter_supported"] is True
            assert document["client_id_metadata_document_supported"] is True
            for name, value in document.items():
                if name.endswith(("_endpoint", "_uri")):
                    assert value.startswith(f"{place.url}/oauth/"), name
                    assert (await ask(place, value.removeprefix(place.url))).status in (200, 303, 400, 405), name
        resource = json.loads((await ask(place, "/.well-known/oauth-protected-resource/mcp")).body)
        assert resource["authorization_servers"] == [place.url]


async def test_a_key_of_an_account_acts_as_the_account_and_ends_with_it(tmp_path: Path) -> None:
    async with signing_in(tmp_path) as (place, _, _):
        front: Any = place.service._server.config.app
        authenticator = front._router.guard.authenticator
        key = await authenticator._keys.create("laptop", account="alice")
        machine = Program(place.url, "laptop", key)
        traded = json.loads((await machine.ask("/oauth/token", {"grant_type": "client_credentials"})).body)
        for token in (key, traded["access_token"]):
            session = await place.session(always=[bearer(token)])
            await session.call("a__pid")
            assert place.audit()[-1]["principal"] == "user:alice"
        await Accounts(place.gateway.database).change("alice", disabled_at=1.0)
        authenticator.forget_all()
        assert not await works(place, key)
        assert not await works(place, traded["access_token"])
        await Accounts(place.gateway.database).change("alice", disabled_at=None)
        await authenticator._keys.revoke("laptop")
        authenticator.forget({"key:laptop"})
        assert not await works(place, traded["access_token"])


async def test_an_answer_for_a_device_is_not_lost_when_the_device_asks_meanwhile(tmp_path: Path) -> None:
    async with Database(f"sqlite:///{tmp_path}/db") as database:
        tickets = Tickets(database)
        code = await tickets.issue("device", {"state": "waiting"}, 60.0)
        seen = await tickets.look("device", code)
        assert seen is not None
        await tickets.rewrite("device", hashed(code), {"state": "allowed"})
        await tickets.rewrite("device", hashed(code), {**seen, "polled_at": 1.5}, before=seen)
        assert await tickets.look("device", code) == {"state": "allowed"}


@pytest.mark.parametrize("content", [b"", b"half of it"])
async def test_a_file_cut_short_by_a_crash_makes_no_token_foreseeable_and_stops_nobody(
    tmp_path: Path, content: bytes
) -> None:
    folder = tmp_path / "signing"
    folder.mkdir()
    (folder / "rotation.key").write_bytes(content)
    (folder / "1-old.json").write_bytes(content)
    async with Database(f"sqlite:///{tmp_path}/db") as database:
        following = grants_module.Grants(database, folder / "rotation.key")._following("lgr_one")
        assert following != f"lgr_{hmac.new(content, b'lgr_one', hashlib.sha256).hexdigest()}"
        assert len((folder / "rotation.key").read_bytes()) == grants_module.SECRET_BYTES
        assert (folder / "rotation.key").stat().st_mode & 0o777 == 0o600
        keys = SigningKeys(folder, database)
        await keys.current()
        (file,) = folder.glob("*.json")
        file.write_bytes(content)
        await SigningKeys(folder, database).current()
        assert "d" in json.loads(next(folder.glob("*.json")).read_text())
