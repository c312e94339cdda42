"""What a server may reach: every way out is tried from the inside, and only the listed ones answer."""

import datetime
import json
import secrets
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import docker
import pytest
from anyio import to_thread
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from gateway.egress.attempts import Attempt
from gateway.egress.gate import own_addresses
from gateway.errors import UpstreamUnavailable
from gateway.images import ImageStore
from gateway.runs import Run
from gateway.runtimes.docker import DockerRuntime
from tests.gateway.sandboxes import base_image, docker_url, engine, probe_entry, sandbox
from tests.servers import DEADLINE_S

pytestmark = [pytest.mark.anyio, pytest.mark.docker]

SERVERS = Path(__file__).parent.parent / "servers"
HOSTS = ("allowed.example:443", "allowed.example:80", "*.wild.example:8443", "localhost:80")


def certificate() -> str:
    """A key and a certificate that nobody vouches for."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "internet")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return (pem + made.public_bytes(serialization.Encoding.PEM)).decode()


class Internet(NamedTuple):
    """A network with addresses as on the internet, and what is in it."""

    network: str
    known: str
    """An address that listed names stand for."""
    listed: str
    """An address in a listed network."""
    hosts: tuple[str, ...]
    """What an entry lists that may reach the names and the network."""


@contextmanager
def small_internet(client: docker.APIClient, image: str) -> Iterator[Internet]:
    """Two servers behind names and addresses that look public, on a network of the engine's own."""
    suffix = secrets.token_hex(4)
    network = f"test-internet-{suffix}"
    pem = certificate()
    prefix = f"11.{secrets.randbelow(256)}.{secrets.randbelow(256)}"
    pool = docker.types.IPAMPool(subnet=f"{prefix}.0/24", gateway=f"{prefix}.1")
    ipam = docker.types.IPAMConfig(pool_configs=[pool])
    client.create_network(network, driver="bridge", ipam=ipam, internal=True)
    made = []
    try:
        for name, address, aliases in (
            ("known", f"{prefix}.10", ["allowed.example", "api.wild.example", "wild.example", "denied.example"]),
            ("listed", f"{prefix}.70", ["secret-data.tunnel.example"]),
        ):
            endpoint = client.create_endpoint_config(ipv4_address=address, aliases=aliases)
            container = client.create_container(
                image,
                ["python3", "-c", (SERVERS / "internet.py").read_text(), name, pem],
                name=f"test-{name}-{suffix}",
                networking_config=client.create_networking_config({network: endpoint}),
                host_config=client.create_host_config(network_mode=network),
            )
            made.append(container["Id"])
            client.start(container["Id"])
            deadline = time.monotonic() + DEADLINE_S * 3
            while b"ready" not in client.logs(container["Id"]):
                assert time.monotonic() < deadline, "the small internet does not start"
                time.sleep(0.05)
        yield Internet(network, f"{prefix}.10", f"{prefix}.70", (*HOSTS, f"{prefix}.64/26:5432"))
    finally:
        for id in made:
            client.remove_container(id, force=True, v=True)
        client.remove_network(network)


@pytest.fixture
async def internet(cache_dir: Path) -> AsyncIterator[Internet]:
    client = engine()
    image = await base_image(cache_dir)
    with closing(client), small_internet(client, image) as made:
        yield made


@contextmanager
def listener_on_the_host() -> Iterator[int]:
    """What listens on every address of this machine, as a careless gateway or engine would: its port."""
    with socket.create_server(("0.0.0.0", 0)) as listening:
        listening.settimeout(0.2)
        stop = threading.Event()

        def serve() -> None:
            while not stop.is_set():
                try:
                    one, _ = listening.accept()
                except TimeoutError:
                    continue
                with one:
                    one.sendall(b"HTTP/1.0 200 OK\r\n\r\nreached the host")

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            stop.set()
            thread.join()


