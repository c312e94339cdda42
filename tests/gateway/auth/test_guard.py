"""The gate: who gets in, what the others are told, and that nothing is open by accident."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Route

from gateway.app import Front
from gateway.auth import authenticator, guard
from gateway.auth.keys import Keys
from gateway.auth.resources import OPEN, OPEN_BELOW, Names, resource_at, resource_named
from gateway.client import gateway_client
from tests.gateway.auth.provider import provider
from tests.gateway.auth.test_tokens import HELLO, status, trusting
from tests.gateway.callers import ACCEPT, JSON, Response, message
from tests.gateway.running import Place, running

pytestmark = pytest.mark.anyio

ONE = {"a": ["friendly"]}
MODEL_PATHS = {"/v1/models", "/engines/llama.cpp/v1/models", "/engines/v1/models", "/api/tags", "/tokenize", "/rerank"}


@asynccontextmanager
async def keyed(folder: Path, **changes: Any) -> AsyncIterator[tuple[Place, Keys]]:
    async with running(folder, ONE, auth="keys", **changes) as place:
        yield place, Keys(place.gateway.database)


def bearer(token: str) -> tuple[str, str]:
    return ("Authorization", f"Bearer {token}")


async def ask(place: Place, path: str, *headers: tuple[str, str], method: str = "GET") -> Response:
    return await place.http.request(method, path, b"", headers)


@pytest.mark.sec("SEC-006")
async def test_every_request_shows_its_token_and_a_session_id_is_no_token(tmp_path: Path) -> None:
    async with keyed(tmp_path) as (place, keys):
        token = await keys.create("one")
        session = await place.session(always=[bearer(token)])
        assert await session.result("ping") == {}
        assert await session.call("a__echo", {"text": "hi"}) == '{"text": "hi"}'
        session.always = []
        for body in (message("ping", {}, 9), message("tools/list", {}, 10)):
            assert (await session.post(body)).status == 401
        other = await keys.create("two")
        session.always = [bearer(other)]
        assert (await session.post(message("ping", {}, 9))).status == 404
        session.always = [bearer(token)]
        assert await session.result("ping") == {}
        calls = [record for record in place.audit() if record["method"] == "tools/call"]
        assert [record["principal"] for record in calls] == ["key:one"]


@pytest.mark.sec("SEC-103")
async def test_key_may_come_as_clients_of_anthropics_api_send_it_there_and_nowhere_else(tmp_path: Path) -> None:
    async with keyed(tmp_path) as (place, keys):
        token = await keys.create("one", scopes=["model"])
        assert (await ask(place, "/v1/messages", method="POST")).status == 401
        assert (await ask(place, "/v1/messages", ("x-api-key", token), method="POST")).status == 415  # no body
        assert (await ask(place, "/v1/messages", ("x-api-key", token[:-1]), method="POST")).status == 401
        for elsewhere in ("/v1/models", "/api/tags", "/admin/servers", "/mcp"):
            assert (await ask(place, elsewhere, ("x-api-key", token))).status == 401


@pytest.mark.sec("SEC-024")
@pytest.mark.sec("SEC-044")
async def test_each_scope_opens_its_own_paths_and_no_others(tmp_path: Path) -> None:
    async with keyed(tmp_path) as (place, keys):
        app = place.service._server.config.app
        assert isinstance(app, Front)
        tokens = {scope: await keys.create(scope, scopes=[scope]) for scope in ("mcp", "model", "admin")}
        paths = {"mcp": {"/mcp", "/p/all/mcp", "/nonsense"}, "model": MODEL_PATHS, "admin": {"/admin/servers"}}
        for wanted, own in paths.items():
            for path in own:
                for scope, token in tokens.items():
                    answer = await ask(place, path, bearer(token))
                    assert (answer.status == 403) is (scope != wanted), (path, scope)
                    if scope != wanted:
                        challenge = answer.headers["www-authenticate"]
                        assert 'error="insufficient_scope"' in challenge
                        assert f'scope="{wanted}"' in challenge
        wrong = {**{tokens[scope]: False for scope in ("mcp", "model")}, tokens["admin"]: True}
        wrong[place.service.running.admin_token] = True
        for token, opens in wrong.items():
            assert ((await ask(place, "/admin/servers", bearer(token))).status == 200) is opens


async def test_no_route_is_open_but_those_that_must_be(tmp_path: Path) -> None:
    async with provider() as corp, running(tmp_path, ONE, auth=trusting(tmp_path, corp=corp)) as place:
        assert {"/healthz"} == OPEN
        assert OPEN_BELOW == ("/.well-known/", "/oauth/", "/connect/")
        front: Any = place.service._server.config.app
        found = [route for route in _routes(front) if not route.path.startswith(OPEN_BELOW) and route.path not in OPEN]
        assert found
        for route in found:
            for method in sorted((route.methods or {"GET", "POST", "DELETE"}) - {"HEAD"}):
                target = route.path.replace("{profile}", "all")
                assert (await ask(place, target, method=method)).status == 401, (method, target)
        for odd in (
            "/",
            "/mcp/",
            "/MCP",
            "//mcp",
            "/p/all/mcp/x",
            "/mcp/all",
            "/healthz/",
            "/.well-known",
            "/oauth",
            "/docs",
            "/v1",
        ):
            assert (await ask(place, odd)).status == 401, odd
        assert (await ask(place, "/healthz")).status == 200


def _routes(front: Any) -> list[Route]:
    return [route for route in front._router.app.routes if isinstance(route, Route)]


async def test_challenges_say_where_to_sign_in_and_the_metadata_agrees(tmp_path: Path) -> None:
    async with provider() as corp, running(tmp_path, ONE, auth=trusting(tmp_path, corp=corp)) as place:
        for path in ("/mcp", "/p/all/mcp", "/v1/models", "/admin/servers"):
            answer = await ask(place, path)
            assert answer.status == 401
            challenge = answer.headers["www-authenticate"]
            assert "error=" not in challenge  # RFC 6750, section 3.1: nothing was shown
            where = challenge.partition('resource_metadata="')[2].partition('"')[0]
            assert where.startswith(place.url)
            document = json.loads((await ask(place, where.removeprefix(place.url))).body)
            assert document["authorization_servers"] == [corp.issuer]
            assert document["bearer_methods_supported"] == ["header"]
            assert f'scope="{" ".join(document["scopes_supported"])}"' in challenge
            assert resource_at(path) == resource_named(document["resource"].removeprefix(place.url))
        root = json.loads((await ask(place, "/.well-known/oauth-protected-resource")).body)
        assert root["resource"] == f"{place.url}/mcp"
        assert (await ask(place, "/.well-known/oauth-protected-resource/nonsense")).status == 404
        by_name = f"localhost:{place.http.port}"
        named = await ask(place, "/mcp", ("Host", by_name))
        assert f'resource_metadata="http://{by_name}/' in named.headers["www-authenticate"]
        spoofed = await ask(place, "/mcp", ("Host", "127.0.0.1:1"))
        assert f'resource_metadata="{place.url}/' in spoofed.headers["www-authenticate"]


@pytest.mark.sec("SEC-043")
async def test_a_token_in_the_address_is_refused_even_beside_a_good_one(tmp_path: Path) -> None:
    async with keyed(tmp_path) as (place, keys):
        token = await keys.create("one", scopes=["model"])
        assert (await ask(place, "/v1/models", bearer(token))).status == 200
        for target in (f"/v1/models?access_token={token}", f"/v1/models?x=1&access_token={token}"):
            assert (await ask(place, target)).status == 400
            answer = await ask(place, target, bearer(token))
            assert (answer.status, token in answer.body.decode()) == (400, False)
        assert (await ask(place, f"/v1/models?token={token}")).status == 401
        cookies = [("Cookie", f"token={token}"), ("X-Api-Key", token)]
        assert (await ask(place, "/v1/models", *cookies)).status == 401
        assert (await ask(place, "/v1/models", bearer(token), bearer(token))).status == 400
        for odd in ("Bearer", "Bearer ", token, f"Basic {token}", f"Bearer  {token}", f"Bearer {token},{token}"):
            assert (await ask(place, "/v1/models", ("Authorization", odd))).status in (400, 401), odd
        assert token not in (place.gateway.settings.state_dir / "audit.jsonl").read_text()


async def test_a_key_ends_when_it_expires_or_is_revoked_and_only_its_hash_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with keyed(tmp_path) as (place, keys):
        token = await keys.create("one", account="alice", groups=["staff", "ops"], scopes=["mcp", "model"])
        late = await keys.create("late", scopes=["model"], expires_at=1.0)
        assert (await ask(place, "/v1/models", bearer(late))).status == 401
        assert (await ask(place, "/v1/models", bearer(token))).status == 200
        by_name = {key.name: key for key in await keys.list()}
        assert by_name["one"].used_at is not None
        assert by_name["late"].used_at is None
        assert by_name["one"].principal.id == "user:alice"
        for file in place.gateway.settings.state_dir.glob("lockgate.db*"):
            assert token.encode() not in file.read_bytes()
        await keys.revoke("one")
        # Remembered for half a minute at most; the command line has it forgotten at once.
        async with gateway_client(place.gateway.settings) as client:
            await client.admin("POST", "/credentials/changed?principal=key:one&what=key%20revoked")
        assert (await ask(place, "/v1/models", bearer(token))).status == 401
        again = await keys.create("two", scopes=["model"])
        assert (await ask(place, "/v1/models", bearer(again))).status == 200
        await keys.revoke("two")
        now = authenticator.time.time()
        monkeypatch.setattr(_authenticator(place), "_clock", lambda: now + authenticator.RECHECK_S)
        assert (await ask(place, "/v1/models", bearer(again))).status == 401
        outcomes = [(r["name"], r["principal"], r["outcome"]) for r in place.audit() if r["method"] == "signin"]
        assert ("token", "user:alice", "ok") in outcomes
        assert ("key revoked", "key:one", "ok") in outcomes
        assert ("token", "", "denied") in outcomes


def _authenticator(place: Place) -> Any:
    front: Any = place.service._server.config.app
    return front._router.guard.authenticator


async def test_the_command_line_of_this_machines_user_needs_no_key(tmp_path: Path) -> None:
    async with keyed(tmp_path) as (place, _):
        async with gateway_client(place.gateway.settings) as client:
            assert {tool["name"] for tool in await client.list_tools()} >= {"a__echo"}
        async with gateway_client(place.gateway.settings, "all") as client:
            assert await client.list_tools()


async def test_failures_are_written_down_but_do_not_fill_the_disk(tmp_path: Path) -> None:
    async with keyed(tmp_path) as (place, _):
        for number in range(3 * guard.MAX_RECORDS_A_MINUTE):
            assert (await ask(place, "/mcp", bearer(f"lgk_{number}"))).status == 401
        failures = [record for record in place.audit() if record["outcome"] == "denied"]
        # Two minutes at most, unless the machine is very slow.
        assert 0 < len(failures) < 3 * guard.MAX_RECORDS_A_MINUTE
        assert all("lgk_" not in json.dumps(record) for record in failures)


async def test_a_provider_that_is_away_is_no_reason_to_send_people_to_sign_in(tmp_path: Path) -> None:
    async with provider() as corp:
        auth = trusting(tmp_path, corp=corp)
        token = corp.token("x")
    async with running(tmp_path, ONE, auth=auth) as place:
        answer = await place.http.request("POST", "/mcp", HELLO, [JSON, ACCEPT, bearer(token)])
        assert answer.status == 503
        assert "retry-after" in answer.headers


@pytest.mark.sec("SEC-001")
async def test_the_public_name_is_taken_and_names_like_it_are_not(tmp_path: Path) -> None:
    async with keyed(tmp_path, public_url="https://gateway.example") as (place, keys):
        token = await keys.create("one", scopes=["model"])
        own = [("Host", "gateway.example"), ("Host", "GATEWAY.example"), ("Host", f"127.0.0.1:{place.http.port}")]
        for host in own:
            assert (await ask(place, "/v1/models", host, bearer(token))).status == 200, host
        origin = ("Origin", "https://gateway.example")
        assert (await ask(place, "/v1/models", own[0], origin, bearer(token))).status == 200
        for host in (f"gateway.example{end}" for end in (".evil", ":81", "@evil", "%2eevil")):
            assert (await ask(place, "/v1/models", ("Host", host), bearer(token))).status == 403, host
        for bad in ("http://gateway.example", "https://gateway.example.evil", "https://gateway.example:81", "null"):
            assert (await ask(place, "/v1/models", own[0], ("Origin", bad), bearer(token))).status == 403, bad


def test_names_are_compared_to_the_letter() -> None:
    names = Names("https://g.example", ("http://localhost:1",))
    assert names.under(b"localhost:1") == "http://localhost:1"
    assert names.under(b"other") == "https://g.example"
    like = ("", "/mcp/", ".evil/mcp", ":1/mcp", "/MCP", "/mcp?", "/mcp#x", "//mcp")
    for url in (*("https://g.example" + end for end in like), "https://G.example/mcp", ""):
        assert names.resource_for(url) is None
    assert names.resource_for("http://localhost:1/p/all/mcp") == resource_named("/p/all/mcp")
    assert resource_named("/p/a b/mcp") is None
    assert resource_named("/v1/models") is None


async def test_a_remembered_token_costs_no_lookup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with keyed(tmp_path) as (place, keys):
        token = await keys.create("one")
        assert await status(place, token) == 200

        async def looked_up(*_: object) -> None:
            raise AssertionError("this token was checked a moment ago")

        monkeypatch.setattr(Keys, "find", looked_up)
        assert await status(place, token) == 200


@pytest.mark.sec("SEC-026")
async def test_a_line_break_behind_a_path_opens_nothing_more(tmp_path: Path) -> None:
    """The router takes `/p/all/mcp%0A` for `/p/all/mcp`, so the gate has to as well."""
    for path in ("/p/all/mcp", "/rerank", "/tokenize", "/detokenize", "/healthz", "/mcp", "/admin/servers"):
        assert resource_at(path + "\n") == resource_at(path)
    async with keyed(tmp_path) as (place, keys):
        token = await keys.create("one", scopes=["mcp"])
        for path in ("/rerank", "/tokenize", "/detokenize"):
            assert (await ask(place, path + "%0A", bearer(token), JSON, method="POST")).status == 403


@pytest.mark.sec("SEC-024")
async def test_the_scope_admin_names_no_files_and_no_programs_of_the_machine(tmp_path: Path) -> None:
    ran, written = tmp_path / "ran", tmp_path / "written"
    async with keyed(tmp_path, vault_key="file") as (place, keys):
        admin = await keys.create("one", scopes=["admin"])

        async def wish(verb: str, token: str, **given: Any) -> int:
            body = json.dumps(given).encode()
            return (await place.http.request("POST", f"/admin/secrets/{verb}", body, [bearer(token), JSON])).status

        assert await wish("set", admin, name="a.b", value="c" * 12) == 200
        wishes: list[tuple[str, dict[str, Any]]] = [
            ("rotate-key", {"to": f"command:touch {ran}"}),
            ("rotate-key", {"to": f"file:{written}"}),
            ("backup", {"path": str(written), "passphrase": "p" * 12}),
            ("restore", {"path": str(written), "passphrase": "p" * 12}),
            ("check", {"accept": True}),
        ]
        for verb, given in wishes:
            assert await wish(verb, admin, **given) == 422, verb
        assert not ran.exists()
        assert not written.exists()
        assert await wish("rotate-key", admin) == 200
        local = place.service.running.admin_token
        assert await wish("backup", local, path=str(written), passphrase="p" * 12) == 200
