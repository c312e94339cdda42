"""The vault itself: sealed values in the database, opened one at a time, and every write proved as a whole.

Knows rows and keys; not who may read a value, nor which server it is for.

Each value has a data key of its own, wrapped by the vault's master key, which a root outside of the database wraps
(roots.py). What is sealed is bound to vault, kind, owner, name and version, so a row in another place or of another
time does not open. The row of the vault proves the set of all rows and a generation, which each write raises; the root
remembers the generation (the mark), so an older database is noticed."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import anyio
from anyio import to_thread
from sqlalchemy import RowMapping, delete, insert, select, update
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway import durable
from gateway.database import Database
from gateway.errors import SecretsError
from gateway.secrets import SecretValue, usable
from gateway.vault.roots import Facts, Root, open_root, root_of_kind
from gateway.vault.sealing import Keyring, Sum, Unsealable, bound, new_key
from gateway.vault.tables import items, states

_log: Final = logging.getLogger(__name__)

FORMAT: Final = "lockgate-vault-1"
SECRET: Final = "secret"  # noqa: S105  # a kind of value
TOKEN: Final = "token"  # noqa: S105  # the same
"""What a sign-in brought: tokens of one principal at one server."""
REFRESH_S: Final = 2.0
"""How soon a change that another gateway made on the same database is seen."""
TRIES: Final = 3


class Place(NamedTuple):
    """What a value is kept under."""

    kind: str
    owner: str
    name: str


class Kept(NamedTuple):
    """One value as it may be shown: everything but the value."""

    kind: str
    owner: str
    name: str
    version: int
    """The generation of the vault in which it was written: no two writes have the same."""
    changed_at: int
    """Seconds since the epoch."""


class _Row(NamedTuple):
    place: Place
    version: int
    changed_at: int
    data_key: bytes
    sealed: bytes

    def term(self, keyring: Keyring) -> bytes:
        return keyring.proof(bound("row", *self.place, self.version, self.changed_at, self.data_key, self.sealed))


class _State(NamedTuple):
    """The vault's own row, with the keys it opened."""

    id: str
    generation: int
    root: str
    wrapped: bytes
    sum: bytes
    keyring: Keyring

    @property
    def facts(self) -> Facts:
        facts: Facts = json.loads(self.root)
        return facts

    def values(self) -> dict[str, Any]:
        return {
            "number": 1,
            "id": self.id,
            "generation": self.generation,
            "root": self.root,
            "key": self.keyring.id,
            "wrapped": self.wrapped,
            "sum": self.sum,
            "proof": self.keyring.proof(self.proved()),
        }

    def proved(self) -> bytes:
        return bound(FORMAT, self.id, self.generation, self.root, self.keyring.id, self.wrapped, self.sum)

    @property
    def mark(self) -> str:
        return f"{self.id} {self.generation}"


class Change(NamedTuple):
    """One write: the new value, or None to remove what is there."""

    place: Place
    value: bytes | None


