"""The filter's judgement, without any container: rules, names, first bytes, and addresses that change under it."""

import asyncio
import ipaddress
import json
import socket
import ssl
import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalog import Entry
from gateway.egress import dns, sniff
from gateway.egress.attempts import MAX_AUDITED_A_MINUTE, MAX_KEPT, Attempt, Attempts
from gateway.egress.proxy import Denied, Filter, Reporter, _send_body
from gateway.egress.rules import Rules, canonical, parse

LISTED = ("api.example.com:443", "*.wild.example:8443", "10.1.0.0/16:5432", "[2001:db8::/32]:443", "192.0.2.7:22")


# -- rules ---------------------------------------------------------------------------------------


def test_names_are_listed_exactly_or_below_a_wildcard_and_with_their_port() -> None:
    rules = Rules(LISTED)
    assert rules.ports == {443, 8443, 5432, 22}
    for name, port in (("api.example.com", 443), ("a.wild.example", 8443), ("a.b.wild.example", 8443)):
        assert rules.allows_name(name, port)
        assert rules.knows(name)
        assert not rules.allows_name(name, 80)
    for name in (
        "example.com",
        "xapi.example.com",
        "api.example.com.evil.example",
        "wild.example",
        "xwild.example",
        "api.example.co",
        "a.wild.example.com",
        "10.1.0.1",
        "",
    ):
        assert not rules.knows(name), name
    assert Rules(["*:443"]).allows_name("anything.at.all", 443)
    assert not Rules(["*:443"]).allows_name("anything.at.all", 80)


@pytest.mark.sec("SEC-070")
@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.255.0.1",
        "0.0.0.0",
        "169.254.169.254",
        "169.254.170.2",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "10.0.0.1",
        "172.16.0.1",
        "172.17.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "198.18.0.1",
        "203.0.113.1",
        "240.0.0.1",
        "::",
        "::1",
        "fe80::1",
        "fd00:ec2::254",
        "fc00::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:8.8.8.8",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::1",
        "2002:7f00:1::",
        "2001:0:53aa::1",
        "::127.0.0.1",
        "::169.254.169.254",
        "::ffff:0:127.0.0.1",
        "fec0::1",
    ],
)
def test_what_is_not_the_internet_is_refused_whatever_name_led_there(address: str) -> None:

    assert Rules(["*:443"]).refusal(ipaddress.ip_address(address), 443)


@pytest.mark.sec("SEC-070")
def test_a_listed_network_opens_private_addresses_but_never_metadata_loopback_or_the_host() -> None:

    rules = Rules(["0.0.0.0/0:80", "[::/0]:80"], forbidden=["192.168.7.7", "198.51.100.9"])
    assert rules.refusal(ipaddress.ip_address("192.168.7.8"), 80) is None
    assert rules.refusal(ipaddress.ip_address("192.168.7.8"), 81)
    for address in ("127.0.0.1", "169.254.169.254", "192.168.7.7", "198.51.100.9", "::1", "fe80::1", "::ffff:10.0.0.1"):
        assert rules.refusal(ipaddress.ip_address(address), 80), address


