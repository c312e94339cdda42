"""Signing in at the providers of remote servers: links, browsers, tokens, and what must never happen."""

import asyncio
import html
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import anyio
import pytest
from msgspec import Raw

from gateway.caller import Caller
from gateway.errors import CredentialMissing, UpstreamUnavailable
from gateway.oauth import exchange
from gateway.oauth.discovery import challenge
from gateway.upstream import Reply
from gateway.vault import Place
from gateway.wire import envelope
from policies import Principal
from tests.gateway.callers import Http
from tests.gateway.running import Place as Running
from tests.gateway.running import running
from tests.gateway.test_isolation import ignore
from tests.servers.oauth import Provider, providing

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]


def far(provider: Provider) -> dict[str, Any]:
    return {"far": {"remote": {"url": provider.resource}, "oauth": {"provider": "example"}}}


@asynccontextmanager
async def signing(folder: Path, provider: Provider) -> AsyncIterator[tuple[Provider, Running]]:
    async with providing(provider) as one, running(folder, far(one), vault_key="file") as place:
        yield one, place


async def call(place: Running, user: str = "alice") -> str:
    caller = Caller(Principal(user), place.gateway.profile)
    params = envelope.encode({"name": Raw(b'"far__whoami"'), "arguments": Raw(b"{}")})
    reply = await place.gateway.door.call(caller, "tools/call", params, ignore)
    assert isinstance(reply, Reply)
    assert reply.result is not None
    text: str = envelope.value(reply.result)["content"][0]["text"]
    return text


def link_in(text: str) -> str:
    found = re.search(r"http://[^ ]+/connect/[\w-]+", text)
    assert found, text
    return found[0]


async def link(place: Running, user: str = "alice") -> str:
    """The link that a caller without a grant is given, once its server is known."""
    return place.gateway.signins.link(user, place.gateway.pool.servers["far"].entry)


class Browser:
    """Follows a link as a browser does: the page, its button, the provider, and back."""

    def __init__(self) -> None:
        self.cookies = ""
        self.answer = ""
        self.location = ""

    async def open(self, url: str) -> tuple[int, str]:
        """Press the button; ends at the address of the provider, or at a page that says why not."""
        parts = urlsplit(url)
        http = Http(f"{parts.scheme}://{parts.netloc}")
        page = await http.request("GET", parts.path)
        if page.status != 200:
            return page.status, html.unescape(page.body.decode())
        assert b"<script" not in page.body
        assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
        assert page.headers["referrer-policy"] == "same-origin"
        origin = ("Origin", f"{parts.scheme}://{parts.netloc}")
        form = ("Content-Type", "application/x-www-form-urlencoded")
        pressed = await http.request("POST", parts.path, b"", [origin, form])
        self.location = pressed.headers.get("location", "")
        self.cookies = pressed.headers.get("set-cookie", "").partition(";")[0]
        return pressed.status, html.unescape(pressed.body.decode())

    async def allow(self) -> None:
        """What the provider does when the user agrees: it sends the browser back."""
        parts = urlsplit(self.location)
        answer = await Http(f"{parts.scheme}://{parts.netloc}").request("GET", f"{parts.path}?{parts.query}")
        assert answer.status == 302, answer.body
        self.answer = answer.headers["location"]

    async def back(self, url: str = "") -> tuple[int, str]:
        parts = urlsplit(url or self.answer)
        headers = [("Cookie", self.cookies)] if self.cookies else []
        http = Http(f"{parts.scheme}://{parts.netloc}")
        page = await http.request("GET", f"{parts.path}?{parts.query}", b"", headers)
        return page.status, html.unescape(page.body.decode())

    async def through(self, url: str) -> None:
        status, text = await self.open(url)
        assert status == 303, text
        await self.allow()
        status, text = await self.back()
        assert status == 200, text


@pytest.mark.sec("SEC-047")
async def test_each_user_signs_in_and_calls_with_a_token_of_their_own(tmp_path: Path) -> None:
    async with signing(tmp_path, Provider()) as (provider, place):
        session = await place.session()
        assert (await session.ask("tools/list"))["result"]["tools"] == []
        await Browser().through(await link(place))
        assert await call(place) == "alice at the provider; read"
        with pytest.raises(CredentialMissing) as refused:
            await call(place, "bob")
        provider.user = "bob at the provider"
        await Browser().through(link_in(str(refused.value)))
        assert await call(place, "bob") == "bob at the provider; read"
        assert await call(place) == "alice at the provider; read"
        tools = (await session.ask("tools/list"))["result"]["tools"]
        assert [tool["name"] for tool in tools] == ["far__whoami"]
        # A client's own credential goes no further.
        mine = [("Authorization", "Bearer the-clients-own"), ("Cookie", "the-clients-own")]
        session = await place.session(always=mine)
        assert "/connect/" in await session.failure("far__whoami")  # the local user has no grant, but a link
        sent = json.dumps([headers for _, _, headers, _ in provider.requests])
        assert "the-clients-own" not in sent
        tokens = list(provider.tokens)
        for path in (tmp_path / "state").rglob("*"):
            if path.is_file():
                assert not any(token.encode() in path.read_bytes() for token in tokens), path
        assert len(provider.clients) == 1  # registered once
        (client,) = provider.clients.values()
        assert client["application_type"] == "native"


