"""The HTTP APIs of the local models, one family a module: OpenAI's, Anthropic's, Ollama's, and a few of no family.

Knows which path belongs to whom; the models are the engine's."""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import Request
from starlette.routing import Route
from starlette.types import Scope

from gateway.apis import anthropic, extras, ollama, openai
from gateway.caller import Caller
from gateway.models import Models
from gateway.modeluse import ModelUses
from policies import Principal


def model_routes(models: Models, uses: ModelUses, principal_of: Callable[[Scope], Principal]) -> list[Route]:
    """All routes. `principal_of` says who makes a request: what is cached for one is not used for another."""

    def caller_of(request: Request) -> Caller:
        source = request.client.host if request.client is not None else ""
        return uses.caller(principal_of(request.scope), request.headers.get("user-agent", ""), source)

    return [
        *openai.routes(models, caller_of),
        *anthropic.routes(models, caller_of),
        *ollama.routes(models, caller_of),
        *extras.routes(models, caller_of),
    ]
