"""Chat with a model: OpenAI request bodies in, OpenAI chunks out.

Knows nothing of HTTP; the worker process behind it belongs to `engine.client`."""

import itertools
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing
from typing import Any, Final, Self

from engine.calls import Call, CallParser, Text
from engine.client import WorkerClient
from engine.dialect import constraint, for_template
from engine.errors import BadModelFile
from engine.pipe import Done, Generate, Load, Piece, Progress, Sampling
from engine.requests import ChatRequest, parse_request
from engine.store import StoredModel
from engine.threads import default_threads

DEFAULT_N_CTX: Final = 8_192  # tokens of one request
DEFAULT_N_SEQUENCES: Final = 4  # requests computed together
CONTEXTS_OF_CACHE: Final = 2  # the sequences share this many full contexts of cache

Chunk = dict[str, Any]


class ChatModel:
    """A stored model ready to chat, in a supervised worker process that the first request starts.

    `n_ctx` bounds prompt and answer of one request; `n_sequences` requests are computed together, more of them wait.
    """

    def __init__(
        self,
        model: StoredModel,
        *,
        n_ctx: int = DEFAULT_N_CTX,
        n_sequences: int = DEFAULT_N_SEQUENCES,
        n_threads: int | None = None,
    ) -> None:
        """Raises: BadModelFile if the model has no chat template."""
        if not model.chat_template:
            raise BadModelFile(f"{model.ref} has no chat template: it is a base model, not one to chat with")
        n_ctx = min(n_ctx, model.context_length or n_ctx)
        self.model = model
        self.n_ctx = n_ctx
        self._has_native_tools = "tools" in model.chat_template and "<tool_call>" in model.chat_template
        self._client = WorkerClient(
            Load(
                path=str(model.path.resolve()),
                chat_template=model.chat_template,
                n_ctx=n_ctx,
                n_cells=n_ctx * min(CONTEXTS_OF_CACHE, n_sequences),
                n_sequences=n_sequences,
                n_threads=n_threads or default_threads(),
            )
        )

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._client.__aexit__(*exc_info)

    @property
    def worker_pid(self) -> int | None:
        """The process id of the worker, while one runs."""
        return self._client.pid

    async def load(self) -> None:
        """Start the worker now instead of with the first request. Raises: WorkerFailed."""
        await self._client.start()

    async def unload(self) -> None:
        """End the worker and free its memory; the next request starts another."""
        await self._client.unload()

    async def chat(self, request: Mapping[str, Any], *, owner: str = "") -> AsyncGenerator[Chunk]:
        """Answer a chat completion request with chunks; closing the iterator cancels it.

        Requests share cached prefixes only with those of the same `owner`. Usage comes as a last chunk if the
        request's `stream_options` include it. Raises: BadRequest, ContextOverflow, ModelBusy, WorkerFailed.
        """
        parsed = parse_request(dict(request))
        messages, tools = for_template(parsed, has_native_tools=self._has_native_tools)
        constrained = constraint(parsed)

        def make(request_id: int) -> Generate:
            return Generate(
                id=request_id,
                messages=messages,
                tools=tools,
                prefill=constrained.prefill,
                grammar=constrained.grammar,
                triggers=list(constrained.triggers),
                max_tokens=parsed.max_completion_tokens or parsed.max_tokens,
                stop=[parsed.stop] if isinstance(parsed.stop, str) else parsed.stop or [],
                owner=owner,
                sampling=_sampling(parsed),
            )

        answer = _Answer(parsed, self.model.ref)
        async with aclosing(self._client.generate(make)) as events:
            async for event in events:
                match event:
                    case Progress():
                        answer.n_prompt, answer.n_cached = event.n_prompt, event.n_cached
                        if not answer.is_begun:
                            yield answer.begin()
                    case Piece():
                        for chunk in answer.add(event.text):
                            yield chunk
                    case Done():
                        for chunk in answer.finish(event):
                            yield chunk

    async def complete(self, request: Mapping[str, Any], *, owner: str = "") -> dict[str, Any]:
        """Answer a chat completion request with one chat.completion object. Raises: as `chat`."""
        body = {**request, "stream_options": {"include_usage": True}}
        async with aclosing(self.chat(body, owner=owner)) as chunks:
            return await collect(chunks)


async def collect(chunks: AsyncIterator[Chunk]) -> dict[str, Any]:
    """Put chunks together into one chat.completion object."""
    completion: dict[str, Any] = {}
    message: dict[str, Any] = {"role": "assistant", "content": None}
    finish_reason: str | None = None
    async for chunk in chunks:
        completion.update({key: chunk[key] for key in ("id", "created", "model", "usage") if key in chunk})
        for choice in chunk["choices"]:
            delta = choice["delta"]
            if delta.get("content"):
                message["content"] = (message["content"] or "") + delta["content"]
            for call in delta.get("tool_calls", ()):
                listed = {key: value for key, value in call.items() if key != "index"}
                message.setdefault("tool_calls", []).append(listed)
            finish_reason = choice["finish_reason"] or finish_reason
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}
    return {"object": "chat.completion", **completion, "choices": [choice]}


class _Answer:
    """One answer on its way out as chunks."""

    def __init__(self, request: ChatRequest, ref: str) -> None:
        self._head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": ref,
        }
        names = [tool.function.name for tool in request.tools or () if request.tool_choice != "none"]
        self._parser = CallParser(names) if names else None
        self._has_usage = bool(request.stream_options and request.stream_options.include_usage)
        self._call_numbers = itertools.count()
        self._n_calls = 0
        self.n_prompt = 0
        self.n_cached = 0
        self.is_begun = False

    def begin(self) -> Chunk:
        self.is_begun = True
        return self._chunk({"role": "assistant", "content": ""})

    def add(self, text: str) -> Iterator[Chunk]:
        if self._parser is None:
            yield self._chunk({"content": text})
        else:
            yield from map(self._shown, self._parser.feed(text))

    def finish(self, done: Done) -> Iterator[Chunk]:
        if self._parser is not None:
            yield from map(self._shown, self._parser.finish())
        reason: str = done.reason
        if self._n_calls and reason == "stop":
            reason = "tool_calls"
        yield self._chunk({}, reason)
        if self._has_usage:
            usage = {
                "prompt_tokens": self.n_prompt,
                "completion_tokens": done.n_completion,
                "total_tokens": self.n_prompt + done.n_completion,
                "prompt_tokens_details": {"cached_tokens": self.n_cached},
            }
            yield {**self._head, "choices": [], "usage": usage}

    def _shown(self, found: Text | Call) -> Chunk:
        if isinstance(found, Text):
            return self._chunk({"content": found.text})
        self._n_calls += 1
        call = {
            "index": next(self._call_numbers),
            "id": f"call_{secrets.token_hex(12)}",
            "type": "function",
            "function": {"name": found.name, "arguments": found.arguments},
        }
        return self._chunk({"tool_calls": [call]})

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> Chunk:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**self._head, "choices": [choice]}


def _sampling(request: ChatRequest) -> Sampling:
    given = {
        name: value
        for name in ("temperature", "top_k", "top_p", "min_p", "presence_penalty", "frequency_penalty")
        if (value := getattr(request, name)) is not None
    }
    return Sampling(**given, seed=None if request.seed is None else request.seed & 0x7FFFFFFF)
