"""Chat with a model: OpenAI request bodies in, OpenAI chunks out; also bare completions, vectors and tokens.

Knows nothing of HTTP; the worker process behind it belongs to `engine.client`."""

from array import array
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final, Self

from engine.answers import Answer, Chunk, TextAnswer, collect, collect_text, usage
from engine.client import WorkerClient
from engine.dialect import constraint, for_template, offered
from engine.memory import needed_bytes
from engine.pipe import (
    DEFAULT_MAX_TOKENS,
    Count,
    Detokenize,
    Done,
    Embed,
    Embedded,
    Generate,
    Load,
    Piece,
    Progress,
    Sampling,
    Tokenize,
    Tokenized,
)
from engine.requests import SamplingFields, check_texts, parse_completion, parse_request, stops_of
from engine.statistics import Spent, Statistics
from engine.store import StoredModel
from engine.threads import default_threads

DEFAULT_N_CTX: Final = 8_192  # tokens of one request
DEFAULT_N_SEQUENCES: Final = 16  # requests computed together
CONTEXTS_OF_CACHE: Final = 2  # the sequences share this many full contexts of cache
DEFAULT_COMPLETION_TOKENS: Final = 16  # of a bare completion that names no limit, as its clients expect


@dataclass(frozen=True, slots=True)
class Vectors:
    """One vector for each text, and the tokens of all."""

    vectors: Sequence[Sequence[float]]
    n_tokens: int


