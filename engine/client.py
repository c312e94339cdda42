"""The engine's side of the worker process: starting it, talking to it, noticing its death, starting it again.

Knows nothing of chats or models beyond the messages it passes on. It gives the worker a clean environment."""

import logging
import signal
import sys
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

import anyio
import anyio.abc
import anyio.to_thread
import msgspec
from anyio.abc import ByteReceiveStream, ByteSendStream
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from engine.errors import BadRequest, ContextOverflow, ModelBusy, WorkerDied, WorkerFailed
from engine.pipe import (
    Cancel,
    Count,
    Detokenize,
    Done,
    Embed,
    Embedded,
    Failed,
    FromWorker,
    Generate,
    Load,
    Loaded,
    LoadFailed,
    Piece,
    Progress,
    Tokenize,
    Tokenized,
    ToWorker,
    Unframer,
    frame,
)

LOAD_TIMEOUT_S: Final = 180.0  # a large model from a slow disk
STALL_S: Final = 45.0  # no message although requests run: the worker hangs and is replaced …
STALL_S_PER_GB: Final = 20.0  # … later, the more weights one step has to read
LOOK_S: Final = 1.0  # between looks at the worker
STOPPED_LOOKS: Final = 3  # looks in a row that find it stopped: it is replaced
STOP_TIMEOUT_S: Final = 2.0  # from the end of stdin to SIGKILL
BACKOFF_S: Final = (0.0, 0.25, 1.0, 2.0, 4.0)  # before a start, by the number of failures in a row
OUTBOX_MESSAGES: Final = 1_024
INBOX_MESSAGES: Final = 65_536  # of one request: more than any answer has tokens
STDERR_LINES: Final = 20
SPIN_COUNT: Final = "20000"  # of libgomp, about 50 µs: longer burns CPU others need, shorter costs wake-ups

Event = Progress | Piece | Done | Embedded | Tokenized
_log: Final = logging.getLogger(__name__)
Request = Generate | Embed | Tokenize | Count | Detokenize
_LAST: Final = (Done, Embedded, Tokenized)
_ROOT: Final = str(Path(__file__).resolve().parent.parent)  # where `engine` is imported from, here and there