@pytest.mark.sec("SEC-053")
async def test_twenty_users_and_their_tokens_are_never_mixed_up(tmp_path: Path) -> None:
    users = [f"user-{number}" for number in range(20)]
    async with signing(tmp_path, Provider()) as (provider, place):
        for user in users:
            provider.user = user
            await Browser().through(await link(place, user))
        answers = await asyncio.gather(*(call(place, user) for user in users * 10))
        assert answers == [f"{user}; read" for user in users * 10]


@pytest.mark.sec("SEC-054")
async def test_many_calls_at_the_end_of_a_token_refresh_it_once(tmp_path: Path) -> None:
    async with signing(tmp_path, Provider(life_s=1)) as (provider, place):
        await Browser().through(await link(place))
        provider.life_s, before = 3600, provider.n_refreshed
        assert len(set(await asyncio.gather(*(call(place) for _ in range(50))))) == 1
        assert provider.n_refreshed == before + 1
        version = place.gateway.vault.generation
        assert await call(place) == "alice at the provider; read"
        assert provider.n_refreshed == before + 1
        assert place.gateway.vault.generation == version


@pytest.mark.sec("SEC-054")
async def test_a_refresh_token_that_was_used_up_leads_back_to_the_link(tmp_path: Path) -> None:
    """As after a crash between the provider's answer and the write: the old token is tried, and refused."""
    async with signing(tmp_path, Provider(life_s=1)) as (provider, place):
        await Browser().through(await link(place))
        provider.used.update(provider.refreshes)
        with pytest.raises(CredentialMissing, match="/connect/") as refused:
            await call(place)
        assert place.gateway.signins.granted() == []
        provider.life_s = 3600
        await Browser().through(link_in(str(refused.value)))
        assert await call(place) == "alice at the provider; read"


@pytest.mark.sec("SEC-055")
async def test_a_server_that_wants_more_rights_gets_a_link_that_asks_for_all_of_them(tmp_path: Path) -> None:
    async with signing(tmp_path, Provider()) as (provider, place):
        await Browser().through(await link(place))
        provider.needs = "write"
        with pytest.raises(CredentialMissing) as refused:
            await call(place)
        await Browser().through(link_in(str(refused.value)))
        assert await call(place) == "alice at the provider; read write"
        provider.needs = "never granted to anybody here, as no scope has spaces"
        for _ in range(2):
            with pytest.raises(CredentialMissing, match="/connect/"):
                await call(place)
        with pytest.raises(CredentialMissing, match="again and again"):
            await call(place)


@pytest.mark.sec("SEC-055")
async def test_a_server_that_lists_nothing_without_more_rights_gets_a_link_on_the_last_page(tmp_path: Path) -> None:
    async with signing(tmp_path, Provider()) as (provider, place):
        browser = Browser()
        await browser.open(await link(place))
        await browser.allow()
        provider.needs, provider.needed_for = "write", ("tools/list",)
        status, text = await browser.back()
        assert status == 200
        await Browser().through(link_in(text))
        assert await call(place) == "alice at the provider; read write"


async def test_a_token_that_is_refused_is_refreshed_and_one_that_cannot_be_is_forgotten(tmp_path: Path) -> None:
    async with signing(tmp_path, Provider()) as (provider, place):
        await Browser().through(await link(place))
        assert await call(place) == "alice at the provider; read"
        provider.tokens.clear()
        with pytest.raises(CredentialMissing, match="try again"):
            await call(place)
        assert await call(place) == "alice at the provider; read"
        assert provider.n_refreshed == 1


async def test_signing_out_tells_the_provider_and_ends_the_connection(tmp_path: Path) -> None:
    async with signing(tmp_path, Provider()) as (provider, place):
        await Browser().through(await link(place))
        assert await call(place) == "alice at the provider; read"
        assert [(one["server"], one["owner"]) for one in place.gateway.signins.granted()] == [("far", "alice")]
        assert await place.gateway.signins.revoke("alice", place.gateway.pool.servers["far"].entry)
        assert provider.tokens == {}
        with pytest.raises(CredentialMissing, match="/connect/"):
            await call(place)


