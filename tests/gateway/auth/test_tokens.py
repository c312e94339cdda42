"""Tokens of providers: forged, misdirected, outdated or merely strange ones open nothing.

Every case is shown to a real listener; the provider is a real one too."""

import hmac
import json
import time
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from joserfc.errors import SecurityWarning
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey

from gateway.auth import issuers
from gateway.auth.errors import IssuerUnreachable
from gateway.auth.issuers import IssuerKeys
from gateway.auth.opening import fetcher_for
from tests.gateway.auth.provider import Provider, ec_key, part, provider
from tests.gateway.callers import ACCEPT, JSON, message
from tests.gateway.running import Place, running

pytestmark = pytest.mark.anyio

ONE = {"a": ["friendly"]}
WEAK = rsa.generate_private_key(65537, 1024)
TWICE = b'{"alg":"none","alg":"ES256","kid":"one","typ":"at+jwt"}'
CRITICAL = {"alg": "ES256", "typ": "at+jwt", "kid": "one", "crit": ["x"], "x": 1}
RSA = RSAKey.generate_key(2048, {"kid": "rsa"})
HELLO = message(
    "initialize", {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}, 1
)


def trusting(folder: Path, *lines: str, **named: Provider) -> str:
    """A file that trusts these providers."""
    text = "".join(f'[[issuers]]\nname = "{name}"\nissuer = "{one.issuer}"\n' for name, one in named.items())
    path = folder / "auth.toml"
    path.write_text(text + "\n".join(lines))
    return str(path)


@asynccontextmanager
async def trusted(folder: Path, *lines: str) -> AsyncIterator[tuple[Place, Provider, str]]:
    """A gateway that trusts one provider, the provider, and what a token must be addressed to."""
    async with provider() as corp, running(folder, ONE, auth=trusting(folder, *lines, corp=corp)) as place:
        yield place, corp, f"{place.url}/mcp"


async def status(place: Place, token: str, path: str = "/mcp") -> int:
    answer = await place.http.request("POST", path, HELLO, [JSON, ACCEPT, ("Authorization", f"Bearer {token}")])
    if answer.status == 401:
        assert 'error="invalid_token"' in answer.headers["www-authenticate"]
    return answer.status


@pytest.mark.sec("SEC-026")
async def test_a_token_is_good_for_exactly_the_resource_it_names(tmp_path: Path) -> None:
    async with trusted(tmp_path) as (place, corp, own):
        port = place.url.rpartition(":")[2]
        for good in (own, [own], ["https://other.example", own], f"http://localhost:{port}/mcp"):
            assert await status(place, corp.token(good)) == 200, good
        wrong = [
            ...,
            "",
            [],
            own + "/",
            own.upper(),
            own[:-1],
            place.url,
            place.url + "/",
            f"{place.url}/p/all/mcp",
            own + "?x",
        ]
        wrong += ["https://gateway.example/mcp", {"x": own}, [[own]], [own, 5], 5, None, own.replace("http", "https")]
        for audience in wrong:
            assert await status(place, corp.token(audience)) == 401, audience
        # The same token at the next door.
        assert await status(place, corp.token(own), "/p/all/mcp") == 401
        assert await status(place, corp.token(f"{place.url}/p/all/mcp"), "/p/all/mcp") == 200
        assert await status(place, corp.token(own), "/v1/models") == 401


