"""Fixtures of the gateway's tests: the event loop that ships, and the places where real parts are cached.

Knows nothing of what is under test."""

import os
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.gateway import leaks, postgres
from tests.gateway.engines import engine_if_any


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, object]]:
    """The loop that `lockgate` runs on."""
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(scope="session")
def cache_dir() -> Path:
    """Where images, packages and models are kept from run to run: the gateway's own place."""
    named = os.environ.get("LOCKGATE_CACHE_DIR")
    base = os.environ.get("XDG_CACHE_HOME")
    return Path(named) if named else (Path(base) if base else Path.home() / ".cache") / "lockgate"


@pytest.fixture(scope="module")
def postgres_url() -> Iterator[str]:
    """The URL of a PostgreSQL for the tests of one file."""
    with postgres.running() as url:
        yield url


@pytest.fixture(scope="session", autouse=True)
def leak_sweep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """After the last test no secret of any of them is in the engine, in a layer, in arguments, logs or records."""
    since = int(time.time())
    yield
    if leaks.CANARIES:
        engine = engine_if_any()
        if engine is None:
            leaks.sweep_session(tmp_path_factory.getbasetemp(), None, since)
            return
        with closing(engine):
            found = leaks.sweep_session(tmp_path_factory.getbasetemp(), engine, since)
        assert found["file"], "nothing was looked at"
