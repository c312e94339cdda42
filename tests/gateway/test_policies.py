"""Policies in a running gateway: who sees and does what, and how a changed file takes effect."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest

from gateway import policyfiles
from gateway.errors import PoliciesUnusable
from gateway.hearing import UPDATED
from policies import Principal
from tests.gateway.callers import Session
from tests.gateway.running import USER, Place, by_header, running
from tests.servers import DEADLINE_S, LocalGateway, settings, write_catalog

pytestmark = pytest.mark.anyio

CABINET = {"a": ["cabinet"]}
ALL = {"a__bare", "a__fetch", "a__read", "a__remove", "a__shred", "a__write"}


def profile(policy: str, **more: Any) -> Mapping[str, Mapping[str, Any]]:
    return {"all": {"servers": ["a"], "policy": policy, **more}}


def write(folder: Path, text: str, name: str = "mine") -> Path:
    path = folder / "policies" / f"{name}.cedar"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


async def reload(place: Place) -> tuple[int, Any]:
    token = [("Authorization", f"Bearer {place.service.running.admin_token}")]
    answer = await place.http.request("POST", "/admin/catalog/reload", headers=token)
    return answer.status, json.loads(answer.body)


async def test_without_a_policy_everything_selected_is_allowed(tmp_path: Path) -> None:
    async with running(tmp_path, CABINET) as place:
        session = await place.session()
        assert set(await session.tools()) == ALL
        await session.call("a__remove", {"path": "/x"})
        assert place.audit()[-1]["policies"] == ["profile:all:a", "open:everything"]


async def test_read_only_profile_shows_and_calls_only_what_says_that_it_reads(tmp_path: Path) -> None:
    async with running(tmp_path, CABINET, profile("read-only")) as place:
        session = await place.session()
        assert set(await session.tools()) == {"a__read", "a__fetch"}
        await session.call("a__read", {"path": "/x"})
        hidden = await session.error("tools/call", {"name": "a__remove", "arguments": {"path": "/x"}})
        absent = await session.error("tools/call", {"name": "a__absent", "arguments": {"path": "/x"}})
        assert {**hidden, "message": hidden["message"].replace("remove", "absent")} == absent


async def test_locked_profile_shows_nothing_and_starts_nothing_for_a_call(tmp_path: Path) -> None:
    async with running(tmp_path, CABINET, profile("locked")) as place:
        session = await place.session()
        assert await session.tools() == []
        for method, params in (
            ("tools/call", {"name": "a__read", "arguments": {}}),
            ("prompts/get", {"name": "a__greet", "arguments": {}}),
            ("resources/read", {"uri": "lockgate://a/file:///data/a"}),
            ("completion/complete", {"ref": {"type": "ref/prompt", "name": "a__greet"}, "argument": {}}),
            ("sheets/open", {}),
        ):
            await session.error(method, params)
        assert all(record["outcome"] != "ok" for record in place.audit())


@pytest.mark.sec("SEC-104")
async def test_every_method_meets_the_same_policy_under_every_name(tmp_path: Path) -> None:
    write(
        tmp_path,
        """permit (principal, action, resource) unless { resource is Tool && resource.name != "read" };
        forbid (principal, action == Action::"call", resource == Tool::"a/read")
        unless { context.path has path && context.path.path like "/data/*" };
        forbid (principal, action == Action::"read", resource is Resource)
        unless { resource has path && resource.path like "/data/*" };
        forbid (principal, action in [Action::"prompt", Action::"complete"], resource == Prompt::"a/greet");""",
    )
    async with running(tmp_path, CABINET, profile("mine")) as place:
        session = await place.session()
        assert await session.tools() == ["a__read"]
        assert json.loads(await session.call("a__read", {"path": "/data/x"})) == {"path": "/data/x"}
        for arguments in (
            {"path": "/data/../etc/x"},
            {"path": "/etc/x"},
            {"path": ["/data/x"]},
            {"Path": "/data/x"},
            {},
        ):
            assert "Denied by policy" in await session.failure("a__read", arguments)
        for name in (
            "a__READ", "A__read", "a__read ", "a__read.", "a__r%65ad", "a__re\u00adad", "a__reａd", "a/read",
            "a__./read", "a__write", "a__remove", "read", "a__read\u0000", "a___read", "a__a__read",
        ):  # fmt: skip
            error = await session.error("tools/call", {"name": name, "arguments": {"path": "/data/x"}})
            assert error["code"] == -32602, name
        assert "result" in await session.ask("resources/read", {"uri": "lockgate://a/file:///data/a"})
        for uri in ("/etc/b", "/data/../etc/b", "/data/%2e%2e/etc/b", "//etc/b", "/data/%252e%252e/etc/b"):
            error = await session.error("resources/read", {"uri": f"lockgate://a/file://{uri}"})
            assert error["code"] in (-32602, -32002), uri
        listed = await session.result("resources/list")
        assert [one["uri"] for one in listed["resources"]] == ["lockgate://a/file:///data/a"]
        assert (await session.result("prompts/list"))["prompts"] == []
        assert (await session.error("prompts/get", {"name": "a__greet", "arguments": {}}))["code"] == -32602
        reference = {"ref": {"type": "ref/prompt", "name": "a__greet"}, "argument": {"name": "x", "value": "y"}}
        assert (await session.error("completion/complete", reference))["code"] == -32602
        subscribed = await session.error("resources/subscribe", {"uri": "lockgate://a/file:///etc/b"})
        assert subscribed["code"] in (-32602, -32002)


async def test_policies_name_servers_by_their_entries_whatever_profiles_call_them(tmp_path: Path) -> None:
    write(
        tmp_path,
        """permit (principal, action, resource) unless { resource is Tool };
        permit (principal, action == Action::"call", resource == Tool::"a/read")
        when { context.path has path && context.path.path like "/data/*" };""",
    )
    details = {"one": {"server": "a"}, "two": {"server": "a"}}
    profiles = {"all": {"servers": ["one", "two"], "details": details, "policy": "mine"}}
    async with running(tmp_path, CABINET, profiles) as place:
        session = await place.session()
        assert set(await session.tools()) == {"one__read", "two__read"}
        for name in ("one__read", "two__read"):
            await session.call(name, {"path": "/data/x"})
            assert "Denied by policy" in await session.failure(name, {"path": "/etc/x"})
            await session.call(name, {"path": "/data/x"})


async def test_principals_meet_their_own_policies(tmp_path: Path) -> None:
    write(tmp_path, 'permit (principal == User::"ann", action, resource);')
    async with running(tmp_path, CABINET, profile("mine"), by_header) as place:
        ann = await Session.open(place.url, "/mcp", always=[(USER, "ann")])
        bob = await Session.open(place.url, "/mcp", always=[(USER, "bob")])
        assert set(await ann.tools()) == ALL
        assert await bob.tools() == []
        await ann.call("a__read", {"path": "/x"})
        assert (await bob.error("tools/call", {"name": "a__read", "arguments": {}}))["code"] == -32602
        assert set(await ann.tools()) == ALL


@pytest.mark.sec("SEC-106")
async def test_a_changed_policy_is_taken_by_itself_and_a_wrong_one_is_not_taken_at_all(tmp_path: Path) -> None:
    path = write(tmp_path, "permit (principal, action, resource);")
    async with running(tmp_path, CABINET, profile("mine")) as place:
        session = await place.session()
        assert set(await session.tools()) == ALL
        async with session.listening() as stream:
            path.write_text('permit (principal, action, resource == Tool::"a/read");')
            with anyio.fail_after(DEADLINE_S):
                await stream.until("notifications/tools/list_changed")
                while await session.tools() != ["a__read"]:
                    await anyio.sleep(0.02)
        before = place.gateway.door.policy.generation
        for text, words in (
            ("permit (principal, action, resource)", "mine.cedar:1: is no policy"),
            ('\npermit (principal, action, resource == Tool::"b/x");', "mine.cedar:2: names Tool"),
            (
                'permit (principal, action, resource == Tool::"a/read") when { context.args has pth };',
                "did you mean path?",
            ),
        ):
            path.write_text(text)
            status, body = await reload(place)
            assert status == 422
            assert words in body["error"]
            assert str(path) in body["error"]
            assert place.gateway.door.policy.generation == before
            assert await session.tools() == ["a__read"]
        path.unlink()
        status, body = await reload(place)
        assert status == 422
        assert "profile all has the policy mine, which is in no file" in body["error"]
        path.write_text("permit (principal, action, resource);")
        assert (await reload(place))[0] == 200
        assert set(await session.tools()) == ALL


@pytest.mark.sec("SEC-106")
async def test_calls_during_reloads_are_each_decided_by_one_policy(tmp_path: Path) -> None:
    path = write(tmp_path, "permit (principal, action, resource);")
    async with running(tmp_path, CABINET, profile("mine")) as place:
        session = await place.session()
        await session.tools()
        done = anyio.Event()

        async def turn() -> None:
            for number in range(20):
                allowed = number % 2
                path.write_text(
                    f'@id("{number}") permit (principal, action, resource);'
                    f'@id("no-{number}") forbid (principal, action == Action::"call", resource == Tool::"a/read") '
                    f"when {{ context.path has path && {'false' if allowed else 'true'} }};"
                )
                assert (await reload(place))[0] == 200
            done.set()

        async with anyio.create_task_group() as group:
            group.start_soon(turn)
            while not done.is_set():
                await session.ask("tools/call", {"name": "a__read", "arguments": {"path": "/x"}})
        records = [record for record in place.audit() if record["method"] == "tools/call"]
        assert len(records) > 20
        for record in records:
            numbers = {id.rpartition("-")[2].rpartition(":")[2] for id in record["policies"][1:]}
            assert len(numbers) == 1, record
            denied = any(":no-" in id for id in record["policies"])
            assert record["outcome"] == ("denied" if denied else "ok"), record


@pytest.mark.sec("SEC-106")
@pytest.mark.parametrize(
    ("files", "policy", "words"),
    [
        ({"mine": "permit (principal"}, "mine", "mine.cedar:1: is no policy"),
        ({}, "mine", "which is in no file; there are administration, approve-writes, locked, open, read-only"),
        ({"open": "permit (principal, action, resource);"}, "open", "there is a policy open already"),
        ({"1": ""}, "open", "is no name for a policy"),
        ({"everywhere": 'forbid (principal, action, resource in Server::"gone");'}, "open", "not in the catalogue"),
    ],
)
async def test_a_gateway_with_wrong_policies_does_not_start(
    tmp_path: Path, files: dict[str, str], policy: str, words: str
) -> None:
    for name, text in files.items():
        write(tmp_path, text, name)
    catalog = write_catalog(tmp_path / "catalog.yaml", CABINET, profile(policy))
    with pytest.raises(PoliciesUnusable) as caught:
        async with LocalGateway(settings(tmp_path, catalog)):
            pass
    assert words in str(caught.value)


def test_policies_lie_beside_the_catalogue_and_in_the_state_folder(tmp_path: Path) -> None:
    catalog = write_catalog(tmp_path / "catalog.yaml", CABINET)
    wanted = settings(tmp_path, catalog)
    write(tmp_path, "// none", "one")
    (tmp_path / "state" / "policies" / "two").mkdir(parents=True)
    for name in ("b", "a"):
        (tmp_path / "state" / "policies" / "two" / f"{name}.cedar").write_text(f"// {name}")
    texts = policyfiles.read_texts(wanted)
    assert sorted(texts) == ["administration", "approve-writes", "locked", "one", "open", "read-only", "two"]
    assert [text for _, text in texts["two"]] == ["// a", "// b"]
    (tmp_path / "state" / "policies" / "one.cedar").symlink_to(tmp_path)
    with pytest.raises(PoliciesUnusable, match=r"one\.cedar: cannot be read: not a file"):
        policyfiles.read_texts(wanted)


async def test_strength_and_groups_are_those_of_the_principal(tmp_path: Path) -> None:
    write(
        tmp_path,
        """permit (principal in Group::"staff", action, resource) when { principal.strength == "multi" };
        permit (principal, action, resource == Tool::"a/read")
        when { principal has scopes && principal.scopes.contains("reading") };""",
    )
    people = {
        "a": Principal("a", "user", frozenset({"staff"}), strength="multi"),
        "b": Principal("b", "user", frozenset({"staff"}), strength="password"),
        "c": Principal("c", "key", scopes=frozenset({"reading"}), strength="key"),
    }
    async with running(tmp_path, CABINET, profile("mine"), lambda scope: people[by_header(scope).id]) as place:
        seen = {}
        for name in people:
            session = await Session.open(place.url, "/mcp", always=[(USER, name)])
            seen[name] = set(await session.tools())
        assert seen == {"a": ALL, "b": set(), "c": {"a__read"}}


async def test_whoever_may_read_no_more_hears_no_more_of_a_resource(tmp_path: Path) -> None:
    policy = write(tmp_path, "permit (principal, action, resource);")
    async with running(tmp_path, CABINET, profile("mine")) as place:
        session = await place.session()
        uri = "lockgate://a/file:///etc/b"
        await session.result("resources/list")
        assert await session.result("resources/subscribe", {"uri": uri}) == {}
        hearing, upstream = place.gateway.door.hearing, await place.gateway.pool.connection("a")
        told: list[str] = []
        for caller in hearing._subscribers["a", "file:///etc/b"]:
            caller.deliver = lambda method, params: told.append(method)  # type: ignore[method-assign]
        hearing.server_notified(upstream, UPDATED, b'{"uri":"file:///etc/b"}')
        assert told == [UPDATED]
        policy.write_text("permit (principal, action, resource) unless { resource is Resource };")
        assert (await reload(place))[0] == 200
        hearing.server_notified(upstream, UPDATED, b'{"uri":"file:///etc/b"}')
        assert told.count(UPDATED) == 1
