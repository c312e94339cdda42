"""The worker process: the only place where llama.cpp runs, started as `python -m engine.worker`.

Knows nothing of who started it: messages on stdin and stdout, no network, no secrets, dies with its parent."""

import contextlib
import os
import queue
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final, Never

import msgspec

from engine.errors import BadModelFile, BadRequest, ContextOverflow, EngineError, ModelBusy
from engine.pipe import (
    Cancel,
    Count,
    Detokenize,
    Embed,
    Failed,
    FromWorker,
    Generate,
    Load,
    Loaded,
    LoadFailed,
    Tokenize,
    Tokenized,
    ToWorker,
    Unframer,
    frame,
)
from engine.sandbox import give_up

if TYPE_CHECKING:
    from engine.scheduler import Emit

N_BATCH: Final = 256  # tokens computed at once; cancelling waits for at most one batch
OOM_SCORE: Final = "800"  # proc(5); 1000 is the first to be killed
TEMPLATE_TIME_S: Final = 2.0  # CPU time one chat template may take
TEMPLATE_MEMORY_BYTES: Final = 512 << 20  # address space it may add
_decoder: Final = msgspec.msgpack.Decoder(ToWorker)


def main() -> None:
    """Serve until stdin closes."""
    with contextlib.suppress(OSError):  # where memory runs out, it is this process that goes
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # whatever the gateway or its starter had open
    out = os.dup(1)
    os.dup2(2, 1)  # whatever native code prints must not land between the frames
    os.set_inheritable(out, False)
    inbox: queue.SimpleQueue[ToWorker] = queue.SimpleQueue()
    unframer = Unframer()
    while inbox.empty():  # the first message names the model, and the sandbox must know it before threads start
        _receive(unframer, inbox)
    load = inbox.get()
    if not isinstance(load, Load):
        sys.exit("the first message must be Load")
    given_up = give_up(load.paths)
    threading.Thread(target=_read, args=(unframer, inbox), name="stdin", daemon=True).start()
    pending = bytearray()

    def emit(message: FromWorker) -> None:
        pending.extend(frame(message))

    def flush() -> None:
        while pending:
            del pending[: os.write(out, pending)]

    try:
        worker = Worker(load, emit)
    except EngineError as exc:
        emit(LoadFailed(str(exc)))
        flush()
        sys.exit(1)
    emit(Loaded(worker.description, load.n_ctx, given_up, worker.has_gpu))
    flush()
    while True:
        while inbox.empty() and worker.rest():
            pass
        is_resting = not worker.has_work
        for message in _available(inbox, is_blocking=is_resting):
            if is_resting:
                worker.wake()
                is_resting = False
            worker.handle(message)
        worker.step()
        flush()


def _available(inbox: "queue.SimpleQueue[ToWorker]", *, is_blocking: bool) -> Iterator[ToWorker]:
    """What has arrived; with `is_blocking` at least one message."""
    if is_blocking:
        yield inbox.get()
    with contextlib.suppress(queue.Empty):
        while True:
            yield inbox.get_nowait()


def _read(unframer: Unframer, inbox: "queue.SimpleQueue[ToWorker]") -> None:
    """Decode stdin into the inbox for as long as the process lives."""
    try:
        while True:
            _receive(unframer, inbox)
    except (ValueError, msgspec.MsgspecError):
        traceback.print_exc()
        os._exit(1)


def _receive(unframer: Unframer, inbox: "queue.SimpleQueue[ToWorker]") -> None:
    """Wait for some of stdin. Its end is the end of the process: whoever could read an answer is gone."""
    data = os.read(0, 1 << 16)
    if not data:
        os._exit(0)  # not through the main thread, which may be computing for a while
    for body in unframer.feed(data):
        inbox.put(_decoder.decode(body))