class ChatModel:
    """A stored model ready to work, in a supervised worker process that the first request starts.

    `n_ctx` bounds prompt and answer of one request; `n_sequences` requests are computed together, more of them wait.
    """

    def __init__(
        self,
        model: StoredModel,
        *,
        n_ctx: int = DEFAULT_N_CTX,
        n_sequences: int = DEFAULT_N_SEQUENCES,
        n_threads: int | None = None,
        n_gpu_layers: int = -1,
        defaults: Mapping[str, float | None] | None = None,
    ) -> None:
        """`defaults` are for the fields of a request that it leaves out."""
        n_ctx = min(n_ctx, model.context_length or n_ctx)
        template = model.chat_template or ""
        self.model = model
        self.n_ctx = n_ctx
        self.statistics = Statistics()
        self._defaults = {name: value for name, value in (defaults or {}).items() if value is not None}
        self._has_native_tools = "tools" in template and "<tool_call>" in template
        self._load = Load(
            path=str(model.path.resolve()),
            chat_template=template,
            n_ctx=n_ctx,
            n_cells=n_ctx * min(CONTEXTS_OF_CACHE, n_sequences),
            n_sequences=n_sequences,
            n_threads=n_threads or default_threads(),
            n_gpu_layers=n_gpu_layers,
            more_paths=tuple(str(path.resolve()) for path in model.more_paths),
        )
        self._client = WorkerClient(self._load)

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._client.__aexit__(*exc_info)

    @property
    def worker_pid(self) -> int | None:
        """The process id of the worker, while one runs."""
        return self._client.pid

    @property
    def n_requests(self) -> int:
        """Requests that wait or run."""
        return self._client.n_requests

    @property
    def needed_bytes(self) -> int:
        """An estimate of the memory the worker takes."""
        load = self._load
        return needed_bytes(self.model.metadata, self.model.size_bytes, load.n_cells, load.n_sequences)

    async def load(self) -> None:
        """Start the worker now instead of with the first request. Raises: WorkerFailed."""
        await self._client.start()

    async def unload(self) -> None:
        """End the worker and free its memory; the next request starts another."""
        await self._client.unload()

    async def chat(
        self, request: Mapping[str, Any], *, owner: str = "", spent: Spent | None = None
    ) -> AsyncGenerator[Chunk]:
        """Answer a chat completion request with chunks; closing the iterator cancels it.

        Requests share cached prefixes only with those of the same `owner`. Usage comes as a last chunk if the
        request's `stream_options` include it, and is noted in `spent` as it grows.
        Raises: BadRequest, ContextOverflow, ModelBusy, WorkerFailed.
        """
        parsed = parse_request(self._with_defaults(request))
        messages, tools = for_template(parsed, has_native_tools=self._has_native_tools)
        constrained = constraint(parsed)

        def make(request_id: int, number: int) -> Generate:
            return Generate(
                id=request_id,
                messages=messages,
                tools=tools,
                prefill=constrained.prefill,
                grammar=constrained.grammar,
                triggers=list(constrained.triggers),
                max_tokens=parsed.max_completion_tokens or parsed.max_tokens,
                stop=stops_of(parsed),
                owner=owner,
                sampling=_sampling(parsed, number),
                n_logprobs=(parsed.top_logprobs or 0) if parsed.logprobs else None,
            )

        names = [function.name for function in offered(parsed)]
        head = Answer.head(self.model.ref)
        answers = [Answer(head, number, names) for number in range(parsed.n or 1)]
        has_usage = bool(parsed.stream_options and parsed.stream_options.include_usage)
        async for chunk in self._answered(make, answers, spent, has_usage=has_usage):
            yield chunk

    def _with_defaults(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return {**request, **{name: value for name, value in self._defaults.items() if request.get(name) is None}}

    async def complete(
        self, request: Mapping[str, Any], *, owner: str = "", spent: Spent | None = None
    ) -> dict[str, Any]:
        """Answer a chat completion request with one chat.completion object. Raises: as `chat`."""
        body = {**request, "stream_options": {"include_usage": True}}
        async with aclosing(self.chat(body, owner=owner, spent=spent)) as chunks:
            return await collect(chunks)

    async def continue_text(
        self, request: Mapping[str, Any], *, owner: str = "", spent: Spent | None = None
    ) -> AsyncGenerator[Chunk]:
        """Answer a text completion request with chunks: the model goes on from the bare prompt. Raises: as `chat`."""
        parsed = parse_completion(self._with_defaults(request))
        n = parsed.n or 1
        grammar = constraint(parsed).grammar

        def make(request_id: int, number: int) -> Generate:
            return Generate(
                id=request_id,
                messages=[],
                prompt=parsed.prompts[number // n],
                grammar=grammar,
                max_tokens=parsed.max_tokens or DEFAULT_COMPLETION_TOKENS,
                stop=stops_of(parsed),
                owner=owner,
                sampling=_sampling(parsed, number % n),
                n_logprobs=parsed.logprobs,
            )

        head = TextAnswer.head(self.model.ref)
        echoed = [prompt if parsed.echo else "" for prompt in parsed.prompts for _ in range(n)]
        answers = [TextAnswer(head, number, echo) for number, echo in enumerate(echoed)]
        has_usage = bool(parsed.stream_options and parsed.stream_options.include_usage)
        async for chunk in self._answered(make, answers, spent, has_usage=has_usage):
            yield chunk

    async def complete_text(
        self, request: Mapping[str, Any], *, owner: str = "", spent: Spent | None = None
    ) -> dict[str, Any]:
        """Answer a text completion request with one text_completion object. Raises: as `chat`."""
        body = {**request, "stream_options": {"include_usage": True}}
        async with aclosing(self.continue_text(body, owner=owner, spent=spent)) as chunks:
            return await collect_text(chunks)

    async def embed(self, texts: Sequence[str]) -> Vectors:
        """One vector of length 1 for each text. Raises: as `chat`."""
        check_texts(texts)
        async with aclosing(self._client.ask(lambda id, _: Embed(id, list(texts)))) as events:
            async for _, event in events:
                if isinstance(event, Embedded):
                    self.statistics.n_embedded += event.n_tokens
                    return Vectors([array("f", vector) for vector in event.vectors], event.n_tokens)
        raise AssertionError("the worker answers or fails")

    async def tokenize(self, text: str, *, has_special: bool = True) -> list[int]:
        """The tokens of `text`. Raises: as `chat`."""
        check_texts([text])
        return (await self._tokenized(lambda id: Tokenize(id, text, has_special))).tokens

    async def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`. Raises: as `chat`."""
        return (await self._tokenized(lambda id: Detokenize(id, list(tokens)))).text

    async def count_tokens(self, request: Mapping[str, Any]) -> int:
        """The tokens of the prompt that a chat request makes. Raises: as `chat`."""
        parsed = parse_request(dict(request))
        messages, tools = for_template(parsed, has_native_tools=self._has_native_tools)
        return len((await self._tokenized(lambda id: Count(id, messages, tools))).tokens)

    async def most_of_chat(self, request: Mapping[str, Any]) -> int:
        """The tokens that a chat request may use at most, of its prompt and its answers. Raises: as `chat`."""
        parsed = parse_request(dict(request))
        # What opens the answer has no more tokens than bytes.
        n_prompt = await self.count_tokens(request) + len(constraint(parsed).prefill.encode())
        return self._most(n_prompt, parsed.max_completion_tokens or parsed.max_tokens, parsed.n)

    async def most_of_text(self, request: Mapping[str, Any]) -> int:
        """The same of a text completion request, each of whose answers counts its prompt."""
        parsed = parse_completion(dict(request))
        wanted = parsed.max_tokens or DEFAULT_COMPLETION_TOKENS
        each = [self._most(len(await self.tokenize(prompt)), wanted, 1) for prompt in parsed.prompts]
        return sum(each) * (parsed.n or 1)

    async def most_of_embedding(self, texts: Sequence[str]) -> int:
        """The tokens of texts to embed. Raises: as `chat`."""
        check_texts(texts)
        return sum([len(await self.tokenize(text)) + 1 for text in texts if text])  # and one for a separator

    def _most(self, n_prompt: int, wanted: int | None, n: int | None) -> int:
        room = max(self.n_ctx - n_prompt, 0)
        return n_prompt + min(wanted or DEFAULT_MAX_TOKENS, room) * (n or 1)

    async def _tokenized(self, make: Callable[[int], Tokenize | Count | Detokenize]) -> Tokenized:
        async with aclosing(self._client.ask(lambda id, _: make(id))) as events:
            async for _, event in events:
                if isinstance(event, Tokenized):
                    return event
        raise AssertionError("the worker answers or fails")

    async def _answered(
        self,
        make: Callable[[int, int], Generate],
        answers: Sequence[Answer | TextAnswer],
        spent: Spent | None,
        *,
        has_usage: bool,
    ) -> AsyncGenerator[Chunk]:
        """The chunks of all answers, as they come."""
        with self.statistics.request() as counted:
            asked = self._client.ask(make, len(answers), lambda number: answers[number].is_circling)
            async with aclosing(asked) as events:
                async for number, event in events:
                    answer = answers[number]
                    match event:
                        case Progress():
                            answer.n_prompt, answer.n_cached = event.n_prompt, event.n_cached
                            counted.progress(number, event)
                            if spent is not None:
                                spent.n_prompt = usage(answers)["usage"]["prompt_tokens"]
                            for chunk in answer.begin():
                                yield chunk
                        case Piece():
                            counted.piece(number, event.n_tokens)
                            if spent is not None:
                                spent.n_completion += event.n_tokens
                            for chunk in answer.add(event):
                                yield chunk
                            if answer.is_circling:
                                ended = Done(event.id, "stop", counted.n_tokens(number))
                                counted.done(number, ended)
                                for chunk in answer.finish(ended):
                                    yield chunk
                        case Done():
                            if spent is not None:
                                spent.n_completion += event.n_completion - counted.n_tokens(number)
                            counted.done(number, event)
                            for chunk in answer.finish(event):
                                yield chunk
            if has_usage:
                yield usage(answers)


def _sampling(request: SamplingFields, number: int) -> Sampling:
    """Of answer `number`: a seed gives each answer of a request its own."""
    given = {name: value for name in _SAMPLING if (value := getattr(request, name)) is not None}
    return Sampling(**given, seed=None if request.seed is None else (request.seed + number) & 0x7FFFFFFF)


_SAMPLING: Final = tuple(name for name in SamplingFields.__struct_fields__ if name != "seed")
