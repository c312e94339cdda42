"""A browser made of nothing but HTTP and cookies, and a client that asks for tokens; enough to walk every path.

Knows the pages by their forms; uses nothing of the gateway."""

import base64
import hashlib
import json
import re
import secrets
from html import unescape
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from tests.gateway.callers import Http, Response

FORM = ("Content-Type", "application/x-www-form-urlencoded")
REDIRECT = "http://127.0.0.1:7777/callback"
PASSWORD = "correct horse battery"


class Browser:
    """Keeps cookies, follows nothing by itself."""

    def __init__(self, url: str) -> None:
        self.http = Http(url)
        self.cookies: dict[str, str] = {}
        self.set_cookies: list[str] = []

    async def send(self, method: str, target: str, body: bytes = b"", *headers: tuple[str, str]) -> Response:
        cookie = [("Cookie", "; ".join(f"{k}={v}" for k, v in self.cookies.items()))] if self.cookies else []
        raw = await self.http.request(method, target, body, [*cookie, *headers])
        self._keep(raw.headers.get("set-cookie", ""))
        return raw

    def _keep(self, line: str) -> None:
        for one in line.splitlines():
            self.set_cookies.append(one)
            name, _, value = one.partition(";")[0].partition("=")
            self.cookies[name] = value.strip('"')
            if "max-age=0" in one.lower() or "expires=thu, 01 jan 1970" in one.lower():
                del self.cookies[name]

    async def get(self, target: str) -> Response:
        return await self.send("GET", target)

    async def post(self, target: str, fields: dict[str, str], *headers: tuple[str, str]) -> Response:
        return await self.send("POST", target, urlencode(fields).encode(), FORM, *headers)

    async def submit(self, page: Response, action: str, **fields: str) -> Response:
        """Send the form of a page that leads to `action`, with these fields filled in."""
        return await self.post(action, {**hidden(page, action), **fields})

    async def login(self, target: str, name: str = "alice", password: str = PASSWORD) -> Response:
        """Ask for a page that wants somebody signed in, sign in, and come back to it."""
        answer = await self.get(target)
        assert answer.status == 303, answer
        page = await self.get(answer.headers["location"])
        answer = await self.submit(page, "/oauth/login", name=name, password=password)
        assert answer.status == 303, answer
        return await self.get(answer.headers["location"])


def hidden(page: Response, action: str) -> dict[str, str]:
    """The hidden fields of the form that leads to `action`."""
    form = re.search(rf'<form method="post" action="{re.escape(action)}">(.*?)</form>', page.body.decode(), re.S)
    assert form, page.body.decode()
    found = re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)">', form[1])
    return {name: unescape(value) for name, value in found}


class Program:
    """A client of the authorization server."""

    def __init__(self, url: str, id: str = "", secret: str = "") -> None:
        self.url = url
        self.http = Http(url)
        self.id = id
        self.secret = secret
        self.verifier = secrets.token_urlsafe(48)

    @property
    def challenge(self) -> str:
        return base64.urlsafe_b64encode(hashlib.sha256(self.verifier.encode()).digest()).rstrip(b"=").decode()

    async def register(self, *redirect_uris: str, **more: Any) -> Response:
        given: dict[str, Any] = {"redirect_uris": redirect_uris or [REDIRECT], "client_name": "Probe"}
        given["token_endpoint_auth_method"] = "none"
        body = json.dumps({**given, **more}).encode()
        answer = await self.http.request("POST", "/oauth/register", body, [("Content-Type", "application/json")])
        if answer.status == 201:
            self.id = json.loads(answer.body)["client_id"]
            self.secret = json.loads(answer.body).get("client_secret", "")
        return answer

    def address(self, **changes: str) -> str:
        """The address of the authorization endpoint for this client; an empty value leaves a field out."""
        fields = {
            "response_type": "code",
            "client_id": self.id,
            "redirect_uri": REDIRECT,
            "code_challenge": self.challenge,
            "code_challenge_method": "S256",
            "state": "xyz",
            "resource": f"{self.url}/mcp",
            "scope": "mcp",
        }
        return "/oauth/authorize?" + urlencode({k: v for k, v in (fields | changes).items() if v})

    async def ask(self, target: str, fields: dict[str, str], *headers: tuple[str, str]) -> Response:
        own = {"client_id": self.id, **({"client_secret": self.secret} if self.secret else {})}
        body = urlencode({k: v for k, v in {**own, **fields}.items() if v}).encode()
        return await self.http.request("POST", target, body, [FORM, *headers])

    async def redeem(self, code: str, **changes: str) -> Response:
        fields = {"grant_type": "authorization_code", "code": code, "redirect_uri": REDIRECT}
        return await self.ask("/oauth/token", fields | {"code_verifier": self.verifier} | changes)

    async def refresh(self, token: str, **changes: str) -> Response:
        return await self.ask("/oauth/token", {"grant_type": "refresh_token", "refresh_token": token} | changes)

    async def tokens(self, browser: Browser, **changes: str) -> dict[str, Any]:
        """Let whoever is signed in with the browser allow this client, and take the tokens."""
        page = await browser.get(self.address(**changes))
        if page.status == 303:
            page = await browser.login(self.address(**changes))
        allowed = await browser.submit(page, "/oauth/consent", answer="allow")
        answer = await self.redeem(answered(allowed)["code"])
        assert answer.status == 200, answer
        found: dict[str, Any] = json.loads(answer.body)
        return found


def answered(response: Response) -> dict[str, str]:
    """What a redirect to the client carries."""
    assert response.status == 303, response
    assert response.headers["location"].startswith(REDIRECT), response.headers["location"]
    query = parse_qs(urlsplit(response.headers["location"]).query, strict_parsing=True)
    return {name: value for name, (value,) in query.items()}


def error(response: Response) -> str:
    return str(json.loads(response.body)["error"])
