"""llama.cpp through its low-level interface: one model, one context with several sequences, grammars, samplers.

Knows nothing of chats, requests or scheduling. Only the worker process imports it: native assertions abort."""

import ctypes
import sys
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, Final

import llama_cpp.llama_cpp as llama
import numpy as np
import numpy.typing as npt

from engine.errors import BadModelFile, BadRequest
from engine.grammar import check_grammar_text
from engine.pipe import Sampling, TokenChance
from engine.threads import ThreadCount

EMBED_CTX: Final = 2_048  # tokens of one text
EMBED_CHUNK: Final = 128  # of them computed at once
N_CANDIDATES: Final = 512  # best tokens tried against a grammar before the whole vocabulary is
_WARNING: Final = 3  # ggml.h, GGML_LOG_LEVEL_WARN
_ERROR: Final = 4
_CONTROL: Final = llama.LLAMA_TOKEN_ATTR_CONTROL | llama.LLAMA_TOKEN_ATTR_UNKNOWN
_CANDIDATE: Final = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])

Logits = npt.NDArray[np.float32]


class _Log:
    """llama.cpp's warnings and errors, on stderr; the last error is kept for messages of ours."""

    def __init__(self) -> None:
        self.last_error = ""
        self._callback = llama.llama_log_callback(self._write)  # llama.cpp keeps the pointer, we the object
        llama.llama_log_set(self._callback, ctypes.c_void_p(0))

    def _write(self, level: int, text: bytes, _: Any) -> None:
        if level in (_WARNING, _ERROR):
            line = text.decode(errors="replace")
            sys.stderr.write(line)
            if level == _ERROR:
                self.last_error = line.strip()


