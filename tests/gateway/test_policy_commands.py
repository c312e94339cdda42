"""`lockgate policy` in this process: what it prints and how it ends."""

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from anyio import to_thread
from typer.testing import CliRunner, Result

from gateway import auditlog
from gateway.approvals import Approver
from gateway.audit import Audit, ModelRecord, Outcome, Record, Start, now
from gateway.cli import app
from gateway.commands import asking
from gateway.errors import PoliciesUnusable, SettingsError
from tests.gateway.running import running
from tests.servers import until, write_catalog

pytestmark = pytest.mark.anyio

MINE = """@id("data")
@reason("only below /data")
forbid (principal, action == Action::"call", resource == Tool::"a/read")
unless { context.path has path && context.path.path like "/data/*" };

@id("staff")
permit (principal in Group::"staff", action, resource);

@id("local")
permit (principal == User::"local", action, resource);
"""
PROFILE = {"all": {"servers": ["a"], "policy": "mine"}}


@pytest.fixture(autouse=True)
async def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder whose gateway ran once and knows its server's tools."""
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "mine.cedar").write_text(MINE)
    for name in ("STATE", "CACHE"):
        monkeypatch.setenv(f"LOCKGATE_{name}_DIR", str(tmp_path / name.lower()))
    monkeypatch.setenv("LOCKGATE_CATALOG", str(tmp_path / "catalog.yaml"))
    monkeypatch.setenv("LOCKGATE_PROFILE", "all")
    async with running(tmp_path, {"a": ["cabinet"]}, PROFILE) as gateway:
        session = await gateway.session()
        await session.call("a__read", {"path": "/data/x"})
        await session.failure("a__read", {"path": "/etc/x"})
    return tmp_path


def policy(*words: str) -> Result:
    return CliRunner().invoke(app, ["policy", *words])


def answer(*words: str, code: int = 0) -> Any:
    done = policy(*words, "--json")
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


async def test_list_and_show_name_every_policy_and_rule() -> None:
    listed = {row["name"]: row for row in answer("list")}
    assert set(listed) == {"administration", "approve-writes", "locked", "mine", "open", "read-only"}
    assert listed["mine"]["rules"] == 3
    assert listed["mine"]["profiles"] == ["all"]
    assert [rule["id"] for rule in answer("show", "mine")] == ["data", "staff", "local"]
    assert "only below /data" in policy("show", "mine").stdout
    assert isinstance(policy("show", "yours").exception, PoliciesUnusable)


async def test_lint_says_what_is_wrong_where(place: Path) -> None:
    assert answer("lint") == {"policies": 6, "rules": 12, "unchecked": []}
    (place / "policies" / "mine.cedar").write_text(MINE.replace("context.path has path", "context.path has pth"))
    done = policy("lint")
    assert isinstance(done.exception, PoliciesUnusable)
    assert "mine.cedar:1: reads the argument pth" in str(done.exception)


def table(folder: Path, *cases: dict[str, Any], **more: Any) -> str:
    path = folder / "cases.yaml"
    path.write_text(json.dumps({"cases": list(cases), **more}))
    return str(path)


STAFF = {"id": "ann", "groups": ["staff"]}
INSIDE, OUTSIDE = {"path": "/data/x"}, {"path": "/data/../x"}


async def test_a_table_of_expected_decisions_is_held_against_the_policies(place: Path) -> None:
    good = table(
        place,
        {"tool": "a/read", "principal": STAFF, "arguments": INSIDE, "expect": "allow", "by": "staff"},
        {"tool": "a/read", "principal": STAFF, "arguments": OUTSIDE, "expect": "deny", "by": "data"},
        {"tool": "a/read", "arguments": INSIDE, "expect": "deny"},
        {"tool": "a/read", "principal": STAFF, "expect": "listed"},
        {"tool": "a/read", "expect": "hidden"},
        {"tool": "a/none", "principal": STAFF, "expect": "allow"},
        {"resource": "a/file:///data/a", "principal": STAFF, "expect": "allow"},
        {"prompt": "a/greet", "expect": "hidden"},
    )
    assert answer("test", good) == {"cases": 8, "failed": []}
    wrong = table(
        place,
        {"tool": "a/read", "principal": STAFF, "arguments": OUTSIDE, "expect": "allow"},
        {"tool": "a/read", "principal": STAFF, "arguments": INSIDE, "expect": "allow", "by": "local"},
        {"tool": "a/write", "expect": "listed"},
    )
    failed = answer("test", wrong, code=1)["failed"]
    assert [one["case"] for one in failed] == [1, 2, 3]
    assert failed[0]["problem"] == "is denied: only below /data"
    assert "mine:staff" in failed[1]["problem"]
    assert "2: a/read: expected allow" in policy("test", wrong).stdout


