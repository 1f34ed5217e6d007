"""Tasks of fine-tuning. That one task works on a model, and on a batch, is guarded here."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the tasks."""
    op.create_table(
        "click_tasks",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("request", sa.Text, nullable=False),
        sa.Column("idempotency_key", sa.String(200), unique=True),
        sa.Column("embedding_model_id", sa.Text, nullable=False),
        sa.Column("model_key", sa.String(500), nullable=False),
        sa.Column("batch_id", sa.String(32), sa.ForeignKey("click_batches.id")),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("result", sa.Text),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("epoch", sa.Integer, nullable=False),
        sa.Column("holder", sa.Text),
        sa.Column("lease_expires_at", sa.Double),
        sa.Column("cancel_requested_at", sa.Double),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("started_at", sa.Double),
        sa.Column("finished_at", sa.Double),
        sa.Column("updated_at", sa.Double, nullable=False),
        sa.CheckConstraint(
            "status IN ('pending', 'processing', 'done', 'canceled', 'failed', 'refused')",
            name="click_task_status",
        ),
        sa.CheckConstraint(
            "(status = 'processing') = (lease_expires_at IS NOT NULL AND holder IS NOT NULL)",
            name="click_task_lease",
        ),
        sa.CheckConstraint("status <> 'done' OR result IS NOT NULL", name="click_task_result"),
    )
    works = sa.text("status = 'processing'")
    for column in ("model_key", "batch_id"):
        op.create_index(
            f"click_task_{column}", "click_tasks", [column], unique=True, sqlite_where=works,
            postgresql_where=works,
        )  # fmt: skip
    op.create_index("click_task_queue", "click_tasks", ["status", "created_at"])
