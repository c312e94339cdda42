"""Who may administer the gateway and run agents: decided by policy, and recorded with begin and end."""

import json
from pathlib import Path
from typing import Any

import pytest

from engine.transcript import Header
from gateway import auditlog
from gateway.agentuse import AgentDenied, RunUnrecorded, agent_name
from gateway.caller import Caller
from policies import Principal
from tests.gateway.running import Place, running
from tests.gateway.test_delegation import AGENT, ECHO, delegate
from tests.servers import until
from tests.servers.scripted_model import scripted_model

pytestmark = pytest.mark.anyio

CABINET = {"a": ["cabinet"]}
ONLY_LOOK = """
@id("look")
permit (principal, action == Action::"administer", resource) unless { resource.changes };
@id("servers of ann")
permit (principal == User::"ann", action == Action::"administer", resource == Area::"servers")
when { resource.server == "a" };
"""


def policy(folder: Path, name: str, text: str) -> None:
    path = folder / "policies" / f"{name}.cedar"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)


async def ask(place: Place, method: str, path: str, **body: Any) -> tuple[int, Any]:
    headers = [("Authorization", f"Bearer {place.service.running.admin_token}"), ("Content-Type", "application/json")]
    answer = await place.http.request(method, f"/admin{path}", json.dumps(body).encode() if body else b"", headers)
    return answer.status, json.loads(answer.body)


def acts(place: Place) -> list[dict[str, Any]]:
    """Every record of administration, begins too."""
    found = auditlog.records(place.gateway.settings.state_dir)
    return [one for one in found if one["method"] == "administer"]


async def test_a_fresh_gateway_lets_its_user_administer_and_records_each_change_twice(tmp_path: Path) -> None:
    async with running(tmp_path, CABINET) as place:
        assert (await ask(place, "POST", "/servers/a/start"))[0] == 200
        assert (await ask(place, "GET", "/servers"))[0] == 200
        begin, end = acts(place)
        assert (begin["event"], begin["call"]) == ("start", end["call"])
        same = ("principal", "profile", "method", "server", "item", "policy", "policies")
        assert [begin[key] for key in same] == [end[key] for key in same]
        assert (end["principal"], end["server"], end["item"]) == ("local", "a", "servers/start")
        assert (end["name"], end["outcome"], end["source"]) == ("", "ok", "127.0.0.1")
        assert end["policies"] == ["administration:administrators"]
        assert end["who"]["kind"] == "loopback"


async def test_a_policy_of_ones_own_decides_in_place_of_the_shipped_one(tmp_path: Path) -> None:
    policy(tmp_path, "administration", ONLY_LOOK)
    async with running(tmp_path, CABINET) as place:
        assert (await ask(place, "GET", "/servers/a"))[0] == 200
        status, said = await ask(place, "POST", "/servers/a/start")
        assert status == 403
        assert 'resource == Area::"servers"' in said["error"]
        assert not place.local.processes()
        (denied,) = acts(place)
        assert (denied["outcome"], denied["detail"], denied["server"]) == ("denied", "no policy permits it", "a")
        # The user is not locked out: a changed file is taken without the API.
        door = place.gateway.door
        before = door.policy.generation
        policy(tmp_path, "administration", "permit (principal, action, resource);")
        await until(lambda: door.policy.generation != before, "the changed policy is taken")
        assert (await ask(place, "POST", "/servers/a/start"))[0] == 200
        (taken,) = [one for one in acts(place) if one["item"] == "catalog/take"]
        assert (taken["principal"], taken["policy"], taken["outcome"]) == ("", door.policy.generation, "ok")


async def test_a_profile_that_is_locked_does_not_lock_its_administrator_out(tmp_path: Path) -> None:
    async with running(tmp_path, CABINET, {"all": {"servers": ["a"], "policy": "locked"}}) as place:
        assert (await ask(place, "POST", "/catalog/reload"))[0] == 200


@pytest.mark.parametrize(
    "text", ["", "forbid (principal, action, resource);", '@effect("ask")\npermit (principal, action, resource);']
)
async def test_every_route_is_denied_where_nothing_permits_it(tmp_path: Path, text: str) -> None:
    policy(tmp_path, "administration", text or 'forbid (principal, action == Action::"call", resource);')
    async with running(tmp_path, CABINET) as place:
        routes = [
            ("GET", "/catalog"), ("POST", "/catalog/reload"), ("POST", "/profiles/all/use"), ("GET", "/reviews"),
            ("POST", "/reviews/a/approve"), ("GET", "/oauth"), ("POST", "/oauth/a/revoke"), ("POST", "/secrets/list"),
            ("POST", "/secrets/set"), ("GET", "/servers"), ("GET", "/servers/a"), ("GET", "/servers/a/logs"),
            ("GET", "/servers/a/egress"), ("POST", "/servers/a/start"), ("POST", "/servers/a/stop"),
            ("GET", "/approvals"), ("GET", "/approvals/x"), ("POST", "/approvals/x/approve"),
        ]  # fmt: skip
        for method, path in routes:
            assert (await ask(place, method, path))[0] == 403, path
        assert [one["outcome"] for one in acts(place)] == ["denied"] * len(routes)