class NativeModel:
    """A loaded model and its context. Owned by one thread; freed with the process."""

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        n_cells: int,
        n_sequences: int,
        n_threads: int,
        n_batch: int,
        n_gpu_layers: int = -1,
    ) -> None:
        """`paths` are the files of the model in order. `n_gpu_layers` below 0 means all, where there is a GPU.

        Raises: BadModelFile if llama.cpp refuses the file or the context.
        """
        self._log = _Log()
        llama.llama_backend_init()
        how = llama.llama_model_default_params()
        how.n_gpu_layers = n_gpu_layers
        names = (ctypes.c_char_p * len(paths))(*[str(path).encode() for path in paths])
        self._model = llama.llama_model_load_from_splits(names, len(paths), how)
        path = paths[0]
        if not self._model:
            raise BadModelFile(f"llama.cpp could not load {path.name} ({self._log.last_error or 'no reason given'})")
        params = llama.llama_context_default_params()
        params.n_ctx = n_cells
        params.n_batch = n_batch
        params.n_ubatch = n_batch
        params.n_seq_max = n_sequences
        params.n_threads = params.n_threads_batch = n_threads
        params.kv_unified = True  # sequences share cells: copying a prefix costs nothing
        self._context = llama.llama_init_from_model(self._model, params)
        if not self._context:
            raise BadModelFile(f"llama.cpp could not make a context of {n_cells} cells for {path.name}")
        self._memory = llama.llama_get_memory(self._context)
        self._vocab = llama.llama_model_get_vocab(self._model)
        self._threads = ThreadCount(n_threads)
        self._n_threads = n_threads
        self._batch = llama.llama_batch_init(n_batch, 0, 1)
        self.n_batch = n_batch
        self.has_gpu = bool(llama.llama_supports_gpu_offload())
        self.n_vocab: int = llama.llama_vocab_n_tokens(self._vocab)
        self.n_ctx_train: int = llama.llama_model_n_ctx_train(self._model)
        # Recurrent state cannot be cut at a position, so their prefixes are not shared.
        self.can_share = not (llama.llama_model_is_recurrent(self._model) or llama.llama_model_is_hybrid(self._model))
        self._row = ctypes.c_float * self.n_vocab
        self._pieces: dict[int, bytes] = {}

    def description(self) -> str:
        buffer = ctypes.create_string_buffer(256)
        llama.llama_model_desc(self._model, buffer, len(buffer))
        return buffer.value.decode(errors="replace")

    # -- vocabulary

    def special_texts(self) -> tuple[set[str], set[str]]:
        """The texts of control tokens, and of other tokens the tokenizer never splits."""
        control: set[str] = set()
        user_defined: set[str] = set()
        for token in range(self.n_vocab):
            attributes = llama.llama_vocab_get_attr(self._vocab, token)
            if attributes & (_CONTROL | llama.LLAMA_TOKEN_ATTR_USER_DEFINED):
                text = (llama.llama_vocab_get_text(self._vocab, token) or b"").decode(errors="replace")
                if text:
                    (control if attributes & _CONTROL else user_defined).add(text)
        return control, user_defined

    def token_text(self, token: int) -> str:
        return (llama.llama_vocab_get_text(self._vocab, token) or b"").decode(errors="replace") if token >= 0 else ""

    def bos_text(self) -> str:
        return self.token_text(llama.llama_vocab_bos(self._vocab))

    def eos_text(self) -> str:
        return self.token_text(llama.llama_vocab_eos(self._vocab))

    def tokenize(self, text: str, *, has_special: bool) -> list[int]:
        """The tokens of `text`; with `has_special`, control tokens written in it are recognised."""
        data = text.encode(errors="replace")
        size = len(data) + 8
        tokens = (llama.llama_token * size)()
        n_tokens = llama.llama_tokenize(self._vocab, data, len(data), tokens, size, False, has_special)
        if n_tokens < 0:  # the buffer was too small: the number is what it takes
            size = -n_tokens
            tokens = (llama.llama_token * size)()
            n_tokens = llama.llama_tokenize(self._vocab, data, len(data), tokens, size, False, has_special)
        return list(tokens[:n_tokens])

    def opening(self) -> list[int]:
        """The token that begins every text of this model, if it wants one."""
        has = llama.llama_vocab_get_add_bos(self._vocab)
        return [llama.llama_vocab_bos(self._vocab)] if has else []

    def piece(self, token: int) -> bytes:
        """The bytes of a token, perhaps part of a character; control tokens have none."""
        known = self._pieces.get(token)
        if known is None:
            buffer = ctypes.create_string_buffer(256)
            n_bytes = llama.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, False)
            known = self._pieces[token] = buffer.raw[: max(n_bytes, 0)]
        return known

    def is_end(self, token: int) -> bool:
        return bool(llama.llama_vocab_is_eog(self._vocab, token))

    # -- the cache and computing

    def decode(self, tokens: Sequence[tuple[int, int, int, bool]]) -> int:
        """Compute (token, position, sequence, wants logits) entries; 0, or llama_decode's code (1: cache full)."""
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, (token, position, sequence, wants_logits) in enumerate(tokens):
            batch.token[i] = token
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = wants_logits
        n_threads = self._threads.look()
        if n_threads != self._n_threads:
            llama.llama_set_n_threads(self._context, n_threads, n_threads)
            self._n_threads = n_threads
        return int(llama.llama_decode(self._context, batch))

    def wake(self) -> None:
        """Work begins after a rest."""
        self._threads.restart()

    def logits(self, index: int) -> Logits:
        """The logits of entry `index` of the last batch; valid until the next decode."""
        pointer = llama.llama_get_logits_ith(self._context, index)
        row = self._row.from_address(ctypes.addressof(pointer.contents))
        return np.frombuffer(row, dtype=np.float32)  # as np.ctypeslib does it, in a tenth of the time

    def chance(self, logits: Logits, token: int, n_top: int) -> TokenChance:
        """What the probabilities were when `token` was chosen."""
        values = logits.astype(np.float64)
        values -= values.max()
        values -= np.log(np.exp(values).sum())
        best = np.argsort(values)[::-1][:n_top] if n_top else ()
        top = [(self.piece(int(one)), float(values[one])) for one in best]
        return TokenChance(self.piece(token), float(values[token]), top)

    def embedder(self) -> "Embedder":
        """Raises: BadModelFile if llama.cpp cannot make the context for it."""
        return Embedder(self._model, self._n_threads)

    def truncate(self, sequence: int, n_tokens: int) -> bool:
        """Forget what follows the first `n_tokens`; False if this model's memory can only forget everything."""
        return bool(llama.llama_memory_seq_rm(self._memory, sequence, n_tokens, -1))

    def copy(self, source: int, target: int, start: int, end: int) -> None:
        """Let `target` share the cells of positions `start` to `end` (exclusive) of `source`."""
        llama.llama_memory_seq_cp(self._memory, source, target, start, end)

    def save(self, sequence: int) -> bytes:
        """What the cache holds of a sequence."""
        size = llama.llama_state_seq_get_size(self._context, sequence)
        buffer = (ctypes.c_uint8 * size)()
        n_bytes = llama.llama_state_seq_get_data(self._context, buffer, size, sequence)
        return bytes(memoryview(buffer)[:n_bytes])

    def restore(self, sequence: int, state: bytes) -> bool:
        """Put it back, into a sequence that is empty; False if there is no room."""
        buffer = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
        return bool(llama.llama_state_seq_set_data(self._context, buffer, len(state), sequence))

    # -- choosing tokens

    def grammar(self, text: str) -> "Grammar":
        """Raises: BadRequest if the grammar is above our limits or llama.cpp refuses it."""
        check_grammar_text(text)
        sampler = llama.llama_sampler_init_grammar(self._vocab, text.encode(), b"root")
        if not sampler:
            raise BadRequest(f"llama.cpp could not read the grammar ({self._log.last_error or 'no reason given'})")
        return Grammar(sampler)

    def sampler(self, sampling: Sampling) -> "Sampler":
        return Sampler(self.n_vocab, sampling)