@pytest.mark.sec("SEC-027")
async def test_forged_tokens_open_nothing(tmp_path: Path) -> None:
    async with trusted(tmp_path) as (place, corp, own):
        corp.publish(corp.key, RSA)
        good = corp.token(own)
        assert await status(place, good) == 200
        head, claims, signature = good.split(".")
        stranger, longer = ec_key("one"), ECKey.generate_key("P-384", {"kid": "one"})
        public = RSA.as_pem(private=False)
        shared = f"{part({'alg': 'HS256', 'typ': 'at+jwt', 'kid': 'rsa'})}.{claims}"
        own_jwk = stranger.as_dict(private=False)
        forged = {
            "alg none": f"{part({'alg': 'none', 'typ': 'at+jwt'})}.{claims}.",
            "alg none, signed": f"{part({'alg': 'none', 'typ': 'at+jwt'})}.{claims}.{signature}",
            "alg None": f"{part({'alg': 'None', 'typ': 'at+jwt', 'kid': 'one'})}.{claims}.{signature}",
            "no alg": f"{part({'typ': 'at+jwt', 'kid': 'one'})}.{claims}.{signature}",
            "HS256 with the public key": f"{shared}.{part(hmac.digest(public, shared.encode(), 'sha256'))}",
            "another's key": corp.token(own, stranger),
            "own key in the header (CVE-2026-27962)": corp.token(own, stranger, {"jwk": own_jwk}),
            "own key set": corp.token(own, stranger, {"jku": f"{corp.issuer}/jwks2"}),
            "certificate": corp.token(own, stranger, {"x5u": "https://evil.example", "x5c": ["AAAA"]}),
            "unknown crit (CVE-2025-59420)": f"{part(CRITICAL)}.{claims}.{signature}",
            "crit that is signed": corp.token(own, header={"b64": True, "crit": ["b64"]}),
            "kid as a path": corp.token(own, header={"kid": "../../dev/null"}),
            "kid as SQL": corp.token(own, header={"kid": "one' OR '1'='1"}),
            "kid a number": corp.token(own, header={"kid": 1}),
            "ID token": corp.token(own, header={"typ": "JWT"}),
            "no typ": corp.token(own, header={"typ": ...}),
            "another typ": corp.token(own, header={"typ": "logout+jwt"}),
            "algorithm that is not listed": corp.token(own, longer, {"alg": "ES384"}),
            "kid of a key of another kind": corp.token(own, RSA, {"kid": "one"}),
            "claims changed": f"{head}.{part(corp.claims(own, sub='admin'))}.{signature}",
            "signature cut": good[:-2],
            "signature of nothing": f"{head}.{claims}.",
            "padding": f"{head}=.{claims}.{signature}",
            "four parts": good + ".x",
            "many parts (CVE-2025-61920)": ".".join(["e30"] * 2000),
            "encrypted": f"{part({'alg': 'dir', 'enc': 'A256GCM'})}..a.b.c",
            "large header": corp.token(own, header={"x": "a" * 2000}),
            "large token": corp.token(own, more="a" * 9000),
            "deep": f"{head}.{part(b'[' * 4000)}.{signature}",
            "a name twice": f"{part(TWICE)}.{claims}.{signature}",
            "no JSON": f"{part(b'x')}.{claims}.{signature}",
            "a list": f"{part([1])}.{claims}.{signature}",
        }
        for name, token in forged.items():
            assert await status(place, token) == 401, name
        assert await status(place, good) == 200
        assert await status(place, corp.token(own, RSA)) == 200
        assert all("eyJ" not in json.dumps(record) for record in place.audit())


@pytest.mark.sec("SEC-028")
async def test_a_key_signs_for_its_own_issuer_only(tmp_path: Path) -> None:
    async with (
        provider() as one,
        provider() as other,
        running(tmp_path, ONE, auth=trusting(tmp_path, one=one, other=other)) as place,
    ):
        own = f"{place.url}/mcp"
        assert await status(place, one.token(own)) == 200
        assert await status(place, other.token(own)) == 200
        assert one.key.kid == other.key.kid
        assert await status(place, other.token(own, iss=one.issuer)) == 401
        assert await status(place, one.token(own, iss=other.issuer)) == 401
        for issuer in (one.issuer + "/", one.issuer.upper(), "", ..., "https://evil.example", [one.issuer]):
            assert await status(place, one.token(own, iss=issuer)) == 401, issuer
        names = {record["principal"] for record in place.audit() if record["outcome"] == "ok"}
        assert names == {"one:alice", "other:alice"}


