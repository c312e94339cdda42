"""Follows the one call of docs/tour.md and looks at every stop that can be seen from outside.

Knows no insides: HTTP, the audit file, the Docker Engine and the command line must tell the same story.
"""

import hashlib
import json
import re
import shutil
import time
from collections.abc import Iterator

import pytest

from tests.e2e.gateways import ROOT, STARTER, RunningGateway, eventually
from tests.e2e.plain_client import Answer, PlainClient, opened

pytestmark = pytest.mark.docker

CALL = "time__get_current_time"
ARGUMENTS = {"timezone": "Asia/Tokyo"}


class Walk:
    """The first two calls through a gateway that had only recorded listings before, and what was seen on the way."""

    def __init__(self, gateway: RunningGateway) -> None:
        self.gateway = gateway
        self.before_listing = [container.name for container in gateway.containers(all=True)]
        with opened(gateway.url, client="walker") as client:
            self.listed = client.request("tools/list")
            self.after_listing = [container.name for container in gateway.containers(all=True)]
            self.states_before = {server["id"]: server["state"] for server in gateway.servers()}
            self.began = time.time()
            self.first = client.call(CALL, ARGUMENTS)
            self.ended = time.time()
            self.after_first = [container.name for container in gateway.containers(all=True)]
            self.second = client.call(CALL, ARGUMENTS)
            self.after_second = [container.name for container in gateway.containers(all=True)]


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory, docker_gateway: RunningGateway) -> Iterator[Walk]:
    state = tmp_path_factory.mktemp("walk") / "state"
    shutil.copytree(docker_gateway.state / "listings", state / "listings")
    with RunningGateway(state, runtime="docker") as gateway:
        yield Walk(gateway)


def test_the_tour_names_this_call_and_files_that_exist() -> None:
    tour = (ROOT / "docs" / "tour.md").read_text()
    assert f"`{CALL}` with `{json.dumps(ARGUMENTS)}`" in tour
    links = re.findall(r"\]\(([^)#]+)\)", tour)
    assert len(links) > 15
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []


def test_stop_1_the_guard_refuses_a_foreign_origin_or_host(walk: Walk) -> None:
    for header in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}):
        client = PlainClient(walk.gateway.url)
        answer = client.send("POST", {"Content-Type": "application/json", **header}, b"{}")
        client.close()
        assert answer.status == 403


def test_stop_1_each_profile_has_its_path(walk: Walk) -> None:
    with opened(walk.gateway.url, "/p/starter/mcp") as client:
        assert client.request("ping").result == {}
    stranger = PlainClient(walk.gateway.url, "/p/nobody/mcp")
    assert stranger.initialize("plain").status == 404
    stranger.close()


def test_stop_2_a_session_is_found_by_its_id_and_only_by_it(walk: Walk) -> None:
    with opened(walk.gateway.url) as client, opened(walk.gateway.url) as other:
        assert re.fullmatch(r"[0-9a-f]{32}", client.session)
        assert client.session != other.session
        client.session, own = "0" * 32, client.session
        assert client.request("ping").status == 404
        client.session = own
        assert client.request("ping").status == 200


def test_stop_2_the_answer_is_plain_json_unless_progress_comes_first(walk: Walk) -> None:
    assert walk.first.status == 200
    assert walk.first.headers["content-type"] == "application/json"
    assert len(walk.first.messages) == 1
    with opened(walk.gateway.url) as client:
        params = {"name": "everything__trigger-long-running-operation", "arguments": {"duration": 0.2, "steps": 2}}
        answer = client.request("tools/call", {**params, "_meta": {"progressToken": "mine"}})
    assert answer.headers["content-type"].startswith("text/event-stream")
    *progress, last = answer.messages
    assert [notice["params"]["progressToken"] for notice in progress] == ["mine", "mine"]
    assert "result" in last


def test_stop_3_the_answer_carries_the_clients_own_id(walk: Walk) -> None:
    with opened(walk.gateway.url) as client:
        message = {"jsonrpc": "2.0", "id": "a string – mine", "method": "tools/call"}
        answer = client.post({**message, "params": {"name": CALL, "arguments": ARGUMENTS}})
    assert answer.messages[0]["id"] == "a string – mine"


def tokyo(answer: Answer) -> str:
    told = json.loads(answer.text)
    assert told["timezone"] == "Asia/Tokyo"
    return str(told["datetime"])


def test_stop_4_the_door_writes_one_line_a_call_before_it_answers(walk: Walk) -> None:
    records = [line for line in walk.gateway.audit() if line["client"] == "walker"]
    assert len(records) == 2
    for record in records:
        assert (record["method"], record["name"]) == ("tools/call", CALL)
        assert (record["server"], record["item"]) == ("time", "get_current_time")
        assert (record["principal"], record["profile"]) == ("local", "starter")
        assert record["policies"] == ["profile:starter:time", "open:everything"]
        assert record["outcome"] == "ok"
        assert record["arguments"] == hashlib.sha256(json.dumps(ARGUMENTS).encode()).hexdigest()[:16]
    first, second = records
    assert walk.began - 1 <= first["at"] <= walk.ended
    assert 0 < second["ms"] < first["ms"] <= (walk.ended - walk.began) * 1000
    assert first["call"] != second["call"]
    assert tokyo(walk.first) not in (walk.gateway.state / "audit.jsonl").read_text()


def test_stop_5_listing_starts_nothing_and_the_first_call_starts_exactly_one_server(walk: Walk) -> None:
    assert len(walk.listed.result["tools"]) >= 57
    assert walk.before_listing == walk.after_listing == []
    assert walk.states_before == dict.fromkeys(STARTER, "idle")
    assert len(walk.after_first) == 1
    assert walk.after_second == walk.after_first


def test_stop_7_the_server_is_one_labelled_container(walk: Walk) -> None:
    (container,) = walk.gateway.containers_of("time")
    assert container.labels["lockgate.gateway"] == (walk.gateway.state / "gateway-id").read_text().strip()
    assert container.name in walk.after_first
    detail = walk.gateway.server("time")["detail"]
    assert (detail["container"], detail["id"]) == (container.name, container.id[:12])


def test_on_the_way_back_the_result_is_the_servers_own(walk: Walk) -> None:
    assert tokyo(walk.first).endswith("+09:00")
    assert walk.first.result["structuredContent"] == json.loads(walk.first.text)


def test_the_command_line_shows_the_server_running_and_the_others_idle(walk: Walk) -> None:
    done = walk.gateway.cli("server", "list")
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line.split()[1:4] for line in done.stdout.splitlines()[1:]}
    assert rows["time"] == ["running", "docker", "2"]
    assert rows["git"] == ["idle", "docker", "12"]


def test_the_servers_log_names_its_container(walk: Walk) -> None:
    (container,) = walk.gateway.containers_of("time")
    done = walk.gateway.cli("server", "logs", "time")
    assert f"starting container {container.name}" in done.stdout


def test_the_state_folder_is_for_its_user_only(docker_gateway: RunningGateway) -> None:
    state = docker_gateway.state
    for path in (state, state / "gateway.json", state / "audit.jsonl"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_server_stopped_by_hand_is_gone_and_comes_back_with_the_next_call(walk: Walk) -> None:
    (container,) = walk.gateway.containers_of("time")
    assert walk.gateway.cli("server", "stop", "time").returncode == 0
    eventually("its container is gone", lambda: not walk.gateway.containers_of("time"), 10)
    with opened(walk.gateway.url) as client:
        assert tokyo(client.call(CALL, ARGUMENTS))
    (fresh,) = walk.gateway.containers_of("time")
    assert fresh.id != container.id
