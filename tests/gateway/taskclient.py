"""A client that takes tasks, over HTTP.

Knows the tasks extension's methods and no more of the gateway than its endpoint."""

from collections.abc import Awaitable, Callable
from typing import Any

import anyio

from tests.gateway.running import Place
from tests.gateway.test_modern import PREFIX, post, result
from tests.servers import DEADLINE_S

TASKS = PREFIX + "tasks"
MISSING_CAPABILITY = -32021
TAKES: dict[str, Any] = {"extensions": {TASKS: {}}}
"""The capabilities of a client that takes tasks, and can do nothing else."""


async def call(place: Place, name: str, arguments: Any = None, **more: Any) -> Any:
    """The result of a tool, which may be a task."""
    params = {"name": name, "arguments": arguments or {}}
    return await result(place, "tools/call", params, **{"clientCapabilities": TAKES, **more})


async def task(place: Place, name: str, arguments: Any = None, **more: Any) -> str:
    """The id of the task that a call became."""
    made = await call(place, name, arguments, **more)
    assert made["resultType"] == "task", made
    assert made["status"] == "working"
    assert not {"result", "error", "inputRequests", "requestState"} & made.keys()
    return str(made["taskId"])


async def ask(place: Place, method: str, id: str, **params: Any) -> Any:
    """The answer to one of the extension's methods."""
    return await result(place, method, {"taskId": id, **params}, clientCapabilities=TAKES)


async def get(place: Place, id: str) -> Any:
    state = await ask(place, "tasks/get", id)
    assert state["taskId"] == id
    assert state["resultType"] == "complete"
    return state


async def error(place: Place, method: str, params: Any, capabilities: Any = None) -> Any:
    answer = await post(place, method, params, clientCapabilities=TAKES if capabilities is None else capabilities)
    return answer.messages()[-1]["error"]


async def is_gone(place: Place, id: str) -> bool:
    found = (await post(place, "tasks/get", {"taskId": id}, clientCapabilities=TAKES)).messages()[-1]
    return found.get("error", {}).get("code") == -32602 and "not found" in found["error"]["message"]


async def reaches(place: Place, id: str, *statuses: str) -> Any:
    """The task's state once it is one of these."""
    states: list[Any] = []

    async def look() -> bool:
        states.append(await get(place, id))
        return states[-1]["status"] in statuses

    await eventually(look)
    return states[-1]


async def eventually(look: Callable[[], Awaitable[bool]]) -> None:
    """Look until it is so, with a pause between: the answer comes over HTTP, not by an event."""
    with anyio.fail_after(DEADLINE_S):
        while not await look():
            await anyio.sleep(0.02)
