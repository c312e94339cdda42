"""Reranking, tokens and figures."""

from typing import Any

import pytest
import requests
from anyio import to_thread

from tests.gateway.apis.conftest import DEADLINE_S, MODEL
from tests.gateway.running import Place

pytestmark = [pytest.mark.anyio, pytest.mark.model]
JSON = [("Content-Type", "application/json")]


async def post(place: Place, path: str, body: object) -> tuple[int, Any]:
    """Through a client whose patience is that of a model."""
    url = f"{place.url}{path}"
    answer = await to_thread.run_sync(lambda: requests.post(url, json=body, timeout=DEADLINE_S))
    return answer.status_code, answer.json()


async def test_documents_are_ranked_by_their_likeness_to_the_query(place: Place) -> None:
    documents = ["Interest rates rose by two percent.", "The cat sleeps on the sofa.", "Shares fell on Monday."]
    status, found = await post(
        place,
        "/v1/rerank",
        {"model": MODEL, "query": "A cat is sleeping on a sofa.", "documents": documents, "top_n": 2},
    )
    assert status == 200
    assert found["results"][0]["index"] == 1
    assert len(found["results"]) == 2
    assert found["results"][0]["relevance_score"] > found["results"][1]["relevance_score"]


async def test_tokens_become_text_again(place: Place) -> None:
    text = "Grüße, 世界 <|im_start|>!"
    _, plain = await post(place, "/tokenize", {"model": MODEL, "content": text, "parse_special": False})
    _, special = await post(place, "/tokenize", {"model": MODEL, "content": text})
    assert len(special["tokens"]) < len(plain["tokens"])
    assert await post(place, "/detokenize", {"model": MODEL, "tokens": plain["tokens"]}) == (200, {"content": text})
    status, refused = await post(place, "/detokenize", {"model": MODEL, "tokens": [-1]})
    assert status == 400
    assert "a token is a number from 0" in refused["error"]["message"]


async def test_figures_count_requests_and_tokens(place: Place) -> None:
    async def figure(name: str) -> float:
        text = (await place.http.request("GET", "/v1/metrics")).body.decode()
        prefix = f'lockgate_model_{name}{{model="{MODEL}"}} '
        return next(float(line.removeprefix(prefix)) for line in text.splitlines() if line.startswith(prefix))

    ask = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, "temperature": 0}
    await post(place, "/v1/chat/completions", ask)
    before = [await figure(name) for name in ("requests_total", "completion_tokens_total", "cached_tokens_total")]
    assert (await post(place, "/v1/chat/completions", ask))[0] == 200
    assert await figure("requests_total") == before[0] + 1
    assert await figure("completion_tokens_total") > before[1]
    assert await figure("cached_tokens_total") > before[2]
    assert await figure("waiting") == await figure("writing") == 0
    assert await figure("worker_up") == 1


async def test_anything_but_json_is_refused(place: Place) -> None:
    for path in ("/v1/chat/completions", "/v1/messages", "/api/chat", "/v1/responses", "/tokenize", "/v1/embeddings"):
        answer = await place.http.request("POST", path, headers=[("Content-Type", "text/plain")], body=b"{}")
        assert answer.status == 415, path
        answer = await place.http.request("POST", path, headers=JSON, body=b"[" * 4_000)
        assert answer.status == 400, path