async def test_a_table_takes_hints_time_and_another_policy(place: Path) -> None:
    cases = table(
        place,
        {"tool": "a/x", "hints": {"readOnly": True}, "expect": "allow"},
        {"tool": "a/x", "hints": {"readOnly": False}, "expect": "deny", "by": "no-writes"},
        {"tool": "a/read", "expect": "allow", "at": "2026-11-25T10:00:00Z", "source": "10.0.0.1"},
        {"tool": "a/shred", "expect": "hidden"},
    )
    assert answer("test", cases, "--policy", "read-only")["failed"] == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cases: []", "holds 0 cases"),
        ("cases: [{tool: a/read, expect: perhaps}]", "is no table of cases"),
        ("cases: [{tool: a/read, expect: allow, argument: {}}]", "is no table of cases"),
        ("cases: [{tool: read, expect: allow}]", "as server/name"),
        ("cases: [{tool: a/read, prompt: a/greet, expect: allow}]", "name one tool"),
        ("cases: [&a [*a]]", "is no table of cases"),
    ],
)
async def test_a_table_that_is_none_is_refused(place: Path, text: str, words: str) -> None:
    (place / "cases.yaml").write_text(text)
    done = policy("test", str(place / "cases.yaml"))
    assert isinstance(done.exception, SettingsError)
    assert words in str(done.exception)


async def test_diff_shows_every_decision_that_changes_and_asks_where_more_is_allowed(place: Path) -> None:
    new = place / "new.cedar"
    new.write_text(MINE.replace('"/data/*"', '"/other/*"').replace('Group::"staff"', 'Group::"ops"'))
    changes = answer("diff", "mine", str(new), code=1)
    assert answer("diff", "mine", str(new), "--accept") == changes
    reads = {
        (change["principal"], change["arguments"].get("path"), change["widens"])
        for change in changes
        if change["item"] == "a/read"
    }
    assert ("user local", "/other/x", True) in reads
    assert ("user local", "/data/x", False) in reads
    assert ("a member of ops", "/other/x", True) in reads
    assert ("a member of staff", "/data/x", False) in reads
    assert not any(who == "somebody" for who, _, _ in reads)
    written = {(change["principal"], change["widens"]) for change in changes if change["item"] == "a/write"}
    assert written == {("a member of ops", True), ("a member of staff", False)}
    assert policy("diff", "mine", str(new)).exit_code == 1


async def test_diff_that_only_takes_away_ends_well() -> None:
    changes = answer("diff", "open", "read-only")
    assert {change["item"] for change in changes} == {"a/bare", "a/remove", "a/shred", "a/write"}
    assert not any(change["widens"] for change in changes)
    assert answer("diff", "open", "open") == []
    changes = answer("diff", "open", "approve-writes")
    assert {(change["item"], change["now"], change["widens"]) for change in changes} == {
        (f"a/{name}", "ask", False) for name in ("write", "remove", "shred", "bare")
    }
    changes = answer("diff", "approve-writes", "open", code=1)
    assert {(change["now"], change["widens"]) for change in changes} == {("allow", True)}
    changes = answer("diff", "locked", "approve-writes", code=1)
    assert {(change["now"], change["widens"]) for change in changes} == {("ask", True), ("allow", True)}
    assert "+ asked    somebody: call a/write" in policy("diff", "locked", "approve-writes").stdout
    assert isinstance(policy("diff", "open", "gone").exception, PoliciesUnusable)


