"""Hearing from modern servers: the `subscriptions/listen` stream that stays open as long as the connection.

Knows one connection; what is heard goes where every notification of it goes."""

from __future__ import annotations

import asyncio
from typing import Final

import anyio

from gateway import errors
from gateway.upstream import Reply, Upstream
from gateway.wire import envelope

RELISTEN_PAUSE_S: Final = 1.0


async def listen(upstream: Upstream) -> None:
    """Hold one stream open; reopen it when its filter changes."""
    refused = False
    while not upstream.ended.is_set() and not refused:
        upstream.filter_changed.clear()
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(cancel_when, upstream.filter_changed, group.cancel_scope)
                await _hear(upstream)
                await anyio.sleep(RELISTEN_PAUSE_S)
                group.cancel_scope.cancel()
        except* errors.UpstreamError as refusals:
            upstream.log.write("gateway", f"subscriptions/listen: {refusals.exceptions[0]}")
            refused = True


async def _hear(upstream: Upstream) -> None:
    members = {"notifications": envelope.raw(upstream.listen_filter())}
    call = await upstream.start("subscriptions/listen", members, endless=True)
    upstream.listening = call.id
    try:
        while not isinstance(item := await call.next(), Reply):
            pass
    finally:
        upstream.cancel(call, "listening anew")
    if item.result is None:
        raise errors.UpstreamInvalid(f"refused: {bytes(item.error or b'').decode(errors='replace')[:200]}")


async def cancel_when(event: asyncio.Event, scope: anyio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


async def either(*events: asyncio.Event) -> None:
    """Return as soon as one of the events is set."""
    async with anyio.create_task_group() as group:
        for event in events:
            group.start_soon(cancel_when, event, group.cancel_scope)
