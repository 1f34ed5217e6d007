"""Names for artifacts, and who changed them when."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the aliases and their history."""
    op.create_table(
        "aliases",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("artifact_id", sa.String(64)),
    )
    op.create_table(
        "alias_changes",
        sa.Column("name", sa.String(64), sa.ForeignKey("aliases.name"), primary_key=True),
        sa.Column("revision", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("artifact_id", sa.String(64)),
        sa.Column("before", sa.Integer),
        sa.Column("action", sa.String(16), nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("by", sa.String(200), nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.CheckConstraint(
            "action IN ('set', 'promote', 'rollback', 'follow', 'remove')", name="alias_action"
        ),
    )
