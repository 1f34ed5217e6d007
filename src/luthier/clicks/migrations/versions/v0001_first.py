"""Sessions, their events, and the batches that they are released in."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables; that at most one batch collects is the database's to guard."""
    op.create_table(
        "click_batches",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("release_id", sa.String(200), unique=True),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("released_at", sa.Double),
        sa.CheckConstraint(
            "state IN ('collecting', 'released', 'fine_tuning', 'archived')",
            name="click_batch_state",
        ),
        sa.CheckConstraint(
            "(state = 'collecting') = (release_id IS NULL) "
            "AND (state = 'collecting') = (released_at IS NULL)",
            name="click_batch_release",
        ),
    )
    only = sa.text("state = 'collecting'")
    op.create_index(
        "click_batch_collecting", "click_batches", ["state"], unique=True, sqlite_where=only,
        postgresql_where=only,
    )  # fmt: skip
    op.create_table(
        "click_sessions",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("session_id", sa.String(200), nullable=False, unique=True),
        sa.Column("batch_id", sa.String(32), sa.ForeignKey("click_batches.id"), nullable=False),
        sa.Column("search_query", sa.Text, nullable=False),
        sa.Column("search_results", sa.Text, nullable=False),
        sa.Column("search_meta", sa.Text),
        sa.Column("user_id", sa.String(200)),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("is_irrelevant", sa.Boolean, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("click_sessions_batch", "click_sessions", ["batch_id", "number"])
    op.create_table(
        "click_events",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column(
            "session_number", sa.Integer, sa.ForeignKey("click_sessions.number"), nullable=False
        ),
        sa.Column("event_id", sa.String(200), nullable=False),
        sa.Column("object_id", sa.Text, nullable=False),
        sa.Column("event_type", sa.String(200), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("meta", sa.Text),
        sa.UniqueConstraint("session_number", "event_id", name="click_event_once"),
        sqlite_autoincrement=True,
    )
