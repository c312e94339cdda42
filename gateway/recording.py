"""The audit record of one thing a caller asks for: opened with who asks, and told which server it came to.

Knows callers and records; who writes them decides when."""

from __future__ import annotations

from typing import TypeVar, overload

from gateway import audit
from gateway.audit import Record
from gateway.caller import SOURCE, Caller

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
