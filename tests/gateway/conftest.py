"""Fixtures of the gateway's tests: the event loop that ships, and the places where real parts are cached.

Knows nothing of what is under test."""

import os
from pathlib import Path

import pytest


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
