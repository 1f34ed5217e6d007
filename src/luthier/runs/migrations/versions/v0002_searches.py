"""Searches: runs of another kind, whose trials can be put aside after so many evaluations."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add what tells a search from a training, and how far a trial may go."""
    kind = sa.Column("kind", sa.String(16), nullable=False, server_default="training")
    op.add_column("runs", kind)
    op.add_column("runs", sa.Column("pause_after", sa.Integer))
