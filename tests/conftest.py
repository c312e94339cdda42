"""Fixtures every test may use: the async backend and the places where real parts are cached.

Knows nothing of what is under test."""

import pytest


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"
