"""Secrets in the headers of remote servers: they arrive, and are seen nowhere else."""

import json
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import UpstreamUnavailable
from gateway.secrets import variable
from tests.gateway.leaks import assert_absent, remember, sweep_files, sweep_processes
from tests.gateway.running import Place, running
from tests.servers.remote import RemoteServer, remote

pytestmark = pytest.mark.anyio

CANARY = "remote-c4nary/+=of a header"
OTHER = "an0ther-canary-in-a-header"
SECRETS = [
    {"name": "far.key", "header": "Authorization", "prefix": "Bearer "},
    {"name": "far.other", "header": "X-Other"},
    {"name": "far.absent", "header": "X-Absent", "required": False},
]


@pytest.fixture(autouse=True)
def values(monkeypatch: pytest.MonkeyPatch) -> None:
    remember([CANARY, OTHER])
    monkeypatch.setenv(variable("far.key"), CANARY)
    monkeypatch.setenv(variable("far.other"), OTHER)


def entries(server: RemoteServer, **more: Any) -> dict[str, Any]:
    far = {"url": server.url, "headers": {"X-Team": "a b"}, **more}
    return {"far": {"remote": far, "secrets": SECRETS}, "good": ["friendly"]}


def all_carry_them(server: RemoteServer) -> None:
    assert server.requests
    for request in server.requests:
        assert request.headers["authorization"] == f"Bearer {CANARY}"
        assert request.headers["x-other"] == OTHER
        assert request.headers["x-team"] == "a b"
        assert "x-absent" not in request.headers


async def told(place: Place) -> bytes:
    """Everything the gateway says of the server: its log, the audit file, and what an admin is shown."""
    token = [("Authorization", f"Bearer {place.service.running.admin_token}")]
    shown = [
        (await place.http.request("GET", f"/admin/servers/far{path}", headers=token)).body for path in ("", "/logs")
    ]
    audit = (place.gateway.settings.state_dir / "audit.jsonl").read_bytes()
    return b"\n".join([*shown, audit, "\n".join(place.log("far")).encode()])


@pytest.mark.sec("SEC-058")
@pytest.mark.sec("SEC-059")
@pytest.mark.parametrize("old", [False, True])
async def test_secrets_arrive_in_headers_and_stand_nowhere_else(tmp_path: Path, old: bool) -> None:
    options = {"old": True} if old else {}
    transport = {"transport": "sse"} if old else {}
    async with remote(**options) as server, running(tmp_path, entries(server, **transport)) as place:
        session = await place.session()
        # A server that repeats what it got is cut short.
        said = await session.call("far__echo", {"it": f"{CANARY} {OTHER}"})
        assert json.loads(said)["it"] == "[hidden secret: far.key] [hidden secret: far.other]"
        all_carry_them(server)
        assert_absent("what is told of the server", await told(place), [CANARY, OTHER])
        sweep_processes([CANARY, OTHER])
    all_carry_them(server)
    sweep_files(tmp_path, [CANARY, OTHER])


@pytest.mark.sec("SEC-058")
async def test_a_refusal_that_repeats_a_secret_does_not_show_it(tmp_path: Path) -> None:
    body = b"x" * 280 + f"no entry with {CANARY} or {OTHER}".encode()  # cut off in the middle of the first
    answer = b"HTTP/1.1 500 No\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    async with remote(raw={"tools/call": answer}) as server, running(tmp_path, entries(server)) as place:
        session = await place.session()
        failure = await session.failure("far__echo", {"x": 1})
        assert "HTTP 500" in failure
        assert "remote-c4" not in failure
        assert_absent("what is told of the server", await told(place), [CANARY, OTHER])
        assert json.loads(await session.call("good__echo", {"still": "fine"})) == {"still": "fine"}


@pytest.mark.sec("SEC-063")
@pytest.mark.parametrize("value", [None, "two\nlines-of-it-123", "ends in a space 123 ", "ünprintable-123"])
async def test_a_secret_that_is_missing_or_fits_no_header_is_named_and_nothing_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    if value is None:
        monkeypatch.delenv(variable("far.key"))
    else:
        monkeypatch.setenv(variable("far.key"), value)
    async with remote() as server, running(tmp_path, entries(server)) as place:
        with pytest.raises(UpstreamUnavailable) as refused:
            await place.gateway.pool.connection("far")
        assert not server.requests
        said = str(refused.value)
        wanted = "is missing: run lockgate secret set far.key" if value is None else "cannot stand in a header"
        assert f"the secret far.key {wanted}" in said
        assert "123" not in said
        session = await place.session()
        assert json.loads(await session.call("good__echo", {"still": "fine"})) == {"still": "fine"}
