"""Vaults that are killed, one after the other on one state folder, and a look at what each next one finds.

Run as a program: `python -m tests.gateway.vaultkilled ORDER`, where ORDER is JSON. Each vault lives in a fork of this
process, which has loaded everything before. A fork says what it finds, then what it is about to do and what is done; it
is killed either at a random moment, or at the Nth statement, commit, or file of one operation, for N = 1, 2, 3, …"""

import asyncio
import gc
import hashlib
import json
import logging
import os
import random
import select
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from sqlalchemy import event

from gateway.database import Database
from gateway.vault import Change, Place, Vault
from gateway.vault.backup import back_up, restore

REACHED_S: Final = 120.0
PASSPHRASE: Final = b"correct horse battery"
SPREAD_S: Final = 0.012
"""How long after an operation began a fork is killed at most, at random moments."""
NAMES: Final = 5
STEPPED: Final = ("put", "remove", "rotate", "move", "restore", "import")


class Wrong(AssertionError):
    """Something acknowledged is lost, or something that never was is there."""


# -- in the fork -------------------------------------------------------------------------------


class Steps:
    """Kills this process at the Nth step while armed."""

    def __init__(self, at: int, folder: str) -> None:
        self.left = at
        self.armed = False
        self._folder = folder
        sys.addaudithook(self._heard)

    def watch(self, database: Database) -> None:
        engine = database.engine.sync_engine
        for name in ("before_cursor_execute", "after_cursor_execute", "commit"):
            event.listen(engine, name, lambda *_: self.step())

    def _heard(self, name: str, args: tuple[Any, ...]) -> None:
        if self.armed and name in ("open", "os.rename", "os.remove") and str(args[0]).startswith(self._folder):
            self.step()

    def step(self) -> None:
        if self.armed:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


async def live(order: dict[str, Any], plan: dict[str, Any], say: Callable[[Any], None]) -> None:
    """Open the vault, say what is in it, and carry out the plan."""
    folder = Path(order["state"])
    steps = Steps(plan.get("step", 0), str(folder))
    chance = random.Random(plan["seed"])
    async with Database(f"sqlite:///{folder / 'lockgate.db'}") as database:
        vault = Vault(database, folder, plan["key"])
        await vault.open()
        if vault.problem:
            # A vault that was being moved is where it was, or where it was to go.
            vault = Vault(database, folder, plan["other"])
            await vault.open()
        say({"found": contents(vault), "problem": vault.problem, "generation": vault.generation})
        if vault.problem:
            return
        steps.watch(database)
        while True:
            operation = plan.get("operation") or chance.choice(("put", "put", "put", "remove", "rotate", "import"))
            name = f"a.n{chance.randrange(NAMES)}"
            value = chance.randbytes(chance.choice((8, 100, 3000))).hex()
            match operation:
                case "put":
                    say({"begin": {name: digest(value.encode())}})
                    steps.armed = True
                    await vault.put(name, value.encode())
                case "remove":
                    say({"begin": {name: None}})
                    steps.armed = True
                    await vault.remove(name)
                case "import":
                    values = {f"a.n{number}": f"{value}{number}" for number in range(NAMES)}
                    say({"begin": {one: digest(text.encode()) for one, text in values.items()}})
                    steps.armed = True
                    await vault.write([Change(Place("secret", "", one), t.encode()) for one, t in values.items()])
                case "rotate" | "move":
                    say({"begin": {}})
                    steps.armed = True
                    await vault.rotate(plan["other"] if operation == "move" else None)
                case "restore":
                    await back_up(vault, folder / "backup", PASSPHRASE)
                    kept = contents(vault)
                    await vault.put("a.n0", value.encode())
                    say({"begin": {f"a.n{number}": kept.get(f"a.n{number}") for number in range(NAMES)}, "put": value})
                    steps.armed = True
                    await restore(vault, folder / "backup", PASSPHRASE, replace=True)
            steps.armed = False
            say({"done": operation})
            if "step" in plan:
                return


def digest(value: bytes) -> str:
    return hashlib.sha256(value).hexdigest()[:16]


def contents(vault: Vault) -> dict[str, str]:
    if vault.problem:
        return {}
    return {one.name: digest(vault.value(Place("secret", "", one.name)) or b"") for one in vault.kept()}


def fork(order: dict[str, Any], plan: dict[str, Any]) -> tuple[int, int]:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    code = 1
    try:
        os.close(reading)
        asyncio.run(live(order, plan, lambda what: (os.write(writing, json.dumps(what).encode() + b"\n"), None)[1]))
        code = 0
    except BaseException as exc:  # noqa: BLE001  # a fork must never go on as its parent
        print(f"the vault ended: {type(exc).__name__}: {exc}", file=sys.stderr, flush=True)
    os._exit(code)