async def test_explain_shows_the_policies_that_decided_a_call(place: Path) -> None:
    calls = [record for record in auditlog.ends(place / "state") if record["method"] == "tools/call"]
    allowed, denied = calls[0]["call"], calls[-1]["call"]
    found = answer("explain", allowed)
    assert found["unchanged"]
    assert [rule["id"] for rule in found["policies"]] == ["profile:all:a", "mine:local"]
    found = answer("explain", denied)
    assert found["call"]["outcome"] == "denied"
    assert found["call"]["detail"] == "only below /data"
    assert found["policies"][1]["id"] == "mine:data"
    assert 'forbid (principal, action == Action::"call"' in found["policies"][1]["text"]
    assert "/etc/x" not in json.dumps(found)
    write_catalog(place / "catalog.yaml", {"a": ["cabinet"]}, {"all": {"servers": ["a"], "policy": "open"}})
    assert not answer("explain", denied)["unchanged"]
    assert isinstance(policy("explain", "0" * 16).exception, SettingsError)
    log = Audit(place / "state" / auditlog.FILE)
    log.open()
    log.write(Start("f" * 16, 1.5, "me", "", "all", "tools/call", "a", "read", ""))
    log.close()
    assert "has only begun" in str(policy("explain", "f" * 16).exception)


async def test_a_table_knows_what_is_asked_about(place: Path) -> None:
    cases = [
        {"tool": "a/write", "arguments": {"path": "/x", "text": "", "size": 1}, "expect": "ask", "by": "writes"},
        {"tool": "a/read", "arguments": {"path": "/x"}, "expect": "allow"},
        {"tool": "a/write", "expect": "listed"},
        {"tool": "a/read", "expect": "ask"},
    ]
    found = answer("test", table(place, *cases), "--policy", "approve-writes", code=1)
    assert found["failed"] == [
        {"case": 4, "problem": "is allowed", "policies": ["profile:all:a", "approve-writes:everything"]}
    ]


async def test_explain_tells_who_approved_a_call(place: Path) -> None:
    profiles = {"all": {"servers": ["a"], "policy": "approve-writes"}}
    async with running(place, {"a": ["cabinet"]}, profiles) as gateway:
        session = await gateway.session()
        async with asyncio.TaskGroup() as group:
            call = group.create_task(session.call("a__write", {"path": "/x"}))
            waits = gateway.gateway.door.approvals
            admin = Approver("root", "page", is_admin=True)
            await until(lambda: waits.waiting(admin), "it waits")
            (one,) = waits.waiting(admin)
            early = answer("explain", one.asked.call)
            waits.decide(one.id, True, admin)
        assert call.result()
    assert [step["step"] for step in early["approval"]] == ["held"]
    found = answer("explain", one.asked.call)
    assert [(step["step"], step["by"]) for step in found["approval"]] == [
        ("held", ""),
        ("approved", "root (page)"),
        ("used", "root (page)"),
    ]
    assert [rule["id"] for rule in found["policies"]][1:] == ["approve-writes:everything", "approve-writes:writes"]
    said = policy("explain", one.asked.call).stdout
    assert f"approval {one.id}: approved by root (page) at 2" in said
    assert '@effect("ask")' in said


async def test_a_call_is_approved_and_refused_on_the_command_line(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "run", asyncio.run)  # signals are for the main thread, where the gateway runs here
    profiles = {"all": {"servers": ["a"], "policy": "approve-writes"}}

    def approvals(*words: str) -> Result:
        return CliRunner().invoke(app, ["approvals", *words])

    async with running(place, {"a": ["cabinet"]}, profiles) as gateway:
        session = await gateway.session()
        assert "no call waits" in (await to_thread.run_sync(approvals, "list")).stdout
        waits = gateway.gateway.door.approvals
        admin = Approver("root", "page", is_admin=True)
        for word in ("approve", "deny"):
            async with asyncio.TaskGroup() as group:
                params = {"name": "a__write", "arguments": {"path": f"/{word}", "text": "\x1b[2J" + "z" * 3000}}
                call = group.create_task(session.result("tools/call", params))
                await until(lambda: waits.waiting(admin), "it waits")
                listed = json.loads((await to_thread.run_sync(approvals, "list", "--json")).stdout)
                (one,) = listed
                assert (one["tool"], one["principal"], one["state"]) == ("a__write", "local", "pending")
                assert f"/{word}" in (await to_thread.run_sync(approvals, "list")).stdout
                short = (await to_thread.run_sync(approvals, "show", one["id"])).stdout
                assert "this tool may change something" in short
                assert "\x1b" not in short
                assert "z" * 3000 not in short
                full = (await to_thread.run_sync(approvals, "show", one["id"], "--full")).stdout
                assert "z" * 3000 in full
                done = await to_thread.run_sync(approvals, word, one["id"])
                assert done.exit_code == 0, done.output
            assert bool(call.result().get("isError")) is (word == "deny")
            late = await to_thread.run_sync(approvals, "approve", one["id"])
            assert "already" in str(late.exception)
        lost = await to_thread.run_sync(approvals, "show", "0123456789abcdef")
        assert "no call with the id" in str(lost.exception)


