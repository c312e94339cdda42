"""Fetching what others named: no private address is reached, by whatever way it is written or resolved.

Servers are real ones on loopback; the resolver is the test's where names are at stake."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from gateway.auth import fetch
from gateway.auth.fetch import Fetcher, FetchRefused, Reach
from tests.gateway.auth.provider import provider

pytestmark = [pytest.mark.anyio, pytest.mark.sec("SEC-035")]

HEAD = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n"


@asynccontextmanager
async def answering(data: bytes, *, then_wait: bool = False) -> AsyncIterator[tuple[str, list[str]]]:
    """A server that answers these very bytes, and the first lines of what it was asked."""
    asked: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            asked.append((await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[0])
            writer.write(data)
            await writer.drain()
            if then_wait:
                await reader.read()
        except ConnectionError:
            pass  # the fetcher had enough
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", asked


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::127.0.0.1]",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "0.0.0.0",
        "[::]",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "[fd00::1]",
        "[fe80::1]",
        "[fec0::1]",
        "169.254.169.254",
        "[fd00:ec2::254]",
        "100.100.100.200",
        "[::ffff:169.254.169.254]",
        "[64:ff9b::a9fe:a9fe]",
        "[2002:7f00:1::]",
        "224.0.0.1",
        "255.255.255.255",
    ],
)
async def test_addresses_inside_are_not_reached(host: str) -> None:
    with pytest.raises(FetchRefused):
        await Fetcher(Reach()).get(f"https://{host}/x")


async def test_a_name_that_changes_its_meaning_is_reached_where_it_was_looked_at() -> None:
    async with answering(f"{HEAD}\r\n{{}}".encode()) as (url, asked):
        port = int(url.rpartition(":")[2])
        answers = [["127.0.0.1"], ["169.254.169.254"], ["127.0.0.1", "10.0.0.1"], ["8.8.8.8", "127.0.0.1"], []]
        looked_up = 0

        async def alternating(host: str, port: int) -> Sequence[str]:
            nonlocal looked_up
            looked_up += 1
            return answers[looked_up - 1]

        fetcher = Fetcher(Reach(loopback=True), alternating)
        assert (await fetcher.get(f"http://name.example:{port}/x")).body == b"{}"
        # One look-up: the connection went to the address that was looked at.
        assert looked_up == 1
        for _ in answers[1:]:
            with pytest.raises(FetchRefused):
                await fetcher.get(f"http://name.example:{port}/x")
        assert asked == ["GET /x HTTP/1.1"]
        strict = Fetcher(Reach(), alternating)
        looked_up = 0
        with pytest.raises(FetchRefused, match="this machine"):
            await strict.get(f"https://name.example:{port}/x")


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n", "redirect"),
        ("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\n{}", "not JSON"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "not JSON"),
        (f"{HEAD}Content-Length: 200000\r\n\r\n" + "a" * 200000, "too large"),
        (f"{HEAD}\r\n" + "a" * 200000, "too large"),
        ("nonsense\r\n\r\n", "not HTTP"),
        ("", "closed"),
    ],
)
async def test_answers_that_are_no_small_document_are_refused(answer: str, why: str) -> None:
    async with answering(answer.encode()) as (url, asked):
        with pytest.raises(FetchRefused, match=why):
            await Fetcher(Reach(loopback=True)).get(f"{url}/x", max_bytes=65536)
        assert len(asked) == 1


async def test_an_answer_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "TIMEOUT_S", 0.2)
    async with answering(f"{HEAD}Content-Length: 100\r\n\r\n{{".encode(), then_wait=True) as (url, _):
        with pytest.raises(FetchRefused, match="no answer within"):
            await Fetcher(Reach(loopback=True)).get(f"{url}/x")


async def test_only_plain_urls_of_https_are_fetched() -> None:
    async with provider() as corp:
        port = corp.issuer.rpartition(":")[2]
        fetcher = Fetcher(Reach(loopback=True))
        assert (await fetcher.get(f"{corp.issuer}/jwks")).status == 200
        assert (await fetcher.get(f"{corp.issuer}/none")).status == 404
        bad = ["ftp://127.0.0.1/x", "file:///etc/passwd", f"http://u:p@127.0.0.1:{port}/jwks", "http:///jwks", "", "x"]
        bad += [f"http://127.0.0.1:{port}/jwks\r\nX: y", f"http://127.0.0.1:{port}/jwks#x", "http://127.0.0.1:x/"]
        bad += [f"http://127.0.0.1:{port}\\@evil/jwks", f"http://127.0.0.1:{port}/jw ks"]
        for url in bad:
            with pytest.raises(FetchRefused):
                await fetcher.get(url)

        async def public(host: str, port: int) -> Sequence[str]:
            return ["93.184.216.34"]

        with pytest.raises(FetchRefused, match="use https"):
            await Fetcher(Reach(), public).get("http://public.example/x")
