"""An engine that is not there when the gateway starts, and comes later: one of the test's own."""

import json
from pathlib import Path
from typing import Any

import pytest
from anyio import to_thread

from gateway.errors import RuntimeDown, UpstreamUnavailable
from gateway.gateway import Gateway
from gateway.serving import Service, served
from gateway.wire import envelope
from tests.e2e import catalogs
from tests.e2e.gateways import lockgate
from tests.gateway.callers import Http
from tests.gateway.engines import HELLO, client, make_tiny_image
from tests.gateway.test_engine_restart import ENGINE_S, private_engine
from tests.servers import settings, until, write_catalog

pytestmark = [pytest.mark.anyio, pytest.mark.docker]

INSTALL_S = 300.0
TINY = "lockgate.local/test-late"


async def health(service: Service) -> dict[str, Any]:
    answer = await Http(service.running.url).request("GET", "/healthz")
    assert answer.status == 200
    found: dict[str, Any] = json.loads(answer.body)
    return found


async def listed(state: Path) -> tuple[dict[str, str], str]:
    """What `lockgate server list` says: its lines by server, and what it says beside them."""
    done = await to_thread.run_sync(lambda: lockgate("server", "list", state=state))
    assert done.returncode == 0, done.stderr
    return {line.split()[0]: line for line in done.stdout.splitlines()}, done.stderr


# The docker library leaves the socket of a failed connection to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_an_engine_that_comes_late_is_used_and_until_then_everybody_is_told(
    tmp_path: Path, cache_dir: Path
) -> None:
    time = catalogs.shipped("time")
    catalog = write_catalog(tmp_path / "catalog.yaml", {"time": time, "tiny": {"image": f"{TINY}:1"}})
    async with private_engine(started=False) as private:
        choices = {"docker_host": private.url, "cache_dir": cache_dir}
        async with Gateway(settings(tmp_path / "strict", catalog, runtime="docker", **choices)) as strict:
            # Containers were asked for: a process does not take their place.
            with pytest.raises(RuntimeDown, match="LOCKGATE_RUNTIME"):
                await strict.pool.connection("time")
            assert strict.would_run(strict.catalog.entry("time"))[0] == "-"
        gateway = Gateway(settings(tmp_path, catalog, runtime="auto", **choices))
        async with gateway, served(gateway) as service:
            assert await health(service) == {"status": "ok", "containers": "waiting"}
            with pytest.raises(UpstreamUnavailable, match="needs a Docker Engine"):
                await gateway.pool.connection("tiny")
            fallback = await gateway.pool.connection("time")
            rows, text = await listed(tmp_path / "state")
            assert "running" in rows["time"]
            assert "process (" in rows["time"]
            assert "needs a Docker Engine" in rows["tiny"]
            assert f"No containers for now: no Docker Engine answers at {private.url}" in text

            await private.start()
            api = client(private.url)
            make_tiny_image(api, tmp_path, TINY)
            api.close()
            await until(lambda: gateway.no_engine is None, "the engine is picked up", ENGINE_S)
            assert await health(service) == {"status": "ok", "containers": "ready"}
            upstream = await gateway.pool.connection("tiny")  # at once: the failure before counts no more
            call = {"name": envelope.raw("hello"), "arguments": envelope.raw({})}
            assert HELLO in (await upstream.request("tools/call", call)).decode()
            await until(fallback.ended.is_set, "the process has ended", ENGINE_S)
            rows, text = await listed(tmp_path / "state")
            assert "running" in rows["tiny"]
            assert all("docker" in rows[id] and "process" not in rows[id] for id in ("tiny", "time"))
            assert "No containers" not in text

            await private.stop()
            await until(upstream.ended.is_set, "the container is gone with its engine", ENGINE_S)
            assert (await health(service))["containers"] == "waiting"
            _, text = await listed(tmp_path / "state")
            assert "No containers for now" in text
            with pytest.raises(UpstreamUnavailable):
                await gateway.pool.connection("tiny")
