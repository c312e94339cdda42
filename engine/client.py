"""The engine's side of the worker process: starting it, talking to it, noticing its death, starting it again.

Knows nothing of chats or models beyond the messages it passes on. It gives the worker a clean environment."""

import sys
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

import anyio
import anyio.abc
import msgspec
from anyio.abc import ByteReceiveStream, ByteSendStream
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from engine.errors import BadRequest, ContextOverflow, ModelBusy, WorkerFailed
from engine.pipe import (
    Cancel,
    Done,
    Failed,
    FromWorker,
    Generate,
    Load,
    Loaded,
    LoadFailed,
    Piece,
    Progress,
    ToWorker,
    Unframer,
    frame,
)

LOAD_TIMEOUT_S: Final = 180.0  # a large model from a slow disk
STALL_TIMEOUT_S: Final = 120.0  # no message although requests run: the worker hangs and is replaced
STOP_TIMEOUT_S: Final = 2.0  # from the end of stdin to SIGKILL
BACKOFF_S: Final = (0.0, 0.25, 1.0, 2.0, 4.0)  # before a start, by the number of failures in a row
OUTBOX_MESSAGES: Final = 1_024
INBOX_MESSAGES: Final = 65_536  # of one request: more than any answer has tokens
STDERR_LINES: Final = 20
SPIN_COUNT: Final = "20000"  # of libgomp, about 50 µs: longer burns CPU others need, shorter costs wake-ups

Event = Progress | Piece | Done
_ROOT: Final = str(Path(__file__).resolve().parent.parent)  # where `engine` is imported from, here and there


class _Worker:
    """One worker process. Its owner task is `run`; everything else only queues and waits."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._to_send, self._outbox = anyio.create_memory_object_stream[ToWorker](OUTBOX_MESSAGES)
        self._requests: dict[int, MemoryObjectSendStream[Event | Failed]] = {}
        self._scope = anyio.CancelScope()
        self._stderr: deque[str] = deque(maxlen=STDERR_LINES)
        self._heard = anyio.Event()
        self.settled = anyio.Event()  # loaded, or ended
        self.ended = anyio.Event()
        self.loaded: Loaded | None = None
        self.failure: str | None = None
        self.pid: int | None = None

    @property
    def is_running(self) -> bool:
        return self.failure is None

    def open_request(self, message: Generate) -> MemoryObjectReceiveStream[Event | Failed]:
        """Raises: ModelBusy if the worker does not keep up, WorkerFailed if it has ended."""
        if self.failure is not None:
            raise WorkerFailed(self.failure)
        send, receive = anyio.create_memory_object_stream[Event | Failed](INBOX_MESSAGES)
        try:
            self._to_send.send_nowait(message)
        except anyio.WouldBlock as exc:
            raise ModelBusy(f"{OUTBOX_MESSAGES} messages are waiting for the model's worker") from exc
        self._requests[message.id] = send
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
        stdin, stdout, stderr = process.stdin, process.stdout, process.stderr
        try:
            if stdin is None or stdout is None or stderr is None:
                return "the model's worker was started without pipes"
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._write, stdin)
                tasks.start_soon(self._collect_stderr, stderr)
                tasks.start_soon(self._watch, tasks.cancel_scope)
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

    async def _watch(self, scope: anyio.CancelScope) -> None:
        """End a worker that says nothing although it has something to do."""
        while True:
            self._heard = anyio.Event()
            with anyio.move_on_after(STALL_TIMEOUT_S):
                await self._heard.wait()
                continue
            if self._requests:
                self._stderr.append(f"no sign of life for {STALL_TIMEOUT_S:.0f} s")
                scope.cancel()
                return

    async def _read(self, stdout: ByteReceiveStream) -> None:
        decoder = msgspec.msgpack.Decoder(FromWorker)
        unframer = Unframer()
        try:
            async for data in stdout:
                self._heard.set()
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
                if isinstance(message, (Done, Failed)):
                    del self._requests[message.id]
                    request.close()

    def _reason(self, returncode: int | None) -> str:
        last = self._stderr[-1] if self._stderr else "it said nothing"
        if self.loaded is None:
            return f"the model could not be loaded: {last}"
        how = f"signal {-returncode}" if returncode is not None and returncode < 0 else f"exit status {returncode}"
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

    async def generate(self, make: Callable[[int], Generate]) -> AsyncGenerator[Event]:
        """Send the request `make` gives for a fresh id and yield what comes back; closing cancels it.

        Raises: BadRequest, ContextOverflow, ModelBusy, WorkerFailed.
        """
        worker, _ = await self._ready()
        self._next_id += 1
        message = make(self._next_id)
        try:
            frame(message)
        except (UnicodeEncodeError, msgspec.MsgspecError, OverflowError) as exc:
            raise BadRequest(f"the request cannot be encoded: {exc}") from exc
        events = worker.open_request(message)
        try:
            async for event in events:
                match event:
                    case Failed():
                        raise _ERRORS[event.kind](event.message)
                    case Done():
                        self._n_failures = 0
                        yield event
                        return
                    case _:
                        yield event
            raise WorkerFailed(worker.failure or "the model's worker ended")
        finally:
            worker.close_request(message.id)
            events.close()

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
