"""Passkeys, and how strongly somebody signed in."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "passkeys",
        sa.Column("id", sa.String(2048), nullable=False),
        sa.Column("account", sa.String(600), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("public_key", sa.Text, nullable=False),
        sa.Column("sign_count", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        sa.Column("used_at", sa.Float),
        sa.PrimaryKeyConstraint("id", name="pk_passkeys"),
        sa.UniqueConstraint("account", "name", name="uq_passkeys_account_name"),
    )
    op.add_column("browser_sessions", sa.Column("strength", sa.String(16)))
    op.add_column("oauth_grants", sa.Column("strength", sa.String(16)))
