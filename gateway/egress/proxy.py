"""The filter: answers names, listens where the server believes the internet to be, and passes on what is listed.

Runs alone in a container between two networks. Told what to do on stdin, reports on stdout, ends when stdin does."""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import json
import os
import re
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

from gateway.egress import dns, sniff
from gateway.egress.rules import Address, Rules, as_network, canonical

DNS_PORT = 53
PROXY_PORT = 3128
WEB_PORTS = (80, 443)
MAX_CONNECTIONS = 128
MAX_UDP_BYTES = 512
REPORTS_AT_ONCE = 100.0
REPORTS_A_SECOND = 10.0
FIRST_BYTES_S = 10.0
CONNECT_S = 10.0
IDLE_S = 600.0
CHUNK_BYTES = 64 * 1024
TIMEOUTS = (TimeoutError, asyncio.TimeoutError)  # not the same before Python 3.11
ALERT_DENIED = b"\x15\x03\x03\x00\x02\x02\x31"
"""A fatal TLS alert, access_denied (RFC 8446, section 6)."""


_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;[^\x00-\x08\x0a-\x1f\x7f]*)?")
"""The line before a chunk (RFC 9112, section 7.1): Python's own reading would also take a sign, 0x and underscores."""
Resolve = Callable[[str, int], Awaitable[list[str]]]


class Denied(Exception):
    """The connection is refused; says why."""

    def __init__(self, reason: str, host: str = "", port: int = 0) -> None:
        super().__init__(reason)
        self.host = host
        self.port = port


class Reporter:
    """One line for the gateway for each connection and refused name, within reason: a server that tries without end
    keeps the filter busy, and not the gateway. What was left out is counted in the next line."""

    def __init__(self, write: Callable[[str], object], clock: Callable[[], float] = time.monotonic) -> None:
        self._write = write
        self._clock = clock
        self._room = REPORTS_AT_ONCE
        self._at = clock()
        self._left_out = 0

    def __call__(self, denied: bool, via: str, host: str, port: int, reason: str = "") -> None:
        now = self._clock()
        self._room = min(REPORTS_AT_ONCE, self._room + (now - self._at) * REPORTS_A_SECOND)
        self._at = now
        if self._room < 1:
            self._left_out += 1
            return
        self._room -= 1
        said = {"denied": denied, "via": via, "host": host[:253], "port": port, "reason": reason[:200]}
        self._write(json.dumps({**said, "left_out": self._left_out}) + "\n")
        self._left_out = 0


def _say(line: str) -> None:
    sys.stdout.write(line)
    sys.stdout.flush()


report = Reporter(_say)


