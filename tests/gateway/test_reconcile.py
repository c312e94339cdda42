"""The reconcile pass on a real engine: what dead runs left goes, and nothing else does."""

import io
import os
import secrets
import tarfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import docker
import pytest

from gateway.runs import Run
from gateway.runtimes.labels import SIGNATURE, UNFINISHED
from gateway.runtimes.reconcile import EngineSilent, Reconciler
from gateway.settings import Settings
from gateway.wire.http_client import HttpOrigin
from tests.gateway.test_runtimes import engine
from tests.servers import until

pytestmark = pytest.mark.anyio

URL = os.environ.get("DOCKER_HOST") or Settings.docker_host


class Objects:
    """Containers, networks and volumes made for a test, and which of them are still there."""

    def __init__(self, client: docker.APIClient) -> None:
        self._client = client
        self._image = f"lockgate-test-{secrets.token_hex(4)}:empty"
        self._names: list[tuple[str, str]] = []
        empty = io.BytesIO()
        with tarfile.open(fileobj=empty, mode="w"):
            pass
        name, _, tag = self._image.partition(":")
        client.import_image_from_data(empty.getvalue(), repository=name, tag=tag)

    def container(self, name: str, labels: dict[str, str], *, volume: str = "", network: str = "none") -> str:
        self._names.append(("container", name))
        host = self._client.create_host_config(binds=[f"{volume}:/data"] if volume else None, network_mode=network)
        self._client.create_container(self._image, ["/nothing"], name=name, labels=labels, host_config=host)
        return name

    def network(self, name: str, labels: dict[str, str]) -> str:
        self._names.append(("network", name))
        self._client.create_network(name, labels=labels, internal=True)
        return name

    def volume(self, name: str, labels: dict[str, str]) -> str:
        self._names.append(("volume", name))
        self._client.create_volume(name, labels=labels)
        return name

    def unfinished(self, build: str) -> str:
        """An image as a build makes it between two steps."""
        tag = self._client.inspect_container(build)["Id"][:24]
        self._client.commit(build, repository=UNFINISHED, tag=tag)
        return f"{UNFINISHED}:{tag}"

    def has_image(self, name: str) -> bool:
        return bool(self._client.images(name))

    def left(self) -> set[str]:
        held = {
            *(name.lstrip("/") for one in self._client.containers(all=True) for name in one["Names"]),
            *(one["Name"] for one in self._client.networks()),
            *(one["Name"] for one in self._client.volumes()["Volumes"] or ()),
        }
        return {name for _, name in self._names} & held

    def remove(self) -> None:
        removers = {
            "container": lambda name: self._client.remove_container(name, force=True),
            "network": self._client.remove_network,
            "volume": self._client.remove_volume,
        }
        for what, remove in removers.items():  # in this order
            for name in [name for kind, name in self._names if kind == what]:
                try:
                    remove(name)
                except docker.errors.NotFound:
                    continue
        self._client.remove_image(self._image, force=True)


@pytest.fixture
def objects() -> Iterator[Objects]:
    client = engine()
    made = Objects(client)
    yield made
    made.remove()
    client.close()


@pytest.fixture
async def origin() -> AsyncIterator[HttpOrigin]:
    found = HttpOrigin(URL.replace("tcp://", "http://"))
    yield found
    await found.aclose()


def one_of_each(objects: Objects, run: Run) -> set[str]:
    """A container on a network and a volume of the run's, and the container of a build."""
    network, volume, container = run.hold("net"), run.hold("vol"), run.hold("time")
    objects.network(network, run.labels("network", network, "time"))
    objects.volume(volume, run.labels("volume", volume, "time"))
    labels = run.labels("container", container, "time")
    objects.container(container, labels, volume=volume, network=network)
    return {network, volume, container, objects.container(run.hold_build(), {})}


@pytest.mark.docker
@pytest.mark.sec("SEC-074")
async def test_what_dead_runs_left_goes_and_what_living_ones_and_other_gateways_hold_stays(
    tmp_path: Path, objects: Objects, origin: HttpOrigin
) -> None:
    with Run(tmp_path / "a") as dead:
        left = one_of_each(objects, dead)
    with Run(tmp_path / "other") as dead_elsewhere:
        theirs = one_of_each(objects, dead_elsewhere)
    with Run(tmp_path / "a") as run, Run(tmp_path / "a") as command, Run(tmp_path / "b") as other:
        kept = one_of_each(objects, run) | one_of_each(objects, command) | one_of_each(objects, other) | theirs
        assert objects.left() == left | kept
        reconciler = Reconciler(origin, run)
        assert await reconciler.sweep() == len(left)
        await until(lambda: objects.left() == kept, "what the dead run left is gone")
        assert await reconciler.sweep() == 0
        assert objects.left() == kept


@pytest.mark.docker
async def test_a_run_sweeps_what_it_released_and_could_not_remove(
    tmp_path: Path, objects: Objects, origin: HttpOrigin
) -> None:
    with Run(tmp_path) as run:
        names = one_of_each(objects, run)
        for name in names:
            run.release(name)
        await Reconciler(origin, run).sweep()
        await until(lambda: not objects.left(), "all are gone")


@pytest.mark.docker
@pytest.mark.sec("SEC-075")
async def test_foreign_objects_that_bear_our_labels_or_names_are_not_touched(
    tmp_path: Path, objects: Objects, origin: HttpOrigin
) -> None:
    with Run(tmp_path) as dead:
        name = dead.hold("time")
        labels = dead.labels("container", name, "time")
        build = dead.hold_build()
    foreign = {
        objects.container(f"copy-{secrets.token_hex(4)}", labels),
        objects.network(f"copy-{secrets.token_hex(4)}", labels),
        objects.volume(f"copy-{secrets.token_hex(4)}", labels),
        objects.container(f"{name}-0", {**labels, SIGNATURE: "0" * 64}),
        objects.container(f"{name}-1", {one: labels[one] for one in labels if one != SIGNATURE}),
        objects.container(build[:-4] + "0000", {}),
        objects.container(f"lockgate-build-{secrets.token_hex(8)}", {}),
    }
    with Run(tmp_path) as run:
        assert await Reconciler(origin, run).sweep() == 0
    assert objects.left() == foreign


@pytest.mark.docker
async def test_the_image_of_a_build_goes_with_its_container_and_not_before(
    tmp_path: Path, objects: Objects, origin: HttpOrigin
) -> None:
    with Run(tmp_path) as run, Run(tmp_path) as builder:
        build = objects.container(builder.hold_build(), {})
        unfinished = objects.unfinished(build)
        reconciler = Reconciler(origin, run)
        assert await reconciler.sweep() == 0
        assert objects.has_image(unfinished)
        builder.__exit__()
        assert await reconciler.sweep() == 2
        await until(lambda: not objects.has_image(unfinished), "the image is gone")
        assert not objects.left()


async def test_an_engine_that_does_not_answer_is_said_so(tmp_path: Path) -> None:
    origin = HttpOrigin(f"unix://{tmp_path}/no.sock")
    with Run(tmp_path) as run, pytest.raises(EngineSilent, match="did not answer"):
        await Reconciler(origin, run).sweep()
    await origin.aclose()
