"""`_meta` of modern requests: what is remembered must be what would be read again."""

from __future__ import annotations

import json

import pytest

from gateway.wire import envelope, meta, revisions
from gateway.wire.handshake import modern_meta

VERSION = revisions.MODERN[0]


def _meta(**more: object) -> bytes:
    members = {revisions.PROTOCOL_VERSION: VERSION, revisions.CLIENT_CAPABILITIES: {}, **more}
    return json.dumps(members).encode()


def test_the_same_bytes_are_read_the_same_way_each_time() -> None:
    raw = _meta(**{revisions.CLIENT_INFO: {"name": "someone"}, revisions.LOG_LEVEL: "info"})

    first, second = meta.read(raw), meta.read(raw)

    assert first == second
    assert isinstance(first, meta.ClientFacts)
    assert (first.version, first.client, first.log_level, first.problem) == (VERSION, "someone", "info", None)


def test_two_clients_are_told_apart() -> None:
    names = []
    for name in ("one", "two"):
        facts = meta.read(_meta(**{revisions.CLIENT_INFO: {"name": name}}))
        assert isinstance(facts, meta.ClientFacts)
        names.append(facts.client)

    assert names == ["one", "two"]


@pytest.mark.parametrize("raw", [b"", b"[]", b"null", b"{}", b'{"a":', _meta(**{revisions.PROTOCOL_VERSION: 5})])
def test_what_is_no_request_meta_is_a_problem_each_time(raw: bytes) -> None:
    for _ in range(2):
        found = meta.read(raw)
        assert isinstance(found, meta.Problem)
        assert found.code == envelope.INVALID_PARAMS


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({revisions.PROTOCOL_VERSION: "1999-01-01"}, envelope.UNSUPPORTED_PROTOCOL_VERSION),
        ({revisions.CLIENT_CAPABILITIES: []}, envelope.INVALID_PARAMS),
        ({revisions.CLIENT_INFO: {"name": 7}}, envelope.INVALID_PARAMS),
        ({revisions.LOG_LEVEL: "loud"}, envelope.INVALID_PARAMS),
    ],
)
def test_a_version_is_known_before_the_rest_is_refused(more: dict[str, object], code: int) -> None:
    facts = meta.read(_meta(**more))

    assert isinstance(facts, meta.ClientFacts)
    assert facts.version == more.get(revisions.PROTOCOL_VERSION, VERSION)
    assert facts.problem is not None
    assert facts.problem.code == code


def test_a_long_meta_is_read_but_not_remembered() -> None:
    before = meta._remembered.cache_info().currsize
    facts = meta.read(_meta(padding="x" * meta.MAX_REMEMBERED_BYTES))

    assert isinstance(facts, meta.ClientFacts)
    assert meta._remembered.cache_info().currsize == before


def test_the_next_hop_is_told_what_would_be_written_for_this_request_alone() -> None:
    raw = _meta(**{"com.example/trace": "7", revisions.CLIENT_INFO: {"name": "someone"}})

    for level in ("", "error"):
        given = meta.onward(raw, VERSION, b'{"roots":{}}', level)
        written = modern_meta(envelope.fields(raw), VERSION, envelope.raw({"roots": {}}), level)
        assert given is not None
        assert bytes(given) == envelope.encode(written)


@pytest.mark.parametrize("key", ["progressToken", "progressT\\u006fken", "\\u0070rogressToken"])
def test_a_progress_token_is_never_passed_on_from_memory(key: str) -> None:
    raw = b'{"%b":5}' % key.encode()

    for _ in range(2):
        assert meta.onward(raw, VERSION, b"{}", "") is None
