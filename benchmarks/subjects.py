"""The servers that are called, each in two ways: directly, and through a gateway.

Knows how to have them running; not how often they are called, nor what is made of the figures."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import anyio
import msgspec

from benchmarks import answers
from benchmarks.gateways import GatewayProcess, environment
from benchmarks.generators import Load
from benchmarks.load import Order
from benchmarks.processes import tree, tree_running
from benchmarks.servers.running import FOLDER, python_server, running
from benchmarks.twins import Engine, Twin
from catalog import Entry, find_shipped_catalog, load_catalog
from gateway.errors import PackageError
from gateway.packages import InstalledPackage, PackageStore
from gateway.settings import read_settings

EVERYTHING_PREFIX: Final = "Echo: "
"""What the npm server puts before the text it echoes."""


@dataclass(frozen=True)
class Subject:
    """One server. Both orders are complete but for the number of callers and the time."""

    name: str
    title: str
    direct: Order
    through: Order
    load: Load | None = None
    """Who takes both, if not the generator that takes the others."""


def subjects(stack: ExitStack, folder: Path) -> Iterator[Subject]:
    """Start everything that this machine can run; `stack` stops it.

    Needs Node.js for the npm server and a Docker Engine for the container; what is missing is left out, and said.
    """
    shipped = load_catalog(find_shipped_catalog()).entries
    settings = read_settings(os.environ)
    everything = _installed(settings.cache_dir, shipped["everything"])
    engine = _engine(settings.docker_host)
    plain = _packaged(shipped["time"])
    npm = _packaged(shipped["everything"])
    http = list(_http_servers(stack, shipped["everything"], everything))
    entries: dict[str, Mapping[str, Any]] = {name: {"remote": {"url": order.url}} for name, _, order in http}
    if engine is not None:
        entries |= {"everything": npm, "time": plain}
    main = GatewayProcess(folder / "main", "docker" if engine is not None else "process", entries)
    stack.enter_context(main)
    for name, title, direct in http:
        through = _through(main, name, direct.reply_prefix, direct.server_pids)
        yield Subject(name, title, direct, through)
        if name == "sdk":
            yield Subject("sdk-modern", f"{title}, stateless callers", modern(direct), modern(through))
    yield from _processes(stack, folder, shipped["time"], npm if everything is not None else None, everything)
    if engine is not None:
        embedded = Load("embedded.py", environment(folder / "embedded", "docker", {"everything": npm, "time": plain}))
        yield from _containers(stack, engine, main, stack.enter_context(embedded))


def _containers(stack: ExitStack, engine: Engine, main: GatewayProcess, embedded: Load) -> Iterator[Subject]:
    """Two servers, three readings of each: at the door of a gateway in the generator's own process, over HTTP against a
    floor that has the same HTTP hop, and over HTTP against the bare attach socket."""
    embedded_id = embedded.said()
    for name, title, server, tool, prefix in (
        ("container", "container, npm server-everything", "everything", "echo", EVERYTHING_PREFIX),
        ("container-time", "container, mcp-server-time", "time", answers.TIME_TOOL, answers.TIME_ANSWER),
    ):
        ours = engine.of_gateway(embedded_id, server)
        bare = _bare(stack, engine, ours, tool, prefix)
        yield Subject(
            f"{name}-door",
            f"{title}, at the door",
            bare,
            Order(f"{server}__{tool}", prefix, door=True, server_pids=tree(ours["State"]["Pid"])),
            embedded,
        )
        theirs = engine.of_gateway(main.id, server)
        through = _through(main, server, prefix, tree(theirs["State"]["Pid"]), tool)
        twin = stack.enter_context(Twin(engine, theirs))
        argv = [sys.executable, str(FOLDER / "attached.py")]
        port, pid = stack.enter_context(running(lambda port: [*argv, str(port), engine.path, twin.id]))  # noqa: B023
        hop = Order(tool, prefix, url=f"http://127.0.0.1:{port}/mcp", server_pids=(pid, *tree(twin.pid)))
        yield Subject(f"{name}-hop", f"{title}, against the same HTTP hop", hop, through)
        yield Subject(name, f"{title}, against no HTTP", _bare(stack, engine, theirs, tool, prefix), through)


def _bare(stack: ExitStack, engine: Engine, original: dict[str, Any], tool: str, prefix: str) -> Order:
    """Calls over the attach socket of a container like the original."""
    twin = stack.enter_context(Twin(engine, original))
    return Order(tool, prefix, container=twin.id, socket=engine.path, server_pids=tree(twin.pid))


def modern(order: Order) -> Order:
    """The same calls in the stateless era."""
    return msgspec.structs.replace(order, era="modern")


def _through(
    gateway: GatewayProcess, server: str, prefix: str, server_pids: tuple[int, ...], tool: str = "echo"
) -> Order:
    url = f"{gateway.url}/mcp"
    return Order(f"{server}__{tool}", prefix, url=url, gateway_pids=(gateway.pid,), server_pids=server_pids)


def _http_servers(
    stack: ExitStack, entry: Entry, everything: InstalledPackage | None
) -> Iterator[tuple[str, str, Order]]:
    programs = [
        ("sdk", "HTTP, official Python SDK", "", python_server("sdk.py")),
        ("lean", "HTTP, bare ASGI", "", python_server("lean.py")),
    ]
    if everything is not None:
        argv = [_program(entry, everything), "streamableHttp"]
        programs.append(("everything-http", "HTTP, npm server-everything", EVERYTHING_PREFIX, lambda _: argv))
    for name, title, prefix, argv_for in programs:
        port, pid = stack.enter_context(running(argv_for))
        yield name, title, Order("echo", prefix, url=f"http://127.0.0.1:{port}/mcp", server_pids=(pid,))


def _processes(
    stack: ExitStack,
    folder: Path,
    any_python: Entry,
    npm: Mapping[str, Any] | None,
    everything: InstalledPackage | None,
) -> Iterator[Subject]:
    """Local processes. A gateway runs only what a package brings: for the bare server that is Python itself."""
    argv = ["python", "-c", (FOLDER / "echo.py").read_text()]
    entries: dict[str, Mapping[str, Any]] = {"echo": {**_packaged(any_python), "command": argv}}
    if npm is not None:
        entries["everything"] = npm
    gateway = stack.enter_context(GatewayProcess(folder / "processes", "process", entries))
    if npm is not None and everything is not None:
        program = everything.root / "node_modules/.bin" / npm["command"][0]
        yield Subject(
            "process",
            "process, npm server-everything",
            Order("echo", EVERYTHING_PREFIX, argv=(str(program),)),
            _through(gateway, "everything", EVERYTHING_PREFIX, tree_running(gateway.pid, npm["command"][0])),
        )
    yield Subject(
        "process-lean",
        "process, bare Python",
        Order("echo", "", argv=(sys.executable, *argv[1:])),
        _through(gateway, "echo", "", tree_running(gateway.pid, "tools/call")),
    )


def _packaged(entry: Entry) -> dict[str, Any]:
    """What of a shipped entry says which program runs, to be started from its package."""
    whole = entry.model_dump(mode="json", exclude_unset=True)
    return {key: whole[key] for key in ("package", "command", "network") if key in whole}


def _program(entry: Entry, package: InstalledPackage) -> str:
    return str(package.root / "node_modules/.bin" / entry.command[0])


def _installed(cache_dir: Path, entry: Entry) -> InstalledPackage | None:
    if entry.package is None:
        return None
    store, package = PackageStore(cache_dir), entry.package
    try:
        return anyio.run(lambda: store.ensure(package, progress=print))
    except PackageError as exc:
        print(f"left out, npm server-everything: {exc}")
        return None


def _engine(docker_host: str) -> Engine | None:
    parts = urlsplit(docker_host)
    if parts.scheme == "unix":
        engine = Engine(parts.path)
        if engine.answers():
            return engine
    print(f"left out, container: no Docker Engine behind a socket file at {docker_host}")
    return None