def outer_address() -> str:
    """The address of this machine on its way out, or one of a bridge if it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        try:
            one.connect(("192.0.2.1", 9))
            return str(one.getsockname()[0])
        except OSError:
            return next(address for address in own_addresses() if address.startswith(("10.", "172.", "192.168.")))


async def filter_address(box: Any) -> str:
    return str(await box.run("import socket; result = socket.gethostbyname('allowed.example')"))


@pytest.mark.sec("SEC-070")
@pytest.mark.sec("SEC-071")
async def test_only_listed_ways_out_answer(internet: Internet, tmp_path: Path, cache_dir: Path) -> None:
    client = engine()
    docker0 = client.inspect_network("bridge")["IPAM"]["Config"][0].get("Gateway", "172.17.0.1")
    client.close()
    entry = probe_entry(await base_image(cache_dir), network="internet", hosts=internet.hosts)
    attempts: list[Attempt] = []
    listening = (
        "import builtins, socket; builtins.kept = socket.create_server(('0.0.0.0', 4444)); "
        "result = socket.gethostbyname(socket.gethostname())"
    )
    with listener_on_the_host() as port:
        async with (
            sandbox(cache_dir, tmp_path / "other", entry, egress_network=internet.network) as other,
            sandbox(cache_dir, tmp_path, entry, egress_network=internet.network, attempts=attempts) as box,
        ):
            facts = {
                "internet": internet.known,
                "listed": internet.listed,
                "host": outer_address(),
                "docker0": docker0,
                "port": port,
                "sibling": await other.run(listening),
                "sibling_port": 4444,
                "sibling_filter": await filter_address(other),
            }
            code = (SERVERS / "routes.py").read_text() + f"\nresult = run({json.dumps(facts)!r})"
            got: dict[str, str] = await box.run(code)
            rows = box.log.attempts.rows()
            inspected = await box.inspect()
    for route, answer in got.items():
        if route.startswith("allowed"):
            assert "reached known" in answer or "reached listed" in answer, f"{route}: {answer}"
        else:
            assert "reached" not in answer, f"{route}: {answer}"
    assert len([route for route in got if not route.startswith("allowed")]) >= 50
    # A name that is not listed does not exist, whoever is asked; a listed one has no other records.
    assert got["a name asked of the engine's resolver"].startswith("code 3 records 0")
    assert got["a name asked of the filter"].startswith("code 3 records 0")
    assert got["a text record of a listed name"].startswith("code 0 records 0")
    # What was denied is known by host, port and reason, and was handed on to be audited.
    denied = {(row["via"], row["host"], row["port"]) for row in rows if row["denied"]}
    assert {
        ("tls", "denied.example", 443),
        ("http", "denied.example", 80),
        ("connect", "denied.example", 443),
    } <= denied
    assert ("connect", "169.254.169.254", 80) in denied
    assert ("dns", "secret-data.tunnel.example", 53) in denied
    audited = {(one.via, one.host, one.port) for one in attempts}
    assert audited <= denied
    assert len(audited) > 15
    assert any("127.0.0.1 is" in one.reason for one in attempts if one.host == "localhost")
    assert {(row["via"], row["host"]) for row in rows if not row["denied"]} >= {("tls", "allowed.example")}
    networks = inspected["NetworkSettings"]["Networks"]
    assert len(networks) == 1
    assert "bridge" not in networks


@pytest.mark.sec("SEC-070")
async def test_nothing_of_a_filter_is_left(internet: Internet, tmp_path: Path, cache_dir: Path) -> None:
    entry = probe_entry(await base_image(cache_dir), network="internet", hosts=internet.hosts)
    async with sandbox(cache_dir, tmp_path, entry, egress_network=internet.network) as box:
        (network,) = (await box.inspect())["NetworkSettings"]["Networks"]
        seen = await to_thread.run_sync(lambda: engine().inspect_network(network))
        assert seen["Internal"] is True
        assert seen["EnableIPv6"] is False
        filters = [one for one in seen["Containers"].values() if one["Name"] != box.channel.detail["container"]]
        assert len(filters) == 1
        name = filters[0]["Name"]
        host = (await to_thread.run_sync(lambda: engine().inspect_container(name)))["HostConfig"]
        assert host["CapDrop"] == ["ALL"]
        assert host["ReadonlyRootfs"] is True
        assert host["Sysctls"]["net.ipv4.ip_forward"] == "0"
    client = engine()
    with closing(client):
        assert network not in {one["Name"] for one in client.networks()}
        assert not client.containers(all=True, filters={"name": name})


@pytest.mark.sec("SEC-070")
async def test_without_hosts_there_is_no_network_at_all(tmp_path: Path, cache_dir: Path) -> None:
    entry = probe_entry(await base_image(cache_dir))
    code = "import os; result = [os.listdir('/sys/class/net'), open('/proc/net/route').read().count(chr(10))]"
    async with sandbox(cache_dir, tmp_path, entry) as box:
        assert await box.run(code) == [["lo"], 1]


@pytest.mark.sec("SEC-071")
async def test_an_engine_that_puts_the_host_on_the_servers_network_is_refused(
    internet: Internet, tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As engines do that do not know the option."""
    monkeypatch.setattr("gateway.egress.gate.NETWORK_OPTIONS", {})
    entry = probe_entry(await base_image(cache_dir), network="internet", hosts=internet.hosts)
    with pytest.raises(UpstreamUnavailable, match="the server could reach it"):
        async with sandbox(cache_dir, tmp_path, entry, egress_network=internet.network):
            pass
    client = engine()
    with closing(client):
        assert not [one["Name"] for one in client.networks() if one["Name"].startswith("lockgate-probe-net")]


@pytest.mark.sec("SEC-074")
async def test_what_a_dead_gateway_left_of_a_filter_is_swept(
    internet: Internet, tmp_path: Path, cache_dir: Path
) -> None:
    entry = probe_entry(await base_image(cache_dir), network="internet", hosts=internet.hosts)
    client = engine()

    def left() -> list[str]:
        label = {"label": f"lockgate.gateway={gateway}"}
        found = [*client.networks(filters=label), *client.containers(all=True, filters=label)]
        return [one["Id"] for one in found]

    async with sandbox(cache_dir, tmp_path, entry, egress_network=internet.network) as box:
        gateway = (await box.inspect())["Config"]["Labels"]["lockgate.gateway"]
        assert len(await to_thread.run_sync(left)) == 3  # server, filter, network
        box.run_of_it.__exit__(None, None, None)  # as the system does when the process dies
        with Run(tmp_path / "state") as run:
            images = ImageStore(cache_dir, docker_url=docker_url(), run=run)
            again = DockerRuntime(docker_url(), images, tmp_path / "volumes", run)
            assert await again.probe() is None
            deadline = time.monotonic() + DEADLINE_S * 3
            while await to_thread.run_sync(left):
                assert time.monotonic() < deadline, "something is left"
                assert again.reconciler is not None
                await again.reconciler.sweep()
            await again.aclose()
    client.close()
