"""Calls that a person must approve: how they wait, who may decide, and what an answer is worth."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from gateway import approvals, auditexport, auditlog, holding
from gateway.approvals import Approval, Approver
from gateway.errors import AlreadyDecided, UnknownName
from tests.gateway.callers import Response, Session, Stream, message
from tests.gateway.running import USER, Place, by_header, running
from tests.gateway.taskclient import TAKES, reaches, task
from tests.gateway.test_modern import result, streaming
from tests.servers import DEADLINE_S, LOCAL, until
from tests.servers.scripted_model import Turn, scripted_model

pytestmark = pytest.mark.anyio

CABINET = {"a": ["cabinet"]}
ABLE: dict[str, Any] = {"elicitation": {}}
WRITE = {"name": "a__write", "arguments": {"path": "/data/x", "text": "hello"}}
ADMIN = Approver("local administrator", "command line", is_admin=True)
ASK = """@id("everything") permit (principal, action, resource);
@id("writes") @effect("ask") {more} @reason("it writes")
permit (principal, action == Action::"call", resource is Tool) unless {{ resource.readOnly }};"""


def write(folder: Path, more: str = "", after: str = "") -> None:
    (folder / "policies").mkdir(exist_ok=True)
    (folder / "policies" / "mine.cedar").write_text(ASK.format(more=more) + after)


@asynccontextmanager
async def asking(folder: Path, more: str = "", **changes: Any) -> AsyncIterator[Place]:
    write(folder, more)
    profiles = {"all": {"servers": ["a"], "policy": "mine"}}
    async with running(folder, CABINET, profiles, by_header, **changes) as place:
        yield place


async def pending(place: Place, n: int = 1) -> list[Approval]:
    found: list[Approval] = []

    def enough() -> bool:
        found[:] = place.gateway.door.approvals.waiting(ADMIN)
        return len(found) == n

    await until(enough, f"{n} calls wait")
    return found


def settle(place: Place, yes: bool, who: Approver = ADMIN) -> Approval:
    (one,) = place.gateway.door.approvals.waiting(ADMIN)
    return place.gateway.door.approvals.decide(one.id, yes, who)


def steps(place: Place) -> list[tuple[str, str]]:
    records = auditlog.records(place.gateway.settings.state_dir)
    return [(record["step"], record["by"]) for record in records if record.get("event") == "approval"]


def text(result: Any) -> str:
    return str(result["content"][0]["text"])


async def session(place: Place, user: str = "ann", **more: Any) -> Session:
    return await Session.open(place.url, always=[(USER, user)], **more)


@asynccontextmanager
async def calling(place: Place, user: str = "ann", params: Any = None) -> AsyncIterator[asyncio.Task[Any]]:
    """A call of a legacy client that cannot be asked."""
    one = await session(place, user)
    async with asyncio.TaskGroup() as group:
        call = group.create_task(one.result("tools/call", params or WRITE))
        await until(lambda: place.gateway.door.approvals.waiting(ADMIN) or call.done(), "it waits")
        yield call


# -- the answer ------------------------------------------------------------------------------------


async def test_a_held_call_is_made_when_somebody_approves_it_and_each_step_is_recorded(tmp_path: Path) -> None:
    async with asking(tmp_path) as place:
        async with calling(place) as call:
            (one,) = await pending(place)
            assert not place.local.starts or "a" in place.local.starts
            assert not [r for r in auditlog.records(place.gateway.settings.state_dir) if r.get("event") == "start"]
            shown = place.gateway.door.approvals.describe(one)
            assert (shown["principal"], shown["tool"], shown["reasons"]) == ("ann", "a__write", ["it writes"])
            assert json.loads(shown["arguments"]) == WRITE["arguments"]
            settle(place, True)
        assert json.loads(text(call.result())) == WRITE["arguments"]
        by = "local administrator (command line)"
        assert steps(place) == [("held", ""), ("approved", by), ("used", by)]
        end = place.audit()[-1]
        assert (end["outcome"], end["policies"]) == ("ok", ["profile:all:a", "mine:everything", "mine:writes"])
        found = auditlog.find(place.gateway.settings.state_dir, end["call"])
        said = [line for line in auditexport.cef(found) if "|approval|" in line]
        assert [line.split("|")[5] for line in said] == ["held", "approved", "used"]
        assert "duser=local administrator (command line)" in said[1]
        assert '"approval approved"' in "".join(auditexport.otlp(found))
        assert [one.get("event", "end") for one in found] == ["approval", "approval", "approval", "start", "end"]


async def test_a_tool_that_is_not_asked_about_does_not_wait(tmp_path: Path) -> None:
    async with asking(tmp_path) as place:
        assert await (await session(place)).call("a__read", {"path": "/x"})
        assert steps(place) == []


async def test_a_refused_call_is_not_made_and_not_asked_about_again(tmp_path: Path) -> None:
    async with asking(tmp_path) as place:
        async with calling(place) as call:
            settle(place, False)
        assert "did not approve it" in text(call.result())
        assert call.result()["isError"]
        again = await (await session(place)).failure("a__write", WRITE["arguments"])
        assert "refused a moment ago" in again
        assert [step for step, _ in steps(place)] == ["held", "denied"]
        assert not [r for r in auditlog.records(place.gateway.settings.state_dir) if r.get("event") == "start"]


async def test_no_answer_in_time_is_a_no(tmp_path: Path) -> None:
    async with asking(tmp_path, '@wait("1s")') as place:
        answer = await (await session(place)).failure("a__write", WRITE["arguments"])
        assert "nobody approved it within 1 seconds" in answer
        assert [step for step, _ in steps(place)] == ["held", "expired"]


async def test_a_yes_is_good_once_and_for_nothing_else(tmp_path: Path) -> None:
    async with asking(tmp_path) as place:
        for _ in range(2):
            async with calling(place) as call:
                settle(place, True)
            assert not call.result().get("isError")
        assert [step for step, _ in steps(place)] == ["held", "approved", "used"] * 2


async def test_a_remembered_yes_is_for_the_same_caller_tool_and_arguments_only(tmp_path: Path) -> None:
    async with asking(tmp_path, '@remember("10m")') as place:
        async with calling(place):
            settle(place, True)
        one = await session(place)
        assert json.loads(await one.call("a__write", WRITE["arguments"])) == WRITE["arguments"]
        assert [step for step, _ in steps(place)] == ["held", "approved", "used", "used"]
        others = [
            ("bob", WRITE),
            ("ann", {"name": "a__write", "arguments": {"path": "/data/y", "text": "hello"}}),
            ("ann", {"name": "a__remove", "arguments": WRITE["arguments"]}),
        ]
        for user, params in others:
            async with calling(place, user, params) as call:
                await pending(place)
                settle(place, False)
            assert call.result()["isError"]
        write(tmp_path, '@remember("10m")', "\npermit (principal, action, resource);")
        await until(lambda: len(place.gateway.door.policy._sets["mine"].rules) == 3, "the policies are taken")
        async with calling(place):
            await pending(place)
            settle(place, True)


@pytest.mark.sec("SEC-106")
async def test_what_changes_while_a_person_thinks_is_not_approved(tmp_path: Path) -> None:
    async with asking(tmp_path) as place:
        async with calling(place) as call:
            await pending(place)
            write(tmp_path, "", '\nforbid (principal, action, resource == Tool::"a/write");')
            await until(lambda: len(place.gateway.door.policy._sets["mine"].rules) == 3, "the policies are taken")
            settle(place, True)
        assert "Denied by policy" in text(call.result())
        assert [step for step, _ in steps(place)] == ["held", "approved", "withdrawn"]


async def test_a_caller_that_gives_up_withdraws_its_request(tmp_path: Path) -> None:
    async with asking(tmp_path) as place:
        one = await session(place)
        asked = asyncio.ensure_future(one.post(message("tools/call", WRITE, 77)))
        (approval,) = await pending(place)
        await one.post(message("notifications/cancelled", {"requestId": 77}))
        await asked
        assert approval.state == "withdrawn"
        with pytest.raises(AlreadyDecided):
            place.gateway.door.approvals.decide(approval.id, True, ADMIN)
        assert [step for step, _ in steps(place)] == ["held", "withdrawn"]


async def test_a_client_that_goes_away_withdraws_its_request(tmp_path: Path) -> None:
    async with asking(tmp_path) as place:
        async with streaming(place, "tools/call", WRITE, token="t") as stream:
            await stream.until("notifications/progress")
            (approval,) = await pending(place)
        await until(lambda: approval.state == "withdrawn", "it is withdrawn")
        assert [step for step, _ in steps(place)] == ["held", "withdrawn"]


async def test_a_gateway_that_stops_approves_nothing(tmp_path: Path) -> None:
    async with asking(tmp_path) as place:
        one = await session(place)
        asked = asyncio.ensure_future(one.post(message("tools/call", WRITE, 77)))
        (approval,) = await pending(place)
    with anyio.fail_after(DEADLINE_S):
        (answer,) = await asyncio.gather(asked, return_exceptions=True)
    if isinstance(answer, Response) and answer.body:
        said = answer.messages()[-1]
        assert "error" in said or said["result"]["isError"], said
    assert approval.state == "withdrawn"
    assert [step for step, _ in steps(place)] == ["held", "withdrawn"]
    assert not [r for r in auditlog.records(place.gateway.settings.state_dir) if r.get("event") == "start"]


async def test_two_answers_at_once_are_one(tmp_path: Path) -> None:
    async with asking(tmp_path) as place, calling(place) as call:
        (one,) = await pending(place)
        settle(place, False)
        with pytest.raises(AlreadyDecided):
            place.gateway.door.approvals.decide(one.id, True, ADMIN)
    assert call.result()["isError"]


# -- who may decide --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "who", "may"),
    [
        ("", Approver("root", "page", is_admin=True), True),
        ("", Approver("root", "admin API", is_admin=True), True),
        ("", Approver("ann", "admin API", is_admin=True), False),
        ("", Approver("ann", "page", is_admin=True), True),
        ("", Approver("ann", "page"), False),
        ("", Approver("ann", "client"), False),
        ("", Approver("bob", "page", groups=frozenset({"ops"})), False),
        ('@approver("group:ops")', Approver("bob", "page", groups=frozenset({"ops"})), True),
        ('@approver("group:ops")', Approver("bob", "page", groups=frozenset({"dev"})), False),
        ('@approver("group:ops")', Approver("ann", "client", groups=frozenset({"ops"})), False),
        ('@approver("self")', Approver("ann", "client"), True),
        ('@approver("self")', Approver("ann", "page"), True),
        ('@approver("self")', Approver("ann", "admin API", is_admin=True), False),
        ('@approver("self")', Approver("bob", "client"), False),
    ],
)
async def test_only_whom_the_policy_names_decides(tmp_path: Path, more: str, who: Approver, may: bool) -> None:
    async with asking(tmp_path, more) as place, calling(place):
        (one,) = await pending(place)
        assert (place.gateway.door.approvals.waiting(who) == [one]) is may
        if not may:
            with pytest.raises(UnknownName):
                place.gateway.door.approvals.decide(one.id, True, who)
            who = ADMIN
        assert place.gateway.door.approvals.decide(one.id, True, who).state == "approved"


# -- through the client ----------------------------------------------------------------------------


async def answered(place: Place, one: Session, reply: Any) -> Any:
    """What becomes of a call whose question the client answers so; None leaves it open."""
    body = message("tools/call", WRITE, 5)
    headers = one.headers(("Content-Type", "application/json"), ("Accept", "application/json, text/event-stream"))
    async with one.http.stream("POST", "/mcp", body, headers) as stream:
        question = await stream.until("elicitation/create")
        assert "a__write" in question["params"]["message"]
        if reply is not None:
            said = {"jsonrpc": "2.0", "id": question["id"], "result": reply}
            assert (await one.post(json.dumps(said).encode())).status == 202
        else:
            settle(place, True)
            assert (await stream.until("notifications/cancelled"))["params"]["requestId"] == question["id"]
        return await ended(stream)


async def ended(stream: Stream) -> Any:
    while "method" in (heard := await stream.message()):
        pass
    return heard["result"]


async def test_a_legacy_client_is_asked_in_its_session(tmp_path: Path) -> None:
    async with asking(tmp_path, '@approver("self")') as place:
        one = await session(place, capabilities=ABLE)
        done = await answered(place, one, {"action": "accept", "content": {"approve": True}})
        assert json.loads(text(done)) == WRITE["arguments"]
        assert steps(place)[-1] == ("used", "ann (client)")


@pytest.mark.parametrize(
    "reply",
    [
        {"action": "decline"},
        {"action": "cancel"},
        {"action": "accept"},
        {"action": "accept", "content": {}},
        {"action": "accept", "content": {"approve": False}},
        {"action": "accept", "content": {"approve": "true"}},
        {"action": "accept", "content": {"approve": 1}},
    ],
)
async def test_anything_but_a_plain_yes_is_a_no(tmp_path: Path, reply: Any) -> None:
    async with asking(tmp_path, '@approver("self")') as place:
        done = await answered(place, await session(place, capabilities=ABLE), reply)
        assert done["isError"]
        assert [step for step, _ in steps(place)] == ["held", "denied"]


async def test_while_a_client_asks_somebody_else_may_decide(tmp_path: Path) -> None:
    async with asking(tmp_path, '@approver("self")') as place:
        done = await answered(place, await session(place, capabilities=ABLE), None)
        assert json.loads(text(done)) == WRITE["arguments"]


@pytest.mark.parametrize("capabilities", [{}, {"elicitation": {"url": {}}}])
async def test_a_client_that_cannot_put_the_question_waits_for_others(tmp_path: Path, capabilities: Any) -> None:
    async with asking(tmp_path, '@approver("self")') as place:
        one = await session(place, capabilities=capabilities)
        async with asyncio.TaskGroup() as group:
            call = group.create_task(one.result("tools/call", WRITE))
            await pending(place)
            settle(place, True)
        assert json.loads(text(call.result())) == WRITE["arguments"]


async def test_without_self_a_client_is_never_asked_about_its_own_call(tmp_path: Path) -> None:
    async with asking(tmp_path, '@wait("1s")') as place:
        legacy = await session(place, capabilities=ABLE)
        assert "nobody approved" in await legacy.failure("a__write", WRITE["arguments"])
        modern = await result(place, "tools/call", WRITE, clientCapabilities=ABLE)
        assert "nobody approved" in text(modern)
        assert modern["resultType"] == "complete"


async def test_a_modern_client_asks_and_comes_back_once(tmp_path: Path) -> None:
    async with asking(tmp_path, '@approver("self")') as place:
        first = await result(place, "tools/call", WRITE, clientCapabilities=ABLE)
        assert first["resultType"] == "input_required"
        ((key, question),) = first["inputRequests"].items()
        assert question["method"] == "elicitation/create"
        state = {"requestState": first["requestState"]}
        same = await result(place, "tools/call", WRITE | state, clientCapabilities=ABLE)
        assert same["resultType"] == "input_required", "no answer is no yes"
        yes = {"inputResponses": {key: {"action": "accept", "content": {"approve": True}}}}
        done = await result(place, "tools/call", WRITE | state | yes, clientCapabilities=ABLE)
        assert json.loads(text(done)) == WRITE["arguments"]
        again = await result(place, "tools/call", WRITE | state | yes, clientCapabilities=ABLE)
        assert "used already" in text(again)
        assert [step for step, _ in steps(place)] == ["held", "approved", "used"]


@pytest.mark.sec("SEC-010")
async def test_an_answer_is_worth_nothing_for_another_call_or_caller(tmp_path: Path) -> None:
    async with asking(tmp_path, '@approver("self")') as place:
        first = await result(place, "tools/call", WRITE, clientCapabilities=ABLE)
        ((key, _),) = first["inputRequests"].items()
        more = {
            "requestState": first["requestState"],
            "inputResponses": {key: {"action": "accept", "content": {"approve": True}}},
        }
        other = {"name": "a__write", "arguments": {"path": "/etc/x", "text": "hello"}}
        for params in (other, {"name": "a__remove", "arguments": WRITE["arguments"]}):
            with pytest.raises(AssertionError, match="requestState is not valid"):
                await result(place, "tools/call", params | more, clientCapabilities=ABLE)
        (one,) = await pending(place)
        assert one.state == "pending"
        bare = await result(
            place, "tools/call", WRITE | {"inputResponses": more["inputResponses"]}, clientCapabilities=ABLE
        )
        assert bare["resultType"] == "input_required", "an answer to no question answers nothing"


async def test_a_question_of_the_server_does_not_have_its_call_approved_twice(tmp_path: Path) -> None:
    write(tmp_path, '@approver("self")')
    servers = {"a": {"package": dict(LOCAL), "command": ["friendly"], "interactive": True}}
    asks = {"name": "a__ask", "arguments": {"questions": [["roots/list", {}]]}}
    async with running(tmp_path, servers, {"all": {"servers": ["a"], "policy": "mine"}}) as place:
        able = {"elicitation": {}, "roots": {}}
        first = await result(place, "tools/call", asks, clientCapabilities=able)
        yes = {"lockgate-approval": {"action": "accept", "content": {"approve": True}}}
        more = {"requestState": first["requestState"], "inputResponses": yes}
        second = await result(place, "tools/call", asks | more, clientCapabilities=able)
        assert second["resultType"] == "input_required"
        ((key, question),) = second["inputRequests"].items()
        assert question["method"] == "roots/list"
        more = {"requestState": second["requestState"], "inputResponses": {key: {"roots": []}}}
        done = await result(place, "tools/call", asks | more, clientCapabilities=able)
        assert done["resultType"] == "complete"
        assert [step for step, _ in steps(place)] == ["held", "approved", "used"]


async def test_an_approved_call_in_whose_course_a_server_asks_cannot_be_made_twice_with_one_approval(
    tmp_path: Path,
) -> None:
    write(tmp_path, '@approver("self")')
    path = tmp_path / "policies" / "mine.cedar"
    path.write_text(path.read_text().replace("resource.readOnly", 'resource.name == "rich"'))
    servers = {"a": {"package": dict(LOCAL), "command": ["rich", json.dumps({"era": "modern"})]}}
    ask = {"name": "a__ask", "arguments": {}}
    async with running(tmp_path, servers, {"all": {"servers": ["a"], "policy": "mine"}}) as place:
        first = await result(place, "tools/call", ask, clientCapabilities=ABLE)
        yes = {"lockgate-approval": {"action": "accept", "content": {"approve": True}}}
        more = {"requestState": first["requestState"], "inputResponses": yes}
        second = await result(place, "tools/call", ask | more, clientCapabilities=ABLE)
        ((key, _),) = second["inputRequests"].items()
        assert key == "who"
        answer = {"who": {"action": "accept", "content": {"name": "Ada", "n": 1.5}}}
        more = {"requestState": second["requestState"], "inputResponses": answer}
        done = await result(place, "tools/call", ask | more, clientCapabilities=ABLE)
        assert not done.get("isError"), done
        again = await result(place, "tools/call", ask | more, clientCapabilities=ABLE)
        assert "changed meanwhile" in text(again)
        assert [step for step, _ in steps(place)] == ["held", "approved", "used"]


# -- while it waits --------------------------------------------------------------------------------


async def test_progress_keeps_a_waiting_client_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "PROGRESS_S", 0.02)
    async with asking(tmp_path) as place, streaming(place, "tools/call", WRITE, token="t") as stream:
        heard = [(await stream.until("notifications/progress"))["params"] for _ in range(3)]
        assert {one["progressToken"] for one in heard} == {"t"}
        assert [one["progress"] for one in heard] == sorted({one["progress"] for one in heard})
        assert "waits for approval" in heard[0]["message"]
        settle(place, True)
        assert json.loads(text(await ended(stream))) == WRITE["arguments"]


async def test_a_held_call_becomes_a_task_and_goes_on_when_it_is_approved(tmp_path: Path) -> None:
    write(tmp_path)
    servers = {"a": {"package": dict(LOCAL), "command": ["cabinet"], "tasks": {"after_s": 0.05}}}
    async with running(tmp_path, servers, {"all": {"servers": ["a"], "policy": "mine"}}) as place:
        id = await task(place, "a__write", WRITE["arguments"], clientCapabilities=TAKES)
        await pending(place)
        settle(place, True)
        state = await reaches(place, id, "completed")
        assert json.loads(text(state["result"])) == WRITE["arguments"]


async def test_waiting_calls_are_bounded_for_each_and_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approvals, "MAX_PENDING", 3)
    monkeypatch.setattr(approvals, "MAX_PENDING_PER_PRINCIPAL", 2)

    def params(n: int) -> Any:
        return {"name": "a__write", "arguments": {"path": f"/{n}", "text": ""}}

    async with asking(tmp_path) as place:
        ann, bob = await session(place), await session(place, "bob")
        async with asyncio.TaskGroup() as group:
            for n in range(2):
                group.create_task(ann.result("tools/call", params(n)))
            await pending(place, 2)
            assert "2 calls of yours wait" in await ann.failure("a__write", {"path": "/3", "text": ""})
            group.create_task(bob.result("tools/call", params(4)))
            await pending(place, 3)
            assert "too many calls wait" in await bob.failure("a__write", {"path": "/5", "text": ""})
            for one in await pending(place, 3):
                place.gateway.door.approvals.decide(one.id, True, ADMIN)


async def test_nobody_is_worn_down_by_the_same_question_in_other_words(tmp_path: Path) -> None:
    async with asking(tmp_path) as place:
        for n in range(approvals.MAX_REFUSALS):
            params = {"name": "a__write", "arguments": {"path": f"/{n}", "text": ""}}
            async with calling(place, params=params):
                await pending(place)
                settle(place, False)
        assert "was refused 3 times" in await (await session(place)).failure("a__write", {"path": "/9", "text": ""})
        assert place.gateway.door.approvals.waiting(ADMIN) == []
        async with calling(place, params={"name": "a__remove", "arguments": {"path": "/9"}}):
            await pending(place)
            settle(place, True)


@pytest.mark.sec("SEC-108")
async def test_an_answer_that_cannot_be_recorded_is_no_yes(tmp_path: Path) -> None:
    async with asking(tmp_path) as place:
        one = await session(place)
        asked = asyncio.ensure_future(one.post(message("tools/call", WRITE, 77)))
        await pending(place)
        place.gateway.audit.close()
        with pytest.raises(Exception, match="audit"):
            settle(place, True)
        (approval,) = await pending(place)
        assert approval.state == "pending"
        asked.cancel()
        with anyio.fail_after(DEADLINE_S):
            await asyncio.wait({asked})


# -- other ways to the tool ------------------------------------------------------------------------


@pytest.mark.sec("SEC-104")
async def test_no_other_way_leads_to_a_held_tool(tmp_path: Path) -> None:
    write(tmp_path)
    turns: list[Turn] = [[("a__write", WRITE["arguments"])], "It needs a person."]
    profiles = {
        "all": {"servers": ["a", "agent"], "policy": "mine"},
        "short": {"servers": ["a"], "policy": "mine", "budget": {"tools": 3}},
    }
    after = '\npermit (principal, action, resource == Tool::"agent/delegate");'
    write(tmp_path, "", after)
    text_ = (tmp_path / "policies" / "mine.cedar").read_text()
    (tmp_path / "policies" / "mine.cedar").write_text(
        text_.replace("resource.readOnly", 'resource.server == "agent" || resource.readOnly')
    )
    with scripted_model(*turns) as model:
        servers = {"a": ["cabinet"], "agent": {"built_in": "agent", "limits": {"call_timeout_s": 120}}}
        async with running(tmp_path, servers, profiles, by_header, model=model.url) as place:
            one = await session(place)
            with anyio.fail_after(2 * DEADLINE_S):
                told = await one.result("tools/call", {"name": "agent__delegate", "arguments": {"task": "Write."}})
            calls = told["structuredContent"]["receipt"]["calls"]
            assert [(call["tool"], call["outcome"]) for call in calls] == [("a__write", "error")]
            said = next(one for one in model.asked[1]["messages"] if one["role"] == "tool")["content"]
            assert "a person must approve this call" in said
            assert steps(place) == [], "nobody was asked, and nothing waits"
            short = await Session.open(place.url, "/p/short/mcp", always=[(USER, "ann")])
            async with asyncio.TaskGroup() as group:
                shelf = {
                    "name": "lockgate__call_tool",
                    "arguments": {"name": "a__write", "arguments": WRITE["arguments"]},
                }
                call = group.create_task(short.result("tools/call", shelf))
                (approval,) = await pending(place)
                assert approval.asked.name == "a__write"
                settle(place, False)
            assert call.result()["isError"]
            assert not [
                r
                for r in auditlog.records(place.gateway.settings.state_dir)
                if r.get("event") == "start" and r["item"] == "write"
            ]


async def test_prompts_and_resources_wait_as_tools_do(tmp_path: Path) -> None:
    (tmp_path / "policies").mkdir()
    rule = (
        '@effect("ask") permit (principal, action in [Action::"read", Action::"prompt", Action::"complete"], resource);'
    )
    (tmp_path / "policies" / "mine.cedar").write_text(rule)
    async with running(tmp_path, CABINET, {"all": {"servers": ["a"], "policy": "mine"}}) as place:
        one = await place.session()
        for method, params in (
            ("resources/read", {"uri": "lockgate://a/file:///data/a"}),
            ("prompts/get", {"name": "a__greet", "arguments": {}}),
        ):
            async with asyncio.TaskGroup() as group:
                asked = group.create_task(one.result(method, params))
                await pending(place)
                settle(place, True)
            assert "isError" not in asked.result()
            async with asyncio.TaskGroup() as group:
                refused = group.create_task(one.error(method, params))
                await pending(place)
                settle(place, False)
            assert "did not approve it" in refused.result()["message"]
        reference = {"ref": {"type": "ref/prompt", "name": "a__greet"}, "argument": {"name": "x", "value": "y"}}
        assert "Denied" in (await one.error("completion/complete", reference))["message"]
        assert "error" in await one.ask("resources/subscribe", {"uri": "lockgate://a/file:///data/a"})


# -- what is shown ---------------------------------------------------------------------------------


async def test_arguments_are_shown_so_that_they_cannot_deceive(tmp_path: Path) -> None:
    arguments = {
        "path": "/x\x1b[2K\u202egnp\u200b\U000e0041\ufe0f\u3164",
        "text": "y" * 5000 + "END",
        "password": "hunter22222",
        "inner": [{"api_key": "k-123456789", "plain": "a"}],
    }
    async with asking(tmp_path) as place, calling(place, params={"name": "a__write", "arguments": arguments}):
        (one,) = await pending(place)
        shown = place.gateway.door.approvals.describe(one)
        assert shown["arguments"].isprintable()
        for seen in (r"\u001b[2K", r"\u{202e}", r"\u{200b}", r"\u{e0041}", r"\u{fe0f}", r"\u{3164}", "END"):
            assert seen in shown["arguments"], seen
        for unseen in ("hunter2", "k-123456789"):
            assert unseen not in shown["arguments"]
        assert shown["left_out"] > 2500
        full = place.gateway.door.approvals.describe(one, full=True)
        assert (full["left_out"], "y" * 5000 in full["arguments"]) == (0, True)
        assert "hunter2" not in full["arguments"]
        settle(place, True)
