"""A changed catalog in a running gateway: taken whole or not at all, and calls under way never notice."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest

from gateway.caller import Caller
from gateway.errors import UnknownName
from gateway.reload import CatalogWatch
from gateway.upstream import Notice
from policies import Principal
from tests.gateway.running import Place, running
from tests.servers import DEADLINE_S, LOCAL, until, write_catalog

pytestmark = pytest.mark.anyio

ANOTHER = ["friendly", '{"instructions": "Another one."}']
TWO: Mapping[str, Sequence[str]] = {"a": ["friendly"], "b": ["friendly"]}


def write(folder: Path, servers: Mapping[str, Any], profiles: Mapping[str, Any] | None = None) -> None:
    """Write the file as an editor does: a new one in its place."""
    write_catalog(folder / "new.yaml", servers, profiles).replace(folder / "catalog.yaml")


async def admin(place: Place, method: str, path: str) -> tuple[int, Any]:
    token = [("Authorization", f"Bearer {place.service.running.admin_token}")]
    answer = await place.http.request(method, f"/admin{path}", headers=token)
    return answer.status, json.loads(answer.body)


async def reload(place: Place) -> Any:
    status, body = await admin(place, "POST", "/catalog/reload")
    assert status == 200, body
    return body


async def test_changed_file_is_taken_by_itself(tmp_path: Path) -> None:
    async with running(tmp_path, {"a": ["friendly"]}) as place:
        session = await place.session()
        assert not [name for name in await session.tools() if name.startswith("b__")]
        write(tmp_path, TWO)
        with anyio.fail_after(DEADLINE_S):
            while "b__echo" not in await session.tools():
                await anyio.sleep(0.02)
        assert json.loads(await session.call("b__echo", {"x": 1})) == {"x": 1}


async def test_another_variable_for_a_secret_starts_the_server_anew(tmp_path: Path) -> None:
    def wired(variable: str) -> dict[str, Any]:
        return {
            "package": LOCAL,
            "command": ["friendly"],
            "secrets": [{"name": "a.key", "env": variable, "required": False}],
        }

    async with running(tmp_path, {"a": wired("KEY"), "b": ["friendly"]}) as place:
        session = await place.session()
        before = [await session.call(f"{id}__pid") for id in TWO]
        write(tmp_path, {"a": wired("TOKEN"), "b": ["friendly"]})
        changed = (await reload(place))["changed"]
        assert [(one["name"], one["restarts"]) for one in changed] == [("a", True)]
        after = [await session.call(f"{id}__pid") for id in TWO]
        assert (before[0] == after[0], before[1] == after[1]) == (False, True)


async def test_only_what_changed_is_started_anew(tmp_path: Path) -> None:
    async with running(tmp_path, TWO) as place:
        session = await place.session()
        before = [await session.call(f"{id}__pid") for id in TWO]
        write(tmp_path, {"a": ["friendly"], "b": ANOTHER})
        summary = (await reload(place))["summary"]
        after = [await session.call(f"{id}__pid") for id in TWO]
        assert summary == "1 changed"
        assert after[0] == before[0]
        assert after[1] != before[1]


async def test_call_under_way_on_a_changed_server_ends_as_it_began(tmp_path: Path) -> None:
    async with running(tmp_path, {"a": ["friendly"]}) as place:
        session, other = await place.session(), await place.session()
        old = await session.call("a__pid")
        answers: list[str] = []

        async def slow() -> None:
            answers.append(await session.call("a__delay", {"ms": 2000, "mark": "late"}))

        async with anyio.create_task_group() as group:
            group.start_soon(slow)
            await until(lambda: place.gateway.pool.servers["a"].upstream.in_flight, "the call is under way")
            write(tmp_path, {"a": ANOTHER})
            await reload(place)
            assert await other.call("a__pid") != old
        assert answers == ["late"]
        await until(lambda: len(place.local.processes()) == 1, "the old server has ended")


async def test_wrong_file_changes_nothing_and_says_why(tmp_path: Path) -> None:
    async with running(tmp_path, TWO) as place:
        session = await place.session()
        pid = await session.call("a__pid")
        (tmp_path / "catalog.yaml").write_text("version: 1\nservers: {a: {title: A, privileged: true}}\n")
        status, body = await admin(place, "POST", "/catalog/reload")
        assert status == 422
        assert 'catalog.yaml:2: a: unknown key "privileged"' in body["error"]
        assert 'unknown key "privileged"' in (await admin(place, "GET", "/catalog"))[1]["error"]
        assert await session.call("a__pid") == pid
        assert "b__echo" in await session.tools()
        write(tmp_path, TWO)
        assert (await reload(place))["summary"] == "nothing changed"
        assert (await admin(place, "GET", "/catalog"))[1]["error"] == ""


async def test_catalog_without_the_default_profile_is_not_taken(tmp_path: Path) -> None:
    async with running(tmp_path, TWO) as place:
        write(tmp_path, TWO, {"other": ["a"]})
        status, body = await admin(place, "POST", "/catalog/reload")
        assert status == 422
        assert 'no profile "all"' in body["error"]
        assert "b__echo" in await (await place.session()).tools()


async def test_removed_server_is_gone_for_open_sessions(tmp_path: Path) -> None:
    async with running(tmp_path, TWO) as place:
        session = await place.session()
        await session.call("b__echo")
        write(tmp_path, {"a": ["friendly"]})
        assert (await reload(place))["removed"] == ["b"]
        assert not [name for name in await session.tools() if name.startswith("b__")]
        assert (await session.error("tools/call", {"name": "b__echo", "arguments": {}}))["code"] == -32602
        await until(lambda: not place.local.processes() or len(place.local.processes()) == 1, "b has ended")


async def test_changed_profile_holds_for_open_sessions_at_once(tmp_path: Path) -> None:
    async with running(tmp_path, TWO) as place:
        session = await place.session()
        await session.call("a__echo")
        write(tmp_path, TWO, {"all": {"servers": ["a"], "tools": {"a": ["pid"]}}})
        async with session.listening() as stream:
            await reload(place)
            await stream.until("notifications/tools/list_changed")
        assert await session.tools() == ["a__pid"]
        assert (await session.error("tools/call", {"name": "a__echo", "arguments": {}}))["code"] == -32602


async def test_what_a_call_from_before_a_change_saw_is_shown_to_nobody_else(tmp_path: Path) -> None:
    async with running(tmp_path, TWO, {"all": ["a"]}) as place:
        session, under_way = await place.session(), Caller(Principal("local"), place.gateway.profile)
        await session.tools()
        write(tmp_path, TWO, {"all": ["a", "b"]})
        await reload(place)
        await place.gateway.door.learn(["b"])
        assert "b__echo" not in place.gateway.door.surface(under_way).tools
        assert "b__echo" in await session.tools()


async def test_who_holds_a_profile_that_is_gone_is_offered_nothing(tmp_path: Path) -> None:
    async with running(tmp_path, TWO, {"all": ["a"], "other": ["b"]}) as place:
        left = Caller(Principal("local"), place.gateway.catalog.profile("other"))
        write(tmp_path, {"a": ["friendly"]}, {"all": ["a"]})
        await reload(place)
        assert json.loads(await place.gateway.door.list(left, "tools/list", b"{}")) == {"tools": []}

        async def ignore(notice: Notice) -> None:
            """Nothing is told."""

        with pytest.raises(UnknownName):
            await place.gateway.door.call(left, "tools/call", b'{"name":"b__echo"}', ignore)


async def test_reload_is_refused_without_the_admin_token(tmp_path: Path) -> None:
    async with running(tmp_path, TWO) as place:
        assert (await place.http.request("POST", "/admin/catalog/reload")).status == 401


async def test_asking_reloads_a_file_that_looks_unchanged(tmp_path: Path) -> None:
    """What SIGHUP does."""
    reloaded = anyio.Event()

    async def load() -> Any:
        reloaded.set()
        return None

    watch = CatalogWatch(lambda: [tmp_path / "catalog.yaml"], load)
    async with anyio.create_task_group() as group:
        group.start_soon(watch.watch)
        watch.reload_soon()
        with anyio.fail_after(DEADLINE_S):
            await reloaded.wait()
        group.cancel_scope.cancel()
