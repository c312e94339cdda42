"""The messages between the engine and its worker process, and their frames.

Knows nothing of processes or models. A frame is a 4-byte big-endian length and one msgpack message."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

MAX_FRAME_BYTES: Final = 32 << 20  # prompts are limited far below this; more is a broken stream
DEFAULT_MAX_TOKENS: Final = 2_048  # of an answer whose request names no limit
_HEADER_BYTES: Final = 4

# -- to the worker


class Load(msgspec.Struct, frozen=True, tag=True):
    """Load a model; sent once, first. `n_cells` is the size of the key-value cache all sequences share."""

    path: str
    chat_template: str
    n_ctx: int
    n_cells: int
    n_sequences: int
    n_threads: int
    n_gpu_layers: int = -1  # all, where the build can use a GPU
    more_paths: tuple[str, ...] = ()  # the other parts of a split model, in order

    @property
    def paths(self) -> list[Path]:
        """The files of the model."""
        return [Path(path) for path in (self.path, *self.more_paths)]


class Sampling(msgspec.Struct, frozen=True):
    """How the next token is chosen; `temperature` 0 means the most likely one."""

    temperature: float = 0.7
    top_k: int = 40
    top_p: float = 0.9
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None


class Trigger(msgspec.Struct, frozen=True):
    """From where `pattern` (a regular expression over the answer so far) ends, the answer follows `grammar`.

    Where it `is_tentative` the model must be following the grammar of its own accord until it writes a quotation
    mark; if it does not, the text was meant otherwise and stays free.
    """

    pattern: str
    grammar: str
    is_tentative: bool = False


class Generate(msgspec.Struct, frozen=True, tag=True):
    """Continue a conversation, or the bare text `prompt` in its place.

    `prefill` opens the answer and is part of it. `grammar` (GBNF) holds from the start; without one, `triggers` can
    bring one later. Only requests of one `owner` share what is in the cache.
    """

    id: int
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    prefill: str = ""
    grammar: str | None = None
    triggers: list[Trigger] = []
    max_tokens: int | None = None
    stop: list[str] = []
    owner: str = ""
    sampling: Sampling = Sampling()
    prompt: str | None = None
    n_logprobs: int | None = None


class Embed(msgspec.Struct, frozen=True, tag=True):
    """Give one vector for each text."""

    id: int
    texts: list[str]


class Tokenize(msgspec.Struct, frozen=True, tag=True):
    """Give the tokens of `text`; with `has_special`, special tokens written in it are recognised."""

    id: int
    text: str
    has_special: bool


class Count(msgspec.Struct, frozen=True, tag=True):
    """Give the tokens of the prompt that a conversation makes."""

    id: int
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None


class Detokenize(msgspec.Struct, frozen=True, tag=True):
    """Give the text of tokens."""

    id: int
    tokens: list[int]


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """Stop request `id`; unknown ids are ignored."""

    id: int


# -- from the worker


class Loaded(msgspec.Struct, frozen=True, tag=True):
    """The model is ready. `given_up` is what the worker can no longer reach (see `engine.sandbox`).

    `has_gpu` says whether this build of llama.cpp can use a GPU.
    """

    description: str
    n_ctx: int
    given_up: list[str]
    has_gpu: bool = False


class LoadFailed(msgspec.Struct, frozen=True, tag=True):
    """The model cannot be used; the worker ends."""

    message: str


class Progress(msgspec.Struct, frozen=True, tag=True):
    """`n_done` of the prompt's tokens are in the cache, `n_cached` of them without computing."""

    id: int
    n_prompt: int
    n_cached: int
    n_done: int


class TokenChance(msgspec.Struct, frozen=True, array_like=True):
    """A chosen token, the logarithm of its probability, and the likeliest tokens in its place."""

    token: bytes
    logprob: float
    top: list[tuple[bytes, float]]


class Piece(msgspec.Struct, frozen=True, tag=True):
    """Some more text of the answer, whole characters only, of about `n_tokens` tokens; `chances` of these where they
    were asked for."""

    id: int
    text: str
    chances: list[TokenChance] = []
    n_tokens: int = 0


class Done(msgspec.Struct, frozen=True, tag=True):
    """The answer is complete, or was cut at a limit."""

    id: int
    reason: Literal["stop", "length"]
    n_completion: int


class Embedded(msgspec.Struct, frozen=True, tag=True):
    """Vectors of length 1, as little-endian 32-bit floats."""

    id: int
    vectors: list[bytes]
    n_tokens: int


class Tokenized(msgspec.Struct, frozen=True, tag=True):
    """Tokens, or the text of tokens."""

    id: int
    tokens: list[int]
    text: str


class Failed(msgspec.Struct, frozen=True, tag=True):
    """Request `id` ended without an answer."""

    id: int
    kind: Literal["request", "context", "busy"]
    message: str


ToWorker = Load | Generate | Embed | Tokenize | Count | Detokenize | Cancel
FromWorker = Loaded | LoadFailed | Progress | Piece | Done | Embedded | Tokenized | Failed

_encoder = msgspec.msgpack.Encoder()


def frame(message: ToWorker | FromWorker) -> bytes:
    """Raises: msgspec.EncodeError or UnicodeEncodeError for text that is not valid Unicode."""
    body = _encoder.encode(message)
    return len(body).to_bytes(_HEADER_BYTES, "big") + body


class Unframer:
    """Cuts a byte stream into message bodies. Raises: ValueError for a frame above the limit."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield every body that is now complete."""
        self._buffer += data
        start = 0
        try:
            while len(self._buffer) - start >= _HEADER_BYTES:
                length = int.from_bytes(self._buffer[start : start + _HEADER_BYTES], "big")
                if length > MAX_FRAME_BYTES:
                    raise ValueError(f"a frame of {length} bytes is above the limit of {MAX_FRAME_BYTES}")
                end = start + _HEADER_BYTES + length
                if len(self._buffer) < end:
                    break
                yield bytes(self._buffer[start + _HEADER_BYTES : end])
                start = end
        finally:
            del self._buffer[:start]
