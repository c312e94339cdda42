"""How the gateway finds out which era a server speaks, and that it asks once; and servers of the oldest transport."""

import json
from pathlib import Path
from typing import Any

import anyio
import pytest

from gateway.wire import handshake
from tests.gateway.running import running
from tests.servers import DEADLINE_S, LOCAL
from tests.servers.remote import remote
from tests.servers.rich import Rich

pytestmark = pytest.mark.anyio

SERVERS: dict[str, dict[str, Any]] = {
    "modern": {"era": "modern"},
    "refuses the probe": {"era": "legacy"},
    "ignores the probe": {"era": "legacy", "probed": "ignore"},
    "exits at the probe": {"era": "legacy", "probed": "exit"},
}


@pytest.mark.parametrize("kind", SERVERS)
async def test_the_era_of_a_server_is_found_out_once_and_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(handshake, "PROBE_TIMEOUT_S", 0.5)
    options = SERVERS[kind]
    servers = {"a": {"package": dict(LOCAL), "command": ["rich", json.dumps(options)]}}
    first = {
        "modern": ["server/discover"],
        "refuses the probe": ["server/discover", "initialize"],
        "ignores the probe": ["server/discover", "initialize"],
        "exits at the probe": ["initialize"],
    }[kind]
    for greeting, starts in (
        (first, 2 if kind == "exits at the probe" else 1),
        (["server/discover"] if kind == "modern" else ["initialize"], 1),
    ):
        async with running(tmp_path, servers) as place:
            heard = json.loads(await (await place.session()).call("a__heard"))
            asked = [method for method in heard if method in ("server/discover", "initialize")]
            assert asked == greeting
            assert len(place.local.starts) == starts
            facts = (await place.gateway.pool.connection("a")).facts
            assert facts is not None
            assert facts.era == options["era"]


async def test_an_entry_that_changed_is_asked_anew(tmp_path: Path) -> None:
    for options in ({"era": "legacy"}, {"era": "modern"}):
        servers = {"a": {"package": dict(LOCAL), "command": ["rich", json.dumps(options)]}}
        async with running(tmp_path, servers) as place:
            assert "server/discover" in json.loads(await (await place.session()).call("a__heard"))


# -- HTTP+SSE of revision 2024-11-05 -------------------------------------------------------------


def old(url: str) -> dict[str, Any]:
    return {"a": {"remote": {"url": url, "transport": "sse"}}}


async def test_a_server_of_the_oldest_transport_is_greeted_in_its_era_and_works_again_after_a_break(
    tmp_path: Path,
) -> None:
    async with remote(kind=Rich, old=True) as server, running(tmp_path, old(server.url)) as place:
        session = await place.session()
        heard = json.loads(await session.call("a__heard"))
        assert heard[:2] == ["initialize", "notifications/initialized"]
        upstream = await place.gateway.pool.connection("a")
        server.hang_up()
        await upstream.ended.wait()
        with anyio.fail_after(DEADLINE_S):  # a connection that ends soon after its start rests for a second
            while (answer := await session.result("tools/call", {"name": "a__heard"})).get("isError"):
                assert "next attempt in" in answer["content"][0]["text"]
                await anyio.sleep(0.05)
        assert json.loads(answer["content"][0]["text"])[0] == "initialize"
        gets = [request for request in server.requests if request.method == "GET"]
        assert len(gets) == 2
        assert all(request.headers["accept"] == "text/event-stream" for request in gets)


@pytest.mark.parametrize(
    ("endpoint", "said"),
    [
        (b"http://elsewhere.test/messages", "an address of another origin"),
        (b"//elsewhere.test/messages", "an address of another origin"),
        (None, "HTTP 405"),
    ],
)
async def test_a_server_of_the_oldest_transport_that_names_no_address_of_its_own_is_not_used(
    tmp_path: Path, endpoint: bytes | None, said: str
) -> None:
    options = {"listen": False} if endpoint is None else {"endpoint": endpoint.decode()}
    async with remote(kind=Rich, old=True, **options) as server, running(tmp_path, old(server.url)) as place:
        session = await place.session()
        assert (await session.error("tools/call", {"name": "a__heard"}))["code"] == -32602
        assert said in place.gateway.pool.servers["a"].error
        assert server.rpc("initialize") == []
