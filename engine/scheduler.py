"""Which tokens are computed next: several sequences in one context, prompts in chunks between steps of the others.

Knows nothing of pipes or chats; it talks to a NativeModel and reports through a callback. One thread owns it."""

import codecs
import itertools
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from engine.errors import BadRequest, ContextOverflow, ModelBusy
from engine.native import Grammar, NativeModel, Sampler
from engine.pace import Pace
from engine.pipe import DEFAULT_MAX_TOKENS, Done, FromWorker, Generate, Piece, Progress, TokenChance
from engine.shelf import Shelf, common

PROMPT_CHUNK: Final = 128  # prompt tokens a step at most while others write
WAITING_PER_SEQUENCE: Final = 8  # length of the queue
SEEN_CHARS: Final = 256  # of an answer, searched for triggers
PIECE_S: Final = 1 / 30  # text waits so long at most for more of it: each piece takes time of the processors
MIN_SHARED: Final = 32  # tokens a prefix must have for a request to wait for another that computes it

RESTING_CELLS: Final = 256  # that idle sequences may fill: all that runs looks at them

Emit = Callable[[FromWorker], None]


@dataclass(eq=False)
class _Run:
    """A request on its way; owned by the scheduler."""

    request: Generate
    prompt: Sequence[int]
    max_tokens: int
    sampler: Sampler
    grammar: Grammar | None
    triggers: list[tuple[re.Pattern[str], Grammar, bool]]
    decoder: codecs.IncrementalDecoder
    n_cached: int = 0
    n_completion: int = 0
    next_token: int | None = None
    held: str = ""
    chances: list[TokenChance] = field(default_factory=list)  # of tokens whose text is still held
    n_held: int = 0  # tokens that have not been told of
    told_at: float = 0.0
    seen: str = ""
    is_tentative: bool = False
    leader: "_Slot | None" = None
    n_shared: int = 0

    @property
    def n_reserved(self) -> int:
        return len(self.prompt) + self.max_tokens

    def close(self) -> None:
        self.sampler.close()
        for _, grammar, _ in self.triggers:
            grammar.close()
        self.triggers = []
        self.drop_grammar()

    def drop_grammar(self) -> None:
        if self.grammar is not None:
            self.grammar.close()
        self.grammar, self.is_tentative = None, False

    def follow(self, token: int) -> None:
        """Advance the grammar; one the model did not follow of its own accord is dropped."""
        if self.grammar is not None and self.grammar.allows(token):
            self.grammar.accept(token)
        else:
            self.drop_grammar()


@dataclass(eq=False)
class _Slot:
    """A sequence of the context, the tokens in its cache and the request it serves."""

    index: int
    cached: list[int] = field(default_factory=list)
    owner: str = ""
    run: _Run | None = None
    last_used: int = 0


