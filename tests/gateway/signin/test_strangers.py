"""Programs of others against the authorization server: strict clients, both SDKs, a provider, a real browser.

Knows where .ci/parts puts them; what they think of the answers is what counts."""

import json
import re
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import anyio
import pytest
from anyio.abc import Process
from anyio.streams.text import TextReceiveStream
from mcp import Client
from mcp.client.auth import AuthorizationCodeResult, OAuthClientProvider
from mcp.client.streamable_http import create_mcp_http_client, streamable_http_client
from mcp.shared.auth import OAuthClientInformationFull, OAuthClientMetadata, OAuthToken

from gateway.auth.keys import Keys
from gateway.signin.accounts import Accounts
from tests.conformance.suite import Suite
from tests.conformance.suite import cache_dir as suite_dir
from tests.e2e.gateways import missing
from tests.gateway.auth.test_guard import ask, bearer
from tests.gateway.running import running
from tests.gateway.signin.browser import PASSWORD, REDIRECT, Browser, Program, answered
from tests.gateway.signin.test_flow import ONE, signing_in

pytestmark = [pytest.mark.anyio, pytest.mark.node]

PROGRAMS = Path(__file__).parent / "programs"
DEADLINE_S = 180.0


def folder(name: str, package: str, cache_dir: Path) -> str:
    """Where .ci/parts installed these packages; a test without them is skipped, but not in CI."""
    found = cache_dir / "clients" / name
    if shutil.which("node") is None or not (found / "node_modules" / package).exists():
        missing(f"{package} is not in {found}, or there is no Node.js")
    return str(found)


