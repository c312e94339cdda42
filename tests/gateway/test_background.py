"""Work begun beside its owner, from a task and from where no task runs."""

import asyncio
import contextvars

import anyio
import pytest

from gateway.background import Background

pytestmark = pytest.mark.anyio


async def test_work_begins_from_a_task_and_from_a_callback_that_knows_of_no_library() -> None:
    done: list[str] = []
    both = anyio.Event()

    async def work(what: str) -> None:
        done.append(what)
        if len(done) == 2:
            both.set()

    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            background = Background(group)
            background.start_soon(work, "task")
            # As a transport calls: in a context of its own, where nobody noted which library runs.
            asyncio.get_running_loop().call_soon(background.start_soon, work, "callback", context=contextvars.Context())
            await both.wait()
    assert done == ["task", "callback"]


async def test_work_for_an_owner_that_has_ended_never_begins() -> None:
    begun: list[str] = []

    async def work() -> None:
        begun.append("work")

    async with anyio.create_task_group() as group:
        background = Background(group)
    asyncio.get_running_loop().call_soon(background.start_soon, work, context=contextvars.Context())
    for _ in range(5):
        await asyncio.sleep(0)
    assert begun == []
