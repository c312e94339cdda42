"""The tables of signing in. Codes, tokens and session cookies are kept as SHA-256 hashes only.

Knows no rule."""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, Boolean, Column, Float, ForeignKey, String, Table, Text, UniqueConstraint

from gateway.database import metadata

accounts: Final = Table(
    "accounts",
    metadata,
    Column("name", String(600), primary_key=True),
    Column("password", Text, nullable=False),
    Column("groups", Text, nullable=False),
    Column("is_admin", Boolean(create_constraint=False), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("disabled_at", Float),
)
"""People. A name with a colon is that of a provider's user; it has no password here."""

browsers: Final = Table(
    "browser_sessions",
    metadata,
    Column("hash", String(64), primary_key=True),
    Column("account", String(600), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("strength", String(16)),
)
"""`strength` is how somebody signed in, if not by password."""

passkeys: Final = Table(
    "passkeys",
    metadata,
    Column("id", String(2048), primary_key=True),
    Column("account", String(600), nullable=False),
    Column("name", String(64), nullable=False),
    Column("public_key", Text, nullable=False),
    Column("sign_count", BigInteger, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("used_at", Float),
    UniqueConstraint("account", "name", name="uq_passkeys_account_name"),
)
"""Public keys of people's devices."""

tickets: Final = Table(
    "signin_tickets",
    metadata,
    Column("hash", String(64), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("data", Text, nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("used_at", Float),
)
"""Whatever is good once and for minutes: codes, forms, device codes, the first administrator's code."""

clients: Final = Table(
    "oauth_clients",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("document", Text, nullable=False),
    Column("secret_hash", String(64)),
    Column("created_at", Float, nullable=False),
    Column("used_at", Float),
)
"""Clients that registered themselves."""

grants: Final = Table(
    "oauth_grants",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("subject", String(600), nullable=False),
    Column("account", String(600)),
    Column("client", String(1024), nullable=False),
    Column("client_name", String(128), nullable=False),
    Column("resource", String(1024), nullable=False),
    Column("scopes", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("revoked_at", Float),
    Column("strength", String(16)),
)
"""What somebody allowed a client once; every token from it ends with it. Without an account: a client's own."""

refreshes: Final = Table(
    "oauth_refresh_tokens",
    metadata,
    Column("hash", String(64), primary_key=True),
    Column("grant_id", String(32), ForeignKey("oauth_grants.id"), nullable=False, index=True),
    Column("expires_at", Float, nullable=False),
    Column("used_at", Float),
)

signing_keys: Final = Table(
    "signing_keys",
    metadata,
    Column("kid", String(64), primary_key=True),
    Column("jwk", Text, nullable=False),
    Column("created_at", Float, nullable=False),
)
"""Public keys only; the private ones are files of the gateways that sign with them."""