class Script:
    """A program of this folder, spoken to in lines of JSON."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self._rest = ""
        assert process.stdout is not None
        self._lines = TextReceiveStream(process.stdout)

    async def hear(self) -> Any:
        with anyio.fail_after(DEADLINE_S):
            while "\n" not in self._rest:
                try:
                    self._rest += await self._lines.receive()
                except anyio.EndOfStream:
                    raise AssertionError("the program ended; see its errors above") from None
        line, _, self._rest = self._rest.partition("\n")
        return json.loads(line)

    async def say(self, line: str) -> None:
        assert self.process.stdin is not None
        await self.process.stdin.send(line.encode() + b"\n")


@asynccontextmanager
async def script(name: str, *arguments: str) -> AsyncIterator[Script]:
    command = ["node", str(PROGRAMS / name), *arguments]
    async with await anyio.open_process(command, stderr=None, stdin=subprocess.PIPE) as process:
        try:
            yield Script(process)
        finally:
            if process.returncode is None:
                process.kill()


async def allow(browser: Browser, url: str) -> str:
    """Walk the pages as a person does, and say where the browser is sent at the end."""
    parts = urlsplit(url)
    target = f"{parts.path}?{parts.query}"
    page = await browser.get(target)
    if page.status == 303:
        page = await browser.login(target)
    done = await browser.submit(page, "/oauth/consent", answer="allow")
    assert done.status == 303, done
    return done.headers["location"]


async def test_a_strict_client_is_content_with_every_answer(tmp_path: Path, cache_dir: Path) -> None:
    installed = folder("oauth", "oauth4webapi", cache_dir)
    async with signing_in(tmp_path) as (place, browser, _):
        key = await Keys(place.gateway.database).create("robot")
        async with script("strict.mjs", installed, place.url, f"{place.url}/mcp", "robot", key) as client:
            await client.say(await allow(browser, (await client.hear())["open"]))
            found = await client.hear()
        assert (found["claims"]["sub"], found["claims"]["aud"]) == ("user:alice", f"{place.url}/mcp")
        assert found["active"] == [True, False]
        assert found["rotated"] is True
        assert found["machine"] == "bearer"
        assert found["device"] == f"{place.url}/oauth/device"


async def test_the_typescript_sdk_signs_in_by_itself(tmp_path: Path, cache_dir: Path) -> None:
    installed = folder("ts", "@modelcontextprotocol/client", cache_dir)
    async with signing_in(tmp_path) as (place, browser, _):
        for path in ("/mcp", "/p/all/mcp"):
            async with script("sdk.mjs", installed, place.url + path) as client:
                await client.say(await allow(browser, (await client.hear())["open"]))
                assert "a__echo" in (await client.hear())["tools"]


async def test_the_conformance_suite_is_content_with_the_authorization_server(tmp_path: Path) -> None:
    if shutil.which("npm") is None:
        missing("there is no npm")
    suite = Suite(suite_dir())
    await anyio.to_thread.run_sync(suite.ensure)
    async with signing_in(tmp_path) as (place, browser, program):
        port = _free_port()
        await program.register(f"http://127.0.0.1:{port}/callback")
        program_file = suite.node.parents[1] / "@modelcontextprotocol" / "conformance" / "dist" / "index.js"
        results = tmp_path / "results"
        command = [str(suite.node), str(program_file), "authorization", "--url", place.url, "--client-id", program.id]
        command += ["--resource", f"{place.url}/mcp", "--port", str(port), "--output-dir", str(results)]
        async with await anyio.open_process(command, stderr=None) as process:
            assert process.stdout is not None
            said = ""
            with anyio.fail_after(DEADLINE_S):
                async for text in TextReceiveStream(process.stdout):
                    said += text
                    asked = re.search(rf"^{re.escape(place.url)}/oauth/authorize\S+\n", said, re.MULTILINE)
                    if asked is not None and "allowed" not in said:
                        back = urlsplit(await allow(browser, asked[0].strip()))
                        came = await Browser(f"{back.scheme}://{back.netloc}").get(f"{back.path}?{back.query}")
                        assert came.status == 200
                        said += "allowed"
        assert process.returncode == 0, said
        checks = [one for file in results.rglob("checks.json") for one in json.loads(file.read_text())]
        assert {one["status"] for one in checks} <= {"SUCCESS", "INFO"}, checks
        passed = {one["id"] for one in checks if one["status"] == "SUCCESS"}
        assert {"authorization-server-metadata", "authorization-server-metadata-cimd"} <= passed
        assert len(passed) >= 3, passed


class Memory:
    """Where the Python SDK keeps what it got."""

    def __init__(self) -> None:
        self.tokens: OAuthToken | None = None
        self.client: OAuthClientInformationFull | None = None

    async def get_tokens(self) -> OAuthToken | None:
        return self.tokens

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self.tokens = tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return self.client

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        self.client = client_info


async def test_the_python_sdk_signs_in_by_itself(tmp_path: Path) -> None:
    async with signing_in(tmp_path) as (place, browser, _):
        sent: list[str] = []

        async def opened(url: str) -> None:
            sent.append(await allow(browser, url))

        async def came_back() -> AuthorizationCodeResult:
            return AuthorizationCodeResult.model_validate(_query(sent[-1]))

        metadata = OAuthClientMetadata.model_validate({"redirect_uris": [REDIRECT], "client_name": "python"})
        memory = Memory()
        auth = OAuthClientProvider(f"{place.url}/mcp", metadata, memory, opened, came_back)
        with anyio.fail_after(DEADLINE_S):
            async with create_mcp_http_client(auth=auth) as http:
                transport = streamable_http_client(f"{place.url}/mcp", http_client=http)
                async with Client(transport) as client:
                    tools = await client.list_tools()
        assert "a__echo" in [tool.name for tool in tools.tools]
        assert memory.tokens is not None
        assert memory.tokens.refresh_token
        assert len(sent) == 1


def _query(url: str) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(url).query))


async def test_a_strict_provider_signs_people_and_machines_in(tmp_path: Path, cache_dir: Path) -> None:
    installed = folder("oauth", "oidc-provider", cache_dir)
    port = _free_port()
    own = f"http://127.0.0.1:{port}"
    async with script("provider.mjs", installed, f"{own}/oauth/callback", f"{own}/mcp") as strict:
        issuer = (await strict.hear())["issuer"]
        (tmp_path / "secrets").mkdir(mode=0o700)
        (tmp_path / "secrets" / "corp_login").write_text("the-secret-of-lockgate")
        (tmp_path / "secrets" / "corp_login").chmod(0o600)
        (tmp_path / "auth.toml").write_text(
            f'accounts = true\n[[issuers]]\nname = "machines"\nissuer = "{issuer}"\n'
            f'[login]\nname = "corp"\nissuer = "{issuer}"\nclient_id = "lockgate"\nclient_secret = "corp_login"\n'
            'groups = { g1 = "staff" }\n'
        )
        changes = {"auth": str(tmp_path / "auth.toml"), "secrets_dir": tmp_path / "secrets", "port": port}
        async with running(tmp_path, ONE, **changes) as place:
            # A machine's token of that provider.
            form = {"grant_type": "client_credentials", "scope": "mcp", "resource": f"{own}/mcp"}
            machine = Program(issuer, "machine", "the-secret-of-machine")
            basic = ("Authorization", "Basic bWFjaGluZTp0aGUtc2VjcmV0LW9mLW1hY2hpbmU=")
            machine.secret = ""
            answer = await machine.ask("/token", form, basic)
            token = json.loads(answer.body)["access_token"]
            session = await place.session(always=[bearer(token)])
            await session.call("a__pid")
            assert place.audit()[-1]["principal"] == "machines:machine"
            # A person, by the provider's own pages.
            await Accounts(place.gateway.database).create("alice", PASSWORD)
            program = Program(place.url)
            await program.register()
            browser, there = Browser(place.url), Browser(issuer)
            page = await browser.get((await browser.get(program.address())).headers["location"])
            left = await browser.submit(page, "/oauth/login/provider")
            back = await _at_the_provider(there, left.headers["location"], own)
            # The answer signs in the browser that was sent, and no other.
            stolen = await Browser(place.url).get(back)
            assert stolen.status == 403
            page = await browser.get((await browser.get(program.address())).headers["location"])
            left = await browser.submit(page, "/oauth/login/provider")
            back = await _at_the_provider(there, left.headers["location"], own)
            came = await browser.get(back)
            assert came.status == 303, came
            consent = await browser.get(came.headers["location"])
            allowed = await browser.submit(consent, "/oauth/consent", answer="allow")
            tokens = json.loads((await program.redeem(answered(allowed)["code"])).body)
            session = await place.session(always=[bearer(tokens["access_token"])])
            await session.call("a__pid")
            assert place.audit()[-1]["principal"] == "corp:bob"
            account = await Accounts(place.gateway.database).get("corp:bob")
            assert account is not None
            assert account.groups == {"staff"}
            assert (await browser.get(back)).status == 403
            assert (await ask(place, "/healthz")).status == 200


async def _at_the_provider(browser: Browser, url: str, own: str) -> str:
    """Sign in as bob on the provider's pages and agree; where it sends the browser back, as a path."""
    for _ in range(12):
        if url.startswith(own):
            return url.removeprefix(own)
        parts = urlsplit(url)
        page = await browser.get(parts.path + (f"?{parts.query}" if parts.query else ""))
        if page.status == 200:
            form = re.search(r'action="([^"]+)" method="post"', page.body.decode())
            assert form, page.body.decode()
            fields = dict(re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)"', page.body.decode()))
            action = urlsplit(unescape(form[1])).path
            page = await browser.post(action, {**fields, "login": "bob", "password": "x"})
        assert "location" in page.headers, page
        url = page.headers["location"]
        url = url if "://" in url else f"http://{browser.http.host}:{browser.http.port}{url}"
    raise AssertionError(f"no way back from the provider, last {url}")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


