"""Streams of bytes cut into messages: lines and server-sent events, however the network cuts them."""

import time
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.wire import sse
from gateway.wire.channel import LineSplitter, LineTooLong
from gateway.wire.sse import Event, EventReader, EventTooLarge

cuts = st.lists(st.integers(0, 400), max_size=12)


def pieces(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(min(place, len(data)) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


# -- lines ---------------------------------------------------------------------------------------

visible = st.binary(min_size=1, max_size=20).filter(lambda line: b"\n" not in line and line.strip() == line)


@given(st.lists(visible, max_size=8), st.sampled_from([b"\n", b"\r\n", b"\n\n", b" \n"]), visible | st.just(b""), cuts)
def test_lines_come_out_whole_however_they_are_cut(
    lines: list[bytes], end: bytes, rest: bytes, places: list[int]
) -> None:
    splitter = LineSplitter()
    data = b"".join(line + end for line in lines) + rest
    assert [line for piece in pieces(data, places) for line in splitter.feed(piece)] == lines
    assert splitter.rest() == rest


@given(st.binary(max_size=14).map(lambda data: data.replace(b"x", b"\n")), st.booleans())
@example(b"{}\n", False)
@example(b" {} \r\n", False)
@example(b"{}\n", True)
@example(b"0123456789\n", False)
@example(b"012345678\n", False)
def test_what_is_one_line_by_itself_is_what_would_be_read_of_it(data: bytes, after_half_a_line: bool) -> None:
    splitter, by_itself = LineSplitter(10), LineSplitter(10)
    if after_half_a_line:
        for one in (splitter, by_itself):
            assert list(one.feed(b"y")) == []
    line = by_itself.only_line(data)
    if line is not None:
        assert not after_half_a_line
        assert [line] == fed(splitter, [data])
        assert by_itself.rest() == splitter.rest() == b""
    elif not after_half_a_line:
        assert data.count(b"\n") != 1 or not data.endswith(b"\n") or not data.strip() or len(data) > 10


def fed(splitter: LineSplitter, chunks: list[bytes]) -> list[bytes] | None:
    """The lines, or None if one was too long."""
    try:
        return [line for chunk in chunks for line in splitter.feed(chunk)]
    except LineTooLong:
        return None


@given(st.lists(st.integers(0, 14), min_size=1, max_size=6), cuts)
@example([0, 11], [])
@example([11], [12])
@example([3, 11, 3], [5, 9])
def test_a_line_over_the_limit_is_refused_however_it_is_cut(lengths: list[int], places: list[int]) -> None:
    data = b"".join(b"x" * length + b"\n" for length in lengths)
    expected = [b"x" * length for length in lengths if length]
    assert fed(LineSplitter(10), pieces(data, places)) == (expected if max(lengths) <= 10 else None)


def test_an_endless_line_is_refused_as_soon_as_it_passes_the_limit() -> None:
    splitter = LineSplitter(1000)
    chunks = [b"x" * 100] * 10
    assert fed(splitter, chunks) == []
    assert fed(splitter, [b"x"]) is None


def test_a_long_line_in_small_pieces_takes_time_in_proportion_to_its_length() -> None:
    started = time.monotonic()
    splitter = LineSplitter()
    for _ in range(30_000):
        assert not list(splitter.feed(b"x" * 1000))
    assert len(next(splitter.feed(b"\n"))) == 30_000_000
    assert time.monotonic() - started < 3


# -- server-sent events --------------------------------------------------------------------------


def events(chunks: list[bytes], limit: int = sse.MAX_EVENT_BYTES) -> list[Event]:
    reader = EventReader(limit)
    return [event for chunk in chunks for event in reader.feed(chunk)]


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        # The examples of the HTML Living Standard, section 9.2.6.
        (b"data: YHOO\ndata: +2\ndata: 10\n\n", [Event(b"YHOO\n+2\n10", b"", None, None)]),
        (
            b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n",
            [
                Event(b"first event", b"", b"1", None),
                Event(b"second event", b"", b"", None),
                Event(b" third event", b"", None, None),
            ],
        ),
        (b"data\n\ndata\ndata\n\ndata:", [Event(b"", b"", None, None), Event(b"\n", b"", None, None)]),
        (b"data:test\n\ndata: test\n\n", [Event(b"test", b"", None, None)] * 2),
        # Names, ids and times.
        (b"event: message\nid: 7\nretry: 1500\ndata: x\n\n", [Event(b"x", b"message", b"7", 1500)]),
        (b"id: 7\n\n", [Event(b"", b"", b"7", None)]),
        (b"retry: 3000\n\n", [Event(b"", b"", None, 3000)]),
        (b"retry: 3 s\nretry: -1\nretry:\ndata: x\n\n", [Event(b"x", b"", None, None)]),
        (b"id: a\0b\ndata: x\n\n", [Event(b"x", b"", None, None)]),
        # An event without data is none, and leaves nothing to the next one.
        (b"event: ping\n\ndata: x\n\n", [Event(b"x", b"", None, None)]),
        # What is not understood is skipped.
        (b": comment\nunknown: x\nDATA: y\n data: z\ndata : w\ndata: x\n\n", [Event(b"x", b"", None, None)]),
        (b"\xef\xbb\xbfdata: x\n\n", [Event(b"x", b"", None, None)]),
        (b"\n\n\n\r\r\ndata: x\r\rdata: x\r\n\r\ndata: x\n\r\n", [Event(b"x", b"", None, None)] * 3),
        # Bytes stay what they are.
        (b"data: {\"a\":\"\xc3\xa9\xe2\x80\xa8\"}\n\n", [Event(b'{"a":"\xc3\xa9\xe2\x80\xa8"}', b"", None, None)]),
        (b"data: unfinished\n", []),
    ],
)  # fmt: skip
def test_a_stream_is_read_as_the_standard_says(stream: bytes, expected: list[Event]) -> None:
    for end in (b"\n", b"\r\n", b"\r"):
        if b"\r" not in stream or end == b"\n":
            # A CR at the very end could be half of a line break: the next byte tells.
            data = stream.replace(b"\n", end) + b":"
            assert events([data]) == expected
            assert events([bytes([byte]) for byte in data]) == expected