class Worker:
    """The model and its scheduler, fed with messages. Raises on construction: BadModelFile."""

    def __init__(self, load: Load, emit: "Emit") -> None:
        from engine.native import NativeModel
        from engine.scheduler import Scheduler
        from engine.template import ChatTemplate, Defuser
        from engine.vectors import Vectors

        self._emit = emit
        self._has_template = bool(load.chat_template)
        self._model = NativeModel(
            load.paths,
            n_cells=load.n_cells,
            n_sequences=load.n_sequences,
            n_threads=load.n_threads,
            n_batch=N_BATCH,
            n_gpu_layers=load.n_gpu_layers,
        )
        with _bounded():
            self._template = ChatTemplate(load.chat_template, bos=self._model.bos_text(), eos=self._model.eos_text())
        control, user_defined = self._model.special_texts()
        meaningful = [text for text in user_defined if text in load.chat_template]
        self._defuser = Defuser([*control, *meaningful])
        self._scheduler = Scheduler(
            self._model, n_ctx=load.n_ctx, n_cells=load.n_cells, n_sequences=load.n_sequences, emit=emit
        )
        self._vectors = Vectors(self._model.embedder, emit)
        self.description = self._model.description()
        self.has_gpu = self._model.has_gpu

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work or self._vectors.has_work

    def handle(self, message: ToWorker) -> None:
        match message:
            case Cancel():
                self._scheduler.cancel(message.id)
                self._vectors.cancel(message.id)
            case Load():
                sys.exit("a worker loads one model only")
            case _:
                try:
                    self._begin(message)
                except ContextOverflow as exc:
                    self._emit(Failed(message.id, "context", str(exc)))
                except (BadRequest, BadModelFile) as exc:
                    self._emit(Failed(message.id, "request", str(exc)))
                except ModelBusy as exc:
                    self._emit(Failed(message.id, "busy", str(exc)))

    def _begin(self, message: Generate | Embed | Tokenize | Count | Detokenize) -> None:
        match message:
            case Generate():
                self._scheduler.submit(message, self.tokens(message))
            case Embed():
                if self._vectors.is_full:
                    raise ModelBusy("too many embedding requests are already waiting for the model")
                self._vectors.submit(message)
            case Tokenize():
                tokens = self._model.tokenize(message.text, has_special=message.has_special)
                self._emit(Tokenized(message.id, tokens, message.text))
            case Count():
                tokens = self.tokens(Generate(message.id, message.messages, message.tools))
                self._emit(Tokenized(message.id, tokens, ""))
            case Detokenize():
                if any(not 0 <= token < self._model.n_vocab for token in message.tokens):
                    raise BadRequest(f"a token is a number from 0 to {self._model.n_vocab - 1}")
                text = b"".join(map(self._model.piece, message.tokens)).decode(errors="replace")
                self._emit(Tokenized(message.id, message.tokens, text))

    def rest(self) -> bool:
        """Put one thing in order, if nothing else is to be done; False if all is."""
        return not self.has_work and self._scheduler.rest()

    def wake(self) -> None:
        """Work begins after a rest."""
        self._model.wake()

    def step(self) -> None:
        self._scheduler.step()
        self._vectors.step()

    def tokens(self, request: Generate) -> list[int]:
        """The prompt, with special-token text in what users and tools wrote kept plain."""
        from engine.template import CUT

        if request.prompt is not None:  # the whole of it is its author's, special tokens too
            return [*self._model.opening(), *self._model.tokenize(request.prompt, has_special=True)]
        if not self._has_template:
            raise BadRequest("this is a base model without a chat template: it completes text but cannot chat")
        messages = [
            {key: value if key == "role" else self._defuser.value(value) for key, value in message.items()}
            for message in request.messages
        ]
        with _bounded():
            prompt = self._template.render(messages, self._defuser.value(request.tools))
        pieces = [*prompt.split(CUT)]
        pieces[-1] += request.prefill
        return [token for piece in pieces if piece for token in self._model.tokenize(piece, has_special=True)]


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    """Let the template take so much time and memory and no more. Raises: BadRequest above the time."""

    def expire(_: int, __: FrameType | None) -> Never:
        raise BadRequest(f"the model's chat template took more than {TEMPLATE_TIME_S:.0f} s for this conversation")

    used_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    previous = signal.signal(signal.SIGVTALRM, expire)
    resource.setrlimit(resource.RLIMIT_AS, (used_bytes + TEMPLATE_MEMORY_BYTES, before[1]))
    signal.setitimer(signal.ITIMER_VIRTUAL, TEMPLATE_TIME_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.signal(signal.SIGVTALRM, previous)


if __name__ == "__main__":
    main()
