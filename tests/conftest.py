"""Fixtures every test may use: the async backend and the places where real parts are cached.

Knows nothing of what is under test."""

import pytest
from hypothesis import HealthCheck, settings

# On a busy machine an example may take long without anything being wrong with it.
settings.register_profile("lockgate", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("lockgate")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"
