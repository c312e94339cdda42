"""The audit file as evidence: no change, cut, addition or move goes unseen, and nothing unrecorded is sent."""

import base64
import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from gateway import audit, auditchain, auditexport, auditlog
from gateway.audit import Audit, AuditUnwritable, Record
from gateway.auditchain import Checkpoint, Key, Verifier, verify
from gateway.cli import app
from tests.gateway.running import running

pytestmark = pytest.mark.anyio
N_POSITIONS = 10_000


def record(number: int, name: str = "a__echo") -> Record:
    return Record(f"{number:016x}", 1.5, "local", "tester", "all", "tools/call", name, server="a", item="echo")


def written(folder: Path, n: int, **options: Any) -> Path:
    path = folder / auditlog.FILE
    log = Audit(path, **options)
    log.open()
    for number in range(n):
        log.write(record(number))
    log.close()
    return path


def report(folder: Path) -> auditchain.Report:
    public = Key.load(folder / auditlog.KEY).public
    return verify(partial(auditlog.opened, folder), folder / auditlog.CHECKPOINTS, public)


# -- what is seen ------------------------------------------------------------------------------


@pytest.mark.sec("SEC-107")
def test_a_change_at_any_of_ten_thousand_positions_is_found_there(tmp_path: Path) -> None:
    lines = written(tmp_path, N_POSITIONS).read_bytes().splitlines(keepends=True)
    assert len(lines) == N_POSITIONS
    here = Verifier()
    for at, line in enumerate(lines):
        bit, place = 1 << at % 7, (at * 31) % len(line)
        flipped = line[:place] + bytes([line[place] ^ bit]) + line[place + 1 :]
        after = lines[at + 1] if at + 1 < len(lines) else b""
        honest = json.loads(line)
        del honest["seq"], honest["chain"]
        forged, _ = auditchain.sealed(json.dumps({**honest, "principal": "else"}).encode(), at + 1, here.chain)
        for mutation in (
            [flipped],  # changed
            [line[:-2]],  # cut
            [after, line],  # moved, or removed
            [line, line],  # written twice
            [forged, after],  # written anew with a chain value that fits
            [line, forged],  # added
        ):
            verifier = copy(here)
            taken = [verifier.take(one) for one in mutation]
            if not after and mutation in ([after, line], [forged, after]):
                continue  # the end is the checkpoint's to hold
            assert not all(taken), (at, mutation)
            assert verifier.seq <= at + 1, (at, mutation)
            assert verifier.problem
        assert here.take(line)
    assert report(tmp_path) == auditchain.Report(N_POSITIONS, 10, 0)


@pytest.mark.sec("SEC-107")
def test_verify_names_the_file_and_line_of_the_first_bad_record(tmp_path: Path) -> None:
    path = written(tmp_path, 50)
    lines = path.read_bytes().splitlines(keepends=True)
    for changed, line, words in (
        ([*lines[:20], lines[20].replace(b"local", b"loca1"), *lines[21:]], 21, "was changed"),
        ([*lines[:20], *lines[21:]], 21, "records are missing"),
        ([*lines[:20], lines[21], lines[20], *lines[22:]], 21, "missing, added or moved"),
        ([*lines[:20], b"{}\n", *lines[20:]], 21, "no whole record"),
    ):
        path.write_bytes(b"".join(changed))
        found = report(tmp_path)
        assert found.where == f"{path}:{line}"
        assert words in found.problem


@pytest.mark.sec("SEC-107")
def test_a_file_cut_short_or_written_anew_contradicts_its_checkpoints(tmp_path: Path) -> None:
    path = written(tmp_path, 1500)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))
    assert "records at its end are missing" in report(tmp_path).problem
    path.unlink()
    assert "records at its end are missing" in report(tmp_path).problem
    chain = auditchain.FIRST
    anew = []
    for seq in range(1, 1501):
        line, chain = auditchain.sealed(msgspec.json.encode(record(seq, "another")), seq, chain)
        anew.append(line)
    path.write_bytes(b"".join(anew))
    found = report(tmp_path)
    assert found.where == f"{path}:1000"
    assert "written anew" in found.problem


