"""The HTTP APIs of the local models, one family a module: OpenAI's, Anthropic's, Ollama's, and a few of no family.

Knows which path belongs to whom; the models are the engine's."""

from __future__ import annotations

from collections.abc import Callable

from starlette.routing import Route
from starlette.types import Scope

from gateway.apis import anthropic, extras, ollama, openai
from gateway.models import Models
from policies import Principal


def model_routes(models: Models, principal_of: Callable[[Scope], Principal]) -> list[Route]:
    """All routes. `principal_of` says who makes a request: what is cached for one is not used for another."""
    return [
        *openai.routes(models, principal_of),
        *anthropic.routes(models, principal_of),
        *ollama.routes(models, principal_of),
        *extras.routes(models, principal_of),
    ]