@pytest.mark.sec("SEC-029")
async def test_ten_thousand_unknown_keys_cost_two_fetches(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    async with provider() as corp:
        keys = IssuerKeys(corp.issuer, fetcher_for(corp.issuer), lambda: now)
        assert await keys.key("one", "ES256") is not None
        async with anyio.create_task_group() as tasks:
            for number in range(1000):
                tasks.start_soon(keys.key, f"random-{number}", "ES256")
        for number in range(9000):
            assert await keys.key(f"other-{number}", "ES256") is None
        assert corp.asked["/jwks"] <= 2
        # A new key is found once the pause is over, and what was withdrawn is not.
        fresh = ec_key("two")
        corp.publish(fresh)
        now += issuers.PAUSE_S
        assert await keys.key("two", "ES256") is not None
        assert await keys.key("one", "ES256") is None


@pytest.mark.sec("SEC-029")
async def test_old_keys_are_used_while_the_provider_is_away_but_not_for_ever() -> None:
    now = 1000.0
    async with provider() as corp:
        keys = IssuerKeys(corp.issuer, fetcher_for(corp.issuer), lambda: now)
        assert await keys.key("one", "ES256") is not None
        corp.answers.clear()
        now += issuers.FRESH_S
        assert await keys.key("one", "ES256") is not None
        now += issuers.STALE_S
        with pytest.raises(IssuerUnreachable, match="has no metadata"):
            await keys.key("one", "ES256")
    keys = IssuerKeys(corp.issuer, fetcher_for(corp.issuer), lambda: now)
    with pytest.raises(IssuerUnreachable):
        await keys.key("one", "ES256")


@pytest.mark.sec("SEC-030")
async def test_times_are_taken_with_a_minute_of_difference_and_a_day_at_most(tmp_path: Path) -> None:
    async with trusted(tmp_path) as (place, corp, own):
        now = int(time.time())
        good = [{"exp": now + 20}, {"exp": now - 20}, {"nbf": now + 20}, {"iat": now + 20}, {"exp": now + 300.5}]
        good += [{"iat": now - 3600, "exp": now + 3600}, {"iat": ...}]
        for changes in good:
            assert await status(place, corp.token(own, **changes)) == 200, changes
        late = now + 3600
        wrong: list[dict[str, Any]] = [{"exp": now - 100}, {"exp": now - 3600}, {"nbf": late}, {"iat": late}]
        wrong += [{"exp": now + 2 * 86400}, {"exp": 10**30}, {"exp": -1}, {"exp": True}, {"exp": str(now + 300)}]
        wrong += [{"exp": ...}, {"exp": None}, {"exp": []}, {"exp": float("inf")}, {"exp": float("nan")}]
        wrong += [{"nbf": "x"}, {"iat": None}, {"iat": ..., "exp": now + 2 * 86400}]
        for changes in wrong:
            assert await status(place, corp.token(own, **changes)) == 401, changes


async def test_subjects_and_clients_are_short_texts(tmp_path: Path) -> None:
    async with trusted(tmp_path) as (place, corp, own):
        for changes in (
            {"sub": ...},
            {"sub": ""},
            {"sub": 5},
            {"sub": "a\nb"},
            {"sub": "a" * 600},
            {"client_id": ["x"]},
        ):
            assert await status(place, corp.token(own, **changes)) == 401, changes
        assert await status(place, corp.token(own, client_id=...)) == 200


async def test_claims_become_groups_and_scopes_as_the_file_says(tmp_path: Path) -> None:
    lines = [
        'audiences = ["lockgate-prod"]',
        'groups_claim = "roles"',
        'types = ["at+jwt", "JWT"]',
        'groups = { "0001-staff" = "staff" }',
        'scopes = { "gateway.use" = ["mcp", "model"] }',
        'require = { tenant = "t1" }',
    ]
    async with trusted(tmp_path, *lines) as (place, corp, own):
        seen = []
        endpoint = place.service.endpoint

        def noted(scope: Any) -> Any:
            seen.append(scope["lockgate.principal"])
            return seen[-1]

        endpoint.principal_of = noted
        changes = {"roles": ["0001-staff", "admin", "staff"], "tenant": "t1", "scope": "gateway.use openid"}
        assert await status(place, corp.token("lockgate-prod", header={"typ": "JWT"}, **changes)) == 200
        (found,) = seen
        assert (found.id, found.kind, found.client) == ("corp:alice", "user", "app")
        assert (found.groups, found.scopes) == ({"staff"}, {"mcp", "model"})
        assert await status(place, corp.token("lockgate-prod", **changes), "/v1/models") == 405
        assert await status(place, corp.token(own, **changes | {"tenant": "t2"})) == 401
        assert await status(place, corp.token(own, **changes | {"tenant": ...})) == 401
        assert await status(place, corp.token(own, **changes | {"sub": "app"})) == 200
        assert seen[-1].kind == "client"


async def test_edwards_curve_keys_and_keys_that_are_no_signing_keys(tmp_path: Path) -> None:
    async with trusted(tmp_path) as (place, corp, own):
        edwards = OKPKey.generate_key("Ed25519", {"kid": "ed"})
        with warnings.catch_warnings(action="ignore", category=SecurityWarning):
            weak = RSAKey.import_key(WEAK, {"kid": "weak"})
            weak_token = corp.token(own, weak)
        corp.publish(edwards)
        corp.answers["/jwks"]["keys"] += [
            {"kty": "oct", "k": "AAAA", "kid": "oct"},
            {**corp.key.as_dict(private=False), "use": "enc", "kid": "enc"},
            {**weak.as_dict(private=False)},
            "nonsense",
            {"kty": "EC"},
        ]
        assert await status(place, corp.token(own, edwards)) == 200
        assert await status(place, corp.token(own, OctKey.import_key("x" * 32, {"kid": "oct"}))) == 401
        assert await status(place, corp.token(own, header={"kid": "enc"})) == 401
        assert await status(place, weak_token) == 401
