"""The gateways that end-to-end tests share: one with containers, one with processes, both serving the starter profile.

Knows how to start and stop them; what they do is the tests' business.
"""

import shutil
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.e2e import gateways
from tests.e2e.gateways import STARTER, RunningGateway, engine, eventually, found_engine, missing

RECORDED_S = 30


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the running gateways wrote beside the failure of a test."""
    report = yield
    if report.failed:
        report.sections += [(f"log of the gateway at {one.state}", one.log_tail()) for one in gateways.running]
    return report


@pytest.fixture(scope="session")
def docker_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """Serves the starter profile from containers."""
    engine()
    with RunningGateway(tmp_path_factory.mktemp("docker") / "state", runtime="docker") as gateway:
        gateway.wait_until_learnt()
        yield gateway


@pytest.fixture(scope="session")
def process_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """Serves the starter profile from local processes."""
    for program in ("git", "bwrap"):
        if shutil.which(program) is None:
            missing(f"servers as processes are tested with {program}")
    with RunningGateway(tmp_path_factory.mktemp("process") / "state", runtime="process") as gateway:
        gateway.wait_until_learnt()
        yield gateway


@pytest.fixture(
    scope="session",
    params=[pytest.param("docker", marks=pytest.mark.docker), pytest.param("process", marks=pytest.mark.node)],
)
def gateway(request: pytest.FixtureRequest) -> RunningGateway:
    """Each of the two in turn."""
    found = request.getfixturevalue(f"{request.param}_gateway")
    assert isinstance(found, RunningGateway)
    return found


@pytest.fixture(scope="session")
def any_gateway(request: pytest.FixtureRequest) -> RunningGateway:
    """One of the two, for tests of what does not depend on the runtime."""
    found = request.getfixturevalue("process_gateway" if isinstance(found_engine(), str) else "docker_gateway")
    assert isinstance(found, RunningGateway)
    return found


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state folder that nobody used yet."""
    return tmp_path / "state"


@pytest.fixture
def learnt_state(tmp_path: Path, docker_gateway: RunningGateway) -> Path:
    """A state folder of a gateway that has asked the starter servers what they offer, and nothing else."""
    recorded = docker_gateway.state / "listings"
    # A listing is used from the moment it is known, and recorded a moment later.
    eventually("all are recorded", lambda: {file.stem for file in recorded.glob("*.json")} >= set(STARTER), RECORDED_S)
    shutil.copytree(recorded, tmp_path / "state" / "listings")
    return tmp_path / "state"