class Vault:
    """A secret store (`SecretStore`), and the keeper of tokens. Made at its first write.

    `open` never fails: a vault that cannot be opened says why in `problem`, and every read of it is refused with that.
    """

    def __init__(self, database: Database, folder: Path, key: str = "") -> None:
        """`folder` holds what is kept beside the database; `key` is `LOCKGATE_VAULT_KEY`."""
        self.problem = ""
        self.watchers: list[Callable[[frozenset[Place]], None]] = []
        """Called after each change, in the event loop, with what changed."""
        self._database = database
        self._folder = folder
        self._key = key
        self._root: Root | None = None
        self._state: _State | None = None
        self._rows: dict[Place, _Row] = {}
        self._writing = anyio.Lock()

    # -- reading -----------------------------------------------------------------------------

    def get(self, name: str, owner: str = "") -> SecretValue | None:
        value = self.value(Place(SECRET, owner, name))
        return None if value is None else SecretValue(name, value)

    def how_to_set(self, name: str) -> str:
        return f"run lockgate secret set {name}"

    def value(self, place: Place) -> bytes | None:
        """
        Raises:
            SecretsError: the vault cannot be opened, or this row was tampered with.
        """
        if self.problem:
            raise SecretsError(self.problem)
        row, state = self._rows.get(place), self._state
        if row is None or state is None:
            return None
        return _unsealed(state, row)

    def kept(self, kind: str = SECRET) -> list[Kept]:
        """What is kept, without the values."""
        rows = sorted(self._rows.values(), key=lambda row: row.place)
        return [Kept(*row.place, row.version, row.changed_at) for row in rows if row.place.kind == kind]

    def version(self, place: Place) -> int:
        """Of which write the value is; 0 if there is none."""
        row = self._rows.get(place)
        return 0 if row is None else row.version

    @property
    def generation(self) -> int:
        return 0 if self._state is None else self._state.generation

    @property
    def id(self) -> str:
        """Empty before the first write."""
        return "" if self._state is None else self._state.id

    @property
    def root(self) -> str:
        """What keeps the key: `keyring`, `file`, `command`, `passphrase`, or nothing yet."""
        return "" if self._state is None else str(self._state.facts.get("kind", ""))

    # -- opening -----------------------------------------------------------------------------

    async def open(self) -> None:
        """Read and prove everything that is kept."""
        async with self._writing:
            await self._open()

    async def _open(self, *, accept: bool = False, again: bool = False) -> None:
        """With `again` a database that does not answer changes nothing: what was read before still holds."""
        self.problem = ""
        try:
            async with self._database.begin() as connection:
                await self._load(connection)
            await self._compare_mark(accept=accept)
        except SecretsError as exc:
            self.problem = f"the vault cannot be used: {exc}"
        except SQLAlchemyError as exc:
            if again:
                raise
            self.problem = f"the vault cannot be read from the database ({type(exc).__name__})"
        if self.problem:
            self._state, self._rows = None, {}
            _log.error("%s", self.problem)

    async def refresh(self) -> None:
        """Take in what another gateway on the same database has written."""
        if self.problem:
            return
        async with self._writing:
            before = dict(self._rows)
            async with self._database.begin() as connection:
                generation = (await connection.execute(select(states.c.generation))).scalar_one_or_none()
                if generation is None or generation == self.generation:
                    return
            await self._open(again=True)
        self._tell(place for place in before.keys() | self._rows.keys() if before.get(place) != self._rows.get(place))

    async def watch(self) -> None:
        """Until cancelled: take in what others write."""
        while True:
            await anyio.sleep(REFRESH_S)
            try:
                await self.refresh()
            except SQLAlchemyError as exc:
                _log.warning("the vault could not be read again (%s)", type(exc).__name__)

    async def accept(self) -> None:
        """Take the database as it is, though it is older than what was here last, or of another vault: somebody has
        put a backup of it back and says so.

        Raises:
            SecretsError: it cannot be opened for another reason.
        """
        async with self._writing:
            await self._open(accept=True)
        if self.problem:
            raise SecretsError(self.problem)

    async def _load(self, connection: AsyncConnection) -> None:
        """Read all rows and prove them."""
        found = (await connection.execute(select(states).with_for_update())).mappings().one_or_none()
        if found is None:
            if (await connection.execute(select(items.c.name).limit(1))).first() is not None:
                raise SecretsError("the row that says what the vault is was removed from the database")
            self._state, self._rows = None, {}
            return
        state = await self._opened(found)
        rows = (await connection.execute(select(items))).mappings().all()
        loaded = [_row(row) for row in rows]
        total = Sum()
        for row in loaded:
            total.add(row.term(state.keyring))
        if total.bytes() != state.sum:
            raise SecretsError(
                "its rows are not the ones that were written: something changed the database; restore a backup "
                "(lockgate secret restore)"
            )
        self._state, self._rows = state, {row.place: row for row in loaded}

    async def _opened(self, found: RowMapping) -> _State:
        """The vault's own row, proved; asks the root only if the key is another than before."""
        if self._state is not None and self._state.wrapped == found["wrapped"]:
            keyring = self._state.keyring
        else:
            try:
                facts: Facts = json.loads(found["root"])
                kind = str(facts["kind"])
            except (ValueError, KeyError, TypeError):
                raise SecretsError("the row that says what the vault is was changed") from None
            self._root = await to_thread.run_sync(root_of_kind, kind, self._key, self._folder)
            master = await to_thread.run_sync(self._root.unwrap, facts, found["wrapped"], _to_master(found["id"]))
            keyring = Keyring(master)
        state = _State(found["id"], found["generation"], found["root"], found["wrapped"], found["sum"], keyring)
        if found["key"] != keyring.id or not keyring.proves(found["proof"], state.proved()):
            raise SecretsError("the row that says what the vault is was changed")
        return state

    async def _compare_mark(self, *, accept: bool) -> None:
        """
        Raises:
            SecretsError: the database is older than the last one seen here.
        """
        state = self._state
        if state is None:
            await self._expect_nothing(accept=accept)
            return
        root = self._root
        assert root is not None  # noqa: S101  # whoever has a state has asked its root
        mark = await to_thread.run_sync(root.read_mark)
        id, _, generation = (mark or "").partition(" ")
        fits = id == state.id and generation.isdigit() and int(generation) <= state.generation
        if not fits and not accept:
            raise SecretsError(
                (
                    f"the database is older than the last one seen here (generation {state.generation}, was "
                    f"{generation}), so it may bring back what was removed or replaced"
                    if id == state.id
                    else "nothing here says which database is the newest"
                )
                + "; if you have put it there on purpose, run: lockgate secret check --accept"
            )
        if mark != state.mark:
            try:
                await to_thread.run_sync(root.write_mark, state.mark)
            except OSError as exc:  # the mark that is there still tells an older database
                _log.warning("the vault's newest state could not be marked beside its key: %s", exc.strerror)

    async def _expect_nothing(self, *, accept: bool) -> None:
        """There is no vault in the database. If there was one here, somebody took it away."""
        path = self._folder / "vault.mark"
        mark = await to_thread.run_sync(durable.read, path)
        if mark is None or mark.endswith(b" 0"):  # a vault whose first write did not come to its end
            return
        if not accept:
            raise SecretsError(
                f"the database holds no vault, though {path} says that there was one; put the database back, or to "
                "begin anew run: lockgate secret check --accept"
            )
        path.unlink()

    # -- writing -----------------------------------------------------------------------------

    async def put(self, name: str, value: bytes, owner: str = "", kind: str = SECRET) -> None:
        """Keep a value; on return it is on disk.

        Raises:
            SecretsError: it cannot be kept; says why.
        """
        await self.write([Change(Place(kind, owner, name), value)])

    async def remove(self, name: str, owner: str = "", kind: str = SECRET) -> bool:
        """Whether there was one."""
        place = Place(kind, owner, name)
        if place not in self._rows and not self.problem:
            return False
        await self.write([Change(place, None)])
        return True

    async def write(self, changes: Iterable[Change], *, replace: bool = False) -> None:
        """All of these or none. `replace` takes everything of their kinds away that is not among them.

        Raises:
            SecretsError: they cannot be kept; says why.
        """
        wanted = {change.place: change.value for change in changes}
        for place, value in wanted.items():
            if value is not None:
                usable(place.name, value)
        with anyio.CancelScope(shield=True):  # what is on disk and what is in memory must not part
            async with self._writing:
                if self.problem:
                    raise SecretsError(self.problem)
                if replace:
                    kinds = {place.kind for place in wanted} or {SECRET}
                    wanted = {**dict.fromkeys((one for one in self._rows if one.kind in kinds), None), **wanted}
                await self._commit(wanted)
            self._tell(wanted)

    async def _commit(self, wanted: Mapping[Place, bytes | None]) -> None:
        for attempt in range(TRIES):
            try:
                async with self._database.begin() as connection:
                    await self._catch_up(connection)
                    state, rows = await self._apply(connection, wanted)
                break
            except IntegrityError:
                if attempt == TRIES - 1:
                    raise SecretsError("another gateway writes to the vault all the time; try again") from None
            except SQLAlchemyError as exc:
                raise SecretsError(f"the database did not take it ({type(exc).__name__})") from exc
        await self._settle(state, rows)

    async def _settle(self, state: _State, rows: dict[Place, _Row]) -> None:
        """It is committed: remember the generation before anybody is told, then use it."""
        root = self._root
        assert root is not None  # noqa: S101  # set where the state was made
        self._state, self._rows = state, rows
        try:
            await to_thread.run_sync(root.write_mark, state.mark)
        except (OSError, SecretsError) as exc:
            raise SecretsError(f"it is kept, but that could not be marked beside the key: {exc}") from exc

    async def _catch_up(self, connection: AsyncConnection) -> None:
        """What the database holds now is what is changed, whoever wrote it."""
        found = (
            await connection.execute(select(states.c.generation, states.c.wrapped).with_for_update())
        ).one_or_none()
        known = None if self._state is None else (self._state.generation, self._state.wrapped)
        if (None if found is None else tuple(found)) != known:
            if found is None or (known is not None and found[0] < known[0]):
                raise SecretsError("the database became older while it was in use")
            await self._load(connection)

    async def _apply(
        self, connection: AsyncConnection, wanted: Mapping[Place, bytes | None]
    ) -> tuple[_State, dict[Place, _Row]]:
        is_new = self._state is None
        state = self._state or await self._made()
        state = state._replace(generation=state.generation + 1)
        total, rows, now = Sum(state.sum), dict(self._rows), int(time.time())
        for place, value in wanted.items():
            old = rows.pop(place, None)
            if old is not None:
                total.take(old.term(state.keyring))
                await connection.execute(delete(items).where(*_at(place)))
            if value is not None:
                sealed = state.keyring.seal(value, _to(state, place, state.generation))
                rows[place] = row = _Row(place, state.generation, now, *sealed)
                total.add(row.term(state.keyring))
                await connection.execute(insert(items).values(**_columns(row)))
        state = state._replace(sum=total.bytes())
        await connection.execute(insert(states).values(**state.values()) if is_new else _updated(state))
        return state, rows

    async def _made(self) -> _State:
        """A vault that nobody has written to."""
        self._root = root = await to_thread.run_sync(open_root, self._key, self._folder)
        state = await _master(root, os.urandom(16).hex(), 0, Sum().bytes())
        await to_thread.run_sync(root.write_mark, state.mark)
        return state

    def _tell(self, places: Iterable[Place]) -> None:
        changed = frozenset(places)
        if changed:
            for watcher in self.watchers:
                watcher(changed)

    # -- the key -----------------------------------------------------------------------------

    async def rotate(self, to: str | None = None) -> None:
        """Give the vault another master key under a new root key, kept where `to` says (like `LOCKGATE_VAULT_KEY`) or
        where it is now. Killed at any moment it has either the old keys or the new ones, and those are there:
        1. the new root key is made and lies beside the old one;
        2. in one transaction all data keys are wrapped anew and the new master key is written;
        3. everything is read again and opened;
        4. the old root key is removed. An older copy of the database is of no use to anybody from then on.

        Raises:
            SecretsError: there is no vault, or a key cannot be used; the old one is still in use.
        """
        with anyio.CancelScope(shield=True):
            async with self._writing:
                if self.problem:
                    raise SecretsError(self.problem)
                if self._state is None or self._root is None:
                    raise SecretsError("there is no vault yet; the first lockgate secret set makes it")
                before, old = self._root, self._state
                root = before if to is None else await to_thread.run_sync(open_root, to, self._folder)
                if root is not before:
                    await to_thread.run_sync(root.write_mark, old.mark)  # a moved vault is not one of unknown age
                try:
                    async with self._database.begin() as connection:
                        await self._catch_up(connection)
                        state, rows = await self._rewrapped(connection, root)
                except SQLAlchemyError as exc:
                    raise SecretsError(f"the database did not take the new key ({type(exc).__name__})") from exc
                self._root = root
                await self._settle(state, rows)
                if to is not None:
                    self._key = to
                self._state = None
                await self._open()
                if self.problem:
                    raise SecretsError(f"{self.problem}; the old key is kept")
                self.prove()
                await to_thread.run_sync(before.forget, old.facts)
                await to_thread.run_sync(root.forget_others, state.facts)

    def prove(self) -> None:
        """
        Raises:
            SecretsError: a value that is kept does not open.
        """
        for place in self._rows:
            self.value(place)

    async def _rewrapped(self, connection: AsyncConnection, root: Root) -> tuple[_State, dict[Place, _Row]]:
        old = self._state
        assert old is not None  # noqa: S101  # asked before
        state = await _master(root, old.id, old.generation + 1, b"")
        total, rows = Sum(), dict[Place, _Row]()
        for place, row in self._rows.items():
            try:
                data_key = old.keyring.rewrap(row.data_key, _to(old, place, row.version), state.keyring)
            except Unsealable:
                raise SecretsError(f"the {place.kind} {place.name} does not open; remove it first") from None
            rows[place] = row._replace(data_key=data_key)
            total.add(rows[place].term(state.keyring))
            await connection.execute(update(items).where(*_at(place)).values(data_key=data_key))
        state = state._replace(sum=total.bytes())
        await connection.execute(_updated(state))
        return state, rows


