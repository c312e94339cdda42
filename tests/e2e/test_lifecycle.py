"""Servers start once, stop when idle, die alone, and leave nothing, whatever happens to them or to the gateway.

Knows no insides: containers as the Docker Engine shows them, processes as /proc does.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import catalogs
from tests.e2e.gateways import STARTER, RunningGateway, alive, eventually, exists, lockgate
from tests.e2e.plain_client import Answer, opened

CLIENTS = 20
LONG = "everything__trigger-long-running-operation"
CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "time": ("get_current_time", {"timezone": "UTC"}),
    "filesystem": ("list_directory", {"path": "/data"}),
    "memory": ("read_graph", {}),
    "sequentialthinking": (
        "sequentialthinking",
        {"thought": "Done.", "thoughtNumber": 1, "totalThoughts": 1, "nextThoughtNeeded": False},
    ),
    "git": ("git_status", {"repo_path": "/data/none"}),
    "SQLite": ("list_tables", {}),
    "everything": ("echo", {"message": "hello"}),
}
"""One harmless call to each; git has no repository here, and says so."""
BROKEN = ("broken-package", "broken-command", "broken-volume")
SEEN_S = 30
START_S = 60


def tell_time(gateway: RunningGateway) -> Answer:
    with opened(gateway.url) as client:
        return client.call("time__get_current_time", {"timezone": "UTC"})


def in_thread(work: Callable[[], Answer]) -> "Future[Answer]":
    """The answer to come of a call that blocks."""
    threads = ThreadPoolExecutor(1)
    future = threads.submit(work)
    threads.shutdown(wait=False)
    return future


def start_lines(gateway: RunningGateway, server: str) -> list[str]:
    lines = gateway.admin("GET", f"/servers/{server}/logs")["lines"]
    return [line["text"] for line in lines if line["text"].startswith(("starting container", "started process"))]


# -- starting ------------------------------------------------------------------------------------


@pytest.mark.docker
def test_the_first_calls_of_twenty_clients_start_one_container(learnt_state: Path) -> None:
    with RunningGateway(learnt_state, runtime="docker") as gateway:
        together = threading.Barrier(CLIENTS)

        def first_call(_: int) -> Answer:
            with opened(gateway.url) as client:
                together.wait()
                return client.call("time__get_current_time", {"timezone": "UTC"})

        assert gateway.containers(all=True) == []
        with ThreadPoolExecutor(CLIENTS) as threads:
            answers = list(threads.map(first_call, range(CLIENTS)))
        assert [answer.text for answer in answers if answer.result.get("isError")] == []
        assert len(gateway.containers(all=True)) == 1
        assert len(start_lines(gateway, "time")) == 1


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory, docker_gateway: RunningGateway) -> Iterator[RunningGateway]:
    """The starter servers, known from before, beside three entries that cannot start."""
    folder = tmp_path_factory.mktemp("broken")
    unheard_of = {"ecosystem": "pypi", "name": "mcp-server-time", "version": "1900.1.1"}
    catalog = catalogs.write(
        folder / "catalog.yaml",
        {
            **{id: catalogs.shipped(id) for id in STARTER},
            "broken-package": catalogs.shipped("time", image=None, args=None, package=unheard_of),
            "broken-command": catalogs.in_image_of("time", "mcp-server-nowhere"),
            "broken-volume": catalogs.in_image_of("git", "sleep", "60", volumes=[{"name": "data", "target": "/data"}]),
        },
    )
    state = folder / "state"
    state.mkdir(mode=0o700)
    (state / "volumes" / "broken-volume").mkdir(parents=True)
    (state / "volumes" / "broken-volume" / "data").write_text("a file where a folder should be mounted")
    (state / "listings").symlink_to(docker_gateway.state / "listings")
    with RunningGateway(state, runtime="docker", catalog=catalog) as gateway:
        yield gateway


def failed(gateway: RunningGateway, id: str) -> str:
    """Why a server failed, once it has."""
    eventually(f"{id} has failed", lambda: gateway.server(id)["state"] == "failed", START_S)
    return str(gateway.server(id)["error"])


@pytest.mark.docker
def test_a_broken_package_command_or_volume_is_reported_with_its_reason(broken: RunningGateway) -> None:
    package, command, volume = (failed(broken, id) for id in BROKEN)
    assert "the Docker Engine could not start broken-volume" in volume
    assert "not a directory" in volume
    assert "the installer said:" in package
    assert "mcp-server-time==1900.1.1" in package
    assert "its program was not found in lockgate.local/time:" in command
    assert "lockgate server logs broken-command" in command
    assert "mcp-server-nowhere: not found" in broken.cli("server", "logs", "broken-command").stdout


@pytest.mark.docker
def test_a_broken_entry_costs_its_own_tools_only(broken: RunningGateway) -> None:
    with opened(broken.url) as client:
        names = {tool["name"] for tool in client.request("tools/list").result["tools"]}
        assert {name.partition("__")[0] for name in names} == set(STARTER)
        for server, (tool, arguments) in CALLS.items():
            answer = client.call(f"{server}__{tool}", arguments)
            refused = bool(answer.result.get("isError"))
            assert refused == (server == "git"), answer.text
        assert client.call("broken-command__anything").messages[0]["error"]["code"] == -32602


@pytest.mark.docker
def test_a_start_that_failed_leaves_no_container(broken: RunningGateway) -> None:
    for id in BROKEN:
        failed(broken, id)

    def none_left() -> bool:
        # A client that lists tools has a failed server tried again, so there may be one for a moment.
        return not [one for one in broken.containers(all=True) if one.labels["lockgate.server"].startswith("broken")]

    eventually("no container of a broken entry is left", none_left, SEEN_S)


@pytest.mark.usefixtures("docker_gateway")  # which has the image
@pytest.mark.docker
def test_a_call_to_a_listed_server_that_cannot_start_any_more_says_why_and_that_a_retry_is_safe(tmp_path: Path) -> None:
    script = 'test ! -e /data/broken && exec python3 -c "$0"'
    volume = {"name": "data", "target": "/data"}
    servers = {"small": catalogs.in_image_of("time", "sh", "-c", script, catalogs.SMALL, volumes=[volume])}
    catalog = catalogs.write(tmp_path / "catalog.yaml", servers)
    with RunningGateway(tmp_path / "state", runtime="docker", catalog=catalog) as gateway:
        gateway.wait_until_learnt(["small"])
        gateway.admin("POST", "/servers/small/stop")
        eventually("it has stopped", lambda: gateway.server("small")["state"] == "idle", SEEN_S)
        flag = gateway.state / "volumes" / "small" / "data" / "broken"
        flag.touch()
        with opened(gateway.url) as client:
            assert [tool["name"] for tool in client.request("tools/list").result["tools"]] == ["small__hello"]
            answer = client.call("small__hello")
            assert answer.result["isError"]
            assert "server small failed to start" in answer.text
            assert "its container ended with exit code 1" in answer.text
            assert answer.text.endswith("The request was not sent: a retry is safe.")
            flag.unlink()
            eventually("it works again", lambda: client.call("small__hello").text == "hello", SEEN_S)


# -- stopping ------------------------------------------------------------------------------------


@pytest.mark.docker
def test_an_idle_server_is_stopped_and_the_next_call_starts_it_again(tmp_path: Path) -> None:
    entry = catalogs.shipped("time", limits={"idle_s": 1})
    catalog = catalogs.write(tmp_path / "catalog.yaml", {"time": entry})
    with RunningGateway(tmp_path / "state", runtime="docker", catalog=catalog) as gateway:
        gateway.wait_until_learnt(["time"])
        for _ in range(2):
            assert not tell_time(gateway).result.get("isError")
            eventually("the idle container is gone", lambda: not gateway.containers(all=True), SEEN_S)
            eventually("it is shown as idle", lambda: gateway.server("time")["state"] == "idle", SEEN_S)
        assert "stopped after 1 s without a call" in gateway.cli("server", "logs", "time").stdout


@pytest.mark.docker
def test_a_call_under_way_keeps_an_otherwise_idle_server_running(tmp_path: Path) -> None:
    entry = catalogs.shipped("everything", limits={"idle_s": 1})
    catalog = catalogs.write(tmp_path / "catalog.yaml", {"everything": entry})
    with RunningGateway(tmp_path / "state", runtime="docker", catalog=catalog) as gateway:
        gateway.wait_until_learnt(["everything"])
        with opened(gateway.url) as client:
            answer = client.call(LONG, {"duration": 4, "steps": 2})
        assert "completed" in answer.text


@pytest.mark.docker
def test_a_container_killed_in_mid_call_costs_that_call_only(docker_gateway: RunningGateway) -> None:
    with opened(docker_gateway.url) as client, opened(docker_gateway.url) as other:
        assert other.call("everything__echo", {"message": "before"}).text == "Echo: before"
        (container,) = docker_gateway.containers_of("everything")
        pending = in_thread(lambda: client.call(LONG, {"duration": 60, "steps": 2}))
        eventually("the call is under way", lambda: docker_gateway.server("everything")["in_flight"] == 1, SEEN_S)
        container.kill()
        answer = pending.result(SEEN_S)
        assert answer.result["isError"]
        assert "server everything went away during the call" in answer.text
        assert "exit code 137" in answer.text
        assert "It is unknown whether the request was carried out: a retry may repeat side effects." in answer.text

        def works_again() -> bool:
            attempt = other.call("everything__echo", {"message": "after"})
            if attempt.result.get("isError"):
                # A server that ends soon after its start is given a pause; nothing was sent meanwhile.
                assert "a retry is safe" in attempt.text
                return False
            return attempt.text == "Echo: after"

        eventually("the next call works", works_again, SEEN_S)
        eventually("the killed container is gone", lambda: not exists(container), SEEN_S)
        assert len(docker_gateway.containers_of("everything")) == 1


@pytest.mark.usefixtures("docker_gateway")  # which has the image
@pytest.mark.docker
def test_sigterm_in_the_middle_of_a_start_leaves_nothing(tmp_path: Path) -> None:
    catalog = catalogs.write(tmp_path / "catalog.yaml", {"silent": catalogs.in_image_of("time", "sleep", "1000")})
    with RunningGateway(tmp_path / "state", runtime="docker", catalog=catalog) as gateway:
        eventually("its container runs", lambda: gateway.containers_of("silent"), SEEN_S)
        assert gateway.server("silent")["state"] == "starting"
        # Leaving the context sends SIGTERM and looks for what is left.


@pytest.mark.docker
def test_sigint_in_the_middle_of_a_call_leaves_nothing(learnt_state: Path) -> None:
    with RunningGateway(learnt_state, runtime="docker") as gateway, opened(gateway.url) as client:
        pending = in_thread(lambda: client.call(LONG, {"duration": 100, "steps": 2}))
        eventually("the call is under way", lambda: gateway.server("everything")["in_flight"] == 1, SEEN_S)
        gateway.process.send_signal(signal.SIGINT)
        assert gateway.process.wait(SEEN_S) == 0
        gateway.assert_nothing_left()
        assert pending.result(SEEN_S).messages[-1]["error"]["message"] == "Request cancelled"


# -- a gateway that dies, and its successor ------------------------------------------------------


@pytest.mark.usefixtures("docker_gateway")  # which has the image
@pytest.mark.docker
def test_a_new_gateway_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    servers = {
        "polite": catalogs.in_image_of("time", "python3", "-c", catalogs.SMALL),
        "stubborn": catalogs.in_image_of("time", "python3", "-c", catalogs.STUBBORN),
    }
    catalog = catalogs.write(tmp_path / "catalog.yaml", servers)
    first = RunningGateway(tmp_path / "state", runtime="docker", catalog=catalog)
    first.start()
    first.wait_until_ready()
    first.wait_until_learnt(servers)
    (polite,), (stubborn,) = first.containers_of("polite"), first.containers_of("stubborn")
    first.kill()
    # A server that ends with its stdin is gone by itself, for the engine closes that with the gateway's connection.
    eventually("the polite server is gone", lambda: not exists(polite), SEEN_S)
    assert exists(stubborn)
    with RunningGateway(tmp_path / "state", runtime="docker", catalog=catalog) as second:
        eventually("the stubborn server is gone", lambda: not exists(stubborn), SEEN_S)
        assert second.containers(all=True) == []


@pytest.mark.node
def test_servers_that_are_processes_die_with_their_gateway(process_gateway: RunningGateway, tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    (state / "listings").symlink_to(process_gateway.state / "listings")
    gateway = RunningGateway(state, runtime="process")
    gateway.start()
    gateway.wait_until_ready()
    assert not tell_time(gateway).result.get("isError")
    with opened(gateway.url) as client:
        assert client.call("everything__echo", {"message": "hello"}).text == "Echo: hello"
    family = gateway.family()
    assert len(family) > 4
    gateway.kill()
    eventually("the servers are gone", lambda: not alive(family), SEEN_S)
    gateway.assert_nothing_left(family)


@pytest.mark.docker
def test_a_second_gateway_on_the_same_state_folder_is_refused(docker_gateway: RunningGateway) -> None:
    done = docker_gateway.cli("serve", "--no-model")
    assert done.returncode == 1
    wanted = f"lockgate: another gateway uses {docker_gateway.state}; stop it or set LOCKGATE_STATE_DIR"
    assert done.stderr.strip() == wanted
    assert docker_gateway.get("/healthz")[0] == 200


def test_a_port_that_is_taken_is_reported(process_gateway: RunningGateway, state: Path) -> None:
    port = process_gateway.url.rpartition(":")[2]
    done = lockgate("serve", "--no-model", "--port", port, state=state, runtime="process")
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
    assert "set LOCKGATE_PORT to a free port" in done.stderr


# -- what a container may do ---------------------------------------------------------------------


@pytest.fixture(scope="module", params=STARTER)
def container(request: pytest.FixtureRequest, docker_gateway: RunningGateway) -> Any:
    """The container of each starter server."""
    docker_gateway.admin("POST", f"/servers/{request.param}/start")
    (found,) = docker_gateway.containers_of(request.param)
    return found


@pytest.mark.docker
def test_a_container_has_no_network_no_capability_and_no_way_to_gain_one(container: Any) -> None:
    host = container.attrs["HostConfig"]
    assert host["NetworkMode"] == "none"
    assert host["CapDrop"] == ["ALL"]
    assert not host["CapAdd"]
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert not host["Privileged"]
    assert (host["PidMode"], host["IpcMode"], host["UTSMode"]) == ("", "private", "")
    assert not host["Devices"]
    interfaces = container.exec_run(["cat", "/proc/net/dev"]).output.decode().splitlines()[2:]
    assert [line.split(":")[0].strip() for line in interfaces] == ["lo"]
    status = dict(line.split(":\t", 1) for line in told(container, "/proc/1/status") if ":\t" in line)
    assert {status[name].strip() for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert status["NoNewPrivs"].strip() == "1"
    assert status["Uid"].split()[0] != "0"


def told(container: Any, file: str) -> list[str]:
    lines: list[str] = container.exec_run(["cat", file]).output.decode().splitlines()
    return lines


@pytest.mark.docker
def test_a_container_writes_only_into_its_volume_and_a_small_tmp(
    container: Any, docker_gateway: RunningGateway
) -> None:
    host = container.attrs["HostConfig"]
    assert host["ReadonlyRootfs"]
    assert set(host["Tmpfs"]) == {"/tmp"}
    assert {"noexec", "nosuid", "nodev", "size=64m"} <= set(host["Tmpfs"]["/tmp"].split(","))
    id = container.labels["lockgate.server"]
    own = docker_gateway.state / "volumes" / id / "data"
    has_volume = id in ("filesystem", "memory", "git", "SQLite")
    assert (host["Binds"] or []) == ([f"{own}:/data:rw"] if has_volume else [])
    assert container.exec_run(["sh", "-c", "touch /etc/x /opt/x /usr/x /x"]).exit_code != 0
    assert container.exec_run(["sh", "-c", "touch /tmp/x"]).exit_code == 0


@pytest.mark.docker
def test_a_container_has_limits_an_init_and_no_log_on_disk(container: Any) -> None:
    host = container.attrs["HostConfig"]
    assert host["Memory"] == host["MemorySwap"] == 512 * 1024 * 1024
    assert host["NanoCpus"] == 1_000_000_000
    assert host["PidsLimit"] == 128
    limits = {limit["Name"]: limit["Hard"] for limit in host["Ulimits"]}
    assert {name: limits[name] for name in ("nofile", "core", "fsize")} == {"nofile": 4096, "core": 0, "fsize": 1 << 30}
    assert limits.keys() == {"nofile", "core", "fsize", "nproc"}
    assert host["Init"]
    assert host["AutoRemove"]
    assert host["LogConfig"]["Type"] == "none"
    assert host["RestartPolicy"]["Name"] == "no"


@pytest.mark.docker
def test_a_container_knows_nothing_of_the_gateways_environment(container: Any) -> None:
    names = {setting.partition("=")[0] for setting in container.attrs["Config"]["Env"]}
    own = {"git": {"GIT_CONFIG_COUNT", "GIT_CONFIG_KEY_0", "GIT_CONFIG_VALUE_0"}, "memory": {"MEMORY_FILE_PATH"}}
    assert names == {"PATH", "HOME", "PYTHONDONTWRITEBYTECODE"} | own.get(container.labels["lockgate.server"], set())
