"""A whole gateway with a server that has secrets and listed hosts: what callers, audit and command line see."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from anyio import to_thread

from catalog import Entry, Mount, Package, Secret
from gateway.errors import UpstreamUnavailable
from gateway.packages import PackageStore
from gateway.runs import Run
from gateway.runtimes.process import ProcessRuntime
from gateway.secrets import EnvironmentSecrets, Secrets, variable
from gateway.serverlog import ServerLog
from gateway.upstream import Upstream
from tests.gateway.leaks import assert_absent, remember, sweep_files, sweep_processes
from tests.gateway.running import running
from tests.gateway.sandboxes import PROBE, base_image, docker_url, engine
from tests.gateway.test_runtimes import descendant
from tests.servers import DEADLINE_S, until

pytestmark = pytest.mark.anyio

CANARY = 'whole-c4nary/+"value" 0123456789'
HOSTS = ["allowed.example:443", "*.wild.example:8443"]


def command(*arguments: str, state: Path, catalog: Path) -> str:
    environ = os.environ | {
        "LOCKGATE_STATE_DIR": str(state),
        "LOCKGATE_CATALOG": str(catalog),
        "LOCKGATE_PROFILE": "all",
    }
    argv = [str(Path(sys.executable).parent / "lockgate"), *arguments]
    return subprocess.run(argv, env=environ, capture_output=True, text=True, check=True, timeout=DEADLINE_S * 3).stdout


@pytest.mark.docker
@pytest.mark.sec("SEC-058")
@pytest.mark.sec("SEC-059")
@pytest.mark.sec("SEC-070")
async def test_secrets_and_denied_attempts_through_a_whole_gateway(
    tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine().close()
    remember([CANARY])
    monkeypatch.setenv(variable("probe.key"), CANARY)
    server = {
        "image": await base_image(cache_dir),
        "args": ["python3", "-c", PROBE.read_text()],
        "network": "internet",
        "hosts": HOSTS,
        "secrets": [{"name": "probe.key", "env": "KEY"}],
        "limits": {"start_timeout_s": 120.0, "call_timeout_s": 60.0},
    }
    missing = {**server, "hosts": [], "network": "none", "secrets": [{"name": "other.key", "env": "KEY"}]}
    changes = {"runtime": "docker", "cache_dir": cache_dir, "docker_host": docker_url()}
    async with running(tmp_path, {"probe": server, "other": missing}, **changes) as place:
        assert variable("probe.key") not in os.environ
        session = await place.session()

        async def run(code: str) -> str:
            return await session.call("probe__run", {"code": code})

        assert json.loads(await run("import os; result = os.environ['KEY'][::-1]")) == CANARY[::-1]
        said = await run("import os, sys; print(os.environ['KEY'], file=sys.stderr); result = os.environ['KEY']")
        assert "[hidden secret: probe.key]" in said
        assert_absent("an answer", said.encode(), [CANARY])
        denied = "import socket\ntry: socket.gethostbyname('denied.example')\nexcept OSError as exc: result = str(exc)"
        assert "not known" in await run(denied)
        await until(lambda: [one for one in place.audit() if one["method"] == "egress"], "the attempt is audited")
        state = place.gateway.settings.state_dir
        shown = await to_thread.run_sync(
            lambda: command("server", "egress", "probe", state=state, catalog=tmp_path / "catalog.yaml")
        )
        as_json = await to_thread.run_sync(
            lambda: command("server", "egress", "probe", "--json", state=state, catalog=tmp_path / "catalog.yaml")
        )
        with pytest.raises(UpstreamUnavailable) as refused:
            await place.gateway.pool.connection("other")
        log = "\n".join(place.log("probe")).encode()
        sweep_processes([CANARY])
    records = [one for one in place.audit() if one["method"] == "egress"]
    assert {(one["server"], one["name"], one["outcome"]) for one in records} == {
        ("probe", "denied.example:53", "denied")
    }
    assert [one["detail"] for one in place.audit() if one["method"] == "tools/call"].count("secret hidden") == 1
    assert "allowed.example:443, *.wild.example:8443" in shown
    assert "denied.example" in shown
    found = json.loads(as_json)
    assert (found["reach"], found["hosts"]) == ("hosts", HOSTS)
    assert found["attempts"][-1]["host"] == "denied.example"
    # SEC-063: a secret that is missing is named, and how to set it.
    missing = "the secret other.key is missing: run lockgate secret set other.key or set LOCKGATE_SECRET_OTHER__KEY"
    assert missing in str(refused.value)
    assert b"[hidden secret: probe.key]" in log
    assert_absent("the log", log, [CANARY])
    sweep_files(tmp_path, [CANARY])


# -- processes -----------------------------------------------------------------------------------


def process_entry(**parts: object) -> Entry:
    package = Package(ecosystem="pypi", name="mcp-server-time", version="2026.10.19")
    named = {"id": "probe", "title": "x", "description": "x", "package": package, "command": ("mcp-server-time",)}
    return Entry.model_validate(named | parts)


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ({"network": "internet", "hosts": ("a.example:443",)}, "traffic of a process is not filtered"),
        ({"mounts": (Mount(source="/srv/x", target="/x"),)}, "could be exchanged"),
        ({"container_runtime": "runsc"}, "container runtime runsc"),
    ],
)
async def test_a_process_is_refused_what_only_a_container_can_be_held_to(
    tmp_path: Path, cache_dir: Path, parts: dict[str, object], why: str
) -> None:
    with Run(tmp_path / "state") as run:
        runtime = ProcessRuntime(PackageStore(cache_dir), tmp_path / "volumes", run)
        log = ServerLog()
        upstream = Upstream("probe", log, call_timeout_s=DEADLINE_S, on_notification=lambda *_: None)
        with pytest.raises(UpstreamUnavailable, match=why):
            await runtime.start(process_entry(**parts), upstream, log)


@pytest.mark.sec("SEC-058")
async def test_a_sandboxed_process_gets_its_secrets_and_no_argument_shows_them(tmp_path: Path, cache_dir: Path) -> None:
    values = {"probe.key": CANARY, "probe.file": "in-a-file-c4nary"}
    remember(values.values())
    secrets = (Secret(name="probe.key", env="KEY"), Secret(name="probe.file", file="token"))
    store = Secrets([EnvironmentSecrets({variable(name): value for name, value in values.items()})])
    with Run(tmp_path / "state") as run:
        runtime = ProcessRuntime(PackageStore(cache_dir), tmp_path / "volumes", run, store)
        if "bubblewrap" not in runtime.label:
            pytest.skip("no bubblewrap")
        log = ServerLog()
        entry = process_entry(secrets=secrets)
        await runtime.prepare(entry, log)
        upstream = Upstream("probe", log, call_timeout_s=DEADLINE_S, on_notification=lambda *_: None)
        channel = await runtime.start(entry, upstream, log)
        try:
            await upstream.open(channel)
            inner = Path(f"/proc/{descendant(int(channel.detail['pid']))}")
            assert f"KEY={CANARY}".encode() in (inner / "environ").read_bytes().split(b"\0")
            token = inner / "root/run/secrets/token"
            assert token.read_text() == values["probe.file"]
            assert oct(token.stat().st_mode)[-3:] == "400"
            assert sweep_processes(values.values()) > 1
            # A namespace of its own for processes, mounts, network and users.
            for kind in ("pid", "mnt", "net", "user", "ipc"):
                assert os.readlink(inner / f"ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")
            # Of the home folder nothing is seen but folders on the way to the package, if it lies there.
            home = inner / "root" / str(Path.home()).lstrip("/")
            assert not [one for one in home.glob("*") if one.is_file()]
            assert not (home / ".ssh").exists()
        finally:
            await channel.close()
    sweep_files(tmp_path, values.values())