# -- replay ------------------------------------------------------------------------------------


def replayed(place: Path, text: str, code: int, *words: str) -> dict[str, Any]:
    """What became of the two recorded calls of `a/read`, one allowed and one denied, under another policy."""
    other = place / "other.cedar"
    other.write_text(text)
    found = answer("replay", str(other), *words, code=code)
    (group,) = found["groups"]
    assert (group["principal"], group["action"], group["item"]) == ("local", "call", "a/read")
    assert found["calls"] == sum(group["counts"].values()) == 2
    return dict(group)


EVERYBODY = "permit (principal, action, resource);"


async def test_replay_says_what_recorded_calls_would_have_met(place: Path) -> None:
    wider = replayed(place, EVERYBODY, 1)
    assert wider["counts"] == {"same": 1, "wider": 1, "narrower": 0, "unclear": 0}
    (denied,) = [one["call"] for one in auditlog.ends(place / "state") if one["outcome"] == "denied"]
    assert wider["examples"] == {"wider": [denied]}
    assert wider["now"] == ["allow"]
    narrower = replayed(place, '@id("no")\nforbid (principal, action, resource);', 3)
    assert narrower["counts"] == {"same": 1, "wider": 0, "narrower": 1, "unclear": 0}
    assert narrower["policies"][-1].endswith(":no")
    asking = '@id("ask")\n@effect("ask")\npermit (principal, action == Action::"call", resource);'
    assert replayed(place, asking, 1)["now"] == ["ask"]
    other = policy("replay", str(place / "other.cedar"))
    assert other.exit_code == 1
    assert "local: call a/read: 1 wider, 1 narrower; now ask" in other.stdout


async def test_what_was_not_recorded_leaves_both_answers_open(place: Path) -> None:
    """Arguments are kept as a fingerprint only; the very policy that decided reads them."""
    unclear = replayed(place, MINE, 3)
    assert unclear["counts"] == {"same": 0, "wider": 0, "narrower": 0, "unclear": 2}
    assert unclear["now"] == ["allow", "deny"]
    assert unclear["depends"] == ["context.path.path"]
    hopeless = "forbid (principal, action, resource);" + MINE
    assert replayed(place, hopeless, 3)["counts"] == {"same": 1, "wider": 0, "narrower": 1, "unclear": 0}


async def test_the_recorded_principal_time_and_kind_are_those_that_are_asked_about(place: Path) -> None:
    local = 'permit (principal, action, resource) when { principal.kind == "loopback" };'
    assert replayed(place, local, 1)["counts"]["wider"] == 1
    staff = 'permit (principal in Group::"staff", action, resource);'
    assert replayed(place, staff, 3)["counts"] == {"same": 1, "wider": 0, "narrower": 1, "unclear": 0}
    long_ago = 'permit (principal, action, resource) when { context.now < datetime("2000-01-01T00:00:00Z") };'
    assert replayed(place, long_ago, 3)["counts"] == {"same": 1, "wider": 0, "narrower": 1, "unclear": 0}


async def test_of_a_principal_that_was_not_recorded_only_the_id_counts(tmp_path: Path, place: Path) -> None:
    """Records of versions that wrote no more than the id."""
    state = place / "state"
    kept = [one for one in auditlog.ends(state) if one["method"] == "tools/call"]
    for name in (auditlog.FILE, auditlog.CHECKPOINTS):
        (state / name).unlink()
    log = Audit(state / auditlog.FILE)
    log.open()
    for one in kept:
        bare = {name: value for name, value in one.items() if name not in ("who", "source", "seq", "chain")}
        log.write(msgspec.convert(bare, Record))
    log.close()
    staff = 'permit (principal in Group::"staff", action, resource);'
    unclear = replayed(place, staff, 3)
    assert unclear["counts"]["unclear"] == 2
    assert unclear["depends"] == ["principal"]
    assert replayed(place, EVERYBODY, 1)["counts"] == {"same": 1, "wider": 1, "narrower": 0, "unclear": 0}