async def test_a_real_browser_sets_up_signs_in_and_allows_without_scripts(tmp_path: Path, cache_dir: Path) -> None:
    installed = folder("oauth", "puppeteer-core", cache_dir)
    chromium = shutil.which("chromium")
    if chromium is None:
        missing("there is no chromium")
    async with running(tmp_path, ONE, auth="accounts") as place:
        program = Program(place.url)
        await program.register(client_name="<b>Probe</b><script>document.title='x'</script>")
        fields = {
            "code": await Accounts(place.gateway.database).bootstrap_code(),
            "name": "root",
            "password": PASSWORD,
            "redirect": REDIRECT,
        }
        address = place.url + program.address()
        async with script("chromium.mjs", installed, chromium, address, json.dumps(fields)) as browser:
            seen = await browser.hear()
        titles = ["Set up", "Connect a device", "Sign in", "Sign in", "Allow this client?"]
        assert seen["titles"] == [f"{title} · Lockgate" for title in titles]
        assert seen["outside"] == []
        assert ["lockgate-session", True, "Lax"] in seen["cookies"]
        code = _query(seen["sent"])["code"]
        tokens = json.loads((await program.redeem(code)).body)
        session = await place.session(always=[bearer(tokens["access_token"])])
        await session.call("a__pid")
        assert place.audit()[-1]["principal"] == "user:root"