class _Worker:
    """One worker process. Its owner task is `run`; everything else only queues and waits."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._to_send, self._outbox = anyio.create_memory_object_stream[ToWorker](OUTBOX_MESSAGES)
        self._requests: dict[int, MemoryObjectSendStream[Event | Failed]] = {}
        self._scope = anyio.CancelScope()
        self._stderr: deque[str] = deque(maxlen=STDERR_LINES)
        self._heard_at = 0.0
        self._is_ended_here = False
        self._n_oom_kills = 0
        self.settled = anyio.Event()  # loaded, or ended
        self.ended = anyio.Event()
        self.loaded: Loaded | None = None
        self.failure: str | None = None
        self.pid: int | None = None

    @property
    def is_running(self) -> bool:
        return self.failure is None

    @property
    def n_requests(self) -> int:
        return len(self._requests)

    def open_requests(self, messages: Sequence[Request]) -> MemoryObjectReceiveStream[Event | Failed]:
        """One stream for what comes back to all of them.

        Raises: ModelBusy if the worker does not keep up, WorkerDied if it has ended.
        """
        if self.failure is not None:
            raise WorkerDied(self.failure)
        send, receive = anyio.create_memory_object_stream[Event | Failed](INBOX_MESSAGES)
        with send:
            for message in messages:
                try:
                    self._to_send.send_nowait(message)
                except anyio.WouldBlock as exc:
                    receive.close()
                    raise ModelBusy(f"{OUTBOX_MESSAGES} messages are waiting for the model's worker") from exc
                self._requests[message.id] = send.clone()
        return receive

    def close_request(self, request_id: int) -> None:
        """Forget a request; one still running is cancelled."""
        request = self._requests.pop(request_id, None)
        if request is not None:
            request.close()
            if self.failure is None:
                with suppress(anyio.WouldBlock):
                    self._to_send.send_nowait(Cancel(request_id))

    def stop(self) -> None:
        self._scope.cancel()

    async def run(self) -> None:
        """Start the process and serve it until it ends or `stop` is called; never leaves it behind."""
        reason = "the model's worker was stopped"
        try:
            with self._scope:
                reason = await self._serve()
        finally:
            self.failure = reason
            self.settled.set()
            self.ended.set()
            for request in self._requests.values():
                request.close()
            self._requests.clear()
            self._to_send.close()
            self._outbox.close()

    async def _serve(self) -> str:
        """Returns why the process ended."""
        environment = {
            "PYTHONPATH": _ROOT,
            "LANG": "C.UTF-8",
            "OPENBLAS_NUM_THREADS": "1",
            "GOMP_SPINCOUNT": SPIN_COUNT,
        }
        argv = [sys.executable, "-P", "-m", "engine.worker"]
        try:
            process = await anyio.open_process(argv, env=environment, cwd="/", start_new_session=True)
        except OSError as exc:
            return f"the model's worker could not be started: {exc.strerror or exc}"
        self.pid = process.pid
        self._n_oom_kills = _n_oom_kills()
        stdin, stdout, stderr = process.stdin, process.stdout, process.stderr
        try:
            if stdin is None or stdout is None or stderr is None:
                return "the model's worker was started without pipes"
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._write, stdin)
                tasks.start_soon(self._collect_stderr, stderr)
                tasks.start_soon(self._watch, tasks.cancel_scope, process.pid)
                self._to_send.send_nowait(self._load)
                await self._read(stdout)
                with anyio.move_on_after(STOP_TIMEOUT_S):
                    await process.wait()
                tasks.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await _reap(process)
        return self._reason(process.returncode)

    async def _write(self, stdin: ByteSendStream) -> None:
        async for message in self._outbox:
            with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):  # `_read` sees the end as well
                await stdin.send(frame(message))

    async def _collect_stderr(self, stderr: ByteReceiveStream) -> None:
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            async for data in stderr:
                self._stderr.extend(line for line in data.decode(errors="replace").splitlines() if line.strip())

    async def _watch(self, scope: anyio.CancelScope, pid: int) -> None:
        """End a worker that says nothing although it has something to do, or that somebody has stopped."""
        size_bytes = await anyio.to_thread.run_sync(_size, self._load.paths)
        stall_s = STALL_S + STALL_S_PER_GB * size_bytes / 1e9
        n_stopped = 0
        while True:
            await anyio.sleep(LOOK_S)
            now = anyio.current_time()
            if self.loaded is None or not self._requests:  # nothing is to be said
                self._heard_at = now
            n_stopped = n_stopped + 1 if _is_stopped(pid) else 0
            if n_stopped >= STOPPED_LOOKS:
                self._end_it("it was stopped by a signal and did not go on", scope)
                return
            if now - self._heard_at > stall_s:
                self._end_it(f"no sign of life for {stall_s:.0f} s", scope)
                return

    def _end_it(self, why: str, scope: anyio.CancelScope) -> None:
        self._stderr.append(why)
        self._is_ended_here = True
        scope.cancel()

    async def _read(self, stdout: ByteReceiveStream) -> None:
        decoder = msgspec.msgpack.Decoder(FromWorker)
        unframer = Unframer()
        try:
            async for data in stdout:
                self._heard_at = anyio.current_time()
                for body in unframer.feed(data):
                    self._dispatch(decoder.decode(body))
        except (ValueError, msgspec.MsgspecError) as exc:
            self._stderr.append(f"it sent something unreadable: {exc}")
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass  # the same as the end of the stream

    def _dispatch(self, message: FromWorker) -> None:
        match message:
            case Loaded():
                self.loaded = message
                self.settled.set()
                if self._load.n_gpu_layers > 0 and not message.has_gpu:
                    name, n_layers = Path(self._load.path).name, self._load.n_gpu_layers
                    _log.warning(
                        "%s: %d layers are wanted on a GPU, which this build of llama.cpp cannot use; "
                        "all stay on the processor",
                        name,
                        n_layers,
                    )
            case LoadFailed():
                self._stderr.clear()
                self._stderr.append(message.message)
            case _:
                request = self._requests.get(message.id)
                if request is None:
                    return  # cancelled meanwhile
                try:
                    request.send_nowait(message)
                except anyio.WouldBlock:  # nobody reads the answer any more
                    self.close_request(message.id)
                    return
                if isinstance(message, (*_LAST, Failed)):
                    del self._requests[message.id]
                    request.close()

    def _reason(self, returncode: int | None) -> str:
        last = self._stderr[-1] if self._stderr else "it said nothing"
        if self.loaded is None:
            return f"the model could not be loaded: {last}"
        how = f"signal {-returncode}" if returncode is not None and returncode < 0 else f"exit status {returncode}"
        if returncode == -signal.SIGKILL and not self._is_ended_here and _n_oom_kills() > self._n_oom_kills:
            last = "the system ran out of memory"
        return f"the model's worker process ended ({how}: {last}); the next request starts a new one"


async def _reap(process: anyio.abc.Process) -> None:
    """End a process for certain, gently first."""
    if process.stdin is not None:
        with suppress(OSError, anyio.BrokenResourceError, anyio.ClosedResourceError):
            await process.stdin.aclose()
    with anyio.move_on_after(STOP_TIMEOUT_S):
        await process.wait()
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.kill()
    await process.wait()
    await process.aclose()


def _is_stopped(pid: int) -> bool:
    """Whether the process is stopped by a signal or a tracer (proc(5): state T or t)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in ("T", "t")
    except (OSError, IndexError):
        return False