@pytest.mark.sec("SEC-107")
def test_checkpoints_that_somebody_else_signed_are_none(tmp_path: Path) -> None:
    written(tmp_path, 20)
    path = tmp_path / auditlog.CHECKPOINTS
    (line,) = path.read_bytes().splitlines()
    genuine = msgspec.json.decode(line, type=Checkpoint)
    other = Key(Ed25519PrivateKey.generate()).sign(genuine)
    for forged in (
        other,
        msgspec.structs.replace(genuine, seq=10),
        msgspec.structs.replace(genuine, at=0.0),
        msgspec.structs.replace(genuine, signature=""),
        msgspec.structs.replace(genuine, signature=base64.b64encode(bytes(64)).decode()),
    ):
        path.write_bytes(msgspec.json.encode(forged) + b"\n")
        assert "no checkpoint signed with the key" in report(tmp_path).problem
    path.write_bytes(b"nothing\n")
    assert report(tmp_path).where == f"{path}:1"


@pytest.mark.sec("SEC-107")
def test_records_written_after_a_cut_do_not_hide_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = written(tmp_path, 20)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:10]))
    written(tmp_path, 10)
    assert "it was cut short or changed" in caplog.text
    assert report(tmp_path).problem


def test_a_file_put_aside_while_it_is_verified_is_no_false_alarm(tmp_path: Path) -> None:
    """The gateway goes on writing: here after the names were listed, and again after the files were opened."""
    log = Audit(tmp_path / auditlog.FILE, max_bytes=4000)
    log.open()
    for number in range(7):
        log.write(record(number))
    listed = auditlog.files
    turns = 0

    def turning(state_dir: Path) -> list[Path]:
        nonlocal turns
        found = listed(state_dir)
        turns += 1
        if turns == 1:
            write_over()
        return found

    def write_over() -> None:
        """So much that at least one file is put aside."""
        before = len(listed(tmp_path))
        while len(listed(tmp_path)) == before:
            log.write(record(9))
        log.write(record(9))

    @contextmanager
    def opened() -> Iterator[Any]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(auditlog, "files", turning)
            with auditlog.opened(tmp_path) as files:
                write_over()
                yield files

    found = verify(opened, tmp_path / auditlog.CHECKPOINTS, Key.load(tmp_path / auditlog.KEY).public)
    log.close()
    assert turns >= 2
    assert found.problem == ""
    assert found.records > 7
    assert report(tmp_path).problem == ""


# -- how it goes on ----------------------------------------------------------------------------


def test_the_chain_goes_on_over_starts_and_full_files(tmp_path: Path) -> None:
    for _ in range(3):
        written(tmp_path, 40, max_bytes=9000)
    files = auditlog.files(tmp_path)
    assert len(files) > 3
    assert len(list(auditlog.records(tmp_path))) == 120
    assert report(tmp_path) == auditchain.Report(120, report(tmp_path).checkpoints, 0)
    files[1].write_bytes(files[1].read_bytes().replace(b"local", b"loca1", 1))
    assert report(tmp_path).where == f"{files[1]}:1"
    files[1].unlink()
    assert "missing" in report(tmp_path).problem


def test_a_full_file_is_put_aside_once_a_new_one_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Audit(tmp_path / auditlog.FILE, max_bytes=2000)
    log.open()

    def none_left(path: Path, *_: Any) -> int:
        raise OSError(24, "Too many open files", path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", none_left)
        for number in range(20):
            log.write(record(number))
    assert auditlog.files(tmp_path) == [tmp_path / auditlog.FILE]
    for number in range(20, 40):
        log.write(record(number))
    log.close()
    assert len(auditlog.files(tmp_path)) > 1
    assert report(tmp_path).records == 40
    assert not report(tmp_path).problem


@pytest.mark.parametrize("torn", [1, 30, 200])
def test_a_line_that_a_crash_left_unfinished_is_removed(tmp_path: Path, torn: int) -> None:
    path = written(tmp_path, 3)
    whole = path.read_bytes()
    line, _ = auditchain.sealed(msgspec.json.encode(record(4)), 4, auditchain.FIRST)
    path.write_bytes(whole + line[:torn])
    written(tmp_path, 2)
    assert path.read_bytes().startswith(whole)
    assert report(tmp_path) == auditchain.Report(5, 2, 0)


def test_a_file_of_before_there_was_a_chain_is_put_aside(tmp_path: Path) -> None:
    (tmp_path / auditlog.FILE).write_bytes(b'{"call":"x"}\n')
    written(tmp_path, 2)
    (aside,) = tmp_path.glob("audit.unchained-*.jsonl")
    assert aside.read_bytes() == b'{"call":"x"}\n'
    assert report(tmp_path).records == 2


@pytest.mark.sec("SEC-108")
def test_a_failed_write_leaves_the_chain_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / auditlog.FILE
    log = Audit(path)
    log.open()
    log.write(record(0))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for more in (0, 10):
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + more, hard))
        try:
            with pytest.raises(AuditUnwritable):
                log.write(record(1))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    log.write(record(2))
    log.close()
    assert report(tmp_path) == auditchain.Report(2, 1, 0)


