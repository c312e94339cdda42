"""The audit record of one thing a caller asks for: opened with who asks, and told which server it came to.

Knows callers and records; who writes them decides when."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, TypeVar, overload

from gateway import audit
from gateway.audit import Audit, AuditUnwritable, Record
from gateway.caller import SOURCE, Caller
from policies import Decision

_log: Final = logging.getLogger(__name__)

R = TypeVar("R", bound=Record)


@overload
def record_of(caller: Caller, method: str) -> Record: ...
@overload
def record_of(caller: Caller, method: str, kind: type[R]) -> R: ...
def record_of(caller: Caller, method: str, kind: type[Record] = Record) -> Record:
    """A new record of its kind, of which only who asks is known."""
    return kind(
        call=audit.call_id(),
        at=audit.now(),
        principal=caller.principal.id,
        client=caller.client,
        profile=caller.profile.name,
        method=method,
        name="",
        who=caller.principal,
        source=SOURCE.get(),
    )


def note_server(record: Record, caller: Caller, id: str, item: str) -> None:
    """Entries are what people ask the record about; which of their instances it was stands beside."""
    profile = caller.profile
    record.server, record.item = profile.entry_id(profile.names.get(id, id)), item
    record.instance = id if record.server != id else ""


def note_decision(record: Record, generation: str, decision: Decision) -> None:
    """What policy of this generation decided of the whole thing, and that nothing else comes of it if that is no."""
    record.policy, record.policies = generation, decision.policy_ids
    if not decision.allowed:
        record.outcome, record.detail = "denied", decision.reason


@contextmanager
def recorded(audit_file: Audit, record: Record) -> Iterator[None]:
    """Write down that something begins, before the body, and what came of it, after. A body that says nothing of it and
    raises nothing was good.

    Raises:
        AuditUnwritable: then the body has not begun, or what it did must not be told.
    """
    audit_file.write(record.start())
    began, failed = time.perf_counter(), True
    try:
        yield
        failed = False
        if record.outcome == "cancelled":
            record.outcome = "ok"
    except (GeneratorExit, asyncio.CancelledError):
        raise  # withdrawn, which is what the record says until it knows better
    except Exception as exc:
        if record.outcome == "cancelled":
            record.outcome, record.detail = "error", type(exc).__name__
        raise
    finally:
        record.ms = round((time.perf_counter() - began) * 1e3, 3)
        try:
            audit_file.write(record)
        except AuditUnwritable as exc:
            if not failed:
                raise
            _log.error("the end of %s could not be recorded: %s", record.method, exc)