@pytest.mark.sec("SEC-052")
async def test_an_answer_from_another_browser_twice_or_without_state_is_refused(tmp_path: Path) -> None:
    async with signing(tmp_path, Provider()) as (provider, place):
        url, victim, attacker = await link(place), Browser(), Browser()
        await attacker.open(url)
        assert (await victim.open(url))[0] == 400  # a link works once
        await attacker.allow()
        status, text = await victim.back(attacker.answer)
        assert (status, "another browser" in text) == (400, True)
        status, text = await attacker.back()  # and the state is used up by that
        assert (status, "never begun" in text) == (400, True)
        base = place.url + "/connect/callback?"
        for query in ({}, {"code": "x"}, {"state": "x", "code": "y"}):
            assert (await attacker.back(base + urlencode(query)))[0] == 400
        assert place.gateway.signins.granted() == []
        await attacker.open(await link(place))
        await attacker.allow()
        assert (await attacker.back())[0] == 200
        assert (await attacker.back())[0] == 400
        assert provider.tokens


@pytest.mark.sec("SEC-048")
@pytest.mark.parametrize("promised", [True, False])
@pytest.mark.parametrize("said", ["right", "none", "wrong", "with a slash"])
async def test_an_answer_of_another_issuer_is_refused(tmp_path: Path, promised: bool, said: str) -> None:
    provider = Provider(metadata={"authorization_response_iss_parameter_supported": promised})
    async with signing(tmp_path, provider) as (provider, place):
        browser = Browser()
        await browser.open(await link(place))
        await browser.allow()
        right = urlencode({"iss": provider.url})
        wrong = {"right": right, "none": "", "wrong": "iss=https%3A%2F%2Fevil.example", "with a slash": right + "%2F"}
        assert right in browser.answer
        status, _ = await browser.back(browser.answer.replace(right, wrong[said]))
        assert status == (200 if said == "right" or (said == "none" and not promised) else 400)
        assert bool(place.gateway.signins.granted()) == (status == 200)


BAD = {
    "another issuer": {"metadata": {"issuer": "https://evil.example"}},
    "no PKCE": {"metadata": {"code_challenge_methods_supported": None}},
    "plain PKCE": {"metadata": {"code_challenge_methods_supported": ["plain"]}},
    "a script": {"metadata": {"authorization_endpoint": "javascript:alert(1)"}},
    "a file": {"metadata": {"authorization_endpoint": "file:///etc/passwd"}},
    "a shell's words": {"metadata": {"authorization_endpoint": "https://x.example/$(id)`id`"}},
    "no encryption": {"metadata": {"token_endpoint": "http://192.0.2.1/token"}},
    "no registration": {"metadata": {"registration_endpoint": None}},
    "another resource": {"protected": {"resource": "https://bank.example/mcp"}},
    "a neighbour's resource": {"protected": {"resource": "http://127.0.0.1:1/mcp"}},
    "a private issuer": {"protected": {"authorization_servers": ["https://10.0.0.1"]}},
    "the metadata service": {"protected": {"authorization_servers": ["https://169.254.169.254"]}},
}


@pytest.mark.sec("SEC-049")
@pytest.mark.sec("SEC-050")
@pytest.mark.sec("SEC-051")
@pytest.mark.sec("SEC-057")
@pytest.mark.parametrize("how", BAD)
async def test_a_provider_that_is_not_what_it_says_gets_no_browser(tmp_path: Path, how: str) -> None:
    async with signing(tmp_path, Provider(**BAD[how])) as (provider, place):
        browser = Browser()
        status, text = await browser.open(await link(place))
        assert (status, browser.location) == (400, "")
        assert "Not signed in" in text
        assert [path for _, path, _, _ in provider.requests if path == "/token"] == []


async def test_a_client_that_the_operator_registered_is_used(tmp_path: Path) -> None:
    async with signing(tmp_path, Provider(metadata={"registration_endpoint": None})) as (provider, place):
        provider.clients["ours"] = {"redirect_uris": [f"{place.url}/connect/callback"]}
        await place.gateway.vault.put("far.client_id", b"ours")
        await Browser().through(await link(place))
        assert await call(place) == "alice at the provider; read"
        assert len(provider.clients) == 1