async def test_replay_takes_the_time_and_the_profile_that_are_given(place: Path) -> None:
    other = place / "other.cedar"
    other.write_text(EVERYBODY)
    state = place / "state"
    log = Audit(state / auditlog.FILE)
    log.open()
    log.write(Record("e" * 16, 1.5, "local", "", "all", "tools/call", "a__read", server="a", item="read", policy="x"))
    log.close()
    assert answer("replay", str(other), "--since", "1h", code=1)["calls"] == 2
    assert answer("replay", str(other), "--since", "9999w", code=1)["calls"] == 3
    assert isinstance(policy("replay", str(other), "--since", "soon").exception, SettingsError)
    assert isinstance(policy("replay", "nothing").exception, PoliciesUnusable)


async def test_a_call_over_a_limit_was_allowed_by_policy(place: Path) -> None:
    state = place / "state"
    log = Audit(state / auditlog.FILE)
    log.open()
    outcomes: tuple[tuple[Outcome, str], ...] = (("limited", "limit burst"), ("denied", "only below /data"))
    for outcome, detail in outcomes:
        log.write(
            Record(
                "e" * 16, 1.5, "local", "", "all", "tools/call", "a__read", server="a", item="read", policy="x",
                outcome=outcome, detail=detail,
            )
        )  # fmt: skip
    log.close()
    other = place / "other.cedar"
    other.write_text(EVERYBODY)
    (group,) = answer("replay", str(other), "--since", "9999w", code=1)["groups"]
    assert group["counts"] == {"same": 2, "wider": 2, "narrower": 0, "unclear": 0}


async def test_nothing_follows_from_an_audit_file_that_was_changed(place: Path) -> None:
    path = place / "state" / auditlog.FILE
    path.write_bytes(path.read_bytes().replace(b'"denied"', b'"ok"'))
    done = policy("replay", "open")
    assert isinstance(done.exception, SettingsError)
    assert "was changed" in str(done.exception)


async def test_the_use_of_models_is_tabled_compared_checked_and_explained(place: Path) -> None:
    ruled = """@id("tools") permit (principal, action == Action::"call", resource is Tool);
    @id("free") permit (principal, action == Action::"use", resource is Model)
    when { resource.license == "Apache-2.0" && resource.megabytes < 500 };"""
    (place / "policies" / "models.cedar").write_text(ruled)
    cases: list[dict[str, Any]] = [
        {"model": "smollm2:135m", "expect": "allow", "by": "free"},
        {"model": "no-such-model:1b", "expect": "deny"},
        {"tool": "a/read", "expect": "allow", "by": "tools"},
    ]
    assert answer("test", table(place, *cases), "--policy", "models") == {"cases": 3, "failed": []}
    assert (
        answer("test", table(place, {"model": "smollm2:135m", "expect": "hidden"}), "--policy", "locked")["failed"]
        == []
    )
    changes = answer("diff", "locked", "models", code=1)
    assert ("use", "smollm2:135m", True) in [(one["action"], one["item"], one["widens"]) for one in changes]
    audit = Audit(place / "state" / auditlog.FILE)
    audit.open()
    record = ModelRecord(
        "c" * 16, now(), "ann", "", "all", "models/use", "smollm2:135m", item="smollm2:135m", policy="x",
        policies=("profile:all", "models:free"), outcome="ok",
    )  # fmt: skip
    audit.write(record.start())
    audit.write(record)
    audit.close()
    found = answer("explain", "c" * 16)
    assert found["call"]["item"] == "smollm2:135m"
    assert '"Apache-2.0"' in found["policies"][1]["text"]
    told = policy("explain", "c" * 16).output
    assert "models/use" in told
    assert "its policy decides" in told
    group = next(one for one in replayed_groups("locked", 1, 3) if one["action"] == "use")
    assert (group["item"], group["counts"]["narrower"]) == ("smollm2:135m", 1)
    (place / "policies" / "models.cedar").write_text('permit (principal, action, resource == Model::"smollm2");')
    with pytest.raises(PoliciesUnusable, match="write it with its tag, as smollm2:latest"):
        raise policy("lint").exception or AssertionError


def replayed_groups(name: str, *codes: int) -> list[dict[str, Any]]:
    done = policy("replay", name, "--json")
    assert done.exit_code in codes, done.output
    return list(json.loads(done.stdout)["groups"])