@pytest.mark.sec("SEC-107")
def test_only_the_owner_can_read_key_records_and_checkpoints(tmp_path: Path) -> None:
    written(tmp_path, 1)
    for name in (auditlog.FILE, auditlog.KEY, auditlog.CHECKPOINTS):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
    (tmp_path / auditlog.KEY).write_bytes(b"short")
    log = Audit(tmp_path / auditlog.FILE)
    log.open()
    log.write(record(2))
    log.close()  # without a usable key the records are kept all the same


# -- calls -------------------------------------------------------------------------------------


@pytest.mark.sec("SEC-107")
async def test_each_call_that_is_sent_has_one_start_and_one_end(tmp_path: Path) -> None:
    async with running(tmp_path, {"a": ["friendly"]}) as place:
        session = await place.session()
        await session.call("a__echo", {"x": 1})
        await session.failure("a__fail")
        await session.error("tools/call", {"name": "a__nope"})
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(session.call, "a__echo", {"x": 2})
        everything = list(auditlog.records(tmp_path / "state"))
        starts = [one["call"] for one in everything if one.get("event") == "start"]
        ends = {one["call"]: one for one in everything if "event" not in one}
        assert len(starts) == len(set(starts)) == 22
        assert set(starts) == {call for call, end in ends.items() if end["outcome"] != "unknown"}
        places = {one["call"]: at for at, one in enumerate(everything) if "event" in one}
        for at, one in enumerate(everything):
            if "event" not in one and one["outcome"] != "unknown":
                assert places[one["call"]] < at
        end = ends[starts[0]]
        listing = place.gateway.pool.listing("a")
        assert listing is not None
        assert end["entry_digest"] == listing.digest[:16]
        assert len(end["tool_digest"]) == 16
        assert end["policy"] == place.gateway.door.policy.generation
        assert end["bytes"] == len(json.dumps({"content": [{"type": "text", "text": '{"x": 1}'}]}))
    assert report(tmp_path / "state").problem == ""
    assert report(tmp_path / "state").unsigned == 0


@pytest.mark.sec("SEC-108")
async def test_what_cannot_be_recorded_is_not_sent(tmp_path: Path) -> None:
    async with running(tmp_path, {"a": ["rich", "{}"]}) as place:
        session = await place.session()
        before = json.loads(await session.call("a__heard"))
        os.close(place.gateway.audit._fd)
        place.gateway.audit._fd = -1
        error = await session.error("tools/call", {"name": "a__touch", "arguments": {}})
        assert error["code"] == -32603
        assert (await place.http.request("GET", "/healthz")).status == 200
        place.gateway.audit.open()
        after = json.loads(await session.call("a__heard"))
        assert after == [*before, "tools/call"]


# -- the commands ------------------------------------------------------------------------------


@pytest.fixture
async def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOCKGATE_STATE_DIR", str(tmp_path / "state"))
    async with running(tmp_path, {"a": ["friendly"]}) as place:
        session = await place.session(name="tester|=\n")
        await session.call("a__echo", {"x": "hidden"})
        await session.error("tools/call", {"name": "a__nope"})
    return tmp_path / "state"


def lockgate(*words: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["audit", *words])
    assert done.exit_code == code, done.output
    return done.stdout