class Embedder:
    """Vectors of texts, in a context of their own, so that answers keep their cache.

    A model that says how its tokens make one vector is followed; of others it is the mean over all tokens.
    """

    def __init__(self, model: Any, n_threads: int) -> None:
        self._vocab = llama.llama_model_get_vocab(model)
        self.n_ctx = min(llama.llama_model_n_ctx_train(model), EMBED_CTX)
        self._n_embd: int = llama.llama_model_n_embd(model)
        params = llama.llama_context_default_params()
        params.n_ctx = params.n_batch = self.n_ctx
        params.n_threads = params.n_threads_batch = n_threads
        params.embeddings = True
        params.n_ubatch = EMBED_CHUNK
        context = llama.llama_init_from_model(model, params)
        if context and llama.llama_pooling_type(context) != llama.LLAMA_POOLING_TYPE_NONE:
            llama.llama_free(context)
            params.n_ubatch = self.n_ctx  # all of a text must be in one pass
            context = llama.llama_init_from_model(model, params)
        if not context:
            raise BadModelFile("llama.cpp could not make a context for embeddings")
        self._context = context
        self._is_pooled = llama.llama_pooling_type(context) != llama.LLAMA_POOLING_TYPE_NONE
        self._n_chunk = self.n_ctx if self._is_pooled else EMBED_CHUNK
        self._batch = llama.llama_batch_init(self._n_chunk, 0, 1)

    def tokenize(self, text: str) -> list[int]:
        """The tokens of `text` with those the model wants around it."""
        data = text.encode(errors="replace")
        tokens = (llama.llama_token * (len(data) + 16))()
        n_tokens = llama.llama_tokenize(self._vocab, data, len(data), tokens, len(tokens), True, False)
        return list(tokens[:n_tokens]) if n_tokens > 0 else []

    def vector(self, tokens: Sequence[int]) -> Generator[None, None, bytes]:
        """The vector of at most `n_ctx` tokens, of length 1; yields between its parts.

        Raises: RuntimeError if llama.cpp fails.
        """
        llama.llama_memory_clear(llama.llama_get_memory(self._context), True)
        total = np.zeros(self._n_embd, dtype=np.float64)
        for start in range(0, len(tokens), self._n_chunk):
            chunk = tokens[start : start + self._n_chunk]
            self._fill(chunk, start)
            code = llama.llama_decode(self._context, self._batch)
            if code != 0:
                raise RuntimeError(f"llama_decode failed with code {code} on {len(chunk)} tokens to embed")
            if self._is_pooled:
                total += self._array(llama.llama_get_embeddings_seq(self._context, 0))
            else:
                for index in range(len(chunk)):
                    total += self._array(llama.llama_get_embeddings_ith(self._context, index))
            yield
        length = float(np.linalg.norm(total))
        return bytes((total / length if length else total).astype("<f4").tobytes())

    def _fill(self, chunk: Sequence[int], start: int) -> None:
        self._batch.n_tokens = len(chunk)
        for index, token in enumerate(chunk):
            self._batch.token[index] = token
            self._batch.pos[index] = start + index
            self._batch.n_seq_id[index] = 1
            self._batch.seq_id[index][0] = 0
            self._batch.logits[index] = True

    def _array(self, pointer: Any) -> Logits:
        return np.ctypeslib.as_array(pointer, shape=(self._n_embd,))


