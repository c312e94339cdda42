"""The database: what it promises about writes, versions and its two engines.

Knows no table of any other module."""

from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError

import gateway.serving  # noqa: F401  # with it comes every module that declares tables
from gateway.database import Database, metadata
from gateway.errors import DatabaseError, SettingsError

pytestmark = pytest.mark.anyio


def url(folder: Path) -> str:
    return f"sqlite:///{folder / 'lockgate.db'}"


async def put(database: Database, name: str, value: str) -> None:
    async with database.begin() as connection:
        await connection.execute(text("INSERT INTO facts VALUES (:name, :value)"), {"name": name, "value": value})


async def put_twice(database: Database) -> None:
    async with database.begin() as connection:
        for value in ("first", "second"):
            await connection.execute(text("INSERT INTO facts VALUES ('colour', :value)"), {"value": value})


async def test_what_was_written_is_there_after_reopening(tmp_path: Path) -> None:
    async with Database(url(tmp_path)) as database:
        await put(database, "colour", "blue")
    async with Database(url(tmp_path)) as database, database.begin() as connection:
        assert (await connection.execute(text("SELECT value FROM facts"))).scalars().all() == ["blue"]


async def test_a_transaction_that_fails_leaves_nothing(tmp_path: Path) -> None:
    async with Database(url(tmp_path)) as database:
        with pytest.raises(IntegrityError):
            await put_twice(database)
        async with database.begin() as connection:
            assert (await connection.execute(text("SELECT count(*) FROM facts"))).scalar_one() == 0


async def test_commits_are_on_disk_and_two_programs_may_write(tmp_path: Path) -> None:
    async with Database(url(tmp_path)) as one, Database(url(tmp_path)) as other:
        async with one.begin() as connection:
            assert (await connection.execute(text("PRAGMA synchronous"))).scalar_one() == 2
            assert (await connection.execute(text("PRAGMA journal_mode"))).scalar_one() == "wal"
        for number in range(20):
            await put(one if number % 2 else other, str(number), "x")
        async with other.begin() as connection:
            assert (await connection.execute(text("SELECT count(*) FROM facts"))).scalar_one() == 20


async def test_a_database_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    async with Database(url(tmp_path)) as database, database.begin() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(DatabaseError, match="newer Lockgate"):
        async with Database(url(tmp_path)):
            pass


async def test_a_folder_in_place_of_the_file_is_said_plainly(tmp_path: Path) -> None:
    (tmp_path / "lockgate.db").mkdir()
    with pytest.raises(DatabaseError, match=r"lockgate\.db cannot be opened"):
        async with Database(url(tmp_path)):
            pass


@pytest.mark.parametrize("bad", ["nonsense", "mysql://root@host/db", "", "sqlite3:///x"])
def test_other_urls_are_refused(bad: str) -> None:
    with pytest.raises(SettingsError, match="LOCKGATE_DATABASE"):
        Database(bad)


def differences(connection: Connection) -> list[object]:
    return list(compare_metadata(MigrationContext.configure(connection), metadata))


async def test_migrations_make_the_tables_that_modules_declare(tmp_path: Path) -> None:
    async with Database(url(tmp_path)) as database, database.engine.connect() as connection:
        assert await connection.run_sync(differences) == []


async def test_migrations_make_the_same_tables_in_postgresql(postgres_url: str) -> None:
    async with Database(postgres_url) as database, database.engine.connect() as connection:
        assert await connection.run_sync(differences) == []
    async with Database(postgres_url) as again, again.engine.connect() as connection:
        assert await connection.run_sync(differences) == [], "opening it a second time changes nothing"