async def _master(root: Root, id: str, generation: int, total: bytes) -> _State:
    """A new master key, wrapped by a new key of the root."""
    facts, master = await to_thread.run_sync(root.create), new_key()
    wrapped = await to_thread.run_sync(root.wrap, facts, master, _to_master(id))
    if await to_thread.run_sync(root.unwrap, facts, wrapped, _to_master(id)) != master:  # before anything depends on it
        raise SecretsError("what keeps the vault's key does not give back what it was given")
    return _State(id, generation, json.dumps(facts, sort_keys=True), wrapped, total, Keyring(master))


def _to_master(id: str) -> bytes:
    return bound(FORMAT, id, "master key")


def _to(state: _State, place: Place, version: int) -> bytes:
    return bound(FORMAT, state.id, *place, version)


def _unsealed(state: _State, row: _Row) -> bytes:
    try:
        return state.keyring.unseal(row.data_key, row.sealed, _to(state, row.place, row.version))
    except Unsealable:
        raise SecretsError(f"the {row.place.kind} {row.place.name} was changed in the database; set it again") from None


def _row(found: RowMapping) -> _Row:
    place = Place(found["kind"], found["owner"], found["name"])
    return _Row(place, found["version"], found["changed_at"], found["data_key"], found["sealed"])


def _columns(row: _Row) -> dict[str, Any]:
    columns = row._asdict()
    del columns["place"]
    return {**columns, **row.place._asdict()}


def _at(place: Place) -> tuple[Any, ...]:
    return items.c.kind == place.kind, items.c.owner == place.owner, items.c.name == place.name


def _updated(state: _State) -> Any:
    return update(states).where(states.c.number == 1).values(**state.values())
