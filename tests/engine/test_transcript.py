"""Transcripts: what was added is there, whatever happened to the process that wrote it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from engine.errors import TranscriptBusy, TranscriptError, TranscriptNotFound
from engine.events import Answered, Event, StepStarted, Stopped, TextWritten, ToolCalled, ToolReturned, Turned
from engine.transcript import Header, Transcript, find, load, load_all, new_id

CALL = {"index": 0, "id": "a", "type": "function", "function": {"name": "t", "arguments": '{"k": "ü"}'}}
EVENTS: list[Event] = [
    StepStarted(1, ("t",)),
    Turned("thinking", (CALL,), 5, 100, 90),
    ToolCalled("a", "t", {"k": "ü"}),
    ToolReturned("a", "t", "line\nline", False),
    Answered("done", {"n": 1}),
    Stopped("answered", 1, 1, 5),
]


def header(run: str, at: float = 1.0) -> Header:
    return Header(run, at, "a task", "model:1b", "starter", {"steps": 3}, "be kind", ["t"], schema={"type": "object"})


def test_what_was_added_is_read_back(tmp_path: Path) -> None:
    with Transcript.create(tmp_path / "runs", header("one")) as transcript:
        for event in EVENTS:
            transcript.add(event)
        transcript.add(TextWritten("a piece that is in the turn"))
    record = load(tmp_path / "runs", "one")
    assert record.header == header("one")
    assert [event for _, event in record.events] == EVENTS
    assert (record.state, record.answer) == ("answered", EVENTS[4])
    assert record.history == EVENTS[:-1]
    assert (tmp_path / "runs" / "one.jsonl").stat().st_mode & 0o077 == 0


def test_line_cut_off_by_a_crash_is_not_an_event_and_goes_when_the_run_goes_on(tmp_path: Path) -> None:
    with Transcript.create(tmp_path, header("one")) as transcript:
        transcript.add(EVENTS[0])
    path = tmp_path / "one.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"at":1,"is":{"event":"Turn')
    assert [event for _, event in load(tmp_path, "one").events] == EVENTS[:1]
    transcript, record = Transcript.reopen(tmp_path, "one")
    with transcript:
        assert record.state == "unfinished"
        transcript.add(EVENTS[1])
    assert [event for _, event in load(tmp_path, "one").events] == EVENTS[:2]


def test_a_run_that_is_written_elsewhere_is_busy(tmp_path: Path) -> None:
    with Transcript.create(tmp_path, header("one")), pytest.raises(TranscriptBusy, match="still going on"):
        Transcript.reopen(tmp_path, "one")
    Transcript.reopen(tmp_path, "one")[0].close()


def test_acknowledged_events_survive_a_killed_writer(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from engine.events import StepStarted\n"
        "from engine.transcript import Header, Transcript\n"
        "t = Transcript.create(Path(sys.argv[1]), Header('one', 1.0, 't', 'm', 'p'))\n"
        "for n in range(10**9):\n    t.add(StepStarted(n, ('x' * 1000,)))\n    print(n, flush=True)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    with writer.stdout as acknowledged:
        lines = [int(acknowledged.readline()) for _ in range(20)]
        os.kill(writer.pid, signal.SIGKILL)
        lines += [int(line) for line in acknowledged if line.strip()]
    writer.wait()
    steps = [event.step for _, event in load(tmp_path, "one").events if isinstance(event, StepStarted)]
    assert steps[: len(lines)] == lines
    assert len(steps) - len(lines) <= 1


def test_runs_are_found_by_a_part_of_their_id_and_the_newest_is_last(tmp_path: Path) -> None:
    for run in ("20260101-000000-aaaaaa", "20260102-000000-bbbbbb"):
        Transcript.create(tmp_path, header(run)).close()
    assert find(tmp_path, "last").stem == "20260102-000000-bbbbbb"
    assert find(tmp_path, "20260101").stem == find(tmp_path, "aaaaaa").stem == "20260101-000000-aaaaaa"
    with pytest.raises(TranscriptNotFound, match="could be 20260101-000000-aaaaaa, 20260102-000000-bbbbbb"):
        find(tmp_path, "2026")
    for unknown in ("zzz", "", "../one", "last/"):
        with pytest.raises(TranscriptNotFound):
            find(tmp_path, unknown)
    assert [record.header.run for record in load_all(tmp_path)] == ["20260102-000000-bbbbbb", "20260101-000000-aaaaaa"]
    with pytest.raises(TranscriptNotFound):
        find(tmp_path / "nowhere", "last")


@pytest.mark.parametrize("damage", [b"", b"\n", b"[]\n", b'{"run":"x"}\n', b"\xff\n"])
def test_damaged_file_is_said_and_costs_itself_only(tmp_path: Path, damage: bytes) -> None:
    Transcript.create(tmp_path, header("good")).close()
    (tmp_path / "bad.jsonl").write_bytes(damage)
    with pytest.raises(TranscriptError, match=r"bad\.jsonl is (damaged|empty)"):
        load(tmp_path, "bad")
    assert [record.header.run for record in load_all(tmp_path)] == ["good"]


def test_a_full_disk_is_an_error_of_its_own(tmp_path: Path) -> None:
    transcript = Transcript(tmp_path / "full", os.open("/dev/full", os.O_WRONLY))
    with transcript, pytest.raises(TranscriptError, match="cannot be written"):
        transcript.add(EVENTS[0])


def test_ids_sort_by_time_and_differ() -> None:
    assert len({new_id() for _ in range(100)}) == 100
