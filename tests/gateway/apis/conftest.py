"""One gateway with a small model for all tests of the model APIs, and the official clients that talk to it.

Knows how to start it; its worker is loaded once a session."""

from collections.abc import AsyncIterator
from pathlib import Path

import anthropic
import ollama
import openai
import pytest

from engine import StoredModel
from tests.engine.conftest import cache_folder, model_store, smollm2  # noqa: F401  # fixtures
from tests.gateway.running import Place, by_header, running

MODEL = "smollm2:135m"
DEADLINE_S = 300.0


@pytest.fixture(scope="package")
async def place(smollm2: StoredModel, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:  # noqa: F811
    folder: Path = tmp_path_factory.mktemp("apis")
    changes = {"cache_dir": cache_folder(), "model": smollm2.ref, "context_tokens": 1024}
    async with running(folder, {"a": ["friendly"]}, principal_of=by_header, **changes) as place:
        yield place


@pytest.fixture(scope="package")
async def gpt(place: Place) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{place.url}/v1", api_key="none", timeout=DEADLINE_S, max_retries=0
    ) as client:
        yield client


@pytest.fixture(scope="package")
async def claude(place: Place) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(
        base_url=place.url, api_key="none", timeout=DEADLINE_S, max_retries=0
    ) as client:
        yield client


@pytest.fixture(scope="package")
async def llama(place: Place) -> AsyncIterator[ollama.AsyncClient]:
    async with ollama.AsyncClient(host=place.url, timeout=DEADLINE_S) as client:
        yield client
