"""What was used of the quotas of limits."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "spending",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("who", sa.String(256), nullable=False),
        sa.Column("span", sa.String(10), nullable=False),
        sa.Column("used", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", "who", "span", name="pk_spending"),
    )
