"""Published flaws of Authlib and PyJWT, each tried on a gateway: at the gate, at the login, at the endpoints.

Every test carries the id of its advisory. The provider is a real one that signs whatever a test wants."""

import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from joserfc.jwk import RSAKey

from gateway.signin.accounts import Accounts
from tests.gateway.auth.provider import Provider, ec_key, part, provider
from tests.gateway.auth.test_tokens import CRITICAL, RSA, status, trusted
from tests.gateway.running import Place, running
from tests.gateway.signin.browser import PASSWORD, Browser
from tests.gateway.signin.test_flow import ONE, signing_in

pytestmark = pytest.mark.anyio


@pytest.mark.advisory("CVE-2025-59420")  # Authlib before 1.6.4
@pytest.mark.advisory("CVE-2026-32597")  # PyJWT before 2.12
async def test_extensions_that_nobody_here_understands_are_not_passed_over(tmp_path: Path) -> None:
    async with trusted(tmp_path) as (place, corp, own):
        assert await status(place, corp.token(own)) == 200
        for crit in (["x"], ["cnf"], ["exp"], ["b64"], [], "x", None, {}):
            assert await status(place, corp.token(own, header={"crit": crit, "x": 1, "b64": True})) == 401, crit
        assert await status(place, corp.token(own, header=CRITICAL)) == 401


@pytest.mark.advisory("CVE-2025-61920")  # Authlib before 1.6.5
async def test_tokens_with_parts_without_end_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    async with trusted(tmp_path) as (place, corp, own):
        head, claims, signature = corp.token(own).split(".")
        large = part({"alg": "ES256", "typ": "at+jwt", "kid": "one", "x": "a" * 3000})
        for token in (
            f"{large}.{claims}.{signature}",
            f"{head}.{part(corp.claims(own, x='a' * 12_000))}.{signature}",
            f"{head}.{claims}.{signature + 'A' * 12_000}",
            ".".join([head] * 64),
        ):
            assert await status(place, token) == 401
        assert await status(place, corp.token(own)) == 200


@pytest.mark.advisory("CVE-2026-28802")  # Authlib 1.6.5 and 1.6.6
async def test_a_token_that_names_no_algorithm_is_not_signed(tmp_path: Path) -> None:
    async with trusted(tmp_path) as (place, corp, own):
        _, claims, signature = corp.token(own).split(".")
        for algorithm in ("none", "None", "NONE", "nOnE", "", None, 0, ["ES256"], ["none"]):
            for kid in ({"kid": "one"}, {}):
                head = part({"alg": algorithm, "typ": "at+jwt", **kid})
                for last in ("", signature, "AA"):
                    assert await status(place, f"{head}.{claims}.{last}") == 401, (algorithm, kid, last)


@pytest.mark.advisory("CVE-2026-27962")  # Authlib before 1.6.9
async def test_a_token_brings_no_key_of_its_own(tmp_path: Path) -> None:
    async with trusted(tmp_path) as (place, corp, own):
        for kid in ("one", "theirs"):
            theirs = ec_key(kid)
            jwk = theirs.as_dict(private=False)
            for header in ({"jwk": jwk}, {"jwk": jwk, "kid": ...}, {"jwk": [jwk]}, {"jwk": json.dumps(jwk)}):
                assert await status(place, corp.token(own, theirs, header)) == 401, header
        assert await status(place, corp.token(own, header={"jwk": corp.key.as_dict(private=False)})) == 401


@pytest.mark.advisory("CVE-2022-29217")  # PyJWT before 2.4
@pytest.mark.advisory("CVE-2024-37568")  # Authlib before 1.3.1
async def test_a_public_key_is_no_shared_secret(tmp_path: Path) -> None:
    async with trusted(tmp_path) as (place, corp, own):
        corp.publish(corp.key, RSA)
        assert await status(place, corp.token(own, RSA)) == 200
        for key in (RSA, corp.key):
            claims = part(corp.claims(own))
            for form in (key.as_pem(private=False), key.as_der(private=False), json.dumps(key.as_dict()).encode()):
                for name in ("HS256", "HS384", "HS512"):
                    signed = f"{part({'alg': name, 'typ': 'at+jwt', 'kid': key.kid})}.{claims}"
                    digest = hmac.digest(form, signed.encode(), f"sha{name[2:]}")
                    assert await status(place, f"{signed}.{part(digest)}") == 401, name


@pytest.mark.advisory("CVE-2024-53861")  # PyJWT 2.10.0
async def test_a_part_of_the_issuer_is_not_the_issuer(tmp_path: Path) -> None:
    async with trusted(tmp_path) as (place, corp, own):
        whole = corp.issuer
        for issuer in (whole[:-1], whole[7:], whole[:7], "http", "", [whole], [whole[:-1], whole]):
            assert await status(place, corp.token(own, iss=issuer)) == 401, issuer


