"""Labels on what the engine holds for a gateway: whose it is, of which run, for which server, and a signature.

Pure: knows neither an engine nor whether an owner still lives. Containers, networks and volumes all carry them."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping
from typing import Final, Literal

GATEWAY: Final = "lockgate.gateway"
"""The id of the state folder."""
RUN: Final = "lockgate.run"
"""The id of one run of a gateway (or command) on that state folder."""
SERVER: Final = "lockgate.server"
SIGNATURE: Final = "lockgate.signature"
BUILD_PREFIX: Final = "lockgate-build-"
UNFINISHED: Final = "lockgate.local/unfinished"
"""Images between two steps of a build, each tagged with the beginning of its container's id."""
SIGNED: Final = (GATEWAY, RUN, SERVER)

What = Literal["container", "network", "volume"]


def signed(key: bytes, what: What, name: str, *, gateway: str, run: str, server: str) -> dict[str, str]:
    """The labels for a new object. The engine gives a name once at a time, so a copy of them fits nothing else."""
    labels = {GATEWAY: gateway, RUN: run, SERVER: server}
    return {**labels, SIGNATURE: _signature(key, what, name, labels)}


def are_ours(key: bytes, what: What, name: str, labels: Mapping[str, str]) -> bool:
    """Whether these very labels were signed with this key for an object of this kind and name."""
    if any(one not in labels for one in (*SIGNED, SIGNATURE)):
        return False
    wanted = _signature(key, what, name, {one: labels[one] for one in SIGNED})
    return hmac.compare_digest(wanted.encode(), labels[SIGNATURE].encode())


def build_name(key: bytes, *, gateway: str, run: str) -> str:
    """The name of a container in which an image is made. It says what labels say elsewhere: labels of a container end
    up in the image that is committed from it."""
    unsigned = f"{BUILD_PREFIX}{run}-{secrets.token_hex(4)}"
    return f"{unsigned}-{_name_signature(key, gateway, unsigned)}"


def run_of_build(key: bytes, name: str, *, gateway: str) -> str | None:
    """The run that made the container of this name, if it signed it."""
    unsigned, _, given = name.rpartition("-")
    if not unsigned.startswith(BUILD_PREFIX):
        return None
    if not hmac.compare_digest(_name_signature(key, gateway, unsigned).encode(), given.encode()):
        return None
    return unsigned.removeprefix(BUILD_PREFIX).partition("-")[0]


def _name_signature(key: bytes, gateway: str, unsigned: str) -> str:
    return hmac.new(key, json.dumps([gateway, unsigned]).encode(), hashlib.sha256).hexdigest()[:32]


def _signature(key: bytes, what: What, name: str, labels: Mapping[str, str]) -> str:
    content = json.dumps([what, name, [labels[one] for one in SIGNED]]).encode()
    return hmac.new(key, content, hashlib.sha256).hexdigest()