# -- in the parent -----------------------------------------------------------------------------


class Cycles:
    """One state folder, one seed; `sure` is what was acknowledged, `maybe` what was begun and not acknowledged."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.order = order
        self.chance = random.Random(order["seed"])
        self.sure: dict[str, str] = {}
        self.maybe: dict[str, str | None] | None = None
        self.counts: Counter[str] = Counter()
        folder = Path(order["state"])
        self.keys = ["file", f"file:{folder / 'other.key'}"]
        self.generation = 0

    def cycle(self, operation: str = "", step: int = 0) -> bool:
        """Whether the operation ended before its step came."""
        plan: dict[str, Any] = {"seed": self.chance.getrandbits(32), "key": self.keys[0], "other": self.keys[1]}
        if step:
            plan |= {"operation": operation, "step": step}
        pid, reading = fork(self.order, plan)
        lines = Lines(reading)
        try:
            self.compare(lines.next() or {})
            if step:
                ended = self.follow(lines)
            else:
                for _ in range(self.chance.randrange(1, 6)):
                    self.note(lines.next() or {})
                select.select([], [], [], self.chance.random() * SPREAD_S)
                ended = False
                os.kill(pid, signal.SIGKILL)
                self.follow(lines)
        finally:
            lines.close()
            _, status = os.waitpid(pid, 0)
        if not os.WIFSIGNALED(status) and os.waitstatus_to_exitcode(status):
            raise Wrong(f"the vault ended with code {os.waitstatus_to_exitcode(status)} in {operation or 'a cycle'}")
        self.counts[operation or "random"] += 1
        return ended

    def follow(self, lines: "Lines") -> bool:
        """Read what the fork still said; whether the last thing was that it is done."""
        ended = False
        while (said := lines.next()) is not None:
            self.note(said)
            ended = "done" in said
        return ended

    def note(self, said: dict[str, Any]) -> None:
        if "begin" in said:
            if "put" in said:
                self.sure["a.n0"] = digest(said["put"].encode())
            self.maybe = said["begin"]
        elif "done" in said:
            self.sure = apply(self.sure, self.maybe or {})
            self.maybe = None
            if said["done"] == "move":
                self.keys.reverse()

    def compare(self, said: dict[str, Any]) -> None:
        if said.get("problem") != "":
            raise Wrong(f"the vault does not open: {said}")
        allowed = [self.sure] if self.maybe is None else [self.sure, apply(self.sure, self.maybe)]
        if said["found"] not in allowed:
            raise Wrong(f"found {said['found']}, acknowledged {self.sure}, begun {self.maybe}")
        if said["generation"] < self.generation:
            raise Wrong("the generation went back")
        self.sure, self.maybe, self.generation = said["found"], None, said["generation"]


class Lines:
    def __init__(self, reading: int) -> None:
        self._file = os.fdopen(reading, "rb")

    def next(self) -> dict[str, Any] | None:
        ready, _, _ = select.select([self._file], [], [], REACHED_S) if not self._file.peek(1) else ([1], [], [])
        if not ready:
            raise Wrong(f"nothing was heard for {REACHED_S:g} s")
        line = self._file.readline()
        if not line.endswith(b"\n"):
            return None
        said: dict[str, Any] = json.loads(line)
        return said

    def close(self) -> None:
        self._file.close()


def apply(sure: dict[str, str], changes: dict[str, str | None]) -> dict[str, str]:
    merged = {**sure, **changes}
    return {name: value for name, value in merged.items() if value is not None}


async def load_everything() -> None:
    """What a fork would import for itself otherwise, three hundred times."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with Database(f"sqlite:///{folder / 'lockgate.db'}") as database:
            vault = Vault(database, folder, "file")
            await vault.open()
            await vault.put("a.b", b"value")
            await back_up(vault, folder / "backup", PASSPHRASE)


def main() -> None:
    order = json.loads(sys.argv[1])
    Path(order["state"]).mkdir(mode=0o700, exist_ok=True)
    asyncio.run(load_everything())
    gc.freeze()
    logging.disable()  # a vault that is looked for in two places is not in one of them
    cycles, started = Cycles(order), time.monotonic()
    most = {}
    for operation in STEPPED:
        step = 1
        while not cycles.cycle(operation, step):
            step += 1
        most[operation] = step - 1
    while sum(cycles.counts.values()) < order["cycles"]:
        cycles.cycle()
    cycles.cycle("put", 10_000)  # the last look
    print(json.dumps({"cycles": cycles.counts, "steps": most, "s": round(time.monotonic() - started, 1)}))


if __name__ == "__main__":
    main()
