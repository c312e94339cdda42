"""How long policy takes: one decision, uncached and cached, and what a new principal sees of thousands of tools.

    .venv/bin/python -m benchmarks.policy

Floor: the same question to Cedar itself with everything prepared. Times are CPU time of this process.
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cedarpy

from catalog import Profile
from gateway.audit import Audit
from gateway.caller import Caller
from gateway.door import Door
from gateway.listings import TOOLS, Item, Listing
from gateway.surface import Target
from gateway.wire import envelope
from policies import AllowList, CedarEngine, Facts, Known, Principal, Request, read_sets

N_POLICIES = 200
N_TOOLS = 4000
PARAMETERS = {"type": "object", "properties": {"path": {"type": "string"}, "count": {"type": "integer"}}}


def policies(n: int) -> str:
    """All about one server, all with conditions that are looked at until the last."""
    return "permit (principal, action, resource);\n" + "\n".join(
        f'forbid (principal, action == Action::"call", resource in Server::"s") when {{ context.path has path && '
        f'context.path.path like "/private/{number}/*" && principal.strength != "multi" }};'
        for number in range(n - 1)
    )


def engine(text: str) -> CedarEngine:
    known = Known(["p"], ["s"], {"s": {"read": PARAMETERS}})
    return CedarEngine(AllowList({"p": {"s": None}}), read_sets({"b": [("b.cedar", text)]}, known).sets, {"p": "b"})


def timed(work: Callable[[], Any], n: int) -> list[float]:
    """Microseconds of CPU time of each turn."""
    found = []
    work()
    for _ in range(n):
        before = time.thread_time_ns()
        work()
        found.append((time.thread_time_ns() - before) / 1000)
    return sorted(found)


def said(what: str, times: list[float]) -> None:
    middle, high = statistics.median(times), times[int(len(times) * 0.99)]
    print(f"{what:58} median {middle:9.1f} µs   p99 {high:9.1f} µs")


def floor(text: str) -> None:
    ready = cedarpy.PolicySet.from_str(text)
    entities = cedarpy.Entities.from_json_str(
        json.dumps(
            [
                {"uid": {"type": "User", "id": "me"}, "attrs": {"strength": "key"}, "parents": []},
                {"uid": {"type": "Tool", "id": "s/read"}, "attrs": {}, "parents": [{"type": "Server", "id": "s"}]},
            ]
        )
    )
    asked = {
        "principal": {"type": "User", "id": "me"},
        "action": {"type": "Action", "id": "call"},
        "resource": {"type": "Tool", "id": "s/read"},
        "context": '{"path": {"path": "/data/x"}}',
    }
    said("floor: Cedar alone, all prepared", timed(lambda: cedarpy.is_authorized_batch([asked], ready, entities), 1000))


class Server:
    """What the door asks of a server's place in the pool."""

    def __init__(self, listing: Listing, categories: tuple[str, ...]) -> None:
        self.listing = listing
        self.entry = type("Entry", (), {"categories": categories})()


class Known4000:
    """The pool as a listing sees it: servers that run nowhere."""

    def __init__(self, listings: dict[str, Listing]) -> None:
        self.generation = 1
        self.servers = {id: Server(listing, ("storage",)) for id, listing in listings.items()}

    def listing(self, id: str) -> Listing | None:
        return self.servers[id].listing


def listing(n: int) -> Listing:
    tools = []
    for number in range(n):
        hints = {"readOnlyHint": number % 3 == 0, "destructiveHint": number % 2 == 0}
        tool = {"name": f"tool_{number}", "description": "x" * 200, "inputSchema": PARAMETERS, "annotations": hints}
        tools.append(Item(f"tool_{number}", envelope.raw(tool)))
    return Listing("digest", tools=tuple(tools))


def main() -> None:
    text = policies(N_POLICIES)
    floor(text)
    one = engine(text)
    facts = Facts(parameters=PARAMETERS)
    asked = Request(Principal("me"), "call", "p", "s", "read", {"path": "/data/x"}, facts)
    assert one.decide(asked).allowed
    said(f"one decision, {N_POLICIES} policies that read arguments, uncached", timed(lambda: one.decide(asked), 1000))

    ids = [f"s{number}" for number in range(20)]
    profile = Profile(name="p", title="P", servers=tuple(ids))
    rules = read_sets({"b": [("b.cedar", READ_ONLY)]}, Known(["p"], ids, {})).sets
    door = Door(CedarEngine(AllowList({"p": dict.fromkeys(ids)}), rules, {"p": "b"}), Audit(Path("unused")))
    door.serve(Known4000({id: listing(N_TOOLS // len(ids)) for id in ids}))  # type: ignore[arg-type]
    people = iter(range(10_000))

    def call() -> Caller:
        return Caller(Principal(f"user{next(people)}"), profile)

    before = time.thread_time()
    shown = door.surface(call())
    took_ms = (time.thread_time() - before) * 1000
    print(f"{N_TOOLS} tools for the first principal: {took_ms:.0f} ms, {len(shown.tools)} shown")
    said(f"{N_TOOLS} tools for another new principal", timed(lambda: door.surface(call()), 10))
    known = call()
    said(f"{N_TOOLS} tools for a known principal, all pages", timed(lambda: pages(door, known), 20))
    target = Target("s1", "tool_0")
    said("one decision, cached", timed(lambda: door._decide(known, "call", target, b"{}"), 5000))


READ_ONLY = (
    "permit (principal, action, resource); forbid (principal, action, resource is Tool) unless { resource.readOnly };"
)


def pages(door: Door, caller: Caller) -> None:
    view, cursor = door.surface(caller), None
    while True:
        page = envelope.value(view.page(TOOLS, cursor, 250))
        cursor = page.get("nextCursor")
        if cursor is None:
            return


if __name__ == "__main__":
    main()