class Scheduler:
    """Continuous batching over the sequences of one NativeModel."""

    def __init__(self, model: NativeModel, *, n_ctx: int, n_cells: int, n_sequences: int, emit: Emit) -> None:
        self._model = model
        self._n_ctx = n_ctx
        self._n_cells = n_cells
        self._emit = emit
        self._slots = [_Slot(index) for index in range(n_sequences)]
        self._waiting: deque[_Run] = deque()
        self._clock = itertools.count(1)
        self._pace = Pace(PROMPT_CHUNK)
        self._step_s = 0.0  # of the last one
        self._shelf = Shelf()

    @property
    def has_work(self) -> bool:
        return bool(self._waiting) or any(slot.run for slot in self._slots)

    def submit(self, request: Generate, prompt: Sequence[int]) -> None:
        """Queue a tokenized request.

        Raises: ContextOverflow if it cannot fit, ModelBusy if the queue is full, BadRequest for a bad grammar.
        """
        room = self._n_ctx - len(prompt)
        if not prompt:
            raise BadRequest("the prompt is empty")
        if room < 1:
            raise ContextOverflow(
                f"the prompt has {len(prompt)} tokens; the context holds {self._n_ctx}, one of them for the answer"
            )
        if len(self._waiting) >= WAITING_PER_SEQUENCE * len(self._slots):
            raise ModelBusy(f"{len(self._waiting)} requests are already waiting for the model")
        # All are made now, those of triggers too: a bad grammar is refused before anything is computed.
        grammar = self._model.grammar(request.grammar) if request.grammar else None
        triggers = [
            (re.compile(trigger.pattern), self._model.grammar(trigger.grammar), trigger.is_tentative)
            for trigger in request.triggers
        ]
        self._waiting.append(
            _Run(
                request=request,
                prompt=prompt,
                max_tokens=min(request.max_tokens or DEFAULT_MAX_TOKENS, room),
                sampler=self._model.sampler(request.sampling),
                grammar=grammar,
                triggers=triggers,
                decoder=codecs.getincrementaldecoder("utf-8")("replace"),
            )
        )

    def cancel(self, request_id: int) -> None:
        for run in self._waiting:
            if run.request.id == request_id:
                self._waiting.remove(run)
                run.close()
                return
        for slot in self._slots:
            if slot.run and slot.run.request.id == request_id:
                self._release(slot)

    def step(self) -> None:
        """Admit what fits, compute one batch, choose one token for each sequence that is ready.

        Raises: RuntimeError if llama.cpp fails; the context is then unusable.
        """
        self._admit()
        batch: list[tuple[int, int, int, bool]] = []
        ready: list[tuple[_Slot, int]] = []
        growth: list[tuple[_Slot, Sequence[int]]] = []  # in the cache once the batch is computed, not before
        active = [slot for slot in self._slots if slot.run]
        for slot in active:
            if slot.run and slot.run.next_token is not None:
                ready.append((slot, len(batch)))
                batch.append((slot.run.next_token, len(slot.cached), slot.index, True))
                growth.append((slot, [slot.run.next_token]))
        n_writing = len(batch)
        budget = min(self._pace.budget(), self._model.n_batch - n_writing) if batch else self._model.n_batch
        for slot, n_tokens in self._shares(active, budget):
            run = slot.run
            if run is None:
                continue
            start = len(slot.cached)
            chunk = run.prompt[start : start + n_tokens]
            is_last = start + len(chunk) == len(run.prompt)
            if is_last:
                ready.append((slot, len(batch) + len(chunk) - 1))
            for offset, token in enumerate(chunk):
                batch.append((token, start + offset, slot.index, is_last and offset == len(chunk) - 1))
            growth.append((slot, chunk))
        if not batch:
            return
        began = time.monotonic()
        self._compute(batch)
        took_s = self._step_s = time.monotonic() - began
        self._pace.learn(n_writing=n_writing, n_prompt=len(batch) - n_writing, took_s=took_s)
        for slot, tokens in growth:
            slot.cached.extend(tokens)
            if slot.run and slot.run.next_token is None:
                self._report(slot.run, len(slot.cached))
        for slot, index in ready:
            if slot.run:
                self._take(slot, slot.run, index)

    def _shares(self, active: Sequence[_Slot], budget: int) -> list[tuple[_Slot, int]]:
        """How many prompt tokens of each sequence this step computes.

        The oldest prompt has half of them, so that it ends; the rest goes to the shortest first, so that a question
        does not wait for a book.
        """
        reading = [slot for slot in active if slot.run and slot.run.next_token is None]
        reading = [slot for slot in reading if slot.run and not self._must_wait(slot, slot.run)]
        left = {slot: len(slot.run.prompt) - len(slot.cached) for slot in reading if slot.run}
        if not left:
            return []
        oldest = min(left, key=lambda slot: slot.run.request.id if slot.run else 0)
        shares = dict.fromkeys(left, 0)
        shares[oldest] = min(left[oldest], budget // 2 if len(left) > 1 else budget)
        budget -= shares[oldest]
        for slot in sorted(left, key=lambda slot: left[slot]):
            more = min(left[slot] - shares[slot], budget)
            shares[slot] += more
            budget -= more
        return [(slot, n_tokens) for slot, n_tokens in shares.items() if n_tokens]

    def rest(self) -> bool:
        """Move the cache of one idle sequence to the shelf; False if there is nothing to move. For while none runs."""
        idle = sorted((slot for slot in self._slots if slot.cached and slot.run is None), key=lambda one: one.last_used)
        n_cells = sum(len(slot.cached) for slot in idle)
        if self.has_work or not self._model.can_share or len(idle) < 2 or n_cells <= RESTING_CELLS:
            return False
        slot = idle[0]
        self._shelf.put(slot.owner, slot.cached, self._model.save(slot.index))
        self._forget(slot)
        return True

    # -- admitting

    def _next(self) -> _Run:
        """The request to admit next: of the owner who has the fewest running, the oldest."""
        running = Counter(slot.run.request.owner for slot in self._slots if slot.run)
        return min(self._waiting, key=lambda run: (running[run.request.owner], run.request.id))

    def _admit(self) -> None:
        while self._waiting:
            idle = [slot for slot in self._slots if slot.run is None]
            reserved = sum(slot.run.n_reserved for slot in self._slots if slot.run)
            if not idle:
                return
            run = self._next()
            if reserved and reserved + run.n_reserved > self._n_cells:
                return
            self._waiting.remove(run)
            slot = self._place(run, idle)
            slot.run, slot.owner, slot.last_used = run, run.request.owner, next(self._clock)
            run.n_cached = len(slot.cached)
            for other in idle:
                if other is not slot and self._n_used() > self._n_cells:
                    self._forget(other)
            self._follow(slot, run)
            self._report(run, len(slot.cached))
            if run.request.prefill:
                self._emit(Piece(run.request.id, run.request.prefill))

    def _n_used(self) -> int:
        return sum(slot.run.n_reserved if slot.run else len(slot.cached) for slot in self._slots)

    def _place(self, run: _Run, idle: Sequence[_Slot]) -> _Slot:
        """Choose an idle sequence and bring the longest known prefix of the prompt into it."""
        limit = len(run.prompt) - 1  # the last token is computed again: its logits begin the answer
        own = [slot for slot in self._slots if slot.owner == run.request.owner]
        shared = {slot: min(common(slot.cached, run.prompt), limit) for slot in own}
        source = max(shared, key=lambda slot: (shared[slot], slot in idle), default=None)
        n_shared = shared[source] if source else 0
        if unshelved := self._unshelve(run, idle, n_shared + MIN_SHARED):
            return unshelved
        if source in idle and source and 2 * n_shared >= len(source.cached):
            if not self._model.truncate(source.index, n_shared):
                self._forget(source)
            del source.cached[n_shared:]
            return source
        idle_by_age = sorted(idle, key=lambda slot: (bool(slot.cached), slot.last_used))
        target = next((slot for slot in idle_by_age if slot is not source), idle_by_age[0])
        if target is source:
            if not self._model.truncate(target.index, n_shared):
                self._forget(target)
            del target.cached[n_shared:]
            return target
        self._forget(target)
        if source and n_shared and self._model.can_share:
            self._model.copy(source.index, target.index, 0, n_shared)
            target.cached = list(run.prompt[:n_shared])
        return target

    def _unshelve(self, run: _Run, idle: Sequence[_Slot], least: int) -> _Slot | None:
        """Bring a prefix of so many tokens at least from the shelf into an idle sequence, if it has one."""
        item, n_shared = self._shelf.find(run.request.owner, run.prompt[:-1])
        if item is None or n_shared < least:
            return None
        target = min(idle, key=lambda slot: (bool(slot.cached), slot.last_used))
        self._forget(target)
        if not self._model.restore(target.index, item.state):
            return None
        target.cached = list(item.tokens[:n_shared])
        self._model.truncate(target.index, n_shared)
        if 2 * n_shared >= len(item.tokens):
            self._shelf.take(item)
        return target

    def _follow(self, slot: _Slot, run: _Run) -> None:
        """Let a request wait for an older one that is computing the prefix they share."""
        if not self._model.can_share:
            return
        for other in self._slots:
            if other is slot or other.run is None or other.owner != slot.owner or other.run.next_token is not None:
                continue
            n_shared = min(common(other.run.prompt, run.prompt), len(run.prompt) - 1)
            if n_shared >= max(len(slot.cached) + MIN_SHARED, run.n_shared + 1):
                run.leader, run.n_shared = other, n_shared

    def _must_wait(self, slot: _Slot, run: _Run) -> bool:
        leader = run.leader
        if leader is None:
            return False
        n_there = min(common(leader.cached, run.prompt), run.n_shared)
        if n_there > len(slot.cached):
            self._model.copy(leader.index, slot.index, len(slot.cached), n_there)
            run.n_cached += n_there - len(slot.cached)
            slot.cached = list(run.prompt[:n_there])
        if n_there >= run.n_shared or leader.run is None or leader.run.next_token is not None:
            run.leader = None
        return run.leader is not None

    # -- computing

    def _compute(self, batch: Sequence[tuple[int, int, int, bool]]) -> None:
        code = self._model.decode(batch)
        if code == 1:  # no room: what finished requests left goes first
            for slot in self._slots:
                if slot.run is None:
                    self._forget(slot)
            code = self._model.decode(batch)
        if code != 0:
            raise RuntimeError(f"llama_decode failed with code {code} on {len(batch)} tokens")

    def _take(self, slot: _Slot, run: _Run, index: int) -> None:
        """Choose the next token of a sequence and pass on the text it completes."""
        logits = self._model.logits(index)
        token = run.sampler.choose(logits, None if run.is_tentative else run.grammar)
        if token is None or self._model.is_end(token):
            self._finish(slot, run, "stop")
            return
        if run.request.n_logprobs is not None:
            run.chances.append(self._model.chance(logits, token, run.request.n_logprobs))
        run.n_completion += 1
        run.next_token = token
        if run.grammar is not None:
            run.follow(token)
        text = run.decoder.decode(self._model.piece(token))
        if run.is_tentative and '"' in text:
            run.is_tentative = False
        if run.triggers:
            self._watch_for_trigger(run, text)
        if self._write(run, text):
            self._finish(slot, run, "stop")
        elif run.n_completion >= run.max_tokens:
            self._finish(slot, run, "length")

    def _watch_for_trigger(self, run: _Run, text: str) -> None:
        """Put the answer under the grammar of the trigger it has just written, if any."""
        run.seen = (run.seen + text)[-SEEN_CHARS:]
        for pattern, _, is_tentative in run.triggers:
            found = pattern.search(run.seen)
            if found is None:
                continue
            for other, grammar, _ in run.triggers:
                if other is pattern:
                    run.grammar, run.is_tentative = grammar, is_tentative
                else:
                    grammar.close()
            run.triggers = []
            rest = run.seen[found.end() :]
            for token in self._model.tokenize(rest, has_special=False) if rest else ():
                run.follow(token)
            return

    def _write(self, run: _Run, text: str) -> bool:
        """Emit text up to a stop string, holding back what may begin one; True if one was found."""
        run.held += text
        run.n_held += 1
        found = [at for at in (run.held.find(stop) for stop in run.request.stop) if at >= 0]
        if found:
            run.held = run.held[: min(found)]
            return True
        n_held = max((_overlap(run.held, stop) for stop in run.request.stop), default=0)
        ready = run.held[: len(run.held) - n_held]
        now = time.monotonic()
        if ready and now + self._step_s - run.told_at > PIECE_S:  # the next token would come too late
            self._tell(run, ready)
            run.held = run.held[len(ready) :]
            run.told_at = now
        return False

    def _tell(self, run: _Run, text: str) -> None:
        self._emit(Piece(run.request.id, text, run.chances, run.n_held))
        run.chances, run.n_held = [], 0

    def _finish(self, slot: _Slot, run: _Run, reason: Literal["stop", "length"]) -> None:
        rest = run.held + run.decoder.decode(b"", final=True)
        if rest or run.chances:
            self._tell(run, rest)
        self._emit(Done(run.request.id, reason, run.n_completion))
        self._release(slot)

    def _release(self, slot: _Slot) -> None:
        if slot.run:
            slot.run.close()
        slot.run = None
        slot.last_used = next(self._clock)

    def _forget(self, slot: _Slot) -> None:
        self._model.truncate(slot.index, 0)
        slot.cached = []

    def _report(self, run: _Run, n_done: int) -> None:
        self._emit(Progress(run.request.id, len(run.prompt), run.n_cached, n_done))


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` begin `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
