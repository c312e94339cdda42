"""The use of language models: policy decides each one, and the audit file has it before it begins and when it ends.

Knows callers, policy and records; never prompts or answers, and not how a model runs.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from catalog import Profile
from engine import EngineError, ModelNotFound, Spent, StoredModel
from gateway import errors
from gateway.audit import PREFIX, Audit, AuditUnwritable, ModelRecord
from gateway.caller import SOURCE, Caller
from gateway.door import Door
from gateway.recording import note_decision, record_of
from policies import Circumstances, Decision, Facts, Principal, Request

_log: Final = logging.getLogger(__name__)

METHOD: Final = "models/use"
"""What records call it."""
MAX_CLIENT_CHARS: Final = 100
UNPERMITTED: Final = "no policy permits it"


class ModelDenied(EngineError):
    """Policy does not let this caller use the model; the message says why, and what would allow it."""


class UseUnrecorded(EngineError):
    """The audit file cannot be written, so the model is not used, or its answer is not given."""


@dataclass(slots=True)
class Usage:
    """What one use has cost so far."""

    spent: Spent = field(default_factory=Spent)


class ModelUses:
    """Decides and records, with the door's policy. `default` is the profile in which the model APIs act."""

    def __init__(self, door: Door, audit_file: Audit, default: Callable[[], Profile]) -> None:
        self._door = door
        self._audit = audit_file
        self._default = default

    def caller(self, principal: Principal, client: str, source: str) -> Caller:
        """Whoever makes a request of a model API."""
        SOURCE.set(source)
        return Caller(principal, self._default(), (principal.client or client)[:MAX_CLIENT_CHARS])

    def allows(self, caller: Caller, models: Iterable[StoredModel]) -> list[StoredModel]:
        """Those that the caller may use in some circumstances; the others do not exist for them."""
        several = list(models)
        if not self._door.admits(caller):
            return []
        asked = [self._request(caller, model.ref, model) for model in several]
        seen = self._door.policy.visible(asked) if asked else []
        return [model for model, is_seen in zip(several, seen, strict=True) if is_seen]

    @asynccontextmanager
    async def use(self, caller: Caller, ref: str, model: StoredModel | None) -> AsyncIterator[Usage]:
        """One use, for the length of the body, which notes in the usage what it cost. `model` is None for one that is
        not in the store.

        Raises:
            ModelDenied: policy says no.
            UseUnrecorded: then nothing has happened, or what happened must not be answered.
        """
        caller.profile = self._door.current(caller.profile)
        record = self._record(caller, ref, model)
        decision = self._decide(caller, ref, model)
        note_decision(record, self._door.policy.generation, decision)
        if not decision.allowed:
            self._write(record)
            raise ModelDenied(_refusal(ref, caller, decision))
        self._write(record, begins=True)
        began, usage, failed = time.perf_counter(), Usage(), True
        try:
            yield usage
            record.outcome, failed = "ok", False
        except (GeneratorExit, asyncio.CancelledError):
            raise  # withdrawn, which is what the record says until it knows better
        except ModelNotFound:
            record.outcome = "unknown"
            raise
        except errors.LimitReached as exc:
            record.outcome, record.detail = "limited", f"limit {exc.limit}"
            raise
        except Exception as exc:
            record.outcome, record.detail = "error", type(exc).__name__
            raise
        finally:
            record.ms = round((time.perf_counter() - began) * 1e3, 3)
            record.prompt_tokens, record.completion_tokens = usage.spent.n_prompt, usage.spent.n_completion
            try:
                self._write(record)
            except UseUnrecorded as exc:
                if not failed:
                    raise
                _log.error("the end of a use of the model %s: %s", ref, exc)

    def _decide(self, caller: Caller, ref: str, model: StoredModel | None) -> Decision:
        if not self._door.admits(caller):
            return Decision(False, (), f"profile {caller.profile.name} is not for this caller")
        return self._door.policy.decide(self._request(caller, ref, model))

    @staticmethod
    def _request(caller: Caller, ref: str, model: StoredModel | None) -> Request:
        around = Circumstances(time.time(), SOURCE.get())
        return Request(caller.principal, "use", caller.profile.name, "", ref, {}, facts_of(model), around)

    @staticmethod
    def _record(caller: Caller, ref: str, model: StoredModel | None) -> ModelRecord:
        record = record_of(caller, METHOD, ModelRecord)
        record.name = record.item = ref
        record.server = caller.server
        if model is not None:
            record.entry_digest = model.digest.removeprefix("sha256:")[:PREFIX]
        return record

    def _write(self, record: ModelRecord, *, begins: bool = False) -> None:
        try:
            self._audit.write(record.start() if begins else record)
        except AuditUnwritable as exc:
            _log.error("models are not used, as that cannot be recorded: %s", exc)
            raise UseUnrecorded("the use of models cannot be recorded, so models do not answer; see the log") from exc


def facts_of(model: StoredModel | None) -> Facts:
    """What policy may ask about a model."""
    return Facts(license=model.license or "", size_bytes=model.size_bytes) if model is not None else Facts()


def _refusal(ref: str, caller: Caller, decision: Decision) -> str:
    profile = caller.profile
    why = f"you may not use the model {ref} in the profile {profile.name}: {decision.reason}"
    if decision.ask is not None:
        return f"{why}, and nobody can be asked about models; let its policy permit or forbid it"
    if decision.reason != UNPERMITTED:
        return why
    rule = f'permit (principal, action == Action::"use", resource == Model::{json.dumps(ref)});'
    return f"{why}. An administrator can add to the policy {profile.policy}: {rule}"
