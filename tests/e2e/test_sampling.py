"""The reference server asks for a model in the middle of a call, and one here answers a client that has none.

Server, gateway and model are real; what the model writes is its own."""

from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from tests.e2e import catalogs
from tests.e2e.gateways import RunningGateway
from tests.engine.conftest import model_store, smollm2  # noqa: F401  # fixtures
from tests.gateway.callers import Session

pytestmark = pytest.mark.anyio

TOOL = "trigger-sampling-request"
LISTED_S = 120


@pytest.fixture(scope="module")
def gateway(
    tmp_path_factory: pytest.TempPathFactory,
    smollm2: object,  # noqa: F811
) -> Iterator[RunningGateway]:
    folder: Path = tmp_path_factory.mktemp("sampling")
    servers = {"everything": catalogs.shipped("everything", sampling={"by": "either"})}
    catalog = catalogs.write(folder / "catalog.yaml", servers)
    settings = {"runtime": "process", "catalog": catalog, "model": "smollm2:135m", "context_tokens": 1024}
    with RunningGateway(folder / "state", **settings) as one:
        one.wait_until_learnt(["everything"])
        yield one


async def test_the_reference_server_is_answered_by_a_model_here(gateway: RunningGateway) -> None:
    session = await Session.open(gateway.url)
    with anyio.fail_after(LISTED_S):  # it offers the tool only where a model can be asked for, once it has been there
        while f"everything__{TOOL}" not in await session.tools():
            await anyio.sleep(0.05)
    said = await session.call(f"everything__{TOOL}", {"prompt": "Say hello.", "maxTokens": 8})
    assert '"model": "smollm2:135m"' in said
    assert '"role": "assistant"' in said
    await session.close()