@pytest.mark.parametrize(
    "text",
    [
        "api.example.com",
        "api.example.com:",
        "api.example.com:0",
        "api.example.com:65536",
        "api.example.com:x",
        "10.0.0.1/8:443",
        "300.1.1.1:443",
        "[::1/64]:443",
        "[api.example.com]:443",
        "*.*.example:443",
        "a.*.example:443",
        "http://api.example.com:443",
        "api.example.com/x:443",
        "API.example.com:443",
        "-a.example:443",
        "a..b:443",
        ":443",
        "*example.com:443",
        "1.2.3:443",
        "0x7f000001:443:1",
        "api.example.com:443 ",
        "äpi.example:443",
    ],
)
def test_what_is_no_host_is_refused_by_the_catalogue(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Entry(id="a", title="a", description="a", image="a:1", network="internet", hosts=(text,))


@pytest.mark.parametrize("text", [*LISTED, "*:443", "localhost:80", "a-b.example:65535"])
def test_what_the_catalogue_takes_the_filter_understands(text: str) -> None:
    Entry(id="a", title="a", description="a", image="a:1", network="internet", hosts=(text,))
    assert parse(text).port == int(text.rpartition(":")[2])


@given(st.text(max_size=300))
def test_a_canonical_name_is_ascii_and_lower_case(text: str) -> None:
    name = canonical(text)
    assert name is None or (name.isascii() and name == name.lower() and not name.endswith(".") and len(name) <= 253)


# -- names ---------------------------------------------------------------------------------------


def query(name: str, kind: int = 1, klass: int = 1) -> bytes:
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0"
    return b"\x12\x34\x01\x00\x00\x01\0\0\0\0\0\0" + labels + struct.pack(">HH", kind, klass)


def test_a_name_query_is_answered_with_one_address_or_nothing() -> None:
    asked = dns.read(query("Api.Example.com"))
    assert asked is not None
    assert asked.name == "Api.Example.com"
    found = dns.answer(asked, "10.9.8.7")
    assert found[:2] == b"\x12\x34"
    assert found[-4:] == bytes([10, 9, 8, 7])
    assert dns.answer(asked, None)[3] & 15 == dns.NXDOMAIN
    text = dns.read(query("api.example.com", 16))
    assert text is not None
    assert dns.answer(text, "10.9.8.7")[6:8] == b"\0\0"


@given(st.binary(max_size=600))
def test_any_packet_is_a_query_or_nothing(packet: bytes) -> None:
    asked = dns.read(packet)
    assert asked is None or len(dns.answer(asked, "10.0.0.1")) <= len(packet) + 16


@pytest.mark.parametrize(
    "packet", [query("a.b", 1, 3), query("a.b")[:-1], b"", query("a.b")[:5], b"\x12\x34\x81" + query("a.b")[3:]]
)
def test_what_is_no_query_gets_no_answer(packet: bytes) -> None:
    assert dns.read(packet) is None


# -- first bytes ---------------------------------------------------------------------------------


def hello(name: str | None) -> bytes:
    """The ClientHello that this Python sends."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    connection = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        connection.do_handshake()
    return outgoing.read()


def test_the_server_name_is_found_however_the_handshake_is_cut() -> None:
    whole = hello("api.example.com")
    assert sniff.server_name(whole) == "api.example.com"
    for end in range(len(whole)):
        with pytest.raises(sniff.NeedMore):
            sniff.server_name(whole[:end])
    body = whole[5:]
    records = b"".join(
        b"\x16\x03\x01" + struct.pack(">H", len(part)) + part for part in (body[:7], body[7:60], body[60:])
    )
    assert sniff.server_name(records + b"more") == "api.example.com"


def test_a_handshake_without_a_name_is_unclear() -> None:
    with pytest.raises(sniff.Unclear):
        sniff.server_name(hello(None))


@given(st.data())
def test_a_changed_handshake_never_breaks_the_reader(data: st.DataObject) -> None:
    whole = bytearray(hello("api.example.com"))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with suppress(sniff.Unclear, sniff.NeedMore):
        assert sniff.server_name(bytes(whole)).isascii()


@given(st.binary(max_size=300))
def test_any_bytes_are_a_request_or_refused(data: bytes) -> None:
    for one in (data, b"GET / HTTP/1.1\r\n" + data + b"\r\n\r\n"):
        with suppress(sniff.Unclear, sniff.NeedMore):
            assert sniff.request(one).host


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n b: c\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"GET x HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n",
        b"GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n",
        b"CONNECT a HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a@b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
        b"GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
)
def test_a_request_that_can_be_read_in_two_ways_is_refused(head: bytes) -> None:
    with pytest.raises(sniff.Unclear):
        sniff.request(head)


def test_a_request_is_passed_on_for_one_answer_only() -> None:
    head = sniff.request(
        b"POST http://a.b:81/x?y HTTP/1.1\r\nHost: a.b:81\r\nConnection: keep-alive, upgrade\r\nUpgrade: h2c\r\n"
        b"Content-Length: 3\r\n\r\nabcGET"
    )
    assert (head.host, head.port, head.length, head.rest) == ("a.b", 81, 3, b"abcGET")
    assert head.forwarded == b"POST /x?y HTTP/1.1\r\nHost: a.b:81\r\nContent-Length: 3\r\nConnection: close\r\n\r\n"


async def sent_on(body: bytes) -> bytes:
    """What of a body in chunks comes out of the filter, up to where the filter stops."""
    near, far = socket.socketpair()
    _, writer = await asyncio.open_connection(sock=near)
    reader, other = await asyncio.open_connection(sock=far)
    source = asyncio.StreamReader()
    source.feed_data(body)
    source.feed_eof()
    head = sniff.request(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    try:
        with suppress(OSError, asyncio.IncompleteReadError):
            await _send_body(head, source, writer)
    finally:
        writer.close()
    received = await reader.read()
    other.close()
    await other.wait_closed()
    return received


@pytest.mark.anyio
async def test_a_body_in_chunks_is_passed_on_to_its_last_chunk_and_no_further() -> None:
    body = b"3\r\nabc\r\nA;note=x\r\n0123456789\r\n0\r\nTrailer: y\r\n\r\n"
    assert await sent_on(body + b"GET /more HTTP/1.1\r\n\r\n") == body


@pytest.mark.anyio
@pytest.mark.parametrize("size", [b"0x3", b"+3", b"-3", b"0_3", b" 3", b"", b"3;a\nb", b"3\rx", b"3 3", b"0" * 17])
async def test_a_chunk_that_can_be_read_in_two_ways_is_not_passed_on(size: bytes) -> None:
    assert await sent_on(size + b"\r\nabc\r\n0\r\n\r\n") == b""


# -- addresses that change -----------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.sec("SEC-070")
async def test_the_address_that_was_looked_at_is_the_one_that_is_used() -> None:
    """A name server that answers a public address first and loopback afterwards gains nothing: it is asked once."""
    asked: list[str] = []

    async def alternating(name: str, port: int) -> list[str]:
        asked.append(name)
        return ["192.0.2.1"] if len(asked) % 2 else ["127.0.0.1", "169.254.169.254"]

    reached = asyncio.Event()

    async def inner(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reached.set()
        writer.close()

    server = await asyncio.start_server(inner, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        filter = Filter(Rules([f"evil.example:{port}"]), "127.0.0.1", alternating)
        for attempt in range(1, 5):
            with pytest.raises(Denied) as caught:
                await filter._reach("evil.example", port)
            assert len(asked) == attempt
            assert "private" in str(caught.value) or "never allowed" in str(caught.value)
    assert not reached.is_set()


# -- what is kept --------------------------------------------------------------------------------


def test_attempts_are_counted_bounded_and_audited_within_reason() -> None:
    attempts = Attempts()
    audited: list[Attempt] = []
    for index in range(MAX_KEPT * 3):
        attempts.add(Attempt(True, "dns", f"{index}.example", 53, "x"), audited.append)
    attempts.add(Attempt(False, "tls", "a.example", 443), audited.append)
    attempts.add(Attempt(False, "tls", "a.example", 443), audited.append)
    rows = attempts.rows()
    assert len(rows) == MAX_KEPT
    assert (rows[-1]["host"], rows[-1]["times"]) == ("a.example", 2)
    assert MAX_AUDITED_A_MINUTE <= len(audited) <= 2 * MAX_AUDITED_A_MINUTE  # the minute may have turned meanwhile
    assert attempts.unaudited == MAX_KEPT * 3 - len(audited)


def test_the_filter_tells_of_many_attempts_at_once_in_few_lines() -> None:
    told: list[str] = []
    now = 0.0
    reporter = Reporter(told.append, lambda: now)
    for _ in range(10_000):
        reporter(True, "dns", "x.example", 53, "y")
    assert len(told) == 100
    now = 1.0
    reporter(True, "dns", "z.example", 53, "y")
    assert json.loads(told[-1])["left_out"] == 10_000 - 100
    reporter(True, "dns", "z.example", 53, "y")
    assert json.loads(told[-1])["left_out"] == 0
