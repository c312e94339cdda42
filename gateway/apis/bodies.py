"""What every family of the model APIs does alike: reading a bounded JSON body, and turning errors into a status.

Knows no family's shapes; each says how its errors look."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Final, Protocol, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from engine import EngineError, ModelBusy, ModelNotFound, NoMemory, WorkerDied
from engine.errors import BadRequest
from gateway import errors
from gateway.boundedbody import body_within
from gateway.caller import Caller
from gateway.modeluse import ModelDenied, UseUnrecorded

MAX_BODY_BYTES: Final = 8 * 1024 * 1024
RETRY_AFTER_S: Final = 2

T = TypeVar("T")

CallerOf = Callable[[Request], Caller]
Handler = Callable[[Request], Awaitable[Response]]
ErrorShape = Callable[[int, str, str], dict[str, Any]]
"""Status, message and kind of an error as one family writes it."""


class Refused(Exception):
    """A request that is answered with this status before a model sees it."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


async def read_object(request: Request) -> dict[str, Any]:
    """The JSON object of the body.

    Raises:
        Refused: it is no JSON object, not called one, or too large.
    """
    # A page in a browser can send text/plain across origins without asking; JSON it cannot.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "Content-Type must be application/json")
    if (body := await body_within(request, MAX_BODY_BYTES)) is None:
        raise Refused(413, f"body over {MAX_BODY_BYTES} bytes")
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as exc:
        raise Refused(400, f"the body is not a JSON object: {exc}") from exc


def convert(body: dict[str, Any], kind: type[T]) -> T:
    """The body as a family's request.

    Raises:
        BadRequest: naming the field and what is wrong with it.
    """
    try:
        return msgspec.convert(body, kind)
    except (msgspec.ValidationError, RecursionError) as exc:
        raise BadRequest(f"the request is not valid: {exc}") from exc


def status_of(exc: EngineError) -> tuple[int, str]:
    """The HTTP status of an engine's error, and its kind in OpenAI's words."""
    match exc:
        case ModelBusy() | WorkerDied():
            return 503, "server_busy"
        case UseUnrecorded():
            return 503, "unrecorded"
        case ModelDenied():
            return 403, "permission_denied"
        case ModelNotFound():
            return 404, "model_not_found"
        case BadRequest():
            return 400, "invalid_request_error"
        case NoMemory():
            return 507, "insufficient_memory"
        case _:
            return 500, "engine_error"


def failure(exc: EngineError | Refused | errors.GatewayError, shape: ErrorShape) -> Response:
    if isinstance(exc, errors.LimitReached):
        return JSONResponse(shape(429, str(exc), "insufficient_quota"), 429, {"Retry-After": str(exc.wait_s)})
    if isinstance(exc, errors.GatewayError):
        return JSONResponse(shape(503, str(exc), "server_busy"), 503, {"Retry-After": str(RETRY_AFTER_S)})
    status, kind = (exc.status, "invalid_request_error") if isinstance(exc, Refused) else status_of(exc)
    wait_s = exc.retry_after_s if isinstance(exc, ModelBusy) else RETRY_AFTER_S
    headers = {"Retry-After": str(wait_s)} if status == 503 else None
    return JSONResponse(shape(status, str(exc), kind), status, headers)


def guarded(handler: Handler, shape: ErrorShape) -> Handler:
    """The handler, with its errors in the family's shape."""

    async def answered(request: Request) -> Response:
        try:
            return await handler(request)
        except (EngineError, Refused, errors.LimitReached, errors.UpstreamUnavailable) as exc:
            return failure(exc, shape)

    return answered


async def streamed(
    lines: AsyncGenerator[bytes], media_type: str, on_failure: Callable[[EngineError], bytes]
) -> StreamingResponse:
    """Answer with what `lines` yields.

    The first line decides the status: until then an error is raised as it is. Later ones become the last line.
    """
    first = await anext(lines)

    async def all_lines() -> AsyncIterator[bytes]:
        async with aclosing(lines):
            try:
                yield first
                async for line in lines:
                    yield line
            except EngineError as exc:
                yield on_failure(exc)

    return StreamingResponse(all_lines(), media_type=media_type)


class Telling(Protocol):
    """An answer as it comes into being; gives the events that tell of it."""

    def begin(self) -> list[bytes]: ...

    def take(self, chunk: dict[str, Any]) -> list[bytes]: ...

    def finish(self) -> list[bytes]: ...


async def told(made: Telling, chunks: AsyncGenerator[dict[str, Any]]) -> AsyncGenerator[bytes]:
    """The events of a whole answer."""
    async with aclosing(chunks):
        is_begun = False
        async for chunk in chunks:
            if not is_begun:  # not before the model took the request: an error still has a status of its own
                is_begun = True
                for line in made.begin():
                    yield line
            for line in made.take(chunk):
                yield line
        for line in made.finish():
            yield line


def event(value: object, name: str = "") -> bytes:
    """One server-sent event."""
    head = f"event: {name}\n".encode() if name else b""
    return b"%bdata: %b\n\n" % (head, msgspec.json.encode(value))