@pytest.mark.sec("SEC-049")
async def test_a_client_that_the_operator_registered_is_shown_to_its_own_provider_only(tmp_path: Path) -> None:
    async with signing(tmp_path, Provider()) as (provider, place), providing(Provider()) as other:
        provider.clients["ours"] = {"redirect_uris": [f"{place.url}/connect/callback"]}
        await place.gateway.vault.put("far.client_id", b"ours")
        await place.gateway.vault.put("far.client_secret", b"very-secret-indeed")
        await Browser().open(await link(place))
        provider.changes["protected"] = {"authorization_servers": [other.url]}
        browser = Browser()
        status, text = await browser.open(await link(place))
        assert (status, browser.location) == (400, "")
        assert "names another authorization server" in text
        await place.gateway.vault.put("far.client_id", b"theirs")
        assert (await browser.open(await link(place)))[0] == 303
        assert browser.location.startswith(other.url)


@pytest.mark.sec("SEC-055")
async def test_a_token_that_is_refused_to_several_calls_at_once_is_refreshed(tmp_path: Path) -> None:
    async with signing(tmp_path, Provider()) as (provider, place):
        await Browser().through(await link(place))
        entry = place.gateway.pool.servers["far"].entry
        for _ in range(3):
            assert "try again" in str(await place.gateway.signins.challenged("alice", entry, "Bearer"))
        assert await call(place) == "alice at the provider; read"
        assert provider.n_refreshed == 1


@pytest.mark.sec("SEC-053")
async def test_signing_out_during_a_refresh_is_final(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with signing(tmp_path, Provider(life_s=1)) as (_, place):
        await Browser().through(await link(place))
        signins, entry = place.gateway.signins, place.gateway.pool.servers["far"].entry
        ask = exchange.tokens

        async def meanwhile(*given: Any) -> Any:
            fresh = await ask(*given)
            await signins.revoke("alice", entry)
            return fresh

        monkeypatch.setattr(exchange, "tokens", meanwhile)
        with pytest.raises(CredentialMissing, match="/connect/"):
            await signins.ready("alice", entry)
        assert signins.granted() == []


async def test_a_grant_is_kept_over_a_restart_and_not_in_the_clear(tmp_path: Path) -> None:
    async with providing(Provider()) as provider:
        async with running(tmp_path, far(provider), vault_key="file") as place:
            await Browser().through(await link(place))
        async with running(tmp_path, far(provider), vault_key="file") as place:
            assert await call(place) == "alice at the provider; read"
            (kept,) = place.gateway.vault.kept("token")
            value = place.gateway.vault.value(Place(*kept[:3]))
            assert value is not None
            assert provider.resource.encode() in value
            assert next(iter(provider.tokens)) not in repr(place.gateway.signins.granted())


async def test_nobody_but_a_caller_is_given_a_link(tmp_path: Path) -> None:
    async with signing(tmp_path, Provider()) as (_, place):
        with pytest.raises(UpstreamUnavailable, match="lockgate oauth connect far"):
            await place.gateway.pool.connection("far")
        place.gateway.signins.gives_links = False
        await Browser().through(await link(place, "carol"))
        with pytest.raises(CredentialMissing, match="lockgate oauth connect far --user alice"):
            await call(place)


async def oauth(place: Running, *arguments: str, code: int = 0) -> str:
    """What one command says."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("LOCKGATE_")}
    environ |= {"LOCKGATE_STATE_DIR": str(place.gateway.settings.state_dir), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", "from gateway.cli import main; main()", "oauth", *arguments]
    done = await anyio.run_process(command, check=False, env=environ, stderr=subprocess.STDOUT)
    assert done.returncode == code, done.stdout
    return done.stdout.decode()


async def test_the_commands_connect_list_and_revoke(tmp_path: Path) -> None:
    async with signing(tmp_path, Provider()) as (provider, place):
        said = await oauth(place, "connect", "far", "--user", "dave", "--no-browser")
        await Browser().through(link_in(said.strip()))
        assert await call(place, "dave") == "alice at the provider; read"
        (row,) = json.loads(await oauth(place, "list", "--json"))
        assert (row["server"], row["owner"], row["issuer"]) == ("far", "dave", provider.url)
        assert next(iter(provider.tokens)) not in json.dumps(row)
        assert "the provider was told" in await oauth(place, "revoke", "far", "--user", "dave")
        assert provider.tokens == {}
        assert json.loads(await oauth(place, "list", "--json")) == []


def test_a_challenge_is_read_as_it_was_meant() -> None:
    said = challenge('Bearer error="insufficient_scope", scope="a b", resource_metadata="https://x.example/y"')
    assert said == ("insufficient_scope", ("a", "b"), "https://x.example/y")
    assert challenge("Basic realm=x") == ("", (), "")
    assert challenge("bearer") == ("", (), "")
