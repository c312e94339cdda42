"""One server's way out: an internal network of its own, and the filter's container between that and the internet.

Knows containers and networks; what is let through is the filter's business (proxy.py)."""

from __future__ import annotations

import asyncio
import base64
import io
import ipaddress
import socket
import zipfile
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Protocol

import anyio

import gateway
from catalog import Entry
from gateway.docker_engine import DockerEngine, EngineErrors, short, to_its_end
from gateway.egress.attempts import Attempt
from gateway.errors import EngineDown, UpstreamError, UpstreamUnavailable
from gateway.runs import Run
from gateway.runtimes.specification import as_podman_takes_it, filter_specification
from gateway.serverlog import ServerLog
from gateway.wire import envelope
from gateway.wire.envelope import WireError
from gateway.wire.lines import LineChannel

INSIDE: Final = ("__init__", "rules", "dns", "sniff", "proxy")
"""The modules that run in the filter."""
BOOTSTRAP: Final = """\
import base64, runpy, sys
with open("/tmp/filter.zip", "wb") as file:
    file.write(base64.b64decode(sys.stdin.readline()))
sys.path.insert(0, "/tmp/filter.zip")
runpy.run_module("gateway.egress.proxy", run_name="__main__")
"""
READY_S: Final = 30.0
EXIT_S: Final = 3.0
REMOVE_TRIES: Final = 20
REMOVE_PAUSE_S: Final = 0.1
NETWORK_OPTIONS: Final = {
    # The bridge has no address: the host cannot be reached through it, not even by what listens everywhere.
    "com.docker.network.bridge.inhibit_ipv4": "true",
    "com.docker.network.bridge.gateway_mode_ipv4": "isolated",
}


class Attached(Protocol):
    """The part of an attach connection that is used here."""

    def close_stdin(self) -> None: ...

    def abort(self) -> None: ...


Attach = Callable[[str, LineChannel], Awaitable[Attached]]
Remove = Callable[[str], Awaitable[None]]
Report = Callable[[Attempt], None]


