"""Finding catalogue entries by what a question means: vectors from a local model beside the ranking of words.

Knows which model gives the vectors and where they are kept; the catalog room ranks words and joins the two."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from catalog import Catalog, Entry
from catalog.fusion import fuse
from engine import EngineError, ModelNotFound, StoredModel
from gateway.client import gateway_client
from gateway.modellist import open_store
from gateway.models import Models
from gateway.running import find_running
from gateway.settings import MIN_CONTEXT_TOKENS, Settings
from gateway.vectorcache import VectorCache

if TYPE_CHECKING:
    from gateway.vectorcache import Matrix

FOLDER: Final = "vectors"
FORM: Final = "lockgate-entry-vectors-1"
"""Part of each key: raise it when the texts below are made in another way."""
TEXT_CHARS: Final = 600
"""Of one entry; hundreds of tool names would drown what the server is for."""
QUESTION_CHARS: Final = 1000
WIDTH_A_COMMON: Final = 100
ENTRIES_A_COMMON: Final = 20
"""For each so many numbers of a vector, and so many entries, one common direction is left out."""
BATCH_TEXTS: Final = 16
"""Embedded in one request: others who use the model have their turn between."""

Embed = Callable[[list[str]], Awaitable[Sequence[Sequence[float]]]]
"""A vector for each text."""
Told = Callable[[int, int], None]
"""How many entries have their vectors, and how many there are."""


class Meanings:
    """The entries of a catalog by their vectors."""

    def __init__(self, entries: Sequence[Entry], vectors: Matrix) -> None:
        self._entries = entries
        # Vectors of chat models all point about the same way, and differ most by things like length. What tells entries
        # apart is left without their mean and the few directions in which they differ most.
        self._centre = vectors.mean(axis=0)
        n_common = min(vectors.shape[1] // WIDTH_A_COMMON, len(vectors) // ENTRIES_A_COMMON)
        self._common = np.linalg.svd(vectors - self._centre, full_matrices=False)[2][:n_common]
        self._rows = self._told_apart(vectors)

    def rank(self, question: Sequence[float]) -> list[Entry]:
        """All entries, the nearest first.

        Raises:
            EngineError: the vector is of another model.
        """
        vector = np.asarray(question, dtype=np.float32)
        if vector.shape != self._centre.shape:
            raise EngineError(
                f"the model's vectors have {len(vector)} numbers and those kept of it {len(self._centre)}: "
                "the running gateway has another model of this name"
            )
        likeness = self._rows @ self._told_apart(vector)
        return [self._entries[number] for number in np.argsort(-likeness, kind="stable")]

    def _told_apart(self, vectors: Matrix) -> Matrix:
        """Of length 1, without what all have in common."""
        found: Matrix = vectors - self._centre
        found = found - found @ self._common.T @ self._common
        lengths = np.linalg.norm(found, axis=-1, keepdims=True)
        found /= np.maximum(lengths, np.finfo(np.float32).tiny)
        return found


async def search_by_meaning(settings: Settings, catalog: Catalog, asked: str, ref: str, told: Told) -> list[Entry]:
    """The entries that match the words or come near their meaning, best first.

    An entry's own id, and no words at all, are answered without the model.

    Raises:
        EngineError: the model is not stored, or cannot be run.
        GatewayError: the running gateway does not answer.
    """
    by_words = catalog.search(asked)
    typed = asked.strip()
    if not typed or (by_words and by_words[0].id.casefold() == typed.casefold()):
        return by_words
    model = stored_model(settings, ref)
    async with embedder(settings, model.ref) as embed:
        meanings = await learn(settings, catalog, model, embed, told)
        (question,) = await embed([question_text(typed)])
    return fuse(by_words, meanings.rank(question))


def stored_model(settings: Settings, ref: str) -> StoredModel:
    """Raises: ModelNotFound, which says how to come by a model, or BadModelFile."""
    store = open_store(settings)
    try:
        return store.get(ref)
    except ModelNotFound as exc:
        here = ", ".join(model.ref for model in store.list())
        wanted = ref if ref in store.known else next(iter(store.known))
        other = f", or name one that is here with --model: {here}" if here else ""
        raise ModelNotFound(f"{exc}; fetch one with: lockgate model pull {wanted}{other}") from exc


@asynccontextmanager
async def embedder(settings: Settings, ref: str) -> AsyncIterator[Embed]:
    """Vectors from a stored model: of the gateway that runs on this state folder, or of a worker for the moment."""
    if find_running(settings) is not None:
        async with gateway_client(settings) as client:

            async def ask(texts: list[str]) -> Sequence[Sequence[float]]:
                found = await client.api("POST", "/api/embed", {"model": ref, "input": texts})
                vectors: list[list[float]] = found["embeddings"]
                return vectors

            yield ask
        return
    # Texts are embedded in a context of their own; the one for chats may be as small as it can.
    async with Models(replace(settings, context_tokens=MIN_CONTEXT_TOKENS)) as models, models.use(ref) as model:

        async def embed(texts: list[str]) -> Sequence[Sequence[float]]:
            return (await model.embed(texts)).vectors

        yield embed


async def learn(settings: Settings, catalog: Catalog, model: StoredModel, embed: Embed, told: Told) -> Meanings:
    """The catalog's vectors: kept ones, or new ones, which are kept until the catalog or the model changes."""
    entries = list(catalog.entries.values())
    texts = [entry_text(entry) for entry in entries]
    cache = VectorCache(settings.cache_dir / FOLDER)
    key = _key(model.digest, texts)
    vectors = cache.load(key, len(texts))
    if vectors is None:
        rows: list[Sequence[float]] = []
        for start in range(0, len(texts), BATCH_TEXTS):
            told(start, len(texts))
            rows += await embed(texts[start : start + BATCH_TEXTS])
        told(len(texts), len(texts))
        vectors = np.asarray(rows, dtype=np.float32)
        cache.save(key, vectors)
    return Meanings(entries, vectors)


def entry_text(entry: Entry) -> str:
    """What an entry is for, as one text."""
    parts = [f"{entry.title}. {entry.description}"]
    if entry.categories:
        parts.append(f"Categories: {', '.join(entry.categories)}.")
    if entry.tools:
        parts.append(f"Tools: {', '.join(entry.tools)}.")
    return " ".join(parts)[:TEXT_CHARS]


def question_text(asked: str) -> str:
    """Twice what is asked: a model that reads forwards has read it all when it reads it again."""
    return f"{asked[:QUESTION_CHARS]}. {asked[:QUESTION_CHARS]}."


def _key(model_digest: str, texts: Iterable[str]) -> str:
    digest = hashlib.sha256("\0".join((FORM, model_digest, *texts)).encode())
    return digest.hexdigest()