@asynccontextmanager
async def logging_in(folder: Path) -> AsyncIterator[tuple[Place, Provider]]:
    """A gateway where people sign in at a provider."""
    async with provider() as corp:
        corp.answers["/.well-known/oauth-authorization-server"] |= {
            "authorization_endpoint": f"{corp.issuer}/authorize",
            "token_endpoint": f"{corp.issuer}/token",
        }
        path = folder / "auth.toml"
        path.write_text(f'accounts = true\n[login]\nname = "corp"\nissuer = "{corp.issuer}"\nclient_id = "lockgate"\n')
        async with running(folder, ONE, auth=str(path)) as place:
            await Accounts(place.gateway.database).create("alice", PASSWORD)
            yield place, corp


async def leave(browser: Browser) -> dict[str, str]:
    """What the gateway asks the provider for when this browser wants to sign in."""
    page = await browser.get("/oauth/login")
    left = await browser.submit(page, "/oauth/login/provider")
    assert left.status == 303, left
    return {name: value for name, (value,) in parse_qs(urlsplit(left.headers["location"]).query).items()}


def id_token(corp: Provider, asked: dict[str, str], access: str, key: RSAKey | None = None, **changes: Any) -> Any:
    """What the provider's token endpoint answers."""
    given = {"nonce": asked["nonce"], **changes}
    return {"access_token": access, "id_token": corp.token("lockgate", key, {"typ": "JWT"}, **given)}


def half(access: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(access.encode()).digest()[:16]).rstrip(b"=").decode()


@pytest.mark.advisory("CVE-2026-28498")  # Authlib before 1.6.9
async def test_an_id_token_that_is_bound_to_another_access_token_signs_nobody_in(tmp_path: Path) -> None:
    async with logging_in(tmp_path) as (place, corp):
        cases: list[tuple[dict[str, Any], int]] = [
            ({}, 303),
            ({"at_hash": half("theirs")}, 303),
            ({"at_hash": half("another")}, 403),
            ({"at_hash": ""}, 403),
            ({"at_hash": 5}, 403),
            ({"at_hash": [half("theirs")]}, 403),
        ]
        for changes, expected in cases:
            browser = Browser(place.url)
            asked = await leave(browser)
            corp.answers["/token"] = id_token(corp, asked, "theirs", **changes)
            assert (await browser.get(f"/oauth/callback?code=x&state={asked['state']}")).status == expected, changes
        # An algorithm that is not known leaves nothing unchecked either.
        browser = Browser(place.url)
        asked = await leave(browser)
        token = id_token(corp, asked, "theirs", at_hash=half("another"))
        _, claims, signature = token["id_token"].split(".")
        head = part({"alg": "XX999", "typ": "JWT", "kid": "one"})
        corp.answers["/token"] = {**token, "id_token": f"{head}.{claims}.{signature}"}
        assert (await browser.get(f"/oauth/callback?code=x&state={asked['state']}")).status == 403


@pytest.mark.advisory("GHSA-fg6f-75jq-6523")  # Authlib's sign-in state in a cache that all browsers share
async def test_the_answer_of_a_provider_is_for_the_browser_that_left_for_it(tmp_path: Path) -> None:
    async with logging_in(tmp_path) as (place, corp):
        attacker, victim = Browser(place.url), Browser(place.url)
        asked = await leave(attacker)
        await leave(victim)
        corp.answers["/token"] = id_token(corp, asked, "theirs")
        back = f"/oauth/callback?code=x&state={asked['state']}"
        came = await victim.get(back)
        assert (came.status, "lockgate-session" in victim.cookies) == (403, False)
        assert corp.asked["/token"] == 0
        # It was good once, and that was it: not even for the browser that began.
        assert (await attacker.get(back)).status == 403
        asked = await leave(victim)
        corp.answers["/token"] = id_token(corp, asked, "theirs")
        came = await victim.get(f"/oauth/callback?code=x&state={asked['state']}")
        assert (came.status, "lockgate-session" in victim.cookies) == (303, True)


@pytest.mark.advisory("CVE-2026-44681")  # Authlib before 1.6.12, and 1.7.0
async def test_a_wrong_request_sends_nobody_to_an_address_of_its_own(tmp_path: Path) -> None:
    async with signing_in(tmp_path) as (_, browser, program):
        for kind in ("id_token", "token", "id_token token", "code id_token", "code token", "code id_token token", "x"):
            for changes in ({"redirect_uri": "https://evil.example/"}, {}, {"client_id": "nobody"}):
                for mode in ({}, {"response_mode": "fragment"}, {"nonce": ""}, {"scope": "openid"}):
                    answer = await browser.get(program.address(response_type=kind, **changes, **mode))
                    assert (answer.status, "location" in answer.headers) == (400, False), (kind, changes, mode)