def _n_oom_kills() -> int:
    """How many processes the kernel has ended for want of memory."""
    try:
        fields = Path("/proc/vmstat").read_text().split()
        return int(fields[fields.index("oom_kill") + 1])
    except (OSError, ValueError, IndexError):
        return 0


def _size(paths: Sequence[Path]) -> int:
    with suppress(OSError):
        return sum(path.stat().st_size for path in paths)
    return 0


class WorkerClient:
    """A supervised worker: started by the first request, replaced after a failure, gone after `__aexit__`."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._starting = anyio.Lock()
        self._worker: _Worker | None = None
        self._n_failures = 0
        self._next_id = 0
        self._tasks: anyio.abc.TaskGroup | None = None

    async def __aenter__(self) -> Self:
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        tasks, self._tasks = self._tasks, None
        if tasks is not None:
            tasks.cancel_scope.cancel()
            await tasks.__aexit__(None, None, None)

    @property
    def pid(self) -> int | None:
        """The process id of the running worker."""
        return self._worker.pid if self._worker and self._worker.is_running else None

    async def start(self) -> Loaded:
        """Have a worker with the model loaded. Raises: WorkerFailed if that cannot be done."""
        return (await self._ready())[1]

    async def unload(self) -> None:
        """End the worker, if one runs; the next request starts another."""
        worker = self._worker
        if worker is not None:
            worker.stop()
            await worker.ended.wait()

    @property
    def n_requests(self) -> int:
        """Requests that wait or run."""
        return self._worker.n_requests if self._worker and self._worker.is_running else 0

    async def ask(
        self, make: Callable[[int, int], Request], n: int = 1, is_enough: Callable[[int], bool] = lambda _: False
    ) -> AsyncGenerator[tuple[int, Event]]:
        """Send `n` requests, each made of a fresh id and its number, and yield what comes back with that number.

        One of which `is_enough` says so after an event is cancelled; closing the iterator cancels them all.
        Raises: BadRequest, ContextOverflow, ModelBusy, WorkerFailed.
        """
        worker, _ = await self._ready()
        first = self._next_id + 1
        self._next_id += n
        messages = [make(first + number, number) for number in range(n)]
        try:
            for message in messages:
                frame(message)
        except (UnicodeEncodeError, msgspec.MsgspecError, OverflowError) as exc:
            raise BadRequest(f"the request cannot be encoded: {exc}") from exc
        unfinished = set(range(n))
        try:
            with worker.open_requests(messages) as events:
                async for event in events:
                    number = event.id - first
                    if number not in unfinished:
                        continue  # it was on its way when there was enough
                    if isinstance(event, Failed):
                        raise _ERRORS[event.kind](event.message)
                    if isinstance(event, _LAST):
                        self._n_failures = 0
                        unfinished.remove(number)
                    yield number, event
                    if number in unfinished and is_enough(number):
                        worker.close_request(event.id)
                        unfinished.remove(number)
            if unfinished:
                raise WorkerDied(worker.failure or "the model's worker ended")
        finally:
            for message in messages:
                worker.close_request(message.id)

    async def _ready(self) -> tuple[_Worker, Loaded]:
        if self._tasks is None:
            raise WorkerFailed("the model is closed")
        async with self._starting:
            worker = self._worker
            if worker is not None and not worker.is_running:
                await worker.ended.wait()
                worker = None
            if worker is None:
                await anyio.sleep(BACKOFF_S[min(self._n_failures, len(BACKOFF_S) - 1)])
                self._n_failures += 1  # until a request succeeds
                worker = self._worker = _Worker(self._load)
                self._tasks.start_soon(worker.run)
            with anyio.move_on_after(LOAD_TIMEOUT_S):
                await worker.settled.wait()
            if worker.loaded is None or not worker.is_running:
                worker.stop()
                await worker.ended.wait()
                raise WorkerFailed(worker.failure or f"the model was not loaded within {LOAD_TIMEOUT_S:.0f} s")
            return worker, worker.loaded


_ERRORS: Final = {"request": BadRequest, "context": ContextOverflow, "busy": ModelBusy}
