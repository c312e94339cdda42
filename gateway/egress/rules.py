"""Which host names, addresses and ports a server may reach.

Pure: resolves nothing, connects to nothing. Runs inside of the filter as well as in the gateway."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import NamedTuple

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

NEVER = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8",
        "127.0.0.0/8",
        "169.254.0.0/16",  # link-local, with the metadata services of most clouds
        "100.100.100.200/32",  # metadata (Alibaba)
        "168.63.129.16/32",  # metadata (Azure)
        "192.0.0.192/32",  # metadata (Oracle)
        "224.0.0.0/4",
        "240.0.0.0/4",
        "fe80::/10",
        "fd00:ec2::254/128",  # metadata (AWS)
        "ff00::/8",
        # What carries an IPv4 address inside, which could be any of the above.
        "::/96",  # with unspecified and loopback
        "::ffff:0:0:0/96",
        "::ffff:0:0/96",
        "64:ff9b::/96",
        "64:ff9b:1::/48",
        "2001::/32",
        "2002::/16",
    )
)
"""Refused even where an entry lists them."""
SITE_LOCAL = ipaddress.ip_network("fec0::/10")
"""Private addresses of old (RFC 3879), which the library takes for global ones."""
_NAME = re.compile(r"[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?)*")
MAX_NAME = 253


class Rule(NamedTuple):
    """One listed address: a name (exact, `*.name` or `*`) or a network, each with a port."""

    name: str
    network: Network | None
    port: int


def parse(text: str) -> Rule:
    """Read `api.example.com:443`, `*.example.com:443`, `*:443`, `10.1.0.0/16:5432` or `[2001:db8::/32]:443`.

    Raises:
        ValueError: it is none of these.
    """
    host, _, port = text.rpartition(":")
    if not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError("a listed host ends in a port")
    network = as_network(host)
    if network is None and not _NAME.fullmatch(host.removeprefix("*.")) and host != "*":
        raise ValueError("neither a name nor an address")
    return Rule("" if network else host, network, int(port))


def as_network(host: str) -> Network | None:
    """The network that is written, an address being a network of one; None for a name."""
    inner = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        return ipaddress.ip_network(inner)
    except ValueError:
        if re.fullmatch(r"[0-9.]+(/[0-9]+)?", inner) or inner != host:
            raise ValueError("an address with parts that do not belong to the network") from None
        return None


def canonical(name: str) -> str | None:
    """The name in lower case and without the final dot; None for what is no host name."""
    name = name.lower().removesuffix(".")
    if len(name) > MAX_NAME or not name.isascii() or not _NAME.fullmatch(name):
        return None
    return name


class Rules:
    """All rules of one server. `forbidden` are addresses of the host itself."""

    def __init__(self, hosts: Iterable[str], forbidden: Iterable[str] = ()) -> None:
        self._rules = [parse(host) for host in hosts]
        self._forbidden = {ipaddress.ip_address(text) for text in forbidden}

    @property
    def ports(self) -> set[int]:
        return {rule.port for rule in self._rules}

    def knows(self, name: str) -> bool:
        """Whether a name is listed with any port: whether it exists for the server at all."""
        return any(_matches(rule, name) for rule in self._rules)

    def allows_name(self, name: str, port: int) -> bool:
        return any(rule.port == port and _matches(rule, name) for rule in self._rules)

    def lists_address(self, address: Address, port: int) -> bool:
        """Whether the address itself is listed, not only a name."""
        return any(rule.network is not None and rule.port == port and address in rule.network for rule in self._rules)

    def refusal(self, address: Address, port: int) -> str | None:
        """Why no connection is made to this very address, wherever it came from; None if one may be."""
        if address in self._forbidden:
            return f"{address} is this host itself"
        if any(address in network for network in NEVER):
            return f"{address} is never allowed"
        if (not address.is_global or address in SITE_LOCAL) and not self.lists_address(address, port):
            return f"{address} is private and not listed"
        return None


def _matches(rule: Rule, name: str) -> bool:
    if rule.name.startswith("*."):
        return name.endswith(rule.name[1:]) and name != rule.name[2:]
    return rule.network is None and rule.name in (name, "*")