async def test_secrets_of_others_are_an_area_with_an_owner(tmp_path: Path) -> None:
    mine = (
        'permit (principal, action == Action::"administer", resource == Area::"secrets") unless { resource has owner };'
    )
    policy(tmp_path, "administration", mine)
    async with running(tmp_path, CABINET) as place:
        assert (await ask(place, "POST", "/secrets/set", name="a.key", value="sesame-1"))[0] == 200
        assert (await ask(place, "POST", "/secrets/set", name="a.key", value="sesame-2", owner="bob"))[0] == 403
        said = [(one["item"], one["name"], one["outcome"]) for one in acts(place) if "event" not in one]
        assert said == [("secrets/set", "a.key", "ok"), ("secrets/set", "a.key of bob", "denied")]
        written = b"".join(path.read_bytes() for path in place.gateway.settings.state_dir.glob("audit*.jsonl"))
        assert b"sesame" not in written


async def test_what_cannot_be_recorded_is_not_done(tmp_path: Path) -> None:
    async with running(tmp_path, CABINET) as place:
        place.gateway.audit.close()
        status, _ = await ask(place, "POST", "/servers/a/start")
        assert status == 503
        assert not place.local.processes()
        place.gateway.audit.open()


# -- agents --------------------------------------------------------------------------------------


def header(run: str = "r1", agent: str = "", model: str = "small") -> Header:
    return Header(run, 0.0, "Do it.", model, "all", agent=agent)


def runs(place: Place) -> list[dict[str, Any]]:
    return [one for one in auditlog.records(place.gateway.settings.state_dir) if one["method"] == "agents/run"]


async def test_a_delegated_run_is_recorded_with_what_it_came_to(tmp_path: Path) -> None:
    servers = {"good": ["friendly"], "agent": AGENT}
    with scripted_model([ECHO], "Seven.") as model:
        async with running(tmp_path, servers, model=model.url) as place:
            await delegate(await place.session())
            begin, end = runs(place)
            assert (begin["event"], begin["call"]) == ("start", end["call"])
            assert (end["item"], end["name"], end["outcome"]) == ("delegate", model.url, "ok")
            assert (end["steps"], end["calls"]) == (2, 1)
            assert end["policies"] == ["profile:all", "open:everything"]
            assert end["arguments"] == begin["arguments"] != ""


async def test_a_policy_that_permits_calls_only_lets_no_agent_run(tmp_path: Path) -> None:
    calls = 'permit (principal, action in [Action::"call", Action::"use"], resource);'
    policy(tmp_path, "mine", calls)
    servers = {"good": ["friendly"], "agent": AGENT}
    with scripted_model("Never asked.") as model:
        profile = {"all": {"servers": ["good", "agent"], "policy": "mine"}}
        async with running(tmp_path, servers, profile, model=model.url) as place:
            result = await delegate(await place.session())
            assert result["isError"]
            assert 'resource == Agent::"delegate"' in result["content"][0]["text"]
            assert [one["outcome"] for one in runs(place)] == ["denied"]
            assert not model.asked


async def test_agents_are_told_apart_by_name_and_model(tmp_path: Path) -> None:
    text = """
    permit (principal, action == Action::"run", resource == Agent::"tidy") when { resource.model == "small" };
    """
    policy(tmp_path, "mine", text)
    async with running(tmp_path, CABINET, {"all": {"servers": ["a"], "policy": "mine"}}) as place:
        uses, caller = place.gateway.agent_uses, Caller(Principal("ann", "user"), place.gateway.profile)
        with uses.run(caller, header(agent="/somewhere/tidy.yaml")):
            pass
        for refused in (header(), header(agent="tidy", model="large"), header(agent="other")):
            with pytest.raises(AgentDenied), uses.run(caller, refused):
                raise AssertionError("it ran")
        ends = [one for one in runs(place) if "event" not in one]
        assert [(one["item"], one["outcome"]) for one in ends] == [
            ("tidy", "cancelled"),
            ("unnamed", "denied"),
            ("tidy", "denied"),
            ("other", "denied"),
        ]


async def test_a_run_of_the_command_line_says_so_and_ends_with_the_gateway_at_the_latest(tmp_path: Path) -> None:
    async with running(tmp_path, CABINET) as place:
        begin = {"run": "r1", "task": "Do it.", "model": "small", "agent": "tidy"}
        assert (await ask(place, "POST", "/agents/runs", **begin))[0] == 200
        counts = {"steps": 3, "calls": 2, "tokens": 9, "stopped": "steps"}
        assert (await ask(place, "POST", "/agents/runs/r1/end", **counts))[0] == 200
        assert (await ask(place, "POST", "/agents/runs", **{**begin, "run": "r2"}))[0] == 200
        assert (await ask(place, "POST", "/agents/runs", **begin, more=1))[0] == 422
    ends = [one for one in runs(place) if "event" not in one]
    assert [(one["run"], one["outcome"], one["detail"], one["steps"]) for one in ends] == [
        ("r1", "limited", "steps", 3),
        ("r2", "cancelled", "", 0),
    ]


async def test_a_run_that_cannot_be_recorded_does_not_begin(tmp_path: Path) -> None:
    async with running(tmp_path, CABINET) as place:
        caller = Caller(Principal("ann", "user"), place.gateway.profile)
        place.gateway.audit.close()
        with pytest.raises(RunUnrecorded), place.gateway.agent_uses.run(caller, header()):
            raise AssertionError("it ran")
        place.gateway.audit.open()


def test_an_agent_is_named_by_its_name_or_its_file() -> None:
    assert [agent_name(one) for one in ("", "tidy", "/a/b/tidy.yaml")] == ["unnamed", "tidy", "tidy"]