class Filter:
    """Everything that listens. `address` is the filter's own on the server's network."""

    def __init__(self, rules: Rules, address: str, resolve: Resolve | None = None) -> None:
        """`resolve` gives the addresses of a name; without it the system's resolver does."""
        self._resolve = resolve or _resolved
        self._rules = rules
        self._address = address
        self._open = 0
        self._running: set[asyncio.Task[None]] = set()

    async def listen(self) -> None:
        """
        Raises:
            OSError: a port is taken.
        """
        loop = asyncio.get_running_loop()
        await loop.create_datagram_endpoint(lambda: _Names(self), local_addr=(self._address, DNS_PORT))
        await asyncio.start_server(self._names_by_tcp, self._address, DNS_PORT)
        for port in sorted({*WEB_PORTS, PROXY_PORT, *self._rules.ports} - {DNS_PORT}):
            await asyncio.start_server(functools.partial(self._connected, port), self._address, port, limit=CHUNK_BYTES)

    # -- names -------------------------------------------------------------------------------

    def named(self, packet: bytes) -> bytes | None:
        query = dns.read(packet)
        if query is None:
            return None
        name = canonical(query.name)
        known = name is not None and self._rules.knows(name)
        if not known:
            report(True, "dns", query.name, DNS_PORT, "this name is not listed")
        return dns.answer(query, self._address if known else None)

    async def _names_by_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            size = int.from_bytes(await asyncio.wait_for(reader.readexactly(2), FIRST_BYTES_S), "big")
            answer = self.named(await asyncio.wait_for(reader.readexactly(size), FIRST_BYTES_S))
            if answer is not None:
                writer.write(len(answer).to_bytes(2, "big") + answer)
                await asyncio.wait_for(writer.drain(), FIRST_BYTES_S)
        except (*TIMEOUTS, OSError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()

    # -- connections -------------------------------------------------------------------------

    async def _connected(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._open >= MAX_CONNECTIONS:
            report(True, "tcp", "", port, f"more than {MAX_CONNECTIONS} connections at once")
            writer.close()
            return
        self._open += 1
        try:
            await self._serve(port, reader, writer)
        except (*TIMEOUTS, OSError, asyncio.IncompleteReadError):
            return  # one side is gone; the other is closed
        finally:
            self._open -= 1
            writer.close()

    async def _serve(self, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        via = "tcp"
        data = b""
        try:
            data = await asyncio.wait_for(reader.read(CHUNK_BYTES), FIRST_BYTES_S)
            if not data:
                return
            if data[0] == sniff.HANDSHAKE:
                via = "tls"
                name, data = await _until_clear(sniff.server_name, data, reader)
                await self._pass_tls(name, port, data, reader, writer)
                return
            via = "http"
            head, data = await _until_clear(sniff.request, data, reader)
            if head.method == b"CONNECT":
                via = "connect"
                await self._tunnel(head, reader, writer)
            else:
                await self._pass_http(head, port, reader, writer)
        except TIMEOUTS:
            if via == "tcp":
                report(True, via, "", port, "it did not say where it wants to go")
        except (Denied, sniff.Unclear) as exc:
            host, wanted = (exc.host, exc.port) if isinstance(exc, Denied) else ("", 0)
            report(True, via, host, wanted or port, str(exc))
            if via == "tls":
                writer.write(ALERT_DENIED)
            elif via != "tcp":
                text = f"Not allowed by the gateway: {exc}\n".encode()
                writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain\r\nConnection: close\r\n")
                writer.write(b"Content-Length: %d\r\n\r\n%b" % (len(text), text))
            await asyncio.wait_for(writer.drain(), FIRST_BYTES_S)

    async def _pass_tls(
        self, name: str, port: int, data: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        far_reader, far_writer = await self._reach(name, port)
        report(False, "tls", name, port)
        far_writer.write(data)
        await _both_ways(reader, writer, far_reader, far_writer)

    async def _tunnel(self, head: sniff.Head, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """CONNECT: what goes through must be a handshake for the very name, unless the address itself is listed."""
        port = head.port or 0
        by_address = _as_address(head.host) is not None
        far_reader, far_writer = await self._reach(head.host, port)
        try:
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            data = head.rest
            if not by_address:
                data = data or await asyncio.wait_for(reader.read(CHUNK_BYTES), FIRST_BYTES_S)
                if not data:
                    return
                if data[0] != sniff.HANDSHAKE:
                    raise Denied("the tunnel carries no TLS", head.host, port)
                name, data = await _until_clear(sniff.server_name, data, reader)
                if canonical(name) != canonical(head.host):
                    raise Denied(f"the tunnel carries a handshake for {name[:100]}", head.host, port)
            report(False, "connect", head.host, port)
            far_writer.write(data)
            await _both_ways(reader, writer, far_reader, far_writer)
        finally:
            far_writer.close()

    async def _pass_http(
        self, head: sniff.Head, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """One request and its answer; what the server sends after the request goes nowhere."""
        wanted = head.port or WEB_PORTS[0]
        if port not in (wanted, PROXY_PORT):
            raise Denied(f"it came on port {port}", head.host, wanted)
        far_reader, far_writer = await self._reach(head.host, wanted)
        report(False, "http", head.host, wanted)
        far_writer.write(head.forwarded)
        sending = asyncio.ensure_future(_send_body(head, reader, far_writer))
        sending.add_done_callback(
            lambda task: far_writer.close() if not task.cancelled() and task.exception() else None
        )
        try:
            await _copy(far_reader, writer, close=False)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            far_writer.close()

    async def _reach(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the host, made to the very address that was looked at.

        Raises:
            Denied: not listed, or it is where nothing may go.
        """
        reasons = []
        for address in await self._addresses(host, port):
            reason = self._rules.refusal(address, port)
            if reason is None:
                try:
                    return await asyncio.wait_for(asyncio.open_connection(str(address), port), CONNECT_S)
                except (*TIMEOUTS, OSError) as exc:
                    reasons.append(f"{address} cannot be reached: {exc or 'no answer'}")
            else:
                reasons.append(reason)
        raise Denied("; ".join(reasons[:3]), host, port)

    async def _addresses(self, host: str, port: int) -> list[Address]:
        literal = _as_address(host)
        if literal is not None:
            if not self._rules.lists_address(literal, port):
                raise Denied("this address is not listed", host, port)
            return [literal]
        name = canonical(host)
        if name is None or not self._rules.allows_name(name, port):
            raise Denied("this name is not listed with this port", host, port)
        try:
            found = await asyncio.wait_for(self._resolve(name, port), CONNECT_S)
        except (*TIMEOUTS, OSError):
            raise Denied("this name cannot be resolved", host, port) from None
        return list(dict.fromkeys(ipaddress.ip_address(text) for text in found))


async def _resolved(name: str, port: int) -> list[str]:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(name, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return [str(one[4][0]).partition("%")[0] for one in found]


class _Names(asyncio.DatagramProtocol):
    """Name queries by UDP."""

    def __init__(self, owner: Filter) -> None:
        self._owner = owner
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        answer = self._owner.named(data)
        if answer is not None and len(answer) <= MAX_UDP_BYTES:
            self._transport.sendto(answer, addr)


def _as_address(host: str) -> Address | None:
    """The address, if the host is written as one in any usual way; names that look like numbers are none at all."""
    try:
        network = as_network(host)
    except ValueError:
        raise Denied("this address is written in an unusual way", host) from None
    return None if network is None else network.network_address


async def _until_clear(read: Any, data: bytes, reader: asyncio.StreamReader) -> tuple[Any, bytes]:
    """What `read` finds in the data, after as much more of it as it needs, and the data."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + FIRST_BYTES_S
    while True:
        try:
            return read(data), data
        except sniff.NeedMore:
            more = await asyncio.wait_for(reader.read(CHUNK_BYTES), max(deadline - loop.time(), 0.01))
            if not more:
                raise sniff.Unclear("it ended before it said where it wants to go") from None
            data += more


async def _send_body(head: sniff.Head, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Exactly the body of one request."""
    data = head.rest
    if head.length is not None:
        left = head.length
        while left:
            data = data or await reader.read(CHUNK_BYTES)
            if not data:
                return
            writer.write(data[:left])
            await writer.drain()
            left -= min(left, len(data))
            data = b""
        return
    while True:
        line, data = await _line(reader, data)
        found = _CHUNK.fullmatch(line)
        if found is None:
            raise OSError("a chunk that can be read in two ways")
        size = int(found[1], 16)
        writer.write(line + b"\r\n")
        left = size + 2 if size else 0
        while left:
            data = data or await reader.read(CHUNK_BYTES)
            if not data:
                return
            writer.write(data[:left])
            await writer.drain()
            data, left = data[left:], left - min(left, len(data))
        if not size:
            while line:
                line, data = await _line(reader, data)
                writer.write(line + b"\r\n")
            return


async def _line(reader: asyncio.StreamReader, data: bytes) -> tuple[bytes, bytes]:
    while b"\r\n" not in data:
        more = await reader.read(CHUNK_BYTES)
        if not more or len(data) > CHUNK_BYTES:
            raise asyncio.IncompleteReadError(data, None)
        data += more
    line, _, rest = data.partition(b"\r\n")
    if b"\n" in line or b"\r" in line:
        raise OSError("a line that can be read in two ways")
    return line, rest


async def _both_ways(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    far_reader: asyncio.StreamReader,
    far_writer: asyncio.StreamWriter,
) -> None:
    tasks = [asyncio.ensure_future(_copy(reader, far_writer)), asyncio.ensure_future(_copy(far_reader, writer))]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        far_writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, close: bool = True) -> None:
    while data := await asyncio.wait_for(reader.read(CHUNK_BYTES), IDLE_S):
        writer.write(data)
        await asyncio.wait_for(writer.drain(), IDLE_S)
    if close and writer.can_write_eof():
        writer.write_eof()


def _gateways() -> list[str]:
    """Addresses of the host's side of our networks (proc(5), /proc/net/route)."""
    found = []
    with open("/proc/net/route", encoding="ascii") as table:
        for line in list(table)[1:]:
            raw = int(line.split()[2], 16)
            if raw:
                found.append(str(ipaddress.IPv4Address(raw.to_bytes(4, sys.byteorder))))
    return found


async def main() -> None:
    """Read what to do, do it, and end with stdin."""
    told = json.loads(sys.stdin.readline())
    rules = Rules(told["hosts"], [*told["forbidden"], *_gateways()])
    await Filter(rules, told["address"]).listen()
    print(json.dumps({"ready": True}), flush=True)
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), lambda: None if os.read(sys.stdin.fileno(), 4096) else ended.set())
    await ended.wait()
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main())
