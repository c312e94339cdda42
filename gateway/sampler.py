"""Models here that answer servers in the course of a call: which one, within what budget, and what becomes of refusals.

Knows the door and the models; who answers which question sampling.py says."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import anyio
from msgspec import Raw

from catalog import Entry
from engine import EngineError, StoredModel
from engine.errors import BadRequest, ModelBusy
from gateway import createmessage, errors, sampling
from gateway.bridge import Followed, Here, InputRequired, Parked, Resume
from gateway.caller import Caller
from gateway.chatstream import is_elsewhere
from gateway.createmessage import REJECTED, Preferences, Unanswered
from gateway.models import Models, TooManyTokens
from gateway.modeluse import ModelDenied
from gateway.upstream import Notice, Reply
from gateway.wire import envelope

if TYPE_CHECKING:
    from gateway.door import Door

_log: Final = logging.getLogger(__name__)

ANSWER_TIMEOUT_S: Final = 600.0
"""For one answer: as long as a client may take."""

MAX_REFUSED: Final = 16
"""Requests over its budget that a server hears refused; then its call ends.

A refusal costs little, but a server could make them for ever."""

Notify = Callable[[Notice], Awaitable[None]]


class Sampler:
    """Answers what is to be answered here, by the rights of whoever made the call, and lets the call go on."""

    def __init__(self, door: Door, models: Models) -> None:
        self._door = door
        self._models = models

    async def settle(
        self, caller: Caller, method: str, params: bytes, notify: Notify, required: InputRequired
    ) -> Reply | InputRequired:
        """The call's end, or the questions that are left for its client.

        Raises: what `Door.call` raises.
        """
        server = self._door.pool.servers.get(required.ticket.server)
        if server is None or server.entry.sampling.by == "client":
            return required
        entry, continuation, here = server.entry, required.continuation, required.ticket.here
        try:
            mine, theirs = self._divided(required.requests, caller, entry)
            if not mine:
                return required
            if here.n_requests >= entry.sampling.requests + MAX_REFUSED:
                raise errors.UpstreamInvalid(f"server {entry.id} went on asking for a model after it was refused")
            answers, refusals = await self._answered(caller, mine, here, entry, required)
            if isinstance(continuation, Parked):
                for key, refusal in refusals.items():
                    continuation.refuse(key, refusal.error())
                continuation.answer(answers)
                if continuation.ended.is_set():
                    continuation.questions.clear()
                elif theirs:
                    return InputRequired(continuation.requests(), continuation, required.ticket)
                answers = {}
            elif refusals:
                # A server of the modern era hears answers only, so a refusal ends its call.
                raise errors.UpstreamInvalid(f"server {entry.id} asked for a model: {next(iter(refusals.values()))}")
            elif theirs and not isinstance(continuation, Followed):
                here.answers.update(answers)
                return InputRequired(theirs, continuation, required.ticket)
            elif theirs and isinstance(continuation, Followed):
                done = tuple(key for key in continuation.answered if key not in theirs)
                continuation = continuation._replace(answered=done)
        except BaseException:
            self._door.give_up(required)
            raise
        resume = Resume(continuation, answers, required.ticket.approved, here)
        return await self._door.call(caller, method, params, notify, resume)

    @staticmethod
    def _divided(requests: Mapping[str, Raw], caller: Caller, entry: Entry) -> tuple[dict[str, bytes], dict[str, Raw]]:
        """The params of those that are answered here, and the others."""
        mine, theirs = dict[str, bytes](), dict[str, Raw]()
        for key, raw in requests.items():
            question = envelope.fields(raw)
            method = envelope.text(question.get("method", envelope.ABSENT), "method")
            asked = bytes(question.get("params", envelope.ABSENT))
            if sampling.is_for_model(entry, method, asked, caller.capabilities):
                mine[key] = asked
            elif method != sampling.CREATE or sampling.is_for_client(entry, method, asked, caller.capabilities):
                theirs[key] = raw
            else:
                raise errors.UpstreamInvalid(f"server {entry.id} asked for a model, which nobody gives it")
        return mine, theirs

    async def _answered(
        self, caller: Caller, mine: Mapping[str, bytes], here: Here, entry: Entry, required: InputRequired
    ) -> tuple[dict[str, Raw], dict[str, Unanswered]]:
        """One after another, as they share a budget; none any more once the server is gone."""
        answers, refusals = dict[str, Raw](), dict[str, Unanswered]()
        async with anyio.create_task_group() as group:
            if isinstance(required.continuation, Parked):
                group.start_soon(_cancel_with, required.continuation.ended, group.cancel_scope)
            for key, params in mine.items():
                try:
                    answers[key] = envelope.raw(await self._answer(caller, params, here, entry))
                except Unanswered as exc:
                    refusals[key] = exc
                    self._door.pool.servers[entry.id].log.write("gateway", f"it asked for a model: {exc}")
            group.cancel_scope.cancel()
        return answers, refusals

    async def _answer(self, caller: Caller, params: bytes, here: Here, entry: Entry) -> dict[str, Any]:
        """
        Raises:
            Unanswered: the request is not valid, too much, or not allowed, or the model failed.
        """
        budget = entry.sampling
        here.n_requests += 1
        if here.n_requests > budget.requests:
            raise Unanswered(f"one call may ask for a model {budget.requests} times", REJECTED)
        asked = createmessage.read(params)
        own = Caller(caller.principal, caller.profile, caller.client)
        own.server = entry.entry_id
        try:
            with anyio.fail_after(ANSWER_TIMEOUT_S):
                model = await self._model(own, asked.modelPreferences)
                request = createmessage.chat_request(asked, model, budget.tokens)
                completion = await self._models.complete_within(request, budget.tokens - here.n_tokens, by=own)
        except TooManyTokens as exc:
            raise Unanswered(
                f"one call may use {budget.tokens} tokens of a model, and no more are left", REJECTED
            ) from exc
        except (ModelDenied, errors.LimitReached) as exc:
            raise Unanswered("the use of a model was not allowed", REJECTED) from exc
        except (BadRequest, ModelBusy) as exc:
            raise Unanswered(str(exc), _code(exc)) from exc
        except (EngineError, errors.GatewayError, TimeoutError) as exc:
            _log.warning("a model did not answer server %s: %s", entry.id, exc)
            raise Unanswered("the model did not answer", envelope.INTERNAL_ERROR) from exc
        here.n_tokens += completion["usage"]["total_tokens"]
        return createmessage.result(completion)

    async def _model(self, caller: Caller, wanted: Preferences) -> str:
        """The first hint that is part of the name of a model the caller may use decides; of several, the priorities."""
        if wanted.hints:
            stored = [model for model in await self._models.stored_for(caller) if model.chat_template is not None]
            for hint in wanted.hints:
                if found := [model for model in stored if hint.name and hint.name.lower() in model.ref.lower()]:
                    return _preferred(found, wanted, self._models.default)
        if is_elsewhere(self._models.default):
            raise Unanswered("there is no model here for it: the gateway's own runs elsewhere", REJECTED)
        return self._models.default


def _preferred(models: Sequence[StoredModel], wanted: Preferences, default: str) -> str:
    by_size = sorted(models, key=lambda model: model.size_bytes)
    thrift = max(wanted.speedPriority, wanted.costPriority)
    if wanted.intelligencePriority > thrift:
        return by_size[-1].ref
    names = [model.ref for model in by_size]
    return default if thrift == 0 and default in names else names[0]


def _code(exc: EngineError) -> int:
    return envelope.INVALID_PARAMS if isinstance(exc, BadRequest) else envelope.INTERNAL_ERROR


async def _cancel_with(ended: asyncio.Event, scope: anyio.CancelScope) -> None:
    await ended.wait()
    scope.cancel()