async def test_tail_and_search_show_calls(recorded: Path) -> None:
    found = json.loads(lockgate("tail", "--json"))
    assert [one["outcome"] for one in found] == ["ok", "unknown"]
    assert json.loads(lockgate("tail", "-n", "1", "--json")) == found[1:]
    assert json.loads(lockgate("search", "--outcome", "ok", "--server", "a", "--since", "1h", "--json")) == found[:1]
    assert json.loads(lockgate("search", "--policy", "open:everything", "--json")) == found[:1]
    assert json.loads(lockgate("search", "--call", found[1]["call"], "--json")) == found[1:]
    assert lockgate("search", "--principal", "nobody") == "nothing was recorded\n"
    assert "tools/call a echo" in lockgate("tail")
    assert "no span of time" in str(CliRunner().invoke(app, ["audit", "search", "--since", "soon"]).exception)


async def test_verify_ends_with_1_where_something_was_changed(recorded: Path) -> None:
    key = json.loads(lockgate("verify", "--json"))["public_key"]
    assert "3 records are as they were written" in lockgate("verify", "--public-key", key)
    lockgate("verify", "--public-key", "00" * 32, code=1)
    (recorded / auditlog.KEY).rename(recorded / "elsewhere")
    assert "audit.key" in str(CliRunner().invoke(app, ["audit", "verify"]).exception)
    assert not (recorded / auditlog.KEY).exists()
    (recorded / "elsewhere").rename(recorded / auditlog.KEY)
    path = recorded / auditlog.FILE
    path.write_bytes(path.read_bytes().replace(b'"ok"', b'"no"'))
    assert f"{path}:2" in lockgate("verify", code=1)


async def test_export_writes_what_collectors_read(recorded: Path) -> None:
    lines = lockgate("export").splitlines()
    assert [json.loads(line) for line in lines] == list(auditlog.records(recorded))
    start, end, unknown = lockgate("export", "--format", "cef").splitlines()
    assert start.startswith("CEF:0|Lockgate|Lockgate|")
    assert "|tools/call|start|2|" in start
    assert "|tools/call|ok|2|rt=" in end
    assert "sourceServiceName=tester|\\=\\n" in end
    assert "|tools/call|unknown|5|" in unknown
    (data,) = lockgate("export", "--format", "otlp").splitlines()
    (logs,) = json.loads(data)["resourceLogs"]
    records = logs["scopeLogs"][0]["logRecords"]
    assert [one["body"]["stringValue"] for one in records] == [
        "tools/call start",
        "tools/call ok",
        "tools/call unknown",
    ]
    attributes = {one["key"]: one["value"] for one in records[1]["attributes"]}
    assert attributes["lockgate.server"] == {"stringValue": "a"}
    assert attributes["lockgate.policies"]["arrayValue"]["values"][1] == {"stringValue": "open:everything"}
    who = {one["key"]: one["value"] for one in attributes["lockgate.who"]["kvlistValue"]["values"]}
    assert who["id"] == {"stringValue": "local"}
    assert who["groups"] == {"arrayValue": {"values": []}}
    assert "scopes" not in who
    assert "src=127.0.0.1" in end
    assert "hidden" not in data + "".join(lines)


def test_addresses_of_both_versions_have_the_keys_that_cef_names() -> None:
    lines = [
        line
        for source in ("192.0.2.1", "2001:db8::1", "", "x src=1.2.3.4")
        for line in auditexport.cef([{"at": 1.5, "method": "tools/call", "outcome": "ok", "source": source}])
    ]
    ends = [line.partition(" outcome=ok")[2] for line in lines]
    assert ends == [
        " src=192.0.2.1",
        " c6a2=2001:db8::1 c6a2Label=Source IPv6 Address",
        "",
        "",
    ]


async def test_checkpoints_come_by_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "CHECKPOINT_S", 0.01)
    log = Audit(tmp_path / auditlog.FILE)
    log.open()
    async with anyio.create_task_group() as group:
        group.start_soon(log.watch)
        log.write(record(1))
        with anyio.fail_after(20):
            while not (tmp_path / auditlog.CHECKPOINTS).exists():
                await anyio.sleep(0.01)
        group.cancel_scope.cancel()
    log.close()
    assert report(tmp_path) == auditchain.Report(1, 1, 0)
