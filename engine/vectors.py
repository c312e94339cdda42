"""Embedding requests in the worker: one after another, in parts between the steps of answers.

Knows nothing of pipes; it talks to an Embedder and reports through a callback. One thread owns it."""

from collections import deque
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING

from engine.errors import BadRequest, ContextOverflow
from engine.pipe import Embed, Embedded, FromWorker

if TYPE_CHECKING:
    from engine.native import Embedder

MAX_WAITING = 64  # requests


class Vectors:
    """The embedding requests of one worker; `make` gives the Embedder when the first one comes."""

    def __init__(self, make: "Callable[[], Embedder]", emit: Callable[[FromWorker], None]) -> None:
        self._make = make
        self._emit = emit
        self._embedder: Embedder | None = None
        self._waiting: deque[tuple[Embed, list[list[int]]]] = deque()
        self._running: tuple[int, Generator[None, None, Embedded]] | None = None

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._running)

    @property
    def is_full(self) -> bool:
        return len(self._waiting) >= MAX_WAITING

    def submit(self, request: Embed) -> None:
        """Raises: ContextOverflow if a text is too long, BadRequest if one is empty."""
        embedder = self._embedder = self._embedder or self._make()
        lists = [embedder.tokenize(text) for text in request.texts]
        for number, tokens in enumerate(lists):
            if not tokens:
                raise BadRequest(f"text {number} is empty")
            if len(tokens) > embedder.n_ctx:
                raise ContextOverflow(f"text {number} has {len(tokens)} tokens; {embedder.n_ctx} are embedded at most")
        self._waiting.append((request, lists))

    def cancel(self, request_id: int) -> None:
        self._waiting = deque(one for one in self._waiting if one[0].id != request_id)
        if self._running and self._running[0] == request_id:
            self._running = None

    def step(self) -> None:
        """Compute one part. Raises: RuntimeError if llama.cpp fails."""
        if self._running is None and self._waiting:
            request, lists = self._waiting.popleft()
            self._running = request.id, self._work(request, lists)
        if self._running is not None:
            try:
                next(self._running[1])
            except StopIteration as ended:
                self._emit(ended.value)
                self._running = None

    def _work(self, request: Embed, lists: list[list[int]]) -> Generator[None, None, Embedded]:
        assert self._embedder is not None  # noqa: S101  # `submit` made it
        vectors = []
        for tokens in lists:
            vectors.append((yield from self._embedder.vector(tokens)))
        return Embedded(request.id, vectors, sum(map(len, lists)))
