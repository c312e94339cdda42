"""The vault's two tables: one row that says what the vault is, and one for each sealed value.

Knows columns; what is in them is the vault's business."""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, Column, Integer, LargeBinary, String, Table, Text

from gateway.database import metadata

states: Final = Table(
    "vault",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("id", String(32), nullable=False),
    Column("generation", BigInteger, nullable=False),
    Column("root", Text, nullable=False),
    Column("key", String(16), nullable=False),
    Column("wrapped", LargeBinary, nullable=False),
    Column("sum", LargeBinary, nullable=False),
    Column("proof", LargeBinary, nullable=False),
)
items: Final = Table(
    "vault_items",
    metadata,
    Column("kind", String(16), primary_key=True),
    Column("owner", String(512), primary_key=True),
    Column("name", String(1024), primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("changed_at", BigInteger, nullable=False),
    Column("data_key", LargeBinary, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
)