class Gate:
    """Owned by the server's channel, which closes it after the server is gone."""

    def __init__(self, engine: DockerEngine, run: Run, entry: Entry, log: ServerLog, report: Report) -> None:
        self._engine = engine
        self._run = run
        self._entry = entry
        self._log = log
        self._report = report
        self.network = run.hold(f"{entry.id}-net")
        self.name = run.hold(f"{entry.id}-filter")
        self.address = ""
        """The filter's own on the network: name server, and whatever names stand for."""
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._channel = LineChannel(self, log)
        self._attached: Attached | None = None

    async def open(self, image: str, outward: str, own: Callable[[], list[str]], attach: Attach) -> None:
        """Make the network and start the filter. On failure the caller closes what there is. `own` gives the addresses
        of the engine's machine, as far as they are known.

        Raises:
            UpstreamUnavailable: it does not come up; says why.
            One of EngineErrors, EngineDown: the engine refuses.
        """
        labels = self._run.labels("network", self.network, self._entry.id)
        subnets = await to_its_end(self._engine.run(lambda client: _create_network(client, self.network, labels)))
        forbidden = own()
        if inside := [address for address in forbidden if _lies_in(address, subnets)]:
            raise UpstreamUnavailable(
                f"the engine gave this machine the address {inside[0]} on the network of {self._entry.id}, so that the "
                "server could reach it; listed hosts need an engine that keeps internal networks apart (Docker does)"
            )
        spec = filter_specification(
            image, ["python3", "-I", "-c", BOOTSTRAP], self._run.labels("container", self.name, self._entry.id), outward
        )

        asked = as_podman_takes_it(spec) if self._engine.is_podman else spec

        def create(client: Any) -> str:
            id = str(client.create_container_from_config(asked, self.name)["Id"])
            client.connect_container_to_network(id, self.network)
            return id

        id = await to_its_end(self._engine.run(create))
        self._attached = await attach(id, self._channel)
        self._channel.send(base64.b64encode(_bundle()))

        def start(client: Any) -> str:
            client.start(id)
            return str(client.inspect_container(id)["NetworkSettings"]["Networks"][self.network]["IPAddress"])

        self.address = await self._engine.run(start)
        told = {"hosts": list(self._entry.hosts), "forbidden": forbidden, "address": self.address}
        self._channel.send(envelope.encode(told))
        try:
            async with asyncio.timeout(READY_S):
                await self._ready
        except TimeoutError as exc:
            raise UpstreamUnavailable(
                f"the egress filter of {self._entry.id} did not come up within {READY_S:g} s"
            ) from exc

    async def aclose(self, remove: Remove) -> None:
        """Remove the filter, then the network; what cannot be removed now is swept later."""
        self._ready.cancel()
        if self._attached is not None:
            self._attached.close_stdin()
            with suppress(TimeoutError):
                async with asyncio.timeout(EXIT_S):
                    await self._channel.ended.wait()
        try:
            await remove(self.name)
            await self._remove_network()
        except (*EngineErrors, EngineDown, UpstreamError) as exc:
            self._log.write("gateway", f"the egress filter could not be removed: {short(exc)}")
        finally:
            if self._attached is not None:
                self._attached.abort()
            self._run.release(self.name)
            self._run.release(self.network)

    async def _remove_network(self) -> None:
        for attempt in range(REMOVE_TRIES):
            try:
                await self._engine.run(lambda client: client.remove_network(self.network))
                return
            except EngineErrors as exc:
                status = getattr(exc, "status_code", None)
                if status == 404:
                    return
                if status not in (403, 409) or attempt == REMOVE_TRIES - 1:
                    raise
            await anyio.sleep(REMOVE_PAUSE_S)  # the engine still takes a container off it

    # -- what the filter says (Receiver) -----------------------------------------------------

    def received(self, message: bytes, id: int | None = None) -> bool:
        try:
            said = envelope.value(message)
            if said.get("ready"):
                if not self._ready.done():
                    self._ready.set_result(None)
                return False
            attempt = Attempt(
                bool(said["denied"]),
                str(said["via"]),
                _shown(str(said["host"])),
                int(said["port"]),
                _shown(str(said["reason"])),
            )
            left_out = int(said["left_out"])
        except (WireError, AttributeError, KeyError, TypeError, ValueError):
            self._log.write("gateway", "the egress filter said something that cannot be read")
            return False
        if attempt.denied:
            self._log.write(
                "gateway", f"egress denied: {attempt.host}:{attempt.port} ({attempt.via}): {attempt.reason}"
            )
        self._log.attempts.uncounted += left_out
        self._log.attempts.add(attempt, self._report)
        return False

    def lost(self, reason: str) -> None:
        if not self._ready.done():
            text = f"the egress filter of {self._entry.id} ended before it was ready: {self._log.last(3) or reason}"
            self._ready.set_exception(UpstreamUnavailable(text))
            self._ready.exception()  # nobody may be waiting any more

    def failed(self, id: int, error: UpstreamError) -> None:
        """Nothing is asked of the filter."""

    def waits_for(self, id: int) -> bool:
        return False


def _shown(text: str) -> str:
    """The text without what could drive a terminal: a server chooses the names it asks for."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _create_network(client: Any, name: str, labels: Mapping[str, str]) -> list[str]:
    """Make the network; its subnets."""
    client.create_network(
        name, driver="bridge", internal=True, options=NETWORK_OPTIONS, labels=labels, enable_ipv6=False
    )
    found = client.inspect_network(name)
    return [str(one["Subnet"]) for one in (found.get("IPAM") or {}).get("Config") or () if one.get("Subnet")]


def _lies_in(address: str, subnets: list[str]) -> bool:
    return any(ipaddress.ip_address(address) in ipaddress.ip_network(subnet) for subnet in subnets)


def _bundle() -> bytes:
    """The filter's program as a zip archive that Python can import from."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("gateway/__init__.py", "")
        for name in INSIDE:
            source = Path(gateway.__file__).parent / "egress" / f"{name}.py"
            archive.writestr(f"gateway/egress/{name}.py", source.read_bytes())
    return packed.getvalue()


def own_addresses() -> list[str]:
    """The addresses of this machine, as the kernel lists them (Linux; elsewhere containers run on another one)."""
    found = set()
    with suppress(OSError):
        lines = Path("/proc/net/fib_trie").read_text().splitlines()
        found |= {address.split()[-1] for address, kind in pairwise(lines) if "/32 host LOCAL" in kind}
    with suppress(OSError):
        for line in Path("/proc/net/if_inet6").read_text().splitlines():
            found.add(socket.inet_ntop(socket.AF_INET6, bytes.fromhex(line.split()[0])))
    return sorted(found)