class Grammar:
    """A grammar and how far it has been followed."""

    def __init__(self, sampler: Any) -> None:
        self._sampler = sampler

    def close(self) -> None:
        llama.llama_sampler_free(self._sampler)
        self._sampler = None

    def allowed(self, tokens: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
        """For each token whether it may come next."""
        candidates = np.zeros(len(tokens), dtype=_CANDIDATE)
        candidates["id"] = tokens
        _apply(self._sampler, candidates)
        return np.asarray(candidates["logit"] == 0.0)

    def allows(self, token: int) -> bool:
        return bool(self.allowed(np.array([token], dtype=np.int32))[0])

    def accept(self, token: int) -> None:
        """Advance; only for a token that `allowed` has allowed, as llama.cpp aborts on any other."""
        llama.llama_sampler_accept(self._sampler, token)


class Sampler:
    """Chooses tokens for one answer: greedy, or a llama.cpp chain with its own random numbers."""

    def __init__(self, n_vocab: int, sampling: Sampling) -> None:
        self._all = np.arange(n_vocab, dtype=np.int32)
        self._chain: Any = None
        has_penalties = bool(sampling.presence_penalty or sampling.frequency_penalty or sampling.repeat_penalty != 1.0)
        if sampling.temperature == 0 and not has_penalties:
            return
        chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        parts = []
        if has_penalties:
            strengths = sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty
            parts.append(llama.llama_sampler_init_penalties(n_vocab, 64, *strengths))
        if sampling.temperature == 0:
            parts.append(llama.llama_sampler_init_greedy())
        else:
            parts += [
                llama.llama_sampler_init_top_k(sampling.top_k),
                llama.llama_sampler_init_top_p(sampling.top_p, 1),
                llama.llama_sampler_init_min_p(sampling.min_p, 1),
                llama.llama_sampler_init_temp(sampling.temperature),
                llama.llama_sampler_init_dist(0xFFFFFFFF if sampling.seed is None else sampling.seed),
            ]
        for part in parts:
            llama.llama_sampler_chain_add(chain, part)
        self._chain = chain

    def close(self) -> None:
        if self._chain is not None:
            llama.llama_sampler_free(self._chain)
            self._chain = None

    def choose(self, logits: Logits, grammar: Grammar | None) -> int | None:
        """The next token, or None where the grammar allows none."""
        token = self._pick(self._all, logits)
        if grammar is not None and not grammar.allows(token):
            # Only the best tokens are tried at first: a grammar takes long over a whole vocabulary.
            ids = np.argpartition(logits, -N_CANDIDATES)[-N_CANDIDATES:].astype(np.int32)
            ids = ids[grammar.allowed(ids)]
            if not len(ids):
                ids = self._all[grammar.allowed(self._all)]
            if not len(ids):
                return None
            token = self._pick(ids, logits[ids])
        if self._chain is not None:
            llama.llama_sampler_accept(self._chain, token)
        return token

    def _pick(self, ids: npt.NDArray[np.int32], logits: Logits) -> int:
        if self._chain is None:
            return int(ids[int(np.argmax(logits))])
        candidates = np.zeros(len(ids), dtype=_CANDIDATE)
        candidates["id"] = ids
        candidates["logit"] = logits
        array = _apply(self._chain, candidates)
        return int(array.data[array.selected].id)


def _apply(sampler: Any, candidates: npt.NDArray[Any]) -> Any:
    """Run a sampler over `candidates` in place (it may also shrink or reorder them)."""
    pointer = candidates.ctypes.data_as(ctypes.POINTER(llama.llama_token_data))
    array = llama.llama_token_data_array(data=pointer, size=len(candidates), selected=-1, sorted=False)
    llama.llama_sampler_apply(sampler, ctypes.byref(array))
    return array
