"""The database: one SQLite file beside the other state, or a PostgreSQL of several gateways.

Knows no table: each module that keeps something declares its tables in `metadata` and adds a migration for them."""

from __future__ import annotations

import os
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Final, Self

from sqlalchemy import Column, Connection, MetaData, String, Table, Text, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from gateway.errors import DatabaseError, SettingsError

BUSY_TIMEOUT_S: Final = 10.0
"""How long a write waits for another process's write to a SQLite file."""
POOL_SIZE: Final = 8
MIGRATIONS: Final = Path(__file__).parent / "migrations"
DRIVERS: Final = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg", "postgres": "postgresql+asyncpg"}

metadata: Final = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class Database:
    """An open database whose tables are of this version.

    `begin` gives a connection in a transaction, committed at its end; with SQLite the commit is on disk by then
    (WAL, synchronous FULL), so what was acknowledged survives a crash.
    """

    def __init__(self, url: str) -> None:
        """
        Args:
            url: an SQLAlchemy URL, `sqlite:////path/to/file` or `postgresql://user@host/name`.

        Raises:
            SettingsError: the URL is of no database that is supported, or its driver is not installed.
        """
        self.engine = _engine(url)

    async def __aenter__(self) -> Self:
        """
        Raises:
            DatabaseError: it cannot be opened or brought to this version.
        """
        try:
            await self._migrate()
        except BaseException:
            await self.engine.dispose()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.engine.dispose()

    def begin(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """A connection in a transaction."""
        return self.engine.begin()

    @property
    def is_sqlite(self) -> bool:
        return self.engine.dialect.name == "sqlite"

    async def _migrate(self) -> None:
        from alembic.util.exc import CommandError

        try:
            if self.is_sqlite and (path := self.engine.url.database):
                # What cannot be opened is better found here: the driver's thread would outlive the attempt.
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            async with self.engine.connect() as connection:
                await connection.run_sync(upgrade)
                await connection.commit()
        except CommandError as exc:
            raise DatabaseError(f"the database was written by a newer Lockgate ({exc}); upgrade this one") from exc
        except (SQLAlchemyError, OSError) as exc:
            where = self.engine.url.render_as_string(hide_password=True)
            raise DatabaseError(f"the database {where} cannot be opened: {exc}") from exc


def upgrade(connection: Connection) -> None:
    """Bring the tables to this version."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _engine(url: str) -> AsyncEngine:
    try:
        parsed = make_url(url)
        driver = DRIVERS[parsed.drivername.partition("+")[0]]
    except (ArgumentError, KeyError):
        raise SettingsError(
            "LOCKGATE_DATABASE: give sqlite:////path/to/file or postgresql://user:password@host/name"
        ) from None
    parsed = parsed.set(drivername=driver)
    if driver.startswith("sqlite"):
        engine = create_async_engine(parsed, pool_size=POOL_SIZE, connect_args={"timeout": BUSY_TIMEOUT_S})
        event.listen(engine.sync_engine, "connect", _set_up_sqlite)
        event.listen(engine.sync_engine, "begin", _begin_immediate)
        return engine
    try:
        return create_async_engine(parsed, pool_size=POOL_SIZE, pool_pre_ping=True)
    except ModuleNotFoundError as exc:
        raise SettingsError(f"LOCKGATE_DATABASE: PostgreSQL needs {exc.name}; install lockgate[postgres]") from exc


def _set_up_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # transactions are begun below, not by the driver
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_immediate(connection: Connection) -> None:
    """A transaction takes the write lock at once: two that read first and write then would refuse each other."""
    connection.exec_driver_sql("BEGIN IMMEDIATE")


facts = Table("facts", metadata, Column("name", String(64), primary_key=True), Column("value", Text, nullable=False))
"""What is known of the database itself and belongs to no other table."""
