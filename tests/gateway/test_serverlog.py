"""The log of one server: bounded, printable, whole lines however the bytes come."""

import time

from hypothesis import given
from hypothesis import strategies as st

from gateway.serverlog import MAX_LINE_CHARS, MAX_LINES, ServerLog


@given(st.text(), st.sampled_from(["stderr", "stdout", "gateway"]))
def test_a_line_is_printable_whatever_was_written(text: str, origin: str) -> None:
    log = ServerLog()
    log.write(origin, text)  # type: ignore[arg-type]
    (line,) = log.lines()
    assert all(character.isprintable() or character == "\t" for character in line.text)


@given(st.lists(st.binary(max_size=30), max_size=12))
def test_stderr_makes_the_same_lines_however_it_is_cut(chunks: list[bytes]) -> None:
    cut, whole = ServerLog(), ServerLog()
    for chunk in chunks:
        cut.stderr(chunk)
    whole.stderr(b"".join(chunks))
    assert [line.text for line in cut.lines()] == [line.text for line in whole.lines()]


def test_escapes_that_could_drive_a_terminal_are_spelled_out() -> None:
    log = ServerLog()
    log.stderr(b"\x1b]0;title\x07\x1b[2J\rover\x9b\xe2\x80\xaegnp.exe\n")
    assert log.lines()[0].text == "\\x1b]0;title\\x07\\x1b[2J\\rover\\x9b\\u202egnp.exe"


def test_many_and_long_lines_stay_within_bounds() -> None:
    log = ServerLog()
    for number in range(3 * MAX_LINES):
        log.stderr(b"%d " % number + b"x" * 5000 + b"\n")
    lines = log.lines()
    assert len(lines) == MAX_LINES
    assert lines[-1].text.startswith(str(3 * MAX_LINES - 1))
    assert max(len(line.text) for line in lines) <= MAX_LINE_CHARS
    log.stderr(b"y" * 10_000_000)
    assert len(log.last(1)) <= MAX_LINE_CHARS


def test_noise_on_stdout_does_not_drive_out_everything_else() -> None:
    log = ServerLog()
    log.stderr(b"the reason\n")
    for _ in range(100_000):
        log.stray(b"noise")
    assert log.noise == 100_000
    assert "the reason" in [line.text for line in log.lines()]


def test_a_flood_costs_little_time() -> None:
    log = ServerLog()
    chunk = (b"x" * 99 + b"\n") * 650
    started = time.process_time()
    for _ in range(300):
        log.stderr(chunk)
    assert time.process_time() - started < 4