stream_lines = st.sampled_from(
    [
        b"data: x",
        b"data:yy",
        b"data",
        b"id: 4",
        b"id",
        b"event: e",
        b"retry: 10",
        b": c",
        b"junk",
        b"",
        b"",
        b"\xc3\xa9",
    ]
)


@given(st.lists(st.tuples(stream_lines, st.sampled_from([b"\n", b"\r\n", b"\r"])), max_size=20), cuts)
def test_events_come_out_the_same_however_the_stream_is_cut(
    lines: list[tuple[bytes, bytes]], places: list[int]
) -> None:
    stream = b"".join(line + end for line, end in lines) + b"\n"
    assert events(pieces(stream, places)) == events([stream])


@given(st.binary(max_size=60).filter(lambda data: b"\n" not in data and b"\r" not in data), cuts)
def test_an_event_that_was_written_reads_back_the_same(data: bytes, places: list[int]) -> None:
    written = sse.event(data) + sse.event(data, b"12")
    expected = [Event(data, b"message", None, None), Event(data, b"message", b"12", None)]
    assert events(pieces(written, places)) == expected


@pytest.mark.parametrize(
    "endless",
    [b"data: " + b"x" * 94 + b"\n", b"data\n", b"data:\n", b"x" * 100, b":" + b"x" * 99, b"id: 1\ndata: x\r"],
)
def test_an_endless_event_is_refused(endless: bytes) -> None:
    with pytest.raises(EventTooLarge):
        events([endless] * 3000, limit=1000)


def test_an_endless_stream_of_comments_and_small_events_is_not_refused() -> None:
    assert len(events([b": still here\n", b"data: x\n\n"] * 1000, limit=1000)) == 1000


def test_a_large_event_in_small_pieces_takes_time_in_proportion_to_its_size() -> None:
    started = time.monotonic()
    chunks = [b"data: ", *([b"x" * 10_000] * 2000), b"\n\n"]
    assert [len(event.data) for event in events(chunks)] == [20_000_000]
    assert time.monotonic() - started < 3
